//! A sidecar in a namespace for itself that Consul's xDS drives, over the cable and over a socket: the real plan, rules,
//! border and bootstrap, and a real Envoy. The xDS is a fake's, because Consul 1.8.7 speaks none that this Envoy knows.
//! Without a daemon.

use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use enmesh::config::Config;
use enmesh::demo::stage::APP_PORT;
use enmesh::envoy::{Publisher, Secrets};
use enmesh::netns::{self, Cable, Namespace};
use enmesh::plan::facts::{HostAddress, User};
use enmesh::plan::{self, Ads, AdsServer, HostFacts, INNER_LINK, MeshView, Plan, ServicePlan, Xds};
use enmesh::redirect::{Border, Crossings, Desired, Firewall, Nftables};
use ipnet::IpNet;
use serde_json::json;

use crate::bed::{BESIDE_PORT, Bed};
use crate::envoy_bed::{Ca, Sidecar, envoy, tree};
use crate::fake_consul::{FakeConsul, FakeProxy, FakeUpstream, Listen, Record, State};

const TRUST_DOMAIN: &str = "1.consul";
/// Where `web` is for `api`, and where `api` is for `web`, which has no rules.
const WEB: &str = "240.0.0.5:80";
const API: &str = "127.0.0.1:9002";

fn mesh() -> MeshView {
    MeshView { trust_domain: TRUST_DOMAIN.to_owned(), datacenter: "dc1".to_owned(), ..MeshView::default() }
}

/// `api` in its namespace and `web` beside it, both driven by `server`.
fn plan_of(bed: &Bed, server: AdsServer) -> Plan {
    let scope = format!("netns:{}", bed.names["api"]);
    let api = json!({ "name": "api", "port": APP_PORT, "capture": { "scope": scope } });
    let web = json!({ "name": "web", "port": BESIDE_PORT, "capture": { "mode": "direct" } });
    let services = [api, web].map(|service| serde_json::from_value(service).unwrap()).into();
    let own = HostAddress { interface: "eth0".to_owned(), address: bed.near().address.into() };
    let facts = HostFacts {
        users: [("envoy".to_owned(), User { uid: 5995, gid: 5995 })].into(),
        mesh: mesh(),
        xds: Xds::Ads(Ads { server, ca_pem: None, token: false, node_name: None }),
        envoy: Some(envoy()),
        addresses: vec![own],
        ..HostFacts::default()
    };
    let plan = plan::plan(&Config { services, ..Config::default() }, &facts);
    assert!(plan.errors.is_empty() && plan.services.len() == 2, "{:?}", plan.errors);
    plan
}

/// What Consul would tell `own`: that `other` is at the host's address.
fn told(ca: &Ca, own: &ServicePlan, other: &ServicePlan, host: IpAddr, local_port: Option<u16>) -> FakeProxy {
    let port = other.sidecar.inbound_port.unwrap();
    FakeProxy {
        outbound: own.sidecar.outbound_port,
        inbound: own.sidecar.inbound_port.zip(own.port.map(|port| port.get())),
        credentials: ca.issue(&own.identity),
        callers: vec![format!("^{}$", other.identity)],
        upstreams: vec![FakeUpstream {
            sni: mesh().sni(&other.name),
            spiffe: other.identity.to_string(),
            virtual_ips: vec![WEB.parse::<SocketAddr>().unwrap().ip()],
            instances: vec![SocketAddr::new(host, port)],
            local_port,
        }],
    }
}

