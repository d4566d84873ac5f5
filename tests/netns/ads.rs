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
#[path = "../support/fake_consul/mod.rs"]
mod fake_consul;
#[path = "../support/envoy_scenarios.rs"]
mod scenarios;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bed::{Ca, Sidecar, app, call, envoy, in_namespace, tree};
use enmesh::base::Root;
use enmesh::envoy::{Publisher, Secrets};
use enmesh::plan::{Ads, AdsServer, ServicePlan, Xds, XdsToken};
use fake_consul::{FakeConsul, FakeProxy, FakeUpstream, Listen, State};
use scenarios::{TRUST_DOMAIN, mesh, service};

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
        Pair { publisher: Publisher::new(root.clone()), root, _tree: tree, web, api, state }
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
        assert_eq!(fake.record().refusals, [String::new(); 0]);
    });
}
