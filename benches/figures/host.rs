//! A host of its own: a file tree, and the daemon on it. It runs its sidecars itself (profile
//! `container`), so that no systemd takes part in what is measured.

use std::error::Error;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::size;

/// The sidecars' user in the tree; nobody on the machine has to have it.
const ENVOY_UID: u32 = 60_995;

/// The first service's own user.
pub const FIRST_UID: u32 = 61_000;

/// The first service's port.
pub const FIRST_PORT: u16 = 30_000;

/// How often somebody who waits looks.
const LOOK: Duration = Duration::from_millis(2);

/// The host.
pub struct Host {
    tree: TempDir,
    daemon: Option<Child>,
}

/// The real Envoy.
pub fn envoy() -> PathBuf {
    std::env::var_os("ENMESH_ENVOY")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/envoy"), PathBuf::from)
}

impl Host {
    /// A tree with users for `services` services, no service file yet, and no Consul.
    pub fn new(services: u32) -> Result<Host, Box<dyn Error>> {
        Host::with(services, "control_plane = \"static\"\nregistration = \"none\"\n")
    }

    /// The same with another source of the mesh, in words of the host file.
    pub fn with(services: u32, mesh: &str) -> Result<Host, Box<dyn Error>> {
        let tree = tempfile::Builder::new().prefix("enmesh-bench").tempdir()?;
        // The sidecars' user has to get through.
        fs::set_permissions(tree.path(), fs::Permissions::from_mode(0o755))?;
        let host = Host { tree, daemon: None };
        let users: String = (0..services)
            .map(|number| format!("app{number}:x:{0}:{0}::/:/usr/sbin/nologin\n", FIRST_UID + number))
            .collect();
        host.write("etc/hostname", "bench\n")?;
        host.write(
            "etc/passwd",
            &format!("root:x:0:0::/root:/bin/sh\nenvoy:x:{ENVOY_UID}:{ENVOY_UID}::/:/bin/false\n{users}"),
        )?;
        host.write("etc/group", &format!("root:x:0:\nenvoy:x:{ENVOY_UID}:\n"))?;
        host.write(
            "etc/enmesh/enmesh.toml",
            &format!(
                "{mesh}profile = \"container\"\nstop.registration = \"keep\"\n\
                 [envoy]\npath = \"{}\"\ndrain = \"1s\"\n[ports]\noutbound = \"15001-15300\"\n",
                envoy().display()
            ),
        )?;
        host.write("etc/enmesh/peers.toml", "")?;
        fs::create_dir_all(host.path("etc/enmesh/services"))?;
        Ok(host)
    }

    /// Where `path` is in the tree.
    pub fn path(&self, path: &str) -> PathBuf {
        self.tree.path().join(path)
    }

    /// Writes a file as an editor does: aside, then renamed.
    fn write(&self, path: &str, text: &str) -> Result<(), Box<dyn Error>> {
        let path = self.path(path);
        let folder = path.parent().ok_or("no folder")?;
        fs::create_dir_all(folder)?;
        let aside = folder.join(".aside");
        fs::write(&aside, text)?;
        Ok(fs::rename(&aside, &path)?)
    }

    /// The file of service `number`, for a user of its own.
    pub fn write_service(&self, number: u32) -> Result<(), Box<dyn Error>> {
        self.write(
            &format!("etc/enmesh/services/s{number}.toml"),
            &format!(
                "name = \"s{number}\"\nport = {}\naddress = \"127.0.0.1\"\n[capture]\nscope = \"user:app{number}\"\ndns = \"off\"\n",
                u32::from(FIRST_PORT) + number
            ),
        )
    }

    /// Takes the file of service `number` away.
    pub fn remove_service(&self, number: u32) -> Result<(), Box<dyn Error>> {
        Ok(fs::remove_file(self.path(&format!("etc/enmesh/services/s{number}.toml")))?)
    }

    /// Starts the daemon and waits until it answers.
    pub fn start(&mut self) -> Result<(), Box<dyn Error>> {
        let log = fs::File::create(self.path("daemon.log"))?;
        #[expect(clippy::disallowed_methods, reason = "the daemon is what is measured")]
        let daemon = Command::new(size::binary())
            .arg("run")
            .arg("--root")
            .arg(self.tree.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(|error| format!("{}: {error}; make build", size::binary().display()))?;
        self.daemon = Some(daemon);
        self.wait(Duration::from_secs(20), |_| true).map(drop)
    }

    /// The daemon's process.
    pub fn pid(&self) -> Result<u32, Box<dyn Error>> {
        Ok(self.daemon.as_ref().ok_or("no daemon runs")?.id())
    }

    /// The daemon's status.
    pub fn status(&self) -> Result<Value, Box<dyn Error>> {
        let answer = get(&self.path("run/enmesh/enmesh.sock"), "/v1/status")?;
        Ok(serde_json::from_str(&answer)?)
    }

    /// Waits until exactly `count` services are known and all of them live.
    pub fn wait_for_live(&self, count: usize, limit: Duration) -> Result<Value, Box<dyn Error>> {
        self.wait(limit, |status| {
            status.get("services").and_then(Value::as_object).is_some_and(|services| {
                services.len() == count
                    && services.values().all(|service| service.get("phase") == Some(&Value::from("live")))
            })
        })
    }

    fn wait(&self, limit: Duration, done: impl Fn(&Value) -> bool) -> Result<Value, Box<dyn Error>> {
        let started = Instant::now();
        loop {
            if let Ok(status) = self.status()
                && done(&status)
            {
                return Ok(status);
            }
            if started.elapsed() > limit {
                let log = fs::read_to_string(self.path("daemon.log")).unwrap_or_default();
                let last: Vec<&str> = log.lines().rev().take(5).collect();
                return Err(format!("not there after {limit:?}; the daemon last said: {last:?}").into());
            }
            thread::sleep(LOOK);
        }
    }
}

impl Drop for Host {
    /// Ends the daemon, which ends its sidecars; by force when it does not listen.
    fn drop(&mut self) {
        let Some(mut daemon) = self.daemon.take() else { return };
        if let Ok(pid) = i32::try_from(daemon.id()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(60) {
            if !matches!(daemon.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
        let _ = daemon.kill();
        let _ = daemon.wait();
    }
}

/// The body of an HTTP answer from a unix socket.
pub fn get(socket: &Path, target: &str) -> Result<String, Box<dyn Error>> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "GET {target} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("no HTTP answer")?;
    if head.starts_with("HTTP/1.1 200") { Ok(body.to_owned()) } else { Err(head.to_owned().into()) }
}
