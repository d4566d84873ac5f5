//! Network namespaces that services have for themselves: which network each gets, and what is redirected
//! in it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use super::problem::PlanError;
use super::{Ads, AdsServer, HostFacts, RedirectPolicy, Xds};
use crate::config::ServiceConfig;
use crate::config::value::ServiceId;

/// What the names of the host's ends of cables begin with. Addresses on such links are ours.
pub const LINK_PREFIX: &str = "enm-";

/// The link inside.
pub const INNER_LINK: &str = "eth0";

/// A network of two ends: its own address, both ends, and the broadcast address.
const LENGTH: u8 = 30;

/// A network namespace of one service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespacePlan {
    /// Its name below `/run/netns`.
    pub name: String,
    /// Whose it is.
    pub service: ServiceId,
    /// The network between it and the host.
    pub net: Ipv4Net,
    /// The sidecar's public port. The host passes it on: it is the same on both sides.
    pub inbound: Option<u16>,
    /// The application's port, if that alone is captured: the host itself reaches it in the clear, to see how it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app: Option<u16>,
    /// Who on the host may.
    pub checkers: BTreeSet<u32>,
    /// Consul's xDS on the host's loopback, which the sidecar reaches at the host's end, at the same port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent: Option<SocketAddrV4>,
    /// The unit of the application, which runs in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// The redirection in it.
    pub redirect: RedirectPolicy,
}

impl NamespacePlan {
    /// The address of the host's end.
    pub fn outside(&self) -> Ipv4Addr {
        self.address(1)
    }

    /// The address inside.
    pub fn inside(&self) -> Ipv4Addr {
        self.address(2)
    }

    /// Who tells the sidecar what to do, as it is reached from within.
    pub(super) fn seen_from_within(&self, xds: &Xds) -> Xds {
        match (self.agent, xds) {
            (Some(agent), Xds::Ads(ads)) => {
                let server = AdsServer::Tcp((self.outside(), agent.port()).into());
                Xds::Ads(Ads { server, ..ads.clone() })
            }
            _ => xds.clone(),
        }
    }

    fn address(&self, number: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.net.network().to_bits().saturating_add(number))
    }

    /// The name of the host's end. It follows from the network alone, so two namespaces never share one.
    pub fn link(&self) -> String {
        link_of(self.net)
    }
}

/// `service` with checks that reach the application in its namespace, at `inside`, from the host.
pub fn seen_from_host(service: &ServiceConfig, inside: Ipv4Addr) -> ServiceConfig {
    let mut service = service.clone();
    for check in &mut service.checks {
        let targets = [&mut check.http, &mut check.tcp, &mut check.grpc, &mut check.udp, &mut check.h2ping];
        for target in targets.into_iter().flatten() {
            *target = led_inside(target, inside);
        }
    }
    service
}

/// A target with `inside` in the place of loopback.
fn led_inside(target: &str, inside: Ipv4Addr) -> String {
    let (scheme, rest) = match target.split_once("://") {
        Some((scheme, rest)) => (format!("{scheme}://"), rest),
        None => (String::new(), target),
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at_checked(end).unwrap_or((rest, ""));
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, format!(":{port}")),
        _ => (authority, String::new()),
    };
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let loopback = bare == "localhost" || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    if loopback { format!("{scheme}{inside}{port}{path}") } else { target.to_owned() }
}

/// Where Consul's xDS is, if that is the host's loopback.
pub(super) fn agent(xds: &Xds) -> Option<SocketAddrV4> {
    match xds {
        Xds::Ads(Ads { server: AdsServer::Tcp(SocketAddr::V4(at)), .. }) if at.ip().is_loopback() => {
            Some(*at)
        }
        _ => None,
    }
}

/// The name of the host's end of the cable of a namespace with the network `net`.
pub fn link_of(net: Ipv4Net) -> String {
    format!("{LINK_PREFIX}{:08x}", net.network().to_bits())
}

/// The network of the namespace `name`: the one it had, or the lowest free one.
pub(super) fn network(
    given: &mut BTreeMap<String, Ipv4Net>,
    wanted: &BTreeSet<String>,
    pool: Ipv4Net,
    facts: &HostFacts,
    (id, name): (&ServiceId, &str),
) -> Result<Ipv4Net, PlanError> {
    let in_pool = |address: &IpAddr| matches!(address, IpAddr::V4(v4) if pool.contains(v4));
    if let Some(taken) = facts.addresses.iter().find(|host| in_pool(&host.address)) {
        let interface = taken.interface.clone();
        return Err(PlanError::PoolInUse { id: id.clone(), pool, address: taken.address, interface });
    }
    if let Some(net) = given.get(name).filter(|net| pool.contains(*net) && net.prefix_len() == LENGTH) {
        return Ok(*net);
    }
    given.remove(name);
    let net = match free(given, pool) {
        Some(net) => Some(net),
        None => {
            given.retain(|holder, _| wanted.contains(holder));
            free(given, pool)
        }
    };
    let net = net.ok_or_else(|| PlanError::NamespacesUsedUp { id: id.clone(), pool })?;
    given.insert(name.to_owned(), net);
    Ok(net)
}

fn free(given: &BTreeMap<String, Ipv4Net>, pool: Ipv4Net) -> Option<Ipv4Net> {
    let held: BTreeSet<Ipv4Net> = given.values().copied().collect();
    pool.subnets(LENGTH).ok()?.find(|net| !held.contains(net))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_of_loopback_lead_inside_and_others_where_they_did() {
        for (target, seen) in [
            ("http://127.0.0.1:8080/health?x=1:2", "http://198.18.0.2:8080/health?x=1:2"),
            ("https://localhost/", "https://198.18.0.2/"),
            ("http://[::1]:80", "http://198.18.0.2:80"),
            ("127.0.0.1:5432", "198.18.0.2:5432"),
            ("localhost:8080/name", "198.18.0.2:8080/name"),
            ("http://10.0.0.1:8080/", "http://10.0.0.1:8080/"),
            ("http://localhost.example:1/", "http://localhost.example:1/"),
            ("[fd00::1]:80", "[fd00::1]:80"),
        ] {
            assert_eq!(led_inside(target, Ipv4Addr::new(198, 18, 0, 2)), seen);
        }
    }
}
