//! Whom the machines meet: a container with Consul's server, a client and a database in the mesh; and somebody
//! outside who serves files over plain HTTP.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use enmesh::demo::wire::Tap;
use sha2::{Digest, Sha256};

use crate::cable::{Listener, Outlet};
use crate::lab::cluster::{CONSUL_UNIT, CONSUL_USER, consul_program};
use crate::machine::{Machine, Setting, envoy, put};
use crate::package::serve;
use crate::switch::Switch;

/// Its address.
pub const PEER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 10);
/// The port of the database `db`.
pub const DB_PORT: u16 = 5432;
/// The port of a machine's service.
pub const API_PORT: u16 = 8080;
/// What a machine's service answers, to be looked for on the wire.
pub const MARK: &str = "the-mark-of-the-machines-41c9";

/// What an answer may take until a machine has started its service, without acceleration.
const PATIENCE: Duration = Duration::from_secs(90);
const USER: u32 = 10_002;
const HOST_FILE: &str = "control_plane = \"catalog\"\n\n[envoy]\ndrain = \"1s\"\n";
const WEB: &str = "name = \"web\"\n\n[capture]\nscope = \"user:web-app\"\n";
const DB: &str = "name = \"db\"\nport = 5432\n\n[capture]\nscope = \"user:db-app\"\n";
const CONSUL: &str = "{\"node_name\": \"peer\", \"server\": true, \"bootstrap_expect\": 1, \"bind_addr\": \"10.77.0.10\", \
    \"client_addr\": \"0.0.0.0\", \"data_dir\": \"/var/lib/consul\", \"disable_update_check\": true, \
    \"connect\": {\"enabled\": true}, \"performance\": {\"raft_multiplier\": 1}}\n";

/// The application of a machine's service, and one that dials the database in the clear from the moment at
/// which there may be a network.
pub const APPS: [(&str, &str); 3] = [
    ("/srv/app/index.html", MARK),
    (
        "/etc/systemd/system/app.service",
        "[Unit]\nDefaultDependencies=no\nAfter=local-fs.target\n[Service]\nDynamicUser=yes\nWorkingDirectory=/srv/app\n\
         ExecStart=/usr/bin/python3 -m http.server 8080\nRestart=always\n[Install]\nWantedBy=sysinit.target\n",
    ),
    (
        "/etc/systemd/system/eager.service",
        "[Unit]\nDefaultDependencies=no\nAfter=network-pre.target\n[Service]\nExecStart=/bin/bash -c 'while sleep 0.1; do \
         (exec 3<>/dev/tcp/10.77.0.10/5432; head -c 5 <&3) >>/run/eager 2>/dev/null; done'\n\
         [Install]\nWantedBy=sysinit.target\n",
    ),
];

/// What ends first stands first.
pub struct Peer {
    pub machine: Machine,
    _db: Listener,
    pub switch: Switch,
}

impl Peer {
    pub fn boot() -> Peer {
        let switch = Switch::make();
        let setting = Setting {
            outlet: Outlet::Switch(switch.port("peer", PEER)),
            programs: vec![(consul_program(), "/usr/bin/consul")],
            ..Setting::default()
        };
        let machine = Machine::boot_in("peer", setting, |tree| {
            put(tree, "/usr/lib/sysusers.d/consul.conf", CONSUL_USER);
            put(tree, "/etc/systemd/system/consul.service", CONSUL_UNIT);
            put(tree, "/etc/consul.d/agent.json", CONSUL);
            put(tree, "/etc/enmesh/enmesh.toml", HOST_FILE);
            put(tree, "/etc/enmesh/services/web.toml", WEB);
            put(tree, "/etc/enmesh/services/db.toml", DB);
            let passwd = fs::read_to_string(tree.join("etc/passwd")).unwrap();
            let user = |name: &str, uid: u32| format!("{name}:x:{uid}:{uid}::/:/bin/false\n");
            let users = [user("web-app", USER), user("db-app", USER + 1)].concat();
            put(tree, "/etc/passwd", format!("{passwd}{users}"));
        });
        machine.must(&["systemctl", "start", "consul.service"]);
        machine.must(&["systemctl", "enable", "--now", "--no-block", "enmesh.service"]);
        let db = Listener::start(&machine.cable().inside, DB_PORT);
        Peer { machine, _db: db, switch }
    }

    /// Serves the old package, the new one, and Envoy; the part of user-data that names the old one and Envoy.
    pub fn serve(&self) -> String {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
        let package = |name: &str| {
            let mut files =
                fs::read_dir(folder.join(name)).into_iter().flatten().flatten().map(|entry| entry.path());
            let deb = files.find(|path| path.extension().is_some_and(|ending| ending == "deb"));
            fs::read(deb.expect("make packages-before")).unwrap()
        };
        let (old, new, envoy) =
            (package("target/packages/before"), package("target/packages"), fs::read(envoy()).unwrap());
        let sum =
            |bytes: &[u8]| Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let settings = format!(
            "ENMESH_URL=http://10.77.0.1/./old.deb\nENMESH_SHA256={}\nENVOY_URL=http://10.77.0.1/./envoy\nENVOY_SHA256={}\n\
             JOIN_TIMEOUT=180s\n",
            sum(&old),
            sum(&envoy)
        );
        let files = [("/./old.deb", old), ("/./new.deb", new), ("/./envoy", envoy)];
        let files = files.map(|(name, bytes)| (name.to_owned(), bytes));
        serve(&self.switch.namespace, Arc::new(files.into()));
        super::guest::writes(&[("/etc/enmesh/first-boot.env", &settings)])
    }

    /// Whether the client gets a machine's service through the mesh.
    pub fn asks_api(&self) -> bool {
        self.ask_api().is_ok()
    }

    /// Waits until it does.
    pub fn until_asked(&self) {
        let deadline = Instant::now() + PATIENCE;
        while let Err(said) = self.ask_api() {
            assert!(
                Instant::now() < deadline,
                "no answer within {PATIENCE:?}: {said}\n{:#}",
                self.machine.status()
            );
            thread::sleep(Duration::from_millis(100));
        }
    }

    fn ask_api(&self) -> Result<(), String> {
        let ask =
            "exec 3<>/dev/tcp/api.virtual.consul/8080 && printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3 && cat <&3";
        let said = self.machine.run(&["timeout", "5", "runuser", "-u", "web-app", "--", "bash", "-c", ask]);
        let heard = String::from_utf8_lossy(&said.stdout).into_owned();
        if heard.contains(MARK) { Ok(()) } else { Err(format!("{heard}{}", said.stderr)) }
    }

    /// Listens on the cable of a machine.
    pub fn listen(&self, machine: &str) -> Tap {
        let secrets = vec![MARK.as_bytes().to_vec(), b"hello in the clear".to_vec()];
        Tap::start(&self.switch.namespace, machine, secrets).unwrap()
    }
}
