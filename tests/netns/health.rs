//! Checks that enmesh runs, brought into the catalog of a real Consul 1.8.7. Needs root.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "in a test a failure is a panic"
)]

#[path = "../support/consul_bed.rs"]
mod bed;

use std::collections::BTreeMap;
use std::time::Duration;

use bed::{Agent, entry, gate, scene};
use enmesh::base::exec::User;
use enmesh::config::value::{ServiceId, Span};
use enmesh::config::{Check, CheckStatus};
use enmesh::consul::{
    AgentRegistry, CatalogRegistry, CheckReport, Client, Gate, Health, Key, Node, Query, Registry, Vitals,
};
use enmesh::health::Checker;
use enmesh::plan::registration;
use serde_json::{Value, json};
use tokio::net::TcpListener;

fn service(id: &str, port: u16) -> Value {
    json!({ "id": id, "name": id, "port": port, "address": "10.0.0.5",
        "connect": { "sidecar_service": { "port": port + 1000 } } })
}

fn key(id: &str) -> Key {
    Key::new(id.parse().unwrap())
}

fn report(id: &str, status: CheckStatus, output: &str) -> CheckReport {
    CheckReport { id: id.to_owned(), name: format!("the {id}"), status, output: output.to_owned() }
}

fn checks_only(checks: Vec<CheckReport>) -> Vitals {
    Vitals { live: None, checks }
}

fn registry(client: &Client) -> CatalogRegistry {
    let node = Node { name: "vm-1".to_owned(), address: "10.0.0.5".parse().unwrap() };
    CatalogRegistry::new(client.clone(), gate(), node)
}

/// Status by id of the node's checks, with the index of their last change.
async fn checks(client: &Client) -> (BTreeMap<String, String>, Option<u64>) {
    let answer = client.get(&Query::new("/v1/health/node/vm-1")).await.unwrap();
    let text = |check: &Value, name: &str| check[name].as_str().unwrap().to_owned();
    let list = answer.body.as_array().unwrap().clone();
    (list.iter().map(|check| (text(check, "CheckID"), text(check, "Status"))).collect(), answer.index)
}

