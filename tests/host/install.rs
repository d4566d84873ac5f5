//! The packages themselves, as their package managers handle them: installed, upgraded under load, removed, purged.
//! `scripts/packages` made them, twice: the second time of a lower version, to come from.

use std::collections::BTreeSet;
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use enmesh::netns::Namespace;
use serde_json::Value;

use crate::cable::{Listener, answers, connect};
use crate::machine::{Machine, Setting, put};
use crate::takeover::assert_nothing_left;
use crate::tree::Kind;

const API_USER: u32 = 10_001;
const WEB_USER: u32 = 10_002;
const API_PORT: u16 = 8080;
/// So many connections are open all the time, and each says something all the time.
const OPEN: usize = 8;
/// How long the load goes on after an upgrade has returned, because the daemon converges once more then.
const AFTERWARDS: Duration = Duration::from_secs(2);

const CONFIGURATION: [(&str, &str); 4] = [
    ("/etc/enmesh/enmesh.toml", "control_plane = \"static\"\n\n[envoy]\ndrain = \"1s\"\n"),
    ("/etc/enmesh/peers.toml", "[[service]]\nname = \"api\"\nallow = [\"web\"]\n"),
    ("/etc/enmesh/services/api.toml", "name = \"api\"\nport = 8080\n\n[capture]\nscope = \"user:api-app\"\n"),
    ("/etc/enmesh/services/web.toml", "name = \"web\"\n\n[capture]\nscope = \"user:web-app\"\n"),
];

/// The package that is in the folder, from here and from inside.
pub fn package(folder: &str, ending: &str) -> (PathBuf, String) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let found = fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut found: Vec<PathBuf> =
        found.filter(|path| path.extension().is_some_and(|e| e == ending)).collect();
    let one =
        found.pop().unwrap_or_else(|| panic!("no .{ending} in {}: make packages-before", folder.display()));
    let inside = format!("/root/{}", one.file_name().unwrap().to_str().unwrap());
    (one, inside)
}

fn boot(name: &str, ending: &str, tree: Kind) -> (Machine, [String; 2]) {
    let setting = Setting { without_enmesh: true, tree, ..Setting::default() };
    let packages = ["target/packages/before", "target/packages"].map(|folder| package(folder, ending));
    let machine = Machine::boot_in(name, setting, |tree| {
        let passwd = fs::read_to_string(tree.join("etc/passwd")).unwrap();
        let users = format!(
            "api-app:x:{API_USER}:{API_USER}::/:/bin/false\nweb-app:x:{WEB_USER}:{WEB_USER}::/:/bin/false\n"
        );
        put(tree, "/etc/passwd", format!("{passwd}{users}"));
        for (from, inside) in &packages {
            put(tree, inside, fs::read(from).unwrap());
        }
    });
    (machine, packages.map(|(_, inside)| inside))
}

/// Lays the services and waits for them; where the web application finds `api`.
fn join(machine: &Machine) -> SocketAddr {
    for (path, contents) in CONFIGURATION {
        machine.write_file(path, contents.as_bytes(), 0o644);
    }
    let live = || {
        let status = machine.status();
        let live = |id: &str| status["services"][id]["phase"] == "live";
        (live("api") && live("web")).then_some(status)
    };
    let status = machine.until("two live sidecars", live);
    let address = status.pointer("/services/api/virtual_ips/0").and_then(Value::as_str).unwrap();
    SocketAddr::new(address.parse().unwrap(), API_PORT)
}

