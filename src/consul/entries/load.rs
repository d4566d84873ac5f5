//! Reading the folder.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{ConfigEntry, EntryError};
use crate::base::{Fault, Place, files};

/// Largest file that is read, in bytes; Consul takes no more than half a megabyte an entry.
const FILE_LIMIT: u64 = 4 << 20;

/// Reads every `*.json` of `folder`: one entry, or a list of them. Returns the entries in the order in
/// which they are written, and what is wrong with the others (`ENM-K100` to `ENM-K103`).
pub fn load(folder: &Path) -> (Vec<ConfigEntry>, Vec<Fault>) {
    let mut entries = Vec::new();
    let mut errors = Vec::new();
    match names(folder) {
        Ok(paths) => paths.iter().for_each(|path| read(path, &mut entries, &mut errors)),
        Err(error) => errors.push(error),
    }
    let mut unique: BTreeMap<_, ConfigEntry> = BTreeMap::new();
    for entry in entries {
        let (rank, kind, name, namespace, partition) = entry.identity();
        let owned = |text: Option<&str>| text.map(str::to_owned);
        let key = (rank, kind.to_owned(), name.to_owned(), owned(namespace), owned(partition));
        match unique.get(&key) {
            Some(first) => errors.push(EntryError::Twice {
                place: entry.place(),
                label: entry.label(),
                other: first.file.clone(),
            }),
            None => drop(unique.insert(key, entry)),
        }
    }
    (unique.into_values().collect(), errors.into_iter().map(Fault::from).collect())
}

fn names(folder: &Path) -> Result<Vec<PathBuf>, EntryError> {
    let unreadable =
        |error: std::io::Error| EntryError::Unreadable { path: folder.to_owned(), why: error.to_string() };
    let mut paths = Vec::new();
    for item in fs::read_dir(folder).map_err(unreadable)? {
        let path = item.map_err(unreadable)?.path();
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if !hidden && path.extension().is_some_and(|ending| ending == "json") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn read(path: &Path, entries: &mut Vec<ConfigEntry>, errors: &mut Vec<EntryError>) {
    let bytes = match files::read(path, FILE_LIMIT) {
        Ok(Some(bytes)) => bytes,
        // It went away in between.
        Ok(None) => return,
        Err(fault) => {
            return errors.push(EntryError::Unreadable { path: path.to_owned(), why: fault.message });
        }
    };
    let value: Value = match serde_json::from_slice(&bytes) {
        Ok(value) => value,
        Err(error) => {
            let place = Place { file: path.to_owned(), line: error.line(), column: error.column() };
            let why = error.to_string();
            // The position is in the place already.
            let why = why.split(" at line ").next().unwrap_or_default().to_owned();
            return errors.push(EntryError::Syntax { place, why });
        }
    };
    let values = match value {
        Value::Array(values) => values,
        one => vec![one],
    };
    for (position, value) in values.into_iter().enumerate() {
        match ConfigEntry::new(value, path.to_owned()) {
            Ok(entry) => entries.push(entry),
            Err(why) => {
                let place = Place::whole(path);
                errors.push(EntryError::NoEntry { place, number: position + 1, why });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_read_in_the_order_of_writing() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        write(
            "a.json",
            r#"[{"Kind": "service-router", "Name": "web"}, {"Kind": "service-intentions", "Name": "a"}]"#,
        );
        write("b.json", r#"{"kind": "proxy-defaults"}"#);
        write(
            "c.json",
            r#"[{"kind": "service-defaults", "name": "web"}, {"kind": "service-defaults", "name": "api"}]"#,
        );
        write("no.hcl", "Kind =");
        write(".hidden.json", "{");
        let (entries, faults) = load(folder.path());
        assert_eq!(faults, []);
        let labels: Vec<_> = entries.iter().map(ConfigEntry::label).collect();
        let expected = [
            "proxy-defaults/global",
            "service-defaults/api",
            "service-defaults/web",
            "service-router/web",
            "service-intentions/a",
        ];
        assert_eq!(labels, expected);
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place_and_the_rest_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        write("a.json", "{\n  \"Kind\": }");
        write(
            "b.json",
            r#"[{"Kind": "service-defaults", "Name": "api"}, {"Kind": "nothing", "Name": "api"}]"#,
        );
        write("c.json", r#"{"kind": "service-defaults", "name": "api"}"#);
        let (entries, faults) = load(folder.path());
        assert_eq!(entries.len(), 1);
        let codes: Vec<_> = faults.iter().map(|fault| fault.code).collect();
        assert_eq!(codes, ["ENM-K101", "ENM-K102", "ENM-K103"]);
        let place = faults[0].place.clone().unwrap();
        assert_eq!((place.line, place.column), (2, 11));
        let (entries, faults) = load(&folder.path().join("nowhere"));
        assert_eq!((entries.len(), faults[0].code), (0, "ENM-K100"));
    }
}
