//! Two hosts under fire: daemons and sidecars are killed at random moments, files change, and a client
//! goes on asking all the while. Nothing may ever be readable on the wire between the hosts, and in
//! the end everything is as if nothing had happened.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "in a test a failure is a panic")]
#![allow(clippy::indexing_slicing, clippy::print_stderr, reason = "in a test a failure is a panic")]

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use enmesh::config::StaticConfig;
use enmesh::demo::stage::{APP_PORT, Host, INTERFACE};
use enmesh::demo::wire::{Tap, unexpected_ports};
use enmesh::{mesh, netns};
use host_bed::{envoys, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use scene::{Hammer, PUBLIC_PORT, READY, SECRET, Scene, ask, connect, service};

#[path = "../support/host_bed.rs"]
mod host_bed;
#[path = "../support/scene.rs"]
mod scene;

/// How often a daemon is killed.
const ROUNDS: u32 = 16;

/// Said at the start, so that a bad storm can be called up again: `ENMESH_SEED=…`.
fn seed() -> u64 {
    let given = std::env::var("ENMESH_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = given.unwrap_or_else(|| {
        u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros()).unwrap()
    });
    eprintln!("ENMESH_SEED={seed}");
    seed
}

fn kill_process(pid: u32) {
    let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
}

#[test]
fn whatever_is_killed_whenever_nothing_goes_in_the_clear() {
    let mut random = StdRng::seed_from_u64(seed());
    let mut scene = Scene::set("storm");
    let addresses =
        [SocketAddr::from((scene.virtual_ip(), 80)), SocketAddr::from((scene.stage.api.address, APP_PORT))];
    let tap = Tap::start(&scene.stage.web.namespace, INTERFACE, vec![SECRET.as_bytes().to_vec()]).unwrap();
    let hammer = Hammer::start(&scene.stage.web, addresses);
    let started = Instant::now();
    for round in 0..ROUNDS {
        let name = if random.random() { "web" } else { "api" };
        if random.random_ratio(1, 3) {
            scene.stage.api.write("/etc/enmesh/services/api.toml", &service(round + 1)).unwrap();
        }
        let sidecar_too = random.random_ratio(1, 3);
        if sidecar_too && random.random() {
            envoys(&scene.host(name).namespace).keys().for_each(|pid| kill_process(*pid));
            // At times the daemon sees it and starts it again, at times it is gone before.
            thread::sleep(Duration::from_millis(random.random_range(0..150)));
        }
        scene.kill(name);
        if sidecar_too {
            envoys(&scene.host(name).namespace).keys().for_each(|pid| kill_process(*pid));
        }
        thread::sleep(Duration::from_millis(random.random_range(0..100)));
        scene.start(name);
        // Into its start, into converging, or into rest.
        thread::sleep(Duration::from_millis(random.random_range(0..700)));
    }
    eprintln!("{ROUNDS} rounds in {:?}", started.elapsed());
    scene.await_ready();
    for name in ["web", "api"] {
        let running = envoys(&scene.host(name).namespace);
        assert_eq!(running.len(), 1, "{name}: one sidecar, and none that nobody knows: {running:?}");
        assert_eq!(u64::from(*running.keys().next().unwrap()), scene.sidecar(name));
    }
    for address in addresses {
        let answered = until("an answer", READY, || {
            connect(&scene.stage.web, address).and_then(|mut stream| ask(&mut stream))
        });
        answered.unwrap_or_else(|e| panic!("{address}: {e}\n{}\n{}", scene.log("web"), scene.log("api")));
    }
    let (answered, refused) = hammer.stop();
    eprintln!("{answered} answers, {refused} refusals");
    assert!(answered > 50, "the storm was not all there was: {answered}");
    let tally = tap.tally();
    eprintln!("{tally:?}");
    assert_eq!((tally.clear_bytes, tally.clear_connections, tally.secrets_seen), (0, 0, 0), "{tally:?}");
    assert!(tally.encrypted_bytes > 0, "the meter was not blind: {tally:?}");
    assert!(unexpected_ports(&tally, &[PUBLIC_PORT]).is_empty(), "{tally:?}");
    // The last word is that of the files: nothing is left to do, and nothing lies about.
    for name in ["web", "api"] {
        scene.kill(name);
        let plan = scene.enmesh(name, &["plan"]);
        assert!(plan.starts_with("no changes"), "{name}: {plan}");
        let left = left_behind(&scene.host(name).root().join("/"));
        assert!(left.is_empty(), "{name}: {left:?}");
    }
}

/// Temporary files that a killed writer left.
fn left_behind(root: &Path) -> Vec<std::path::PathBuf> {
    let (mut left, mut folders) = (Vec::new(), vec![root.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                _ if entry.path().extension().is_some_and(|ending| ending == "tmp") => {
                    left.push(entry.path())
                }
                _ => {}
            }
        }
    }
    left
}

