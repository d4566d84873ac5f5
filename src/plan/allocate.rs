//! Ports and virtual IPs, given out so that one service's coming or going never moves another's.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::problem::PlanError;
use crate::config::value::{PortRange, ServiceId, ServiceName};

/// What has been given out.
///
/// An allocation outlives its service, so that one that comes back gets what it had; it is reclaimed
/// only when the range is used up.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Allocations {
    /// Outbound listener ports.
    pub outbound: BTreeMap<ServiceId, u16>,
    /// Public listener ports.
    pub inbound: BTreeMap<ServiceId, u16>,
    /// Virtual IPs of the mesh's services.
    pub virtual_ips: BTreeMap<ServiceName, Ipv4Addr>,
    /// Networks of namespaces, by their names.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub namespaces: BTreeMap<String, Ipv4Net>,
}

/// One kind of sidecar port.
pub(super) struct PortPool<'a> {
    /// `outbound` or `inbound`, as in the host file.
    pub kind: &'static str,
    pub range: PortRange,
    /// Ports that somebody else listens on.
    pub foreign: &'a BTreeSet<u16>,
    /// Ports on which this host's own applications listen.
    pub apps: &'a BTreeSet<u16>,
}

impl PortPool<'_> {
    /// The port of `id`: the one it had, or the lowest free one.
    pub fn port(
        &self,
        given: &mut BTreeMap<ServiceId, u16>,
        wanted: &BTreeSet<ServiceId>,
        id: &ServiceId,
    ) -> Result<u16, PlanError> {
        if let Some(port) = given.get(id).copied().filter(|port| self.range.contains(*port)) {
            if self.foreign.contains(&port) {
                return Err(PlanError::PortTaken { id: id.clone(), kind: self.kind, port });
            }
            return Ok(port);
        }
        given.remove(id);
        let port = match self.free(given) {
            Some(port) => Some(port),
            None => {
                given.retain(|holder, _| wanted.contains(holder));
                self.free(given)
            }
        };
        let port =
            port.ok_or(PlanError::PortsUsedUp { id: id.clone(), kind: self.kind, range: self.range })?;
        given.insert(id.clone(), port);
        Ok(port)
    }

    fn free(&self, given: &BTreeMap<ServiceId, u16>) -> Option<u16> {
        let held: BTreeSet<u16> = given.values().copied().collect();
        self.range
            .iter()
            .find(|port| !held.contains(port) && !self.foreign.contains(port) && !self.apps.contains(port))
    }
}

/// What of the pool `net` is routed to loopback: all of it, but for the network that has the limited broadcast
/// (255.255.255.255) in it. Where a route says where that goes, the kernel follows it.
///
/// Around that one address alone the rest of 240.0.0.0/4 would be 28 routes; without 255.0.0.0/8 it is four.
pub fn routed(net: Ipv4Net) -> Vec<Ipv4Net> {
    let Some(out) = unrouted(net) else { return vec![net.trunc()] };
    let mut parts = Vec::new();
    let mut rest = net.trunc();
    while rest != out {
        let Ok(mut halves) = rest.subnets(rest.prefix_len() + 1) else { break };
        parts.extend(halves.next());
        let Some(upper) = halves.next() else { break };
        rest = upper;
    }
    parts
}

/// What of it is not; no virtual IP is given out from there.
fn unrouted(net: Ipv4Net) -> Option<Ipv4Net> {
    let prefix = if net.prefix_len() < 8 { 8 } else { 32 };
    let last = Ipv4Net::new(Ipv4Addr::BROADCAST, prefix).ok()?;
    net.contains(&Ipv4Addr::BROADCAST).then(|| last.trunc())
}

/// The virtual IP of `name`: the one it had, or the first free one from where the name's hash
/// points. The hash makes hosts that never heard of each other agree nearly always.
pub(super) fn virtual_ip(
    given: &mut BTreeMap<ServiceName, Ipv4Addr>,
    taken: &BTreeSet<IpAddr>,
    wanted: &BTreeSet<ServiceName>,
    pool: Ipv4Net,
    name: &ServiceName,
) -> Result<Ipv4Addr, PlanError> {
    let usable = |ip: Ipv4Addr| pool.contains(&ip) && unrouted(pool).is_none_or(|out| !out.contains(&ip));
    if let Some(ip) = given.get(name).filter(|ip| usable(**ip) && !taken.contains(&IpAddr::V4(**ip))) {
        return Ok(*ip);
    }
    given.remove(name);
    let ip = match free_ip(given, taken, pool, name) {
        Some(ip) => Some(ip),
        None => {
            given.retain(|holder, _| wanted.contains(holder));
            free_ip(given, taken, pool, name)
        }
    };
    let ip = ip.ok_or(PlanError::VirtualIpsUsedUp { pool })?;
    given.insert(name.clone(), ip);
    Ok(ip)
}

fn free_ip(
    given: &BTreeMap<ServiceName, Ipv4Addr>,
    taken: &BTreeSet<IpAddr>,
    pool: Ipv4Net,
    name: &ServiceName,
) -> Option<Ipv4Addr> {
    let held: BTreeSet<Ipv4Addr> = given.values().copied().collect();
    // The first and the last address stay out: tools take them for a network's own and its broadcast.
    let (first, last) = (u32::from(pool.network()), u32::from(pool.broadcast()));
    let count = last.checked_sub(first)?.checked_sub(1).filter(|count| *count > 0)?;
    let start = hash32(name.as_str()) % count;
    // From a network that is not routed into the one below it, which is as large.
    let down = unrouted(pool).map_or(0, |out| u32::from(out.hostmask()).wrapping_add(1));
    let routed = |ip: u32| match unrouted(pool) {
        Some(out) if out.contains(&Ipv4Addr::from(ip)) => ip.wrapping_sub(down),
        _ => ip,
    };
    (0..count)
        .map(|step| Ipv4Addr::from(routed(first + 1 + start.wrapping_add(step) % count)))
        .take(held.len() + taken.len() + 1)
        .find(|ip| !held.contains(ip) && !taken.contains(&IpAddr::V4(*ip)))
}

