//! Configuration trees in, artefact trees out, byte for byte, through the binary as a person runs it:
//! `enmesh check` and `enmesh render KIND --root TREE`, without privilege and touching nothing.
//! `ENMESH_BLESS=1 cargo test --test golden_trees` writes `expected/` anew; look at the difference.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "in a test a failure is a panic")]
#![allow(clippy::indexing_slicing, reason = "in a test a failure is a panic")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use enmesh::base::exec;
use serde_json::Value;

/// What is printed of the whole host, and in which file it is expected.
const OF_HOST: [(&str, &str); 2] = [("nft", "rules.nft"), ("dns", "dns.txt")];
/// What is printed of each service.
const OF_SERVICE: [(&str, &str); 4] = [
    ("registration", "registration.json"),
    ("bootstrap", "bootstrap.json"),
    ("xds", "xds.json"),
    ("unit", "unit.conf"),
];
/// The parts of `render xds`, as Envoy gets them.
const XDS: [(&str, &str); 2] = [("listeners", "lds.json"), ("clusters", "cds.json")];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/trees")
}

fn trees() -> BTreeMap<String, PathBuf> {
    let entries = fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap());
    entries.map(|entry| (entry.file_name().into_string().unwrap(), entry.path())).collect()
}

/// Standard output and standard error of the binary, with the tree at `/`.
fn said(root: &Path, arguments: &[&str]) -> (String, String) {
    let root = root.to_str().unwrap();
    let arguments: Vec<&str> = arguments.iter().copied().chain(["--root", root]).collect();
    let program = Path::new(env!("CARGO_BIN_EXE_enmesh"));
    let output = exec::run(program, &arguments, b"", Duration::from_secs(20)).unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", output.stderr);
    let at_home = |text: &str| text.replace(&format!("{root}/"), "/");
    (at_home(&String::from_utf8(output.stdout).unwrap()), at_home(&output.stderr))
}

/// Everything that comes of the tree at `root`, by path below `expected/`.
fn artefacts(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    for (kind, name) in OF_HOST {
        let (text, remarks) = said(root, &["render", kind]);
        found.insert(PathBuf::from(name), text);
        found.insert(PathBuf::from("remarks.txt"), remarks);
    }
    let listed: Value = serde_json::from_str(&said(root, &["check", "--json"]).0).unwrap();
    for id in listed["services"].as_array().unwrap() {
        let id = id.as_str().unwrap();
        // Of a service that has a namespace for itself.
        let (rules, _) = said(root, &["render", "nft", id]);
        if rules.as_bytes() != found[Path::new("rules.nft")].as_bytes() {
            found.insert(Path::new(id).join("rules.nft"), rules);
        }
        for (kind, name) in OF_SERVICE {
            let (text, _) = said(root, &["render", kind, id]);
            match kind {
                "xds" => {
                    let whole: Value = serde_json::from_str(&text).unwrap();
                    assert_eq!(whole.as_object().unwrap().len(), XDS.len(), "nothing is left out");
                    for (part, name) in XDS {
                        found.insert(Path::new(id).join(name), format!("{:#}\n", whole[part]));
                    }
                }
                "unit" => drop(found.insert(Path::new(id).join(name), without_revision(&text, id))),
                _ => drop(found.insert(Path::new(id).join(name), text)),
            }
        }
    }
    found
}

/// The revision in the process's name is a hash over paths, and so over where the tree lies.
fn without_revision(unit: &str, id: &str) -> String {
    let mark = format!("envoy:{id}:");
    let (before, after) = unit.split_once(&mark).unwrap();
    let (revision, after) = after.split_at(12);
    assert!(revision.bytes().all(|byte| byte.is_ascii_hexdigit()), "{revision}");
    format!("{before}{mark}REVISION{after}")
}

fn files_below(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let (mut found, mut folders) = (BTreeMap::new(), vec![folder.to_owned()]);
    while let Some(at) = folders.pop() {
        for entry in fs::read_dir(at).into_iter().flatten().flatten() {
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            } else {
                let name = entry.path().strip_prefix(folder).unwrap().to_owned();
                found.insert(name, fs::read(entry.path()).unwrap());
            }
        }
    }
    found
}

#[test]
fn what_comes_of_a_tree_is_the_golden_one() {
    let bless = std::env::var_os("ENMESH_BLESS").is_some();
    let mut differences = Vec::new();
    for (name, tree) in trees() {
        let before = files_below(&tree);
        // The path is short whatever the checkout's is: a socket's path has a limit.
        let short = tempfile::tempdir().unwrap();
        let root = short.path().join("r");
        symlink(&tree, &root).unwrap();
        let artefacts = artefacts(&root);
        assert_eq!(files_below(&tree), before, "{name}: looking touches nothing");
        assert_eq!(self::artefacts(&root), artefacts, "{name}: the same every time");
        let expected = tree.join("expected");
        if bless {
            let _ = fs::remove_dir_all(&expected);
            for (path, text) in &artefacts {
                let path = expected.join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
            continue;
        }
        let golden = files_below(&expected);
        differences.extend(
            golden.keys().filter(|path| !artefacts.contains_key(*path)).map(|p| (name.clone(), p.clone())),
        );
        for (path, text) in artefacts {
            if golden.get(&path).map(Vec::as_slice) != Some(text.as_bytes()) {
                differences.push((name.clone(), path));
            }
        }
    }
    assert!(differences.is_empty(), "differ from what is rendered: {differences:#?}");
}

/// Where the tree lies, and what the caller's environment says, changes nothing but paths.
#[test]
fn another_place_gives_the_same_but_for_paths() {
    let (_, tree) = trees().into_iter().next().unwrap();
    let places: Vec<_> = ["a", "a-much-longer-name"]
        .iter()
        .map(|name| {
            let folder = tempfile::tempdir().unwrap();
            let root = folder.path().join(name);
            symlink(&tree, &root).unwrap();
            (artefacts(&root), folder)
        })
        .collect();
    assert_eq!(places[0].0, places[1].0);
}
