//! Sidecars that Consul's xDS drives: real Envoys behind the bootstrap that enmesh writes, each test
//! in a network namespace of its own. The xDS is a fake's, because the Consul of the tests is older
//! than xDS as current Envoys speak it; what that one says to them is tested as well.
//! `cargo test --features netns-tests --test netns_ads`; needs root, `ip`, `nft`, Envoy and Consul.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test fails by panicking, also in its helpers"
)]

#[path = "../support/envoy_bed.rs"]
mod bed;
#[path = "../support/consul_bed.rs"]
mod consul_bed;
#[path = "../support/fake_consul/mod.rs"]
mod fake_consul;
#[path = "../support/envoy_scenarios.rs"]
mod scenarios;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bed::{Ca, Sidecar, app, call, envoy, in_namespace, ip_command, nft, tree};
use consul_bed::client_of;
use enmesh::base::{Root, exec};
use enmesh::config::ConsulConfig;
use enmesh::consul::xds::{self, Speaks, XdsSettings, probe};
use enmesh::consul::{AgentRegistry, Endpoint, Registry, ServerFacts, stream_cause};
use enmesh::envoy::{Publisher, Readiness, Secrets, bootstrap};
use enmesh::plan::{Ads, AdsServer, Credentials, ServicePlan, Xds, XdsToken};
use fake_consul::{FakeConsul, FakeProxy, FakeUpstream, Listen, State};
use scenarios::{TRUST_DOMAIN, driven, mesh, service};
use serde_json::{Value, json};

const GRPC: &str = "127.0.0.1:8502";

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn token(secret: &str) -> XdsToken {
    XdsToken::new(secret)
}

/// `web` calls `api`, both on one loopback, both driven by one fake.
struct Pair {
    root: Root,
    _tree: tempfile::TempDir,
    publisher: Publisher,
    ca: Ca,
    web: ServicePlan,
    api: ServicePlan,
    state: State,
}

impl Pair {
    fn new() -> Pair {
        let (tree, root) = tree();
        let ca = Ca::new(TRUST_DOMAIN);
        let ads = Ads { server: AdsServer::Tcp(at(GRPC)), ca_pem: None, token: false, node_name: None };
        let (mut web, mut api) = (service("web"), service("api"));
        api.sidecar.outbound_port = None;
        api.sidecar.inbound_port = Some(21001);
        for service in [&mut web, &mut api] {
            service.sidecar.program = envoy();
            service.sidecar.xds = Xds::Ads(ads.clone());
        }
        let upstream = FakeUpstream {
            sni: mesh([]).sni(&api.name),
            spiffe: api.identity.to_string(),
            virtual_ips: vec!["240.0.0.5".parse().unwrap()],
            instances: vec![at("127.0.0.1:21001")],
            local_port: Some(9002),
        };
        let caller = FakeProxy {
            outbound: Some(15001),
            inbound: None,
            credentials: ca.issue(&web.identity),
            callers: Vec::new(),
            upstreams: vec![upstream],
        };
        let called = FakeProxy {
            outbound: None,
            inbound: Some((21001, 8081)),
            credentials: ca.issue(&api.identity),
            callers: vec![format!("^spiffe://{TRUST_DOMAIN}/ns/default/dc/[^/]+/svc/web$")],
            upstreams: Vec::new(),
        };
        let proxies = [("web-sidecar-proxy", caller), ("api-sidecar-proxy", called)];
        let proxies = proxies.map(|(id, proxy)| (id.to_owned(), proxy)).into();
        let state = State { proxies, ..State::default() };
        Pair { publisher: Publisher::new(root.clone()), root, _tree: tree, ca, web, api, state }
    }

    fn ads(&mut self, change: impl Fn(&mut Ads)) {
        for service in [&mut self.web, &mut self.api] {
            if let Xds::Ads(ads) = &mut service.sidecar.xds {
                change(ads);
            }
        }
    }

    async fn start(&self, service: &ServicePlan, secrets: Secrets<'_>) -> Sidecar {
        self.publisher.publish(service, &mesh([]), secrets).await.unwrap();
        Sidecar::start(service, &self.root).await
    }
}

