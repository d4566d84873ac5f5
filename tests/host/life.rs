//! Two services on one host, and all that happens to them in a year: restarts, kills, an upgrade, a
//! sidecar that dies, and the end.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use enmesh::demo::wire::Tap;
use serde_json::Value;

use crate::cable::{INTERFACE, Listener, OUTSIDE, answers, connect, hears_hello};
use crate::machine::{Machine, enable, put};
use crate::takeover::assert_nothing_left;

/// The users of the two applications.
const API_USER: u32 = 10_001;
const WEB_USER: u32 = 10_002;
/// The ports of the two applications.
const API_PORT: u16 = 8080;
const WEB_PORT: u16 = 8081;
/// The port of `db`, whose only instance is outside.
const DB_PORT: u16 = 5432;
/// A port that is in no mesh.
const OTHER_PORT: u16 = 9000;

const HOST_FILE: &str = "control_plane = \"static\"\n\n[envoy]\ndrain = \"1s\"\n";
const API: &str = "name = \"api\"\nport = 8080\n\n[capture]\nscope = \"user:api-app\"\n";
const WEB: &str = "name = \"web\"\nport = 8081\n\n[capture]\nscope = \"user:web-app\"\n";
/// Line 2 has a port that is none.
const BAD: &str = "name = \"bad\"\nport = 99999\n";
const PEERS: &str = "[[service]]\nname = \"api\"\nallow = [\"web\"]\n\n[[service]]\nname = \"db\"\n\n\
    [[service.instance]]\naddress = \"10.77.0.1\"\nport = 21000\nservice_port = 5432\n";

/// What a host with these services has on its disk before it boots.
fn lay_out(tree: &Path) {
    put(tree, "/etc/enmesh/enmesh.toml", HOST_FILE);
    put(tree, "/etc/enmesh/peers.toml", PEERS);
    put(tree, "/etc/enmesh/services/api.toml", API);
    put(tree, "/etc/enmesh/services/web.toml", WEB);
    put(tree, "/etc/enmesh/services/bad.toml", BAD);
    // Long enough to look at what is while a sidecar is not there.
    put(tree, "/etc/systemd/system/envoy@web.service.d/60-slow.conf", "[Service]\nRestartSec=3s\n");
    let passwd = std::fs::read_to_string(tree.join("etc/passwd")).unwrap();
    let users = format!(
        "{passwd}api-app:x:{API_USER}:{API_USER}::/:/bin/false\nweb-app:x:{WEB_USER}:{WEB_USER}::/:/bin/false\n"
    );
    put(tree, "/etc/passwd", &users);
    enable(tree);
}

/// The host with its two applications running.
struct Host {
    machine: Machine,
    api: SocketAddr,
    _apps: [Listener; 2],
}

/// What no restart of enmesh may change.
#[derive(Debug, PartialEq, Eq)]
struct Lasting {
    pids: [String; 2],
    rules: String,
}

impl Host {
    fn boot() -> Host {
        let machine = Machine::boot_with("life", lay_out);
        let status = until_live(&machine);
        let virtual_ip = status.pointer("/services/api/virtual_ips/0").and_then(Value::as_str).unwrap();
        let api = SocketAddr::new(virtual_ip.parse().unwrap(), API_PORT);
        let _apps = [API_PORT, WEB_PORT].map(|port| Listener::start(&machine.cable().inside, port));
        Host { machine, api, _apps }
    }

    fn lasting(&self) -> Lasting {
        let pid = |id| self.machine.property(&format!("envoy@{id}.service"), "MainPID");
        Lasting { pids: [pid("api"), pid("web")], rules: self.machine.rules().expect("rules") }
    }

    /// A connection through the mesh, from the application `web` to `api`.
    fn through_the_mesh(&self) -> Option<TcpStream> {
        connect(&self.machine.cable().inside, WEB_USER, self.api)
    }

    /// Whether the application `web` reaches a port outside.
    fn web_reaches(&self, address: IpAddr, port: u16) -> bool {
        hears_hello(&self.machine.cable().inside, WEB_USER, (address, port).into())
    }

