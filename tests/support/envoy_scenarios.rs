//! Services and meshes that the tests of the room `envoy` share: each a case that Envoy's
//! configuration has to get right.

#![allow(dead_code, reason = "each test target uses a part")]

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, UNIX_EPOCH};

use enmesh::config::value::{Port, ServiceName, Span};
use enmesh::plan::{
    Access, AccessLog, Ads, AdsServer, Callers, Credentials, ExplicitUpstream, HeaderMatch, HeaderRule,
    Instance, LogFormat, LogTarget, MeshService, MeshView, PathMatch, Protocol, RequestRule, ServicePlan,
    SidecarPlan, Xds,
};
use serde_json::{Map, Value, json};

pub const TRUST_DOMAIN: &str = "11111111-2222-3333-4444-555555555555.consul";

pub fn name(text: &str) -> ServiceName {
    text.parse().unwrap()
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A service with everything a host has by default: outbound 15001, public 21000, app 8080.
pub fn service(id: &str) -> ServicePlan {
    let mesh = mesh([]);
    ServicePlan {
        id: id.parse().unwrap(),
        name: name(id),
        port: Port::new(8080),
        address: Some(ip("10.0.0.1")),
        identity: mesh.spiffe_id(&name(id)),
        sidecar: SidecarPlan {
            uid: 5995,
            gid: 5995,
            program: PathBuf::from("/usr/bin/envoy"),
            outbound_port: Some(15001),
            inbound_port: Some(21000),
            apart: false,
            ipv6: true,
            folder: PathBuf::from("/run/enmesh").join(id),
            drain: Span::seconds(15),
            config: serde_json::Map::new(),
            xds: Xds::Files,
            access_log: None,
        },
        upstreams: Vec::new(),
        registration: json!({}),
    }
}

pub fn mesh<const N: usize>(services: [(&str, MeshService); N]) -> MeshView {
    MeshView {
        trust_domain: TRUST_DOMAIN.to_owned(),
        datacenter: "dc1".to_owned(),
        services: services.into_iter().map(|(text, known)| (name(text), known)).collect(),
        ..MeshView::default()
    }
}

/// A service of the mesh: virtual IPs, `address port [app port]` instances, and callers (`*`: any).
pub fn known(virtual_ips: &[&str], instances: &[(&str, u16, Option<u16>)], allow: &[&str]) -> MeshService {
    MeshService {
        virtual_ips: virtual_ips.iter().map(|text| ip(text)).collect(),
        instances: instances
            .iter()
            .map(|(address, port, service_port)| Instance {
                address: ip(address),
                port: *port,
                service_port: *service_port,
                weight: 1,
            })
            .collect(),
        callers: callers(allow),
        protocol: Protocol::Tcp,
    }
}

pub fn callers(allow: &[&str]) -> Callers {
    let others = if allow.contains(&"*") { Access::Allow } else { Access::Deny };
    let named = allow.iter().filter(|text| **text != "*").map(|text| (name(text), Access::Allow));
    Callers { named: named.collect(), others }
}

pub fn upstream(text: &str, port: u16) -> ExplicitUpstream {
    ExplicitUpstream { service: name(text), port }
}

/// Certificates that show where they end up and that no scanner takes for secrets.
pub fn placeholders() -> Credentials {
    Credentials {
        certificate_pem: "the leaf certificate, PEM\n".to_owned(),
        key_pem: "its private key, PEM\n".to_owned(),
        roots_pem: "the roots, PEM\n".to_owned(),
        not_before: UNIX_EPOCH,
        not_after: UNIX_EPOCH + Duration::from_secs(72 * 3600),
    }
}

/// Every scenario by name.
pub fn scenarios() -> BTreeMap<&'static str, (ServicePlan, MeshView)> {
    [
        ("server-and-client", server_and_client()),
        ("client-only", client_only()),
        ("explicit-upstreams-only", explicit_only()),
        ("contested-addresses", contested()),
        ("empty-mesh", (service("web"), mesh([]))),
        ("denied-exceptions", denied_exceptions()),
        ("http", speaking(Protocol::Http)),
        ("http2", speaking(Protocol::Http2)),
        ("grpc", speaking(Protocol::Grpc)),
        ("reach-and-weights", reach_and_weights()),
        ("every-bootstrap-key", (with_every_key(service("web")), mesh([]))),
    ]
    .into()
}

