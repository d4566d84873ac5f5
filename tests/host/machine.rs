//! One booted host. Everything it is made of ends with the value: the processes (by their control
//! group, so none escapes), the network namespace, the files.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use enmesh::base::exec::{self, Output};
use serde_json::Value;

use crate::cable::{Cable, Outlet};
use crate::tree;

/// What a boot may take; it takes about three seconds when nothing else runs.
const BOOT: Duration = Duration::from_secs(90);
/// What a command inside may take.
const COMMAND: Duration = Duration::from_secs(120);
/// What anything else may take that happens by itself.
const PATIENCE: Duration = Duration::from_secs(20);
/// Where this test program is seen inside.
pub const ITSELF: &str = "/host-test";
/// Where programs are.
const PATH: &str = "PATH=/usr/sbin:/usr/bin:/sbin:/bin";
/// Starts a program in a control group: `$1` is the group, the rest the command. There is no way to
/// do this between fork and exec in safe Rust.
pub const IN_GROUP: &str = r#"echo $$ >"$1/cgroup.procs" && shift && exec "$@""#;

/// What a machine gets from outside.
#[derive(Clone, Default)]
pub struct Setting {
    /// Where its cable goes.
    pub outlet: Outlet,
    /// Programs that it sees beside those of its tree: what, and where.
    pub programs: Vec<(PathBuf, &'static str)>,
    /// Whether Envoy is not installed.
    pub without_envoy: bool,
    /// Whether enmesh is not installed.
    pub without_enmesh: bool,
    /// What its tree has.
    pub tree: tree::Kind,
    /// Whether a unit is to fail at its boot.
    pub fails: bool,
}

/// A booted host.
pub struct Machine {
    name: String,
    setting: Setting,
    folder: PathBuf,
    group: PathBuf,
    container: Option<Child>,
    leader: u32,
    cable: Option<Cable>,
}

impl Machine {
    /// Boots a machine with enmesh installed as its package would (unit files, users, the program;
    /// `enmesh.service` not enabled) and waits until it is up.
    pub fn boot(name: &str) -> Machine {
        Machine::boot_with(name, |_| ())
    }

    /// The same after `prepare` has done what somebody did to the tree before the first boot.
    pub fn boot_with(name: &str, prepare: impl FnOnce(&Path)) -> Machine {
        Machine::boot_in(name, Setting::default(), prepare)
    }

    /// The same in a setting.
    pub fn boot_in(name: &str, setting: Setting, prepare: impl FnOnce(&Path)) -> Machine {
        let base = tree::made(setting.tree);
        let (name, folder) = claim(name);
        let group = unified().join(&name);
        let mut machine = Machine { name, setting, folder, group, container: None, leader: 0, cable: None };
        machine.lay_out(&base);
        prepare(&machine.tree());
        machine.start();
        machine.wait_running();
        machine
    }

    fn lay_out(&self, base: &Path) {
        let tree = self.tree();
        must(tool("cp"), &["-a", text(base), text(&tree)]);
        if !self.setting.without_enmesh {
            install(&tree);
        }
        fs::create_dir(&self.group).expect("a control group can be made");
    }

    pub fn tree(&self) -> PathBuf {
        self.folder.join("tree")
    }

    #[expect(clippy::disallowed_methods, reason = "the machine runs beside the test until its end")]
    fn start(&mut self) {
        // Another boot finds nothing in the kernel that an earlier one has left there.
        self.cable = None;
        self.cable = Some(Cable::lay(&self.name, &self.setting.outlet));
        let console = File::create(self.folder.join("console")).expect("target can be written");
        let itself = std::env::current_exe().expect("a program knows where it is");
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", IN_GROUP, "sh", text(&self.group)])
            .arg(tool("systemd-nspawn"))
            .arg("--directory")
            .arg(self.tree())
            .args(["--boot", "--register=no", "--keep-unit", "--quiet", "--console=pipe"])
            .arg(format!("--machine={}", self.name))
            .arg(format!("--network-namespace-path=/run/netns/{}", self.name))
            // Only a network that nspawn makes itself would bring this along.
            .arg("--capability=CAP_NET_ADMIN")
            .arg(format!("--bind-ro={}:{ITSELF}", itself.display()))
            .env_clear()
            .env("PATH", PATH.trim_start_matches("PATH="))
            // The machine gets control groups of version 2 even where this one has others too.
            .env("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY", "1")
            .stdin(Stdio::null())
            .stdout(console.try_clone().expect("a descriptor can be doubled"))
            .stderr(console);
        if !self.setting.without_envoy {
            command.arg(format!("--bind-ro={}:/usr/bin/envoy", envoy().display()));
        }
        for (program, there) in &self.setting.programs {
            command.arg(format!("--bind-ro={}:{there}", program.display()));
        }
        self.container = Some(command.spawn().expect("install the package `systemd-container`"));
    }

