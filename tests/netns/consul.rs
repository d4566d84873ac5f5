//! The room `consul` against a real Consul 1.8.7, one in a namespace of each test's own. Needs root.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "in a test a failure is a panic"
)]

#[path = "../support/acl_bed.rs"]
mod acl_bed;
#[path = "../support/consul_bed.rs"]
mod bed;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use acl_bed::{acl, bootstrap, identity, with_policy};
use bed::{Agent, api, client_of, entry, gate, scene};
use enmesh::base::{Fault, Root};
use enmesh::config::ConsulConfig;
use enmesh::consul::{
    AgentRegistry, CatalogRegistry, Client, Entry, FileRegistry, Gate, Health, Key, Node, Query, Registry,
    ServerFacts, Source, Watch,
};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};

fn codes(faults: &[Fault]) -> Vec<&'static str> {
    faults.iter().map(|fault| fault.code).collect()
}

/// The hash of what the agent has of the service and its sidecar, and the catalog's index.
async fn state_of(client: &Client, id: &str) -> (Vec<Option<String>>, Option<u64>) {
    let mut hashes = Vec::new();
    for id in [id.to_owned(), format!("{id}-sidecar-proxy")] {
        hashes.push(client.get(&Query::new(format!("/v1/agent/service/{id}"))).await.unwrap().hash);
    }
    (hashes, client.get(&Query::new("/v1/catalog/services")).await.unwrap().index)
}

async fn check_ids(client: &Client) -> Vec<String> {
    let checks = client.get(&Query::new("/v1/agent/checks")).await.unwrap().body;
    checks.as_object().unwrap().keys().cloned().collect()
}

