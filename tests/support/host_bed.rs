//! A host for one test: a network namespace of its own, a file tree of its own, the real binary as its
//! daemon and its commands, the real Envoy as its sidecars. Gone with the value, also on failure.

#![allow(dead_code, reason = "each test target uses a part")]
#![allow(
    clippy::disallowed_methods,
    reason = "a person types these commands, with another user's rights too"
)]

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use enmesh::base::{Root, exec};
use enmesh::netns::{self, Namespace};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// How long a fault may take until it is said, and a correction until it counts.
pub const SOON: Duration = Duration::from_secs(5);
/// How long anything else may take.
pub const LIMIT: Duration = Duration::from_secs(15);
/// The user of sidecars.
pub const ENVOY_USER: u32 = 5995;
/// The user of the application `api`.
pub const API_USER: u32 = 10_001;

/// The host's users.
const PASSWD: &str = "root:x:0:0::/root:/bin/false\nenvoy:x:5995:5995::/:/bin/false\n\
    api-app:x:10001:10001::/:/bin/false\nweb-app:x:10002:10002::/:/bin/false\n\
    new-app:x:10003:10003::/:/bin/false\n";
/// The service that is good throughout.
pub const API: &str = "name = \"api\"\nport = 8080\n\n[capture]\nscope = \"user:api-app\"\n";
/// The one that something happens to.
pub const WEB: &str = "name = \"web\"\nport = 8081\n\n[capture]\nscope = \"user:web-app\"\n";
/// Their files.
pub const API_FILE: &str = "/etc/enmesh/services/api.toml";
pub const WEB_FILE: &str = "/etc/enmesh/services/web.toml";
pub const HOST_FILE: &str = "/etc/enmesh/enmesh.toml";
pub const PEERS_FILE: &str = "/etc/enmesh/peers.toml";
pub const STATE_FILE: &str = "/var/lib/enmesh/state.json";

/// Another service of the mesh, on a host that does not exist.
pub const PEERS: &str =
    "[[service]]\nname = \"db\"\n\n[[service.instance]]\naddress = \"10.99.0.7\"\nport = 21000\n";

/// The binary.
pub fn enmesh() -> &'static str {
    env!("CARGO_BIN_EXE_enmesh")
}

/// The Envoy to test with.
pub fn envoy() -> PathBuf {
    let path = std::env::var_os("ENMESH_ENVOY")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/envoy"), PathBuf::from);
    fs::canonicalize(&path)
        .unwrap_or_else(|_| panic!("no Envoy at {} (or ENMESH_ENVOY=path)", path.display()))
}

/// What a command said.
#[derive(Debug)]
pub struct Said {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Said {
    /// Its one JSON document.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("no JSON ({e}): {self:?}"))
    }
}

/// A host.
pub struct Bed {
    pub namespace: Namespace,
    pub root: Root,
    pub daemon: Option<Child>,
    _dir: tempfile::TempDir,
}

/// What must not change while something else is broken: by service, its process; the rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    pub pids: BTreeMap<String, u64>,
    pub rules: Vec<String>,
}

impl Bed {
    /// A host with loopback, users and Envoy; the services `api` and `web`, and peers.
    pub fn new() -> Bed {
        let bed = Bed::bare();
        bed.write(API_FILE, API);
        bed.write(WEB_FILE, WEB);
        bed
    }

