//! Publication while no Envoy runs: what is written, and what a look ahead says of it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test fails by panicking, also in its helpers"
)]

#[path = "support/envoy_scenarios.rs"]
mod scenarios;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use enmesh::base::Root;
use enmesh::envoy::{Layout, Publisher, unheeded};
use enmesh::plan::{Access, Callers, MeshView, Protocol, ServicePlan};
use scenarios::{known, mesh, name, placeholders, scenarios as all, service};

struct Bed {
    tree: tempfile::TempDir,
    publisher: Publisher,
    service: ServicePlan,
    mesh: MeshView,
}

impl Bed {
    fn new() -> Bed {
        let tree = tempfile::tempdir().unwrap();
        let mut service = service("web");
        // Whoever runs the test may only give files to a group of their own.
        service.sidecar.gid = nix::unistd::getgid().as_raw();
        let mesh = mesh([
            ("api", known(&["240.0.0.5"], &[("10.0.0.2", 21000, None)], &["web"])),
            ("web", known(&["240.0.0.6"], &[], &["*"])),
        ]);
        Bed { publisher: Publisher::new(Root::new(tree.path())), tree, service, mesh }
    }

    fn publish(&self) -> Vec<String> {
        let published =
            run(self.publisher.publish(&self.service, &self.mesh, Some(&placeholders()))).unwrap();
        assert!(!published.verified, "nobody runs");
        published.changed
    }

    fn diff(&self) -> Vec<String> {
        self.publisher.diff(&self.service, &self.mesh, Some(&placeholders())).unwrap()
    }

    fn files(&self) -> BTreeMap<String, u64> {
        let mut found = BTreeMap::new();
        inodes(self.tree.path(), &mut found);
        found
    }
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn inodes(folder: &Path, found: &mut BTreeMap<String, u64>) {
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            inodes(&entry.path(), found);
        } else {
            found.insert(entry.path().display().to_string(), entry.metadata().unwrap().ino());
        }
    }
}

#[test]
fn what_is_announced_is_what_is_done() {
    let mut bed = Bed::new();
    let announced = bed.diff();
    assert!(bed.files().is_empty(), "a look touches nothing");
    assert_eq!(announced.len(), 5, "{announced:?}");
    assert_eq!(bed.publish(), announced);

    let before = bed.files();
    assert!(bed.diff().is_empty());
    assert!(bed.publish().is_empty());
    assert_eq!(bed.files(), before, "equal files are not even touched");

    bed.mesh.services.remove(&name("api"));
    bed.mesh.services.insert(name("db"), known(&["240.0.0.7"], &[], &[]));
    let announced = bed.diff();
    assert_eq!(announced, ["cds.json", "lds.json"]);
    assert_eq!(bed.publish(), announced);
    assert!(bed.diff().is_empty());
}

#[test]
fn without_new_certificates_the_old_ones_stay() {
    let bed = Bed::new();
    let without = || run(bed.publisher.publish(&bed.service, &bed.mesh, None));
    assert_eq!(without().unwrap_err().code, "ENM-E012");
    assert!(bed.files().is_empty(), "nothing was written");
    bed.publish();
    assert!(without().unwrap().changed.is_empty());
}

#[test]
fn what_cannot_work_is_refused_before_anything_is_written() {
    let mut bed = Bed::new();
    let refused = |bed: &Bed| {
        let fault = run(bed.publisher.publish(&bed.service, &bed.mesh, Some(&placeholders()))).unwrap_err();
        assert!(bed.files().is_empty(), "nothing was written");
        fault.code
    };
    let trust_domain = std::mem::take(&mut bed.mesh.trust_domain);
    assert_eq!(refused(&bed), "ENM-E013");
    bed.mesh.trust_domain = trust_domain;
    bed.service.sidecar.config.insert("bind_address".to_owned(), "nonsense".into());
    assert_eq!(refused(&bed), "ENM-E010");
    bed.service.sidecar.config.clear();
    bed.service.sidecar.folder = format!("/run/enmesh/{}", "x".repeat(100)).into();
    assert_eq!(refused(&bed), "ENM-E011");
}

#[test]
fn keys_without_effect_are_named() {
    let mut service = service("web");
    for key in ["protocol", "envoy_statsd_url", "local_conect_timeout_ms", "envoy_public_listener_json"] {
        service.sidecar.config.insert(key.to_owned(), "http".into());
    }
    let warnings = unheeded(&service);
    let told: Vec<(&str, bool)> = warnings
        .iter()
        .map(|warning| (warning.code, warning.hint.contains("`local_connect_timeout_ms`")))
        .collect();
    assert_eq!(told, [("ENM-E014", false), ("ENM-E014", true)], "{warnings:?}");
    assert!(warnings.iter().all(|warning| warning.service.as_deref() == Some("web")));
}

#[test]
fn removal_leaves_nothing() {
    let bed = Bed::new();
    bed.publish();
    assert!(bed.publisher.remove(&bed.service).unwrap());
    assert!(!Layout::new(&bed.service, &Root::new(bed.tree.path())).folder().exists());
    assert!(!bed.publisher.remove(&bed.service).unwrap());
}

#[test]
fn every_scenario_is_idempotent() {
    for (scenario, (service, mesh)) in all() {
        let mut bed = Bed::new();
        bed.service = ServicePlan { sidecar: bed.service.sidecar.clone(), ..service };
        bed.mesh = mesh;
        bed.publish();
        assert!(bed.diff().is_empty(), "{scenario}");
    }
}

/// 500 services with 5 instances each. The time is only printed; what grows faster than the mesh would
/// show as minutes.
#[test]
fn in_a_large_mesh_one_change_of_health_touches_one_file() {
    use enmesh::envoy::resources;
    use std::time::Instant;

    let mut bed = Bed::new();
    for index in 0..500_u32 {
        let virtual_ip = std::net::Ipv4Addr::from_bits(0xf000_0100 + index).to_string();
        let hosts: Vec<String> =
            (0..5).map(|host| format!("10.{}.{}.{host}", index / 250, index % 250)).collect();
        let instances: Vec<_> = hosts.iter().map(|host| (host.as_str(), 21000, None)).collect();
        let mut service = known(&[virtual_ip.as_str()], &instances, &["*"]);
        service.protocol = if index % 2 == 0 { Protocol::Tcp } else { Protocol::Http };
        bed.mesh.services.insert(name(&format!("service-{index}")), service);
    }
    // Callers that are denied by name, as many as there are services.
    let denied = bed.mesh.services.keys().map(|name| (name.clone(), Access::Deny)).collect();
    bed.mesh.services.get_mut(&name("web")).unwrap().callers =
        Callers { named: denied, others: Access::Allow };
    let timed = |what: &str, action: &dyn Fn() -> Vec<String>| {
        let started = Instant::now();
        let changed = action();
        eprintln!("{what}: {:?}", started.elapsed());
        changed
    };
    timed("rendering", &|| {
        resources(&bed.service, &bed.mesh, &Root::default()).unwrap();
        Vec::new()
    });
    assert_eq!(timed("first publication", &|| bed.publish()).len(), 5);

    let unhealthy = bed.mesh.services.get_mut(&name("service-77")).unwrap();
    unhealthy.instances.pop_first();
    assert_eq!(timed("one change", &|| bed.publish()), ["cds.json"]);
    assert!(timed("no change", &|| bed.publish()).is_empty());
}
