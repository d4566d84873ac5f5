//! enmesh and the rest of systemd: the watchdog, `systemctl reload`, scopes by unit, and names through
//! systemd-resolved.

use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cable::{INSIDE, Listener, OUTSIDE};
use crate::machine::{Machine, enable, put};
use crate::names::NameServer;

/// Inbound connections get more time to end than the watchdog waits.
const HOST_FILE: &str = "control_plane = \"static\"\n\n[envoy]\ndrain = \"5s\"\n";
const PEERS: &str = "[[service]]\nname = \"db\"\nvirtual_ips = [\"240.0.0.99\"]\n";
const WATCHDOG: &str = "[Service]\nWatchdogSec=2s\n";
/// An application with a user in its unit file, and one whose user is made at its start.
const APPS: [(&str, &str, &str); 2] =
    [("fixed", "User=daemon", "port = 8080\n"), ("dynamic", "DynamicUser=yes", "")];

fn boot() -> Machine {
    let machine = Machine::boot_with("manager", |tree| {
        put(tree, "/etc/enmesh/enmesh.toml", HOST_FILE);
        put(tree, "/etc/enmesh/peers.toml", PEERS);
        put(tree, "/etc/systemd/system/enmesh.service.d/test.conf", WATCHDOG);
        for (name, user, port) in APPS {
            let unit = format!("[Service]\n{user}\nExecStart=/bin/sleep infinity\n");
            put(tree, &format!("/etc/systemd/system/{name}.service"), unit);
            let service = format!("name = \"{name}\"\n{port}\n[capture]\nscope = \"unit:{name}.service\"\n");
            put(tree, &format!("/etc/enmesh/services/{name}.toml"), service);
        }
        enable(tree);
    });
    machine.until("a daemon that answers", || Some(machine.status()).filter(|status| !status.is_null()));
    machine
}

fn daemon(machine: &Machine) -> String {
    machine.property("enmesh.service", "MainPID")
}

#[test]
fn systemd_and_enmesh_get_along() {
    let machine = boot();
    scopes_by_unit(&machine);
    names_through_resolved(&machine);
    reload(&machine);
    strangers(&machine);
    long_work(&machine);
    watchdog(&machine);
}

/// A unit's user, whether its file names it or systemd makes it at the start.
fn scopes_by_unit(machine: &Machine) {
    // Nobody has the user of a unit with `DynamicUser=` that does not run; its sidecar waits for it.
    machine.until_ready();
    let uid = machine.must(&["id", "-u", "daemon"]);
    assert!(captures(machine, uid.trim()), "{:?}", machine.rules());
    assert_eq!(explained(machine, "fixed"), uid.trim(), "as its file says, while it does not run");
    let unknown = machine.run(&["enmesh", "explain", "--unit", "dynamic", "db:1"]);
    assert!(!unknown.status.success() && unknown.stderr.contains("ENM-D016"), "{}", unknown.stderr);

    machine.must(&["systemctl", "start", "fixed", "dynamic"]);
    for (name, ..) in APPS {
        let pid = machine.property(&format!("{name}.service"), "MainPID");
        let uid = machine.must(&["stat", "--format=%u", &format!("/proc/{pid}")]);
        assert!(captures(machine, uid.trim()), "{name}: {:?}", machine.rules());
        assert_eq!(explained(machine, name), uid.trim());
    }
}

/// The user by whom `enmesh explain` knows the unit.
fn explained(machine: &Machine, unit: &str) -> String {
    let answer = machine.run(&["enmesh", "explain", "--unit", unit, "db:5432", "--json"]);
    let answer: Value = serde_json::from_slice(&answer.stdout).unwrap();
    answer["flow"]["origin"]["user"].to_string()
}

/// Whether the user's outbound connections are redirected.
fn captures(machine: &Machine, uid: &str) -> bool {
    let uid: u64 = uid.parse().unwrap();
    let listed = machine.must(&["nft", "-j", "list", "map", "inet", "enmesh", "uid_redirect"]);
    let listed: Value = serde_json::from_str(&listed).unwrap();
    let elements =
        listed["nftables"].as_array().unwrap().iter().find_map(|object| object["map"]["elem"].as_array());
    elements.into_iter().flatten().any(|pair| pair[0] == uid)
}