/// Waits until the agent has brought what it has to its servers.
async fn settle(client: &Client, path: &str, good: impl Fn(&Value) -> bool) {
    let started = Instant::now();
    loop {
        let body = client.get(&Query::new(path)).await.unwrap().body;
        if good(&body) {
            return;
        }
        assert!(started.elapsed() < Duration::from_secs(10), "{path}: {body}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[test]
fn a_registration_comes_stays_changes_and_goes() {
    scene(json!({}), async |agent: &mut Agent| {
        let client = agent.client();
        let registry = AgentRegistry::new(client.clone(), gate());
        let wanted = entry(api());
        assert_eq!(
            registry.observe(&wanted).await.unwrap(),
            ["+ service api-1", "+ service api-1-sidecar-proxy"]
        );
        let outcome = registry.register(&wanted).await.unwrap();
        assert_eq!(
            codes(&outcome.warnings),
            ["ENM-K050"],
            "the mode, and nothing else: {:?}",
            outcome.warnings
        );
        let sidecar = agent.ask(&client, "/v1/agent/service/api-1-sidecar-proxy").await;
        assert_eq!(
            (&sidecar["Port"], &sidecar["Proxy"]["DestinationServiceID"]),
            (&json!(21005), &json!("api-1"))
        );
        assert_eq!(check_ids(&client).await.len(), 4);
        settle(&client, "/v1/catalog/service/api-sidecar-proxy", |body| body[0]["ServicePort"] == 21005)
            .await;

        // A second time there is nothing to do, and nothing is done.
        let before = state_of(&client, "api-1").await;
        assert_eq!(registry.observe(&wanted).await.unwrap(), Vec::<String>::new());
        let again = registry.register(&wanted).await.unwrap();
        assert_eq!((again.differences, codes(&again.warnings)), (vec![], vec!["ENM-K050"]));
        // A program that starts anew knows as much.
        let fresh = AgentRegistry::new(client.clone(), gate());
        assert_eq!(fresh.register(&wanted).await.unwrap().differences, Vec::<String>::new());
        assert_eq!(state_of(&client, "api-1").await, before);
        assert_eq!(registry.list().await.unwrap(), [Key::new("api-1".parse().unwrap())]);

        // Changed: the port and a tag; the checks that are gone are gone.
        let mut changed = api();
        changed["port"] = json!(9090);
        changed["tags"] = json!(["v2"]);
        changed["checks"] = json!([{ "id": "own", "ttl": "1h" }]);
        let changed = entry(changed);
        let lines = registry.register(&changed).await.unwrap().differences;
        assert!(
            lines.contains(&"~ api-1: Port".to_owned())
                && lines.contains(&"- check service:api-1:2".to_owned())
        );
        assert_eq!(registry.observe(&changed).await.unwrap(), Vec::<String>::new());
        assert_eq!(
            check_ids(&client).await,
            ["own", "service:api-1-sidecar-proxy:1", "service:api-1-sidecar-proxy:2"]
        );

        // Renamed, under the same id.
        let mut renamed = api();
        renamed["name"] = json!("shop");
        registry.register(&entry(renamed)).await.unwrap();
        let sidecar = agent.ask(&client, "/v1/agent/service/api-1-sidecar-proxy").await;
        assert_eq!(sidecar["Service"], "shop-sidecar-proxy");
        assert_eq!(sidecar["Proxy"]["DestinationServiceName"], "shop");
        settle(&client, "/v1/catalog/services", |it| it.get("shop").is_some() && it.get("api").is_none())
            .await;

        // Gone, with its sidecar; a second time there is nothing.
        assert!(registry.deregister(&wanted.key).await.unwrap());
        assert_eq!(agent.ask(&client, "/v1/agent/services").await, json!({}));
        assert!(!registry.deregister(&wanted.key).await.unwrap());
        assert_eq!(registry.list().await.unwrap(), []);
    });
}

#[test]
fn drift_is_seen_and_mended() {
    scene(json!({}), async |agent: &mut Agent| {
        let client = agent.client();
        let registry = AgentRegistry::new(client.clone(), gate());
        let wanted = entry(api());
        registry.register(&wanted).await.unwrap();
        let put = async |path: &str, body: Option<Value>| {
            client.put(&Query::new(path), body.as_ref()).await.unwrap();
        };
        // A check taken out; a service overwritten by hand; a sidecar taken out by itself.
        put("/v1/agent/check/deregister/own", None).await;
        assert_eq!(registry.observe(&wanted).await.unwrap(), ["+ check own"]);
        registry.register(&wanted).await.unwrap();
        put("/v1/agent/service/deregister/api-1-sidecar-proxy", None).await;
        assert_eq!(registry.observe(&wanted).await.unwrap(), ["+ service api-1-sidecar-proxy"]);
        registry.register(&wanted).await.unwrap();
        put("/v1/agent/service/register", Some(json!({ "ID": "api-1", "Name": "api", "Port": 1 }))).await;
        let lines = registry.observe(&wanted).await.unwrap();
        assert!(lines.contains(&"~ api-1: Port".to_owned()), "{lines:?}");
        registry.register(&wanted).await.unwrap();
        assert_eq!(registry.observe(&wanted).await.unwrap(), Vec::<String>::new());

        // Maintenance is no drift, and a registration that changes does not end it.
        registry.set_health(&wanted.key, &Health::Critical("draining".to_owned())).await.unwrap();
        assert_eq!(registry.observe(&wanted).await.unwrap(), Vec::<String>::new());
        let mut changed = api();
        changed["port"] = json!(9090);
        let changed = entry(changed);
        registry.register(&changed).await.unwrap();
        let checks = agent.ask(&client, "/v1/agent/checks").await;
        assert_eq!(checks["_service_maintenance:api-1"]["Notes"], "enmesh: draining");
        registry.set_health(&wanted.key, &Health::Passing).await.unwrap();
        assert!(!check_ids(&client).await.contains(&"_service_maintenance:api-1".to_owned()));
        let nobody = Key::new("nobody".parse().unwrap());
        for health in [Health::Passing, Health::Critical("draining".to_owned())] {
            assert_eq!(registry.set_health(&nobody, &health).await.unwrap_err().code, "ENM-K024");
        }

        // The agent loses all it had.
        agent.kill();
        assert_eq!(registry.observe(&changed).await.unwrap_err().code, "ENM-K002");
        agent.start().await;
        assert_eq!(registry.observe(&changed).await.unwrap().len(), 2);
        registry.register(&changed).await.unwrap();
        assert_eq!(registry.observe(&changed).await.unwrap(), Vec::<String>::new());
    });
}

#[test]
fn the_gate_keeps_back_what_this_server_refuses() {
    scene(json!({}), async |agent: &mut Agent| {
        let client = agent.client();
        let (facts, warnings) = ServerFacts::ask(&client).await.unwrap();
        assert_eq!((facts.source, warnings), (Source::Agent, vec![]));
        assert_eq!(facts.version.unwrap().to_string(), "1.8.7");
        assert_eq!(
            (facts.xds_tls, facts.xds_plaintext, facts.sidecar_ports),
            (None, Some(8502), Some((21000, 21255)))
        );
        assert_eq!((facts.datacenter.as_deref(), facts.node.as_deref()), (Some("dc1"), Some("vm")));
        assert!(facts.envoys.contains(&"1.14.5".to_owned()));
        assert_eq!(Gate::of(&facts), gate());

        // Without the gate the server refuses, and the refusal has its code.
        let body =
            json!({ "Name": "x", "Connect": { "SidecarService": { "Proxy": { "Mode": "transparent" } } } });
        let error = client.put(&Query::new("/v1/agent/service/register"), Some(&body)).await.unwrap_err();
        let fault = Fault::from(error);
        assert_eq!(fault.code, "ENM-K025");
        assert!(fault.message.contains("`Mode`"), "{fault}");

        // A gate that knows no version learns from that.
        let mut service = api();
        service["locality"] = json!({ "region": "eu" });
        let wanted = entry(service.clone());
        let registry = AgentRegistry::new(client.clone(), Gate::default());
        let outcome = registry.register(&wanted).await.unwrap();
        assert_eq!(codes(&outcome.warnings), ["ENM-K050", "ENM-K050"]);
        assert_eq!(registry.observe(&wanted).await.unwrap(), Vec::<String>::new());
        // Both ways lead to the same registration.
        let knowing = AgentRegistry::new(client.clone(), gate());
        assert_eq!(knowing.observe(&wanted).await.unwrap(), Vec::<String>::new());
        // A field that nobody knows is no matter of releases.
        service["zed"] = json!(1);
        let fault = registry.register(&entry(service)).await.unwrap_err();
        assert!(fault.code == "ENM-K025" && fault.message.contains("`Zed`"), "{fault}");

        // What the server would take, and choke on later, is not sent.
        let mut twice = api();
        let upstream = json!({ "destination_name": "db", "local_bind_port": 1 });
        twice["connect"]["sidecar_service"]["proxy"]["upstreams"].as_array_mut().unwrap().push(upstream);
        assert_eq!(registry.register(&entry(twice)).await.unwrap_err().code, "ENM-K040");
        let mut script = api();
        script["checks"] = json!([{ "args": ["/bin/true"], "interval": "10s" }]);
        assert_eq!(registry.register(&entry(script)).await.unwrap_err().code, "ENM-K030");
    });
}

#[test]
fn a_watch_wakes_when_something_changes() {
    scene(json!({}), async |agent: &mut Agent| {
        let client = agent.client();
        let registry = AgentRegistry::new(client.clone(), gate());
        let wanted = entry(api());
        registry.register(&wanted).await.unwrap();
        let wait = Duration::from_secs(60);
        let mut instances = Watch::by_index(Query::new("/v1/health/connect/api"), wait);
        let mut own = Watch::by_hash(Query::new("/v1/agent/service/api-1"), wait);
        settle(&client, "/v1/health/connect/api", |body| body[0]["Service"]["Port"] == 21005).await;
        let first = instances.next(&client).await.unwrap();
        assert_eq!(first[0]["Service"]["Port"], 21005);
        assert_eq!(own.next(&client).await.unwrap()["Port"], 8080);

        // Nothing changes, nothing comes.
        let early = tokio::time::timeout(Duration::from_millis(300), instances.next(&client)).await;
        assert!(early.is_err());
        let change = async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let mut changed = api();
            changed["port"] = json!(9090);
            changed["connect"]["sidecar_service"]["port"] = json!(21006);
            registry.register(&entry(changed)).await.unwrap();
        };
        let started = Instant::now();
        let woken = async {
            loop {
                let body = instances.next(&client).await.unwrap();
                if body[0]["Service"]["Port"] == 21006 {
                    return;
                }
            }
        };
        let ((), own, ()) = tokio::join!(woken, own.next(&client), change);
        assert_eq!(own.unwrap()["Port"], 9090);
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    });
}

#[test]
fn the_file_is_written_and_read() {
    scene(json!({}), async |agent: &mut Agent| {
        let client = agent.client();
        let root = Root::new(agent.folder.path());
        let registry = FileRegistry::new(client.clone(), gate(), &root, None);
        let path = root.join("/etc/consul.d/service-registration.json");
        let (one, mut two) = (entry(api()), api());
        two["id"] = json!("web-1");
        two["name"] = json!("web");
        two["checks"] = json!([]);
        two["connect"]["sidecar_service"]["port"] = json!(21006);
        let two = entry(two);
        let read = || serde_json::from_slice::<Value>(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(registry.register(&one).await.unwrap().differences.len(), 1);
        assert_eq!(read()["service"]["name"], "api");
        settle(&client, "/v1/agent/services", |it| it.get("api-1-sidecar-proxy").is_some()).await;
        registry.register(&two).await.unwrap();
        assert_eq!(read()["services"][1]["name"], "web");
        for entry in [&one, &two] {
            assert_eq!(registry.observe(entry).await.unwrap(), Vec::<String>::new());
            assert_eq!(registry.register(entry).await.unwrap().differences, Vec::<String>::new());
        }
        assert_eq!(registry.list().await.unwrap(), [one.key.clone(), two.key.clone()]);

        // Taken out behind the file's back: read again.
        client.put(&Query::new("/v1/agent/service/deregister/web-1"), None).await.unwrap();
        assert_eq!(registry.observe(&two).await.unwrap(), ["~ service web-1 at the agent"]);
        registry.register(&two).await.unwrap();
        assert_eq!(registry.observe(&two).await.unwrap(), Vec::<String>::new());

        // What the agent refuses does not stay in its folder.
        let before = fs::read(&path).unwrap();
        let mut bad = api();
        bad["zed"] = json!(1);
        let fault = registry.register(&entry(bad)).await.unwrap_err();
        assert!(fault.code.starts_with("ENM-K") && fault.message.contains("zed"), "{fault}");
        assert_eq!(fs::read(&path).unwrap(), before);

        // Without an agent the file is written all the same.
        agent.kill();
        assert!(registry.deregister(&one.key).await.unwrap());
        assert_eq!(read()["service"]["name"], "web");
        let outcome = registry.register(&one).await.unwrap();
        assert_eq!(codes(&outcome.warnings), ["ENM-K050", "ENM-K054"]);
        assert!(registry.deregister(&one.key).await.unwrap() && registry.deregister(&two.key).await.unwrap());
        assert!(!path.exists());
    });
}

#[test]
fn what_the_field_registers_today_is_taken() {
    scene(json!({}), async |agent: &mut Agent| {
        let registry = AgentRegistry::new(agent.client(), gate());
        let vectors = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors");
        let mut seen = 0;
        for form in ["legacy-annotations", "legacy-plain"] {
            for folder in fs::read_dir(vectors.join(form)).unwrap() {
                let folder = folder.unwrap().path();
                let config = enmesh::config::load_path(&folder.join("service-config.json"));
                let service = enmesh::plan::registration(&config.services[0])["service"].clone();
                let wanted = entry(service);
                let outcome = registry.register(&wanted).await;
                let outcome = outcome.unwrap_or_else(|fault| panic!("{}: {fault}", folder.display()));
                let known = ["ENM-K050", "ENM-K051"];
                assert!(codes(&outcome.warnings).iter().all(|code| known.contains(code)), "{outcome:?}");
                assert_eq!(
                    registry.observe(&wanted).await.unwrap(),
                    Vec::<String>::new(),
                    "{}",
                    folder.display()
                );
                assert!(registry.deregister(&wanted.key).await.unwrap());
                seen += 1;
            }
        }
        assert_eq!(seen, 6);
    });
}

/// A token that can only look: what succeeds with it has written nothing.
async fn reader(agent: &Agent, operator: &Client) -> Client {
    let rules = "service_prefix \"\" { policy = \"read\" } node_prefix \"\" { policy = \"read\" }";
    with_policy(agent, operator, "look", rules).await
}

#[test]
fn the_catalog_takes_a_service_with_no_more_than_its_identity() {
    scene(acl(), async |agent: &mut Agent| {
        let operator = bootstrap(agent).await;
        let mine = identity(agent, &operator, "api").await;
        let node = Node { name: "group-1".to_owned(), address: "10.0.0.9".parse().unwrap() };
        let registry = CatalogRegistry::new(mine.clone(), gate(), node.clone());
        let wanted = entry(api());

        // The node has to be there: making it takes more.
        assert_eq!(registry.register(&wanted).await.unwrap_err().code, "ENM-K041");
        let body =
            json!({ "Node": node.name, "Address": node.address, "NodeMeta": { "synthetic-node": "true" } });
        operator.put(&Query::new("/v1/catalog/register"), Some(&body)).await.unwrap();
        let outcome = registry.register(&wanted).await.unwrap();
        assert_eq!(outcome.differences, ["+ service api-1", "+ service api-1-sidecar-proxy"]);
        assert_eq!(codes(&outcome.warnings), ["ENM-K050"]);

        // Critical until somebody says otherwise, and then it stays what was said.
        let statuses = async || {
            let body = agent.ask(&mine, "/v1/health/connect/api").await;
            assert_eq!(
                (&body[0]["Service"]["Port"], &body[0]["Service"]["ID"]),
                (&json!(21005), &json!("api-1-sidecar-proxy"))
            );
            let checks = body[0]["Checks"].as_array().unwrap().clone();
            checks.iter().map(|check| check["Status"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(statuses().await, ["critical"]);
        registry.set_health(&wanted.key, &Health::Passing).await.unwrap();
        assert_eq!(statuses().await, ["passing"]);
        let index = async || operator.get(&Query::new("/v1/catalog/services")).await.unwrap().index;
        let before = index().await;
        assert_eq!(registry.register(&wanted).await.unwrap().differences, Vec::<String>::new());
        assert_eq!(index().await, before, "nothing was written");
        let looking = CatalogRegistry::new(reader(agent, &operator).await, gate(), node.clone());
        assert_eq!(looking.register(&wanted).await.unwrap().differences, Vec::<String>::new());
        let mut changed = api();
        changed["tags"] = json!(["v2"]);
        registry.register(&entry(changed)).await.unwrap();
        assert_eq!(statuses().await, ["passing"]);
        assert_eq!(registry.list().await.unwrap(), std::slice::from_ref(&wanted.key));

        // Another service's token may not.
        let other = identity(agent, &operator, "web").await;
        let foreign = CatalogRegistry::new(other, gate(), node.clone());
        let fault = foreign.register(&wanted).await.unwrap_err();
        assert_eq!(fault.code, "ENM-K021", "{fault}");

        // A client only: no proxy in the catalog, and one that was there goes.
        let mut client_only = api();
        client_only.as_object_mut().unwrap().remove("port");
        client_only["connect"]["sidecar_service"].as_object_mut().unwrap().remove("port");
        let outcome = registry.register(&entry(client_only)).await.unwrap();
        assert!(outcome.differences.contains(&"- service api-1-sidecar-proxy".to_owned()), "{outcome:?}");
        assert_eq!(codes(&outcome.warnings), ["ENM-K050", "ENM-K052"]);
        assert!(
            registry.deregister(&wanted.key).await.unwrap()
                && !registry.deregister(&wanted.key).await.unwrap()
        );
        assert_eq!(registry.set_health(&wanted.key, &Health::Passing).await.unwrap_err().code, "ENM-K024");
    });
}

#[test]
fn tokens_and_what_they_may_not() {
    scene(acl(), async |agent: &mut Agent| {
        let operator = bootstrap(agent).await;
        let wanted: Entry = entry(api());
        let fault = |registry: AgentRegistry| {
            let wanted = wanted.clone();
            async move { registry.register(&wanted).await.unwrap_err() }
        };
        let wrong = agent.client_with("11111111-2222-3333-4444-555555555555");
        let said = fault(AgentRegistry::new(wrong, gate())).await;
        assert_eq!((said.code, said.class.exit_code()), ("ENM-K022", 77));
        let anonymous = fault(AgentRegistry::new(agent.client(), gate())).await;
        assert_eq!((anonymous.code, anonymous.class.exit_code()), ("ENM-K021", 77));

        // The identity of the service is enough for the agent, though not to ask what it is; the
        // catalog tells the version.
        // A server enters itself there a moment after it can make tokens.
        let mine = identity(agent, &operator, "api").await;
        settle(&operator, "/v1/catalog/service/consul", |it| it[0]["ServiceMeta"]["version"].is_string())
            .await;
        let (facts, warnings) = ServerFacts::ask(&mine).await.unwrap();
        assert_eq!((facts.source, warnings), (Source::Catalog, vec![]));
        assert_eq!(Gate::of(&facts), gate());
        let registry = AgentRegistry::new(mine.clone(), Gate::of(&facts));
        registry.register(&wanted).await.unwrap();
        assert_eq!(registry.observe(&wanted).await.unwrap(), Vec::<String>::new());
        let looking = AgentRegistry::new(reader(agent, &operator).await, gate());
        assert_eq!(looking.register(&wanted).await.unwrap().differences, Vec::<String>::new());
        settle(&operator, "/v1/catalog/service/api-sidecar-proxy", |it| {
            it[0]["ServiceID"] == "api-1-sidecar-proxy"
        })
        .await;

        // The file carries the token, and is nobody else's to read; the reload takes more.
        let root = Root::new(agent.folder.path());
        let file = FileRegistry::new(mine.clone(), gate(), &root, None);
        let mut other = api();
        other["id"] = json!("api-2");
        other["checks"] = json!([]);
        let outcome = file.register(&entry(other)).await.unwrap();
        assert_eq!(codes(&outcome.warnings), ["ENM-K050", "ENM-K054"]);
        let path = root.join("/etc/consul.d/service-registration.json");
        let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&path).unwrap().permissions());
        assert_eq!(mode & 0o7777, 0o640);
        operator.put(&Query::new("/v1/agent/reload"), None).await.unwrap();
        // (A development agent forgets at a reload what came over the API: it has no data folder.)
        settle(&operator, "/v1/catalog/service/api", |it| it[0]["ServiceID"] == "api-2").await;

        // Nobody: not even the version.
        let (facts, warnings) = ServerFacts::ask(&agent.client()).await.unwrap();
        assert_eq!((facts.source, codes(&warnings)), (Source::Nobody, vec!["ENM-K055"]));
    });
}

/// A CA, and a certificate of it for 127.0.0.1 with its key, as PEM files in `folder`.
fn certificates(folder: &Path) {
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_key = KeyPair::generate().unwrap();
    fs::write(folder.join("ca.pem"), ca.self_signed(&ca_key).unwrap().pem()).unwrap();
    let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &Issuer::new(ca, ca_key)).unwrap();
    fs::write(folder.join("cert.pem"), certificate.pem()).unwrap();
    fs::write(folder.join("key.pem"), key.serialize_pem()).unwrap();
}

#[test]
fn https_and_unix_sockets() {
    let folder = tempfile::tempdir().unwrap();
    certificates(folder.path());
    let file = |name: &str| folder.path().join(name);
    let settings = json!({
        "ports": { "https": 8501 }, "verify_incoming_https": true,
        "ca_file": file("ca.pem"), "cert_file": file("cert.pem"), "key_file": file("key.pem"),
        "addresses": { "http": format!("127.0.0.1 unix://{}", file("http.sock").display()) },
    });
    scene(settings, async |_: &mut Agent| {
        let settings = |address: &str| ConsulConfig {
            address: Some(address.to_owned()),
            ca_file: Some(file("ca.pem")),
            ..ConsulConfig::default()
        };
        let ask = async |config: ConsulConfig| ServerFacts::ask(&client_of(&config)).await;
        let code = async |config| Fault::from(ask(config).await.unwrap_err()).code;
        let with_certificate = ConsulConfig {
            cert_file: Some(file("cert.pem")),
            key_file: Some(file("key.pem")),
            ..settings("https://127.0.0.1:8501")
        };
        assert!(ask(with_certificate).await.is_ok());
        assert!(ask(settings(&format!("unix://{}", file("http.sock").display()))).await.is_ok());
        assert_eq!(code(settings("https://127.0.0.1:8501")).await, "ENM-K013");
        assert_eq!(code(settings("http://127.0.0.1:8501")).await, "ENM-K017");
        assert_eq!(code(settings("https://127.0.0.1:8500")).await, "ENM-K015");
        assert_eq!(code(settings("http://127.0.0.1:9")).await, "ENM-K002");
    });
}
