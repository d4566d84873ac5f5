//! Beside the real Docker Engine and the real firewalld, which run in the lab's host with folders, sockets and a bus of
//! their own: both orders, their reload and restart, and what else flushes rules. The programs are those of Debian's
//! packages, unpacked below `target/tools/neighbours` (`scripts/fetch-neighbours`).
#![allow(
    clippy::disallowed_methods,
    reason = "neighbours run beside the test, and are no children of enmesh"
)]

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use enmesh::base::exec;
use enmesh::netns::{self, Namespace};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::containers::{address, who};
use crate::drivers::{Driver, cases, iptables_legacy};
use crate::lab::{Call, Lab, Space, serve};
use crate::worlds::{APP, legacy, live};

/// How long anything of a neighbour may take on a busy machine.
pub const LIMIT: Duration = Duration::from_secs(60);

pub fn neighbours() -> PathBuf {
    let tree = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/neighbours");
    assert!(tree.join("complete").is_file(), "scripts/fetch-neighbours fetches Docker and firewalld");
    tree
}

/// A program that runs in a namespace until this is dropped; it is asked to end first.
struct Running(Child);

impl Running {
    fn start(space: &Space, mut command: Command, log: &Path) -> Running {
        let out = File::options().create(true).append(true).open(log).unwrap();
        command.env_clear().env("PATH", path()).stdin(Stdio::null());
        command.stdout(out.try_clone().unwrap()).stderr(out);
        let start = move || {
            // What it mounts goes with it.
            netns::mount_privately(&[]).unwrap();
            command.envs(python()).spawn().unwrap()
        };
        Running(space.run(|| thread::spawn(start).join().unwrap()))
    }

