//! The stage: two hosts as network namespaces of this machine, a cable between them, a file tree for
//! each. Whatever happens, it is taken down again, unless it is to be kept.

use std::fs::{self, File, OpenOptions};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::Signal;
use nix::unistd::geteuid;

use super::error::DemoError;
use super::patience::until;
use super::process::{Process, Spawn, signal};
use super::snapshot::warm_up;
use crate::base::files::{self, Access};
use crate::base::{Fault, Root, exec};
use crate::netns::{self, Namespace};

/// The tag of the real demo; tests have others. Namespaces are `<tag>-web` and `<tag>-api`, files are
/// below `/run/<tag>`.
pub const TAG: &str = "enmesh-demo";
/// Each host's end of the cable.
pub const INTERFACE: &str = "eth0";
/// The user that sidecars run as.
pub const ENVOY_USER: u32 = 5995;
/// The port of the service.
pub const APP_PORT: u16 = 8080;
/// Where a host's resolver listens; the standard port, so that a plain `resolv.conf` finds it.
pub const RESOLVER: &str = "127.0.0.1:53";

/// How long a daemon gets to stop in order before it is killed.
const GRACE: Duration = Duration::from_secs(5);
/// How long what is left in a namespace may take to be gone once killed.
const GONE_LIMIT: Duration = Duration::from_secs(5);
/// Where Envoy is looked for beside this program, and beside its folder (a source tree's `target`).
const BESIDE: [&str; 2] = ["tools/envoy", "../tools/envoy"];
/// Where `ip netns exec` looks for files of a namespace.
const IP_NETNS_FOLDER: &str = "/etc/netns";
/// The variable that says where Envoy is.
const ENVOY_VARIABLE: &str = "ENMESH_ENVOY";

/// One of the two hosts.
#[derive(Debug)]
pub struct Host {
    /// Its name, which is that of its service.
    pub name: &'static str,
    /// The program that is enmesh here.
    pub program: PathBuf,
    /// The user of its application.
    pub app_user: u32,
    /// Its address.
    pub address: Ipv4Addr,
    /// The name of its namespace.
    pub namespace_name: String,
    /// Its namespace.
    pub namespace: Namespace,
    /// What belongs to it: its root, its logs, its resolver configuration.
    pub folder: PathBuf,
}

/// The stage.
#[derive(Debug)]
pub struct Stage {
    tag: String,
    /// The client's host.
    pub web: Host,
    /// The service's host.
    pub api: Host,
    curtain: Curtain,
}

/// Takes everything with the tag down when it goes; exists before the first thing to take down does.
#[derive(Debug)]
struct Curtain {
    tag: String,
    keep: bool,
    _lock: Flock<File>,
}

impl Drop for Curtain {
    fn drop(&mut self) {
        if !self.keep {
            let _ = sweep(&self.tag);
            let _ = files::remove(&lock_file(&self.tag));
        }
    }
}

impl Stage {
    /// Builds the stage for `tag` with `program` as enmesh ([`OURSELVES`](super::process::OURSELVES),
    /// unless in a test), after taking down what an earlier one has left.
    ///
    /// # Errors
    /// `ENM-T001` not root, `ENM-T002` no `nft`, `ENM-T007` there is one already; what making
    /// namespaces, links and files says otherwise. Nothing is left then.
    pub fn build(tag: &str, program: &Path) -> Result<Stage, Fault> {
        requirements()?;
        let curtain = Curtain { tag: tag.to_owned(), keep: false, _lock: lock(tag)? };
        sweep(tag)?;
        let folder = folder_of(tag);
        files::folder(&folder, Access::mode(0o755))?;
        let web = Host::make(tag, program, "web", 10_001, 1)?;
        let api = Host::make(tag, program, "api", 10_002, 2)?;
        netns::veth_pair((&web.namespace, INTERFACE), (&api.namespace, INTERFACE))?;
        for host in [&web, &api] {
            host.wire_up()?;
            warm_up(&host.namespace)?;
        }
        for host in [&web, &api] {
            host.settle()?;
        }
        Ok(Stage { tag: tag.to_owned(), web, api, curtain })
    }

    /// Where its files are.
    pub fn folder(&self) -> PathBuf {
        folder_of(&self.tag)
    }

    /// Leaves everything in place when this value goes.
    pub fn keep(&mut self) {
        self.curtain.keep = true;
    }
}

