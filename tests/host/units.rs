//! The room `systemd` and the unit files, on a real host.

use crate::inner::INSIDE;
use crate::machine::{ITSELF, Machine};

/// What `systemd-analyze security` of systemd 252 says of our units, times ten; lower is tighter.
/// Raise one only with a reason in the unit file.
const EXPOSURE: [(&str, u32); 2] = [("enmesh.service", 26), ("envoy@x.service", 14)];

#[test]
fn the_unit_files_are_well_formed_and_tight() {
    let machine = Machine::boot("verify");
    // Without manual pages: the tree has none at all.
    for unit in ["enmesh.service", "envoy@.service"] {
        let unit = format!("/usr/lib/systemd/system/{unit}");
        let output = machine.run(&["systemd-analyze", "verify", "--man=no", &unit]);
        assert!(output.status.success() && output.stderr.is_empty(), "{}", output.stderr);
    }
    for (unit, limit) in EXPOSURE {
        let report = machine.must(&["systemd-analyze", "security", "--no-pager", unit]);
        let verdict = report.lines().rfind(|line| line.contains("exposure level")).expect("a verdict");
        println!("{verdict}");
        let level = verdict.split(": ").nth(1).and_then(|rest| rest.split(' ').next()).expect("a level");
        let level: u32 = level.replace('.', "").parse().expect("a number");
        assert!(level <= limit, "{report}");
    }
    machine.must(&["systemctl", "preset", "enmesh.service"]);
    assert_eq!(machine.must(&["systemctl", "is-enabled", "enmesh.service"]).trim(), "enabled");
}

#[test]
fn a_sidecar_lives_and_dies_by_the_bus() {
    Machine::boot("life").run_inner("a_sidecar_from_start_to_stop");
}

#[test]
fn what_goes_wrong_is_told_with_a_code() {
    Machine::boot("faults").run_inner("faults_have_codes");
}

#[test]
fn the_bus_may_go_away() {
    Machine::boot("bus").run_inner("events_survive_a_restart_of_the_bus");
}

#[test]
fn resolved_is_fed() {
    Machine::boot("dns").run_inner("resolved_asks_whom_it_is_told");
}

/// The same life of a sidecar, led from within `enmesh.service`'s own sandbox: its capabilities, its
/// system calls and the few folders that it may write.
#[test]
fn the_sandbox_of_the_daemon_leaves_enough_room() {
    let machine = Machine::boot("sandbox");
    let test = "inner::a_sidecar_from_start_to_stop";
    // The one thing more that the test needs is to kill an Envoy.
    let dropin = format!(
        "[Service]\nCapabilityBoundingSet=CAP_KILL\nType=oneshot\nRestart=no\nWatchdogSec=0\nEnvironment={INSIDE}=1\nExecStart=\n\
         ExecStart={ITSELF} --exact {test} --ignored --nocapture\n"
    );
    machine.write_file("/etc/systemd/system/enmesh.service.d/test.conf", dropin.as_bytes(), 0o644);
    machine.must(&["systemctl", "daemon-reload"]);
    let started = machine.run(&["systemctl", "start", "enmesh.service"]);
    let log = machine.must(&["journalctl", "--no-pager", "--output=cat", "--unit=enmesh.service"]);
    assert!(started.status.success() && log.contains("1 passed"), "{log}");
}
