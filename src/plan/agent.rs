//! The Consul agent of this host: at which ports others call it.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use super::{AdsServer, HostFacts, Xds};
use crate::config::HostConfig;

/// Servers' RPC, and the gossip within a datacenter and between them: at their ports in Consul's table of ports.
const BETWEEN_AGENTS: std::ops::RangeInclusive<u16> = 8300..=8302;

/// Where one of the configured addresses leads.
enum Place {
    Loopback,
    /// An address of this host that others reach as well.
    Own(u16),
    Elsewhere,
}

/// The ports that stay reachable while all inbound ports are captured; none where the agent is on another host, or
/// where there is none.
///
/// The API is among them only where this host itself calls it by an address that is not loopback's: an agent that
/// answers on loopback alone has no callers from outside, and whoever opened its API to the network knows.
pub(super) fn ports(host: &HostConfig, facts: &HostFacts) -> BTreeSet<u16> {
    let api = host.consul.address.as_deref().map_or(Place::Loopback, |address| place(address, facts));
    if !facts.consul || matches!(api, Place::Elsewhere) {
        return BTreeSet::new();
    }
    let grpc = host.consul.grpc_address.as_deref().map(|address| place(address, facts));
    let xds = match &facts.xds {
        Xds::Ads(ads) => match ads.server {
            AdsServer::Tcp(at) => Some(place_of(at, facts)),
            AdsServer::Unix(_) => None,
        },
        Xds::Files => None,
    };
    let opened = [Some(api), grpc, xds].into_iter().flatten().filter_map(|place| match place {
        Place::Own(port) => Some(port),
        Place::Loopback | Place::Elsewhere => None,
    });
    BETWEEN_AGENTS.chain(opened).collect()
}

fn authority(address: &str) -> &str {
    let rest = address.split_once("://").map_or(address, |(_, rest)| rest);
    rest.split('/').next().unwrap_or_default()
}

/// An address as the configuration has it, with or without a scheme.
fn place(address: &str, facts: &HostFacts) -> Place {
    if address.starts_with("unix:") {
        return Place::Loopback;
    }
    let authority = authority(address);
    if let Ok(at) = authority.parse() {
        return place_of(at, facts);
    }
    match authority.rsplit_once(':').map(|(name, port)| (name, port.parse())) {
        Some(("localhost", _)) => Place::Loopback,
        Some((name, Ok(port))) if name == facts.hostname => Place::Own(port),
        _ => Place::Elsewhere,
    }
}

fn place_of(at: SocketAddr, facts: &HostFacts) -> Place {
    let ip = at.ip().to_canonical();
    if ip.is_loopback() || ip.is_unspecified() {
        Place::Loopback
    } else if facts.addresses.iter().any(|own| own.address == ip) {
        Place::Own(at.port())
    } else {
        Place::Elsewhere
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Ads;
    use crate::plan::facts::HostAddress;

    #[test]
    fn others_call_the_agent_that_is_here() {
        let own = HostAddress { interface: "eth0".to_owned(), address: "10.9.0.2".parse().unwrap() };
        let mut facts = HostFacts {
            consul: true,
            hostname: "vm".to_owned(),
            addresses: vec![own],
            ..HostFacts::default()
        };
        let of = |facts: &HostFacts, api: Option<&str>, grpc: Option<&str>| {
            let mut host = HostConfig::default();
            host.consul.address = api.map(str::to_owned);
            host.consul.grpc_address = grpc.map(str::to_owned);
            ports(&host, facts)
        };
        let gossip = BTreeSet::from([8300, 8301, 8302]);
        for here in
            [None, Some("http://localhost:8500"), Some("unix:///run/consul.sock"), Some("http://[::1]:8500")]
        {
            assert_eq!(of(&facts, here, Some("127.0.0.1:8502")), gossip, "{here:?}");
        }
        for elsewhere in ["https://10.9.0.9:8501", "http://consul.example:8500", "http://10.9.0.2"] {
            assert_eq!(of(&facts, Some(elsewhere), None), BTreeSet::new(), "{elsewhere}");
        }
        let with = |more: &[u16]| gossip.iter().chain(more).copied().collect::<BTreeSet<u16>>();
        assert_eq!(
            of(&facts, Some("https://10.9.0.2:8501/consul"), Some("10.9.0.2:8503")),
            with(&[8501, 8503])
        );
        assert_eq!(of(&facts, Some("http://vm:8500"), Some("http://10.9.0.9:8502")), with(&[8500]));
        let server = AdsServer::Tcp("10.9.0.2:8502".parse().unwrap());
        facts.xds = Xds::Ads(Ads { server, ca_pem: None, token: false, node_name: None });
        assert_eq!(of(&facts, None, None), with(&[8502]));
        facts.consul = false;
        assert_eq!(of(&facts, None, None), BTreeSet::new());
    }
}
