//! The whole demo, and the demo on hosts whose configuration was spoilt: a proof that cannot fail is
//! none. Needs root, nft and Envoy; each test has a stage of its own.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "in a test a failure is a panic")]
#![allow(clippy::print_stdout, reason = "a failed run is read line by line")]

use std::path::Path;

use enmesh::demo::report::Line;
use enmesh::demo::{Cast, Report, perform, stage};

fn envoy() -> std::path::PathBuf {
    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/envoy");
    if std::env::var_os("ENMESH_ENVOY").is_none() && ours.is_file() {
        return ours.canonicalize().unwrap();
    }
    stage::find_envoy().expect("these tests need Envoy: target/tools/envoy, or ENMESH_ENVOY")
}

fn perform_with(name: &str, capture: &str) -> Report {
    let tag = format!("enmesh-{name}-{}", std::process::id());
    let program = Path::new(env!("CARGO_BIN_EXE_enmesh"));
    let cast = Cast { tag: &tag, program, envoy: envoy(), capture };
    let report = perform(&cast, false, &mut |line| println!("{line:?}")).unwrap();
    assert!(!Path::new("/run/netns").join(format!("{tag}-web")).exists(), "it cleaned up");
    report
}

fn line<'a>(report: &'a Report, name: &str) -> &'a Line {
    report.lines.iter().find(|line| line.name == name).unwrap()
}

#[test]
fn every_claim_holds() {
    let report = perform_with("good", "");
    let broken: Vec<&Line> = report.lines.iter().filter(|line| !line.ok).collect();
    assert!(broken.is_empty() && report.passed(), "{broken:#?}");
    assert_eq!(report.lines.len(), 7);
    assert!(report.milliseconds < 30_000, "{} ms", report.milliseconds);
}

#[test]
fn hosts_that_fail_open_are_caught() {
    let report = perform_with("open", "on_proxy_failure = \"open\"\n");
    assert!(!report.passed());
    let killed = line(&report, "client-sidecar-killed");
    assert!(!killed.ok && killed.detail.contains("bytes passed in the clear"), "{killed:?}");
    assert!(line(&report, "wire").ok, "while the sidecars live, nothing is in the clear");
    assert!(line(&report, "down").ok);
}

#[test]
fn hosts_that_capture_nothing_are_caught() {
    let report = perform_with("direct", "mode = \"direct\"\n");
    for name in ["plain-http", "wire", "intention"] {
        assert!(!line(&report, name).ok, "{name}");
    }
    let wire = line(&report, "wire");
    assert!(wire.detail.contains("the secret was readable"), "{wire:?}");
    assert!(line(&report, "down").ok, "and yet nothing is left behind");
}