impl Host {
    /// The tree that its daemon works below.
    pub fn root(&self) -> Root {
        Root::new(self.folder.join("root"))
    }

    /// What its daemon and its sidecar have said.
    pub fn log(&self) -> PathBuf {
        self.folder.join("daemon.log")
    }

    /// Writes a file of its tree.
    ///
    /// # Errors
    /// `ENM-X001` to `ENM-X003`.
    pub fn write(&self, path: &str, contents: &str) -> Result<(), Fault> {
        let path = self.root().join(path);
        if let Some(folder) = path.parent() {
            files::folder(folder, Access::mode(0o755))?;
        }
        files::write(&path, contents.as_bytes(), Access::mode(0o644)).map(drop)
    }

    /// Starts its daemon.
    ///
    /// # Errors
    /// As [`Process::start`].
    pub fn start_daemon(&self, envoy: &Path) -> Result<Process, Fault> {
        self.start_enmesh(&["run", "--log", "text"], envoy, false)
    }

    /// Starts another verb of enmesh on this host; its standard output is collected.
    ///
    /// # Errors
    /// As [`Process::start`].
    pub fn enmesh(&self, arguments: &[&str], envoy: &Path) -> Result<Process, Fault> {
        self.start_enmesh(arguments, envoy, true)
    }

    /// `envoy` is put where the host's configuration says that Envoy is, so that the sidecar's user
    /// can run it wherever it really lies.
    fn start_enmesh(&self, arguments: &[&str], envoy: &Path, collect: bool) -> Result<Process, Fault> {
        let root = ["--root".to_owned(), self.root().path().display().to_string()];
        Process::start(&Spawn {
            namespace: &self.namespace,
            program: &self.program,
            arguments: arguments.iter().map(|&argument| argument.to_owned()).chain(root).collect(),
            user: None,
            mounts: vec![(envoy.to_owned(), self.envoy())],
            log: self.log(),
            collect,
        })
    }

    /// Lets `ip netns exec` show this host's resolver configuration in the place of the machine's.
    ///
    /// # Errors
    /// `ENM-X001` to `ENM-X003`.
    pub fn offer_to_ip_netns(&self) -> Result<(), Fault> {
        let folder = ip_netns_folder(&self.namespace_name);
        files::folder(&folder, Access::mode(0o755))?;
        for (ours, theirs) in self.resolver_mounts()? {
            if let (Some(bytes), Some(name)) = (files::read(&ours, 4096)?, theirs.file_name()) {
                files::write(&folder.join(name), &bytes, Access::mode(0o644))?;
            }
        }
        Ok(())
    }

    /// Starts `enmesh demo-app …` under the application's user; names are resolved by the host's own
    /// resolver configuration.
    ///
    /// # Errors
    /// `ENM-T010` the resolver configuration of this machine cannot be put aside; otherwise as
    /// [`Process::start`].
    pub fn start_app(&self, arguments: &[&str], collect: bool) -> Result<Process, Fault> {
        let arguments = ["demo-app"].iter().chain(arguments).map(|&argument| argument.to_owned());
        Process::start(&Spawn {
            namespace: &self.namespace,
            program: &self.program,
            arguments: arguments.collect(),
            user: Some(self.app_user),
            mounts: self.resolver_mounts()?,
            log: self.folder.join("app.log"),
            collect,
        })
    }

    /// Where its daemon finds Envoy.
    pub fn envoy(&self) -> PathBuf {
        self.folder.join("envoy")
    }

    fn make(tag: &str, program: &Path, name: &'static str, app_user: u32, number: u8) -> Result<Host, Fault> {
        let namespace_name = format!("{tag}-{name}");
        let namespace = Namespace::create(&namespace_name)?;
        let folder = folder_of(tag).join(name);
        let address = Ipv4Addr::new(10, 99, 0, number);
        let program = program.to_owned();
        let host = Host { name, program, app_user, address, namespace_name, namespace, folder };
        files::folder(&host.folder, Access::mode(0o755))?;
        files::folder(host.root().path(), Access::mode(0o755))?;
        // What mounts are put over has to be there.
        files::write(&host.envoy(), b"", Access::mode(0o755))?;
        files::folder(&host.folder.join("nothing"), Access::mode(0o755))?;
        host.write_file("resolv.conf", "nameserver 127.0.0.1\noptions timeout:2 attempts:1\n")?;
        host.write_file("nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n")?;
        Ok(host)
    }