/// What a release of the fake's age says of itself.
fn agent_self(tls: i32, plaintext: i32) -> Value {
    json!({
        "Config": {"Version": "1.20.1", "Datacenter": "dc1", "NodeName": "vm"},
        "xDS": {"SupportedProxies": {"envoy": ["1.31.2", "1.28.7"]}, "Ports": {"TLS": tls, "Plaintext": plaintext}},
    })
}

fn ads_of(service: &ServicePlan) -> &Ads {
    let Xds::Ads(ads) = &service.sidecar.xds else { panic!("{} is not driven by Consul", service.id) };
    ads
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + bed::LIMIT;
    while !holds().await {
        assert!(Instant::now() < deadline, "not within {:?}: {what}", bed::LIMIT);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[test]
fn a_token_is_sent_and_a_renewed_one_needs_no_restart() {
    in_namespace(|| async {
        let mut pair = Pair::new();
        pair.ads(|ads| ads.token = true);
        let mut fake = FakeConsul::new(State { token: Some("first".to_owned()), ..pair.state.clone() });
        fake.serve(Listen::Plaintext(at(GRPC))).await;
        app("127.0.0.1:8081", "api").await;
        let api = pair.start(&pair.api, Secrets::Token(&token("first"))).await;
        let web = pair.start(&pair.web, Secrets::Token(&token("first"))).await;
        eprintln!("live after {:?} and {:?}", api.took, web.took);
        assert_eq!(call("127.0.0.1:9002").await.as_deref(), Some("api"));

        let stream = web.admin.stream().await.unwrap();
        assert!(stream.connected && stream.opened == 1, "{stream:?}");
        fake.change(|state| state.token = Some("second".to_owned()));
        let published =
            pair.publisher.publish(&pair.web, &mesh([]), Secrets::Token(&token("second"))).await.unwrap();
        assert_eq!(published.changed, ["secrets/consul-token.json"]);
        assert!(published.verified);
        fake.close_streams();
        until("the new token on the next stream", async || {
            let record = fake.record();
            record
                .streams
                .iter()
                .any(|seen| seen.id == "web-sidecar-proxy" && seen.token.as_deref() == Some("second"))
        })
        .await;
        let refusals = fake.record().refusals.clone();
        assert!(refusals.is_empty(), "{refusals:?}");
        // Which is how it is known that nobody uses the first token any more.
        until("another stream", async || {
            let stream = web.admin.stream().await.unwrap();
            stream.connected && stream.opened == 2
        })
        .await;
    });
}

#[test]
fn the_application_reaches_services_by_virtual_ip_and_the_rest_as_it_was() {
    in_namespace(|| async {
        let pair = Pair::new();
        ip_command("route add 240.0.0.0/4 dev lo");
        ip_command("addr add 10.7.0.1/32 dev lo");
        nft("table ip t { chain o { type nat hook output priority -100; meta skuid 5995 return; \
             ip daddr { 240.0.0.0/4, 10.7.0.1 } tcp dport 1-65535 redirect to :15001; }; }");
        let mut fake = FakeConsul::new(pair.state.clone());
        fake.serve(Listen::Plaintext(at(GRPC))).await;
        app("127.0.0.1:8081", "api").await;
        app("10.7.0.1:7000", "elsewhere").await;
        let _api = pair.start(&pair.api, Secrets::Kept).await;
        let web = pair.start(&pair.web, Secrets::Kept).await;
        assert_eq!(call("240.0.0.5:80").await.as_deref(), Some("api"));
        assert_eq!(call("127.0.0.1:9002").await.as_deref(), Some("api"));
        assert_eq!(call("10.7.0.1:7000").await.as_deref(), Some("elsewhere"));

        // The names that dashboards know, out of the names that Consul gave.
        let metrics = web.get("/stats/prometheus").await;
        let labels = |line: &&str| line.contains("envoy_cluster_upstream_cx_total");
        let line = metrics.lines().find(|line| labels(line) && line.contains("=\"api\"")).expect(&metrics);
        for label in [
            "consul_destination_service=\"api\"",
            "consul_destination_namespace=\"default\"",
            "consul_destination_datacenter=\"dc1\"",
            "consul_destination_routing_type=\"internal\"",
            "consul_destination_target=\"api.default.dc1\"",
            "consul_source_service=\"web\"",
            "local_cluster=\"web\"",
        ] {
            assert!(line.contains(label), "{label} in {line}");
        }
        assert!(metrics.contains("consul_upstream_service=\"api\""));

        // Whom Consul takes the right from cannot call any more, and nothing had to be written.
        fake.change(|state| state.proxies.get_mut("api-sidecar-proxy").unwrap().callers.clear());
        until("the call is refused", async || call("240.0.0.5:80").await.is_none()).await;
        let refusals = fake.record().refusals.clone();
        assert!(refusals.is_empty(), "{refusals:?}");
    });
}

#[test]
fn a_stream_that_breaks_leaves_the_sidecar_as_it_is_and_comes_back() {
    in_namespace(|| async {
        let pair = Pair::new();
        let mut fake = FakeConsul::new(pair.state.clone());
        fake.serve(Listen::Plaintext(at(GRPC))).await;
        app("127.0.0.1:8081", "api").await;
        let _api = pair.start(&pair.api, Secrets::Kept).await;
        let web = pair.start(&pair.web, Secrets::Kept).await;
        let stream = web.admin.stream().await.unwrap();
        assert!(stream.connected && stream.connections >= 1, "{stream:?}");

        fake.stop().await;
        until("Envoy knows", async || !web.admin.stream().await.unwrap().connected).await;
        assert_eq!(web.admin.ready().await, Readiness::Live);
        assert_eq!(call("127.0.0.1:9002").await.as_deref(), Some("api"));
        let cause = stream_cause(&client_of(&ConsulConfig::default()), &pair.web.id, ads_of(&pair.web)).await;
        assert_eq!(cause.code, "ENM-K084");
        until("it tries again", async || web.admin.stream().await.unwrap().refused > 0).await;

        fake.serve(Listen::Plaintext(at(GRPC))).await;
        until("the stream is back", async || web.admin.stream().await.unwrap().connected).await;
        assert_eq!(call("127.0.0.1:9002").await.as_deref(), Some("api"));
    });
}

#[test]
fn a_server_is_reached_over_tls_and_told_the_node() {
    in_namespace(|| async {
        let mut pair = Pair::new();
        let Credentials { certificate_pem, key_pem, roots_pem, .. } = pair.ca.issue(&pair.api.identity);
        let file = pair.root.join("/ca.pem");
        std::fs::write(&file, &roots_pem).unwrap();
        let mut state = State { token: Some("t".to_owned()), ..pair.state.clone() };
        state.answers.insert("/v1/agent/self".to_owned(), agent_self(8503, -1));
        let mut fake = FakeConsul::new(state);
        fake.serve_http(at("127.0.0.1:8500")).await;
        fake.serve(Listen::Tls(at("127.0.0.1:8503"), certificate_pem, key_pem)).await;

        let folder = tempfile::tempdir().unwrap();
        let token_file = folder.path().join("token");
        std::fs::write(&token_file, "t").unwrap();
        let config = ConsulConfig {
            token_file: Some(token_file),
            grpc_ca_file: Some("/ca.pem".into()),
            ..ConsulConfig::default()
        };
        let client = client_of(&config);
        let settings =
            XdsSettings::new(&config, Endpoint::parse("http://127.0.0.1:8500").unwrap(), &pair.root);
        let (facts, _) = ServerFacts::ask(&client).await.unwrap();
        let found = xds::find(&facts, &settings).unwrap();
        let mut ads = xds::ads(&found, &settings, Some("vm-enmesh".to_owned())).await.unwrap();
        assert_eq!(
            (&ads.server, ads.ca_pem.as_ref()),
            (&AdsServer::Tcp(at("127.0.0.1:8503")), Some(&roots_pem))
        );
        ads.token = true;
        assert_eq!(xds::newer_than_tried("1.40.0", &facts).unwrap().code, "ENM-K091");

        pair.ads(|its| *its = ads.clone());
        let _web = pair.start(&pair.web, Secrets::Token(&token("t"))).await;
        let seen = fake.record().streams[0].clone();
        let told = [("namespace", "default"), ("node_name", "vm-enmesh"), ("partition", "default")];
        assert_eq!((seen.id.as_str(), seen.cluster.as_str()), ("web-sidecar-proxy", "web"));
        assert_eq!(seen.metadata, told.map(|(key, value)| (key.to_owned(), value.to_owned())).into());
        assert_eq!(seen.token.as_deref(), Some("t"));

        // Both ways of being wrong about TLS, and a CA that is another.
        let cause = async |ads: &Ads| stream_cause(&client, &pair.web.id, ads).await.code;
        assert_eq!(probe(&ads.server).await.unwrap(), Speaks::Tls);
        assert_eq!(cause(&Ads { ca_pem: None, ..ads.clone() }).await, "ENM-K087");
        fake.serve(Listen::Plaintext(at(GRPC))).await;
        assert_eq!(cause(&Ads { server: AdsServer::Tcp(at(GRPC)), ..ads.clone() }).await, "ENM-K088");
        let other = Ca::new(TRUST_DOMAIN).issue(&pair.web.identity).roots_pem;
        let mut stranger = pair.api.clone();
        stranger.sidecar.xds = Xds::Ads(Ads { ca_pem: Some(other), ..ads });
        pair.publisher.publish(&stranger, &mesh([]), Secrets::Token(&token("t"))).await.unwrap();
        let stranger = Sidecar::spawn(&stranger, &pair.root);
        until("TLS fails", async || stranger.admin.stream().await.is_ok_and(|it| it.tls_failures > 0)).await;
        assert_eq!(stranger.admin.ready().await, Readiness::PreInitializing);
    });
}

#[test]
fn an_agent_is_reached_over_a_socket() {
    in_namespace(|| async {
        let mut pair = Pair::new();
        let socket = pair.root.join("/grpc.sock");
        let mut fake = FakeConsul::new(pair.state.clone());
        fake.serve(Listen::Unix(socket.clone())).await;
        std::fs::set_permissions(&socket, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
        pair.ads(|ads| ads.server = AdsServer::Unix(socket.clone()));
        let web = pair.start(&pair.web, Secrets::Kept).await;
        assert!(web.admin.stream().await.unwrap().connected);
        assert_eq!(fake.record().streams[0].token, None);
        assert_eq!(probe(&ads_of(&pair.web).server).await.unwrap(), Speaks::Plaintext);
    });
}

#[test]
fn why_a_sidecar_is_told_nothing() {
    in_namespace(|| async {
        let mut pair = Pair::new();
        pair.ads(|ads| ads.token = true);
        let mut state = State { token: Some("good".to_owned()), ..pair.state.clone() };
        state.proxies.clear();
        state.answers.insert("/v1/agent/self".to_owned(), agent_self(-1, 8502));
        state.answers.insert("/v1/acl/token/self".to_owned(), json!({"AccessorID": "a"}));
        let mut fake = FakeConsul::new(state);
        fake.serve_http(at("127.0.0.1:8500")).await;
        fake.serve(Listen::Plaintext(at(GRPC))).await;
        let folder = tempfile::tempdir().unwrap();
        let client = |secret: &str| {
            let file = folder.path().join(secret);
            std::fs::write(&file, secret).unwrap();
            client_of(&ConsulConfig { token_file: Some(file), ..ConsulConfig::default() })
        };
        let cause = async |secret: &str| stream_cause(&client(secret), &pair.web.id, ads_of(&pair.web)).await;

        pair.publisher.publish(&pair.web, &mesh([]), Secrets::Token(&token("bad"))).await.unwrap();
        let web = Sidecar::spawn(&pair.web, &pair.root);
        until("a stream was refused", async || !fake.record().streams.is_empty()).await;
        let unknown = cause("bad").await;
        assert_eq!((unknown.code, unknown.service.as_deref()), ("ENM-K022", Some("web")));
        assert!(!format!("{unknown:?}").contains("bad"), "{unknown:?}");

        // A stream that stands, to a Consul that does not know the sidecar.
        pair.publisher.publish(&pair.web, &mesh([]), Secrets::Token(&token("good"))).await.unwrap();
        until("connected", async || web.admin.stream().await.is_ok_and(|it| it.connected)).await;
        assert_eq!(web.admin.ready().await, Readiness::PreInitializing);
        assert_eq!(cause("good").await.code, "ENM-K089");

        // Registered at last.
        let proxies = pair.state.proxies.clone();
        fake.change(|state| {
            state.proxies = proxies;
            state
                .answers
                .insert("/v1/agent/service/web-sidecar-proxy".to_owned(), json!({"ID": "web-sidecar-proxy"}));
        });
        web.admin.wait_live(bed::LIMIT).await.unwrap();
        assert_eq!(cause("good").await.code, "ENM-K090");
    });
}

#[test]
fn a_consul_that_is_too_old_never_makes_a_sidecar_live() {
    consul_bed::scene(json!({}), async |agent| {
        let client = agent.client();
        let mut api = service("api-1");
        api.name = "api".parse().unwrap();
        let registry = AgentRegistry::new(client.clone(), consul_bed::gate());
        registry.register(&consul_bed::entry(consul_bed::api())).await.unwrap();
        assert!(xds::merged(&client, &api.id, None).await.unwrap().is_some());
        assert_eq!(xds::merged(&client, &"nobody".parse().unwrap(), None).await.unwrap(), None);

        // Found where it is, and told why that is of no use.
        let (facts, _) = ServerFacts::ask(&client).await.unwrap();
        let config = ConsulConfig::default();
        let settings =
            XdsSettings::new(&config, Endpoint::parse("http://127.0.0.1:8500").unwrap(), &Root::default());
        let fault = enmesh::base::Fault::from(xds::find(&facts, &settings).unwrap_err());
        assert_eq!(fault.code, "ENM-K080");
        assert!(fault.hint.contains("catalog"), "{}", fault.hint);

        let (_tree, root) = tree();
        api.sidecar.program = envoy();
        let ads = Ads { server: AdsServer::Tcp(at(GRPC)), ca_pem: None, token: false, node_name: None };
        api.sidecar.xds = Xds::Ads(ads.clone());
        Publisher::new(root.clone()).publish(&api, &mesh([]), Secrets::Kept).await.unwrap();
        let sidecar = Sidecar::spawn(&api, &root);
        until("it was told no", async || sidecar.log().contains("closed: 12")).await;
        assert_eq!(sidecar.admin.ready().await, Readiness::PreInitializing);
        assert!(!sidecar.admin.stream().await.unwrap().connected);
        let cause = stream_cause(&client, &api.id, &ads).await;
        assert_eq!(cause.code, "ENM-K080");
        assert!(cause.message.contains("1.8.7"), "{}", cause.message);
    });
}

/// What `consul connect envoy -bootstrap` writes for a service with `config`.
fn consuls_bootstrap() -> Value {
    let program = std::env::var_os("ENMESH_CONSUL").map(std::path::PathBuf::from);
    let program = program
        .unwrap_or_else(|| std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/consul"));
    let arguments = ["connect", "envoy", "-bootstrap", "-sidecar-for", "api-1"];
    let output = exec::run(&program, &arguments, b"", bed::LIMIT).unwrap();
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn the_bootstrap_says_what_consuls_own_says() {
    consul_bed::scene(json!({}), async |agent| {
        let config = json!({
            "envoy_prometheus_bind_addr": "0.0.0.0:9102", "envoy_stats_bind_addr": "127.0.0.1:9103",
            "envoy_statsd_url": "udp://127.0.0.1:8125", "envoy_dogstatsd_url": "unix:///run/x.sock",
            "envoy_stats_tags": ["team=core"], "envoy_stats_flush_interval": "10s",
            "envoy_extra_static_clusters_json": "{\"name\": \"x\"}",
        });
        let mut registration = consul_bed::api();
        registration["connect"]["sidecar_service"]["proxy"]["config"] = config.clone();
        let registry = AgentRegistry::new(agent.client(), consul_bed::gate());
        registry.register(&consul_bed::entry(registration)).await.unwrap();
        let merged = xds::merged(&agent.client(), &"api-1".parse().unwrap(), None).await.unwrap().unwrap();
        let theirs = consuls_bootstrap();

        let mut api = service("api-1");
        api.name = "api".parse().unwrap();
        api.identity.service = "api".to_owned();
        api.sidecar.config = merged["Proxy"]["Config"].as_object().unwrap().clone();
        api.sidecar.xds =
            Xds::Ads(Ads { server: AdsServer::Tcp(at(GRPC)), ca_pem: None, token: false, node_name: None });
        let ours = bootstrap(&api, &Root::default()).unwrap();
        for path in ["/node/id", "/node/cluster", "/node/metadata/namespace", "/stats_flush_interval"] {
            assert_eq!(ours.pointer(path), theirs.pointer(path), "{path}");
        }
        let list = |of: &Value, path: &str, inner: &str| -> std::collections::BTreeSet<String> {
            let items = of.pointer(path).unwrap().as_array().unwrap();
            items.iter().map(|item| item.pointer(inner).unwrap().to_string()).collect()
        };
        for (path, inner) in [
            ("/static_resources/clusters", "/name"),
            ("/static_resources/listeners", "/name"),
            ("/static_resources/listeners", "/address"),
        ] {
            assert_eq!(list(&ours, path, inner), list(&theirs, path, inner), "{path} {inner}");
        }
        // Where it moved between the versions of Envoy's API, what is in it is the same.
        let agent_at =
            |of: &Value, path: &str| of.pointer(&format!("/static_resources/clusters/0{path}")).cloned();
        let endpoint = "/load_assignment/endpoints/0/lb_endpoints/0/endpoint/address";
        assert_eq!(agent_at(&ours, endpoint), agent_at(&theirs, "/hosts/0"));
        for (mine, its) in [(0, 0), (1, 1)] {
            let sink = |of: &Value, place: usize, kind: &str| {
                let mut address =
                    of.pointer(&format!("/stats_sinks/{place}/{kind}/address")).unwrap().clone();
                if let Some(socket) = address.pointer_mut("/socket_address") {
                    socket.as_object_mut().unwrap().remove("protocol");
                }
                address
            };
            assert_eq!(sink(&ours, mine, "typed_config"), sink(&theirs, its, "config"));
        }
        // Tags of clusters have a longer name since 1.9.
        let tags = |of: &Value| list(of, "/stats_config/stats_tags", "/tag_name");
        let mine = tags(&ours);
        for tag in tags(&theirs) {
            let longer = tag.replace("\"consul.", "\"consul.destination.");
            assert!(mine.contains(&tag) || mine.contains(&longer), "{tag} is not among {mine:?}");
        }
    });
}

#[test]
fn envoy_takes_every_bootstrap() {
    in_namespace(|| async {
        let (_tree, root) = tree();
        let ca = Ca::new(TRUST_DOMAIN).issue(&service("web").identity).roots_pem;
        for (scenario, service) in driven(&ca) {
            let token = token("t");
            let secrets = match ads_of(&service).token {
                true => Secrets::Token(&token),
                false => Secrets::Kept,
            };
            Publisher::new(root.clone()).publish(&service, &mesh([]), secrets).await.unwrap();
            let document = bootstrap(&service, &root).unwrap();
            let path = root.join("/validate.json");
            std::fs::write(&path, document.to_string()).unwrap();
            let arguments = ["--mode", "validate", "-c", path.to_str().unwrap()];
            let output = exec::run(&envoy(), &arguments, b"", bed::LIMIT).unwrap();
            assert!(output.status.success(), "{scenario}: {}", output.stderr);
        }
    });
}
