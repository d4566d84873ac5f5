//! Closed from power-on to power-off: who should be in the mesh is never heard in the clear, whether the daemon is
//! there or not.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use enmesh::demo::wire::Tap;
use enmesh::netns::Namespace;

use crate::cable::{INSIDE, INTERFACE, Listener, OUTSIDE, hears_hello};
use crate::machine::{Machine, enable, put};

const USER: u32 = 10_002;
/// The service's own port, that of the only instance of `db`, and one that is in no mesh.
const WEB_PORT: u16 = 8081;
const DB_PORT: u16 = 5432;
const OTHER_PORT: u16 = 9000;

const WEB: &str = "name = \"web\"\nport = 8081\n\n[capture]\nscope = \"user:web-app\"\n";
const PEERS: &str = "[[service]]\nname = \"db\"\n\n[[service.instance]]\naddress = \"10.77.0.1\"\n\
    port = 21000\nservice_port = 5432\n";
/// An application that is as early as one can be: from when a network may be there it dials the database.
const EAGER: &str = "[Unit]\nDefaultDependencies=no\nAfter=network-pre.target\n\n[Service]\nUser=web-app\n\
    ExecStart=/bin/bash -c 'for i in {1..100}; do if (exec 3<>/dev/tcp/10.77.0.1/5432) 2>/dev/null; \
    then echo open; else echo refused; fi; sleep 0.05; done'\n";

fn lay_out(tree: &Path) {
    put(tree, "/etc/enmesh/enmesh.toml", "control_plane = \"static\"\n\n[envoy]\ndrain = \"1s\"\n");
    put(tree, "/etc/enmesh/peers.toml", PEERS);
    put(tree, "/etc/enmesh/services/web.toml", WEB);
    let passwd = std::fs::read_to_string(tree.join("etc/passwd")).unwrap();
    put(tree, "/etc/passwd", format!("{passwd}web-app:x:{USER}:{USER}::/:/bin/false\n"));
    enable(tree);
}

/// Somebody who dials all the time, from inside and from outside, until told to stop.
struct Dialler {
    end: Arc<AtomicBool>,
    tries: Arc<AtomicUsize>,
    heard: Arc<AtomicUsize>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Dialler {
    fn start(inside: Namespace, outside: Namespace) -> Dialler {
        let mut dialler =
            Dialler { end: Arc::default(), tries: Arc::default(), heard: Arc::default(), thread: None };
        let (end, tries, heard) =
            (Arc::clone(&dialler.end), Arc::clone(&dialler.tries), Arc::clone(&dialler.heard));
        dialler.thread = Some(thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                let clear = [
                    hears_hello(&inside, USER, (OUTSIDE, DB_PORT).into()),
                    hears_hello(&outside, 0, (INSIDE, WEB_PORT).into()),
                ];
                heard.fetch_add(clear.iter().filter(|clear| **clear).count(), Ordering::Relaxed);
                tries.fetch_add(1, Ordering::Relaxed);
                thread::sleep(std::time::Duration::from_millis(10));
            }
        }));
        dialler
    }

    /// How often it tried, and was heard in the clear.
    fn stop(mut self) -> (usize, usize) {
        self.end.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(thread::JoinHandle::join);
        (self.tries.load(Ordering::Relaxed), self.heard.load(Ordering::Relaxed))
    }
}

fn until_live(machine: &Machine) {
    machine
        .until("a live sidecar", || (machine.status()["services"]["web"]["phase"] == "live").then_some(()));
}