/// Row 35.
#[test]
fn a_connection_lives_on_while_both_daemons_are_replaced() {
    let mut scene = Scene::set("calm");
    let address = SocketAddr::from((scene.virtual_ip(), 80));
    let mut stream = connect(&scene.stage.web, address).unwrap();
    ask(&mut stream).unwrap();
    let before = [scene.sidecar("web"), scene.sidecar("api")];
    for _ in 0..3 {
        for name in ["web", "api"] {
            scene.kill(name);
            ask(&mut stream).unwrap();
            scene.start(name);
            ask(&mut stream).unwrap();
        }
        scene.await_ready();
        ask(&mut stream).unwrap();
        assert_eq!([scene.sidecar("web"), scene.sidecar("api")], before, "adopted, not restarted");
    }
}

/// A daemon that is killed the moment it has started a sidecar must not leave one that nobody knows:
/// two sidecars would share the ports, and half of the connections would go to the forgotten one.
#[test]
fn a_sidecar_just_started_is_never_forgotten() {
    let mut scene = Scene::set("birth");
    for _ in 0..6 {
        scene.kill("web");
        envoys(&scene.stage.web.namespace).keys().for_each(|pid| kill_process(*pid));
        scene.start("web");
        // As soon as it is there, and not a moment later.
        let deadline = Instant::now() + READY;
        while envoys(&scene.stage.web.namespace).is_empty() {
            assert!(Instant::now() < deadline, "{}", scene.log("web"));
        }
        scene.replace("web");
        scene.await_ready();
        let running = envoys(&scene.stage.web.namespace);
        assert_eq!(running.len(), 1, "{running:?}\n{}", scene.log("web"));
        assert_eq!(u64::from(*running.keys().next().unwrap()), scene.sidecar("web"));
    }
}

/// Puts a certificate on the host that is due for renewal in some seconds, as if it had been there for
/// days: the shortest life that may be configured is a minute, too long to wait for.
fn age_certificate(host: &Host, service: &str) {
    let (root, settings) = (host.root(), StaticConfig::default());
    let folder = tempfile::tempdir().unwrap();
    for _ in 0..100 {
        let now = SystemTime::now();
        let request = mesh::IssueRequest {
            service: service.parse().unwrap(),
            ttl: Some("20s".parse().unwrap()),
            out: folder.path().to_owned(),
        };
        mesh::ca_issue(&root, &settings, &request, now).unwrap();
        let identity = mesh::StaticMesh::new(root.clone(), settings.clone());
        let identity = netns::block_on(mesh::MeshSource::view(&identity)).unwrap().unwrap();
        let identity = identity.spiffe_id(&request.service);
        let leaf = mesh::ca::read_issued(folder.path(), &identity, now).unwrap();
        let due = mesh::ca::renew_at(&leaf, mesh::ca::jitter(&leaf));
        let due = due.duration_since(now).unwrap_or_default();
        if (3..7).contains(&due.as_secs()) {
            let store = root.join(mesh::ca::LeafStore::FOLDER);
            for ending in ["key", "pem"] {
                let name = format!("{service}.{ending}");
                fs::copy(folder.path().join(&name), store.join(&name)).unwrap();
            }
            return;
        }
        for entry in fs::read_dir(folder.path()).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
    }
    panic!("no certificate with a fitting time");
}

#[test]
fn certificates_are_renewed_in_time_under_an_open_connection() {
    let mut scene = Scene::set("rotate");
    let names = ["web", "api"];
    for name in names {
        scene.kill(name);
        age_certificate(scene.host(name), name);
        scene.start(name);
    }
    scene.await_ready();
    let address = SocketAddr::from((scene.virtual_ip(), 80));
    let mut stream = connect(&scene.stage.web, address).unwrap();
    ask(&mut stream).unwrap();
    let leaf = |name: &str| {
        let certs = netns::block_on(scene.admin(name).certs()).unwrap().unwrap();
        let leaf = certs.into_iter().find(|cert| !cert.ca).unwrap();
        (leaf.serial, leaf.not_after)
    };
    let listeners = |name: &str| {
        scene.stats(name, "^listener_manager\\.(lds\\.update_success|listener_(added|modified|removed))$")
    };
    let before = names.map(|name| (leaf(name), listeners(name), scene.sidecar(name)));
    for ((_, ends), counters, _) in &before {
        assert!(*ends < SystemTime::now() + Duration::from_secs(21), "the aged certificate is in use");
        assert!(counters.len() == 4 && counters.values().sum::<u64>() > 0, "{counters:?}");
    }
    let started = Instant::now();
    while names.into_iter().zip(&before).any(|(name, (old, ..))| leaf(name).0 == old.0) {
        assert!(started.elapsed() < Duration::from_secs(12), "{}\n{}", scene.log("web"), scene.log("api"));
        ask(&mut stream).unwrap();
        ask(&mut connect(&scene.stage.web, address).unwrap()).expect("a new connection works at any time");
        thread::sleep(Duration::from_millis(50));
    }
    ask(&mut stream).unwrap();
    ask(&mut connect(&scene.stage.web, address).unwrap()).unwrap();
    for (name, ((_, old_end), counters, pid)) in names.into_iter().zip(before) {
        assert!(SystemTime::now() < old_end, "{name}: before the old one expired");
        assert!(leaf(name).1 > SystemTime::now() + Duration::from_secs(3600), "{name}");
        assert_eq!(listeners(name), counters, "{name}: no listener was touched");
        assert_eq!(scene.sidecar(name), pid);
    }
}
