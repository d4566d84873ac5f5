//! A host with nothing but its legacy service file moves over by installing one package: the file
//! stays as it is, the host file has one line, and systemd starts enmesh.

use enmesh::envoy::Admin;
use enmesh::netns::block_on;
use serde_json::Value;

use crate::cable::{INSIDE, Listener, OUTSIDE, answers, connect, hears_hello};
use crate::machine::{Machine, enable, put};

/// The whole host file.
const HOST_FILE: &str = "control_plane = \"static\"\n";
/// Where the field has its service file.
const LEGACY_FILE: &str = "/srv/consul/service-config.json";
/// Its two forms: the service `counting` in the one, `dashboard` in the other.
const LEGACY: &[u8] = include_bytes!("../vectors/legacy-annotations/01-server/service-config.json");
const LEGACY_PLAIN: &[u8] = include_bytes!("../vectors/legacy-plain/01-minimal/service-config.json");
/// An ordinary port that nothing in the file names.
const OTHER_PORT: u16 = 8080;

/// What must be the same after a boot.
fn lasting(machine: &Machine, service: &Value) -> (Value, Value, String) {
    let ca = machine.must(&["sha256sum", "/var/lib/enmesh/ca/root.pem"]);
    (service["outbound_port"].clone(), service["inbound_port"].clone(), ca)
}

/// That the service `id` is in the mesh as its legacy file says, and nothing else has happened.
fn assert_in_the_mesh(machine: &Machine, id: &str) -> (Value, Value, String) {
    let status = machine.until_ready();
    assert_eq!(status["services"].as_object().unwrap().keys().collect::<Vec<_>>(), [id]);
    // It may be about to converge once more.
    let active = || machine.property("enmesh.service", "ActiveState") == "active";
    machine.until("a quiet daemon", || active().then_some(()));
    assert_eq!(machine.property("enmesh.service", "StatusText"), "1 of 1 sidecars live");
    let said = machine.must(&["enmesh", "status"]);
    assert!(said.contains(id) && said.contains("live"), "{said}");

    // The sidecar, under its own user, with no power whatever, and no other.
    let unit = format!("envoy@{id}.service");
    let units = machine.must(&["systemctl", "list-units", "--all", "--plain", "--no-legend", "envoy@*"]);
    assert!(units.starts_with(&unit) && units.lines().count() == 1, "{units}");
    assert_eq!(machine.property(&unit, "ActiveState"), "active");
    let pid = machine.property(&unit, "MainPID");
    assert_eq!(status["services"][id]["pid"].to_string(), pid);
    let process = machine.must(&["cat", &format!("/proc/{pid}/status")]);
    let line = |key: &str| process.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
    let uid = machine.must(&["id", "-u", "envoy"]);
    assert_eq!(line("Uid:").split_whitespace().next(), Some(uid.trim()));
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(line(set).trim(), "0000000000000000", "{set}");
    }

    // The plan is what is there, and asking changes nothing.
    let rules = machine.rules().expect("rules");
    assert!(rules.contains("host_redirect") && rules.contains("all_redirect"), "{rules}");
    let planned = machine.run(&["enmesh", "plan", "--exit-code"]);
    let said = String::from_utf8_lossy(&planned.stdout).into_owned();
    assert!(planned.status.success(), "{said}\n{}", planned.stderr);
    assert_eq!(machine.rules().as_deref(), Some(rules.as_str()));

    assert_traffic(machine, id);
    lasting(machine, &status["services"][id])
}

/// Inbound everything but port 22 belongs to the sidecar, outbound everything goes through it.
fn assert_traffic(machine: &Machine, id: &str) {
    let cable = machine.cable();
    let _inside = [22, 80, OTHER_PORT].map(|port| Listener::start(&cable.inside, port));
    let reached = [22, 80, OTHER_PORT].map(|port| cable.clear_from_outside(port));
    assert_eq!(reached, [true, false, false], "in the clear from outside: 22, 80, {OTHER_PORT}");
    // From the host itself its ports are as they were.
    assert!(hears_hello(&cable.inside, 0, (INSIDE, 80).into()));
    // The rest of the world is reached as before, by way of the sidecar.
    let outside = Listener::start(&cable.outside, OTHER_PORT);
    assert!(hears_hello(&cable.inside, 0, (OUTSIDE, OTHER_PORT).into()));
    assert!(hears_hello(&cable.inside, 12_345, (OUTSIDE, OTHER_PORT).into()));
    assert_eq!(outside.met(), 2);
    assert_eq!(through_sidecar(machine, id), 2, "connections by way of the sidecar");
}

/// How many connections have gone through the outbound listener so far.
fn through_sidecar(machine: &Machine, id: &str) -> u64 {
    let admin = Admin::new(machine.path(&format!("/run/enmesh/{id}/admin/envoy.sock")));
    let stats =
        block_on(admin.stats("^listener\\.outbound_listener\\.downstream_cx_total$")).unwrap().unwrap();
    stats.values().sum()
}