/// Namespace, border, cable and rules, as a host's enmesh makes them.
fn build(host: &Namespace, plan: &Plan) -> Namespace {
    let own = plan.namespaces.values().next().unwrap();
    let namespace = Namespace::create(&own.name).unwrap();
    let (link, crossings) = (own.link(), Crossings::of(plan));
    let end = |address: std::net::Ipv4Addr| IpNet::new_assert(address.into(), 30);
    let lay = || {
        Border::new().apply(&crossings).unwrap();
        netns::set_forwarding(true).unwrap();
        let (outside, inside) = (end(own.outside()), end(own.inside()));
        Cable { namespace: &namespace, outer: &link, inner: INNER_LINK, outside, inside }.lay().unwrap();
        if own.agent.is_some() {
            netns::lead_to_loopback(&link).unwrap();
        }
    };
    host.run(lay).unwrap();
    let desired = Desired { policy: own.redirect.clone(), live: [own.service.clone()].into() };
    let pool = own.redirect.virtual_route.unwrap();
    namespace.run(|| Nftables::new().apply(&desired).unwrap()).unwrap();
    namespace.run_async(async || netns::ensure_virtual_route(pool).await).unwrap().unwrap();
    namespace
}

/// Both call each other with what Consul told their sidecars alone.
fn driven(tag: &str, socket: bool) {
    let bed = Bed::build_beside(tag, &["api"], &["web"], "");
    let host = Namespace::open(bed.near().namespace.path()).unwrap();
    let (_tree, root) = tree();
    let path: PathBuf = root.join("/grpc.sock");
    let tcp: SocketAddr = "127.0.0.1:8502".parse().unwrap();
    let server = if socket { AdsServer::Unix(path.clone()) } else { AdsServer::Tcp(tcp) };
    let plan = plan_of(&bed, server);
    let [api, web] = ["api", "web"].map(|id| plan.services[&id.parse().unwrap()].clone());
    let (ca, address) = (Ca::new(TRUST_DOMAIN), bed.near().address.into());
    let proxies = [
        ("api-sidecar-proxy", told(&ca, &api, &web, address, None)),
        ("web-sidecar-proxy", told(&ca, &web, &api, address, Some(9002))),
    ];
    let state =
        State { proxies: proxies.map(|(id, proxy)| (id.to_owned(), proxy)).into(), ..State::default() };
    let namespace = build(&host, &plan);

    let (ready, is_ready) = std::sync::mpsc::channel();
    let (end, ends) = tokio::sync::oneshot::channel::<()>();
    let seen: Record = std::thread::scope(|scope| {
        let serve = async move || {
            let mut fake = FakeConsul::new(state);
            let listen = if socket { Listen::Unix(path.clone()) } else { Listen::Plaintext(tcp) };
            fake.serve(listen).await;
            if socket {
                std::fs::set_permissions(&path, PermissionsExt::from_mode(0o666)).unwrap();
            }
            ready.send(()).unwrap();
            let _ = ends.await;
            std::mem::take(&mut *fake.record())
        };
        let fake = scope.spawn(|| host.run_async(serve).unwrap());
        is_ready.recv().unwrap();
        let start = async |service: &ServicePlan| {
            Publisher::new(root.clone()).publish(service, &mesh(), Secrets::Kept).await.unwrap();
            Sidecar::start(service, &root).await
        };
        let _within = namespace.run_async(async || start(&api).await).unwrap();
        let _beside = host.run_async(async || start(&web).await).unwrap();
        bed.app("api");
        bed.app("web");
        assert_eq!(bed.call_soon("api", WEB.parse().unwrap()), "web");
        assert_eq!(bed.call_soon("web", API.parse().unwrap()), "api");
        end.send(()).unwrap();
        fake.join().unwrap()
    });
    let mut streams: Vec<&str> = seen.streams.iter().map(|stream| stream.id.as_str()).collect();
    streams.sort_unstable();
    assert_eq!(streams, ["api-sidecar-proxy", "web-sidecar-proxy"]);
    assert!(seen.refusals.is_empty(), "{:?}", seen.refusals);
    Namespace::delete(&bed.names["api"]).unwrap();
}

#[test]
fn a_fake_consul_drives_a_sidecar_over_the_cable() {
    driven("ns-driven", false);
}

#[test]
fn a_fake_consul_drives_a_sidecar_over_a_socket() {
    driven("ns-socket", true);
}
