//! The lab without enmesh: everything is in the clear, and the watch says so. What it says in the other
//! tests counts because it could have said this.

use std::time::Duration;

use super::apps::{COUNTING_PORT, DASHBOARD_PORT, DASHBOARD_SETTINGS};
use super::cluster::{COUNTING, Lab, PATIENCE, Recipe, eventually};
use super::load::Load;

#[test]
fn without_enmesh_the_watch_sees_everything() {
    let recipe = Recipe { name: "bare", consul: serde_json::json!({}), counting: vec![], dashboard: vec![] };
    let lab = Lab::boot(&recipe);
    lab.until_joined();
    assert_in_the_clear(&lab);
}

/// `dashboard` asks by address, because nobody resolves the name; the watch sees every request.
pub fn assert_in_the_clear(lab: &Lab) {
    let settings = lab.dashboard.must(&["cat", DASHBOARD_SETTINGS]);
    ask(lab, &format!("http://{COUNTING}:{COUNTING_PORT}/"));
    let before = lab.watch.seen();
    let load = load(lab);
    let gap = eventually("an unbroken load", PATIENCE, || {
        load.through_since(Duration::ZERO).ok_or_else(|| format!("{:?}", load.gap_since(Duration::ZERO)))
    });
    assert_eq!(gap.failed, 0, "{gap:?}");
    drop(load);
    let seen = lab.watch.since(&before);
    println!("without enmesh: {} requests, {seen:?}", gap.tried);
    // At both ports, in both directions.
    let requests = u64::try_from(gap.tried).unwrap();
    assert!(seen.app >= 2 * requests && seen.clear[&COUNTING_PORT] >= 2 * requests, "{seen:?}");
    assert!(seen.marks >= 4 * requests, "{seen:?}");
    assert_eq!((seen.mesh, seen.encrypted, seen.unseen), (0, 0, 0), "{seen:?}");
    ask(lab, &settings);
}

/// A load through `dashboard` to `counting`, from `dashboard`'s own machine.
pub fn load(lab: &Lab) -> Load {
    let url = format!("http://127.0.0.1:{DASHBOARD_PORT}/");
    Load::start(&lab.dashboard.cable().inside, &url)
}

/// Has `dashboard` ask another URL.
fn ask(lab: &Lab, url: &str) {
    lab.dashboard.write_file(DASHBOARD_SETTINGS, url.as_bytes(), 0o644);
    lab.dashboard.must(&["systemctl", "restart", "dashboard.service"]);
    let listens = || lab.dashboard.run(&["ss", "-Hltn", "sport", "=", &DASHBOARD_PORT.to_string()]);
    eventually("the dashboard", PATIENCE, || match listens().stdout.is_empty() {
        true => Err("it does not listen"),
        false => Ok(()),
    });
}