    /// Waits until every unit of the boot has started, or failed where one is to fail.
    pub fn wait_running(&mut self) {
        let deadline = Instant::now() + BOOT;
        let mut said = String::new();
        let wanted = if self.setting.fails { "degraded" } else { "running" };
        while said != wanted {
            let container = self.container.as_mut().expect("it was started");
            let ended = container.try_wait().expect("a child can be waited for");
            assert!(ended.is_none(), "the machine ended at boot: {ended:?}\n{}", self.console());
            assert!(
                Instant::now() < deadline && !["degraded", "running"].contains(&said.as_str()),
                "the machine does not come up: {said}\n{}\n{}",
                self.console(),
                self.failed()
            );
            thread::sleep(Duration::from_millis(50));
            let Some(leader) = leader(container.id()) else { continue };
            self.leader = leader;
            let output = self.run(&["systemctl", "is-system-running"]);
            said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        }
    }

    /// The machine's cable, with its two ends.
    pub fn cable(&self) -> &Cable {
        self.cable.as_ref().expect("it was laid at the start")
    }

    fn console(&self) -> String {
        fs::read_to_string(self.folder.join("console")).unwrap_or_default()
    }

    fn failed(&self) -> String {
        let output = self.run(&["systemctl", "--failed", "--no-pager", "--plain"]);
        format!("{}\n{}", String::from_utf8_lossy(&output.stdout), self.journal())
    }

    /// Runs a command inside, as root, and waits for its end.
    pub fn run(&self, command: &[&str]) -> Output {
        let leader = self.leader.to_string();
        let mut arguments = vec!["--target", &leader, "--all", "--wd=/", "--", "/usr/bin/env", PATH];
        arguments.extend(command);
        exec::run(&tool("nsenter"), &arguments, b"", COMMAND).expect("nsenter runs")
    }

    /// The same, for a command that must not fail; its standard output.
    pub fn must(&self, command: &[&str]) -> String {
        let output = self.run(command);
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{command:?} failed inside:\n{stdout}\n{}", output.stderr);
        stdout
    }

    /// Sends a signal to a process inside.
    pub fn signal(&self, signal: &str, pid: &str) {
        // The shell's own `kill`: a small Debian has no program of that name.
        self.must(&["/bin/sh", "-c", &format!("kill -{signal} {pid}")]);
    }

    /// A property of a unit.
    pub fn property(&self, unit: &str, name: &str) -> String {
        self.must(&["systemctl", "show", "--value", "--property", name, unit]).trim().to_owned()
    }

    /// What `enmesh status` says; null when no daemon answers.
    pub fn status(&self) -> Value {
        serde_json::from_slice(&self.run(&["enmesh", "status", "--json"]).stdout).unwrap_or_default()
    }

    /// The rules in force, without counters; `None` when there are none.
    pub fn rules(&self) -> Option<String> {
        let listed = self.run(&["nft", "--stateless", "list", "table", "inet", "enmesh"]);
        listed.status.success().then(|| String::from_utf8_lossy(&listed.stdout).into_owned())
    }

