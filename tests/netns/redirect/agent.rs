//! Row 44 with the real Consul: an agent on a host that captures all of its ports, and another one that joins it and
//! asks it for its leader. Joining takes TCP at 8301, asking takes 8300.
#![allow(clippy::disallowed_methods, reason = "agents run beside the test, and are killed by their number")]

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use enmesh::base::Root;
use enmesh::config::{Config, ConsulConfig, ServiceConfig};
use enmesh::consul::{Client, Query, Settings};
use enmesh::netns;
use enmesh::plan::facts::{HostAddress, User};
use enmesh::plan::{HostFacts, plan};
use serde_json::json;

use crate::drivers::{Driver, cases};
use crate::lab::Space;
use crate::worlds::live;

/// How long agents have to find each other on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// An agent that ends with this.
struct Agent {
    child: Child,
    folder: tempfile::TempDir,
}

impl Agent {
    fn start(space: &Space, arguments: &'static [&str]) -> Agent {
        let folder = tempfile::tempdir().unwrap();
        let log = File::create(folder.path().join("log")).unwrap();
        let data = folder.path().join("data");
        let child = space.run(move || {
            let program = std::env::var_os("ENMESH_CONSUL").map(Into::into);
            let program =
                program.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/consul"));
            let mut command = Command::new(program);
            command.args(["agent", "-disable-host-node-id", "-hcl=disable_update_check=true"]);
            command.arg(format!("-data-dir={}", data.display())).args(arguments).env_clear();
            command.stdin(Stdio::null()).stderr(log.try_clone().unwrap()).stdout(log).spawn().unwrap()
        });
        Agent { child, folder }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether the agent of the space, at its loopback, knows of a leader.
fn knows_a_leader(space: &Space) -> bool {
    space.run(|| {
        let settings = Settings::new(&ConsulConfig::default(), &Root::default(), &|_| None).unwrap();
        let client = Client::new(settings).unwrap();
        let asked = netns::block_on(async move { client.get(&Query::new("/v1/status/leader")).await });
        asked.unwrap().is_ok_and(|answer| answer.body.as_str().is_some_and(|leader| !leader.is_empty()))
    })
}

fn becomes(what: &str, agent: &Agent, holds: impl Fn() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < LIMIT, "{what}: {}", agent.log());
        thread::sleep(Duration::from_millis(100));
    }
}

/// What a host with the two lines of this service does.
fn facts() -> HostFacts {
    let user = |uid| User { uid, gid: uid };
    let own = HostAddress { interface: "eth0".to_owned(), address: "10.9.0.2".parse().unwrap() };
    HostFacts {
        users: [("envoy", 5995), ("consul", 102)].map(|(name, uid)| (name.to_owned(), user(uid))).into(),
        addresses: vec![own],
        consul: true,
        ..HostFacts::default()
    }
}

/// Row 44.
fn another_agent_joins(driver: Driver) {
    let (host, peer) = (Space::new(), Space::new());
    host.ip(&format!("link add eth0 type veth peer name eth0 netns {}", peer.tid()));
    for (space, address) in [(&host, "10.9.0.2/24"), (&peer, "10.9.0.1/24")] {
        space.ip(&format!("addr add {address} dev eth0"));
        space.ip("link set eth0 up");
    }
    let service = json!({ "name": "api", "port": 8080, "capture": { "scope": "host", "inbound": "all" } });
    let service: ServiceConfig = serde_json::from_value(service).unwrap();
    let plan = plan(&Config { services: vec![service], ..Config::default() }, &facts());
    assert_eq!(plan.errors, []);
    let policy = plan.redirect;
    // The agents' user is root here.
    let policy = enmesh::plan::RedirectPolicy { bypass_uids: [0, 5995].into(), ..policy };
    host.run(move || driver().apply(&live(policy)).unwrap());

    let server = Agent::start(&host, &["-server", "-bootstrap-expect=1", "-node=vm", "-bind=10.9.0.2"]);
    becomes("the server leads", &server, || knows_a_leader(&host));
    let other =
        Agent::start(&peer, &["-node=other", "-bind=10.9.0.1", "-retry-join=10.9.0.2", "-retry-interval=1s"]);
    becomes("the other has joined", &other, || knows_a_leader(&peer));
    assert_eq!(
        peer.dial(0, "10.9.0.2:8500".parse().unwrap()),
        crate::lab::Outcome::Refused,
        "any other port is captured, and no sidecar is there"
    );
}

cases! {
    another_agent_joins,
}
