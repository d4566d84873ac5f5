//! A host that is sealed as a whole, and a Consul on another one: enmesh itself passes, and nobody else.

use std::net::TcpStream;
use std::time::Duration;

use caps::{CapSet, Capability};
use enmesh::config::ConsulConfig;
use enmesh::consul::{Client, Query};
use enmesh::netns;
use serde_json::{Value, json};

use crate::bed::{Agent, client_of};
use crate::host_bed::{API_FILE, Bed, ENVOY_USER, HOST_FILE, LIMIT, PEERS_FILE, until};

const CONSUL: &str = "10.48.0.2:8500";
const SEALED: &str = "name = \"api\"\nport = 8080\n\n[capture]\nscope = \"host\"\ndns = \"off\"\non_proxy_failure = \"sealed\"\n";

struct Scene {
    bed: Bed,
    elsewhere: Bed,
    _agent: Agent,
}

impl Scene {
    fn new(driver: &str) -> Scene {
        let (bed, elsewhere) = (Bed::bare(), Bed::bare());
        netns::veth_pair((&bed.namespace, "va"), (&elsewhere.namespace, "vb")).unwrap();
        let up = async |link: &str, address: &str| {
            netns::add_address(link, address.parse().unwrap()).await.unwrap();
            netns::set_up(link).await.unwrap();
        };
        bed.namespace.run_async(async || up("va", "10.48.0.1/24").await).unwrap();
        let start = async || {
            up("vb", "10.48.0.2/24").await;
            let mut agent = Agent::new(json!({ "client_addr": "0.0.0.0" }));
            agent.start().await;
            agent
        };
        let agent = elsewhere.namespace.run_async(start).unwrap();
        bed.remove(PEERS_FILE);
        let more = format!("\n[consul]\naddress = \"http://{CONSUL}\"\n[platform]\nlease = \"10s\"\n");
        let host = bed.host_file(&more).replace("\"static\"", "\"catalog\"");
        bed.write(HOST_FILE, format!("registration = \"catalog\"\ndriver = {driver:?}\n{host}"));
        bed.write(API_FILE, SEALED);
        Scene { bed, elsewhere, _agent: agent }
    }

    /// What Consul itself says of `path`.
    fn get(&self, path: &str) -> Value {
        let ask = async || {
            let client: Client = client_of(&ConsulConfig::default());
            client.get(&Query::new(path)).await.map_or(Value::Null, |answer| answer.body)
        };
        self.elsewhere.namespace.run_async(ask).unwrap()
    }

    fn renewed(&self) -> Result<Value, String> {
        let found = self.get("/v1/catalog/service/api")[0]["ServiceMeta"]["enmesh-renewed"].clone();
        if found.is_null() { Err("not registered".to_owned()) } else { Ok(found) }
    }

    /// Whether somebody on the host gets through to Consul's port, as root.
    fn passes(&self) -> bool {
        let dial = || TcpStream::connect_timeout(&CONSUL.parse().unwrap(), Duration::from_secs(2)).is_ok();
        self.bed.namespace.run(dial).unwrap()
    }
}

/// With no sidecar that ever becomes live: it registers, and keeps its lease.
fn registers_and_renews(driver: &str) {
    let mut scene = Scene::new(driver);
    let program = scene.bed.envoy();
    let aside = program.with_extension("aside");
    std::fs::rename(&program, &aside).unwrap();
    scene.bed.start();
    let first = until("the registration", LIMIT, || scene.renewed());
    let first = first.unwrap_or_else(|e| panic!("{e}\n{}", scene.bed.log()));
    assert!(
        scene.bed.rules().contains("the host is sealed") || driver == "iptables",
        "{}",
        scene.bed.rules()
    );
    assert!(!scene.passes(), "others of this host are refused");
    // One that has no connection of before.
    scene.bed.kill_daemon();
    scene.bed.start();
    let again = until("a renewal", LIMIT, || {
        let now = scene.renewed()?;
        if now == first { Err("none".to_owned()) } else { Ok(now) }
    });
    again.unwrap_or_else(|e| panic!("{e}\n{}", scene.bed.log()));
    assert!(!scene.passes(), "all the time");
    assert_ne!(scene.bed.status()["services"]["api"]["phase"], "live");

    // Its certificate came as well, so once there is an Envoy the sidecar is live.
    std::fs::rename(&aside, &program).unwrap();
    scene.bed.await_ready();
    assert!(scene.passes(), "by the sidecar");
    // The next daemon finds the sidecar dead, and its way to Consul.
    scene.bed.kill_daemon();
    scene.bed.start();
    scene.bed.await_ready();
    // The sidecar ends before Consul is told.
    let said = scene.bed.run(&["down"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(scene.renewed().is_err(), "it is registered");
}

#[test]
fn a_sealed_host_registers_at_a_consul_elsewhere_and_renews() {
    registers_and_renews("nftables");
}

#[test]
fn a_sealed_host_registers_at_a_consul_elsewhere_and_renews_with_iptables() {
    registers_and_renews("iptables");
}

/// Nobody can be told from others without the capability, and that is what is said.
#[test]
fn without_the_capability_to_mark_it_is_said() {
    let mut scene = Scene::new("nftables");
    std::fs::remove_file(scene.bed.envoy()).unwrap();
    scene.bed.start();
    until("the registration", LIMIT, || scene.renewed()).unwrap();
    scene
        .bed
        .await_status("the rules", LIMIT, |status| (status["converged_count"].as_u64()? > 0).then_some(()));
    assert!(!scene.passes());
    scene.bed.kill_daemon();
    assert!(!scene.passes(), "{}", scene.bed.rules());
    // The kernel lets either of the two mark.
    let without = || {
        for capability in [Capability::CAP_NET_ADMIN, Capability::CAP_NET_RAW] {
            caps::drop(None, CapSet::Bounding, capability).unwrap();
        }
    };
    let said = scene.bed.run_where(&["plan", "--json"], 0, without);
    assert!(said.out.contains("ENM-K008") || said.err.contains("ENM-K008"), "{said:?}");
    // With it, or by who is a user like others, it is not.
    let said = scene.bed.run(&["plan", "--json"]);
    assert!(!said.out.contains("ENM-K00"), "{said:?}");
    let said = scene.bed.run_as(ENVOY_USER + 1, &["plan", "--json"]);
    assert!(!said.out.contains("ENM-K008"), "{said:?}");
}
