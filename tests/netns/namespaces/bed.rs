//! Two hosts: `far` with one service in its own namespace, as ever, and `near` with services in namespaces for
//! themselves. Daemons run without a mount namespace of their own, because a name in `/run/netns` has to outlive
//! them as it does on a real host. Gone with the value, also on failure.

#![allow(clippy::disallowed_methods, reason = "a service manager starts daemons")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use enmesh::base::exec;
use enmesh::config::StaticConfig;
use enmesh::daemon::client;
use enmesh::demo::stage::{APP_PORT, ENVOY_USER, Host, Stage};
use enmesh::netns::Namespace;
use enmesh::{mesh, netns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::host_bed::{self, envoy, until};

/// How long anything may take on a busy machine.
pub const LIMIT: Duration = Duration::from_secs(20);
/// The port of the first application in the host's own namespace.
pub const BESIDE_PORT: u16 = 9001;
/// A user of no meaning.
pub const APP_USER: u32 = 10_002;
/// In everything that is said.
pub const SECRET: &str = "nobody-may-hear-this-on-the-wire";

pub struct Bed {
    /// The services in namespaces, with the namespaces' names.
    pub names: BTreeMap<&'static str, String>,
    /// Those of the same host that are not.
    beside: Vec<&'static str>,
    daemons: BTreeMap<&'static str, Child>,
    stop: Arc<AtomicBool>,
    /// The last field, so that it goes last.
    pub stage: Stage,
}

impl Bed {
    /// Builds the hosts, starts nothing. On `near`, `services` are in namespaces; all may call all.
    pub fn build(tag: &str, services: &[&'static str], more: &str) -> Bed {
        Bed::build_beside(tag, services, &[], more)
    }

    /// The same with services in the host's own namespace as well; the first is everybody's, port 9001 and up.
    pub fn build_beside(tag: &str, services: &[&'static str], beside: &[&'static str], more: &str) -> Bed {
        let tag = format!("enmesh-{tag}-{}", std::process::id());
        let stage = Stage::build(&tag, Path::new(host_bed::enmesh())).expect("these tests need root and nft");
        let names: BTreeMap<&'static str, String> =
            services.iter().map(|service| (*service, format!("{tag}-in-{service}"))).collect();
        let beside = beside.to_vec();
        let bed = Bed { names, beside, daemons: BTreeMap::new(), stop: Arc::default(), stage };
        for host in [&bed.stage.web, &bed.stage.api] {
            fs::remove_file(host.envoy()).unwrap();
            fs::hard_link(envoy(), host.envoy())
                .or_else(|_| fs::copy(envoy(), host.envoy()).map(drop))
                .unwrap();
            let passwd =
                format!("root:x:0:0::/root:/bin/false\nenvoy:x:{ENVOY_USER}:{ENVOY_USER}::/:/bin/false\n");
            host.write("/etc/passwd", &passwd).unwrap();
            let file = format!(
                "control_plane = \"static\"\nprofile = \"container\"\nstop.registration = \"keep\"\n{more}\n[envoy]\npath = {:?}\ndrain = \"1s\"\n",
                host.envoy()
            );
            host.write("/etc/enmesh/enmesh.toml", &file).unwrap();
            host.write("/etc/enmesh/peers.toml", &bed.peers(host)).unwrap();
            // What a hardened host has: whoever answers must be where the question came from.
            let strict = || {
                for place in ["all", "default", "eth0"] {
                    fs::write(format!("/proc/sys/net/ipv4/conf/{place}/rp_filter"), "1").unwrap();
                }
                fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap();
            };
            host.namespace.run(strict).unwrap();
        }
        let file = format!("name = \"far\"\nport = {APP_PORT}\n");
        bed.stage.web.write("/etc/enmesh/services/far.toml", &file).unwrap();
        for service in services {
            bed.write_service(service);
        }
        for (service, port) in bed.beside.iter().zip(BESIDE_PORT..) {
            let file = format!("name = \"{service}\"\nport = {port}\n");
            bed.near().write(&format!("/etc/enmesh/services/{service}.toml"), &file).unwrap();
        }
        let config = StaticConfig::default();
        let (web, api) = (&bed.stage.web, &bed.stage.api);
        mesh::ca_init(&web.root(), &config, &mesh::InitRequest::default(), SystemTime::now()).unwrap();
        let (from, to) = (web.root().join(&config.ca), api.root().join(&config.ca));
        fs::create_dir_all(&to).unwrap();
        for name in ["root.pem", "root.key"] {
            fs::copy(from.join(name), to.join(name)).unwrap();
        }
        bed
    }

    pub fn write_service(&self, service: &str) {
        let file = format!(
            "name = \"{service}\"\nport = {APP_PORT}\n[capture]\nscope = \"netns:{}\"\n",
            self.names[service]
        );
        self.near().write(&format!("/etc/enmesh/services/{service}.toml"), &file).unwrap();
    }

    fn peers(&self, host: &Host) -> String {
        let mut text = String::new();
        // In the order of their names, as ports are given out.
        let here: BTreeSet<&'static str> = self.names.keys().chain(&self.beside).copied().collect();
        let all: Vec<String> = here.iter().copied().chain(["far"]).map(|name| format!("{name:?}")).collect();
        let mut ports = 21_000..;
        for name in here.iter().copied().chain(["far"]) {
            text += &format!("[[service]]\nname = \"{name}\"\nallow = [{}]\n", all.join(", "));
            let (at, port) = match name {
                "far" => (&self.stage.web, 21_000),
                _ => (&self.stage.api, ports.next().unwrap()),
            };
            if host.name != at.name {
                text += &format!("[[service.instance]]\naddress = \"{}\"\nport = {port}\n", at.address);
            }
        }
        text
    }

    pub fn near(&self) -> &Host {
        &self.stage.api
    }

    pub fn far(&self) -> &Host {
        &self.stage.web
    }

    pub fn host(&self, name: &str) -> &Host {
        if name == "far" { self.far() } else { self.near() }
    }

    pub fn start(&mut self, name: &'static str) {
        let host = self.host(name);
        let log = File::options().create(true).append(true).open(host.log()).unwrap();
        let mut command = Command::new(host_bed::enmesh());
        command.args(["run", "--root"]).arg(host.root().path()).env_clear().current_dir("/").process_group(0);
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let daemon = host.namespace.run(|| command.spawn().unwrap()).unwrap();
        self.daemons.insert(name, daemon);
    }

    /// Ends the daemon without asking.
    pub fn kill(&mut self, name: &str) {
        let mut daemon = self.daemons.remove(name).unwrap();
        daemon.kill().unwrap();
        daemon.wait().unwrap();
    }

    /// Takes everything down on a host, through its daemon where one runs, which ends then.
    pub fn down(&mut self, name: &str) {
        let (down, said) = self.enmesh(name, &["down"]);
        assert!(down, "{said}");
        if let Some(mut daemon) = self.daemons.remove(name) {
            daemon.wait().unwrap();
        }
    }

    /// Has the daemon do nothing while `deed` is done.
    pub fn while_stopped<T>(&self, name: &str, deed: impl FnOnce() -> T) -> T {
        let pid = Pid::from_raw(self.daemons[name].id().cast_signed());
        kill(pid, Signal::SIGSTOP).unwrap();
        let done = deed();
        kill(pid, Signal::SIGCONT).unwrap();
        done
    }

    /// Runs a command on a host.
    pub fn enmesh(&self, name: &str, arguments: &[&str]) -> (bool, String) {
        let host = self.host(name);
        let root = host.root().path().to_str().unwrap().to_owned();
        let arguments: Vec<&str> = arguments.iter().copied().chain(["--root", &root]).collect();
        let program = Path::new(host_bed::enmesh());
        let output = host.namespace.run(|| exec::run(program, &arguments, b"", LIMIT).unwrap()).unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned() + &output.stderr)
    }

    pub fn status(&self, name: &str) -> Value {
        netns::block_on(client::status(&self.host(name).root())).unwrap().ok().flatten().unwrap_or_default()
    }

    pub fn await_status(&self, name: &str, what: &str, look: impl Fn(&Value) -> bool) -> Value {
        let seen = until(what, LIMIT, || {
            let status = self.status(name);
            if look(&status) { Ok(status) } else { Err(format!("{status:#}")) }
        });
        seen.unwrap_or_else(|e| panic!("{e}\n{}", self.log(name)))
    }

    pub fn await_ready(&self, name: &str) -> Value {
        self.await_status(name, "readiness", |status| status["ready"] == true)
    }

    pub fn log(&self, name: &str) -> String {
        let log = fs::read_to_string(self.host(name).log()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// The namespace of a service; the host's for one that has none for itself.
    pub fn place(&self, service: &str) -> Namespace {
        match self.names.get(service) {
            Some(name) => Namespace::by_name(name).unwrap(),
            None => Namespace::open(self.host(service).namespace.path()).unwrap(),
        }
    }

    /// Starts the app of `service` where it belongs: it says every line back, and its name first.
    pub fn app(&self, service: &'static str) {
        let beside = self.beside.iter().position(|other| *other == service);
        let port = beside.map_or(APP_PORT, |number| BESIDE_PORT + u16::try_from(number).unwrap());
        let listener = self.place(service).run(|| TcpListener::bind(("0.0.0.0", port)).unwrap()).unwrap();
        listener.set_nonblocking(true).unwrap();
        let stop = Arc::clone(&self.stop);
        thread::spawn(move || {
            while !stop.load(Ordering::Acquire) {
                match listener.accept() {
                    Ok((stream, _)) => drop(thread::spawn(move || echo(stream, service))),
                    Err(_) => thread::sleep(Duration::from_millis(2)),
                }
            }
        });
    }

    pub fn virtual_ip(&self, service: &str) -> IpAddr {
        let (_, said) = self.enmesh("near", &["render", "dns"]);
        let start = format!("{service}.virtual.consul. IN A ");
        let line = said.lines().find(|line| line.starts_with(&start)).expect(&said);
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    /// What the app of `caller` hears from `to`. All apps are the same user.
    pub fn call(&self, caller: &str, to: SocketAddr) -> Result<String, String> {
        self.open(caller, to).and_then(|mut stream| ask(&mut stream)).map_err(|error| error.to_string())
    }

    /// A connection of the app of `caller`.
    pub fn open(&self, caller: &str, to: SocketAddr) -> std::io::Result<TcpStream> {
        self.place(caller).run(|| TcpStream::connect_timeout(&to, Duration::from_secs(3))).unwrap()
    }

    /// Calls until it works, as an app does whose mesh is just coming up.
    pub fn call_soon(&self, caller: &str, to: SocketAddr) -> String {
        let heard = until(&format!("{caller} hears from {to}"), LIMIT, || self.call(caller, to));
        heard.unwrap_or_else(|e| panic!("{e}\nnear: {}\nfar: {}", self.log("near"), self.log("far")))
    }

    /// Whether a user of `near` gets a connection.
    pub fn connects_as(&self, uid: u32, to: &str) -> bool {
        let (address, port) = to.rsplit_once(':').unwrap();
        let mut command = Command::new("/bin/bash");
        command.arg("-c").arg(format!("exec 3<>/dev/tcp/{address}/{port}")).uid(uid).gid(uid);
        command.stderr(Stdio::null());
        self.near().namespace.run(|| command.status().unwrap().success()).unwrap()
    }

    /// Every rule in a namespace.
    pub fn rules(&self, place: &Namespace) -> String {
        // The kernel lists tables in the order in which they were made.
        let listed = nft(place, &["-s", "list", "ruleset"], "").unwrap();
        let mut tables: Vec<&str> = listed.split_inclusive("\n}\n").collect();
        tables.sort_unstable();
        tables.concat()
    }

    /// What is in the host's own namespace of captures: nothing may ever be, since its services are elsewhere.
    pub fn assert_host_is_clean(&self) {
        let rules = self.rules(&self.near().namespace);
        assert!(!rules.contains("table inet enmesh {"), "rules of a namespace are in the host's: {rules}");
        let ours = self.near().namespace.run_async(netns::our_virtual_routes).unwrap().unwrap();
        assert_eq!(ours, [], "a route of a namespace is in the host's");
    }

    /// Takes a name away the way `ip netns delete` does.
    pub fn delete(&self, service: &str) {
        Namespace::delete(&self.names[service]).unwrap();
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        for daemon in self.daemons.values_mut() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        // Sidecars outlive their daemon, and those without a name any more are found by their user and file.
        let ours = self.stage.folder();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
                continue;
            };
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            if String::from_utf8_lossy(&line).contains(ours.to_str().unwrap()) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
        for name in self.names.values() {
            let _ = Namespace::delete(name);
        }
    }
}

fn echo(mut stream: TcpStream, service: &str) {
    let _ = stream.set_nonblocking(false);
    let mut buffer = [0; 4096];
    while let Ok(count) = stream.read(&mut buffer) {
        if count == 0 || stream.write_all(&[service.as_bytes(), b" ", &buffer[..count]].concat()).is_err() {
            return;
        }
    }
}

/// One question over a connection that is there; returns who answered.
pub fn ask(stream: &mut TcpStream) -> std::io::Result<String> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(format!("{SECRET}\n").as_bytes())?;
    let mut heard = String::new();
    while !heard.ends_with('\n') {
        let mut buffer = [0; 256];
        match stream.read(&mut buffer)? {
            0 => return Err(std::io::Error::other(format!("closed after {heard:?}"))),
            count => heard += &String::from_utf8_lossy(&buffer[..count]),
        }
    }
    Ok(heard.split(' ').next().unwrap().to_owned())
}

pub fn nft(place: &Namespace, arguments: &[&str], stdin: &str) -> Result<String, String> {
    let run = || exec::run(&exec::find("nft").unwrap(), arguments, stdin.as_bytes(), LIMIT).unwrap();
    let output = place.run(run).unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() { Ok(text) } else { Err(output.stderr) }
}

/// Somebody who runs as the sidecars' user and is none.
pub fn stranger() -> Child {
    Command::new("/bin/sleep").arg("60").uid(ENVOY_USER).gid(ENVOY_USER).spawn().unwrap()
}
