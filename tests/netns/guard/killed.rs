//! A command that begins a trial is killed on the way, at any point: the kernel goes back by itself, whatever looks says
//! so meanwhile, and every command that may follow ends it.

use std::time::Duration;

use serde_json::Value;

use crate::host_bed::{API, API_FILE};
use crate::site::{DB, Fate, Site};

/// `api` as it is, but connections to the port of `db` are left alone.
const BYPASSING: &str = "name = \"api\"\nport = 8080\n\n[capture]\nscope = \"user:api-app\"\n\n[capture.bypass]\noutbound_ports = [5432]\n";

/// After how many milliseconds; it takes two to three hundred.
const POINTS: [u64; 9] = [10, 40, 70, 90, 110, 130, 160, 200, 300];

/// How long a trial lasts.
const TIME: Duration = Duration::from_secs(3);

/// Begins a trial and kills who begins it. Returns whether it had begun.
fn begin(site: &Site, after: u64) -> bool {
    let killed = site.bed.run_killed(&["apply", "--confirm", "3s"], Duration::from_millis(after));
    let plan = site.bed.run(&["plan", "--json"]).json();
    let begun = !plan["pending"].is_null();
    eprintln!("killed after {after} ms: {killed}, begun: {begun}");
    if begun {
        assert!(plan["pending"]["seconds_left"].as_u64().unwrap() <= 3, "{}", plan["pending"]);
        let (plan, status) = (site.bed.run(&["plan"]), site.bed.run(&["status"]));
        for text in [plan.out, status.err] {
            assert!(text.contains("enmesh confirm") || text.contains("is over"), "{text}");
        }
        // Before its time is over it may be confirmed, as any.
        std::thread::sleep(TIME + Duration::from_secs(1));
    }
    begun
}

/// Nothing of a trial is left.
fn ended(site: &Site, what: &str) {
    let rules = site.bed.rules();
    assert!(!rules.contains("trial") && !rules.contains("before_"), "{what}: {rules}");
    assert!(site.bed.run(&["plan", "--json"]).json()["pending"].is_null(), "{what}");
}

#[test]
fn the_rules_of_before_come_back_and_any_command_ends_it() {
    let site = Site::new();
    site.bed.write(API_FILE, API);
    assert_eq!(site.bed.run(&["apply"]).code, Some(0));
    assert_eq!(site.fate(DB), Fate::Captured);
    let mut begun = 0;
    for (round, after) in POINTS.into_iter().enumerate() {
        site.bed.write(API_FILE, BYPASSING);
        begun += u32::from(begin(&site, after));
        // Nobody of enmesh runs, and the file says that connections to it are left alone.
        site.await_fate(DB, Fate::Captured);
        let what = ["confirm", "apply", "down"][round % 3];
        let said = site.bed.run(&[what, "--json"]);
        match what {
            "confirm" => {
                let code = said.json()["error"]["code"].clone();
                assert!(["ENM-D050", "ENM-D051"].map(Value::from).contains(&code), "{said:?}");
                assert_eq!(site.fate(DB), Fate::Captured);
            }
            "apply" => {
                assert_eq!(said.code, Some(0), "{said:?}");
                // The file has another say than the rules of before.
                assert_eq!(site.fate(DB), Fate::Direct, "what was asked for is in force");
                site.bed.write(API_FILE, API);
                assert_eq!(site.bed.run(&["apply"]).code, Some(0));
                assert_eq!(site.fate(DB), Fate::Captured);
            }
            _ => {
                assert_eq!(said.code, Some(0), "{said:?}");
                assert_eq!((site.bed.rules().as_str(), site.fate(DB)), ("-", Fate::Direct));
                assert!(site.bed.envoys().is_empty());
            }
        }
        ended(&site, &format!("{what} after {after} ms"));
        if what == "down" {
            site.bed.write(API_FILE, API);
            assert_eq!(site.bed.run(&["apply"]).code, Some(0));
        }
    }
    assert!(begun >= 2, "the points are too early: {begun} had begun");
}

#[test]
fn a_first_change_leaves_nothing() {
    for after in [40, 80, 120, 200] {
        let site = Site::new();
        site.bed.write(API_FILE, API);
        begin(&site, after);
        site.await_fate(DB, Fate::Direct);
        let said = site.bed.run(&["down", "--json"]);
        assert_eq!(said.code, Some(0), "{said:?}");
        ended(&site, "down");
        assert_eq!((site.bed.rules().as_str(), site.fate(DB)), ("-", Fate::Direct));
        assert!(site.bed.envoys().is_empty(), "{after}");
    }
}
