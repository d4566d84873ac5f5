//! One config entry.

use std::path::PathBuf;

use serde_json::{Map, Value, json};

use crate::base::Place;
use crate::consul::registration::digest;

/// The key of metadata that says what an entry was made from. It also tells when something was taken
/// out of an entry, which a comparison of what is in it cannot.
pub(super) const MARK: &str = "enmesh-hash";

/// The kinds, in the order in which they are written: each builds on those before.
const ORDER: [&[&str]; 7] = [
    &["proxy-defaults", "mesh", "sameness-group", "jwt-provider", "control-plane-request-limit"],
    &["service-defaults"],
    &["service-resolver"],
    &["service-splitter"],
    &["service-router"],
    &[
        "ingress-gateway",
        "terminating-gateway",
        "exported-services",
        "inline-certificate",
        "file-system-certificate",
        "api-gateway",
        "http-route",
        "tcp-route",
    ],
    &["service-intentions"],
];

/// Where `kind` stands in the order; `None` for one that is not known.
pub(super) fn rank(kind: &str) -> Option<usize> {
    ORDER.iter().position(|kinds| kinds.contains(&kind))
}

/// A config entry as a file has it.
#[derive(Debug, Clone, PartialEq)]
pub struct ConfigEntry {
    pub(super) kind: String,
    pub(super) name: String,
    /// As it is sent: with kind, name and mark; other keys as the file spells them.
    pub(super) body: Value,
    /// The file it is from.
    pub(super) file: PathBuf,
}

impl ConfigEntry {
    /// Makes an entry of what a file holds.
    ///
    /// # Errors
    /// Says what is wrong with it, in a sentence that goes into an error as it is.
    pub(super) fn new(value: Value, file: PathBuf) -> Result<Self, String> {
        let Value::Object(mut fields) = value else { return Err("it is no object".to_owned()) };
        let kind = take(&mut fields, "Kind")?.ok_or("it has no `Kind`")?;
        if rank(&kind).is_none() {
            return Err(format!("{kind:?} is no kind of config entry"));
        }
        let only = match kind.as_str() {
            "proxy-defaults" => Some("global"),
            "mesh" => Some("mesh"),
            _ => None,
        };
        let name =
            take(&mut fields, "Name")?.or_else(|| only.map(str::to_owned)).ok_or("it has no `Name`")?;
        if let Some(only) = only.filter(|only| *only != name) {
            return Err(format!("the one entry of the kind {kind} is called {only:?}, not {name:?}"));
        }
        let meta_key = fields.keys().find(|key| key.eq_ignore_ascii_case("Meta")).cloned();
        let mut meta = match meta_key.and_then(|key| fields.remove(&key)) {
            None | Some(Value::Null) => Map::new(),
            Some(Value::Object(meta)) => meta,
            Some(_) => return Err("its `Meta` is no object".to_owned()),
        };
        fields.insert("Kind".to_owned(), json!(kind));
        fields.insert("Name".to_owned(), json!(name));
        let mut body = Value::Object(fields);
        body.sort_all_objects();
        let hash = digest(&json!([body, meta]));
        meta.insert(MARK.to_owned(), json!(hash));
        if let Some(fields) = body.as_object_mut() {
            fields.insert("Meta".to_owned(), Value::Object(meta));
        }
        body.sort_all_objects();
        Ok(ConfigEntry { kind, name, body, file })
    }

    /// Its kind, such as `service-router`.
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// Its name; most often that of a service.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How it is called in messages: `KIND/NAME`.
    pub fn label(&self) -> String {
        format!("{}/{}", self.kind, self.name)
    }

    pub(super) fn place(&self) -> Place {
        Place::whole(&self.file)
    }

    /// The text of one of its fields; none for the default namespace or partition.
    pub(super) fn scope(&self, key: &str) -> Option<&str> {
        get(&self.body, key)?.as_str().filter(|it| !it.is_empty() && *it != "default")
    }