    fn write_file(&self, name: &str, contents: &str) -> Result<(), Fault> {
        files::write(&self.folder.join(name), contents.as_bytes(), Access::mode(0o644)).map(drop)
    }

    /// Numbers the host's end of the cable and switches it on. There is no default route: whatever is
    /// not on the cable does not exist.
    fn wire_up(&self) -> Result<(), Fault> {
        let number = self.address.octets()[3];
        let v4 = network(IpAddr::V4(self.address), 24)?;
        let v6 = network(IpAddr::V6(Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, number.into())), 64)?;
        self.namespace.run_async(|| async move {
            netns::lo_up().await?;
            let ipv6 = quieten_ipv6();
            netns::add_address(INTERFACE, v4).await?;
            if ipv6 {
                netns::add_address(INTERFACE, v6).await?;
            }
            netns::set_up(INTERFACE).await
        })??;
        Ok(())
    }

    /// Waits until the kernel has noticed that the cable is plugged in: IPv6 adds a route for
    /// multicast then, and a snapshot from before would have one route less.
    fn settle(&self) -> Result<(), Fault> {
        let what = format!("the cable of {}", self.name);
        self.namespace.run(|| {
            until(&what, GRACE, || {
                let routes = netns::block_on(netns::describe_routes()).and_then(|routes| routes);
                let routes = routes.map_err(|fault| fault.to_string())?;
                let settled =
                    !netns::ipv6_available() || routes.iter().any(|line| line.starts_with("ff00::/8"));
                if settled { Ok(()) } else { Err("no route for multicast yet".to_owned()) }
            })
        })?
    }

    /// What an application on this host sees in the place of the machine's resolver configuration.
    ///
    /// # Errors
    /// `ENM-T010` that of the machine cannot be put aside.
    pub fn resolver_mounts(&self) -> Result<Vec<(PathBuf, PathBuf)>, Fault> {
        let mut mounts = Vec::new();
        for name in ["resolv.conf", "nsswitch.conf"] {
            let target = Path::new("/etc").join(name);
            match fs::canonicalize(&target) {
                Ok(target) => mounts.push((self.folder.join(name), target)),
                // Without a nsswitch.conf the C library's own order is files, then DNS.
                Err(_) if name == "nsswitch.conf" => {}
                Err(_) => return Err(DemoError::NoTarget { path: target }.into()),
            }
        }
        // A name service cache would answer from outside the namespace.
        let cache = Path::new("/run/nscd");
        if cache.is_dir() {
            mounts.push((self.folder.join("nothing"), cache.to_owned()));
        }
        Ok(mounts)
    }
}

/// Takes down what a demo with this tag has left: processes in its namespaces, the namespaces with
/// their links, rules and routes, and its files. Returns whether there was anything.
///
/// # Errors
/// `ENM-T007` one is running; what the system refuses otherwise.
pub fn clean(tag: &str) -> Result<bool, Fault> {
    let _lock = lock(tag)?;
    let any = sweep(tag)?;
    files::remove(&lock_file(tag))?;
    Ok(any)
}

/// Where Envoy is: where the variable `ENMESH_ENVOY` says, in the system's folders, or in the folder
/// `tools` beside this program or its folder.
///
/// # Errors
/// `ENM-T003` nowhere.
pub fn find_envoy() -> Result<PathBuf, Fault> {
    if let Some(path) = std::env::var_os(ENVOY_VARIABLE).filter(|path| !path.is_empty()) {
        // Who says where it is does not want another one.
        return fs::canonicalize(path).map_err(|_| DemoError::NoEnvoy.into());
    }
    if let Ok(path) = exec::find("envoy") {
        return Ok(path);
    }
    let program = std::env::current_exe().unwrap_or_default();
    let folder = program.parent().unwrap_or(Path::new("/"));
    let beside = BESIDE.iter().filter_map(|path| fs::canonicalize(folder.join(path)).ok());
    beside.into_iter().find(|path| path.is_file()).ok_or_else(|| DemoError::NoEnvoy.into())
}

/// Whether a stage can be built at all.
///
/// # Errors
/// `ENM-T001` not root, `ENM-T002` no `nft`.
pub fn requirements() -> Result<(), Fault> {
    if !geteuid().is_root() {
        return Err(DemoError::Privilege.into());
    }
    exec::find("nft").map_err(|_| DemoError::NoNft)?;
    Ok(())
}

