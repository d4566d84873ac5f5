//! The meter on the wire during a storm. Whatever is killed, restarted, upgraded or reconfigured, no byte passes in the
//! clear. Where somebody flushes all rules there is a time without any; what passes then is counted and said, and is
//! never anything to a virtual IP.

use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use enmesh::base::exec;
use enmesh::demo::stage::{APP_PORT, INTERFACE};
use enmesh::demo::wire::{Tally, Tap};

use crate::host_bed::{self, LIMIT};
use crate::scene::{Hammer, READY, SECRET, Scene, ask, connect, service};

/// How often everything happens.
const ROUNDS: u32 = 4;
/// How often all rules are flushed.
const FLUSHES: u32 = 10;
/// The virtual IP is dialled at this port, and nothing else is.
const VIRTUAL_PORT: u16 = 80;

fn storm(driver: &str, name: &str) {
    let mut scene = Scene::build(name, &format!("driver = \"{driver}\"\n"));
    for host in ["web", "api"] {
        scene.start(host);
    }
    scene.await_ready();
    let direct = SocketAddr::from((scene.stage.api.address, APP_PORT));
    let addresses = [SocketAddr::from((scene.virtual_ip(), VIRTUAL_PORT)), direct];
    let tap = Tap::start(&scene.stage.web.namespace, INTERFACE, vec![SECRET.as_bytes().to_vec()]).unwrap();
    let hammer = Hammer::start(&scene.stage.web, addresses);
    for round in 0..ROUNDS {
        scene.stage.api.write("/etc/enmesh/services/api.toml", &service(round)).unwrap();
        let text = format!("name = \"web\"\n\n[capture.bypass]\noutbound_cidrs = [\"10.77.{round}.0/24\"]\n");
        scene.stage.web.write("/etc/enmesh/services/web.toml", &text).unwrap();
        for host in ["web", "api"] {
            scene.replace(host);
            thread::sleep(Duration::from_millis(100));
            scene.restart(host);
        }
        scene.upgrade(round);
        edit(&scene, driver);
        scene.await_ready();
    }
    let calm = tap.tally();
    eprintln!("{driver}, {ROUNDS} rounds of reloads, kills, restarts, upgrades and edits: {calm:?}");
    assert_eq!((calm.clear_bytes, calm.clear_connections, calm.secrets_seen), (0, 0, 0), "{calm:?}");
    assert!(calm.encrypted_bytes > 0, "the meter was not blind: {calm:?}");
    for _ in 0..FLUSHES {
        for host in [&scene.stage.web, &scene.stage.api] {
            host.namespace.run(|| run("nft", "flush ruleset")).unwrap();
            thread::sleep(Duration::from_millis(300));
        }
    }
    scene.await_ready();
    for address in addresses {
        let answered = host_bed::until("an answer", READY, || {
            connect(&scene.stage.web, address).and_then(|mut stream| ask(&mut stream))
        });
        answered.unwrap_or_else(|e| panic!("{address}: {e}\n{}\n{}", scene.log("web"), scene.log("api")));
    }
    let (answered, refused) = hammer.stop();
    let flushed = tap.tally().since(&calm);
    said(driver, &flushed, answered, refused);
    assert!(answered > 50, "the storm was not all there was: {answered}");
    assert_eq!(flushed.by_port.get(&VIRTUAL_PORT), None, "virtual IPs never reach the wire: {flushed:?}");
    if driver == "nftables" {
        // What the guard refuses stays refused by the table that no flush touches.
        assert_eq!((flushed.clear_connections, flushed.clear_bytes), (0, 0), "{flushed:?}");
    }
    // Nothing that flushes would explain may pass: a window a flush, and a connection or two of this client in each.
    let windows = u64::from(2 * FLUSHES);
    assert!(flushed.clear_connections <= 20 * windows, "{flushed:?}");
    assert!(flushed.clear_by_port.keys().all(|port| *port == APP_PORT), "{flushed:?}");
    let rest = tap.tally();
    let mut stream = connect(&scene.stage.web, direct).unwrap();
    for _ in 0..50 {
        ask(&mut stream).unwrap();
    }
    assert_eq!(tap.tally().since(&rest).clear_bytes, 0, "after the flushes nothing is in the clear any more");
}

/// What a person would like to know of the windows.
fn said(driver: &str, flushed: &Tally, answered: u64, refused: u64) {
    eprintln!(
        "{driver}, {} flushes of everything: {} connections with {} bytes in the clear, of {answered} answers and {refused} refusals",
        2 * FLUSHES,
        flushed.clear_connections,
        flushed.clear_bytes
    );
}

/// Changes of others that open nothing: a rule too many.
fn edit(scene: &Scene, driver: &str) {
    for host in [&scene.stage.web, &scene.stage.api] {
        host.namespace
            .run(|| match driver {
                "nftables" => run("nft", "add rule inet enmesh out tcp dport 9 accept"),
                _ => run("iptables-nft", "-t nat -A ENMESH_OUT -p tcp --dport 9 -j ACCEPT"),
            })
            .unwrap();
    }
}

fn run(program: &str, arguments: &str) {
    let words: Vec<&str> = arguments.split(' ').collect();
    let output = exec::run(&exec::find(program).unwrap(), &words, b"", LIMIT).unwrap();
    // A daemon that has just been replaced may be at work on what is edited.
    assert!(output.status.success() || arguments.contains("dport 9"), "{arguments}: {}", output.stderr);
}

#[test]
fn with_nftables_nothing_leaks_even_while_all_is_flushed() {
    storm("nftables", "leaks-n");
}

#[test]
fn with_iptables_nothing_leaks_but_while_all_is_flushed() {
    storm("iptables", "leaks-i");
}
