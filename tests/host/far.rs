//! A third host, on the other end of a machine's cable: a daemon with one service and without systemd, whose
//! application calls its upstreams by ports of loopback. Gone with the value, also on failure.

#![allow(clippy::disallowed_methods, reason = "a service manager starts daemons")]

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use enmesh::base::{Root, exec};
use enmesh::netns::Namespace;
use serde_json::Value;

use crate::cable::{INSIDE, OUTSIDE};
use crate::machine::{Machine, envoy, put};

const ENMESH: &str = env!("CARGO_BIN_EXE_enmesh");
/// Nobody's, on any machine.
const ENVOY_USER: u32 = 5995;
const ANSWER: Duration = Duration::from_secs(5);

pub struct Far {
    namespace: Namespace,
    root: Root,
    children: Vec<Child>,
    _folder: tempfile::TempDir,
}

impl Far {
    /// Starts it, with the CA of `machine`. Its upstreams are the services of the machine, each with the port at which its
    /// sidecar listens there, and may call it; the first is at port 9001 of its loopback, and so on.
    pub fn start(machine: &Machine, upstreams: &[(&str, u16)]) -> Far {
        let folder = tempfile::Builder::new().prefix("far").tempdir_in("/tmp").unwrap();
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        let tree = folder.path().join("r");
        // Envoy's user cannot enter the folder that it is built in.
        let program = folder.path().join("envoy");
        fs::hard_link(envoy(), &program).or_else(|_| fs::copy(envoy(), &program).map(drop)).unwrap();
        put(&tree, "/etc/passwd", format!("envoy:x:{ENVOY_USER}:{ENVOY_USER}::/:/bin/false\n"));
        let host = format!(
            "control_plane = \"static\"\nprofile = \"container\"\n\n[envoy]\npath = {program:?}\ndrain = \"1s\"\n"
        );
        put(&tree, "/etc/enmesh/enmesh.toml", host);
        let mut service = "name = \"far\"\nport = 8080\n\n[capture]\nmode = \"direct\"\n".to_owned();
        let mut peers = "[[service]]\nname = \"far\"\nallow = [\"*\"]\n".to_owned();
        for ((name, port), local) in upstreams.iter().zip(9001..) {
            service += &format!("\n[[upstream]]\nname = \"{name}\"\nlocal_port = {local}\n");
            peers += &format!(
                "\n[[service]]\nname = \"{name}\"\nallow = [\"far\"]\n[[service.instance]]\naddress = \"{INSIDE}\"\nport = {port}\n"
            );
        }
        put(&tree, "/etc/enmesh/services/far.toml", service);
        put(&tree, "/etc/enmesh/peers.toml", peers);
        for name in ["root.pem", "root.key"] {
            let path = format!("/var/lib/enmesh/ca/{name}");
            put(&tree, &path, fs::read(machine.path(&path)).unwrap());
            fs::set_permissions(tree.join(path.trim_start_matches('/')), Permissions::from_mode(0o600))
                .unwrap();
        }
        let namespace = Namespace::open(machine.cable().outside.path()).unwrap();
        let root = Root::new(tree);
        let mut far = Far { namespace, root, children: Vec::new(), _folder: folder };
        let listen = ["demo-app", "serve", "--name", "far", "--listen", "127.0.0.1:8080"];
        let tree = far.root.path().to_owned();
        far.spawn(&listen.map(std::ffi::OsStr::new));
        far.spawn(&["run".as_ref(), "--root".as_ref(), tree.as_os_str()]);
        far
    }

    fn spawn(&mut self, arguments: &[&std::ffi::OsStr]) {
        let log = File::options().create(true).append(true).open(self.log_file()).unwrap();
        let mut command = Command::new(ENMESH);
        command.args(arguments).env_clear().current_dir("/").stdin(Stdio::null());
        command.stdout(log.try_clone().unwrap()).stderr(log);
        let child = self.namespace.run(|| command.spawn().unwrap()).unwrap();
        self.children.push(child);
    }

    fn log_file(&self) -> std::path::PathBuf {
        self.root.join(Path::new("/log"))
    }

    /// What was logged there.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// What an application there hears from its upstream of that number: the name of whoever answers.
    pub fn hears(&self, number: u16) -> Option<String> {
        let url = format!("http://127.0.0.1:{}/", 9001 + number);
        let ask = || exec::run(Path::new(ENMESH), &["demo-app", "get", &url], b"", ANSWER);
        let output = self.namespace.run(ask).unwrap().ok()?;
        let outcome: Value = serde_json::from_slice(&output.stdout).ok()?;
        let body: Value = serde_json::from_str(outcome["body"].as_str()?).ok()?;
        Some(body["service"].as_str()?.to_owned())
    }

    /// How others find it: a service of their peers file.
    pub fn as_peer(allow: &str) -> String {
        format!(
            "\n[[service]]\nname = \"far\"\nallow = [{allow}]\n[[service.instance]]\naddress = \"{OUTSIDE}\"\nport = 21000\n"
        )
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        // The daemon last started ends first; it ends its sidecar and takes its rules along.
        while let Some(mut child) = self.children.pop() {
            let pid = nix::unistd::Pid::from_raw(child.id().try_into().unwrap_or(i32::MAX));
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
            for _ in 0..100 {
                if !matches!(child.try_wait(), Ok(None)) {
                    break;
                }
                std::thread::sleep(Duration::from_millis(100));
            }
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
