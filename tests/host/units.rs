//! The rooms `systemd` and `supervise` and the unit files, on a real host.

use std::time::Instant;

use crate::inner::INSIDE;
use crate::machine::{ITSELF, Machine};

/// What `systemd-analyze security` of systemd 252 says of our units, times ten; lower is tighter.
/// Raise one only with a reason in the unit file.
const EXPOSURE: [(&str, u32); 4] = [
    ("enmesh.service", 25),
    ("enmesh-early.service", 25),
    ("enmesh-reap.service", 25),
    ("envoy@x.service", 13),
];

#[test]
fn the_unit_files_are_well_formed_and_tight() {
    let machine = Machine::boot("verify");
    // Without manual pages: the tree has none at all.
    let reap = ["enmesh-reap.service", "enmesh-reap.timer"];
    for unit in ["enmesh.service", "enmesh-early.service", "envoy@.service"].into_iter().chain(reap) {
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
    for unit in ["enmesh.service", "enmesh-early.service"] {
        machine.must(&["systemctl", "preset", unit]);
        assert_eq!(machine.must(&["systemctl", "is-enabled", unit]).trim(), "enabled");
    }
    // One or several hosts of a mesh are to have it, not all.
    machine.must(&["systemctl", "preset", "enmesh-reap.timer"]);
    let enabled = machine.run(&["systemctl", "is-enabled", "enmesh-reap.timer"]);
    assert_eq!(String::from_utf8_lossy(&enabled.stdout).trim(), "disabled");
}

#[test]
fn the_reaper_runs_in_its_sandbox_when_its_timer_says_so() {
    let machine = Machine::boot("reap");
    let said = || machine.must(&["journalctl", "--no-pager", "--output=cat", "--unit=enmesh-reap.service"]);
    // It does not guess whom to judge.
    assert!(!machine.run(&["systemctl", "start", "enmesh-reap.service"]).status.success());
    assert!(said().contains("ENM-A040"), "{}", said());
    assert_eq!(machine.property("enmesh-reap.service", "ExecMainStatus"), "64");
    // As far as a host without Consul lets it: out of the sandbox, and to nobody.
    machine.write_file("/etc/enmesh/enmesh.toml", b"[reap]\nleases = true\n", 0o644);
    machine.must(&["systemctl", "start", "enmesh-reap.timer"]);
    let next = machine.must(&["systemctl", "list-timers", "--no-pager", "enmesh-reap.timer"]);
    assert!(next.contains("enmesh-reap.service"), "{next}");
    assert!(!machine.run(&["systemctl", "start", "enmesh-reap.service"]).status.success());
    assert!(said().contains("ENM-K002"), "{}", said());
}

#[test]
fn a_sidecar_lives_and_dies_by_the_bus() {
    Machine::boot("life").run_inner("a_sidecar_from_start_to_stop");
}

/// systemd reads its files again for several units at once, not for each of a hundred.
#[test]
fn many_units_share_what_is_slow() {
    let machine = Machine::boot("many");
    machine.run_inner("a_hundred_sidecars_come_and_go");
    let journal = machine.must(&["journalctl", "--no-pager", "--output=cat", "_PID=1"]);
    let reloads = journal.lines().filter(|line| *line == "Reloading.").count();
    println!("{reloads} reloads for a hundred starts and stops");
    assert!(reloads < 100, "{reloads}");
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

/// An enabled sidecar is no failed unit after a boot, when nothing is in /run yet; and at shutdown
/// systemd does not wait in vain for anything of ours.
#[test]
fn a_sidecar_waits_for_enmesh_after_a_boot() {
    let mut machine = Machine::boot("reboot");
    machine.run_inner("a_sidecar_is_left_running");
    let before = Instant::now();
    machine.reboot();
    println!("switched off and booted in {:?}", before.elapsed());
    machine.run_inner("an_enabled_sidecar_was_skipped_and_can_be_started");
}

/// Envoy as a child of enmesh, which is then killed: Envoy runs on, and the next enmesh adopts it.
#[test]
fn a_supervised_sidecar_has_no_power_and_outlives_a_kill() {
    let machine = Machine::boot("supervise");
    // Into a file: Envoy inherits its standard output, and would keep a pipe open after the kill.
    let test = "inner::a_supervisor_starts_envoy_and_is_killed";
    let command = format!("{INSIDE}=1 exec {ITSELF} --exact {test} --ignored --nocapture >/run/said 2>&1");
    let killed = machine.run(&["/bin/sh", "-c", &command]);
    let said = machine.must(&["cat", "/run/said"]);
    assert!(said.contains("now the kill") && !killed.status.success(), "{said}");
    machine.run_inner("the_next_supervisor_adopts_envoy");
}

/// A sidecar's whole life, led from within `enmesh.service`'s own sandbox: its capabilities, its system calls and
/// the few folders that it may write.
#[test]
fn the_sandbox_of_the_daemon_leaves_enough_room() {
    let machine = Machine::boot("sandbox");
    let mut dropin = "[Service]\nType=oneshot\nRestart=no\nWatchdogSec=0\nExecStart=\n".to_owned();
    // The one thing more that the tests need is to kill an Envoy.
    dropin.push_str(&format!("CapabilityBoundingSet=CAP_KILL\nEnvironment={INSIDE}=1\n"));
    for test in ["a_sidecar_from_start_to_stop", "resolved_asks_whom_it_is_told"] {
        dropin.push_str(&format!("ExecStart={ITSELF} --exact inner::{test} --ignored --nocapture\n"));
    }
    machine.write_file("/etc/systemd/system/enmesh.service.d/test.conf", dropin.as_bytes(), 0o644);
    machine.must(&["systemctl", "daemon-reload"]);
    let started = machine.run(&["systemctl", "start", "enmesh.service"]);
    let log = machine.must(&["journalctl", "--no-pager", "--output=cat", "--unit=enmesh.service"]);
    let passed = log.matches("1 passed").count();
    assert!(started.status.success() && passed == 2, "{log}");
}
