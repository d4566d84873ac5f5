//! Policy -> ruleset, as data: one private table.
//!
//! [`build()`] is pure. What it returns is rendered twice, to the JSON that `nft -j -f -` takes
//! ([`json`]) and to text for people ([`text`]), and a kernel test holds both to the same state.
//!
//! # Shape
//!
//! Every address, port, user and interface stands in a set or map; the rules only name the sets.
//! So their number depends on which *kinds* of things a policy has, never on how many, and a new
//! connection costs the same with one service as with a hundred. A rule whose set would be empty
//! is left out. Which sidecars are live shows in the four redirect maps only: a sidecar that comes
//! or goes changes map elements and no rule.
//!
//! The table is replaced and goes in one transaction; where there is none, its sets appear in one and all chains
//! and rules in the next, since interval sets count a moment late ([`json::create_sets_first`]). Between two rulesets that enmesh made
//! itself only what differs is touched ([`change`]).
//!
//! `accept` ends one base chain and no other, so it means "left alone" in NAT chains and guards
//! alike, which lets both share the chain `bypass`. Per chain, in order of evaluation:
//!
//! | chain | hook | what | why |
//! |---|---|---|---|
//! | `generation` | none | carries `enmesh:gen:NUMBER:HASH` as a comment | tables have no comment in nft 1.0.6; nothing jumps here |
//! | `raw_out`, `raw_dns`, `raw_in` | output, prerouting, -300 | a packet of our resolver keeps DNS redirected for some seconds; DNS over the wire gets a conntrack zone of its own, queries that are redirected another | names are found also when the daemon is dead; an application and a resolver that pick the same source port must not share an entry; a socket from before must not go on where it went |
//! | `out` | nat output, -99 | bypassed users; our resolver; all but opening SYNs; DNS; `bypass`; IPv6 policy; redirect by user; redirect the rest | see below |
//! | `in` | nat prerouting, -99 | loopback; all but opening SYNs; forwarded; sidecars' ports; bypasses; redirect by port; redirect the rest | see below |
//! | `guard_out` | filter output, -50 | virtual IPs, refused IPv6, and what `on_proxy_failure` refuses | runs after NAT: what was redirected has a local destination by now |
//! | `guard_in` | filter input, -50 | the services' ports when they arrive as themselves | the same, for the other direction |
//! | `refuse` | none | TCP reset, else ICMP "prohibited" | the caller learns at once |
//!
//! - **-99**: one behind the -100 that Docker and iptables use, so a published container port wins
//!   in every load order; firewalld (-90) comes later.
//! - **Opening SYNs only**: NAT loaded into a namespace where conntrack slept makes it take running
//!   connections for new ones; redirecting those would reset them.
//! - **Local destinations** (`fib`): a host's own address is not the mesh; and in `in` it tells the
//!   host's traffic from what is only forwarded for containers.
//! - **DNS is redirected while the resolver lives** and says so: every packet that it marks puts the family
//!   into a set from which it lapses by itself. No program has to run to take the redirection back, and
//!   rules that are loaded before the daemon starts leave DNS alone.
//! - **Stub resolvers on loopback** (127.0.0.53) are captured as well: on most hosts nobody asks another.
//!   Our resolver asks them in its turn for what is not the mesh's; their own queries go direct, because
//!   their users are bypassed.
//! - **TCP port 53** is DNS that has to work before any sidecar does; only at a virtual IP it is a
//!   mesh destination.
//! - **Virtual IPs are refused whenever they are not redirected**, whoever asks and whatever
//!   `on_proxy_failure` says: nothing is there to reach in the clear, so the choice is between an
//!   error at once and a timeout.
//! - **The limited broadcast** (255.255.255.255) lies in the virtual IPs' network and is none of them: DHCP and
//!   discovery go by it.
//! - **The guards do not ask who is live**: a redirected connection never meets them, so they close
//!   the gap as soon as the redirect is gone, and hold even where somebody else's NAT came first.
//! - **On trial** ([`trial`]) two rulesets are in the table, and the kernel goes back to the one of before by itself.
//! - **Everybody** (`scope = "host"`) has sets of its own, reached only by users that no other
//!   service claims, live or not: a service whose sidecar is down must not fall into another's.