/// Row 84.
#[test]
fn a_host_is_closed_from_power_on_to_power_off() {
    let mut machine = Machine::boot_with("early", lay_out);
    until_live(&machine);
    power_off(&mut machine);

    // One boot without the daemon.
    let daemon = machine.tree().join("etc/systemd/system/enmesh.service");
    machine.while_off(|tree| {
        symlink("/dev/null", &daemon).unwrap();
        put(tree, "/etc/systemd/system/eager.service", EAGER);
        let wants = tree.join("etc/systemd/system/sysinit.target.wants");
        std::fs::create_dir_all(&wants).unwrap();
        symlink("../eager.service", wants.join("eager.service")).unwrap();
    });
    machine.power_on();
    let cable = machine.cable();
    let outside = [DB_PORT, OTHER_PORT].map(|port| Listener::start(&cable.outside, port));
    let web = Listener::start(&cable.inside, WEB_PORT);
    let tap = Tap::start(&cable.outside, INTERFACE, Vec::new()).unwrap();
    machine.wait_running();
    assert_eq!(machine.property("enmesh.service", "LoadState"), "masked");
    assert_eq!(machine.property("enmesh-early.service", "Result"), "success");
    let at = |which: &str| -> u64 {
        let time = machine.property("enmesh-early.service", &format!("ExecMain{which}TimestampMonotonic"));
        time.parse().unwrap()
    };
    println!("enmesh early took {} ms", (at("Exit") - at("Start")) / 1000);
    let rules = machine.rules().expect("rules without a daemon");

    let cable = machine.cable();
    for _ in 0..20 {
        assert!(!hears_hello(&cable.inside, USER, (OUTSIDE, DB_PORT).into()), "an instance");
        assert!(!hears_hello(&cable.inside, USER, "240.1.2.3:80".parse().unwrap()), "a virtual IP");
        assert!(!cable.clear_from_outside(WEB_PORT), "the inbound port");
    }
    assert!(hears_hello(&cable.inside, USER, (OUTSIDE, OTHER_PORT).into()), "what is in no mesh");
    let said = machine.until("the eager application", || {
        let said = machine.must(&["journalctl", "--no-pager", "--output=cat", "--unit=eager"]);
        (said.matches("refused").count() == 100).then_some(said)
    });
    assert!(!said.contains("open"), "{said}");
    assert_eq!((outside[0].met(), web.met(), outside[1].met()), (0, 0, 1));
    let tally = tap.tally();
    assert!(!tally.by_port.contains_key(&DB_PORT), "not even a SYN: {tally:?}");
    assert!(!tally.clear_by_port.contains_key(&WEB_PORT), "{tally:?}");
    assert_eq!(tally.clear_by_port.get(&OTHER_PORT), Some(&1), "the tap hears what is in the clear");

    // The daemon takes the rules over.
    std::fs::remove_file(daemon).unwrap();
    machine.must(&["systemctl", "daemon-reload"]);
    machine.must(&["systemctl", "start", "enmesh"]);
    until_live(&machine);
    let now = machine.rules().expect("rules");
    let generation = |rules: &str| rules.lines().find(|line| line.contains("enmesh:gen:")).map(str::to_owned);
    assert_eq!(generation(&now), generation(&rules));
    assert_eq!(outside[0].met(), 0);
    assert!(!machine.cable().clear_from_outside(WEB_PORT));
}

/// While it goes down, whoever still runs dials.
fn power_off(machine: &mut Machine) {
    let again = |namespace: &Namespace| Namespace::open(namespace.path()).unwrap();
    let (inside, outside) = (again(&machine.cable().inside), again(&machine.cable().outside));
    let db = Listener::start(&outside, DB_PORT);
    let web = Listener::start(&inside, WEB_PORT);
    let tap = Tap::start(&outside, INTERFACE, Vec::new()).unwrap();
    let dialler = Dialler::start(inside, outside);
    machine.power_off();
    let (tries, heard) = dialler.stop();
    println!("{tries} tries while it went down");
    assert!(tries > 3, "there was something to see");
    let tally = tap.tally();
    println!("{tally:?}");
    // The wire is what counts. That the application was met is no proof: its sidecar dials it as well.
    println!("the application was met {} times", web.met());
    assert_eq!((heard, db.met()), (0, 0));
    assert!(!tally.by_port.contains_key(&DB_PORT), "{tally:?}");
    assert!(!tally.clear_by_port.contains_key(&WEB_PORT), "{tally:?}");
}
