//! Made-up policies and flows. The addresses and ports are few, so that what one names the other meets.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use enmesh::config::value::{PortRange, ServiceId};
use enmesh::config::{Ipv6Policy, OnProxyFailure};
use enmesh::plan::{
    Bypasses, DnsCapture, Generation, InboundCapture, InboundPorts, OutboundCapture, RedirectPolicy, Who,
};
use enmesh::redirect::{Flow, Origin, Transport};
use ipnet::IpNet;
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

/// Ports on which somebody on the host listens.
pub const PORTS: [u16; 20] = [
    22, 53, 80, 443, 3306, 5353, 5432, 8080, 8081, 8082, 8600, 9000, 9100, 9105, 9110, 15001, 15002, 15003,
    21000, 21001,
];

const USERS: [u32; 7] = [0, 102, 1000, 1001, 1002, 2000, 5995];
const OUTBOUND: [u16; 3] = [15001, 15002, 15003];
const INBOUND: [u16; 3] = [21000, 21001, 8082];

/// Networks that are bypassed or virtual, wide and narrow, so that some lie in others.
const NETS: [&str; 12] = [
    "10.50.0.0/16",
    "10.50.7.0/24",
    "10.9.0.1/32",
    "10.0.0.0/8",
    "172.17.0.0/24",
    "240.0.7.0/24",
    "0.0.0.0/1",
    "fd09::/64",
    "fd50::/16",
    "fd00:240::7/128",
    "fd09::1/128",
    "fd17::/64",
];

/// Where users of the host go to.
const FAR: [&str; 20] = [
    "10.9.0.1",
    "10.9.0.1",
    "10.9.0.11",
    "10.50.0.1",
    "10.50.7.7",
    "192.0.2.7",
    "169.254.169.254",
    "168.63.129.16",
    "172.17.0.5",
    "240.0.0.1",
    "240.0.0.1",
    "240.0.7.7",
    "fd09::1",
    "fd09::1",
    "fd50::1",
    "2001:db8::7",
    "fd17::5",
    "fd00:240::1",
    "fd00:240::7",
    "fd00:240::7",
];
const NEAR: [&str; 9] = [
    "127.0.0.1",
    "127.0.0.53",
    "127.0.0.54",
    "127.7.7.7",
    "::1",
    "10.9.0.2",
    "10.9.0.22",
    "10.8.0.2",
    "fd09::2",
];

/// What a peer can reach of the host, and the interface that it comes in by.
const FROM_OUTSIDE: [(&str, &str); 5] = [
    ("10.9.0.2", "eth0"),
    ("10.9.0.22", "eth0"),
    ("fd09::2", "eth0"),
    ("10.8.0.2", "eth1"),
    ("fd08::2", "eth1"),
];
/// What it can reach through the host.
const THROUGH: [&str; 2] = ["172.17.0.5", "fd17::5"];

/// Whether an address is behind the host.
pub fn is_behind(ip: IpAddr) -> bool {
    let nets: [IpNet; 2] = ["172.17.0.0/24".parse().unwrap(), "fd17::/64".parse().unwrap()];
    nets.iter().any(|net| net.contains(&ip))
}

fn some<T: Copy>(chance: &mut StdRng, all: &[T], most: usize) -> Vec<T> {
    let count = chance.random_range(0..=most);
    all.choose_multiple(chance, count).copied().collect()
}

fn ranges(chance: &mut StdRng, most: usize) -> Vec<PortRange> {
    let one = |chance: &mut StdRng, first: u16| match chance.random_bool(0.3) {
        true => format!("{first}-{}", first + chance.random_range(1..20)),
        false => first.to_string(),
    };
    some(chance, &PORTS, most).into_iter().map(|port| one(chance, port).parse().unwrap()).collect()
}

fn ipv6(chance: &mut StdRng) -> Ipv6Policy {
    *[Ipv6Policy::Redirect, Ipv6Policy::Redirect, Ipv6Policy::Refuse, Ipv6Policy::Allow]
        .choose(chance)
        .unwrap()
}

fn on_failure(chance: &mut StdRng) -> OnProxyFailure {
    *[OnProxyFailure::Closed, OnProxyFailure::Closed, OnProxyFailure::Sealed, OnProxyFailure::Open]
        .choose(chance)
        .unwrap()
}