#[test]
fn only_what_changed_is_written_and_all_of_it_at_once() {
    scene(json!({}), async |agent: &mut Agent| {
        let client = agent.client();
        let registry = registry(&client);
        for (id, port) in [("api", 8080), ("web", 8090)] {
            registry.register(&entry(service(id, port))).await.unwrap();
        }
        // Somebody else's check of the same service.
        let theirs = json!({ "Node": "vm-1", "Address": "10.0.0.5", "SkipNodeUpdate": true,
            "Check": { "CheckID": "theirs", "Name": "theirs", "ServiceID": "api", "Status": "passing" } });
        client.put(&Query::new("/v1/catalog/register"), Some(&theirs)).await.unwrap();

        use CheckStatus::{Critical, Passing, Warning};
        let mut batch = BTreeMap::from([
            (key("api"), checks_only(vec![report("http", Passing, "200"), report("disk", Warning, "90 %")])),
            (key("web"), checks_only(vec![report("http", Critical, "refused")])),
            (key("nobody"), checks_only(vec![report("http", Passing, "")])),
        ]);
        let pushed = registry.set_checks(&batch).await.unwrap();
        assert_eq!(pushed.written, ["enmesh:api:http", "enmesh:api:disk", "enmesh:web:http"]);
        assert_eq!((pushed.removed, pushed.unknown), (vec![], vec![key("nobody")]));
        let listed = client.get(&Query::new("/v1/health/node/vm-1")).await.unwrap().body;
        let list = listed.as_array().unwrap();
        let indices: Vec<&Value> = list
            .iter()
            .filter(|check| pushed.written.iter().any(|id| check["CheckID"] == id.as_str()))
            .map(|check| &check["ModifyIndex"])
            .collect();
        assert!(indices.windows(2).all(|two| two[0] == two[1]), "one write: {indices:?}");

        // A second time nothing is written.
        let before = checks(&client).await;
        assert_eq!(registry.set_checks(&batch).await.unwrap().written, Vec::<String>::new());
        assert_eq!(checks(&client).await, before);

        // One changed, one gone, and the rest is left alone.
        batch.insert(key("api"), checks_only(vec![report("http", Critical, "503")]));
        let pushed = registry.set_checks(&batch).await.unwrap();
        assert_eq!(pushed.written, ["enmesh:api:http"]);
        assert_eq!(pushed.removed, ["enmesh:api:disk"]);
        let (now, _) = checks(&client).await;
        assert_eq!(now["enmesh:api:http"], "critical");
        assert_eq!(now["theirs"], "passing");
        assert_eq!(now["enmesh:api"], "critical", "whether the sidecar lives is not these checks' matter");
        assert!(!now.contains_key("enmesh:api:disk"));

        // Registering again keeps them, and all of them are no drift.
        registry.register(&entry(service("api", 8080))).await.unwrap();
        assert_eq!(registry.observe(&entry(service("api", 8080))).await.unwrap(), Vec::<String>::new());
        assert_eq!(checks(&client).await.0["enmesh:api:http"], "critical");

        // With whether the sidecar lives, in one write: others ask for the sidecar's health, so its check
        // is as bad as the worst of the app's.
        let mut vitals = batch[&key("api")].clone();
        vitals.live = Some(Health::Passing);
        let whole = BTreeMap::from([(key("api"), vitals)]);
        let pushed = registry.set_checks(&whole).await.unwrap();
        assert_eq!(pushed.written, ["enmesh:api", "enmesh:api-sidecar-proxy"]);
        let (now, _) = checks(&client).await;
        assert_eq!(
            (now["enmesh:api"].as_str(), now["enmesh:api-sidecar-proxy"].as_str()),
            ("passing", "critical")
        );
        // What the catalog was told is found there by who starts anew.
        let known = registry.known_checks(&[key("api"), key("web")].into()).await.unwrap();
        let id = |id: &str| (id.parse::<ServiceId>().unwrap(), "http".to_owned());
        assert_eq!(known.keys().cloned().collect::<Vec<_>>(), [id("api"), id("web")]);
        assert_eq!(known[&id("api")], (Critical, "503".to_owned()));

        // Live, and at the end all of it critical in one write.
        let keys = [key("api"), key("web"), key("nobody")];
        registry.set_health_of_all(&keys, &Health::Passing).await.unwrap();
        assert_eq!(checks(&client).await.0["enmesh:web-sidecar-proxy"], "passing");
        registry.set_health_of_all(&keys, &Health::Critical("stopping".to_owned())).await.unwrap();
        let (now, _) = checks(&client).await;
        for id in ["api", "api-sidecar-proxy", "web", "web-sidecar-proxy"] {
            assert_eq!(now[&format!("enmesh:{id}")], "critical");
        }
        // Checks go with their service.
        registry.deregister(&key("web")).await.unwrap();
        assert!(!checks(&client).await.0.contains_key("enmesh:web:http"));
        // The node goes with its last service; one that still has any stays.
        assert!(!registry.remove_empty_node().await.unwrap());
        registry.deregister(&key("api")).await.unwrap();
        assert!(registry.remove_empty_node().await.unwrap());
        assert_eq!(client.get(&Query::new("/v1/catalog/node/vm-1")).await.unwrap().body, Value::Null);
    });
}

#[test]
fn an_app_that_goes_is_out_of_the_catalogs_answers() {
    scene(json!({}), async |agent: &mut Agent| {
        let client = agent.client();
        let registry = registry(&client);
        registry.register(&entry(service("api", 8080))).await.unwrap();
        registry.set_health(&key("api"), &Health::Passing).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:8080").await.unwrap();
        let interval = Some(Span(Duration::from_millis(50)));
        let check = Check { tcp: Some("127.0.0.1:8080".to_owned()), interval, ..Check::default() };
        let id: ServiceId = "api".parse().unwrap();
        let (checker, faults) = Checker::start(&BTreeMap::from([(id.clone(), vec![check])]), None);
        assert_eq!(faults, []);
        let push = async || {
            let mut batch: BTreeMap<Key, Vitals> = BTreeMap::new();
            for ((service, check), state) in checker.states() {
                batch.entry(Key::new(service)).or_default().checks.push(CheckReport {
                    id: check,
                    name: state.name,
                    status: state.status,
                    output: state.output,
                });
            }
            registry.set_checks(&batch).await.unwrap();
        };
        let healthy = async |count: usize| {
            for _ in 0..100 {
                push().await;
                let answer =
                    client.get(&Query::new("/v1/health/service/api").with("passing", "1")).await.unwrap();
                if answer.body.as_array().unwrap().len() == count {
                    return;
                }
                let _ = tokio::time::timeout(Duration::from_millis(100), checker.changed()).await;
            }
            panic!("{:?}, and the catalog never has {count} of them", checker.states());
        };
        healthy(1).await;
        drop(listener);
        healthy(0).await;
        let _again = TcpListener::bind("127.0.0.1:8080").await.unwrap();
        healthy(1).await;
    });
}

