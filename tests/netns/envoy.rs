//! Real Envoys, driven by the files that enmesh writes, each test in a network namespace of its own.
//! `cargo test --features netns-tests --test netns_envoy`; needs root, `ip`, `nft` and Envoy.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test fails by panicking, also in its helpers"
)]

#[path = "../support/envoy_bed.rs"]
mod bed;
#[path = "../support/envoy_scenarios.rs"]
mod scenarios;

use std::cell::Cell;
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bed::{Ca, Call, Sidecar, app, call, envoy, in_namespace, ip_command, nft, tree};
use enmesh::base::{Root, exec};
use enmesh::config::value::{Port, Span};
use enmesh::envoy::{
    Decisions, FileSet, INOTIFY_INSTANCES, Layout, Programs, Published, Publisher, Readiness, resources,
    validate_document,
};
use enmesh::plan::{Credentials, MeshView, ServicePlan};
use scenarios::{TRUST_DOMAIN, callers, known, mesh, name, scenarios as all, service, upstream};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// `web` calls `api`, both on one loopback: what every test of traffic starts from.
struct Pair {
    root: Root,
    _tree: tempfile::TempDir,
    ca: Ca,
    publisher: Publisher,
    web: ServicePlan,
    api: ServicePlan,
    mesh: MeshView,
    web_credentials: Credentials,
    api_credentials: Credentials,
}

/// Time that connections of a changed chain get.
const DRAIN: Duration = Duration::from_secs(1);
/// The explicit upstream of `web` that leads to `api`.
const API: &str = "127.0.0.1:9002";

impl Pair {
    fn new() -> Pair {
        let (tree, root) = tree();
        let mut web = service("web");
        web.sidecar.program = envoy();
        web.port = None;
        web.sidecar.inbound_port = None;
        web.upstreams = vec![upstream("api", 9002)];
        web.sidecar.drain = Span(DRAIN);
        let mut api = service("api");
        api.sidecar.drain = Span(DRAIN);
        api.sidecar.program = envoy();
        api.sidecar.outbound_port = None;
        api.sidecar.inbound_port = Some(21001);
        api.port = Port::new(8081);
        let ca = Ca::new(TRUST_DOMAIN);
        let (web_credentials, api_credentials) = (ca.issue(&web.identity), ca.issue(&api.identity));
        let mesh = mesh([("api", known(&["240.0.0.5"], &[("127.0.0.1", 21001, None)], &["web"]))]);
        Pair {
            publisher: Publisher::new(root.clone()),
            _tree: tree,
            root,
            ca,
            web,
            api,
            mesh,
            web_credentials,
            api_credentials,
        }
    }

    async fn publish_web(&self) -> Published {
        self.publisher.publish(&self.web, &self.mesh, Some(&self.web_credentials)).await.unwrap()
    }

    async fn publish_api(&self) -> Published {
        self.publisher.publish(&self.api, &self.mesh, Some(&self.api_credentials)).await.unwrap()
    }

    /// Publishes both before there is an Envoy, then starts both.
    async fn start(&self) -> (Sidecar, Sidecar) {
        assert!(!self.publish_web().await.verified, "nobody is there to verify");
        self.publish_api().await;
        let started =
            (Sidecar::start(&self.web, &self.root).await, Sidecar::start(&self.api, &self.root).await);
        for published in [self.publish_web().await, self.publish_api().await] {
            assert_eq!(published, Published { changed: vec![], verified: true });
        }
        eprintln!("live after {:?} and {:?}", started.0.took, started.1.took);
        started
    }

    fn file(&self, service: &ServicePlan, path: &str) -> Vec<u8> {
        fs::read(Layout::new(service, &self.root).path(path)).unwrap()
    }
}