/// The mesh's names come from us, all others from where they came before.
fn names_through_resolved(machine: &Machine) {
    let server = NameServer::start(&machine.cable().outside);
    machine.must(&["resolvectl", "dns", "eth0", &OUTSIDE.to_string()]);
    machine.must(&["resolvectl", "domain", "eth0", "~."]);
    let look_up = |name: &str| machine.must(&["getent", "ahostsv4", name]);
    for name in ["db.virtual.consul", "DB.virtual.consul"] {
        assert!(look_up(name).starts_with("240.0.0.99 "), "{}", look_up(name));
    }
    let said = machine.must(&["resolvectl", "query", "--cache=no", "db.virtual.consul"]);
    assert!(said.contains("240.0.0.99"), "{said}");
    assert!(!machine.run(&["getent", "ahostsv4", "nobody.virtual.consul"]).status.success());
    assert!(look_up("www.example.org").starts_with(NameServer::ANSWER), "another name");
    let asked = server.asked();
    assert!(asked.iter().any(|name| name == "www.example.org"), "{asked:?}");
    assert!(!asked.iter().any(|name| name.ends_with("consul")), "asked outside: {asked:?}");

    // Taken back and told again, which restarts systemd-resolved, the link's own server stays.
    machine.must(&["enmesh", "down", "fixed"]);
    machine.must(&["enmesh", "down", "dynamic"]);
    machine.must(&["enmesh", "apply"]);
    machine.until_ready();
    let servers = machine.must(&["resolvectl", "dns", "eth0"]);
    assert!(servers.contains(&OUTSIDE.to_string()), "{servers}");
    assert!(look_up("www.example.com").starts_with(NameServer::ANSWER));
    assert!(look_up("db.virtual.consul").starts_with("240.0.0.99 "));
}

/// `systemctl reload` converges once more in the same process.
fn reload(machine: &Machine) {
    let count = || machine.status()["converged_count"].as_u64().unwrap();
    let (pid, before) = (daemon(machine), count());
    machine.must(&["systemctl", "reload", "enmesh"]);
    machine.until("another round", || (count() > before).then_some(()));
    machine.until("the end of it", || {
        (machine.property("enmesh.service", "ActiveState") == "active").then_some(())
    });
    assert_eq!(daemon(machine), pid);
}

/// Row 26: somebody else who runs as the sidecars' user would pass the mesh by unseen.
fn strangers(machine: &Machine) {
    let user = ["systemd-run", "--uid=envoy", "--unit=stranger", "/bin/sleep", "infinity"];
    machine.must(&user);
    let applied = machine.run(&["enmesh", "apply"]);
    assert!(applied.stderr.contains("ENM-D013"), "{}", applied.stderr);
    machine.must(&["systemctl", "stop", "stranger"]);
    machine.must(&["enmesh", "apply"]);
    machine.until_ready();
}

/// A daemon that lives feeds the watchdog, and one that hangs is replaced.
fn watchdog(machine: &Machine) {
    let pid = daemon(machine);
    assert_eq!(machine.property("enmesh.service", "WatchdogUSec"), "2s");
    thread::sleep(Duration::from_secs(5));
    assert_eq!(
        (daemon(machine), machine.property("enmesh.service", "NRestarts")),
        (pid.clone(), "0".to_owned())
    );

    machine.signal("STOP", &pid);
    machine.until("the watchdog", || (machine.property("enmesh.service", "NRestarts") == "1").then_some(()));
    machine.until_ready();
    assert_ne!(daemon(machine), pid);
}

/// Work that takes longer than the watchdog waits is no reason to be replaced.
fn long_work(machine: &Machine) {
    let pid = daemon(machine);
    let port = machine.status()["services"]["fixed"]["inbound_port"].as_u64().unwrap();
    let address = SocketAddr::new(INSIDE, u16::try_from(port).unwrap());
    let _app = Listener::start(&machine.cable().inside, 8080);
    let open = machine.cable().outside.run(|| TcpStream::connect(address)).unwrap().unwrap();
    let started = Instant::now();
    let down = machine.run(&["enmesh", "down", "fixed"]);
    assert!(down.status.success(), "{}\n{}", down.stderr, machine.journal());
    assert!(started.elapsed() > Duration::from_secs(4), "it drained");
    drop(open);
    assert_eq!(daemon(machine), pid);
    machine.must(&["enmesh", "apply", "fixed"]);
    machine.until_ready();
}