fn hash32(text: &str) -> u32 {
    Sha256::digest(text.as_bytes()).iter().take(4).fold(0, |sum, byte| sum << 8 | u32::from(*byte))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(number: u8) -> ServiceId {
        format!("s{number}").parse().unwrap()
    }

    fn pool(range: &str) -> PortRange {
        range.parse().unwrap()
    }

    const NONE: BTreeSet<u16> = BTreeSet::new();

    #[test]
    fn a_full_range_reclaims_what_nobody_wants_any_more() {
        let ports = PortPool { kind: "outbound", range: pool("10-11"), foreign: &NONE, apps: &NONE };
        let mut given = BTreeMap::from([(id(1), 10), (id(2), 11)]);
        let wanted = BTreeSet::from([id(2), id(3)]);
        assert_eq!(ports.port(&mut given, &wanted, &id(3)).unwrap(), 10);
        assert_eq!(given.get(&id(2)), Some(&11));
        let wanted = BTreeSet::from([id(2), id(3), id(4)]);
        assert!(matches!(ports.port(&mut given, &wanted, &id(4)), Err(PlanError::PortsUsedUp { .. })));
    }

    #[test]
    fn a_port_that_a_stranger_took_is_refused_not_moved() {
        let foreign = BTreeSet::from([10]);
        let ports = PortPool { kind: "inbound", range: pool("10-11"), foreign: &foreign, apps: &NONE };
        let mut given = BTreeMap::from([(id(1), 10)]);
        let wanted = BTreeSet::from([id(1), id(2)]);
        assert!(matches!(
            ports.port(&mut given, &wanted, &id(1)),
            Err(PlanError::PortTaken { port: 10, .. })
        ));
        assert_eq!(ports.port(&mut given, &wanted, &id(2)).unwrap(), 11);
    }

    #[test]
    fn a_small_pool_is_used_to_the_last_address() {
        let net: Ipv4Net = "10.0.0.0/29".parse().unwrap();
        let mut given = BTreeMap::new();
        let names: Vec<ServiceName> = (0..7).map(|n| format!("n{n}").parse().unwrap()).collect();
        let wanted: BTreeSet<_> = names.iter().cloned().collect();
        for name in names.iter().take(6) {
            virtual_ip(&mut given, &BTreeSet::new(), &wanted, net, name).unwrap();
        }
        assert_eq!(given.values().collect::<BTreeSet<_>>().len(), 6);
        let seventh = virtual_ip(&mut given, &BTreeSet::new(), &wanted, net, &names[6]);
        assert!(matches!(seventh, Err(PlanError::VirtualIpsUsedUp { .. })));
    }

    #[test]
    fn the_limited_broadcast_has_no_route_and_its_network_no_virtual_ip() {
        let routes = |net: &str| -> Vec<String> {
            routed(net.parse().unwrap()).iter().map(ToString::to_string).collect()
        };
        assert_eq!(routes("240.0.0.0/4"), ["240.0.0.0/5", "248.0.0.0/6", "252.0.0.0/7", "254.0.0.0/8"]);
        assert_eq!(routes("10.0.0.0/8"), ["10.0.0.0/8"]);
        assert_eq!(routes("255.255.255.252/30"), ["255.255.255.252/31", "255.255.255.254/32"]);
        let pool: Ipv4Net = "240.0.0.0/4".parse().unwrap();
        let mut given = BTreeMap::from([("old".parse().unwrap(), Ipv4Addr::new(255, 1, 2, 3))]);
        for number in 0..200 {
            let name = if number == 0 { "old".to_owned() } else { format!("n{number}") };
            let ip = virtual_ip(&mut given, &BTreeSet::new(), &BTreeSet::new(), pool, &name.parse().unwrap())
                .unwrap();
            assert!(routed(pool).iter().any(|net| net.contains(&ip)), "{ip}");
        }
    }

    proptest! {
        /// Whoever comes or goes, nobody else's port or address moves.
        #[test]
        fn coming_and_going_moves_nobody(steps in proptest::collection::vec((0u8..40, any::<bool>()), 1..80)) {
            let ports = PortPool { kind: "outbound", range: pool("100-199"), foreign: &NONE, apps: &NONE };
            let net: Ipv4Net = "240.0.0.0/4".parse().unwrap();
            let (mut given, mut ips) = (BTreeMap::new(), BTreeMap::new());
            let mut present: BTreeMap<u8, (u16, Ipv4Addr)> = BTreeMap::new();
            for (number, comes) in steps {
                if comes { present.entry(number).or_insert((0, Ipv4Addr::UNSPECIFIED)); } else { present.remove(&number); }
                let wanted: BTreeSet<ServiceId> = present.keys().map(|n| id(*n)).collect();
                let names: BTreeSet<ServiceName> = present.keys().map(|n| format!("s{n}").parse().unwrap()).collect();
                for (number, had) in &mut present {
                    let port = ports.port(&mut given, &wanted, &id(*number)).unwrap();
                    let name = format!("s{number}").parse().unwrap();
                    let ip = virtual_ip(&mut ips, &BTreeSet::new(), &names, net, &name).unwrap();
                    prop_assert!(had.0 == 0 || *had == (port, ip));
                    *had = (port, ip);
                }
                let distinct: BTreeSet<u16> = present.values().map(|had| had.0).collect();
                prop_assert_eq!(distinct.len(), present.len());
            }
        }
    }
}
