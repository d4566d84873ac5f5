//! One flow in the kernel: its first packet is traced, and what rules do to it is told as it happens.
//!
//! Nothing is sent unless [`send`] is called: the application's own packet is waited for.

mod error;
mod event;
mod names;
mod table;

/// For tests of the whole room.
#[cfg(test)]
pub(super) mod hostile {
    pub fn read(printed: &[u8]) {
        super::names::hostile(printed);
        super::table::hostile(printed);
    }
}

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, SockaddrLike, connect, socket,
};
use nix::unistd::{Uid, setfsuid};
use serde::Serialize;
use tokio::time::{Instant, timeout_at};

pub use error::TraceError;
use event::{Event, Packet, Verdict};
use table::{BEGIN, ENDS, Tracing};

use super::{Decision, Flow, Origin, Transport};
use crate::base::Fault;
use crate::base::netlink::{Announcements, Heard, messages};

/// Bit of group 9, `NFNLGRP_NFTRACE` (linux/netfilter/nfnetlink.h).
const GROUP: u32 = 1 << 8;

/// A packet of which nothing was told for this long has ended. Rules take microseconds; a program that packets are handed to
/// (NFQUEUE) takes longer.
const QUIET: Duration = Duration::from_millis(500);

/// What is watched for.
#[derive(Debug, Clone)]
pub struct Watch {
    /// The flow.
    pub flow: Flow,
    /// Where one from outside comes from.
    pub from: Option<IpAddr>,
}

/// What the kernel did with the packet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Seen {
    /// Who sent it.
    pub from: SocketAddr,
    /// Where it was to go.
    pub to: SocketAddr,
    /// Where it goes behind all rules; `None` when a rule dropped or refused it.
    pub arrived: Option<SocketAddr>,
    /// The rule of ours that decided; `None` where there is none, or where it cannot be told.
    pub rule: Option<SeenRule>,
    /// What rules of others did to it, a line each.
    pub others: Vec<String>,
    /// Whether the kernel tells of the rules of ours.
    pub rules_told: bool,
    /// Whether there are any rules of ours.
    pub rules_there: bool,
    /// Whether it came to a NAT chain with rules of ours. While no rule of its family translates anything, the kernel asks none.
    #[serde(skip)]
    asked_nat: bool,
}

/// A rule of ours that the packet met.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SeenRule {
    /// Its family, table and chain.
    pub place: String,
    /// Its comment.
    pub comment: String,
    /// Whether it refuses.
    pub refuses: bool,
}

impl Seen {
    /// Whether this is what `decision` says about `flow`: the same end, by the same rule where the kernel tells it.
    pub fn is(&self, flow: &Flow, decision: &Decision) -> bool {
        use super::Verdict::{Direct, Redirected, Refused, Resolver};
        let inside = matches!(flow.origin, Origin::User(_));
        let refused = self.arrived.is_none() && self.rule.as_ref().is_some_and(|rule| rule.refuses);
        let ends_so = match &decision.verdict {
            Direct => self.arrived == Some(self.to),
            // In prerouting the kernel takes an address of the interface.
            Redirected { port, .. } => {
                self.arrived.is_some_and(|at| at.port() == *port && (!inside || at.ip().is_loopback()))
            }
            Resolver { to } => self.arrived == Some(*to),
            Refused => refused || (self.arrived.is_none() && !self.rules_told && self.others.is_empty()),
        };
        let comment = self.rule.as_ref().map(|rule| rule.comment.as_str());
        let left_alone = decision.verdict == Direct && !self.asked_nat;
        ends_so && (!self.rules_told || left_alone || comment == decision.rule.as_deref())
    }
}

/// Traces the first packet of `watch` that comes within `wait`; `begun` is called when one would be seen. `None` when there was
/// none, or `end` came first. The kernel is left as it was.
///
/// # Errors
/// `ENM-R001` there is no `nft`; `ENM-R002`, `ENM-R071` not permitted; what else `nft` may say.
pub async fn watch(
    watch: &Watch,
    wait: Duration,
    begun: impl FnOnce() -> Result<(), Fault>,
    end: impl Future<Output = ()>,
) -> Result<Option<Seen>, Fault> {
    let deaf = |source| Fault::from(TraceError::Deaf { source });
    let mut socket = Announcements::join(SockProtocol::NetlinkNetFilter, GROUP).map_err(deaf)?;
    let tracing = Tracing::begin(watch, wait)?;
    begun()?;
    let events = tokio::select! {
        events = collect(&mut socket, &tracing.name, Instant::now() + wait) => events.map_err(deaf)?,
        () = end => Vec::new(),
    };
    let own = tracing.name.clone();
    drop(tracing);
    let Some(packet) = events.first().and_then(|event| event.packet) else { return Ok(None) };
    Ok(Some(read(&own, packet, &events)?))
}

