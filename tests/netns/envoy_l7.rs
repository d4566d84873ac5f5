//! What intentions, protocols, reach and weights mean for real traffic between real Envoys.
//! `cargo test --features netns-tests --test netns_envoy_l7`; needs root, `ip`, `nft` and Envoy.

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
#[path = "../support/web.rs"]
mod web;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bed::{Ca, Call, Sidecar, app, call, envoy, in_namespace, ip_command, nft, tree};
use enmesh::base::Root;
use enmesh::config::value::Port;
use enmesh::envoy::{Decisions, Publisher, lead};
use enmesh::plan::{Access, Callers, Instance, MeshView, Protocol, ServicePlan};
use scenarios::{TRUST_DOMAIN, header_rule, known, mesh, name, request_rules, rule, service, upstream};
use serde_json::json;
use web::{Request, h2_app, http_app, request};

/// Sidecars of one mesh, each with a view of its own, all on one loopback.
struct Stage {
    root: Root,
    _tree: tempfile::TempDir,
    ca: Ca,
    publisher: Publisher,
}

/// The explicit upstream of every caller that leads to `api`.
const API: &str = "127.0.0.1:9002";

impl Stage {
    fn new() -> Stage {
        let (tree, root) = tree();
        Stage { publisher: Publisher::new(root.clone()), _tree: tree, root, ca: Ca::new(TRUST_DOMAIN) }
    }

    async fn publish(&self, service: &ServicePlan, mesh: &MeshView) {
        let credentials = self.ca.issue(&service.identity);
        self.publisher.publish(service, mesh, Some(&credentials)).await.unwrap();
    }

    async fn start(&self, service: &ServicePlan, mesh: &MeshView) -> Sidecar {
        self.publish(service, mesh).await;
        Sidecar::start(service, &self.root).await
    }
}

/// A service that only calls.
fn caller(id: &str) -> ServicePlan {
    let mut caller = service(id);
    caller.sidecar.program = envoy();
    caller.port = None;
    caller.sidecar.inbound_port = None;
    caller.upstreams = vec![upstream("api", 9002)];
    caller
}

/// `api`, with its sidecar on 21001 and its app on 8081.
fn callee() -> ServicePlan {
    let mut api = service("api");
    api.sidecar.program = envoy();
    api.sidecar.outbound_port = None;
    api.sidecar.inbound_port = Some(21001);
    api.port = Port::new(8081);
    api
}

fn view(protocol: Protocol, callers: Callers) -> MeshView {
    let mut api = known(&["240.0.0.5"], &[("127.0.0.1", 21001, None)], &[]);
    api.protocol = protocol;
    api.callers = callers;
    mesh([("api", api)])
}

fn named<const N: usize>(named: [(&str, Access); N], others: Access) -> Callers {
    Callers { named: named.into_iter().map(|(text, access)| (name(text), access)).collect(), others }
}

#[test]
fn an_exception_is_not_even_greeted() {
    in_namespace(|| async {
        let stage = Stage::new();
        app("127.0.0.1:8081", "api").await;
        let denied = named([("web", Access::Deny), ("worker", Access::Deny)], Access::Allow);
        let mesh = view(Protocol::Tcp, denied);
        let api = stage.start(&callee(), &mesh).await;
        for (id, greeting) in [
            ("web", None),
            ("we", Some("api")),
            ("webb", Some("api")),
            ("worker", None),
            ("w-1", Some("api")),
        ] {
            let _sidecar = stage.start(&caller(id), &mesh).await;
            // Says nothing, and so hears only an app that speaks first.
            let heard = Call::open(API).await.ok().map(|(_, greeting)| greeting);
            assert_eq!(heard.as_deref(), greeting, "{id}");
            assert_eq!(call(API).await.as_deref(), greeting, "{id}");
        }
        assert_eq!(api.admin.decisions().await.unwrap(), Decisions { allowed: 6, denied: 4 });
        // And with the rule turned round: rules for requests deny where nobody can see requests.
        let rules = named([("web", Access::Requests(vec![rule(true, "/")]))], Access::Deny);
        let mesh = view(Protocol::Tcp, rules);
        stage.publish(&callee(), &mesh).await;
        let _sidecar = stage.start(&caller("web"), &mesh).await;
        assert_eq!(call(API).await, None);
    });
}