/// Sidecars that Consul drives, by name. `ca` is the PEM of the CA of its xDS.
pub fn driven(ca: &str) -> BTreeMap<&'static str, ServicePlan> {
    let with = |mut service: ServicePlan, ads: Ads| {
        service.sidecar.xds = Xds::Ads(ads);
        service
    };
    let agent = |token| Ads {
        server: AdsServer::Tcp("127.0.0.1:8502".parse().unwrap()),
        ca_pem: None,
        token,
        node_name: None,
    };
    let mut logged = with_every_key(service("web"));
    logged.registration = json!({"service": {"namespace": "ns", "partition": "ap"}});
    logged.sidecar.access_log = Some(AccessLog {
        to: LogTarget::File(PathBuf::from("/dev/null")),
        format: LogFormat::Text("%START_TIME%".to_owned()),
    });
    [
        ("driven-by-an-agent", with(service("web"), agent(true))),
        ("driven-without-a-token", with(service("web"), agent(false))),
        ("driven-with-every-bootstrap-key", with(logged, agent(true))),
        (
            "driven-by-a-server",
            with(
                service("web"),
                Ads {
                    server: AdsServer::Tcp("[fd00::8]:8503".parse().unwrap()),
                    ca_pem: Some(ca.to_owned()),
                    token: true,
                    node_name: Some("vm-enmesh".to_owned()),
                },
            ),
        ),
        (
            "driven-over-a-socket",
            with(
                service("web"),
                Ads { server: AdsServer::Unix(PathBuf::from("/run/consul.sock")), ..agent(true) },
            ),
        ),
    ]
    .into()
}

/// With every key of `proxy.config` that is for the bootstrap.
fn with_every_key(mut service: ServicePlan) -> ServicePlan {
    let at = |port: u16| json!({"socket_address": {"address": "127.0.0.1", "port_value": port}});
    let cluster = json!({"name": "tracer", "type": "STATIC", "load_assignment": {
        "cluster_name": "tracer", "endpoints": [{"lb_endpoints": [{"endpoint": {"address": at(9411)}}]}],
    }});
    let other = json!({"name": "other", "type": "STATIC"});
    let any = |message: &str, mut fields: Map<String, Value>| {
        fields.insert("@type".to_owned(), json!(format!("type.googleapis.com/{message}")));
        Value::Object(fields)
    };
    let fields = |value: Value| value.as_object().unwrap().clone();
    let proxy = any(
        "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        fields(json!({"stat_prefix": "extra", "cluster": "other"})),
    );
    let filter = json!({"name": "envoy.filters.network.tcp_proxy", "typed_config": proxy});
    let listener = json!({"name": "extra", "address": at(9107), "filter_chains": [{"filters": [filter]}]});
    let statsd = any("envoy.config.metrics.v3.StatsdSink", fields(json!({"tcp_cluster_name": "other"})));
    let zipkin = any(
        "envoy.config.trace.v3.ZipkinConfig",
        fields(json!({"collector_cluster": "tracer", "collector_endpoint": "/api/v2/spans",
            "collector_endpoint_version": "HTTP_JSON"})),
    );
    service.sidecar.config = fields(json!({
        "envoy_statsd_url": "udp://127.0.0.1:8125",
        "envoy_dogstatsd_url": "udp://${HOST_IP}:8126",
        "envoy_stats_tags": ["team=core", "canary", "local_cluster=mine"],
        "envoy_prometheus_bind_addr": "0.0.0.0:9102",
        "envoy_stats_bind_addr": "127.0.0.1:9103",
        "envoy_ready_bind_addr": "[::1]:9104",
        "envoy_stats_flush_interval": "250ms",
        "envoy_tracing_json": json!({"http": {"name": "envoy.tracers.zipkin", "typed_config": zipkin}}).to_string(),
        "envoy_extra_static_clusters_json": format!("{cluster}, {other}"),
        "envoy_extra_static_listeners_json": listener.to_string(),
        "envoy_extra_stats_sinks_json": json!({"name": "envoy.stat_sinks.statsd", "typed_config": statsd}).to_string(),
    }));
    service
}

