//! Two hosts with their daemons and real sidecars, an app on one, and clients of it on the other. Gone with the value,
//! also on failure.

#![allow(dead_code, reason = "each test target uses a part")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use enmesh::base::{Fault, exec};
use enmesh::config::StaticConfig;
use enmesh::daemon::client;
use enmesh::demo::process::Process;
use enmesh::demo::stage::{APP_PORT, ENVOY_USER, Host, Stage};
use enmesh::envoy::Admin;
use enmesh::{mesh, netns};
use serde_json::Value;

use crate::host_bed::{self, envoy, until};

/// In everything that the client and the app say.
pub const SECRET: &str = "nobody-may-hear-this-on-the-wire";
/// Where sidecars of `api` listen: the first port of the range.
pub const PUBLIC_PORT: u16 = 21_000;
/// How long a host may take to be ready again.
pub const READY: Duration = Duration::from_secs(10);

/// Both hosts with their daemons and, on `api`, the app.
pub struct Scene {
    daemons: BTreeMap<&'static str, Process>,
    stop: Arc<AtomicBool>,
    app: Option<JoinHandle<()>>,
    envoy: std::path::PathBuf,
    /// The last field, so that it goes last.
    pub stage: Stage,
}

impl Scene {
    /// Builds the stage, starts the app and both daemons, and waits until they are ready.
    pub fn set(name: &str) -> Scene {
        let mut scene = Scene::build(name, "");
        for name in ["web", "api"] {
            scene.start(name);
        }
        scene.await_ready();
        scene
    }

