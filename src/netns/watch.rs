//! Noticing that the route of virtual IPs is taken away, or a cable cut.

use nix::sys::socket::SockProtocol;

use super::error::NetnsError;
use super::route::ROUTE_PROTOCOL;
use crate::base::Fault;
use crate::base::netlink::{Announcements, Heard, Message, attributes, messages};

/// Bit of group 7, `RTNLGRP_IPV4_ROUTE` (linux/rtnetlink.h).
const GROUP: u32 = 1 << 6;

/// Bits of groups 1 and 5, `RTNLGRP_LINK` and `RTNLGRP_IPV4_IFADDR`.
const CABLES: u32 = 1 | 1 << 4;

/// `RTM_NEWLINK`, as which the kernel also announces that a link was switched off, `RTM_DELLINK`, `RTM_DELADDR`; and what
/// stands before the attributes of each (`struct ifinfomsg`, `ifaddrmsg`, `rtmsg`).
const CHANGES: [(u16, usize); 4] = [(16, 16), (17, 16), (21, 8), (ROUTE_GONE, 12)];

/// `RTM_DELROUTE`.
const ROUTE_GONE: u16 = 25;

/// Where `rtm_protocol` stands in `struct rtmsg`.
const PROTOCOL_AT: usize = 5;

/// Routes of ours that go, whoever removes them, as it happens.
///
/// The kernel announces what programs remove. What goes because loopback itself is switched off it
/// does not announce.
pub struct RouteWatch {
    socket: Announcements,
    heard: bool,
}

impl RouteWatch {
    /// Starts watching in the network namespace of the calling thread.
    ///
    /// # Errors
    /// `ENM-N010` no netlink.
    pub fn new() -> Result<RouteWatch, Fault> {
        let socket = Announcements::join(SockProtocol::NetlinkRoute, GROUP)
            .map_err(|source| NetnsError::Connect { source })?;
        Ok(RouteWatch { socket, heard: false })
    }

    /// Waits until a route of ours went, or may have gone. Safe to interrupt: nothing is lost.
    ///
    /// # Errors
    /// `ENM-N010` the socket broke; there is nothing more to come.
    pub async fn gone(&mut self) -> Result<(), Fault> {
        listen(&mut self.socket, &mut self.heard, says_gone).await
    }
}

/// Links that change, and addresses and routes that go: whoever hears of it looks after his own.
pub struct LinkWatch {
    socket: Announcements,
    /// What the names of the links begin with that count.
    prefix: &'static str,
    heard: bool,
}

impl LinkWatch {
    /// Starts watching in the network namespace of the calling thread.
    ///
    /// # Errors
    /// `ENM-N010` no netlink.
    pub fn new() -> Result<LinkWatch, Fault> {
        LinkWatch::named("")
    }

    /// The same for links whose names begin with `prefix`, and for their addresses, where links of others come and go.
    ///
    /// # Errors
    /// As [`LinkWatch::new`].
    pub fn named(prefix: &'static str) -> Result<LinkWatch, Fault> {
        let socket = Announcements::join(SockProtocol::NetlinkRoute, GROUP | CABLES)
            .map_err(|source| NetnsError::Connect { source })?;
        Ok(LinkWatch { socket, prefix, heard: false })
    }

    /// Waits until something changed, or may have. Safe to interrupt: nothing is lost.
    ///
    /// # Errors
    /// `ENM-N010` the socket broke; there is nothing more to come.
    pub async fn changed(&mut self) -> Result<(), Fault> {
        let prefix = self.prefix;
        let tells = |datagram: &[u8]| messages(datagram).any(|message| says_changed(message, prefix));
        listen(&mut self.socket, &mut self.heard, tells).await
    }
}

/// Waits until a datagram came that `tells`, or one may have been lost. `heard` outlives an interruption.
async fn listen(
    socket: &mut Announcements,
    heard: &mut bool,
    tells: impl Fn(&[u8]) -> bool,
) -> Result<(), Fault> {
    let broken = |source| NetnsError::Connect { source };
    while !*heard {
        socket.ready().await.map_err(broken)?;
        while let Some(news) = socket.take().map_err(broken)? {
            *heard |= match news {
                Heard::Datagram(datagram) => tells(datagram),
                Heard::Gap => true,
            };
        }
    }
    *heard = false;
    Ok(())
}

fn says_changed(message: Message<'_>, prefix: &str) -> bool {
    let Some((_, header)) = CHANGES.iter().find(|(kind, _)| *kind == message.kind) else { return false };
    // Routes have no names of links in them.
    prefix.is_empty()
        || name_in(message.body.get(*header..).unwrap_or_default()).starts_with(prefix.as_bytes())
}

/// The name of a link, which is the attribute of the same number in messages about links (`IFLA_IFNAME`) and about IPv4
/// addresses (`IFA_LABEL`).
fn name_in(body: &[u8]) -> &[u8] {
    const NAME: u16 = 3;
    attributes(body).find_map(|(kind, value)| (kind == NAME).then_some(value)).unwrap_or_default()
}

fn says_gone(datagram: &[u8]) -> bool {
    messages(datagram)
        .any(|message| message.kind == ROUTE_GONE && message.body.get(PROTOCOL_AT) == Some(&ROUTE_PROTOCOL))
}