/// Dual stack, transparent, with instances that are dialled directly and with intentions.
fn server_and_client() -> (ServicePlan, MeshView) {
    let mut web = service("web");
    web.upstreams = vec![upstream("db", 5432)];
    let mesh = mesh([
        (
            "api",
            known(
                &["240.0.0.5", "240.0.0.4", "fd00::5"],
                &[
                    ("10.0.0.2", 21000, Some(8080)),
                    ("10.0.0.3", 21007, Some(8080)),
                    ("fd00:1::2", 21000, Some(8080)),
                ],
                &["web"],
            ),
        ),
        ("db", known(&[], &[("10.0.0.9", 21000, None)], &["web"])),
        ("idle", known(&["240.0.0.7"], &[], &["*"])),
        ("web", known(&["240.0.0.6"], &[("10.0.0.1", 21000, Some(8080))], &["api", "front_end-2"])),
    ]);
    (web, mesh)
}

/// No app, no IPv6: only an outbound listener.
fn client_only() -> (ServicePlan, MeshView) {
    let mut cron = service("cron");
    cron.port = None;
    cron.sidecar.inbound_port = None;
    cron.sidecar.ipv6 = false;
    (cron, mesh([("api", known(&["240.0.0.5"], &[("10.0.0.2", 21000, None)], &["*"]))]))
}

/// Mode `direct`, an upstream that the mesh does not know yet, and the options of `proxy.config`.
fn explicit_only() -> (ServicePlan, MeshView) {
    let mut web = service("web");
    web.id = "web-2".parse().unwrap();
    web.sidecar.folder = PathBuf::from("/run/enmesh/web-2");
    web.sidecar.outbound_port = None;
    web.upstreams = vec![upstream("later", 9001), upstream("api", 9002), upstream("api", 9000)];
    web.sidecar.config = json!({
        "bind_address": "127.0.0.1", "max_inbound_connections": 100, "local_connect_timeout_ms": 250,
        "envoy_concurrency": 1, "envoy_access_log": false
    })
    .as_object()
    .unwrap()
    .clone();
    let mesh = mesh([
        ("api", known(&["240.0.0.5"], &[("10.0.0.2", 21000, Some(8080))], &["web"])),
        ("web", known(&[], &[], &["*"])),
    ]);
    (web, mesh)
}

/// Addresses that two services claim, and the host's own address. Nobody may call.
fn contested() -> (ServicePlan, MeshView) {
    let mesh = mesh([
        ("a", known(&["240.0.0.4"], &[("10.0.0.2", 21000, Some(80)), ("10.0.0.1", 21001, Some(80))], &["*"])),
        ("b", known(&["240.0.0.4", "240.0.0.5"], &[("10.0.0.2", 21001, Some(80))], &["*"])),
        ("c", known(&["240.0.0.5"], &[("10.0.0.2", 21002, Some(81))], &["*"])),
        ("web", known(&["240.0.0.6"], &[("10.0.0.1", 21000, Some(8080))], &[])),
    ]);
    (service("web"), mesh)
}

/// Everybody may call but two; a rule for requests is as good as a denial where nobody can see requests.
fn denied_exceptions() -> (ServicePlan, MeshView) {
    let mut known = known(&["240.0.0.6"], &[], &["*", "web-admin"]);
    known.callers.named.insert(name("web"), Access::Deny);
    known.callers.named.insert(name("worker"), Access::Requests(vec![rule(true, "/")]));
    (service("db"), mesh([("db", known)]))
}

/// A rule about requests whose path begins with `prefix`.
pub fn rule(allow: bool, prefix: &str) -> RequestRule {
    RequestRule { allow, path: Some(PathMatch::Prefix(prefix.to_owned())), ..RequestRule::default() }
}