/// The line of the access log that contains `text`; Envoy writes them out once a second.
async fn logged(sidecar: &Sidecar, text: &str) -> Value {
    let deadline = Instant::now() + bed::LIMIT;
    loop {
        let log = sidecar.log();
        if let Some(line) = log.lines().find(|line| line.contains(text)) {
            return serde_json::from_str(line).unwrap();
        }
        assert!(Instant::now() < deadline, "nothing about {text} in: {log}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[test]
fn every_scenario_is_valid_and_is_taken_up() {
    in_namespace(|| async {
        ip_command("-6 addr add fd00:1::1/128 dev lo");
        let ca = Ca::new(TRUST_DOMAIN);
        for (scenario, (mut service, mesh)) in all() {
            let (_tree, root) = tree();
            service.sidecar.program = envoy();
            let credentials = ca.issue(&service.identity);
            let set = FileSet::new(&resources(&service, &mesh, &root).unwrap(), Some(&credentials));
            validate(
                scenario,
                &validate_document(&enmesh::envoy::bootstrap(&service, &root).unwrap(), &set),
                &root,
            );

            let publisher = Publisher::new(root.clone());
            publisher.publish(&service, &mesh, Some(&credentials)).await.unwrap();
            let sidecar = Sidecar::start(&service, &root).await;
            let published = publisher.publish(&service, &mesh, Some(&credentials)).await.unwrap();
            assert_eq!(published, Published { changed: vec![], verified: true }, "{scenario}");
            let rejected = sidecar.admin.stats("rejected$").await.unwrap();
            assert!(rejected.values().all(|count| *count == 0), "{scenario}: {rejected:?}");
            let warnings: Vec<_> =
                sidecar.log().lines().filter(|line| !is_asked_for(line)).map(str::to_owned).collect();
            assert_eq!(warnings, [""; 0], "{scenario}: Envoy has nothing to warn about");
            let info = sidecar.admin.server_info().await.unwrap();
            assert_eq!(info.node_id, format!("{}-sidecar-proxy", service.id));
            assert_eq!(info.version, Programs::default().version(&envoy()).unwrap());
        }
    });
}

fn validate(scenario: &str, document: &Value, root: &Root) {
    let path = root.join("/validate.json");
    fs::write(&path, document.to_string()).unwrap();
    let arguments = ["--mode", "validate", "-c", path.to_str().unwrap()];
    let output = exec::run(&envoy(), &arguments, b"", bed::LIMIT).unwrap();
    assert!(output.status.success(), "{scenario}: {}", output.stderr);
    let mut deprecated =
        output.stderr.lines().filter(|line| line.contains("deprecated") && !is_asked_for(line));
    assert_eq!(deprecated.next(), None, "{scenario}: {}", output.stderr);
}

/// Where Envoy takes `envoy_tracing_json` from is deprecated, and there is no other place for it.
fn is_asked_for(line: &str) -> bool {
    line.contains("envoy.config.bootstrap.v3.Bootstrap.tracing")
}

#[test]
fn a_call_goes_over_mutual_tls_and_its_caller_is_seen() {
    in_namespace(|| async {
        let pair = Pair::new();
        app("127.0.0.1:8081", "api").await;
        let (web, api) = pair.start().await;
        assert_eq!(call(API).await.as_deref(), Some("api"));
        assert_eq!(api.counter("connect_authz.rbac.allowed").await, 1);
        assert_eq!(api.counter("listener.public_listener.ssl.handshake").await, 1);
        // Nobody gets through without a certificate.
        let mut stranger = TcpStream::connect("127.0.0.1:21001").await.unwrap();
        stranger.write_all(b"let me in\n").await.unwrap();
        let mut heard = Vec::new();
        let _ = stranger.read_to_end(&mut heard).await;
        assert!(!heard.windows(3).any(|bytes| bytes == b"api"), "{heard:?}");

        let caller = pair.web.identity.to_string();
        assert_eq!(logged(&api, &caller).await["caller"], caller);

        // Dashboards for Consul's mesh find what they look for.
        let metrics = web.get("/stats/prometheus?usedonly").await;
        for wanted in [
            "envoy_cluster_upstream_cx_total{",
            r#"consul_destination_service="api""#,
            r#"consul_destination_datacenter="dc1""#,
            r#"consul_source_service="web""#,
            r#"local_cluster="web""#,
        ] {
            let mut lines =
                metrics.lines().filter(|line| line.starts_with("envoy_cluster_upstream_cx_total{"));
            assert!(lines.any(|line| line.contains(wanted)), "{wanted} in {metrics}");
        }
        assert!(metrics.contains(r#"consul_upstream_service="api""#), "{metrics}");

        let tagged = web.admin.certs().await.unwrap();
        assert!(tagged.iter().any(|c| !c.ca && c.uris == [caller.clone()]), "{tagged:?}");
        assert!(tagged.iter().any(|c| c.ca && c.not_after > pair.web_credentials.not_after), "{tagged:?}");
    });
}

/// Passed on to where it says it goes, such a connection would come back to the listener for ever.
#[test]
fn who_dials_the_outbound_listener_itself_is_sent_away() {
    in_namespace(|| async {
        let pair = Pair::new();
        let (web, _api) = pair.start().await;
        let port = pair.web.sidecar.outbound_port.unwrap();
        for address in ["127.0.0.1", "::1"] {
            let mut stream = TcpStream::connect((address, port)).await.unwrap();
            let mut heard = Vec::new();
            let _ = tokio::time::timeout(bed::LIMIT, stream.read_to_end(&mut heard)).await.expect("closed");
            assert_eq!(heard, b"");
        }
        // Envoy makes a cluster's numbers when it is first used, and this one must not have been.
        let passed_on = web.admin.stats("original-destination.upstream_cx_total").await.unwrap();
        assert_eq!(passed_on.values().sum::<u64>(), 0, "{passed_on:?}");
    });
}

#[test]
fn redirected_connections_find_their_service() {
    in_namespace(|| async {
        ip_command("addr add 10.99.0.1/32 dev lo");
        ip_command("addr add 10.99.0.2/32 dev lo");
        ip_command("route add 240.0.0.0/4 dev lo");
        ip_command("-6 addr add fd00:9::1/128 dev lo");
        ip_command("-6 route add fd00:240::/64 dev lo");
        nft("table inet test {
              chain output {
                type nat hook output priority -99;
                meta skuid 5995 return
                ip daddr { 240.0.0.0/4, 10.99.0.0/24 } tcp dport 1-9999 redirect to :15001
                ip6 daddr { fd00:240::/64 } tcp dport 1-9999 redirect to :15001
              }
            }");
        let mut pair = Pair::new();
        pair.web.upstreams.clear();
        let api = known(&["240.0.0.5", "fd00:240::5"], &[("10.99.0.2", 21001, Some(8080))], &["web"]);
        pair.mesh.services.insert(name("api"), api);
        // What a captured user dials on the instance itself would be served here in the clear.
        app("127.0.0.1:8081", "api").await;
        app("10.99.0.1:7000", "outside the mesh").await;
        app("10.99.0.2:7000", "not the app's port").await;
        let (web, api) = pair.start().await;
        assert_eq!(call("240.0.0.5:8080").await.as_deref(), Some("api"), "virtual IP");
        assert_eq!(call("[fd00:240::5]:80").await.as_deref(), Some("api"), "virtual IP, IPv6");
        assert_eq!(api.counter("connect_authz.rbac.allowed").await, 2);
        assert_eq!(call("10.99.0.2:8080").await.as_deref(), Some("api"), "instance, dialled directly");
        assert_eq!(api.counter("connect_authz.rbac.allowed").await, 3, "over mutual TLS, too");
        assert_eq!(call("10.99.0.1:7000").await.as_deref(), Some("outside the mesh"));
        assert_eq!(call("10.99.0.2:7000").await.as_deref(), Some("not the app's port"));
        assert_eq!(web.counter("cluster.original-destination.upstream_cx_total").await, 2);

        let prometheus = web.admin.stats("upstream_cx_total").await.unwrap();
        assert!(
            prometheus.keys().any(|key| key.contains("passthrough~21001~api.default.dc1")),
            "{prometheus:?}"
        );
    });
}

#[test]
fn intentions_change_without_a_restart() {
    in_namespace(|| async {
        let mut pair = Pair::new();
        app("127.0.0.1:8081", "api").await;
        let (_web, api) = pair.start().await;
        assert_eq!(call(API).await.as_deref(), Some("api"));

        for (allow, answer) in [("other", None), ("*", Some("api")), ("other", None), ("web", Some("api"))] {
            pair.mesh.services.get_mut(&name("api")).unwrap().callers = callers(&[allow]);
            let published = pair.publish_api().await;
            assert_eq!(published, Published { changed: vec!["lds.json".to_owned()], verified: true });
            assert_eq!(call(API).await.as_deref(), answer, "callers: {allow}");
        }
        let (mut open, _) = Call::open(API).await.unwrap();
        open.echoes().await.unwrap();
        pair.mesh.services.get_mut(&name("api")).unwrap().callers = callers(&[]);
        pair.publish_api().await;
        assert_eq!(call(API).await, None, "no callers");
        assert_eq!(api.admin.decisions().await.unwrap(), Decisions { allowed: 4, denied: 3 });
        tokio::time::sleep(DRAIN + Duration::from_secs(1)).await;
        open.echoes().await.expect_err("who may not call any more is cut off after the drain time");
        // Who was refused is seen as well.
        let refused = logged(&api, "CERTIFICATE_VERIFY_FAILED").await;
        assert_eq!(refused["caller"], pair.web.identity.to_string());
    });
}

#[test]
fn certificates_rotate_under_open_connections() {
    in_namespace(|| async {
        let mut pair = Pair::new();
        app("127.0.0.1:8081", "api").await;
        let (web, api) = pair.start().await;
        let (mut open, _) = Call::open(API).await.unwrap();
        let looked = api.counter("listener_manager.lds.update_attempt").await;
        let listeners = pair.file(&pair.api, "lds.json");
        let serials = |certs: Vec<enmesh::envoy::CertificateInfo>| -> Vec<String> {
            certs.into_iter().filter(|c| !c.ca).map(|c| c.serial).collect()
        };
        let before = serials(api.admin.certs().await.unwrap());

        pair.web_credentials = pair.ca.issue(&pair.web.identity);
        pair.api_credentials = pair.ca.issue(&pair.api.identity);
        for published in [pair.publish_web().await, pair.publish_api().await] {
            let changed = vec!["secrets/connect-leaf.json".to_owned()];
            assert_eq!(published, Published { changed, verified: true });
        }
        let after = serials(api.admin.certs().await.unwrap());
        assert_ne!(before, after);
        assert_eq!(pair.file(&pair.api, "lds.json"), listeners);
        assert_eq!(api.counter("listener_manager.lds.update_attempt").await, looked);
        open.echoes().await.expect("the open connection lives on");
        assert_eq!(call(API).await.as_deref(), Some("api"));
        assert_eq!(web.counter("sds.connect-leaf.update_rejected").await, 0);
    });
}

#[test]
fn what_envoy_refuses_is_taken_back_and_told() {
    in_namespace(|| async {
        let mut pair = Pair::new();
        app("127.0.0.1:8081", "api").await;
        let (_web, api) = pair.start().await;
        let (mut open, _) = Call::open(API).await.unwrap();
        let good = pair.file(&pair.api, "lds.json");

        // A listener that cannot be.
        let set = broken(&pair);
        let fault = pair.publisher.publish_files(&pair.api, &set).await.unwrap_err();
        assert_eq!(fault.code, "ENM-E030");
        assert!(fault.message.contains("has the same matching rules"), "{}", fault.message);
        assert!(fault.hint.contains("last good"), "{}", fault.hint);
        assert_eq!(pair.file(&pair.api, "lds.json"), good);
        open.echoes().await.expect("an open connection is not touched");
        assert_eq!(call(API).await.as_deref(), Some("api"));

        // A key that is not the certificate's.
        let fine = pair.api_credentials.clone();
        pair.api_credentials.key_pem = pair.web_credentials.key_pem.clone();
        let fault =
            pair.publisher.publish(&pair.api, &pair.mesh, Some(&pair.api_credentials)).await.unwrap_err();
        assert_eq!(fault.code, "ENM-E030");
        assert!(fault.message.contains("secrets/connect-leaf.json"), "{}", fault.message);
        assert!(fault.message.to_lowercase().contains("key"), "{}", fault.message);
        assert!(!fault.message.contains("PRIVATE KEY"), "{}", fault.message);
        assert_eq!(call(API).await.as_deref(), Some("api"));

        // A port that somebody else has.
        pair.api_credentials = fine;
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        pair.api.upstreams = vec![upstream("api", taken.local_addr().unwrap().port())];
        let publish = pair.publisher.publish(&pair.api, &pair.mesh, Some(&pair.api_credentials));
        let fault = publish.await.unwrap_err();
        assert_eq!(fault.code, "ENM-E030");
        assert!(fault.message.contains("Address already in use"), "{}", fault.message);
        assert_eq!(call(API).await.as_deref(), Some("api"));

        // And nothing of it is in the way of the next one, which is free again.
        drop(taken);
        let published = pair.publish_api().await;
        assert!(published.verified, "{published:?}");
        assert_eq!(call(API).await.as_deref(), Some("api"));
        assert_eq!(api.admin.ready().await, Readiness::Live);
    });
}

/// The files of `service` with two chains that match the same.
fn broken(pair: &Pair) -> FileSet {
    let mut broken = resources(&pair.api, &pair.mesh, &pair.root).unwrap();
    let chains = broken.listeners[0]["filter_chains"].as_array_mut().unwrap();
    let mut twin = chains[0].clone();
    twin["name"] = "twin".into();
    chains.push(twin);
    FileSet::new(&broken, Some(&pair.api_credentials))
}

#[test]
fn the_last_good_files_outlive_envoy_and_enmesh() {
    in_namespace(|| async {
        let pair = Pair::new();
        app("127.0.0.1:8081", "api").await;
        let (_web, api) = pair.start().await;
        drop(api);
        // Nobody can say no to this, until Envoy starts with it.
        let published = pair.publisher.publish_files(&pair.api, &broken(&pair)).await.unwrap();
        assert!(!published.verified);
        let api = Sidecar::start(&pair.api, &pair.root).await;
        assert_eq!(call(API).await, None, "Envoy is live, and has no listener");
        let other = Publisher::new(pair.root.clone());
        let fault = other.publish_files(&pair.api, &broken(&pair)).await.unwrap_err();
        assert_eq!(fault.code, "ENM-E030");
        assert_eq!(call(API).await.as_deref(), Some("api"));
        assert_eq!(api.admin.ready().await, Readiness::Live);
    });
}

#[test]
fn traffic_follows_the_endpoints_at_once() {
    in_namespace(|| async {
        let mut pair = Pair::new();
        app("127.0.0.1:8081", "first").await;
        app("127.0.0.1:8082", "second").await;
        let (_web, _api) = pair.start().await;
        let mut second = pair.api.clone();
        second.id = "api-2".parse().unwrap();
        second.sidecar.folder = "/run/enmesh/api-2".into();
        second.sidecar.inbound_port = Some(21002);
        second.port = Port::new(8082);
        pair.publisher.publish(&second, &pair.mesh, Some(&pair.api_credentials)).await.unwrap();
        let _second = Sidecar::start(&second, &pair.root).await;

        let (mut open, _) = Call::open(API).await.unwrap();
        // Somebody calls all the time; what fails is counted.
        let calls = Rc::new(Cell::new((0, 0)));
        let counted = calls.clone();
        let caller = tokio::task::spawn_local(async move {
            loop {
                let failed = u32::from(call(API).await.is_none());
                let (made, failures) = counted.get();
                counted.set((made + 1, failures + failed));
            }
        });
        let mut took = Vec::new();
        for round in 0..20 {
            let (port, answer) = if round % 2 == 0 { (21002, "second") } else { (21001, "first") };
            let known = pair.mesh.services.get_mut(&name("api")).unwrap();
            known.instances = scenarios::known(&[], &[("127.0.0.1", port, None)], &[]).instances;
            let started = Instant::now();
            let published = pair.publish_web().await;
            took.push(started.elapsed());
            assert_eq!(published, Published { changed: vec!["cds.json".to_owned()], verified: true });
            assert_eq!(call(API).await.as_deref(), Some(answer));
        }
        tokio::time::sleep(DRAIN + Duration::from_secs(1)).await;
        open.echoes().await.expect("a connection stays with the endpoint that it has");
        caller.abort();
        let (made, failures) = calls.get();
        assert!(made > 20 && failures == 0, "{failures} of {made} calls failed");
        took.sort();
        eprintln!("an endpoint's change, written and verified: median {:?}, worst {:?}", took[10], took[19]);
    });
}

#[test]
fn services_come_and_go_without_a_gap() {
    in_namespace(|| async {
        let mut pair = Pair::new();
        app("127.0.0.1:8081", "api").await;
        let (web, _api) = pair.start().await;
        let (mut open, _) = Call::open(API).await.unwrap();
        pair.mesh.services.insert(name("db"), known(&["240.0.0.9"], &[("127.0.0.1", 21009, None)], &[]));
        let published = pair.publish_web().await;
        assert_eq!(published.changed, ["cds.json", "lds.json"]);
        assert!(published.verified);

        pair.mesh.services.remove(&name("db"));
        let published = pair.publish_web().await;
        assert_eq!(published.changed, ["cds.json", "lds.json"]);
        assert!(published.verified);
        let clusters = web.admin.stats("^cluster\\.db\\.").await.unwrap();
        assert!(clusters.is_empty(), "{clusters:?}");
        open.echoes().await.expect("other services' connections live on");
    });
}

#[test]
fn a_file_that_envoy_missed_is_shown_to_it_again() {
    in_namespace(|| async {
        let mut pair = Pair::new();
        app("127.0.0.1:8081", "api").await;
        let (_web, _api) = pair.start().await;
        // Written past Envoy: in place, which is no rename. This is what a lost event looks like.
        let known = pair.mesh.services.get_mut(&name("api")).unwrap();
        known.instances = scenarios::known(&[], &[("127.0.0.1", 1, None)], &[]).instances;
        let set = FileSet::new(&resources(&pair.web, &pair.mesh, &pair.root).unwrap(), None);
        let path = Layout::new(&pair.web, &pair.root).path("cds.json");
        fs::write(path, set.get("cds.json").unwrap()).unwrap();
        assert_eq!(call(API).await.as_deref(), Some("api"), "Envoy has not seen it");
        let published = pair.publish_web().await;
        assert!(published.verified);
        assert_eq!(call(API).await, None, "now it has");
    });
}

#[test]
fn draining_ends_inbound_and_spares_outbound() {
    in_namespace(|| async {
        let pair = Pair::new();
        app("127.0.0.1:8081", "api").await;
        let (web, api) = pair.start().await;
        let (mut open, _) = Call::open(API).await.unwrap();
        api.admin.drain_inbound().await.unwrap();
        api.admin.healthcheck_fail().await.unwrap();
        assert_eq!(api.admin.ready().await, Readiness::Draining);
        open.echoes().await.expect("open connections get their time");
        web.admin.drain_inbound().await.unwrap();
        assert!(TcpStream::connect(API).await.is_ok(), "outbound listeners stay");
        api.admin.quit().await.unwrap();
        let deadline = Instant::now() + bed::LIMIT;
        while api.admin.ready().await != Readiness::Refused {
            assert!(Instant::now() < deadline);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
}

#[test]
fn only_root_and_the_sidecars_group_can_read() {
    use std::os::unix::fs::MetadataExt;
    in_namespace(|| async {
        let pair = Pair::new();
        pair.publish_api().await;
        let layout = Layout::new(&pair.api, &pair.root);
        let mode = |path: &Path| {
            let meta = fs::metadata(path).unwrap();
            (meta.mode() & 0o7777, meta.uid(), meta.gid())
        };
        assert_eq!(mode(layout.folder()), (0o750, 0, 5995));
        assert_eq!(mode(&layout.admin_folder()), (0o770, 0, 5995));
        for path in ["bootstrap.json", "lds.json", "secrets/connect-leaf.json"] {
            assert_eq!(mode(&layout.path(path)), (0o640, 0, 5995), "{path}");
        }
    });
}

#[test]
fn a_large_mesh_is_taken_up_in_time() {
    in_namespace(|| async {
        let mut pair = Pair::new();
        app("127.0.0.1:8081", "api").await;
        let (web, _api) = pair.start().await;
        for index in 0..300_u32 {
            let virtual_ip = Ipv4Addr::from_bits(0xf000_0100 + index).to_string();
            let hosts: Vec<String> =
                (0..5).map(|host| Ipv4Addr::from_bits(0x0a00_0000 + index * 8 + host).to_string()).collect();
            let instances: Vec<_> = hosts.iter().map(|host| (host.as_str(), 21000, Some(8080))).collect();
            let service = known(&[virtual_ip.as_str()], &instances, &["*"]);
            pair.mesh.services.insert(name(&format!("service-{index}")), service);
        }
        let started = Instant::now();
        assert!(pair.publish_web().await.verified);
        let all = started.elapsed();
        assert_eq!(web.counter("cluster_manager.active_clusters").await, 602);
        assert_eq!(web.inotify_instances(), INOTIFY_INSTANCES);

        pair.mesh.services.get_mut(&name("service-7")).unwrap().instances.clear();
        let started = Instant::now();
        assert!(pair.publish_web().await.verified);
        eprintln!("300 services, 1500 instances: all {all:?}, one more change {:?}", started.elapsed());
        assert_eq!(call(API).await.as_deref(), Some("api"));
    });
}