    fn daemon(&self) -> String {
        self.machine.property("enmesh.service", "MainPID")
    }
}

/// Waits until both sidecars are live, whatever else is wrong; the status then.
fn until_live(machine: &Machine) -> Value {
    machine.until("two live sidecars", || {
        let status = machine.status();
        let live = |id: &str| status["services"][id]["phase"] == "live";
        (live("api") && live("web")).then(|| status.clone())
    })
}

#[test]
fn two_services_live_through_everything() {
    let host = Host::boot();
    the_bad_file_is_told_and_stops_nobody(&host.machine);
    let mut open = host.through_the_mesh().expect("a connection through the mesh");
    enmesh_comes_and_goes(&host, &mut open);
    flushed_rules_are_back(&host.machine);
    nobody_hears_a_word_without_permission(&host);
    a_dead_sidecar_leaves_nothing_in_the_clear(&host);
    the_end(&host);
}

fn the_bad_file_is_told_and_stops_nobody(machine: &Machine) {
    let status = machine.status();
    assert_eq!(status["services"].as_object().unwrap().keys().collect::<Vec<_>>(), ["api", "web"]);
    assert_eq!(status["ready"], false);
    let fault = &status["faults"][0];
    let code = fault["code"].as_str().expect("a fault");
    assert_eq!(fault["place"]["line"], 2, "{fault:#}");
    let said = machine.must(&["systemctl", "status", "--no-pager", "enmesh"]);
    let line = said.lines().find(|line| line.contains("Status: ")).expect("a status line");
    assert!(line.contains("2 of 2 sidecars live") && line.contains(code), "{line}");
    assert_eq!(machine.run(&["enmesh", "status"]).status.code(), Some(1));

    // The journal has it with fields by which one can search.
    let fields = format!("ENMESH_CODE={code}");
    let entries = machine.must(&["journalctl", "--output=json", "--unit=enmesh", &fields]);
    let entry: Value = serde_json::from_str(entries.lines().next().expect("an entry")).unwrap();
    for (field, value) in [("ENMESH_SERVICE", "service"), ("ENMESH_HINT", "hint")] {
        let expected = fault[value].as_str().unwrap_or("-");
        assert_eq!(entry[field].as_str(), Some(expected), "{entry:#}");
    }
    assert!(entry["MESSAGE"].as_str().unwrap().contains(fault["message"].as_str().unwrap()));
    assert_eq!(entry["_SYSTEMD_UNIT"], "enmesh.service");
}

/// Restarted, killed, replaced: the sidecars, the rules and open connections do not notice.
fn enmesh_comes_and_goes(host: &Host, open: &mut TcpStream) {
    let machine = &host.machine;
    let before = host.lasting();
    let mut same = |what: &str, first: &str| {
        let started = Instant::now();
        let replaced = || Some(host.daemon()).filter(|pid| pid != first && pid != "0");
        machine.until("another daemon", replaced);
        until_live(machine);
        println!("{what}: live again after {:?}", started.elapsed());
        assert_eq!(host.lasting(), before, "{what}");
        assert!(answers(open), "an open connection: {what}");
        assert!(host.through_the_mesh().is_some(), "a new connection: {what}");
    };

    let first = host.daemon();
    machine.must(&["systemctl", "restart", "enmesh"]);
    same("restart", &first);

    let first = host.daemon();
    machine.signal("KILL", &first);
    same("kill", &first);
    assert_eq!(machine.property("enmesh.service", "NRestarts"), "1");

    // As a package manager does it.
    let first = host.daemon();
    machine.must(&["cp", "/usr/bin/enmesh", "/usr/bin/enmesh.new"]);
    machine.must(&["mv", "/usr/bin/enmesh.new", "/usr/bin/enmesh"]);
    machine.must(&["systemctl", "daemon-reload"]);
    machine.must(&["systemctl", "restart", "enmesh"]);
    same("upgrade", &first);
}