mod build;
mod chains;
mod change;
pub(super) mod json;
#[cfg(test)]
pub(super) mod tests;
pub(super) mod text;
pub(super) mod trial;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ipnet::IpNet;

pub use build::ALWAYS_BYPASSED;
pub(super) use build::build;
pub(super) use chains::RAW;

use crate::plan::Generation;

/// The table. Its family is `inet`.
pub const TABLE: &str = "enmesh";

/// The table that has the guard once more while a daemon holds it. Its family is `inet`.
pub const KEPT: &str = "enmesh_keep";

/// A chain that only carries a comment.
pub(super) const MARK_CHAIN: &str = "generation";

/// What precedes `NUMBER:HASH` in the comment that names the generation.
pub const GENERATION_MARK: &str = "enmesh:gen:";

/// The comment of the drain husk's rule, in the place of a generation.
pub const DRAIN_MARK: &str = "enmesh:drain";

/// A table's content.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Ruleset {
    pub sets: Vec<NamedSet>,
    pub chains: Vec<Chain>,
}

/// A set, or with `value` a map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NamedSet {
    pub name: &'static str,
    pub key: &'static [Kind],
    pub value: Option<Kind>,
    pub interval: bool,
    pub elements: Vec<Element>,
}

/// How many elements go into one command where [`NamedSet::parts`] has to cut.
const PART: usize = 500;

impl NamedSet {
    /// Whether packets fill it, so that what is in it says nothing about the policy.
    pub fn dynamic(&self) -> bool {
        self.key == [Kind::Family]
    }

    /// The elements in the parts in which they are handed to nft: the first with the set, the
    /// others as commands of their own.
    ///
    /// nft (1.0.6) swaps the bytes of a user's number in a concatenated interval once too often
    /// when the element did not fit into its netlink message (64 KiB) and goes into the next, so
    /// no message of such a set may get full.
    pub fn parts(&self) -> impl Iterator<Item = &[Element]> {
        self.parts_of(&self.elements)
    }

    /// The same of some of them.
    pub fn parts_of<'a, T>(&self, elements: &'a [T]) -> impl Iterator<Item = &'a [T]> {
        let fragile = self.interval && self.key.len() > 1 && self.key.contains(&Kind::Uid);
        elements.chunks(if fragile { PART } else { usize::MAX })
    }
}

/// The type of one component of a set's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Uid,
    Port,
    Ip4,
    Ip6,
    Interface,
    Protocol,
    /// Only in the set that packets fill.
    Family,
}

impl Kind {
    /// nft's word for it.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Uid => "uid",
            Kind::Port => "inet_service",
            Kind::Ip4 => "ipv4_addr",
            Kind::Ip6 => "ipv6_addr",
            Kind::Interface => "ifname",
            Kind::Protocol => "inet_proto",
            Kind::Family => "nf_proto",
        }
    }
}

/// A set's element: one value a component; with `to`, a map's.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Element {
    pub key: Vec<Value>,
    pub to: Option<u16>,
}

/// A value in a set.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Value {
    Uid(u32),
    /// First and last, included.
    Ports(u16, u16),
    Address(IpAddr),
    Net(IpNet),
    /// Fit to stand in quotes.
    Interface(String),
    Tcp,
}

/// A chain; with `base`, one that the kernel enters by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chain {
    pub name: &'static str,
    pub base: Option<Base>,
    pub rules: Vec<Rule>,
}

/// Where a base chain hangs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Base {
    pub nat: bool,
    pub hook: Hook,
    pub priority: i32,
}

/// The hooks in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hook {
    Prerouting,
    Input,
    Output,
}

/// A rule: all of its parts in order. The comment says what for, and is its name in differences.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    pub comment: String,
    pub parts: Vec<Part>,
}

impl Rule {
    pub fn new(comment: impl Into<String>, parts: impl Into<Vec<Part>>) -> Self {
        Rule { comment: comment.into(), parts: parts.into() }
    }
}

