//! What is rendered for Envoy, byte for byte, against files that people can read.
//! `ENMESH_BLESS=1 cargo test --test envoy_golden` writes them anew; look at the difference.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test fails by panicking, also in its helpers"
)]

#[path = "support/envoy_scenarios.rs"]
mod scenarios;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use enmesh::base::Root;
use enmesh::envoy::{FileSet, Resources, bootstrap, resources, unit_spec};
use enmesh::plan::{MeshView, ServicePlan};
use scenarios::{known, mesh, placeholders, scenarios as all, service, upstream};
use serde_json::Value;

fn golden_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/envoy")
}

fn rendered(service: &ServicePlan, mesh: &MeshView) -> BTreeMap<String, String> {
    let root = Root::default();
    let set = FileSet::new(&resources(service, mesh, &root).unwrap(), Some(&placeholders()));
    let mut files: BTreeMap<String, String> = set
        .files()
        .iter()
        .map(|(path, bytes)| (path.clone(), String::from_utf8(bytes.clone()).unwrap()))
        .collect();
    files.insert("bootstrap.json".to_owned(), format!("{:#}\n", bootstrap(service, &root).unwrap()));
    let unit = unit_spec(service, &root).unwrap();
    files.insert("arguments.txt".to_owned(), unit.arguments.join("\n") + "\n");
    files
}

fn files_below(folder: &Path, prefix: &str, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let entry = entry.unwrap();
        let path = format!("{prefix}{}", entry.file_name().to_str().unwrap());
        if entry.file_type().unwrap().is_dir() {
            files_below(&entry.path(), &format!("{path}/"), found);
        } else {
            found.insert(path);
        }
    }
}

#[test]
fn the_rendered_files_are_the_golden_ones() {
    let bless = std::env::var_os("ENMESH_BLESS").is_some();
    let mut differences = Vec::new();
    if bless {
        let _ = fs::remove_dir_all(golden_folder());
    }
    for (scenario, (service, mesh)) in all() {
        let folder = golden_folder().join(scenario);
        let files = rendered(&service, &mesh);
        for (path, text) in &files {
            let path = folder.join(path);
            if bless {
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            } else if fs::read_to_string(&path).ok().as_ref() != Some(text) {
                differences.push(path);
            }
        }
        let mut there = BTreeSet::new();
        files_below(&folder, "", &mut there);
        differences
            .extend(there.iter().filter(|path| !files.contains_key(*path)).map(|path| folder.join(path)));
    }
    assert!(differences.is_empty(), "differ from what is rendered: {differences:#?}");
}

fn lds(resources: &Resources) -> Vec<u8> {
    FileSet::new(resources, None).get("lds.json").unwrap().to_vec()
}

#[test]
fn listeners_stay_when_endpoints_move_and_certificates_rotate() {
    let root = Root::default();
    let at = |address: &str| mesh([("api", known(&["240.0.0.5"], &[(address, 21000, None)], &["*"]))]);
    let web = service("web");
    let before = resources(&web, &at("10.0.0.2"), &root).unwrap();
    let after = resources(&web, &at("10.0.0.3"), &root).unwrap();
    assert_eq!(lds(&before), lds(&after));
    assert_ne!(before.clusters, after.clusters);

    let mut rotated = placeholders();
    rotated.certificate_pem.push_str("another\n");
    let (old, new) = (FileSet::new(&before, Some(&placeholders())), FileSet::new(&before, Some(&rotated)));
    let changed: Vec<&String> = old.files().keys().filter(|path| old.get(path) != new.get(path)).collect();
    assert_eq!(changed, ["secrets/connect-leaf.json"]);
}

/// The chain that the outbound listener's matcher leads `address` and `port` to.
fn chain_for(listener: &Value, address: &str, port: u16) -> Option<String> {
    let matches =
        |matcher: &Value, text: &str| matcher["matcher_tree"]["exact_match_map"]["map"][text].clone();
    let on_match = matches(&listener["filter_chain_matcher"], address);
    let by_port = matches(&on_match["matcher"], &port.to_string());
    let action = if on_match["action"].is_null() { by_port } else { on_match };
    action["action"]["typed_config"]["value"].as_str().map(str::to_owned)
}

#[test]
fn chains_have_unique_names_and_every_match_has_its_chain() {
    for (scenario, (service, mesh)) in all() {
        for listener in resources(&service, &mesh, &Root::default()).unwrap().listeners {
            let chains = listener["filter_chains"].as_array().unwrap();
            let names: BTreeSet<&str> = chains.iter().map(|chain| chain["name"].as_str().unwrap()).collect();
            assert_eq!(names.len(), chains.len(), "{scenario}");
            if !listener["name"].as_str().unwrap().starts_with("outbound") {
                continue;
            }
            for (name, known) in &mesh.services {
                for ip in &known.virtual_ips {
                    let chain = chain_for(&listener, &ip.to_string(), 8080).unwrap();
                    assert!(names.contains(chain.as_str()), "{scenario}: {name} {ip}");
                }
            }
        }
    }
}

#[test]
fn a_contested_address_belongs_to_the_first_in_name_order() {
    let (service, mesh) = &all()["contested-addresses"];
    let rendered = resources(service, mesh, &Root::default()).unwrap();
    let chain = |address: &str, port| chain_for(&rendered.listeners[0], address, port);
    assert_eq!(chain("240.0.0.4", 80).as_deref(), Some("a"));
    assert_eq!(chain("240.0.0.5", 80).as_deref(), Some("b"));
    assert_eq!(chain("10.0.0.2", 80).as_deref(), Some("a/21000"));
    assert_eq!(chain("10.0.0.2", 81).as_deref(), Some("c/21002"));
    assert_eq!(chain("10.0.0.2", 22), None, "only the app's port is the mesh's");
    assert_eq!(chain("10.0.0.1", 80), None, "the host's own address");
}

#[test]
fn without_intentions_nobody_may_call() {
    let (service, mesh) = &all()["contested-addresses"];
    let rendered = resources(service, mesh, &Root::default()).unwrap();
    let authz = &rendered.listeners[1]["filter_chains"][0]["filters"][0];
    assert_eq!(authz["name"], "envoy.filters.network.rbac");
    // Rules that are there and empty refuse everybody; rules that are missing let everybody in.
    assert_eq!(authz["typed_config"]["rules"], serde_json::json!({"action": "ALLOW"}));
}

#[test]
fn a_restart_is_asked_for_only_when_the_start_changes() {
    let root = Root::default();
    let revision = |service: &ServicePlan| unit_spec(service, &root).unwrap().revision;
    let web = service("web");
    let mut same = web.clone();
    same.upstreams = vec![upstream("db", 5432)];
    same.sidecar.inbound_port = Some(21001);
    assert_eq!(revision(&web), revision(&same));
    let mut other = web.clone();
    other.sidecar.program = "/opt/envoy".into();
    assert_ne!(revision(&web), revision(&other));
    let mut other = web.clone();
    other.sidecar.drain = enmesh::config::value::Span::seconds(20);
    assert_ne!(revision(&web), revision(&other));
}