/// Everything is there before the first boot, as on a machine made from an image; later the machine
/// is switched off and on.
#[test]
fn a_legacy_host_is_in_the_mesh_from_its_first_boot() {
    let mut machine = Machine::boot_with("image", |tree| {
        put(tree, LEGACY_FILE, LEGACY);
        put(tree, "/etc/enmesh/enmesh.toml", HOST_FILE);
        enable(tree);
    });
    assert_live_since_boot(&machine);
    let first = assert_in_the_mesh(&machine, "counting");
    machine.reboot();
    assert_live_since_boot(&machine);
    assert_eq!(
        assert_in_the_mesh(&machine, "counting"),
        first,
        "the same ports and the same CA after a boot"
    );
}

/// enmesh is ready for systemd, and so for what is ordered after it, when the sidecar takes connections.
fn assert_live_since_boot(machine: &Machine) {
    assert_eq!(machine.status()["services"]["counting"]["phase"], "live", "{}", machine.journal());
}

/// A running host gets the package, and the service file later still.
#[test]
fn a_legacy_host_moves_over_while_it_runs() {
    let machine = Machine::boot("legacy");
    let cable = machine.cable();
    let before = [22, 80, OTHER_PORT].map(|port| Listener::start(&cable.inside, port));
    machine.write_file("/etc/enmesh/enmesh.toml", HOST_FILE.as_bytes(), 0o644);
    machine.must(&["systemctl", "enable", "--now", "enmesh"]);
    // Ready with nothing to do, and nothing has changed for anybody.
    assert_eq!(machine.until_ready()["services"], serde_json::json!({}));
    assert_eq!([22, 80, OTHER_PORT].map(|port| cable.clear_from_outside(port)), [true; 3]);
    assert_eq!(machine.rules(), None);
    // Whoever is connected stays connected, most of all the one who installs it.
    let mut open = [22, OTHER_PORT].map(|port| {
        connect(&cable.outside, 0, (INSIDE, port).into()).expect("a connection before the takeover")
    });

    machine.write_file(LEGACY_FILE, LEGACY, 0o644);
    machine.until("the sidecar", || machine.status()["services"].get("counting").map(drop));
    machine.until_ready();
    assert_eq!(open.each_mut().map(answers), [true; 2], "connections from before");
    drop((open, before));
    assert_in_the_mesh(&machine, "counting");

    // The file says another service from now on, in the other form.
    machine.write_file(LEGACY_FILE, LEGACY_PLAIN, 0o644);
    machine.until("the other sidecar", || machine.status()["services"].get("dashboard").map(drop));
    assert_in_the_mesh(&machine, "dashboard");

    everything_goes(&machine);
}

/// `enmesh down` while the daemon runs leaves nothing of enmesh but its configuration and memory.
fn everything_goes(machine: &Machine) {
    machine.must(&["enmesh", "down"]);
    assert_nothing_left(machine);
    let again = machine.run(&["enmesh", "down"]);
    assert!(again.status.success(), "a second down: {}", again.stderr);
    assert_nothing_left(machine);
    let cable = machine.cable();
    let _inside = Listener::start(&cable.inside, OTHER_PORT);
    assert!(cable.clear_from_outside(OTHER_PORT), "the port is as it was");

    // Coming back changes nothing.
    machine.must(&["systemctl", "start", "enmesh"]);
    machine.until_ready();
}

/// That nothing of enmesh runs, is enabled to run, or is left in the kernel or in `/run`.
pub fn assert_nothing_left(machine: &Machine) {
    let down = || machine.property("enmesh.service", "ActiveState") == "inactive";
    machine.until("the daemon's end", || down().then_some(()));
    assert_eq!(machine.property("enmesh.service", "Result"), "success");
    let units = machine.must(&["systemctl", "list-units", "--all", "--plain", "--no-legend", "envoy@*"]);
    assert_eq!(units, "");
    let failed = machine.must(&["systemctl", "list-units", "--failed", "--plain", "--no-legend"]);
    assert_eq!(failed, "");
    // A folder that is not there has nothing in it.
    let left = machine.run(&[
        "find",
        "/run/enmesh",
        "/run/systemd/system",
        "/run/systemd/resolved.conf.d",
        "/etc/systemd/system/multi-user.target.wants",
        "(",
        "-name",
        "envoy*",
        "-o",
        "-path",
        "/run/enmesh/*",
        "-o",
        "-name",
        "enmesh.conf",
        ")",
    ]);
    assert_eq!(String::from_utf8_lossy(&left.stdout), "");
    assert_eq!(machine.rules(), None);
    let routes = machine.must(&["ip", "-4", "route", "show", "table", "all"]);
    assert!(!routes.contains("240.0.0.0"), "{routes}");
    assert!(!machine.must(&["resolvectl", "status", "--no-pager"]).contains("8653"));
}