    /// A host without services.
    pub fn bare() -> Bed {
        let dir = tempfile::Builder::new().prefix("f").tempdir_in("/tmp").unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root (CAP_SYS_ADMIN)");
            let namespace = Namespace::own().unwrap();
            netns::block_on(netns::lo_up()).unwrap().unwrap();
            namespace
        };
        let namespace = thread::scope(|scope| scope.spawn(make).join().unwrap());
        let root = Root::new(dir.path().join("r"));
        let bed = Bed { namespace, root, daemon: None, _dir: dir };
        // Envoy's user cannot enter the folder that it is built in.
        let (from, to) = (envoy(), bed.envoy());
        fs::hard_link(&from, &to).or_else(|_| fs::copy(&from, &to).map(drop)).unwrap();
        bed.write("/etc/passwd", PASSWD);
        bed.write("/etc/hostname", "bed\n");
        bed.write(PEERS_FILE, PEERS);
        bed.write(HOST_FILE, bed.host_file(""));
        bed
    }

    /// Where Envoy is.
    pub fn envoy(&self) -> PathBuf {
        self._dir.path().join("envoy")
    }

    /// The host file, with `more` at its end.
    pub fn host_file(&self, more: &str) -> String {
        format!(
            "control_plane = \"static\"\nprofile = \"container\"\nstop.registration = \"keep\"\n\n[envoy]\npath = {:?}\ndrain = \"1s\"\n{more}",
            self.envoy()
        )
    }

    /// A path of the tree.
    pub fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// Writes a file of the tree the way editors do: beside it, then renamed.
    pub fn write(&self, path: &str, contents: impl AsRef<[u8]>) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let beside = path.with_extension("new");
        fs::write(&beside, contents).unwrap();
        fs::rename(&beside, &path).unwrap();
    }

    /// Removes whatever is there.
    pub fn remove(&self, path: &str) {
        let path = self.path(path);
        match fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_dir() => fs::remove_dir_all(&path).unwrap(),
            Ok(_) => fs::remove_file(&path).unwrap(),
            Err(_) => {}
        }
    }

    /// A command that is not run yet.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(enmesh());
        command
            .args(arguments)
            .arg("--root")
            .arg(self.root.path())
            .env_clear()
            .env("ENMESH_LOG", "text")
            .current_dir("/");
        command
    }

    /// Starts the daemon.
    pub fn start(&mut self) -> &mut Bed {
        self.start_where(|| ())
    }

    /// Starts the daemon after `prepare` on a thread with a mount namespace of its own.
    pub fn start_where(&mut self, prepare: impl FnOnce() + Send) -> &mut Bed {
        let log = File::options().create(true).append(true).open(self.log_file()).unwrap();
        let mut command = self.command(&["run"]);
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).process_group(0);
        let start = || {
            netns::mount_privately(&[]).unwrap();
            prepare();
            command.spawn().unwrap()
        };
        self.daemon = Some(self.namespace.run(start).unwrap());
        self
    }

    /// Starts the daemon as process number 1 of a process namespace, as in a container. Returns its
    /// number out here.
    #[expect(clippy::disallowed_methods, reason = "the container is the test's own")]
    pub fn start_as_init(&mut self) -> u32 {
        let log = File::options().create(true).append(true).open(self.log_file()).unwrap();
        let mut command = Command::new("/usr/bin/unshare");
        command.args([
            "--pid",
            "--fork",
            "--mount-proc",
            "--kill-child",
            enmesh(),
            "run",
            "--log",
            "text",
            "--root",
        ]);
        command.arg(self.root.path());
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).process_group(0);
        let outer = self.namespace.run(|| command.spawn().unwrap()).unwrap();
        let children = format!("/proc/{0}/task/{0}/children", outer.id());
        self.daemon = Some(outer);
        let first = || fs::read_to_string(&children).unwrap().trim().parse::<u32>();
        until("process number 1", LIMIT, first).unwrap()
    }

    fn log_file(&self) -> PathBuf {
        self._dir.path().join("log")
    }

    /// What the daemon has said so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// Sends the daemon a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = self.daemon.as_ref().unwrap().id();
        kill(Pid::from_raw(pid.cast_signed()), signal).unwrap();
    }

    /// Ends the daemon without asking, as the out-of-memory killer would.
    pub fn kill_daemon(&mut self) {
        let mut daemon = self.daemon.take().unwrap();
        daemon.kill().unwrap();
        daemon.wait().unwrap();
    }

    /// Waits for the daemon's end.
    pub fn end(&mut self, limit: Duration) -> ExitStatus {
        let mut daemon = self.daemon.take().unwrap();
        let ended = until("the daemon's end", limit, || daemon.try_wait().unwrap().ok_or("it runs"));
        ended.unwrap_or_else(|e| panic!("{e}\n{}", self.log()))
    }

    /// Whether the daemon runs.
    pub fn alive(&mut self) -> bool {
        self.daemon.as_mut().is_some_and(|daemon| daemon.try_wait().unwrap().is_none())
    }

    /// Runs a command as root.
    pub fn run(&self, arguments: &[&str]) -> Said {
        self.run_where(arguments, 0, || ())
    }

    /// Runs a command as another user.
    pub fn run_as(&self, user: u32, arguments: &[&str]) -> Said {
        self.run_where(arguments, user, || ())
    }

    /// Runs a command after `prepare` on a thread with a mount namespace of its own.
    pub fn run_where(&self, arguments: &[&str], user: u32, prepare: impl FnOnce() + Send) -> Said {
        let mut command = self.command(arguments);
        if user != 0 {
            command.uid(user).gid(user);
        }
        let (out, err) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        command.stdin(Stdio::null()).stdout(out.try_clone().unwrap()).stderr(err.try_clone().unwrap());
        let run = || {
            netns::mount_privately(&[]).unwrap();
            prepare();
            let mut child = command.spawn().unwrap();
            let ended = until("the command's end", LIMIT, || child.try_wait().unwrap().ok_or("it runs"));
            if ended.is_err() {
                child.kill().unwrap();
            }
            child.wait().unwrap()
        };
        let code = self.namespace.run(run).unwrap().code();
        let text = |mut file: File| {
            let mut bytes = Vec::new();
            file.rewind().unwrap();
            file.read_to_end(&mut bytes).unwrap();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        Said { code, out: text(out), err: text(err) }
    }

    /// Runs a command and kills it after that time. Returns whether it ran still.
    pub fn run_killed(&self, arguments: &[&str], after: Duration) -> bool {
        let mut command = self.command(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let run = || {
            let mut child = command.spawn().unwrap();
            thread::sleep(after);
            let ran = child.try_wait().unwrap().is_none();
            let _ = child.kill();
            child.wait().unwrap();
            ran
        };
        self.namespace.run(run).unwrap()
    }

    /// The daemon's status, `null` when none answers.
    pub fn status(&self) -> Value {
        let said = self.run(&["status", "--json"]);
        if said.code == Some(69) { Value::Null } else { said.json() }
    }

    /// Waits until the status is as `look` wants it; its last one is said otherwise.
    pub fn await_status<T>(&self, what: &str, limit: Duration, look: impl Fn(&Value) -> Option<T>) -> T {
        let found = until(what, limit, || {
            let status = self.status();
            look(&status).ok_or_else(|| format!("{status:#}"))
        });
        found.unwrap_or_else(|e| panic!("{e}\nlog:\n{}", self.log()))
    }

    /// Waits until everything is live and nothing is wrong.
    pub fn await_ready(&self) -> Value {
        self.await_status("readiness", LIMIT, |status| (status["ready"] == true).then(|| status.clone()))
    }

    /// Waits for a fault with `code`, and holds it against what every fault must have.
    pub fn await_fault(&self, code: &str) -> Value {
        let fault = self.await_status(code, SOON, |status| {
            status["faults"].as_array()?.iter().find(|fault| fault["code"] == code).cloned()
        });
        assert!(
            !fault["hint"].as_str().unwrap().is_empty() && !fault["message"].as_str().unwrap().is_empty()
        );
        fault
    }

    /// The rules of enmesh's table, `-` when there is none.
    pub fn rules(&self) -> String {
        let listed = self.nft(&["--stateless", "list", "table", "inet", "enmesh"], "");
        listed.unwrap_or_else(|_| "-".to_owned())
    }

    /// Runs `nft` on the host.
    pub fn nft(&self, arguments: &[&str], stdin: &str) -> Result<String, String> {
        let run = || exec::run(&exec::find("nft").unwrap(), arguments, stdin.as_bytes(), LIMIT).unwrap();
        let output = self.namespace.run(run).unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() { Ok(text) } else { Err(output.stderr) }
    }

    /// What holds now.
    pub fn held(&self) -> Held {
        let status = self.status();
        let pid = |service: &Value| service["pid"].as_u64().unwrap_or_default();
        let services = status["services"].as_object().unwrap();
        let pids = services.iter().map(|(id, service)| (id.clone(), pid(service))).collect();
        let rules = self.rules();
        // A new generation of the same rules is fine.
        let rules = rules.lines().filter(|line| !line.contains("enmesh:gen:")).map(str::to_owned).collect();
        Held { pids, rules }
    }

    /// That nothing of what held has changed, and every sidecar of it really takes connections.
    pub fn assert_holds(&self, held: &Held) {
        assert_eq!(&self.held(), held, "{:#}\n{}", self.status(), self.log());
        for service in self.status()["services"].as_object().unwrap().values() {
            let port = u16::try_from(service["outbound_port"].as_u64().unwrap()).unwrap();
            assert!(self.listens(port), "nobody listens on {port}: {service:#}");
        }
    }

    /// Whether somebody takes connections on the port of loopback.
    pub fn listens(&self, port: u16) -> bool {
        self.namespace.run(|| std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()).unwrap()
    }

    /// The Envoys that run on the host, by process number.
    pub fn envoys(&self) -> BTreeMap<u32, String> {
        envoys(&self.namespace)
    }

    /// Everything in the tree: path, mode and contents or target.
    pub fn files(&self) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
        let mut found = BTreeMap::new();
        let mut folders = vec![self.root.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let meta = fs::symlink_metadata(&path).unwrap();
                let contents = if meta.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
                if meta.is_dir() {
                    folders.push(path.clone());
                }
                found.insert(path, (meta.mode(), contents));
            }
        }
        found
    }

    /// Sends bytes to the control socket and returns what comes back.
    pub fn say(&self, bytes: &[u8]) -> String {
        let mut socket = UnixStream::connect(self.path("/run/enmesh/enmesh.sock")).unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        // The other side may have had enough before the end.
        let _ = socket.write_all(bytes);
        // An end before the answer means that nobody waits for one; only a torn request has it.
        if !String::from_utf8_lossy(bytes).contains("connection: close") {
            let _ = socket.shutdown(std::net::Shutdown::Write);
        }
        let mut answer = Vec::new();
        let _ = socket.take(1 << 20).read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if let Some(daemon) = &mut self.daemon {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        // Only what runs in the namespace of this test: the sidecars outlive their daemon.
        let ours = std::process::id();
        let gone = until("an empty namespace", SOON, || {
            let left = self.namespace.processes().unwrap_or_default();
            let left: Vec<u32> = left.into_iter().filter(|pid| *pid != ours && !is_zombie(*pid)).collect();
            for pid in &left {
                let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
            }
            if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
        });
        if let Err(left) = gone {
            eprintln!("{left}");
        }
    }
}

/// The Envoys in `namespace`, by process number, with the name that they were given.
pub fn envoys(namespace: &Namespace) -> BTreeMap<u32, String> {
    let name = |pid: u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let first = line.split(|b| *b == 0).next()?;
        let name = String::from_utf8_lossy(first).into_owned();
        (name.starts_with("envoy:") && !is_zombie(pid)).then_some((pid, name))
    };
    namespace.processes().unwrap().into_iter().filter_map(name).collect()
}

fn is_zombie(pid: u32) -> bool {
    let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    state.rsplit_once(')').is_none_or(|(_, rest)| rest.trim_start().starts_with(['Z', 'X']))
}

/// Looks again and again until `look` has something.
pub fn until<T, E: std::fmt::Display>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> Result<T, E>,
) -> Result<T, String> {
    let started = Instant::now();
    loop {
        match look() {
            Ok(found) => return Ok(found),
            Err(last) if started.elapsed() >= limit => {
                return Err(format!("{what}: not within {limit:?}; {last}"));
            }
            Err(_) => thread::sleep(Duration::from_millis(20)),
        }
    }
}
