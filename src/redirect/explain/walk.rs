//! The rules as the kernel reads them, for the first packet of a flow.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{Flow, Origin};
use crate::redirect::ruleset::{Chain, Hook, Operand, Part, Ruleset, Selector, Value};

/// The packet, as far as rules look at it.
#[derive(Debug, Clone)]
pub(in crate::redirect) struct Packet {
    uid: Option<u32>,
    interface: Option<String>,
    protocol: &'static str,
    to: SocketAddr,
    local: bool,
}

impl Packet {
    pub fn of(flow: &Flow, own: &BTreeSet<IpAddr>) -> Packet {
        let (uid, interface) = match &flow.origin {
            Origin::User(uid) => (Some(*uid), None),
            // No interface has an empty name, so no rule names it.
            Origin::Outside(interface) => (None, Some(interface.clone().unwrap_or_default())),
        };
        let ip = flow.to.ip();
        let local = own.contains(&ip) || ip.is_loopback() || (uid.is_none() && ip.is_unspecified());
        Packet { uid, interface, protocol: flow.transport.word(), to: flow.to, local }
    }

    /// Redirected: in the output hook the destination becomes loopback; in prerouting an address of the
    /// interface it came by, which no rule asks about.
    pub fn redirect(&mut self, port: u16) {
        let ip = match (self.uid, self.to) {
            (Some(_), SocketAddr::V4(_)) => IpAddr::V4(Ipv4Addr::LOCALHOST),
            (Some(_), SocketAddr::V6(_)) => IpAddr::V6(Ipv6Addr::LOCALHOST),
            (None, to) => to.ip(),
        };
        self.dnat(SocketAddr::new(ip, port));
    }

    pub fn dnat(&mut self, to: SocketAddr) {
        self.to = to;
        self.local = true;
    }

    pub fn is_for_this_host(&self) -> bool {
        self.local
    }
}

/// How the walk through a base chain ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::redirect) enum End {
    Accept,
    Refuse,
    Redirect(u16),
    Dnat(SocketAddr),
}

/// Where it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::redirect) struct Stop {
    pub end: End,
    pub chain: &'static str,
    /// The rule's comment.
    pub rule: String,
}

/// What the chain at this hook, of NAT or not, says; `None` when it lets the packet through in silence.
/// There is one such chain at most, but for those that only choose the zone of conntrack and say nothing.
pub(in crate::redirect) fn base_chain(
    rules: &Ruleset,
    hook: Hook,
    nat: bool,
    packet: &Packet,
) -> Option<Stop> {
    let at_hook = |chain: &&Chain| chain.base.is_some_and(|base| base.hook == hook && base.nat == nat);
    rules.chains.iter().filter(at_hook).find_map(|chain| walk(rules, chain, packet))
}

fn walk(rules: &Ruleset, chain: &Chain, packet: &Packet) -> Option<Stop> {
    let named = |name: &str| rules.chains.iter().find(|chain| chain.name == name);
    'rules: for rule in &chain.rules {
        let stop = |end| Some(Stop { end, chain: chain.name, rule: rule.comment.clone() });
        for part in &rule.parts {
            match part {
                // Of what a packet does not have, neither holds.
                Part::Is(left, right) => {
                    if !compare(rules, left, right, packet).unwrap_or(false) {
                        continue 'rules;
                    }
                }
                Part::IsNot(left, right) => {
                    if compare(rules, left, right, packet).unwrap_or(true) {
                        continue 'rules;
                    }
                }
                // The first packet of a flow opens it.
                Part::NotOpening => continue 'rules,
                Part::Accept => return stop(End::Accept),
                Part::Return => return None,
                Part::Reset | Part::Prohibit => return stop(End::Refuse),
                Part::Jump(to) => {
                    if let Some(stop) = named(to).and_then(|chain| walk(rules, chain, packet)) {
                        return Some(stop);
                    }
                }
                // How it is refused is no news; why is what this rule says.
                Part::Goto(to) => {
                    return match named(to).and_then(|chain| walk(rules, chain, packet))?.end {
                        End::Refuse => stop(End::Refuse),
                        other => stop(other),
                    };
                }
                Part::Redirect(key, map) => match look_up(rules, map, *key, packet) {
                    Some(port) => return stop(End::Redirect(port)),
                    None => continue 'rules,
                },
                Part::Dnat(to) if to.is_ipv4() == packet.to.is_ipv4() => return stop(End::Dnat(*to)),
                Part::Dnat(_) => continue 'rules,
                Part::Zone(_) | Part::ZoneOfQuery(_) | Part::Remember(_) => {}
            }
        }
    }
    None
}