/// The events of one packet, from where tracing began to where it ended.
async fn collect(socket: &mut Announcements, own: &str, deadline: Instant) -> io::Result<Vec<Event>> {
    let mut events: Vec<Event> = Vec::new();
    loop {
        let until = if events.is_empty() { deadline } else { Instant::now() + QUIET };
        match timeout_at(until, socket.ready()).await {
            Ok(ready) => ready?,
            Err(_) => return Ok(events),
        }
        while let Some(heard) = socket.take()? {
            // What was lost is lost; the packet's end will be missing, or a later packet is taken.
            let Heard::Datagram(datagram) = heard else { continue };
            for event in messages(datagram).filter_map(Event::of) {
                let of_ours = event.is_in("inet", own);
                let begins = of_ours && event.chain == BEGIN && event.packet.is_some();
                match events.first() {
                    None if begins => events.push(event),
                    None => {}
                    // The same number for another packet.
                    Some(first) if begins && first.id == event.id => return Ok(events),
                    Some(first) if first.id == event.id => {
                        let ends = of_ours && ENDS.iter().any(|(name, _)| *name == event.chain);
                        events.push(event);
                        if ends {
                            return Ok(events);
                        }
                    }
                    Some(_) => {}
                }
            }
        }
    }
}

/// What became of the packet, out of what was told of it.
fn read(own: &str, packet: Packet, events: &[Event]) -> Result<Seen, Fault> {
    let names = names::of(events)?;
    let end = events.last().filter(|last| last.is_in("inet", own) && last.chain != BEGIN);
    let arrived = end.and_then(|end| end.packet).map(|packet| packet.to);
    let (mut others, mut stops) = (Vec::new(), Vec::new());
    // A base chain begins where the packet is shown.
    let starts: Vec<usize> =
        events.iter().enumerate().filter(|(_, event)| event.packet.is_some()).map(|(at, _)| at).collect();
    for (place, start) in starts.iter().enumerate() {
        let next = starts.get(place + 1).copied();
        let Some(in_chain) = events.get(*start..next.unwrap_or(events.len())) else { continue };
        let Some(first) = in_chain.first() else { continue };
        if first.is_in("inet", own) {
            continue;
        }
        let stop = names::stop(in_chain, &names);
        let before = first.packet.map(|packet| packet.to);
        let after = next.and_then(|next| events.get(next)?.packet).map(|packet| packet.to);
        if stop.is_none() {
            others.extend(names::dropped(in_chain));
            if let (Some(before), Some(after)) = (before, after)
                && before != after
            {
                others.push(format!("table {} {} sends it to {after}", first.family, first.table));
            }
        }
        stops.extend(stop);
    }
    // As the plan's answer has it: what refuses decides, and else what comes first.
    let refusal = stops.iter().position(|stop: &SeenRule| stop.refuses).unwrap_or(0);
    let rule = (!stops.is_empty()).then(|| stops.swap_remove(refusal));
    Ok(Seen {
        from: packet.from,
        to: packet.to,
        arrived,
        rule,
        others,
        rules_told: names.told,
        rules_there: names.there,
        asked_nat: names::asked_nat(events),
    })
}

/// Sends what opens `flow` as its user, and nothing more: a connection is given up as soon as it was begun, a datagram is
/// empty.
///
/// # Errors
/// `ENM-R073` this process may not act as that user.
pub fn send(flow: &Flow) -> Result<(), Fault> {
    let Origin::User(uid) = flow.origin else { return Ok(()) };
    let (to, transport) = (flow.to, flow.transport);
    // Whose a socket is says the thread that makes it, so that one ends afterwards.
    let sent = std::thread::spawn(move || {
        let user = Uid::from_raw(uid);
        setfsuid(user);
        // The call tells only who it was before.
        if setfsuid(user) != user {
            return Err(io::Error::from(io::ErrorKind::PermissionDenied));
        }
        match transport {
            Transport::Tcp => open(to),
            Transport::Udp => {
                let unspecified = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
                // That it is refused is what is to be seen, and no failure.
                UdpSocket::bind(unspecified).map(|socket| drop(socket.send_to(&[], to)))
            }
        }
    });
    let sent = sent.join().unwrap_or_else(|_| Err(io::Error::other("the thread ended")));
    sent.map_err(|source| TraceError::NotSent { uid, source }.into())
}

/// The beginning of a connection, without waiting for what comes of it.
fn open(to: SocketAddr) -> io::Result<()> {
    let address: Box<dyn SockaddrLike> = match to {
        SocketAddr::V4(to) => Box::new(SockaddrIn::from(to)),
        SocketAddr::V6(to) => Box::new(SockaddrIn6::from(to)),
    };
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket(family, SockType::Stream, flags, None)?;
    let _ = connect(std::os::fd::AsRawFd::as_raw_fd(&socket), address.as_ref());
    Ok(())
}