/// A policy, and whose sidecars are live.
pub fn policy(chance: &mut StdRng) -> (RedirectPolicy, BTreeSet<ServiceId>) {
    let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<BTreeSet<IpNet>>();
    let mut policy = RedirectPolicy {
        own_calls: false,
        generation: Generation { number: 7, hash: "0123456789ab".to_owned() },
        bypass_uids: some(chance, &USERS, 1).into_iter().chain([102, 5995]).collect(),
        proxy_uids: BTreeSet::from([5995]),
        bypass_cidrs: nets(&["127.0.0.0/8", "::1/128", "169.254.169.254/32", "168.63.129.16/32"]),
        virtual_nets: nets(&["240.0.0.0/4", "fd00:240::/32"]),
        mesh_instances: BTreeSet::new(),
        outbound: BTreeMap::new(),
        inbound: BTreeMap::new(),
        dns: None,
        agent_ports: BTreeSet::new(),
        virtual_route: None,
        host_end: None,
    };
    for _ in 0..chance.random_range(0..8) {
        let address = FAR.choose(chance).unwrap().parse().unwrap();
        policy.mesh_instances.insert((address, *PORTS.choose(chance).unwrap()));
    }
    let mut live = BTreeSet::new();
    let (host, all) = (chance.random_range(0..5), chance.random_range(0..5));
    for (index, name) in ["a", "b", "c"].into_iter().enumerate().take(chance.random_range(1..=3)) {
        let id: ServiceId = name.parse().unwrap();
        if chance.random_bool(0.6) {
            live.insert(id.clone());
        }
        if chance.random_bool(0.85) {
            let who =
                if host == index { Who::Everyone } else { Who::Uid(1000 + u32::try_from(index).unwrap()) };
            let cidrs = some(chance, &NETS, 2).into_iter().map(|text| text.parse().unwrap()).collect();
            let bypass = Bypasses { ports: ranges(chance, 2), cidrs };
            let (ipv6, on_failure) = (ipv6(chance), on_failure(chance));
            let capture = OutboundCapture { who, port: OUTBOUND[index], ipv6, on_failure, bypass };
            policy.outbound.insert(id.clone(), capture);
        }
        if chance.random_bool(0.85) {
            let ports =
                if all == index { InboundPorts::All } else { InboundPorts::One([8080, 8081, 9000][index]) };
            let interfaces = some(chance, &["eth0", "eth1", "br0"], 1);
            let capture = InboundCapture {
                ports,
                to: INBOUND[index],
                ipv6: ipv6(chance),
                on_failure: on_failure(chance),
                bypass_ports: ranges(chance, 2),
                bypass_interfaces: interfaces.into_iter().map(str::to_owned).collect(),
            };
            policy.inbound.insert(id, capture);
        }
    }
    if chance.random_bool(0.3) {
        let to = ["127.0.0.1:8600", "[::1]:8600", "10.9.0.2:8600"].choose(chance).unwrap().parse().unwrap();
        let (uids, except) = (some(chance, &USERS, 3), some(chance, &USERS, 2));
        policy.dns = Some(DnsCapture {
            to,
            uids: uids.into_iter().collect(),
            except: except.into_iter().collect(),
            server: enmesh::plan::DnsServer::Ours,
        });
    }
    (policy, live)
}

/// A flow, more often than not one that the policy has something to say about.
pub fn flow(chance: &mut StdRng, policy: &RedirectPolicy) -> Flow {
    let transport = if chance.random_bool(0.15) { Transport::Udp } else { Transport::Tcp };
    let port = if chance.random_bool(0.15) { 53 } else { *PORTS.choose(chance).unwrap() };
    if chance.random_bool(0.4) {
        if chance.random_bool(0.1) {
            let ip: IpAddr = THROUGH.choose(chance).unwrap().parse().unwrap();
            let to = SocketAddr::new(ip, port);
            return Flow { origin: Origin::Outside(Some("eth0".to_owned())), transport, to };
        }
        let (ip, interface) = FROM_OUTSIDE.choose(chance).unwrap();
        let port = match chance.random_bool(0.4) {
            true => *[8080, 8081, 9000].choose(chance).unwrap(),
            false => port,
        };
        let to = SocketAddr::new(ip.parse().unwrap(), port);
        return Flow { origin: Origin::Outside(Some((*interface).to_owned())), transport, to };
    }
    let captured: Vec<u32> = policy
        .outbound
        .values()
        .filter_map(|capture| match capture.who {
            Who::Uid(uid) => Some(uid),
            Who::Everyone | Who::Nobody => None,
        })
        .collect();
    let user = match captured.choose(chance) {
        Some(user) if chance.random_bool(0.5) => *user,
        _ => *USERS.choose(chance).unwrap(),
    };
    let instances: Vec<_> = policy.mesh_instances.iter().copied().collect();
    let to = match instances.choose(chance) {
        Some(instance) if chance.random_bool(0.2) => SocketAddr::from(*instance),
        _ => {
            let among: &[&str] = if chance.random_bool(0.15) { &NEAR } else { &FAR };
            SocketAddr::new(among.choose(chance).unwrap().parse().unwrap(), port)
        }
    };
    Flow { origin: Origin::User(user), transport, to }
}