/// As a firewall does that is loaded after enmesh.
fn flushed_rules_are_back(machine: &Machine) {
    let before = machine.rules();
    assert!(before.is_some());
    let flushed = Instant::now();
    machine.must(&["nft", "flush", "ruleset"]);
    machine.until("the rules", || (machine.rules() == before).then_some(()));
    println!("rules back after {:?}", flushed.elapsed());
}

/// Also when the application is the one that speaks first.
fn nobody_hears_a_word_without_permission(host: &Host) {
    let machine = &host.machine;
    let generation = || machine.status()["generation"]["number"].as_u64();
    for (allow, permitted) in [("allow = []", false), ("allow = [\"web\"]", true)] {
        let before = generation();
        let peers = PEERS.replace("allow = [\"web\"]", allow);
        machine.write_file("/etc/enmesh/peers.toml", peers.as_bytes(), 0o644);
        machine.until("another generation", || (generation() > before).then_some(()));
        assert_eq!(host.through_the_mesh().is_some(), permitted, "{allow}");
    }
}

fn a_dead_sidecar_leaves_nothing_in_the_clear(host: &Host) {
    let (machine, cable) = (&host.machine, host.machine.cable());
    let outside = [DB_PORT, OTHER_PORT].map(|port| Listener::start(&cable.outside, port));
    let tap = Tap::start(&cable.outside, INTERFACE, Vec::new()).unwrap();
    // The listener is there for users that are not captured, and the tap sees it.
    assert!(hears_hello(&cable.inside, 0, (OUTSIDE, DB_PORT).into()));
    assert_eq!(outside[0].met(), 1);
    let packets_to_db = || tap.tally().by_port.get(&DB_PORT).copied().unwrap_or_default();
    let seen = packets_to_db();
    assert_ne!(seen, 0);
    assert!(!host.web_reaches(OUTSIDE, DB_PORT), "a mesh destination is dialled through the mesh");

    let first = machine.property("envoy@web.service", "MainPID");
    let killed = Instant::now();
    machine.signal("KILL", &first);
    let told = || machine.status()["services"]["web"]["phase"] == "failed";
    machine.until("the daemon's notice", || told().then_some(()));
    println!("noticed after {:?}", killed.elapsed());
    let mut tries = 0;
    while machine.property("envoy@web.service", "MainPID") == "0" {
        assert!(host.through_the_mesh().is_none(), "a virtual IP");
        assert!(!host.web_reaches(OUTSIDE, DB_PORT), "an instance");
        assert!(!cable.clear_from_outside(WEB_PORT), "the inbound port");
        assert!(host.web_reaches(OUTSIDE, OTHER_PORT), "what is in no mesh");
        tries += 1;
    }
    assert!(tries > 1, "there was something to see");
    until_live(machine);
    println!("back after {:?}, {tries} tries", killed.elapsed());
    assert_ne!(machine.property("envoy@web.service", "MainPID"), first);
    machine.until("the mesh", || host.through_the_mesh());
    assert_eq!((packets_to_db(), outside[0].met()), (seen, 1), "seen on the wire");
    assert!(!cable.clear_from_outside(WEB_PORT));
    assert!(killed.elapsed() > Duration::from_secs(2));
}

/// A stop of the daemon changes nothing for the applications; `enmesh down` takes everything back.
fn the_end(host: &Host) {
    let machine = &host.machine;
    let before = host.lasting();
    let mut open = host.through_the_mesh().expect("a connection through the mesh");
    machine.must(&["systemctl", "stop", "enmesh"]);
    assert_eq!(host.lasting(), before);
    assert!(answers(&mut open), "an open connection");
    assert!(host.through_the_mesh().is_some(), "a new connection");
    assert!(!machine.cable().clear_from_outside(API_PORT));
    assert_eq!(machine.run(&["enmesh", "status"]).status.code(), Some(69));

    machine.must(&["enmesh", "down"]);
    assert_nothing_left(machine);
    assert!(machine.cable().clear_from_outside(API_PORT), "the port is as it was");
}