/// What a selector finds in a packet.
#[derive(Debug, Clone, Copy)]
enum Found<'a> {
    Number(u32),
    Address(IpAddr),
    Word(&'a str),
}

fn find<'a>(selector: Selector, packet: &'a Packet) -> Option<Found<'a>> {
    let port = |protocol: Option<&str>| {
        protocol
            .is_none_or(|wanted| wanted == packet.protocol)
            .then(|| Found::Number(packet.to.port().into()))
    };
    let address = |v4: bool| (packet.to.is_ipv4() == v4).then(|| Found::Address(packet.to.ip()));
    match selector {
        Selector::SocketUid => packet.uid.map(Found::Number),
        Selector::TcpDestination => port(Some("tcp")),
        Selector::UdpDestination => port(Some("udp")),
        Selector::AnyDestination => port(None),
        Selector::Ip4Destination => address(true),
        Selector::Ip6Destination => address(false),
        Selector::InputInterface => packet.interface.as_deref().map(Found::Word),
        Selector::Protocol => Some(Found::Word(packet.protocol)),
        Selector::Family => Some(Found::Word(if packet.to.is_ipv4() { "ipv4" } else { "ipv6" })),
        Selector::DestinationType => Some(Found::Word(if packet.local { "local" } else { "unicast" })),
        // Only rules look at these that choose a zone, that are about our own resolver, or that are there
        // while connections drain.
        // Of who is outside, the address is not asked.
        Selector::Ip4Source => None,
        Selector::Mark | Selector::UdpSource | Selector::OutputInterface | Selector::ConnectionStatus => None,
    }
}

/// Whether what `left` finds is (in) `right`; `None` when there is nothing to be found.
fn compare(rules: &Ruleset, left: &[Selector], right: &Operand, packet: &Packet) -> Option<bool> {
    let found: Vec<Found<'_>> = left.iter().map(|one| find(*one, packet)).collect::<Option<_>>()?;
    let [first, ..] = found.as_slice() else { return None };
    Some(match (right, *first) {
        (Operand::Set(name), _) => {
            let set = rules.sets.iter().find(|set| set.name == *name)?;
            // Our resolver lives, or nobody would be asking.
            set.dynamic()
                || set.elements.iter().any(|element| {
                    element.key.len() == found.len()
                        && element.key.iter().zip(&found).all(|(value, found)| holds(value, *found))
                })
        }
        (Operand::Word(word), Found::Word(found)) => *word == found,
        (Operand::Words(words), Found::Word(found)) => words.contains(&found),
        (Operand::Number(number), Found::Number(found)) => u32::from(*number) == found,
        _ => false,
    })
}

fn look_up(rules: &Ruleset, map: &str, key: Selector, packet: &Packet) -> Option<u16> {
    let found = find(key, packet)?;
    let map = rules.sets.iter().find(|set| set.name == map)?;
    let is_it = |value: &[Value]| matches!(value, [value] if holds(value, found));
    map.elements.iter().find(|element| is_it(&element.key))?.to
}

fn holds(value: &Value, found: Found<'_>) -> bool {
    match (value, found) {
        (Value::Uid(uid), Found::Number(found)) => *uid == found,
        (Value::Ports(first, last), Found::Number(found)) => {
            (u32::from(*first)..=u32::from(*last)).contains(&found)
        }
        (Value::Address(address), Found::Address(found)) => *address == found,
        (Value::Net(net), Found::Address(found)) => net.contains(&found),
        (Value::Interface(name), Found::Word(found)) => name == found,
        (Value::Tcp, Found::Word(found)) => found == "tcp",
        _ => false,
    }
}