    fn end(&mut self) {
        let _ = kill(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGTERM);
        let started = Instant::now();
        while self.0.try_wait().unwrap().is_none() {
            if started.elapsed() > LIMIT / 2 {
                let _ = self.0.kill();
                let _ = self.0.wait();
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
    }
}

fn path() -> String {
    let tree = neighbours();
    format!("{0}/usr/bin:{0}/usr/sbin:/usr/sbin:/usr/bin:/sbin:/bin", tree.display())
}

fn python() -> [(&'static str, PathBuf); 1] {
    [("PYTHONPATH", neighbours().join("usr/lib/python3/dist-packages"))]
}

/// Runs a command to its end; what it says, or how it failed.
pub fn said(space: &Space, mut command: Command, stdin: Vec<u8>) -> Result<String, String> {
    space.run(move || {
        let input = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut &input, &stdin).unwrap();
        std::io::Seek::rewind(&mut &input).unwrap();
        command.env_clear().env("PATH", path()).envs(python()).stdin(input);
        if let Some(bus) = BUS.with(|bus| bus.borrow().clone()) {
            command.env("DBUS_SYSTEM_BUS_ADDRESS", bus);
        }
        let output = command.output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    })
}

std::thread_local! {
    /// Unused outside of firewalld's namespace thread.
    static BUS: std::cell::RefCell<Option<String>> = const { std::cell::RefCell::new(None) };
}

fn until(what: &str, mut check: impl FnMut() -> Result<(), String>) {
    let started = Instant::now();
    while let Err(last) = check() {
        assert!(started.elapsed() < LIMIT, "{what}: {last}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// Docker Engine in the lab's host. Its programs are found in `folder` first.
struct Docker {
    daemon: Option<Running>,
    folder: tempfile::TempDir,
}

impl Docker {
    /// With the flavour of iptables that the driver has, as that one chooses Docker's.
    fn start(lab: &Lab, driver: Driver) -> Docker {
        let folder = tempfile::Builder::new().prefix("enmesh-docker-").tempdir_in("/tmp").unwrap();
        if std::ptr::fn_addr_eq(driver, iptables_legacy as Driver) {
            for name in ["iptables", "ip6tables"] {
                let program = exec::find(&format!("{name}-legacy")).unwrap();
                std::os::unix::fs::symlink(program, folder.path().join(name)).unwrap();
            }
        }
        let mut docker = Docker { daemon: None, folder };
        docker.run(lab);
        docker
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn run(&mut self, lab: &Lab) {
        let mut command = Command::new("/usr/bin/env");
        command.arg(format!("PATH={}:{}", self.folder.path().display(), path()));
        command.arg(neighbours().join("usr/sbin/dockerd"));
        command.arg("--data-root").arg(self.at("data")).arg("--exec-root").arg(self.at("exec"));
        command.arg("--pidfile").arg(self.at("pid")).args(["--storage-driver", "vfs", "--host"]);
        command.arg(format!("unix://{}", self.at("socket").display()));
        self.daemon = Some(Running::start(&lab.host, command, &self.at("log")));
        until("Docker", || {
            let log = fs::read_to_string(self.at("log")).unwrap_or_default();
            self.docker(lab, &["info"], Vec::new()).map(drop).map_err(|e| format!("{e}\n{log}"))
        });
    }

    fn restart(&mut self, lab: &Lab) {
        self.daemon.take().unwrap().end();
        self.run(lab);
    }

    fn docker(&self, lab: &Lab, arguments: &[&str], stdin: Vec<u8>) -> Result<String, String> {
        let mut command = Command::new(neighbours().join("usr/bin/docker"));
        command.arg("--host").arg(format!("unix://{}", self.at("socket").display())).args(arguments);
        said(&lab.host, command, stdin)
    }

    /// A container that publishes 8088 for its port 80, where somebody answers; its namespace.
    fn container(&self, lab: &Lab) -> Namespace {
        self.docker(lab, &["import", "-", "sleeper"], sleeper()).unwrap();
        self.publish(lab)
    }

    fn publish(&self, lab: &Lab) -> Namespace {
        let run = ["run", "--detach", "--rm", "--publish", "8088:80", "sleeper", "/usr/bin/sleep", "600"];
        let id = self.docker(lab, &run, Vec::new()).unwrap();
        let pid = self.docker(lab, &["inspect", "--format", "{{.State.Pid}}", &id], Vec::new()).unwrap();
        let namespace = Namespace::open(Path::new(&format!("/proc/{pid}/ns/net"))).unwrap();
        let listener = namespace.run(|| TcpListener::bind("0.0.0.0:80").unwrap()).unwrap();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                thread::spawn(move || serve("container", stream));
            }
        });
        namespace
    }
}

/// The archive of a root tree with `sleep` and what it is linked with.
fn sleeper() -> Vec<u8> {
    let ldd = exec::run(&exec::find("ldd").unwrap(), &["/usr/bin/sleep"], b"", LIMIT).unwrap();
    let text = String::from_utf8(ldd.stdout).unwrap();
    let files = text.split_whitespace().filter(|word| word.starts_with('/'));
    let names: Vec<&str> = files.chain(["/usr/bin/sleep"]).map(|path| path.trim_start_matches('/')).collect();
    let arguments = [&["-chf", "-", "-C", "/"], names.as_slice()].concat();
    let tar = exec::run(&exec::find("tar").unwrap(), &arguments, b"", LIMIT).unwrap();
    assert!(tar.status.success(), "{}", tar.stderr);
    tar.stdout
}

/// As the daemon does when it hears of a change, or looks.
pub fn repaired(lab: &Lab, driver: Driver) {
    lab.host.run(move || driver().repair(&live(legacy()))).unwrap_or_else(|fault| panic!("{fault}"));
}

/// Rows 1 and 38.
pub fn holds(lab: &Lab, when: &str) {
    assert_eq!(who(&lab.host.dial(APP, address("240.0.0.1:80"))), "out", "row 1, {when}");
    assert_eq!(who(&lab.peer.dial(0, address("10.9.0.2:8080"))), "in", "row 38, {when}");
}

fn holds_beside_docker(lab: &Lab, container: &Namespace, when: &str) {
    holds(lab, when);
    assert_eq!(who(&lab.host.dial(APP, address("10.9.0.2:8088"))), "container", "row 28, {when}");
    assert_eq!(who(&lab.peer.dial(0, address("10.9.0.2:8088"))), "container", "row 46, {when}");
    let from_inside = |to: &'static str| container.run(|| Call::to_as(0, address(to))).unwrap();
    assert_eq!(who(&from_inside("10.9.0.1:80")), "peer", "row 48, {when}");
    assert_eq!(who(&from_inside("172.17.0.1:8080")), "in", "row 49, {when}");
}

/// Rows 1, 28, 38, 46, 48, 49, 73 and 74 beside Docker Engine, which comes first or second, and is restarted.
fn beside_docker_engine(driver: Driver) {
    for docker_first in [true, false] {
        let lab = Lab::new();
        let apply = || lab.host.run(move || driver().apply(&live(legacy()))).unwrap();
        if !docker_first {
            apply();
        }
        let mut docker = Docker::start(&lab, driver);
        let container = docker.container(&lab);
        if docker_first {
            apply();
        } else {
            repaired(&lab, driver);
        }
        holds_beside_docker(&lab, &container, &format!("Docker first: {docker_first}"));
        if docker_first {
            drop(container);
            docker.restart(&lab);
            let container = docker.publish(&lab);
            repaired(&lab, driver);
            holds_beside_docker(&lab, &container, "after Docker's restart");
        }
    }
}

/// A bus and firewalld in the lab's host.
struct Firewalld {
    daemon: Option<Running>,
    _bus: Running,
    folder: tempfile::TempDir,
}

impl Firewalld {
    fn start(lab: &Lab) -> Firewalld {
        let folder = tempfile::Builder::new().prefix("enmesh-firewalld-").tempdir_in("/tmp").unwrap();
        let socket = folder.path().join("bus");
        let file = folder.path().join("bus.conf");
        let policy = "<policy context=\"default\"><allow user=\"*\"/><allow own=\"*\"/>\
                      <allow send_destination=\"*\"/><allow receive_sender=\"*\"/></policy>";
        let listen = format!("<listen>unix:path={}</listen><auth>EXTERNAL</auth>", socket.display());
        fs::write(&file, format!("<busconfig><type>system</type>{listen}{policy}</busconfig>")).unwrap();
        let mut bus = Command::new("/usr/bin/dbus-daemon");
        bus.arg(format!("--config-file={}", file.display())).args(["--nofork", "--nopidfile"]);
        let bus = Running::start(&lab.host, bus, &folder.path().join("bus.log"));
        until("the bus", || if socket.exists() { Ok(()) } else { Err("no socket".to_owned()) });
        let address = format!("unix:path={}", socket.display());
        lab.host.run(move || BUS.with(|bus| bus.replace(Some(address))));
        let mut firewalld = Firewalld { daemon: None, _bus: bus, folder };
        firewalld.run(lab);
        firewalld
    }

    fn run(&mut self, lab: &Lab) {
        let tree = neighbours();
        let mut command = Command::new("/usr/bin/env");
        command
            .arg(format!("DBUS_SYSTEM_BUS_ADDRESS=unix:path={}", self.folder.path().join("bus").display()));
        command.arg("/usr/bin/python3").arg(tree.join("usr/sbin/firewalld")).args(["--nofork", "--nopid"]);
        command.args(["--log-target", "console", "--log-file", "/dev/null", "--system-config"]);
        command
            .arg(self.folder.path().join("etc"))
            .arg("--default-config")
            .arg(tree.join("usr/lib/firewalld"));
        let etc = self.folder.path().join("etc");
        if !etc.exists() {
            fs::create_dir(&etc).unwrap();
            fs::copy(tree.join("etc/firewalld/firewalld.conf"), etc.join("firewalld.conf")).unwrap();
        }
        self.daemon = Some(Running::start(&lab.host, command, &self.folder.path().join("log")));
        until("firewalld", || self.say(lab, &["--state"]).map(drop));
    }

    fn say(&self, lab: &Lab, arguments: &[&str]) -> Result<String, String> {
        let mut command = Command::new("/usr/bin/python3");
        command.arg(neighbours().join("usr/bin/firewall-cmd")).args(arguments);
        let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        said(&lab.host, command, Vec::new()).map_err(|e| format!("{e}\n{log}"))
    }

    fn restart(&mut self, lab: &Lab) {
        self.daemon.take().unwrap().end();
        self.run(lab);
    }
}

/// Rows 1, 38 and 73 beside firewalld, which comes first or second, is reloaded and restarted; its zone opens the
/// sidecars' ports, and nothing but its own is touched by its reload.
fn beside_firewalld(driver: Driver) {
    for firewalld_first in [true, false] {
        let lab = Lab::new();
        let apply = || lab.host.run(move || driver().apply(&live(legacy()))).unwrap();
        let differences = || lab.host.run(move || driver().observe(&live(legacy()))).unwrap().differences;
        if !firewalld_first {
            apply();
        }
        let mut firewalld = Firewalld::start(&lab);
        if firewalld_first {
            apply();
        }
        let order = format!("firewalld first: {firewalld_first}");
        assert!(lab.host.rules().contains("table inet firewalld"), "{order}");
        if firewalld_first || driver().name() == "nftables" {
            assert_eq!(differences(), [""; 0], "{order}");
        } else {
            repaired(&lab, driver);
        }
        holds(&lab, &order);
        // Its reload and its start flush all tables of the iptables that it finds, which are not its own. A daemon hears
        // of that; here nobody listens. The table of the driver nftables it leaves alone.
        let check = |when: &str| {
            if driver().name() == "nftables" {
                assert_eq!(differences(), [""; 0], "{order}, {when}");
            } else {
                repaired(&lab, driver);
            }
            holds(&lab, when);
        };
        firewalld.say(&lab, &["--reload"]).unwrap();
        check("after a reload");
        firewalld.restart(&lab);
        check("after a restart");
    }
}

cases! {
    beside_docker_engine,
    beside_firewalld,
}
