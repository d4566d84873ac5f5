//! Routes, and among them the one that keeps virtual IPs on the host.
//!
//! A connection to a virtual IP needs a route before the rules can see it, and must not leave by a
//! default route when there are no rules. A unicast route to loopback gives both. (Of type `local`
//! the addresses would count as the host's own, which capture leaves alone; `blackhole` is an error
//! before the rules run.)
//!
//! The pool of virtual IPs may have the limited broadcast in it. What that leaves of the pool
//! ([`plan::routed`]) is several networks, with a route each.

use std::net::{IpAddr, Ipv4Addr};

use futures_util::TryStreamExt;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::{Handle, RouteMessageBuilder};
use serde::Serialize;

use super::error::{NetnsError, errno};
use super::link::{LOOPBACK, link};
use super::netlink::{collect, talk};
use crate::base::Fault;
use crate::plan;

/// Marks routes as ours: the kernel keeps this number with each route and ignores it otherwise
/// (`ip route show proto 240`).
///
/// It is the first octet of the virtual IPs and stands in none of iproute2's `rt_protos`; numbers
/// from 5 up are free for programs (rtnetlink(7)).
pub const ROUTE_PROTOCOL: u8 = 240;

/// Whether virtual IPs have their route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum VirtualRoute {
    /// There is none.
    Absent,
    /// Ours, to loopback.
    Ours,
    /// One that somebody else made for the same network. It is left as it is.
    Foreign,
}

/// How the routes for `net` are right now.
///
/// # Errors
/// `ENM-N010` no netlink, `ENM-N011` the kernel refused.
pub async fn virtual_route_state(net: Ipv4Net) -> Result<VirtualRoute, Fault> {
    let loopback = link(LOOPBACK).await?.index;
    let all = main_routes_v4().await?;
    if is_foreign(&all, net) {
        return Ok(VirtualRoute::Foreign);
    }
    let states: Vec<VirtualRoute> =
        plan::routed(net).into_iter().map(|part| state_of(&to(&all, part), loopback)).collect();
    let worst = [VirtualRoute::Absent, VirtualRoute::Foreign].into_iter().find(|one| states.contains(one));
    Ok(worst.unwrap_or(VirtualRoute::Ours))
}

/// Makes the routes for `net` be there. Returns whether that changed anything; a foreign route for
/// the same network is respected and nothing changes ([`virtual_route_state`] tells).
///
/// # Errors
/// `ENM-N001` no privilege, `ENM-N015` loopback is down; otherwise as [`virtual_route_state`].
pub async fn ensure_virtual_route(net: Ipv4Net) -> Result<bool, Fault> {
    let loopback = link(LOOPBACK).await?;
    if !loopback.up {
        return Err(NetnsError::LoopbackDown.into());
    }
    let all = main_routes_v4().await?;
    if is_foreign(&all, net) {
        return Ok(false);
    }
    let mut changed = false;
    for part in plan::routed(net) {
        changed |= ensure_part(part, to(&all, part), loopback.index).await?;
    }
    Ok(changed)
}

async fn ensure_part(net: Ipv4Net, routes: Vec<RouteMessage>, loopback: u32) -> Result<bool, Fault> {
    if state_of(&routes, loopback) != VirtualRoute::Absent {
        return Ok(false);
    }
    // One of ours that leads elsewhere (loopback has one index, so only a hand can have done it).
    for stale in routes {
        remove(stale).await?;
    }
    // Of a wider scope the kernel looks for a source address that others can reach. Where there is none
    // (before DHCP, or with loopback alone) it takes 0.0.0.0, to which nothing is ever answered.
    let message = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(net.addr(), net.prefix_len())
        .output_interface(loopback)
        .scope(RouteScope::Host)
        .protocol(RouteProtocol::Other(ROUTE_PROTOCOL))
        .build();
    add(message, &format!("add the route {net} to loopback")).await
}

/// Removes our route whose destination is exactly `net`, one of [`our_virtual_routes`], and nothing else.
/// Returns whether there was one.
///
/// # Errors
/// `ENM-N001` no privilege; otherwise as [`virtual_route_state`].
pub async fn remove_virtual_route(net: Ipv4Net) -> Result<bool, Fault> {
    let ours = to(&main_routes_v4().await?, net).into_iter().filter(is_ours);
    let mut removed = false;
    for route in ours {
        removed |= remove(route).await?;
    }
    Ok(removed)
}

/// The networks that have a route of ours, sorted: what an earlier configuration may have left.
///
/// # Errors
/// As [`virtual_route_state`].
pub async fn our_virtual_routes() -> Result<Vec<Ipv4Net>, Fault> {
    let mut nets: Vec<Ipv4Net> =
        main_routes_v4().await?.iter().filter(|route| is_ours(route)).filter_map(destination).collect();
    nets.sort();
    nets.dedup();
    Ok(nets)
}

/// Adds a route to `net`, by a gateway, a link, or both. Returns whether that changed anything; the
/// same destination with the same metric counts as the same route.
///
/// # Errors
/// `ENM-N001` no privilege, `ENM-N013` no such link; otherwise as [`virtual_route_state`].
pub async fn add_route(net: IpNet, gateway: Option<IpAddr>, interface: Option<&str>) -> Result<bool, Fault> {
    let what = format!("add the route {net}");
    let index = match interface {
        Some(name) => Some(link(name).await?.index),
        None => None,
    };
    let impossible = |_| NetnsError::Refused {
        what: what.clone(),
        source: std::io::Error::other("its destination and its gateway are of different families"),
    };
    let mut builder = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(net.network(), net.prefix_len())
        .map_err(impossible)?;
    if let Some(gateway) = gateway {
        builder = builder.gateway(gateway).map_err(impossible)?;
    } else {
        builder = builder.scope(RouteScope::Link);
    }
    if let Some(index) = index {
        builder = builder.output_interface(index);
    }
    add(builder.build(), &what).await
}

