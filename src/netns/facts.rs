//! What the planner wants to know about the network of this host. The calling thread's namespace is
//! the host.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};

use super::link::link_addresses;
use crate::base::Fault;
use crate::plan::facts::HostAddress;

/// Addresses that stand for "anywhere": from the ranges for documentation (RFC 5737, RFC 3849), so
/// that only a default route leads there.
const ANYWHERE: [(IpAddr, IpAddr); 2] = [
    (IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1))),
    (IpAddr::V6(Ipv6Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1))),
];

/// The discard port; nothing is sent, any number will do.
const ANY_PORT: u16 = 9;

/// The addresses that others can reach this host at, in the kernel's order: those of loopback links
/// are left out, and so are link-local IPv6 addresses, which mean nothing without a link.
///
/// # Errors
/// `ENM-N010` no netlink, `ENM-N011` the kernel refused.
pub async fn addresses() -> Result<Vec<HostAddress>, Fault> {
    let found = link_addresses().await?;
    Ok(found
        .into_iter()
        .filter(|(link, address)| !link.loopback && !is_link_local_v6(address.addr()))
        .map(|(link, address)| HostAddress { interface: link.name, address: address.addr() })
        .collect())
}

/// The address from which this host would speak to the world, IPv4 first: the kernel's own choice
/// for its default route. `None` without one. No packet is sent.
pub fn default_source() -> Option<IpAddr> {
    ANYWHERE.into_iter().find_map(|(from, to)| {
        let socket = UdpSocket::bind(SocketAddr::new(from, 0)).ok()?;
        // Connecting a datagram socket looks the route up and settles the source; that is all.
        socket.connect(SocketAddr::new(to, ANY_PORT)).ok()?;
        let source = socket.local_addr().ok()?.ip();
        (!source.is_loopback() && !source.is_unspecified() && !is_link_local_v6(source)).then_some(source)
    })
}

/// Whether `::1` can be bound.
pub fn ipv6_available() -> bool {
    TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok()
}

fn is_link_local_v6(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}
