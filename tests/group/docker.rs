//! A Docker Engine in a network namespace of the test's own. The programs are those of Debian's packages, unpacked below
//! `target/tools/neighbours` (`scripts/fetch-neighbours`).
#![allow(dead_code, reason = "the bench uses a part")]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use enmesh::netns::{self, Namespace};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::image;

/// How long anything of Docker's may take on a busy machine.
pub const LIMIT: Duration = Duration::from_secs(60);
/// The image that `aci/image/build` makes, under a name of its own.
pub const IMAGE: &str = "group";
/// The bridge's address, and its network.
pub const BRIDGE: &str = "10.77.0.1";
const NETWORK: &str = "10.77.0.1/24";

pub struct Docker {
    daemon: Option<Child>,
    folder: tempfile::TempDir,
    /// Where it and all containers' bridge are.
    pub outside: Namespace,
    /// The enmesh that the image has.
    pub enmesh: PathBuf,
}

fn neighbours() -> PathBuf {
    let tree = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/neighbours");
    assert!(tree.join("complete").is_file(), "scripts/fetch-neighbours fetches Docker");
    tree
}

pub fn envoy() -> PathBuf {
    let path = std::env::var_os("ENMESH_ENVOY").map(PathBuf::from);
    let path = path.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/envoy"));
    fs::canonicalize(&path)
        .unwrap_or_else(|_| panic!("no Envoy at {} (or ENMESH_ENVOY=path)", path.display()))
}

/// Tries again until it works, or `limit` is over.
pub fn until<T>(what: &str, limit: Duration, mut check: impl FnMut() -> Result<T, String>) -> T {
    let started = Instant::now();
    loop {
        match check() {
            Ok(found) => return found,
            Err(last) => assert!(started.elapsed() < limit, "{what}: {last}"),
        }
        thread::sleep(Duration::from_millis(20));
    }
}

impl Docker {
    /// Starts it in `outside`, with the image that has the binary `enmesh`.
    pub fn start(outside: Namespace, enmesh: PathBuf) -> Docker {
        let folder = tempfile::Builder::new().prefix("enmesh-group-").tempdir_in("/tmp").unwrap();
        let mut docker = Docker { daemon: None, folder, outside, enmesh };
        let path = format!("{0}/usr/bin:{0}/usr/sbin:/usr/sbin:/usr/bin:/sbin:/bin", neighbours().display());
        let mut command = Command::new(neighbours().join("usr/sbin/dockerd"));
        command.arg("--data-root").arg(docker.at("data")).arg("--exec-root").arg(docker.at("exec"));
        command.arg("--pidfile").arg(docker.at("pid")).args([
            "--storage-driver",
            "overlay2",
            "--bip",
            NETWORK,
        ]);
        command.arg("--host").arg(docker.socket());
        let log = File::create(docker.at("log")).unwrap();
        command.env_clear().env("PATH", path).stdin(Stdio::null());
        command.stdout(log.try_clone().unwrap()).stderr(log).current_dir("/");
        let start = move || {
            // What it mounts goes with it.
            netns::mount_privately(&[]).unwrap();
            command.spawn().unwrap()
        };
        docker.daemon = Some(docker.outside.run(start).unwrap());
        until("Docker", LIMIT, || {
            let log = fs::read_to_string(docker.at("log")).unwrap_or_default();
            docker.try_run(&["info"]).map_err(|error| format!("{error}\n{log}"))
        });
        let import = image::built(&docker.enmesh).import_as(IMAGE);
        docker.run(&import.iter().map(String::as_str).collect::<Vec<_>>());
        docker
    }

    /// A path in its folder.
    pub fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn socket(&self) -> String {
        format!("unix://{}", self.at("socket").display())
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(neighbours().join("usr/bin/docker"));
        command.arg("--host").arg(self.socket()).args(arguments).env_clear().stdin(Stdio::null());
        // The builder that knows what the Dockerfile says.
        command.env("DOCKER_BUILDKIT", "1").env("HOME", self.folder.path());
        command
    }

    /// Runs a command of Docker's; what it says, or how it failed.
    pub fn try_run(&self, arguments: &[&str]) -> Result<String, String> {
        let mut command = self.command(arguments);
        let output = self.outside.run(|| command.output().unwrap()).unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        match output.status.success() {
            true => Ok(text(&output.stdout)),
            false => Err(format!("{}\n{}", text(&output.stderr), text(&output.stdout))),
        }
    }

    pub fn run(&self, arguments: &[&str]) -> String {
        self.try_run(arguments).unwrap_or_else(|error| panic!("docker {arguments:?}: {error}"))
    }

    /// The container's first process, by its number out here.
    pub fn pid(&self, container: &str) -> u32 {
        self.run(&["inspect", "--format", "{{.State.Pid}}", container]).parse().unwrap()
    }

    /// The user that sidecars run as, by its number.
    pub fn envoy_uid(&self) -> u32 {
        self.run(&["run", "--rm", IMAGE, "id", "-u", "envoy"]).parse().unwrap()
    }

    pub fn namespace(&self, container: &str) -> Namespace {
        Namespace::by_pid(self.pid(container)).unwrap()
    }

    pub fn address(&self, container: &str) -> String {
        self.run(&["inspect", "--format", "{{.NetworkSettings.IPAddress}}", container])
    }

    /// Waits for the container's end; its exit status.
    pub fn exit_status(&self, container: &str) -> i32 {
        self.run(&["wait", container]).parse().unwrap()
    }

    /// What it has said: standard output and standard error.
    pub fn log(&self, container: &str) -> String {
        let mut command = self.command(&["logs", container]);
        let output = self.outside.run(|| command.output().unwrap()).unwrap();
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    }

    /// The last document that `arguments`, run in the container, print.
    pub fn json(&self, container: &str, arguments: &[&str]) -> Value {
        let command = [&["exec", container][..], arguments].concat();
        let said = self.try_run(&command).unwrap_or_else(|error| error);
        let start = said.find('{').unwrap_or_else(|| panic!("{arguments:?}: {said}"));
        let mut values = serde_json::Deserializer::from_str(&said[start..]).into_iter();
        values.next().unwrap().unwrap_or_else(|error| panic!("{arguments:?}: {error}: {said}"))
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        let containers = self.try_run(&["ps", "--all", "--quiet"]).unwrap_or_default();
        let ids: Vec<&str> = containers.split_whitespace().collect();
        if !ids.is_empty() {
            let _ = self.try_run(&[&["rm", "--force"][..], &ids].concat());
        }
        let Some(mut daemon) = self.daemon.take() else { return };
        let _ = kill(Pid::from_raw(daemon.id().cast_signed()), Signal::SIGTERM);
        let started = Instant::now();
        while daemon.try_wait().is_ok_and(|status| status.is_none()) {
            if started.elapsed() > LIMIT / 2 {
                let _ = daemon.kill();
                let _ = daemon.wait();
                break;
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}