/// On which kind of connection, when, and how long it took to fail.
type Failure = (&'static str, Duration, Duration);

/// New connections one after the other, and open ones that talk. Ends with the value.
struct Load {
    end: Arc<AtomicBool>,
    made: Arc<AtomicUsize>,
    said: Arc<AtomicUsize>,
    failed: Arc<Mutex<Vec<Failure>>>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Load {
    fn start(machine: &Machine, api: SocketAddr) -> Load {
        let mut load = Load {
            end: Arc::default(),
            made: Arc::default(),
            said: Arc::default(),
            failed: Arc::default(),
            threads: Vec::new(),
        };
        let dial = move |inside: &Namespace| connect(inside, WEB_USER, api);
        let inside = Namespace::open(machine.cable().inside.path()).expect("the namespace is there");
        load.repeat("new", Arc::clone(&load.made), Duration::ZERO, move || dial(&inside).is_some());
        for _ in 0..OPEN {
            let mut open: TcpStream = dial(&machine.cable().inside).expect("a connection through the mesh");
            load.repeat("open", Arc::clone(&load.said), Duration::from_millis(5), move || answers(&mut open));
        }
        load
    }

    fn repeat(
        &mut self,
        what: &'static str,
        count: Arc<AtomicUsize>,
        pause: Duration,
        mut work: impl FnMut() -> bool + Send + 'static,
    ) {
        let (end, failed) = (Arc::clone(&self.end), Arc::clone(&self.failed));
        self.threads.push(thread::spawn(move || {
            let started = Instant::now();
            while !end.load(Ordering::Relaxed) {
                let at = started.elapsed();
                if work() {
                    count.fetch_add(1, Ordering::Relaxed);
                } else {
                    failed.lock().unwrap().push((what, at, started.elapsed() - at));
                }
                thread::sleep(pause);
            }
        }));
    }

    /// New connections, answers over open ones, and failures of either.
    fn stop(mut self) -> (usize, usize, Vec<Failure>) {
        self.end.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        let count = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
        (count(&self.made), count(&self.said), self.failed.lock().unwrap().clone())
    }
}

/// What an upgrade may not change.
fn lasting(machine: &Machine) -> (Vec<String>, Option<String>) {
    let pids = ["api", "web"].map(|id| machine.property(&format!("envoy@{id}.service"), "MainPID"));
    (pids.to_vec(), machine.rules())
}

/// Upgrades while connections come and go; none is dropped.
fn upgrade_under_load(machine: &Machine, api: SocketAddr, command: &[&str]) {
    let before = lasting(machine);
    let daemon = machine.property("enmesh.service", "MainPID");
    let load = Load::start(machine, api);
    thread::sleep(Duration::from_millis(500));
    let started = Instant::now();
    machine.must(command);
    let took = started.elapsed();
    let replaced = || machine.property("enmesh.service", "MainPID") != daemon;
    machine.until("another daemon", || replaced().then_some(()));
    machine.until_ready();
    thread::sleep(AFTERWARDS);
    let (made, said, failed) = load.stop();
    println!(
        "upgrade: {took:?}; {made} new connections, {said} answers over {OPEN} open ones; failed: {failed:?}"
    );
    assert!(failed.is_empty(), "{failed:?}");
    assert!(made > 100 && said > 1000, "there was no load to speak of");
    assert_eq!(lasting(machine), before, "sidecars and rules");
}

/// Files outside of what logs, caches and the package manager write, which is not the package's.
fn files(machine: &Machine) -> BTreeSet<String> {
    let found = machine.must(&[
        "find",
        "/",
        "-xdev",
        "(",
        "-path",
        "/proc",
        "-o",
        "-path",
        "/sys",
        "-o",
        "-path",
        "/dev",
        "-o",
        "-path",
        "/var/log",
        "-o",
        "-path",
        "/var/cache",
        "-o",
        "-path",
        "/var/lib/dpkg",
        "-o",
        "-path",
        "/tmp",
        "-o",
        "-path",
        "/var/tmp",
        ")",
        "-prune",
        "-o",
        "-print",
    ]);
    found.lines().map(str::to_owned).collect()
}

#[test]
fn the_debian_package_comes_upgrades_goes_and_leaves_nothing() {
    let (mut machine, [old, new]) = boot("deb", "deb", Kind::Base);
    let before = files(&machine);
    machine.must(&["dpkg", "--install", &old]);
    for unit in ["enmesh.service", "enmesh-early.service"] {
        assert_eq!(machine.property(unit, "UnitFileState"), "enabled", "{unit}");
    }
    assert_eq!(machine.property("enmesh.service", "ActiveState"), "active");
    assert_eq!(machine.rules(), None, "a host without services is left as it is");

    let api = join(&machine);
    let _app = Listener::start(&machine.cable().inside, API_PORT);
    upgrade_under_load(&machine, api, &["dpkg", "--install", &new]);
    let version = machine.must(&["dpkg-query", "--show", "--showformat=${Version}", "enmesh"]);
    assert_eq!(version, format!("{}-1", env!("CARGO_PKG_VERSION")));

    // What an administrator has disabled stays so.
    machine.must(&["systemctl", "disable", "enmesh-early.service"]);
    machine.must(&["dpkg", "--install", &new]);
    assert_eq!(machine.property("enmesh-early.service", "UnitFileState"), "disabled");

    let removed = Instant::now();
    machine.must(&["dpkg", "--remove", "enmesh"]);
    println!("removal: {:?}", removed.elapsed());
    assert_nothing_left(&machine);
    assert!(machine.cable().clear_from_outside(API_PORT), "the port is as it was");
    assert_eq!(machine.property("enmesh.service", "LoadState"), "not-found");
    assert!(machine.path("/etc/enmesh/services/api.toml").exists(), "configuration outlives a removal");

    // It comes back as it was.
    machine.must(&["dpkg", "--install", &new]);
    assert_eq!(join(&machine), api);
    what_it_adds_to_a_boot(&mut machine);

    machine.must(&["dpkg", "--purge", "enmesh"]);
    assert_nothing_left(&machine);
    let mut left: BTreeSet<String> = files(&machine).difference(&before).cloned().collect();
    // The administrator's own, and what adding any user leaves.
    for mine in CONFIGURATION.map(|(path, _)| path).iter().chain(&["/etc/enmesh", "/etc/enmesh/services"]) {
        assert!(left.remove(*mine), "{mine} was not the package's to take");
    }
    for database in ["passwd", "group", "shadow", "gshadow"] {
        left.remove(&format!("/etc/{database}-"));
    }
    left.remove("/etc/.pwd.lock");
    assert!(left.is_empty(), "left after the purge: {left:#?}");
    let shadow = machine.must(&["getent", "shadow", "envoy"]);
    assert!(shadow.starts_with("envoy:!"), "the user stays, locked: {shadow}");
}

/// Before the network comes up: what closes the host. At the end: what waits until the sidecars are live.
fn what_it_adds_to_a_boot(machine: &mut Machine) {
    machine.must(&["systemctl", "enable", "enmesh-early.service"]);
    machine.reboot();
    let chain = ["systemd-analyze", "critical-chain", "--no-pager", "network.target", "multi-user.target"];
    println!("{}", machine.must(&chain));
    for unit in ["enmesh-early.service", "enmesh.service"] {
        let at = |name| machine.property(unit, name).parse::<u64>().expect("microseconds");
        let took = at("ActiveEnterTimestampMonotonic") - at("InactiveExitTimestampMonotonic");
        println!("{unit} took {} ms of the boot", took / 1000);
        // A multiple of what is seen, for a machine that is busy.
        assert!((1..5_000_000).contains(&took), "{unit} took {took} us");
    }
    println!(
        "{}",
        machine
            .must(&["systemd-analyze", "blame", "--no-pager"])
            .lines()
            .take(8)
            .collect::<Vec<_>>()
            .join("\n")
    );
    for (unit, most) in [("enmesh.service", 2.5), ("enmesh-early.service", 2.0), ("envoy@api.service", 2.0)] {
        let said = machine.must(&["systemd-analyze", "security", "--no-pager", unit]);
        let points = said.split("exposure level for").nth(1).and_then(|end| end.split_whitespace().nth(1));
        let points: f64 = points.expect("a level").parse().expect("points");
        println!("{unit}: exposure {points}");
        // docs/hardening.md says what they are made of.
        assert!(points <= most, "{unit} is rated {points}");
    }
}

#[test]
fn the_rpm_comes_upgrades_and_goes() {
    // What it depends on is there, but no database of rpm's knows: this is a Debian.
    const RPM: [&str; 3] = ["rpm", "--force-debian", "--nodeps"];
    let (machine, [old, new]) = boot("rpm", "rpm", Kind::Rpm);
    machine.must(&[&RPM[..], &["--install", &old]].concat());
    for unit in ["enmesh.service", "enmesh-early.service"] {
        assert_eq!(machine.property(unit, "UnitFileState"), "enabled", "{unit}");
    }
    assert_eq!(machine.property("enmesh.service", "ActiveState"), "inactive");
    machine.must(&["systemctl", "start", "enmesh.service"]);

    let api = join(&machine);
    let _app = Listener::start(&machine.cable().inside, API_PORT);
    upgrade_under_load(&machine, api, &[&RPM[..], &["--upgrade", &new]].concat());
    assert!(
        machine
            .must(&["rpm", "--query", "enmesh"])
            .starts_with(concat!("enmesh-", env!("CARGO_PKG_VERSION")))
    );

    machine.must(&[&RPM[..], &["--erase", "enmesh"]].concat());
    assert_nothing_left(&machine);
    assert!(machine.cable().clear_from_outside(API_PORT), "the port is as it was");
    assert_eq!(machine.property("enmesh.service", "LoadState"), "not-found");
    assert!(machine.path("/etc/enmesh/services/api.toml").exists(), "the administrator's file");
}