/// One match or action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Part {
    /// `left` equals `right` (or is in that set).
    Is(&'static [Selector], Operand),
    /// It does not.
    IsNot(&'static [Selector], Operand),
    /// TCP, and not the SYN that opens a connection.
    NotOpening,
    Accept,
    Return,
    Jump(&'static str),
    Goto(&'static str),
    /// Answer with a TCP reset.
    Reset,
    /// Answer with ICMP "administratively prohibited".
    Prohibit,
    /// To this host, at the port that the map has for the selector; no entry, no match.
    Redirect(Selector, &'static str),
    Dnat(SocketAddr),
    /// The conntrack zone.
    Zone(u16),
    /// The conntrack zone in which what goes this way is looked for; answers are in none.
    ZoneOfQuery(u16),
    /// The packet's family is in the set for the next [`RESOLVER_LAPSE`](crate::plan::RESOLVER_LAPSE) seconds.
    Remember(&'static str),
}

/// What of a packet is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Selector {
    SocketUid,
    TcpDestination,
    UdpDestination,
    UdpSource,
    /// The destination port of whatever carries ports.
    AnyDestination,
    Ip4Source,
    Ip4Destination,
    Ip6Destination,
    InputInterface,
    OutputInterface,
    Protocol,
    Family,
    Mark,
    /// What the routing table calls the destination.
    DestinationType,
    /// What was done to the connection.
    ConnectionStatus,
}

/// What it is compared with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Operand {
    Set(&'static str),
    Word(&'static str),
    /// Any of them.
    Words(&'static [&'static str]),
    Number(u16),
    Mark(u32),
    Address(Ipv4Addr),
}

/// The comment that carries `generation`. The hash is hexadecimal; anything else in it is dropped
/// rather than quoted.
pub(super) fn generation_comment(generation: &Generation) -> String {
    let hash: String = generation.hash.chars().filter(char::is_ascii_alphanumeric).take(64).collect();
    format!("{GENERATION_MARK}{}:{hash}", generation.number)
}

/// The generation that a comment carries.
pub(super) fn generation_of(comment: &str) -> Option<Generation> {
    let (number, hash) = comment.strip_prefix(GENERATION_MARK)?.split_once(':')?;
    Some(Generation { number: number.parse().ok()?, hash: hash.to_owned() })
}

/// What of `rules` refuses: the guards, what they lead to and look into; and what keeps redirected connections
/// redirected, as in the [`husk`]: without it their next packet would go where it was addressed, in the clear.
/// Who is live is no matter of it.
pub(super) fn guards(rules: &Ruleset) -> Ruleset {
    let refuses = |chain: &&Chain| match chain.base {
        Some(base) => !base.nat && base.priority == chains::GUARD,
        None => ["refuse", "bypass"].contains(&chain.name),
    };
    let mut chains: Vec<Chain> = rules.chains.iter().filter(refuses).cloned().collect();
    let name = |chain: Chain| {
        let name = if chain.base.is_some_and(|base| base.nat) { "out" } else { "tracked" };
        Chain { name, ..chain }
    };
    chains.extend(husk().chains.into_iter().map(name));
    let used: BTreeSet<&str> = chains.iter().flat_map(|chain| &chain.rules).flat_map(build::names).collect();
    let sets = rules.sets.iter().filter(|set| used.contains(set.name)).cloned().collect();
    Ruleset { sets, chains }
}

/// The table that lets redirected connections run on while new ones go direct: a NAT chain without
/// rules and one rule that looks at conntrack. Both are needed; without the second, conntrack
/// unhooks and takes the translations with it.
pub(super) fn husk() -> Ruleset {
    let output = |nat, priority| Some(Base { nat, hook: Hook::Output, priority });
    let tracked =
        Rule::new(DRAIN_MARK, [Part::Is(&[Selector::ConnectionStatus], Operand::Word("dnat")), Part::Accept]);
    Ruleset {
        sets: Vec::new(),
        chains: vec![
            Chain { name: "out", base: output(true, chains::REDIRECT), rules: Vec::new() },
            Chain { name: "guard_out", base: output(false, chains::GUARD), rules: vec![tracked] },
        ],
    }
}
