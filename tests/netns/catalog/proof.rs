//! Names, SNI and SPIFFE ids are Consul's: its own proxy, a sidecar of `catalog` and one of `static`
//! call each other. And what happens to real sidecars while Consul changes.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use enmesh::base::Root;
use enmesh::config::StaticConfig;
use enmesh::config::value::Port;
use enmesh::envoy::{Layout, Published, Publisher};
use enmesh::mesh::{CatalogMesh, MeshSource, StaticMesh};
use enmesh::plan::{MeshView, ServicePlan};
use serde_json::{Value, json};

use crate::bed::*;
use crate::consul::{Agent, scene};
use crate::envoy::{Call, Sidecar, app, call, tree};
use crate::scenarios::{service, upstream};

/// A service of this host with a sidecar: it listens on `inbound` for others, and reaches `to` by
/// explicit upstreams, each on a port of its own.
struct Host {
    plan: ServicePlan,
    publisher: Publisher,
    root: Root,
    _tree: tempfile::TempDir,
}

impl Host {
    fn new(id: &str, app: u16, inbound: u16, to: &[(&str, u16)]) -> Host {
        let (tree, root) = tree();
        let mut plan = service(id);
        plan.sidecar.program = crate::envoy::envoy();
        plan.sidecar.outbound_port = None;
        plan.sidecar.inbound_port = Some(inbound);
        plan.sidecar.drain = enmesh::config::value::Span::seconds(1);
        plan.port = Port::new(app);
        plan.upstreams = to.iter().map(|(name, port)| upstream(name, *port)).collect();
        Host { plan, publisher: Publisher::new(root.clone()), root, _tree: tree }
    }

    /// Brings the files to what `mesh` says now.
    async fn publish(&mut self, mesh: &dyn MeshSource) -> (MeshView, Published) {
        let view = mesh.view().await.unwrap();
        self.plan.identity = view.spiffe_id(&self.plan.name);
        let credentials =
            mesh.credentials(&self.plan.id, &self.plan.identity, SystemTime::now()).await.unwrap();
        let published = self.publisher.publish(&self.plan, &view, Some(&credentials)).await.unwrap();
        (view, published)
    }

    /// Publishes whenever something changed, until `good`; how long that took.
    async fn until(&mut self, mesh: &CatalogMesh, what: &str, good: impl AsyncFn() -> bool) -> Duration {
        let begun = Instant::now();
        loop {
            let (view, _) = self.publish(mesh).await;
            assert!(begun.elapsed() < PATIENCE, "{what}: {view:#?}, {:?}", mesh.link());
            if good().await {
                return begun.elapsed();
            }
            let _ = tokio::time::timeout(Duration::from_millis(100), mesh.changed()).await;
        }
    }

    fn file(&self, path: &str) -> String {
        fs::read_to_string(Layout::new(&self.plan, &self.root).path(path)).unwrap()
    }
}

/// Consul's own proxy.
struct ConsulProxy(Child);

impl ConsulProxy {
    #[expect(clippy::disallowed_methods, reason = "a long-running child of the test's own")]
    fn start(agent: &Agent, arguments: &[&str]) -> ConsulProxy {
        let log = fs::File::create(agent.folder.path().join("proxy.log")).unwrap();
        let child = Command::new(tool("consul"))
            .args(["connect", "proxy"])
            .args(arguments)
            .env_clear()
            .stdin(Stdio::null())
            .stderr(log.try_clone().unwrap())
            .stdout(log)
            .spawn();
        ConsulProxy(child.unwrap())
    }
}

