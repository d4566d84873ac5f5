//! Policies that the tests apply.

use std::collections::{BTreeMap, BTreeSet};

use enmesh::config::{Ipv6Policy, OnProxyFailure};
use enmesh::plan::{
    Bypasses, DnsCapture, Generation, InboundCapture, InboundPorts, OutboundCapture, RedirectPolicy, Who,
};
use enmesh::redirect::Desired;

pub const APP: u32 = 1000;
pub const OTHER: u32 = 1001;
pub const NOBODY: u32 = 2000;
/// Runs a resolver of its own.
pub const RESOLVER: u32 = 990;
pub const PROXY: u32 = 5995;
pub const CONSUL: u32 = 102;

/// Nothing captured, but what always stands in a policy.
pub fn bare() -> RedirectPolicy {
    let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
    RedirectPolicy {
        generation: Generation { number: 7, hash: "0123456789ab".to_owned() },
        bypass_uids: BTreeSet::from([CONSUL, PROXY]),
        proxy_uids: BTreeSet::from([PROXY]),
        bypass_cidrs: nets(&["127.0.0.0/8", "::1/128", "169.254.169.254/32", "168.63.129.16/32"]),
        virtual_nets: nets(&["240.0.0.0/4", "fd00:240::/32"]),
        mesh_instances: BTreeSet::from([
            ("10.9.0.1".parse().unwrap(), 9000),
            ("fd09::1".parse().unwrap(), 9000),
        ]),
        outbound: BTreeMap::new(),
        inbound: BTreeMap::new(),
        dns: None,
        own_calls: false,
        agent_ports: BTreeSet::new(),
        virtual_route: Some("240.0.0.0/4".parse().unwrap()),
        host_end: None,
    }
}

pub fn outbound(who: Who, port: u16) -> OutboundCapture {
    OutboundCapture {
        who,
        port,
        ipv6: Ipv6Policy::Redirect,
        on_failure: OnProxyFailure::Closed,
        bypass: Bypasses::default(),
    }
}

pub fn inbound(ports: InboundPorts, to: u16) -> InboundCapture {
    InboundCapture {
        ports,
        to,
        ipv6: Ipv6Policy::Redirect,
        on_failure: OnProxyFailure::Closed,
        bypass_ports: vec!["22".parse().unwrap()],
        bypass_interfaces: BTreeSet::new(),
    }
}

pub fn bypasses(ports: &[&str], cidrs: &[&str]) -> Bypasses {
    Bypasses {
        ports: ports.iter().map(|text| text.parse().unwrap()).collect(),
        cidrs: cidrs.iter().map(|text| text.parse().unwrap()).collect(),
    }
}

/// Two services with a user each: `api` (1000, port 8080) and `web` (1001, port 8081).
pub fn two_users() -> RedirectPolicy {
    let mut policy = bare();
    let mut api = outbound(Who::Uid(APP), 15001);
    api.bypass = bypasses(&["3306"], &["10.50.0.0/16"]);
    let mut web = outbound(Who::Uid(OTHER), 15002);
    web.bypass = bypasses(&["5432"], &[]);
    policy.outbound = BTreeMap::from([("api".parse().unwrap(), api), ("web".parse().unwrap(), web)]);
    policy.inbound = BTreeMap::from([
        ("api".parse().unwrap(), inbound(InboundPorts::One(8080), 21000)),
        ("web".parse().unwrap(), inbound(InboundPorts::One(8081), 21001)),
    ]);
    policy
}

/// One service `api` for the whole host, port 8080.
pub fn whole_host() -> RedirectPolicy {
    let mut policy = bare();
    let mut api = outbound(Who::Everyone, 15001);
    api.bypass = bypasses(&["3306"], &["10.50.0.0/16"]);
    policy.outbound = BTreeMap::from([("api".parse().unwrap(), api)]);
    policy.inbound = BTreeMap::from([("api".parse().unwrap(), inbound(InboundPorts::One(8080), 21000))]);
    policy
}

/// `api` for the whole host and all of its ports, as the legacy files mean it, beside `web` with a
/// user and a port of its own.
pub fn legacy() -> RedirectPolicy {
    let mut policy = whole_host();
    let mut all = inbound(InboundPorts::All, 21000);
    all.bypass_ports = vec!["22".parse().unwrap(), "9100-9110".parse().unwrap()];
    policy.inbound = BTreeMap::from([
        ("api".parse().unwrap(), all),
        ("web".parse().unwrap(), inbound(InboundPorts::One(8081), 21001)),
    ]);
    policy.outbound.insert("web".parse().unwrap(), outbound(Who::Uid(OTHER), 15002));
    policy
}

/// The whole host, with DNS.
pub fn with_dns(uids: &[u32]) -> RedirectPolicy {
    let mut policy = whole_host();
    policy.dns = Some(DnsCapture {
        to: "127.0.0.1:8600".parse().unwrap(),
        uids: uids.iter().copied().collect(),
        except: [RESOLVER].into(),
        server: enmesh::plan::DnsServer::Ours,
    });
    policy
}

/// `policy` with every capture changed.
pub fn with(
    mut policy: RedirectPolicy,
    out: impl Fn(&mut OutboundCapture),
    inn: impl Fn(&mut InboundCapture),
) -> RedirectPolicy {
    policy.outbound.values_mut().for_each(out);
    policy.inbound.values_mut().for_each(inn);
    policy
}

pub fn on_failure(policy: RedirectPolicy, what: OnProxyFailure) -> RedirectPolicy {
    with(policy, |capture| capture.on_failure = what, |capture| capture.on_failure = what)
}

pub fn ipv6(policy: RedirectPolicy, what: Ipv6Policy) -> RedirectPolicy {
    with(policy, |capture| capture.ipv6 = what, |capture| capture.ipv6 = what)
}

/// All of its sidecars take connections.
pub fn live(policy: RedirectPolicy) -> Desired {
    let live = policy.outbound.keys().chain(policy.inbound.keys()).cloned().collect();
    Desired { policy, live }
}

/// None does.
pub fn down(policy: RedirectPolicy) -> Desired {
    Desired { policy, live: BTreeSet::new() }
}

/// Only those named do.
pub fn only(policy: RedirectPolicy, ids: &[&str]) -> Desired {
    Desired { policy, live: ids.iter().map(|id| id.parse().unwrap()).collect() }
}