/// What `ip netns exec NAME` puts over the files of the same names in /etc.
fn ip_netns_folder(name: &str) -> PathBuf {
    Path::new(IP_NETNS_FOLDER).join(name)
}

/// Below /run, where only root can make anything and a reboot clears.
fn folder_of(tag: &str) -> PathBuf {
    Path::new("/run").join(tag)
}

fn lock_file(tag: &str) -> PathBuf {
    Path::new("/run").join(format!("{tag}.lock"))
}

fn lock(tag: &str) -> Result<Flock<File>, Fault> {
    let path = lock_file(tag);
    let failed = |e| DemoError::system(format!("lock {}", path.display()), e);
    loop {
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(&path).map_err(failed)?;
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| DemoError::Busy)?;
        // Whoever held it before has removed the file when it was done; then this lock is on nothing.
        let locked = lock.metadata().map_err(failed)?.ino();
        if fs::metadata(&path).is_ok_and(|meta| meta.ino() == locked) {
            return Ok(lock);
        }
    }
}

fn sweep(tag: &str) -> Result<bool, Fault> {
    let mut any = false;
    for name in ["web", "api"].map(|host| format!("{tag}-{host}")) {
        if let Ok(namespace) = Namespace::by_name(&name) {
            empty(&namespace)?;
        }
        any |= Namespace::delete(&name)?;
        any |= files::remove_folder(&ip_netns_folder(&name))?;
    }
    any |= files::remove_folder(&folder_of(tag))?;
    // Only ever removed when it is empty.
    let _ = fs::remove_dir(IP_NETNS_FOLDER);
    Ok(any)
}

/// Ends every process in `namespace`: first with a request, so that daemons can take their sidecars
/// along, then without asking.
fn empty(namespace: &Namespace) -> Result<(), Fault> {
    let tell = |what: Signal| -> Result<(), String> {
        let ours = std::process::id();
        let running = namespace.processes().map_err(|fault| fault.to_string())?;
        let others: Vec<u32> = running.into_iter().filter(|pid| *pid != ours && !is_zombie(*pid)).collect();
        others.iter().for_each(|pid| signal(*pid, what));
        if others.is_empty() { Ok(()) } else { Err(format!("processes {others:?} are still there")) }
    };
    let _ = tell(Signal::SIGTERM);
    let started = std::time::Instant::now();
    let alone = || namespace.processes().is_ok_and(|left| left.iter().all(|pid| is_zombie(*pid)));
    while !alone() && started.elapsed() < GRACE {
        std::thread::sleep(Duration::from_millis(10));
    }
    let started = std::time::Instant::now();
    while let Err(last) = tell(Signal::SIGKILL) {
        if started.elapsed() >= GONE_LIMIT {
            let what = format!("the end of what runs in {namespace}");
            return Err(DemoError::NotInTime { what, seconds: GONE_LIMIT.as_secs(), last }.into());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Whether a process has ended and only waits for its parent, which may be us, to take notice.
fn is_zombie(pid: u32) -> bool {
    let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name in parentheses may contain anything; the state follows the last parenthesis.
    state.rsplit_once(')').is_none_or(|(_, rest)| rest.trim_start().starts_with(['Z', 'X']))
}

/// Lets the calling thread's namespace make no link-local addresses on the cable: they come and
/// settle when they like, and a snapshot would catch them half-way. `false` without IPv6.
fn quieten_ipv6() -> bool {
    fs::write(format!("/proc/sys/net/ipv6/conf/{INTERFACE}/addr_gen_mode"), "1").is_ok()
}

fn network(address: IpAddr, length: u8) -> Result<IpNet, Fault> {
    IpNet::new(address, length)
        .map_err(|e| DemoError::Nonsense { who: "the demo".to_owned(), what: e.to_string() }.into())
}

/// Waits until somebody on `host` listens at `address`, as seen from there.
///
/// # Errors
/// `ENM-T005` it does not.
pub fn await_listener(host: &Host, address: SocketAddr) -> Result<(), Fault> {
    let what = format!("a listener at {address} on {}", host.name);
    let connect = || TcpStream::connect(address).map(drop).map_err(|e| e.to_string());
    host.namespace.run(|| until(&what, GRACE, connect))?
}