#[test]
fn requests_are_told_apart() {
    in_namespace(|| async {
        let stage = Stage::new();
        http_app("127.0.0.1:8081").await;
        let web = Access::Requests(request_rules());
        let mut mesh = view(Protocol::Http, named([("web", web)], Access::Deny));
        let api = stage.start(&callee(), &mesh).await;
        let web = stage.start(&caller("web"), &mesh).await;
        let cases: [(Request<'_>, u16); 17] = [
            (("GET", "/health", &[]), 200),
            (("POST", "/health?full=1", &[]), 200),
            (("GET", "/health", &["x-debug: 1"]), 403),
            (("GET", "/healthy", &[]), 403),
            (("GET", "/", &[]), 403),
            (("GET", "/v1/list", &[]), 200),
            (("HEAD", "/v2/", &[]), 200),
            (("POST", "/v1/list", &[]), 403),
            (("GET", "/v3/list", &[]), 403),
            (("GET", "/v1/../admin/x", &["x-token: secret"]), 403),
            (("GET", "/%61dmin", &["x-token: secret"]), 403),
            (("PUT", "/x", &["x-tenant: blue-1"]), 200),
            (("PUT", "/x", &["x-tenant: blue-old"]), 403),
            (("GET", "/x", &["x-token: secret"]), 200),
            (("GET", "/x", &["x-token: secrets"]), 403),
            (("GET", "/x", &["x-tags: now open"]), 200),
            (("GET", "/x", &["x-number: 42x"]), 403),
        ];
        let (mut allowed, mut denied) = (0, 0);
        for (what, status) in cases {
            assert_eq!(request(API, what).await.status, status, "{what:?}");
            *(if status == 200 { &mut allowed } else { &mut denied }) += 1;
        }
        assert_eq!(api.admin.decisions().await.unwrap(), Decisions { allowed, denied });

        // Denied unless a header has the right value: sending no header is no way round.
        let rules = vec![
            header_rule(false, "x-token", enmesh::plan::HeaderMatch::Exact("secret".to_owned()), true),
            rule(true, "/"),
        ];
        mesh.services.get_mut(&name("api")).unwrap().callers =
            named([("web", Access::Allow)], Access::Requests(rules));
        stage.publish(&callee(), &mesh).await;
        // Connections that are open are drained under the old rules; this one is new.
        drop(web);
        let web = stage.start(&caller("web"), &mesh).await;
        assert_eq!(request(API, ("GET", "/", &[])).await.status, 200, "named before everybody");
        drop(web);
        let _guest = stage.start(&caller("guest"), &mesh).await;
        assert_eq!(request(API, ("GET", "/", &["x-token: secret"])).await.status, 200);
        assert_eq!(request(API, ("GET", "/", &["x-token: other"])).await.status, 403);
        assert_eq!(request(API, ("GET", "/", &[])).await.status, 403);
    });
}

#[test]
fn the_app_learns_who_called() {
    in_namespace(|| async {
        let stage = Stage::new();
        http_app("127.0.0.1:8081").await;
        let mesh = view(Protocol::Http, Callers::anybody());
        let _api = stage.start(&callee(), &mesh).await;
        let web = caller("web");
        let _web = stage.start(&web, &mesh).await;
        let answer = request(API, ("GET", "/", &["x-forwarded-client-cert: URI=spiffe://forged"])).await;
        assert_eq!(answer.status, 200);
        let seen = answer.body.to_ascii_lowercase();
        assert!(seen.contains(&format!("uri={}", web.identity)), "{seen}");
        assert!(!seen.contains("forged"), "{seen}");
        assert!(answer.head.to_ascii_lowercase().contains("server: an app"), "{}", answer.head);
        assert_eq!(request(API, ("GET-1.0", "/", &[])).await.status, 200, "HTTP/1.0");

        let upgrade = ["connection: upgrade", "upgrade: websocket"];
        assert_eq!(request(API, ("GET", "/ws", &upgrade)).await.status, 101);
    });
}

/// Each end may think otherwise of the protocol, as sidecars that only pass bytes on do.
#[test]
fn ends_that_pass_bytes_on_are_understood() {
    in_namespace(|| async {
        let stage = Stage::new();
        http_app("127.0.0.1:8081").await;
        let (tcp, http) = (view(Protocol::Tcp, Callers::anybody()), view(Protocol::Http, Callers::anybody()));
        for (of_caller, of_callee) in [(&tcp, &http), (&http, &tcp)] {
            let _api = stage.start(&callee(), of_callee).await;
            let _web = stage.start(&caller("web"), of_caller).await;
            assert_eq!(request(API, ("GET", "/", &[])).await.status, 200);
        }
        // The service's own word counts before the mesh's.
        let mut api = callee();
        api.sidecar.config.insert("protocol".to_owned(), json!("http"));
        let api = stage.start(&api, &tcp).await;
        let _web = stage.start(&caller("web"), &tcp).await;
        assert_eq!(request(API, ("GET", "/", &[])).await.status, 200);
        assert_eq!(api.counter("http.public_listener.rbac.allowed").await, 1);
    });
}

#[test]
fn http2_goes_through_to_the_app() {
    in_namespace(|| async {
        let stage = Stage::new();
        h2_app("127.0.0.1:8081").await;
        for protocol in [Protocol::Http2, Protocol::Grpc] {
            let rules = Access::Requests(vec![rule(false, "/admin"), rule(true, "/")]);
            let mesh = view(protocol, named([("web", rules)], Access::Deny));
            let api = stage.start(&callee(), &mesh).await;
            let web = stage.start(&caller("web"), &mesh).await;
            assert_eq!(request(API, ("GET", "/", &[])).await.status, 200, "{protocol:?}");
            assert_eq!(request(API, ("GET", "/admin", &[])).await.status, 403, "{protocol:?}");
            let upstream = web.admin.stats("upstream_cx_http2_total").await.unwrap();
            assert!(upstream.values().sum::<u64>() > 0, "{upstream:?}");
            assert!(api.counter("cluster.local_app.upstream_cx_http2_total").await > 0);
            drop(web);

            // A sidecar that passes bytes on: the app's own HTTP/2 arrives as it is.
            let bytes = view(Protocol::Tcp, Callers::anybody());
            let _web = stage.start(&caller("web"), &bytes).await;
            assert_eq!(web::h2_status(API).await, Some(200), "{protocol:?}");
        }
    });
}

#[test]
fn what_may_not_be_reached_is_closed_at_once() {
    in_namespace(|| async {
        for command in ["addr add 10.99.0.2/32 dev lo", "route add 240.0.0.0/4 dev lo"] {
            ip_command(command);
        }
        nft("table inet test {
              chain output {
                type nat hook output priority -99;
                meta skuid 5995 return
                ip daddr { 240.0.0.0/4, 10.99.0.0/24 } tcp dport 1-9999 redirect to :15001
              }
            }");
        // What is dialled in the clear would be heard here.
        app("10.99.0.2:7000", "in the clear").await;
        app("10.99.0.2:7001", "outside the mesh").await;
        app("127.0.0.1:8081", "api").await;
        let stage = Stage::new();
        let mut mesh = view(Protocol::Tcp, Callers::anybody());
        let secret = known(&["240.0.0.9"], &[("10.99.0.2", 21009, Some(7000))], &[]);
        mesh.services.insert(name("secret"), secret);
        mesh.reach.insert(name("web"), [name("api")].into());
        mesh.virtual_net = Some("240.0.0.0/4".parse().unwrap());
        let _api = stage.start(&callee(), &mesh).await;
        let plan = caller("web");
        let web = stage.start(&plan, &mesh).await;
        for (to, greeting) in [
            ("240.0.0.5:80", Some("api")),
            ("240.0.0.9:80", None),
            ("10.99.0.2:7000", None),
            ("10.99.0.2:7001", Some("outside the mesh")),
            ("240.9.9.9:80", None),
            ("255.255.255.1:80", None),
        ] {
            let started = Instant::now();
            assert_eq!(call(to).await.as_deref(), greeting, "{to}");
            eprintln!("{to}: {:?}", started.elapsed());
            let cluster = lead(&plan, &mesh, to.parse().unwrap()).cluster;
            assert_eq!(cluster.is_some(), greeting.is_some(), "{to}: {cluster:?}");
            assert!(started.elapsed() < Duration::from_secs(3), "{to} is closed at once");
        }
        let passed_on = web.counter("cluster.original-destination.upstream_cx_total").await;
        assert_eq!(passed_on, 1, "only what is outside the mesh");
        let clusters = web.admin.stats("^cluster\\.secret\\.|passthrough~21009").await.unwrap();
        assert!(clusters.is_empty(), "{clusters:?}");
    });
}

#[test]
fn instances_get_their_share() {
    in_namespace(|| async {
        let stage = Stage::new();
        let mut mesh = view(Protocol::Tcp, Callers::anybody());
        let instance =
            |port, weight| Instance { address: scenarios::ip("127.0.0.1"), port, service_port: None, weight };
        mesh.services.get_mut(&name("api")).unwrap().instances =
            [instance(21001, 1), instance(21002, 9)].into();
        let mut other = callee();
        other.id = "api-2".parse().unwrap();
        other.sidecar.folder = "/run/enmesh/api-2".into();
        other.sidecar.inbound_port = Some(21002);
        other.port = Port::new(8082);
        app("127.0.0.1:8081", "one").await;
        app("127.0.0.1:8082", "nine").await;
        let _sidecars = (
            stage.start(&callee(), &mesh).await,
            stage.start(&other, &mesh).await,
            stage.start(&caller("web"), &mesh).await,
        );
        let mut calls: BTreeMap<String, u32> = BTreeMap::new();
        for _ in 0..200 {
            *calls.entry(call(API).await.unwrap()).or_default() += 1;
        }
        eprintln!("{calls:?}");
        // 20 of 200 are due.
        assert!((8..=40).contains(&calls["one"]), "{calls:?}");
    });
}