impl Drop for ConsulProxy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until `address` is answered by `wanted`.
async fn answered(address: &str, wanted: Option<&str>) -> Duration {
    let begun = Instant::now();
    loop {
        let answer = call(address).await;
        if answer.as_deref() == wanted {
            return begun.elapsed();
        }
        assert!(begun.elapsed() < PATIENCE, "{address}: {answer:?} and not {wanted:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Registers a service with a sidecar that somebody else runs.
async fn announce(service: &str, app: u16, sidecar: u16) {
    let body = json!({
        "Name": service, "Port": app, "Connect": { "SidecarService": {
            "Address": "127.0.0.1", "Port": sidecar, "Checks": [{ "TTL": "1h", "Status": "passing" }],
        } },
    });
    consul("PUT", "/v1/agent/service/register", body).await;
}

#[test]
fn consuls_own_proxy_a_static_sidecar_and_ours_call_each_other() {
    scene(json!({}), async |agent: &mut Agent| {
        app("127.0.0.1:8081", "api").await;
        app("127.0.0.1:8082", "go").await;
        app("127.0.0.1:8083", "files").await;
        announce("api", 8081, 21001).await;
        announce("go", 8082, 21002).await;
        announce("files", 8083, 21003).await;
        intend("*", "*", "deny").await;
        for (source, destination) in [
            ("go", "api"),
            ("api", "go"),
            ("files", "api"),
            ("api", "files"),
            ("files", "go"),
            ("go", "files"),
        ] {
            intend(source, destination, "allow").await;
        }

        // Ours.
        let (mesh, _leaves) = mesh_of(agent, &[local("api", &["go", "files"], false)]);
        let mut api = Host::new("api", 8081, 21001, &[("go", 9002), ("files", 9003)]);
        let (view, _) = api.publish(&mesh).await;
        // Consul's.
        let _go = ConsulProxy::start(agent, &["-sidecar-for=go", "-http-addr=127.0.0.1:8500"]);
        let _go_out =
            ConsulProxy::start(agent, &["-service=go", "-upstream=api:9101", "-upstream=files:9103"]);
        // One of `static` that has the same CA: its certificate was issued by Consul and copied there.
        let mut files = Host::new("files", 8083, 21003, &[("api", 9201), ("go", 9202)]);
        let peers = static_of(&files.root, &view).await;
        files.publish(&peers).await;

        let sidecar = Sidecar::start(&api.plan, &api.root).await;
        let _files = Sidecar::start(&files.plan, &files.root).await;
        for (address, who) in [
            ("127.0.0.1:9002", "go"),
            ("127.0.0.1:9003", "files"),
            ("127.0.0.1:9101", "api"),
            ("127.0.0.1:9103", "files"),
            ("127.0.0.1:9201", "api"),
            ("127.0.0.1:9202", "go"),
        ] {
            answered(address, Some(who)).await;
        }
        assert_eq!(sidecar.admin.decisions().await.unwrap().denied, 0);

        // What Consul says of callers is enforced here, whoever calls.
        let deny =
            json!({ "SourceName": "go", "DestinationName": "api", "SourceType": "consul", "Action": "deny" });
        let id = id_of("go", "api").await;
        consul("PUT", &format!("/v1/connect/intentions/{id}"), deny).await;
        let refused = api.until(&mesh, "denied", async || call("127.0.0.1:9101").await.is_none()).await;
        assert_eq!(call("127.0.0.1:9201").await.as_deref(), Some("api"), "the other may still");
        assert!(sidecar.admin.decisions().await.unwrap().denied > 0);
        forget_intention(&id).await;
        intend("go", "api", "allow").await;
        let allowed = api
            .until(&mesh, "allowed", async || call("127.0.0.1:9101").await.as_deref() == Some("api"))
            .await;
        println!("from an intention to a refused call {refused:?}, to a served one {allowed:?}");
    });
}

async fn id_of(source: &str, destination: &str) -> String {
    let all = consul("GET", "/v1/connect/intentions", Value::Null).await;
    let one = all.as_array().unwrap().iter();
    let mut one = one.filter(|it| it["SourceName"] == source && it["DestinationName"] == destination);
    one.next().unwrap()["ID"].as_str().unwrap().to_owned()
}

/// A host of `static` with a certificate of Consul's, and a peers file that says what Consul knows.
async fn static_of(root: &Root, view: &MeshView) -> StaticMesh {
    let folder = root.join("/var/lib/enmesh/ca");
    fs::create_dir_all(&folder).unwrap();
    let leaf = consul("GET", "/v1/agent/connect/ca/leaf/files", Value::Null).await;
    let roots = consul("GET", "/v1/agent/connect/ca/roots", Value::Null).await;
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    fs::write(folder.join("root.pem"), text(&roots["Roots"][0]["RootCert"])).unwrap();
    fs::write(folder.join("files.pem"), text(&leaf["CertPEM"])).unwrap();
    fs::write(folder.join("files.key"), text(&leaf["PrivateKeyPEM"])).unwrap();
    let peers = root.join("/etc/enmesh/peers.toml");
    fs::create_dir_all(peers.parent().unwrap()).unwrap();
    let mut text = format!("trust_domain = {:?}\ndatacenter = \"dc1\"\n", view.trust_domain);
    for (name, port, allow) in [("api", 21001, ""), ("go", 21002, ""), ("files", 21003, "\"api\", \"go\"")] {
        text += &format!(
            "[[service]]\nname = \"{name}\"\nallow = [{allow}]\ninstance = [{{ address = \"127.0.0.1\", port = {port} }}]\n"
        );
    }
    fs::write(peers, text).unwrap();
    StaticMesh::new(root.clone(), StaticConfig::default())
}

#[test]
fn changes_reach_envoy_and_certificates_rotate_under_open_connections() {
    scene(json!({}), async |agent: &mut Agent| {
        app("127.0.0.1:8081", "api").await;
        announce("api", 8081, 21001).await;
        intend("*", "*", "allow").await;
        let (mesh, _leaves) = mesh_of(agent, &[local("api", &[], false), local("web", &["api"], false)]);
        let mut api = Host::new("api", 8081, 21001, &[]);
        let mut web = Host::new("web", 8080, 21000, &[("api", 9002)]);
        api.publish(&mesh).await;
        web.publish(&mesh).await;
        let server = Sidecar::start(&api.plan, &api.root).await;
        let _client = Sidecar::start(&web.plan, &web.root).await;
        answered("127.0.0.1:9002", Some("api")).await;

        // Health: the only instance goes out, and comes back.
        let check = "/v1/agent/check";
        consul("PUT", &format!("{check}/fail/service:api-sidecar-proxy"), Value::Null).await;
        let answers = async || call("127.0.0.1:9002").await.is_some();
        let out = web.until(&mesh, "out", async || !answers().await).await;
        consul("PUT", &format!("{check}/pass/service:api-sidecar-proxy"), Value::Null).await;
        let back = web.until(&mesh, "back", answers).await;
        println!("from a check in Consul to what a call meets: out {out:?}, in {back:?}");

        // Another root and other leaves, while a connection is open.
        let (mut open, _) = Call::open("127.0.0.1:9002").await.unwrap();
        let files = |host: &Host| (host.file("lds.json"), host.file("cds.json"));
        let before = (files(&api), files(&web));
        let leaf = api.file("secrets/connect-leaf.json");
        let mut settings = consul("GET", "/v1/connect/ca/configuration", Value::Null).await;
        settings["Config"]["PrivateKey"] = json!(rcgen::KeyPair::generate().unwrap().serialize_pem());
        settings["Config"]["RootCert"] = json!("");
        consul("PUT", "/v1/connect/ca/configuration", settings).await;
        let begun = Instant::now();
        while api.file("secrets/connect-leaf.json") == leaf {
            // Agents renew at some moment within half a minute, so that not all do at once.
            assert!(begun.elapsed() < 3 * PATIENCE, "no new leaf");
            api.publish(&mesh).await;
            let _ = tokio::time::timeout(Duration::from_millis(100), mesh.changed()).await;
            call("127.0.0.1:9002").await.expect("served at every moment");
        }
        println!("other roots and leaves after {:?}", begun.elapsed());
        for _ in 0..10 {
            api.publish(&mesh).await;
            web.publish(&mesh).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!((files(&api), files(&web)), before, "listeners and clusters stay as they are");
        assert_eq!(call("127.0.0.1:9002").await.as_deref(), Some("api"));
        open.echoes().await.expect("the open connection lives on");
        assert_eq!(server.counter("sds.connect-leaf.update_rejected").await, 0);

        // Without Consul, the files stay, and the sidecars with them.
        agent.kill();
        while mesh.link().unwrap().fault.is_none() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let (_, published) = web.publish(&mesh).await;
        assert_eq!(published.changed, Vec::<String>::new());
        assert_eq!(call("127.0.0.1:9002").await.as_deref(), Some("api"));
        open.echoes().await.unwrap();
    });
}