/// A service file with a check of each kind, and with all that can be said about them.
const EVERY_KIND: &str = r#"
name = "api"
port = 8080
[[check]]
id = "http"
notes = "the shop's own"
http = "https://127.0.0.1:8080/health"
interval = "10s"
timeout = "1m30s"
method = "POST"
header = { x-probe = ["1", "2"] }
body = "ping"
disable_redirects = true
tls_server_name = "api.example"
tls_skip_verify = true
success_before_passing = 2
failures_before_warning = 2
failures_before_critical = 3
deregister_critical_service_after = "1h"
[[check]]
id = "tcp"
tcp = "127.0.0.1:8080"
tcp_use_tls = true
interval = "10s"
[[check]]
id = "grpc"
grpc = "127.0.0.1:8080/pay"
grpc_use_tls = true
interval = "10s"
[[check]]
id = "ttl"
ttl = "1h"
[[check]]
id = "alias"
alias_service = "db"
[[check]]
id = "udp"
udp = "127.0.0.1:53"
interval = "10s"
[[check]]
id = "h2ping"
h2ping = "127.0.0.1:8080"
h2ping_use_tls = false
interval = "10s"
[[check]]
id = "os"
os_service = "spooler"
interval = "10s"
"#;

#[test]
fn an_agent_gets_checks_of_every_kind_that_it_knows() {
    scene(json!({}), async |agent: &mut Agent| {
        let client = agent.client();
        let folder = agent.folder.path().join("tree/etc/enmesh/services");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("api.toml"), EVERY_KIND).unwrap();
        let root = enmesh::base::Root::new(agent.folder.path().join("tree"));
        let config = enmesh::config::load(&root, &|_| None);
        assert_eq!(config.errors, []);
        let mut definition = registration(&config.services[0])["service"].clone();
        definition["address"] = json!("127.0.0.1");
        let wanted = entry(definition);
        // By its version, and by what it refuses.
        for gate in [gate(), Gate::default()] {
            let registry = AgentRegistry::new(client.clone(), gate);
            registry.deregister(&wanted.key).await.unwrap();
            let outcome = registry.register(&wanted).await.unwrap();
            let left_out: Vec<_> =
                outcome.warnings.iter().filter(|it| it.message.contains("checks.")).collect();
            assert_eq!(left_out.len(), 7, "{left_out:#?}");
            let checks = agent.ask(&client, "/v1/agent/checks").await;
            let ids: Vec<_> = checks
                .as_object()
                .unwrap()
                .iter()
                .filter(|(_, check)| check["ServiceID"] == "api")
                .map(|(id, _)| id.as_str())
                .collect();
            assert_eq!(ids, ["alias", "grpc", "http", "tcp", "ttl"]);
            assert_eq!(checks["http"]["Notes"], "the shop's own");
            assert_eq!(registry.observe(&wanted).await.unwrap(), Vec::<String>::new());
        }
    });
}

#[test]
fn a_program_runs_as_who_it_is_told_and_has_no_groups_of_ours() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let script = r#"test "$(id -u) $(id -G)" = "65534 65533" && echo as told"#;
        let command = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        let check = Check { exec: Some(command), interval: Some(Span::seconds(60)), ..Check::default() };
        let id: ServiceId = "api".parse().unwrap();
        let user = User { uid: 65534, gid: 65533 };
        let (checker, _) = Checker::start(&BTreeMap::from([(id, vec![check])]), Some(user));
        // That it is there, and that it was run.
        for _ in 0..2 {
            tokio::time::timeout(Duration::from_secs(20), checker.changed()).await.unwrap();
        }
        let state = checker.states().pop_first().unwrap().1;
        assert_eq!((state.status, state.output.as_str()), (CheckStatus::Passing, "as told"));
    });
}