    /// Builds the stage and starts the app; `host_file` stands at the head of both host files.
    pub fn build(name: &str, host_file: &str) -> Scene {
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
                "{host_file}control_plane = \"static\"\nprofile = \"container\"\nstop.registration = \"keep\"\n\n[envoy]\npath = {:?}\ndrain = \"1s\"\n",
                host.envoy()
            );
            host.write("/etc/enmesh/enmesh.toml", &host_file).unwrap();
        }
        stage.web.write("/etc/enmesh/services/web.toml", "name = \"web\"\n").unwrap();
        stage.api.write("/etc/enmesh/services/api.toml", &service(0)).unwrap();
        share_ca(&stage);
        let stop = Arc::new(AtomicBool::new(false));
        let app = Some(app(&stage.api, &stop));
        Scene { daemons: BTreeMap::new(), stop, app, envoy: envoy(), stage }
    }

    pub fn host(&self, name: &str) -> &Host {
        if name == "web" { &self.stage.web } else { &self.stage.api }
    }

    pub fn start(&mut self, name: &'static str) {
        let daemon = self.host(name).start_daemon(&self.envoy).unwrap();
        self.daemons.insert(name, daemon);
    }

    /// Ends the daemon without asking.
    pub fn kill(&mut self, name: &'static str) {
        drop(self.daemons.remove(name).unwrap());
    }

    /// Ends the daemon without asking and starts another one.
    pub fn replace(&mut self, name: &'static str) {
        self.kill(name);
        self.start(name);
    }

    /// Asks the daemon to end, as a service manager does, and starts another one.
    pub fn restart(&mut self, name: &'static str) {
        assert!(self.daemons.remove(name).unwrap().stop(READY), "{}", self.log(name));
        self.start(name);
    }

    /// Puts another file in the place of both hosts' program, as a package's upgrade does, and restarts the daemons.
    pub fn upgrade(&mut self, number: u32) {
        for name in ["web", "api"] {
            let host = if name == "web" { &mut self.stage.web } else { &mut self.stage.api };
            let (place, beside) = (host.folder.join("enmesh"), host.folder.join(format!("enmesh.{number}")));
            fs::copy(host_bed::enmesh(), &beside).unwrap();
            fs::rename(&beside, &place).unwrap();
            host.program = place;
            self.replace(name);
        }
    }

    pub fn status(&self, name: &str) -> Value {
        let root = self.host(name).root();
        netns::block_on(client::status(&root)).unwrap().ok().flatten().unwrap_or_default()
    }

    pub fn await_ready(&self) {
        for name in ["web", "api"] {
            let ready = until(name, READY, || {
                let status = self.status(name);
                if status["ready"] == true { Ok(()) } else { Err(format!("{status:#}")) }
            });
            ready.unwrap_or_else(|e| panic!("{e}\n{}", self.log(name)));
        }
    }

    pub fn log(&self, name: &str) -> String {
        let log = fs::read_to_string(self.host(name).log()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    pub fn sidecar(&self, name: &str) -> u64 {
        self.status(name)["services"][name]["pid"].as_u64().unwrap()
    }

    pub fn virtual_ip(&self) -> IpAddr {
        // Of a service of another host the status says nothing; the plan does.
        let said = self.enmesh("web", &["render", "dns"]);
        let line = said.lines().find(|line| line.starts_with("api.virtual.consul. IN A ")).expect(&said);
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    /// Runs a command on a host; it has to succeed.
    pub fn enmesh(&self, name: &str, arguments: &[&str]) -> String {
        let host = self.host(name);
        let root = host.root().path().to_str().unwrap().to_owned();
        let arguments: Vec<&str> = arguments.iter().copied().chain(["--root", &root]).collect();
        let program = Path::new(host_bed::enmesh());
        let output = host.namespace.run(|| exec::run(program, &arguments, b"", READY).unwrap()).unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{arguments:?}: {text}{}", output.stderr);
        text
    }

    pub fn admin(&self, name: &str) -> Admin {
        Admin::new(self.host(name).root().join(format!("/run/enmesh/{name}/admin/envoy.sock")))
    }

    pub fn stats(&self, name: &str, pattern: &str) -> BTreeMap<String, u64> {
        netns::block_on(self.admin(name).stats(pattern)).unwrap().unwrap()
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        let _ = self.app.take().map(JoinHandle::join);
    }
}

pub fn peers(host: &Host, stage: &Stage) -> String {
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
pub fn service(number: u32) -> String {
    let timeout = 5000 + number;
    format!(
        "name = \"api\"\nport = {APP_PORT}\ntags = [\"n{number}\"]\n\n[proxy.config]\nlocal_connect_timeout_ms = {timeout}\n"
    )
}

pub fn share_ca(stage: &Stage) {
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
pub fn app(host: &Host, stop: &Arc<AtomicBool>) -> JoinHandle<()> {
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

pub fn echo(mut stream: TcpStream) {
    let _ = stream.set_nonblocking(false);
    let mut buffer = [0; 4096];
    while let Ok(count) = stream.read(&mut buffer) {
        if count == 0 || stream.write_all(&buffer[..count]).is_err() {
            return;
        }
    }
}

/// One question and its answer over a connection that is there.
pub fn ask(stream: &mut TcpStream) -> std::io::Result<()> {
    let question = format!("{SECRET}\n");
    stream.set_read_timeout(Some(Duration::from_secs(3)))?;
    stream.write_all(question.as_bytes())?;
    let mut answer = vec![0; question.len()];
    stream.read_exact(&mut answer)?;
    if answer == question.as_bytes() { Ok(()) } else { Err(std::io::Error::other("another answer")) }
}

pub fn connect(host: &Host, address: SocketAddr) -> std::io::Result<TcpStream> {
    let limit = Duration::from_secs(1);
    host.namespace.run(|| TcpStream::connect_timeout(&address, limit)).unwrap()
}

/// A client that asks over new connections all the time, one way and the other.
pub struct Hammer {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    refused: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Result<(), Fault>>>,
}

impl Hammer {
    pub fn start(host: &Host, addresses: [SocketAddr; 2]) -> Hammer {
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
    pub fn stop(mut self) -> (u64, u64) {
        self.stop.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            thread.join().unwrap().unwrap();
        }
        (self.answered.load(Ordering::Relaxed), self.refused.load(Ordering::Relaxed))
    }
}
