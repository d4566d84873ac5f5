//! Links and addresses. Everything acts on the calling thread's namespace and is idempotent.

use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};

use ipnet::IpNet;
use rtnetlink::packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use rtnetlink::packet_route::link::{InfoData, InfoVeth, LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::{Handle, LinkUnspec, LinkVeth};

use super::error::{NetnsError, errno};
use super::namespace::Namespace;
use super::netlink::{collect, talk};
use crate::base::Fault;

/// The loopback link's name; the kernel gives it.
pub const LOOPBACK: &str = "lo";

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The kernel's number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Whether it is switched on.
    pub up: bool,
    /// Whether it is a loopback link.
    pub loopback: bool,
}

/// The links, in the kernel's order.
///
/// # Errors
/// `ENM-N010` no netlink, `ENM-N011` the kernel refused.
pub async fn links() -> Result<Vec<Link>, Fault> {
    talk("list links", dump_links).await
}

/// The link `name`.
///
/// # Errors
/// `ENM-N013` there is none; otherwise as [`links`].
pub async fn link(name: &str) -> Result<Link, Fault> {
    let found = links().await?.into_iter().find(|link| link.name == name);
    found.ok_or_else(|| NetnsError::NoSuchLink { name: name.to_owned() }.into())
}

/// Switches the link `name` on. Returns whether that changed anything.
///
/// # Errors
/// `ENM-N001` no privilege, `ENM-N013` no such link; otherwise as [`links`].
pub async fn set_up(name: &str) -> Result<bool, Fault> {
    let link = link(name).await?;
    if link.up {
        return Ok(false);
    }
    let what = format!("switch {name} on");
    talk(&what, async |handle: Handle| {
        let request = handle.link().change(LinkUnspec::new_with_index(link.index).up().build());
        request.execute().await.map_err(|e| NetnsError::netlink(&*what, &e).into())
    })
    .await?;
    Ok(true)
}

/// Switches the loopback link on. Returns whether that changed anything.
///
/// # Errors
/// As [`set_up`].
pub async fn lo_up() -> Result<bool, Fault> {
    set_up(LOOPBACK).await
}

/// Removes the link `name` (a veth takes its other end with it); none there is fine. Returns
/// whether there was one.
///
/// # Errors
/// `ENM-N001` no privilege; otherwise as [`links`].
pub async fn remove_link(name: &str) -> Result<bool, Fault> {
    let Some(link) = links().await?.into_iter().find(|link| link.name == name) else { return Ok(false) };
    let what = format!("remove link {name}");
    talk(&what, async |handle: Handle| {
        handle.link().del(link.index).execute().await.map_err(|e| NetnsError::netlink(&*what, &e).into())
    })
    .await?;
    Ok(true)
}

/// Gives `interface` an address with its prefix length. Returns whether that changed anything.
///
/// IPv6 addresses are usable at once: the links that enmesh makes have two ends, both numbered by
/// us, and duplicate detection would only delay the first second.
///
/// # Errors
/// `ENM-N001` no privilege, `ENM-N013` no such link; otherwise as [`links`].
pub async fn add_address(interface: &str, address: IpNet) -> Result<bool, Fault> {
    let link = link(interface).await?;
    let what = format!("add address {address} to {interface}");
    talk(&what, async |handle: Handle| {
        let mut request = handle.address().add(link.index, address.addr(), address.prefix_len());
        if address.addr().is_ipv6() {
            request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        }
        match request.execute().await {
            Ok(()) => Ok(true),
            Err(e) if errno(&e) == Some(nix::libc::EEXIST) => Ok(false),
            Err(e) => Err(NetnsError::netlink(&*what, &e).into()),
        }
    })
    .await
}

/// Every address with the link it is on, in the kernel's order.
///
/// # Errors
/// As [`links`].
pub async fn link_addresses() -> Result<Vec<(Link, IpNet)>, Fault> {
    talk("list addresses", async |handle: Handle| {
        let links = dump_links(handle.clone()).await?;
        let messages = collect("list addresses", handle.address().get().execute()).await?;
        let on_link = |message: &AddressMessage| {
            let link = links.iter().find(|link| link.index == message.header.index)?;
            let address = IpNet::new(address_of(message)?, message.header.prefix_len).ok()?;
            Some((link.clone(), address))
        };
        Ok(messages.iter().filter_map(on_link).collect())
    })
    .await
}

/// Lays a cable: a veth pair with the end `left.1` in the namespace `left.0` and the end `right.1`
/// in `right.0`. Returns whether it had to be made.
///
/// # Errors
/// `ENM-N001` no privilege, `ENM-N014` one of the names is taken by something else; otherwise as
/// [`links`].
pub fn veth_pair(left: (&Namespace, &str), right: (&Namespace, &str)) -> Result<bool, Fault> {
    let has = |(namespace, name): (&Namespace, &str)| -> Result<bool, Fault> {
        let links = namespace.run_async(links)??;
        Ok(links.iter().any(|link| link.name == name))
    };
    match (has(left)?, has(right)?) {
        (true, true) => return Ok(false),
        (false, false) => {}
        (there, _) => {
            let name = if there { left.1 } else { right.1 };
            return Err(NetnsError::LinkInTheWay { name: name.to_owned() }.into());
        }
    }
    left.0.run_async(|| make_veth(left.1, right.1, right.0))??;
    Ok(true)
}

async fn make_veth(name: &str, peer: &str, peer_namespace: &Namespace) -> Result<(), Fault> {
    // Descriptors are the process's, not the thread's, so this one is right on every thread.
    let fd = peer_namespace.as_fd().as_raw_fd();
    let other_end = LinkUnspec::new_with_name(peer).setns_by_fd(fd).build();
    let message = LinkVeth::new(name, peer).set_info_data(InfoData::Veth(InfoVeth::Peer(other_end))).build();
    let what = format!("make the veth pair {name} and {peer}");
    talk(&what, async |handle: Handle| {
        handle.link().add(message).execute().await.map_err(|e| NetnsError::netlink(&*what, &e).into())
    })
    .await
}

async fn dump_links(handle: Handle) -> Result<Vec<Link>, Fault> {
    let messages = collect("list links", handle.link().get().execute()).await?;
    Ok(messages.iter().filter_map(read_link).collect())
}

fn read_link(message: &LinkMessage) -> Option<Link> {
    let name = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    })?;
    Some(Link {
        index: message.header.index,
        name,
        up: message.header.flags.contains(LinkFlags::Up),
        loopback: message.header.flags.contains(LinkFlags::Loopback),
    })
}

/// The local address: on point-to-point links the attribute `Address` is the other end's.
fn address_of(message: &AddressMessage) -> Option<IpAddr> {
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    local.or_else(|| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    })
}