    /// Looks again and again until `look` has found something; says the journal's end when it never does.
    pub fn until<T>(&self, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = look() {
                return found;
            }
            let status = || format!("{:#}\n{}", self.status(), self.journal());
            assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}\n{}", status());
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until everything is live and nothing is wrong; the status then.
    pub fn until_ready(&self) -> Value {
        self.until("ready", || Some(self.status()).filter(|status| status["ready"] == true))
    }

    /// Runs one of the tests in [`crate::inner`] inside.
    pub fn run_inner(&self, test: &str) {
        let test = format!("inner::{test}");
        let inside = format!("{}=1", crate::inner::INSIDE);
        let run = ["/usr/bin/env", &inside, ITSELF, "--exact", &test, "--ignored", "--nocapture"];
        let output = self.run(&run);
        let stdout = String::from_utf8_lossy(&output.stdout);
        println!("{stdout}{}", output.stderr);
        let passed = output.status.success() && stdout.contains("1 passed");
        assert!(passed, "{test} failed inside; the journal's end:\n{}", self.journal());
    }

    /// The journal's end.
    pub fn journal(&self) -> String {
        let output = self.run(&["journalctl", "--no-pager", "--lines=60"]);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// A path inside, as seen from here: through the leader's root, because /run and /tmp are file
    /// systems that only it sees.
    pub fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root", self.leader)).join(path.trim_start_matches('/'))
    }

    /// Writes a file inside; makes the folders above it.
    pub fn write_file(&self, path: &str, contents: &[u8], mode: u32) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().expect("a file has a folder")).expect("a folder can be made");
        fs::write(&path, contents).expect("a file can be written");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("a mode can be set");
    }

    /// Switches it off the orderly way (systemd stops every unit) and boots it again from its files.
    pub fn reboot(&mut self) {
        self.power_off();
        self.power_on();
        self.wait_running();
    }

    /// Switches it off the orderly way. Its network stays as it left it until it is switched on.
    pub fn power_off(&mut self) {
        self.run(&["systemctl", "--no-block", "poweroff"]);
        let deadline = Instant::now() + BOOT;
        let container = self.container.as_mut().expect("it was started");
        while container.try_wait().expect("a child can be waited for").is_none() {
            assert!(Instant::now() < deadline, "the machine does not switch itself off");
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Switches it on, and does not wait.
    pub fn power_on(&mut self) {
        self.start();
    }

    /// Changes its files while it is off.
    pub fn while_off(&self, work: impl FnOnce(&Path)) {
        work(&self.tree());
    }
}

impl Drop for Machine {
    /// As if the plug was pulled.
    fn drop(&mut self) {
        pull_the_plug(&self.group);
        if let Some(mut container) = self.container.take() {
            let _ = container.wait();
        }
        self.cable = None;
        clear_away(&self.name, &self.folder);
    }
}

/// Gives out a name that nobody has, for something that is swept away should this program be killed.
/// Returns the folder that stands for it, too.
pub fn claim(name: &str) -> (String, PathBuf) {
    assert!(nix::unistd::geteuid().is_root(), "the host tests need root");
    static COUNT: AtomicU32 = AtomicU32::new(0);
    sweep();
    let name = format!("enmesh-{}-{}-{name}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let folder = machines().join(&name);
    fs::create_dir_all(&folder).expect("target can be written");
    (name, folder)
}

/// Ends every process in the control group and below.
pub fn pull_the_plug(group: &Path) {
    let _ = fs::write(group.join("cgroup.kill"), "1");
    let deadline = Instant::now() + Duration::from_secs(10);
    let populated =
        || fs::read_to_string(group.join("cgroup.events")).is_ok_and(|text| text.contains("populated 1"));
    while populated() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(5));
    }
}

/// Clears away what stands for the name, but processes.
pub fn clear_away(name: &str, folder: &Path) {
    let group = &unified().join(name);
    Cable::clear_away(name);
    let _ = fs::remove_dir(Path::new("/run/systemd/nspawn/propagate").join(name));
    remove_groups(group);
    let _ = fs::remove_dir_all(folder);
}

fn remove_groups(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_groups(&entry.path());
        }
    }
    let _ = fs::remove_dir(group);
}

