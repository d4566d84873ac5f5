//! `enmesh apply --confirm` and `enmesh confirm`.

use crate::host_bed::{API, API_FILE, HOST_FILE, STATE_FILE};
use crate::site::{DB, Fate, OTHER, Site, answers};

/// `api` as it is, but connections to the port of `db` are left alone.
const BYPASSING: &str = "name = \"api\"\nport = 8080\n\n[capture]\nscope = \"user:api-app\"\n\n[capture.bypass]\noutbound_ports = [5432]\n";

/// Begins a trial and then writes the file, as one does where the daemon runs.
fn try_out(site: &Site, time: &str, service: &str) {
    let said = site.bed.run(&["apply", "--confirm", time, "--json"]);
    assert!(said.json()["status"]["pending"]["deadline"].as_u64().unwrap() > 0, "{said:?}");
    site.bed.write(API_FILE, service);
}

/// Row 78: nothing was there before, and everybody of enmesh is dead when the time is over.
#[test]
fn the_kernel_leaves_nothing_of_a_first_change_that_nobody_confirms() {
    let mut site = Site::new();
    site.bed.start().await_ready();
    assert_eq!(site.fate(DB), Fate::Direct);
    try_out(&site, "20s", API);
    site.await_live();
    site.await_fate(DB, Fate::Captured);
    let (fate, open) = site.dial(OTHER);
    let mut open = open.unwrap_or_else(|| panic!("{fate:?}"));
    assert!(answers(&mut open));
    site.bed.kill_daemon();
    assert_eq!(site.fate(DB), Fate::Captured, "the death of the daemon changes nothing yet");
    site.await_fate(DB, Fate::Direct);
    assert!(answers(&mut open), "a redirected connection lives on");

    // The next daemon takes back the rest, and does not begin again by itself.
    site.bed.start();
    let held = site.bed.await_fault("ENM-D052");
    assert_eq!(held["class"], "config", "{held:#}");
    assert!(site.bed.log().contains("ENM-D051"), "{}", site.bed.log());
    let status = site.bed.status();
    assert!(status["services"].as_object().unwrap().is_empty() && status["pending"].is_null(), "{status:#}");
    assert_eq!(site.bed.rules(), "-");
    assert_eq!(site.fate(DB), Fate::Direct);

    // A person who asks for it has it.
    assert_eq!(site.bed.run(&["apply"]).code, Some(0));
    site.bed.await_ready();
    site.await_fate(DB, Fate::Captured);
}

/// Something was there before: that counts again, in the kernel alone.
#[test]
fn the_kernel_goes_back_to_the_rules_of_before() {
    let mut site = Site::new();
    site.bed.write(API_FILE, API);
    site.bed.start().await_ready();
    site.await_fate(DB, Fate::Captured);
    try_out(&site, "20s", BYPASSING);
    site.await_fate(DB, Fate::Direct);
    let (_, open) = site.dial(OTHER);
    let mut open = open.unwrap();
    site.bed.kill_daemon();
    site.await_fate(DB, Fate::Captured);
    assert!(answers(&mut open));
}

/// A living daemon takes everything back.
#[test]
fn the_daemon_goes_back_to_what_was_before() {
    let mut site = Site::new();
    site.bed.write(API_FILE, API);
    site.bed.start().await_ready();
    try_out(&site, "10s", BYPASSING);
    site.await_fate(DB, Fate::Direct);
    site.await_fate(DB, Fate::Captured);
    site.bed.await_fault("ENM-D052");
    assert!(!site.bed.rules().contains("trial"), "{}", site.bed.rules());
    let said = site.bed.run(&["confirm", "--json"]);
    assert_eq!((said.code, said.json()["error"]["code"].as_str()), (Some(1), Some("ENM-D050")));
    // Another file is another chance.
    site.bed.write(API_FILE, API);
    site.bed.await_ready();
}

#[test]
fn what_is_confirmed_stays_and_no_connection_notices() {
    let mut site = Site::new();
    site.bed.start().await_ready();
    try_out(&site, "30s", API);
    site.await_live();
    site.await_fate(DB, Fate::Captured);
    let (_, open) = site.dial(OTHER);
    let mut open = open.unwrap();
    assert_eq!(site.bed.run(&["confirm"]).code, Some(0), "{}", site.bed.log());
    assert!(answers(&mut open));
    let rules = site.bed.rules();
    assert!(!rules.contains("trial") && !rules.contains("before_"), "{rules}");
    let status = site.bed.await_ready();
    assert!(status["pending"].is_null(), "{status:#}");
    assert_eq!(site.fate(DB), Fate::Captured);
}

/// Without a daemon: one command begins, another one keeps it, and a later one takes back what is over.
#[test]
fn it_works_without_a_daemon() {
    let site = Site::new();
    site.bed.write(API_FILE, API);
    let said = site.bed.run(&["apply", "--confirm", "30s"]);
    assert!(said.out.contains("enmesh confirm"), "{said:?}");
    assert_eq!(site.fate(DB), Fate::Captured);
    assert_eq!(site.bed.run(&["confirm"]).code, Some(0));
    assert!(!site.bed.rules().contains("trial"));
    assert_eq!(site.fate(DB), Fate::Captured);

    site.bed.write(API_FILE, BYPASSING);
    assert_eq!(site.bed.run(&["apply", "--confirm", "5s"]).code, Some(0));
    assert_eq!(site.fate(DB), Fate::Direct);
    site.await_fate(DB, Fate::Captured);
    let late = site.bed.run(&["confirm", "--json"]);
    assert_eq!((late.code, late.json()["error"]["code"].as_str()), (Some(1), Some("ENM-D051")), "{late:?}");
    assert!(!site.bed.rules().contains("trial"));
    assert_eq!(site.fate(DB), Fate::Captured);
}

/// Row 78.
#[test]
fn iptables_says_that_it_cannot() {
    let site = Site::new();
    let host = site.bed.host_file("");
    site.bed.write(HOST_FILE, format!("driver = \"iptables\"\n{host}"));
    site.bed.write(API_FILE, API);
    let said = site.bed.run(&["apply", "--confirm", "30s", "--json"]);
    assert_eq!((said.code, said.json()["error"]["code"].as_str()), (Some(1), Some("ENM-R050")), "{said:?}");
    assert!(!site.bed.path(STATE_FILE).exists(), "nothing was touched");
    assert_eq!(site.fate(DB), Fate::Direct);
    for time in ["0s", "25h"] {
        let said = site.bed.run(&["apply", "--confirm", time, "--json"]);
        assert_eq!((said.code, said.json()["error"]["code"].as_str()), (Some(64), Some("ENM-D053")));
    }
}
