//! Who answers for names on this host, and whose queries are redirected to whom.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use super::facts::User;
use super::{ConsulDns, DnsCapture, DnsServer, OutboundCapture, Who};
use crate::config::value::ServiceId;
use crate::config::{ControlPlane, DnsMode, HostConfig};

/// Where an agent answers DNS unless it was told otherwise.
const CONSUL: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 8600));

/// Users under which distributions run resolvers. What a local resolver asks goes where it goes: our
/// own would ask it again, and a resolver that asks another server for each network would lose that.
const RESOLVERS: [&str; 10] = [
    "systemd-resolve",
    "dnsmasq",
    "unbound",
    "named",
    "bind",
    "knot-resolver",
    "pdns",
    "pdns-recursor",
    "dnscrypt-proxy",
    "_dnscrypt-proxy",
];

/// Consul's DNS, where the control plane is Consul or may be.
pub(super) fn consul(host: &HostConfig) -> Option<ConsulDns> {
    match (host.consul.dns, host.control_plane) {
        (Some(address), _) => Some(ConsulDns { address, expected: true }),
        (None, ControlPlane::Consul | ControlPlane::Catalog) => {
            Some(ConsulDns { address: CONSUL, expected: true })
        }
        (None, ControlPlane::Auto) => Some(ConsulDns { address: CONSUL, expected: false }),
        (None, ControlPlane::Static) => None,
    }
}

/// Whose queries go to the resolver at `to`; nobody's without a service that wants it.
pub(super) fn capture(
    to: SocketAddr,
    modes: &BTreeMap<ServiceId, DnsMode>,
    outbound: &BTreeMap<ServiceId, OutboundCapture>,
    users: &BTreeMap<String, User>,
) -> Option<DnsCapture> {
    let redirects = |id: &ServiceId| modes.get(id) == Some(&DnsMode::Redirect);
    let outbound = outbound.iter().filter(|(_, capture)| capture.who != Who::Nobody);
    let (redirected, others): (Vec<_>, Vec<_>) = outbound.partition(|(id, _)| redirects(id));
    let uids = |captures: &[(&ServiceId, &OutboundCapture)]| -> BTreeSet<u32> {
        let one = |who| if let Who::Uid(uid) = who { Some(uid) } else { None };
        captures.iter().filter_map(|(_, capture)| one(capture.who)).collect()
    };
    if redirected.is_empty() {
        return None;
    }
    if redirected.iter().all(|(_, capture)| capture.who != Who::Everyone) {
        let (uids, except) = (uids(&redirected), BTreeSet::new());
        return Some(DnsCapture { to, uids, except, server: DnsServer::Ours });
    }
    let resolvers = RESOLVERS.iter().filter_map(|name| users.get(*name)).map(|user| user.uid);
    let by_name = uids(&redirected);
    // Whom a service redirects by name stays redirected, whatever the name of the user.
    let except = uids(&others).into_iter().chain(resolvers).filter(|uid| !by_name.contains(uid)).collect();
    Some(DnsCapture { to, uids: BTreeSet::new(), except, server: DnsServer::Ours })
}