/// Clears away machines whose test program was killed before it could.
fn sweep() {
    for entry in fs::read_dir(machines()).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.split('-').nth(1).unwrap_or_default().to_owned();
        if !Path::new("/proc").join(owner).exists() {
            pull_the_plug(&unified().join(&name));
            clear_away(&name, &entry.path());
        }
    }
}

/// Where machines have their folders.
fn machines() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/host-root/machines")
}

/// Where control groups of version 2 are mounted.
pub fn unified() -> PathBuf {
    let mounts = fs::read_to_string("/proc/mounts").expect("/proc is mounted");
    let mut fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let mount = fields.find(|fields| fields[2] == "cgroup2");
    PathBuf::from(mount.expect("the host tests need a mounted cgroup2 file system")[1])
}

/// The machine's process number 1, as seen from here.
fn leader(container: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{container}/task/{container}/children")).ok()?;
    children.split_whitespace().filter_map(|pid| pid.parse().ok()).find(|pid: &u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
        numbers.is_some_and(|numbers| numbers.split_whitespace().nth(1) == Some("1"))
    })
}

/// Puts into the tree what enmesh's package would.
pub fn install(tree: &Path) {
    let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd");
    for (file, folder) in [
        ("enmesh.service", "system"),
        ("enmesh-early.service", "system"),
        ("enmesh-reap.service", "system"),
        ("enmesh-reap.timer", "system"),
        ("envoy@.service", "system"),
        ("system-preset/80-enmesh.preset", "system-preset"),
        ("sysusers.d/enmesh.conf", "../sysusers.d"),
        ("tmpfiles.d/enmesh.conf", "../tmpfiles.d"),
    ] {
        let from = units.join(file);
        let to = tree.join("usr/lib/systemd").join(folder).join(from.file_name().expect("a file has a name"));
        fs::copy(&from, &to).unwrap_or_else(|e| panic!("{} to {}: {e}", from.display(), to.display()));
    }
    let generators = tree.join("usr/lib/systemd/system-generators");
    fs::create_dir_all(&generators).expect("a folder can be made");
    symlink("/usr/bin/enmesh", generators.join("enmesh-generator")).expect("a link can be made");
    must(tool("systemd-sysusers"), &[&format!("--root={}", tree.display()), "enmesh.conf"]);
    // A file of the machine's own, so that it can be replaced there.
    let program = Path::new(env!("CARGO_BIN_EXE_enmesh"));
    let there = tree.join("usr/bin/enmesh");
    fs::hard_link(program, &there).or_else(|_| fs::copy(program, &there).map(drop)).expect("room for enmesh");
}

/// Writes a file of a tree that is not booted yet.
pub fn put(tree: &Path, path: &str, contents: impl AsRef<[u8]>) {
    let path = tree.join(path.trim_start_matches('/'));
    fs::create_dir_all(path.parent().expect("a file has a folder")).expect("a folder can be made");
    fs::write(&path, contents).expect("a file can be written");
}

/// Has a tree start enmesh when it boots.
pub fn enable(tree: &Path) {
    must(
        tool("systemctl"),
        &[&format!("--root={}", tree.display()), "enable", "enmesh.service", "enmesh-early.service"],
    );
}

/// Envoy on this machine.
pub fn envoy() -> PathBuf {
    let named = std::env::var_os("ENMESH_ENVOY").map(PathBuf::from);
    let path = named.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/envoy"));
    let path = fs::canonicalize(&path).unwrap_or_else(|_| panic!("no Envoy at {}", path.display()));
    assert!(path.is_file(), "{} is no file", path.display());
    path
}

pub(crate) fn tool(name: &str) -> PathBuf {
    exec::find(name).unwrap_or_else(|fault| panic!("{}: {}", fault.message, fault.hint))
}

fn text(path: &Path) -> &str {
    path.to_str().expect("paths here are text")
}

pub(crate) fn must(program: PathBuf, arguments: &[&str]) {
    let output = exec::run(&program, arguments, b"", COMMAND).expect("it runs");
    assert!(output.status.success(), "{} {arguments:?}:\n{}", program.display(), output.stderr);
}
