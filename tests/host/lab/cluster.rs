//! Three machines on a switch: a Consul server, and two with an agent, enmesh and an application each.

use std::fmt;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::apps::{self, COUNTING_URL, DASHBOARD_SETTINGS};
use super::watch::Watch;
use crate::machine::{Machine, Setting, put};
use crate::switch::Switch;

/// How long anything may take that happens by itself.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// The applications' user.
const APP_USER: u32 = 10_001;
/// The address of the Consul server.
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 10);
/// The address of `counting`'s machine.
pub const COUNTING: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 11);
/// The address of `dashboard`'s machine.
const DASHBOARD: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 12);
/// Consul's user and its folder.
pub const CONSUL_USER: &str = "u consul - \"Consul agent\" /var/lib/consul\n";
/// As in the field: a stop is a leave.
pub const CONSUL_UNIT: &str = "[Unit]\nDescription=Consul agent\nAfter=network.target\nStartLimitIntervalSec=0\n\n\
    [Service]\nType=exec\nUser=consul\nExecStart=/usr/bin/consul agent -config-dir=/etc/consul.d\n\
    Restart=always\nRestartSec=500ms\nStateDirectory=consul\nTimeoutStartSec=60s\n\n\
    [Install]\nWantedBy=multi-user.target\n";

/// What differs from lab to lab.
pub struct Recipe {
    /// Names its machines.
    pub name: &'static str,
    /// Settings of every Consul beside the usual ones.
    pub consul: Value,
    /// Files of `counting`'s machine.
    pub counting: Vec<(&'static str, Vec<u8>)>,
    /// Files of `dashboard`'s machine.
    pub dashboard: Vec<(&'static str, Vec<u8>)>,
}

/// The lab. What ends first stands first.
pub struct Lab {
    /// Consul's server; nothing of enmesh runs there.
    pub server: Machine,
    /// The machine of the service.
    pub counting: Machine,
    /// The machine of its client.
    pub dashboard: Machine,
    /// The wire.
    pub watch: Watch,
    _switch: Switch,
}

impl Lab {
    /// Boots the three machines, starts to listen, and then starts Consul and the applications. enmesh is
    /// installed and does not run.
    pub fn boot(recipe: &Recipe) -> Lab {
        let switch = Switch::make();
        let boot = |name: &str, address, files: &[(&str, Vec<u8>)]| {
            let setting = Setting {
                outlet: crate::cable::Outlet::Switch(switch.port(name, address)),
                programs: vec![(consul_program(), "/usr/bin/consul")],
                ..Setting::default()
            };
            Machine::boot_in(&format!("{}-{name}", recipe.name), setting, |tree| {
                prepare(tree, name, address, &recipe.consul);
                files.iter().for_each(|(path, contents)| put(tree, path, contents));
            })
        };
        let (server, counting, dashboard) = thread::scope(|scope| {
            let server = scope.spawn(|| boot("server", SERVER, &[]));
            let counting = scope.spawn(|| boot("counting", COUNTING, &recipe.counting));
            let dashboard = scope.spawn(|| boot("dashboard", DASHBOARD, &recipe.dashboard));
            let machine = |thread: thread::ScopedJoinHandle<'_, Machine>| match thread.join() {
                Ok(machine) => machine,
                Err(panic) => std::panic::resume_unwind(panic),
            };
            (machine(server), machine(counting), machine(dashboard))
        });
        let watch = Watch::start(&switch, &["counting", "dashboard"]);
        let lab = Lab { server, counting, dashboard, watch, _switch: switch };
        for machine in lab.machines() {
            machine.must(&["systemctl", "start", "--no-block", "consul.service"]);
        }
        lab.counting.must(&["systemctl", "start", "counting.service"]);
        lab.dashboard.must(&["systemctl", "start", "dashboard.service"]);
        lab
    }

    /// All three.
    pub fn machines(&self) -> [&Machine; 3] {
        [&self.server, &self.counting, &self.dashboard]
    }

    /// The two with enmesh.
    pub fn hosts(&self) -> [&Machine; 2] {
        [&self.counting, &self.dashboard]
    }

    /// Waits until the server knows all three.
    pub fn until_joined(&self) {
        eventually("three members", PATIENCE, || {
            let output = self.server.run(&["consul", "members"]);
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            let alive = said.lines().filter(|line| line.contains(" alive ")).count();
            if alive == 3 { Ok(()) } else { Err(format!("{said}{}", output.stderr)) }
        });
    }

    /// Starts enmesh on both hosts, without waiting.
    pub fn start_enmesh(&self) {
        for machine in self.hosts() {
            machine.must(&["systemctl", "enable", "--now", "--no-block", "enmesh.service"]);
        }
    }

    /// Waits until both hosts have what they want and nothing is wrong.
    pub fn until_ready(&self) {
        eventually("two ready hosts", PATIENCE, || {
            let ready = self.hosts().into_iter().all(|machine| machine.status()["ready"] == true);
            if ready { Ok(()) } else { Err(self.journals()) }
        });
    }

    /// What everybody has said lately.
    pub fn journals(&self) -> String {
        let journal = |machine: &Machine| format!("{:#}\n{}", machine.status(), machine.journal());
        self.machines().map(journal).join("\n----\n")
    }
}

/// Where Consul is on this machine.
pub fn consul_program() -> PathBuf {
    let named = std::env::var_os("ENMESH_CONSUL").map(PathBuf::from);
    let path = named.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/consul"));
    assert!(path.is_file(), "there is no {}; scripts/fetch-consul puts it there", path.display());
    fs::canonicalize(path).expect("it is there")
}

/// What a machine has on its disk before it boots.
fn prepare(tree: &Path, name: &str, address: Ipv4Addr, more: &Value) {
    put(tree, "/usr/lib/sysusers.d/consul.conf", CONSUL_USER);
    put(tree, "/etc/systemd/system/consul.service", CONSUL_UNIT);
    put(tree, "/etc/consul.d/agent.json", agent(name, address, more).to_string());
    put(tree, "/etc/hostname", format!("{name}\n"));
    let passwd = fs::read_to_string(tree.join("etc/passwd")).expect("a tree has users");
    put(tree, "/etc/passwd", format!("{passwd}app:x:{APP_USER}:{APP_USER}::/:/bin/false\n"));
    put(tree, DASHBOARD_SETTINGS, COUNTING_URL);
    for app in ["counting", "dashboard"] {
        put(tree, &format!("/etc/systemd/system/{app}.service"), apps::unit(app));
    }
}

/// The settings of a Consul agent.
fn agent(name: &str, address: Ipv4Addr, more: &Value) -> Value {
    let mut settings = json!({
        "node_name": name,
        "bind_addr": address.to_string(),
        "data_dir": "/var/lib/consul",
        "disable_update_check": true,
        "ports": { "grpc": 8502 },
        "connect": { "enabled": true },
    });
    let role = if name == "server" {
        // Elections as in production; the default is for very small machines.
        json!({ "server": true, "bootstrap_expect": 1, "performance": { "raft_multiplier": 1 } })
    } else {
        json!({ "retry_join": [SERVER.to_string()], "retry_interval": "1s" })
    };
    for (key, value) in [&role, more].into_iter().filter_map(Value::as_object).flatten() {
        settings[key] = value.clone();
    }
    settings
}

/// Looks again and again until `look` has something.
pub fn eventually<T, E: fmt::Display>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> Result<T, E>,
) -> T {
    let started = Instant::now();
    loop {
        match look() {
            Ok(found) => return found,
            Err(last) => assert!(started.elapsed() < limit, "{what}: not within {limit:?}\n{last}"),
        }
        thread::sleep(Duration::from_millis(50));
    }
}