/// A rule about a header, and about nothing else.
pub fn header_rule(allow: bool, header: &str, value: HeaderMatch, invert: bool) -> RequestRule {
    let headers = vec![HeaderRule { name: header.to_owned(), value, invert }];
    RequestRule { allow, headers, ..RequestRule::default() }
}

/// Every kind of rule about requests.
pub fn request_rules() -> Vec<RequestRule> {
    let exactly = |text: &str| Some(PathMatch::Exact(text.to_owned()));
    vec![
        header_rule(false, "x-debug", HeaderMatch::Present, false),
        RequestRule { allow: true, path: exactly("/health"), ..RequestRule::default() },
        rule(false, "/admin"),
        RequestRule {
            allow: true,
            path: Some(PathMatch::Regex("/v[12]/.*".to_owned())),
            methods: ["GET", "HEAD"].map(str::to_owned).into(),
            ..RequestRule::default()
        },
        RequestRule {
            allow: true,
            methods: ["PUT".to_owned()].into(),
            headers: vec![
                HeaderRule {
                    name: "x-tenant".to_owned(),
                    value: HeaderMatch::Prefix("blue-".to_owned()),
                    invert: false,
                },
                HeaderRule {
                    name: "x-tenant".to_owned(),
                    value: HeaderMatch::Suffix("-old".to_owned()),
                    invert: true,
                },
            ],
            ..RequestRule::default()
        },
        header_rule(true, "x-token", HeaderMatch::Exact("secret".to_owned()), false),
        header_rule(true, "x-tags", HeaderMatch::Contains("open".to_owned()), false),
        header_rule(true, "x-number", HeaderMatch::Regex("[0-9]+".to_owned()), false),
    ]
}

/// A service, and one that it calls, that speak `protocol`.
fn speaking(protocol: Protocol) -> (ServicePlan, MeshView) {
    let mut web = service("web");
    web.upstreams = vec![upstream("api", 9000)];
    web.sidecar.config = json!({"local_request_timeout_ms": 2500, "local_idle_timeout_ms": 0,
        "balance_inbound_connections": "exact_balance"})
    .as_object()
    .unwrap()
    .clone();
    let mut called = known(&["240.0.0.5"], &[("10.0.0.2", 21000, Some(8080))], &["web"]);
    called.protocol = protocol;
    let mut own = known(&["240.0.0.6"], &[], &["*"]);
    own.protocol = protocol;
    own.callers.named.insert(name("cron"), Access::Requests(request_rules()));
    own.callers.named.insert(name("guest"), Access::Requests(vec![rule(false, "/")]));
    (web, mesh([("api", called), ("web", own)]))
}

/// Two services that may be reached, one by its virtual IP and one by an upstream of its own, and one
/// that may not. The first has instances that take different shares.
fn reach_and_weights() -> (ServicePlan, MeshView) {
    let mut web = service("web");
    web.upstreams = vec![upstream("db", 5432)];
    let mut mesh = mesh([
        ("api", known(&["240.0.0.5"], &[("10.0.0.2", 21000, None), ("10.0.0.3", 21000, None)], &["*"])),
        ("db", known(&["240.0.0.7"], &[("10.0.0.4", 21000, Some(5432))], &["*"])),
        ("secret", known(&["240.0.0.8", "240.0.0.5"], &[("10.0.0.4", 21001, Some(80))], &[])),
        ("web", known(&["240.0.0.6"], &[], &["*"])),
    ]);
    let api = mesh.services.get_mut(&name("api")).unwrap();
    api.instances = std::mem::take(&mut api.instances)
        .into_iter()
        .zip([0, 9])
        .map(|(instance, weight)| Instance { weight, ..instance })
        .collect();
    mesh.reach.insert(name("web"), [name("api")].into());
    mesh.virtual_net = Some("240.0.0.0/4".parse().unwrap());
    mesh.past.virtual_ips.insert(ip("203.0.113.20"));
    mesh.past.instances.extend([(ip("10.0.0.4"), 81), (ip("10.0.0.9"), 80)]);
    (web, mesh)
}