    /// What tells two entries apart.
    pub(super) fn identity(&self) -> (Option<usize>, &str, &str, Option<&str>, Option<&str>) {
        let (namespace, partition) = (self.scope("Namespace"), self.scope("Partition"));
        (rank(&self.kind), &self.kind, &self.name, namespace, partition)
    }
}

/// Takes the text under `key` out, however its letters are.
fn take(fields: &mut Map<String, Value>, key: &str) -> Result<Option<String>, String> {
    let Some(found) = fields.keys().find(|it| same(it, key)).cloned() else { return Ok(None) };
    match fields.remove(&found) {
        Some(Value::String(text)) if !text.trim().is_empty() => Ok(Some(text)),
        _ => Err(format!("its `{key}` is no name")),
    }
}

/// Whether two keys are the same to Consul, which reads `ConnectTimeout` and `connect_timeout`.
pub(super) fn same(one: &str, other: &str) -> bool {
    let letters = |text: &str| -> String {
        text.chars().filter(|c| *c != '_').map(|c| c.to_ascii_lowercase()).collect()
    };
    one == other || letters(one) == letters(other)
}

/// The field of `value` that Consul calls `key`.
pub(super) fn get<'v>(value: &'v Value, key: &str) -> Option<&'v Value> {
    let fields = value.as_object()?;
    fields.get(key).or_else(|| fields.iter().find(|(it, _)| same(it, key)).map(|(_, value)| value))
}

/// The items of the list that Consul calls `key`.
pub(super) fn list<'v>(value: &'v Value, key: &str) -> &'v [Value] {
    get(value, key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The text that Consul calls `key`; none where it is empty.
pub(super) fn text<'v>(value: &'v Value, key: &str) -> Option<&'v str> {
    get(value, key)?.as_str().filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(value: Value) -> Result<ConfigEntry, String> {
        ConfigEntry::new(value, PathBuf::from("f.json"))
    }

    #[test]
    fn both_spellings_are_read() {
        for value in [
            json!({ "Kind": "service-defaults", "Name": "api", "Meta": { "a": "b" } }),
            json!({ "kind": "service-defaults", "name": "api", "meta": { "a": "b" } }),
        ] {
            let entry = entry(value).unwrap();
            assert_eq!(entry.label(), "service-defaults/api");
            assert_eq!(
                (&entry.body["Kind"], &entry.body["Meta"]["a"]),
                (&json!("service-defaults"), &json!("b"))
            );
            assert!(entry.body["Meta"][MARK].is_string());
        }
        assert_eq!(entry(json!({ "Kind": "proxy-defaults" })).unwrap().name(), "global");
        assert!(same("connect_timeout", "ConnectTimeout") && !same("Name", "Names"));
    }

    #[test]
    fn the_mark_changes_with_what_is_in_it_and_with_nothing_else() {
        let mark = |value| entry(value).unwrap().body["Meta"][MARK].clone();
        let one = mark(json!({ "Kind": "service-defaults", "Name": "api", "Protocol": "http" }));
        assert_eq!(one, mark(json!({ "Protocol": "http", "name": "api", "kind": "service-defaults" })));
        assert_ne!(one, mark(json!({ "Kind": "service-defaults", "Name": "api" })));
    }

    #[test]
    fn what_is_no_entry_is_said() {
        for (value, says) in [
            (json!([]), "no object"),
            (json!({ "Name": "x" }), "no `Kind`"),
            (json!({ "Kind": "service-defaults" }), "no `Name`"),
            (json!({ "Kind": "service-default", "Name": "x" }), "no kind"),
            (json!({ "Kind": "proxy-defaults", "Name": "x" }), "global"),
            (json!({ "Kind": "mesh", "Meta": 1 }), "`Meta`"),
        ] {
            let why = entry(value).unwrap_err();
            assert!(why.contains(says), "{why}");
        }
    }
}
