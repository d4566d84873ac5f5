//! Names of variables: what pages, templates, units and cloud-init say is what the program reads, and all that it reads
//! is on a page.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use enmesh::config;

use crate::source::{root, sources};

/// Where names of variables stand.
const PLACES: [&str; 10] = [
    "README.md",
    "aci",
    "ansible",
    "cloud-init",
    "docs",
    "image",
    "packaging",
    "scripts",
    "systemd",
    "vagrant",
];
/// Names with the prefix that are not of the program's environment, and who reads or writes each: a file, and what
/// stands there.
const OTHERS: [(&str, &str, &str); 4] = [
    ("ENMESH_URL", "cloud-init/enmesh.yaml", "\"$ENMESH_URL\""),
    ("ENMESH_SHA256", "cloud-init/enmesh.yaml", "\"$ENMESH_SHA256\""),
    ("ENMESH_CODE", "src/daemon/log.rs", "ENMESH_CODE"),
    ("ENMESH_SERVICE", "src/daemon/log.rs", "ENMESH_SERVICE="),
];
const PAGE: &str = "docs/variables.md";

/// Names in `text`. One that ends with `_` is a prefix.
fn names_in(text: &str) -> BTreeSet<String> {
    let is_of_name = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    let starts = text.match_indices("ENMESH_").filter(|(start, _)| !text[..*start].ends_with(is_of_name));
    let names = starts.map(|(start, _)| {
        let rest = &text[start..];
        &rest[..rest.find(|c| !is_of_name(c)).unwrap_or(rest.len())]
    });
    names.filter(|name| !name.ends_with('_')).map(str::to_owned).collect()
}

/// Every name that is said, with the files that say it.
fn said(path: &Path, found: &mut BTreeMap<String, BTreeSet<String>>) {
    if path.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            said(&entry.unwrap().path(), found);
        }
        return;
    }
    // Not text, and so no page.
    let Ok(text) = fs::read_to_string(path) else { return };
    for name in names_in(&text) {
        let file = path.strip_prefix(root()).unwrap().display().to_string();
        found.entry(name).or_default().insert(file);
    }
}

/// What the program reads.
fn read() -> BTreeSet<String> {
    config::variables().iter().map(|variable| variable.name.to_owned()).collect()
}

#[test]
fn a_variable_that_is_said_is_read() {
    let mut found = BTreeMap::new();
    PLACES.iter().for_each(|place| said(&root().join(place), &mut found));
    // The places are those where there is something.
    for file in
        ["aci/bicep/group.bicep", "aci/terraform/group/main.tf", "vagrant/serve", "docs/containers.md"]
    {
        assert!(found.values().any(|files| files.contains(file)), "{file} says no name");
    }
    for (name, file, text) in OTHERS {
        assert!(found.remove(name).is_some(), "nobody says {name}");
        assert!(fs::read_to_string(root().join(file)).unwrap().contains(text), "{file} has no {text}");
    }
    let read = read();
    found.retain(|name, _| !read.contains(name));
    assert!(found.is_empty(), "the program reads none of these: {found:#?}");
}

#[test]
fn the_page_is_made_of_what_is_read() {
    let row = |variable: &config::Described| {
        let key = variable.key.as_ref().map_or("–".to_owned(), |key| format!("`{key}`"));
        assert!(!variable.about.is_empty(), "{}: its key says nothing of itself", variable.name);
        format!("| `{}` | {key} | {} |\n", variable.name, variable.about)
    };
    let rows: String = config::variables().iter().map(row).collect();
    let page = fs::read_to_string(root().join(PAGE)).unwrap();
    let (head, table) = page.split_once("|---|---|---|\n").unwrap();
    if std::env::var_os("ENMESH_BLESS").is_some() {
        fs::write(root().join(PAGE), format!("{head}|---|---|---|\n{rows}")).unwrap();
        return;
    }
    assert_eq!(table, rows, "the types changed: run the test with ENMESH_BLESS=1 and commit {PAGE}");
}

/// Whoever adds one that is asked for by its name puts it into the list.
#[test]
fn the_list_has_all_that_the_code_asks_for() {
    let mut asked = BTreeMap::new();
    for source in sources("src") {
        for (_, line) in source.code() {
            for name in names_in(line) {
                // A whole literal; others are words of a sentence, names of chains, and fields of a log.
                if line.contains(&format!("\"{name}\"")) {
                    asked.entry(name).or_insert_with(|| source.path.clone());
                }
            }
        }
    }
    assert!(asked.contains_key("ENMESH_LOG") && asked.contains_key("ENMESH_SERVICE_NAME"), "{asked:?}");
    let read = read();
    asked.retain(|name, _| !read.contains(name));
    assert!(asked.is_empty(), "not in the list of src/config/environment.rs: {asked:?}");
}

#[test]
fn names_are_read_where_they_stand() {
    let text = "`ENMESH_LOG=x` ENMESH_SHA256, `ENMESH_*` ENMESH_SERVICE_ MY_ENMESH_NO";
    assert_eq!(names_in(text).into_iter().collect::<Vec<_>>(), ["ENMESH_LOG", "ENMESH_SHA256"]);
}
