//! The setup that the field knows: each machine has one file of an earlier generation of tools, and
//! nothing else says anything about a mesh. One package more, and the two talk inside mutual TLS.

use std::time::Duration;

use serde_json::{Value, json};

use super::bare::{assert_in_the_clear, load};
use super::chaos::Chaos;
use super::cluster::{Lab, PATIENCE, Recipe, eventually};
use super::load::Load;

/// Where the field has its service file.
const LEGACY_FILE: &str = "/srv/consul/service-config.json";
/// What is in it on the two machines.
const COUNTING_FILE: &[u8] = include_bytes!("../../vectors/legacy-annotations/01-server/service-config.json");
const DASHBOARD_FILE: &[u8] =
    include_bytes!("../../vectors/legacy-annotations/02-client-only/service-config.json");

#[test]
fn two_files_make_a_mesh_that_outlives_every_restart() {
    let lab = Lab::boot(&Recipe {
        name: "seed",
        consul: json!({}),
        counting: vec![(LEGACY_FILE, COUNTING_FILE.to_vec())],
        dashboard: vec![(LEGACY_FILE, DASHBOARD_FILE.to_vec())],
    });
    lab.until_joined();
    assert_in_the_clear(&lab);

    let before = lab.watch.seen();
    lab.start_enmesh();
    lab.until_ready();
    let load = load(&lab);
    through(&lab, &load);
    assert_status(&lab);
    println!("with enmesh: {:?}", lab.watch.since(&before));
    Chaos::all(&lab, &load);
    let (answered, highest) = load.answered();
    drop(load);
    let seen = lab.watch.since(&before);
    println!("in all: {answered} answers, {seen:?}");
    assert_eq!(seen.leak(), None);
    assert!(highest >= answered as u64, "{answered} answers of a service that has counted to {highest}");
    // At both ports of the switch; a connection for each answer.
    assert!(seen.mesh >= 2 * answered as u64 && seen.encrypted > 0, "{seen:?}");
}

/// Waits until the load is through for the first time.
pub fn through(lab: &Lab, load: &Load) {
    let gap = eventually("the first request through the mesh", PATIENCE, || {
        let gap = load.through_since(Duration::ZERO);
        gap.ok_or_else(|| format!("{:?}\n{}", load.gap_since(Duration::ZERO), lab.journals()))
    });
    println!("through the mesh after {} ms, {} requests lost", gap.length.as_millis(), gap.failed);
}

/// What `enmesh status` says on the two hosts, for people and for programs.
fn assert_status(lab: &Lab) {
    for (machine, id) in [(&lab.counting, "counting"), (&lab.dashboard, "dashboard")] {
        let said = machine.must(&["enmesh", "status"]);
        println!("{said}");
        let status = machine.status();
        assert_eq!(status["services"].as_object().unwrap().keys().collect::<Vec<_>>(), [id]);
        assert_eq!(status["services"][id]["phase"], "live", "{status:#}");
        assert_eq!(status["faults"], Value::Array(vec![]), "{status:#}");
    }
}