/// Adds a default route by `gateway`. Returns whether that changed anything.
///
/// # Errors
/// As [`add_route`].
pub async fn add_default_route(gateway: IpAddr) -> Result<bool, Fault> {
    let everywhere = match gateway {
        IpAddr::V4(_) => IpNet::V4(Ipv4Net::default()),
        IpAddr::V6(_) => IpNet::V6(Ipv6Net::default()),
    };
    add_route(everywhere, Some(gateway), None).await
}

/// The address from which this host would speak to `to`; `None` where no route leads there, or one that
/// the kernel chooses no address for. No packet is sent.
///
/// # Errors
/// `ENM-N010` no netlink, `ENM-N011` the kernel refused.
pub async fn source_towards(to: IpAddr) -> Result<Option<IpAddr>, Fault> {
    let what = format!("look up the route to {to}");
    let bits = if to.is_ipv4() { 32 } else { 128 };
    let question = RouteMessageBuilder::<IpAddr>::new().destination_prefix(to, bits);
    let Ok(question) = question.map(RouteMessageBuilder::build) else { return Ok(None) };
    let found = talk(&what, async |handle: Handle| {
        let answers = handle.route().get(question).execute();
        futures_util::pin_mut!(answers);
        match answers.try_next().await {
            Ok(found) => Ok(found),
            // Nothing leads there, or a route says so.
            Err(e) if errno(&e).is_some_and(is_unreachable) => Ok(None),
            Err(e) => Err(NetnsError::netlink(&what, &e).into()),
        }
    })
    .await?;
    let source = found.and_then(|route| {
        route.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::PrefSource(RouteAddress::Inet(address)) => Some(IpAddr::V4(*address)),
            RouteAttribute::PrefSource(RouteAddress::Inet6(address)) => Some(IpAddr::V6(*address)),
            _ => None,
        })
    });
    Ok(source.filter(|source| !source.is_loopback() && !source.is_unspecified()))
}

fn is_unreachable(number: i32) -> bool {
    use nix::libc::{EACCES, EHOSTUNREACH, EINVAL, ENETUNREACH};
    [ENETUNREACH, EHOSTUNREACH, EACCES, EINVAL].contains(&number)
}

async fn add(message: RouteMessage, what: &str) -> Result<bool, Fault> {
    talk(what, async |handle: Handle| match handle.route().add(message).execute().await {
        Ok(()) => Ok(true),
        Err(e) if errno(&e) == Some(nix::libc::EEXIST) => Ok(false),
        Err(e) => Err(NetnsError::netlink(what, &e).into()),
    })
    .await
}

async fn remove(route: RouteMessage) -> Result<bool, Fault> {
    let what = "remove a route";
    talk(what, async |handle: Handle| match handle.route().del(route).execute().await {
        Ok(()) => Ok(true),
        // Somebody was faster.
        Err(e) if errno(&e) == Some(nix::libc::ESRCH) => Ok(false),
        Err(e) => Err(NetnsError::netlink(what, &e).into()),
    })
    .await
}

/// Those of `routes` whose destination is exactly `net`.
fn to(routes: &[RouteMessage], net: Ipv4Net) -> Vec<RouteMessage> {
    routes.iter().filter(|route| destination(route) == Some(net.trunc())).cloned().collect()
}

/// Whether somebody else routes all of `net`, and we do not.
fn is_foreign(routes: &[RouteMessage], net: Ipv4Net) -> bool {
    let whole = to(routes, net);
    !whole.is_empty()
        && !whole.iter().any(is_ours)
        && !plan::routed(net).iter().all(|part| to(routes, *part).iter().any(is_ours))
}

async fn main_routes_v4() -> Result<Vec<RouteMessage>, Fault> {
    let what = "list routes";
    let routes = talk(what, async |handle: Handle| {
        collect(what, handle.route().get(RouteMessageBuilder::<Ipv4Addr>::new().build()).execute()).await
    })
    .await?;
    let in_main = |route: &RouteMessage| route.header.table == RouteHeader::RT_TABLE_MAIN;
    Ok(routes.into_iter().filter(in_main).collect())
}

fn state_of(routes: &[RouteMessage], loopback: u32) -> VirtualRoute {
    let to_loopback = |route: &RouteMessage| route.attributes.contains(&RouteAttribute::Oif(loopback));
    let right = |route: &RouteMessage| {
        is_ours(route) && to_loopback(route) && route.header.kind == RouteType::Unicast
    };
    if routes.iter().any(right) {
        VirtualRoute::Ours
    } else if routes.iter().any(|route| !is_ours(route)) {
        VirtualRoute::Foreign
    } else {
        VirtualRoute::Absent
    }
}

fn is_ours(route: &RouteMessage) -> bool {
    route.header.protocol == RouteProtocol::Other(ROUTE_PROTOCOL)
}

fn destination(route: &RouteMessage) -> Option<Ipv4Net> {
    let address = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(*address),
        _ => None,
    })?;
    Ipv4Net::new(address, route.header.destination_prefix_length).ok()
}
