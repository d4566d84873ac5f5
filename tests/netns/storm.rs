//! Two hosts under fire: daemons and sidecars are killed at random moments, files change, and a client
//! goes on asking all the while. Nothing may ever be readable on the wire between the hosts, and in
//! the end everything is as if nothing had happened.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "in a test a failure is a panic")]
#![allow(clippy::indexing_slicing, clippy::print_stderr, reason = "in a test a failure is a panic")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use enmesh::base::{Fault, exec};
use enmesh::config::StaticConfig;
use enmesh::daemon::client;
use enmesh::demo::process::Process;
use enmesh::demo::stage::{APP_PORT, ENVOY_USER, Host, INTERFACE, Stage};
use enmesh::demo::wire::{Tap, unexpected_ports};
use enmesh::envoy::Admin;
use enmesh::{mesh, netns};
use host_bed::{envoy, envoys, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;

#[path = "../support/host_bed.rs"]
mod host_bed;

/// In everything that the client and the app say.
const SECRET: &str = "the-storm-must-not-hear-this";
/// Where sidecars of `api` listen: the first port of the range.
const PUBLIC_PORT: u16 = 21_000;
/// How long a host may take to be ready again.
const READY: Duration = Duration::from_secs(10);
/// How often a daemon is killed.
const ROUNDS: u32 = 16;

/// Both hosts with their daemons and, on `api`, the app.
struct Scene {
    daemons: BTreeMap<&'static str, Process>,
    stop: Arc<AtomicBool>,
    app: Option<JoinHandle<()>>,
    envoy: std::path::PathBuf,
    /// The last field, so that it goes last.
    stage: Stage,
}

impl Scene {
    /// Builds the stage, starts the app and both daemons, and waits until they are ready.
    fn set(name: &str) -> Scene {
        let tag = format!("enmesh-{name}-{}", std::process::id());
        let stage = Stage::build(&tag, Path::new(host_bed::enmesh())).expect("these tests need root and nft");
        for host in [&stage.web, &stage.api] {
            let passwd = format!(
                "root:x:0:0::/root:/bin/false\nenvoy:x:{ENVOY_USER}:{ENVOY_USER}::/:/bin/false\n\
                 web-app:x:10001:10001::/:/bin/false\n"
            );
            host.write("/etc/passwd", &passwd).unwrap();
            host.write("/etc/enmesh/peers.toml", &peers(host, &stage)).unwrap();
            let host_file = format!(
                "control_plane = \"static\"\nprofile = \"container\"\n\n[envoy]\npath = {:?}\ndrain = \"1s\"\n",
                host.envoy()
            );
            host.write("/etc/enmesh/enmesh.toml", &host_file).unwrap();
        }
        stage.web.write("/etc/enmesh/services/web.toml", "name = \"web\"\n").unwrap();
        stage.api.write("/etc/enmesh/services/api.toml", &service(0)).unwrap();
        share_ca(&stage);
        let stop = Arc::new(AtomicBool::new(false));
        let app = Some(app(&stage.api, &stop));
        let mut scene = Scene { daemons: BTreeMap::new(), stop, app, envoy: envoy(), stage };
        for name in ["web", "api"] {
            scene.start(name);
        }
        scene.await_ready();
        scene
    }

    fn host(&self, name: &str) -> &Host {
        if name == "web" { &self.stage.web } else { &self.stage.api }
    }

    fn start(&mut self, name: &'static str) {
        let daemon = self.host(name).start_daemon(&self.envoy).unwrap();
        self.daemons.insert(name, daemon);
    }

    /// Ends the daemon without asking.
    fn kill(&mut self, name: &'static str) {
        drop(self.daemons.remove(name).unwrap());
    }

    /// Ends the daemon without asking and starts another one.
    fn replace(&mut self, name: &'static str) {
        self.kill(name);
        self.start(name);
    }

    fn status(&self, name: &str) -> Value {
        let root = self.host(name).root();
        netns::block_on(client::status(&root)).unwrap().ok().flatten().unwrap_or_default()
    }

    fn await_ready(&self) {
        for name in ["web", "api"] {
            let ready = until(name, READY, || {
                let status = self.status(name);
                if status["ready"] == true { Ok(()) } else { Err(format!("{status:#}")) }
            });
            ready.unwrap_or_else(|e| panic!("{e}\n{}", self.log(name)));
        }
    }

    fn log(&self, name: &str) -> String {
        let log = fs::read_to_string(self.host(name).log()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    fn sidecar(&self, name: &str) -> u64 {
        self.status(name)["services"][name]["pid"].as_u64().unwrap()
    }

    fn virtual_ip(&self) -> IpAddr {
        // Of a service of another host the status says nothing; the plan does.
        let said = self.enmesh("web", &["render", "dns"]);
        let line = said.lines().find(|line| line.starts_with("api.virtual.consul. IN A ")).expect(&said);
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    /// Runs a command on a host; it has to succeed.
    fn enmesh(&self, name: &str, arguments: &[&str]) -> String {
        let host = self.host(name);
        let root = host.root().path().to_str().unwrap().to_owned();
        let arguments: Vec<&str> = arguments.iter().copied().chain(["--root", &root]).collect();
        let program = Path::new(host_bed::enmesh());
        let output = host.namespace.run(|| exec::run(program, &arguments, b"", READY).unwrap()).unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{arguments:?}: {text}{}", output.stderr);
        text
    }

    fn admin(&self, name: &str) -> Admin {
        Admin::new(self.host(name).root().join(format!("/run/enmesh/{name}/admin/envoy.sock")))
    }

    fn stats(&self, name: &str, pattern: &str) -> BTreeMap<String, u64> {
        netns::block_on(self.admin(name).stats(pattern)).unwrap().unwrap()
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        let _ = self.app.take().map(JoinHandle::join);
    }
}

fn peers(host: &Host, stage: &Stage) -> String {
    let address = stage.api.address;
    let mut text =
        "[[service]]\nname = \"web\"\n\n[[service]]\nname = \"api\"\nallow = [\"web\"]\n".to_owned();
    if host.name == "web" {
        text += &format!(
            "\n[[service.instance]]\naddress = \"{address}\"\nport = {PUBLIC_PORT}\nservice_port = {APP_PORT}\n"
        );
    }
    text
}

/// The file of `api`, with something in it that changes its sidecar's clusters.
fn service(number: u32) -> String {
    let timeout = 5000 + number;
    format!(
        "name = \"api\"\nport = {APP_PORT}\ntags = [\"n{number}\"]\n\n[proxy.config]\nlocal_connect_timeout_ms = {timeout}\n"
    )
}

fn share_ca(stage: &Stage) {
    let config = StaticConfig::default();
    mesh::ca_init(&stage.web.root(), &config, &mesh::InitRequest::default(), SystemTime::now()).unwrap();
    let (from, to) = (stage.web.root().join(&config.ca), stage.api.root().join(&config.ca));
    fs::create_dir_all(&to).unwrap();
    for name in ["root.pem", "root.key"] {
        // Copies the mode along.
        fs::copy(from.join(name), to.join(name)).unwrap();
    }
}

/// Sends every line back, with the secret in it, until told to stop.
fn app(host: &Host, stop: &Arc<AtomicBool>) -> JoinHandle<()> {
    let listener = host.namespace.run(|| TcpListener::bind(("0.0.0.0", APP_PORT)).unwrap()).unwrap();
    listener.set_nonblocking(true).unwrap();
    let stop = Arc::clone(stop);
    thread::spawn(move || {
        while !stop.load(Ordering::Acquire) {
            match listener.accept() {
                Ok((stream, _)) => drop(thread::spawn(move || echo(stream))),
                Err(_) => thread::sleep(Duration::from_millis(2)),
            }
        }
    })
}

fn echo(mut stream: TcpStream) {
    let _ = stream.set_nonblocking(false);
    let mut buffer = [0; 4096];
    while let Ok(count) = stream.read(&mut buffer) {
        if count == 0 || stream.write_all(&buffer[..count]).is_err() {
            return;
        }
    }
}

/// One question and its answer over a connection that is there.
fn ask(stream: &mut TcpStream) -> std::io::Result<()> {
    let question = format!("{SECRET}\n");
    stream.set_read_timeout(Some(Duration::from_secs(3)))?;
    stream.write_all(question.as_bytes())?;
    let mut answer = vec![0; question.len()];
    stream.read_exact(&mut answer)?;
    if answer == question.as_bytes() { Ok(()) } else { Err(std::io::Error::other("another answer")) }
}

fn connect(host: &Host, address: SocketAddr) -> std::io::Result<TcpStream> {
    let limit = Duration::from_secs(1);
    host.namespace.run(|| TcpStream::connect_timeout(&address, limit)).unwrap()
}

/// A client that asks over new connections all the time, one way and the other.
struct Hammer {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    refused: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Result<(), Fault>>>,
}

impl Hammer {
    fn start(host: &Host, addresses: [SocketAddr; 2]) -> Hammer {
        let (stop, answered, refused) = Default::default();
        let mut hammer = Hammer { stop, answered, refused, threads: Vec::new() };
        for address in addresses {
            let (stop, answered, refused) =
                (Arc::clone(&hammer.stop), Arc::clone(&hammer.answered), Arc::clone(&hammer.refused));
            let work = move || {
                while !stop.load(Ordering::Acquire) {
                    let asked = TcpStream::connect_timeout(&address, Duration::from_secs(1));
                    let count =
                        if asked.and_then(|mut s| ask(&mut s)).is_ok() { &answered } else { &refused };
                    count.fetch_add(1, Ordering::Relaxed);
                    thread::sleep(Duration::from_millis(4));
                }
            };
            hammer.threads.push(host.namespace.spawn(work).unwrap());
        }
        hammer
    }

    /// Answers and failures.
    fn stop(mut self) -> (u64, u64) {
        self.stop.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            thread.join().unwrap().unwrap();
        }
        (self.answered.load(Ordering::Relaxed), self.refused.load(Ordering::Relaxed))
    }
}

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
