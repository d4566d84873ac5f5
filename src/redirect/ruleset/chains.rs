//! The chains: which rules there are, and in which order. Why, says the folder's front page.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::Operand::{Number, Set, Word, Words};
use super::Part::{
    Accept, Dnat, Goto, Is, IsNot, Jump, NotOpening, Prohibit, Redirect, Remember, Reset, Return, Zone,
    ZoneOfQuery,
};
use super::Selector::{
    AnyDestination, DestinationType, Family, InputInterface, Ip4Destination, Ip4Source, Ip6Destination, Mark,
    OutputInterface, Protocol, SocketUid, TcpDestination, UdpDestination, UdpSource,
};
use super::build::Sets;
use super::{Base, Chain, Hook, MARK_CHAIN, Part, Rule, generation_comment};
use crate::base::own::OWN_MARK;
use crate::config::{Ipv6Policy, OnProxyFailure};
use crate::plan::{DnsCapture, DnsServer, InboundCapture, OutboundCapture, RESOLVER_MARK, RedirectPolicy};

/// Before conntrack (-200), so that its zone can still be chosen.
pub(in crate::redirect) const RAW: i32 = -300;
/// Behind Docker's -100, before firewalld's -90.
pub(super) const REDIRECT: i32 = -99;
/// Behind NAT in output (-100 and ours), before the filters of others (0).
pub(super) const GUARD: i32 = -50;

/// DNS has the well-known port, and the zone gets its number for whoever reads `conntrack -L`; what is redirected has the
/// one after it.
const DNS_PORT: u16 = 53;
const REDIRECTED_ZONE: u16 = 54;

/// Whose families are those in which our resolver lives.
const ALIVE: &str = "dns_alive";

/// A packet that our resolver sends in its own name.
const OF_THE_RESOLVER: Part = Is(&[Mark], super::Operand::Mark(RESOLVER_MARK));

/// A packet that enmesh sends in its own name, to Consul or to a platform.
const OF_ENMESH: Part = Is(&[Mark], super::Operand::Mark(OWN_MARK));

/// Every chain that the policy needs. `everyone` and `all` are its catch-all captures.
pub(super) fn chains(
    policy: &RedirectPolicy,
    everyone: Option<&OutboundCapture>,
    all: Option<&InboundCapture>,
    sets: &Sets,
) -> Vec<Chain> {
    let outbound = !policy.outbound.is_empty();
    let base = |nat, hook, priority| Some(Base { nat, hook, priority });
    let mut chains = vec![Chain {
        name: MARK_CHAIN,
        base: None,
        rules: vec![Rule::new(generation_comment(&policy.generation), [Return])],
    }];
    let mut add = |name, base, rules: Vec<Rule>| {
        if !rules.is_empty() {
            chains.push(Chain { name, base, rules });
        }
    };
    add("refuse", None, refuse());
    if outbound {
        add("bypass", None, bypass(everyone.is_some(), sets));
    }
    if let Some(dns) = policy.dns.as_ref().filter(|dns| has_zones(dns)) {
        add("raw_dns", None, raw_dns(dns, sets));
        add("raw_out", base(false, Hook::Output, RAW), raw_out(dns, sets));
        add("raw_in", base(false, Hook::Prerouting, RAW), raw_in());
    }
    if outbound || policy.dns.is_some() {
        add("out", base(true, Hook::Output, REDIRECT), out(policy, everyone, sets));
    }
    if !policy.inbound.is_empty() {
        add("in", base(true, Hook::Prerouting, REDIRECT), inbound(policy, all, sets));
    }
    add("guard_out", base(false, Hook::Output, GUARD), guard_out(policy, everyone, sets));
    if !policy.inbound.is_empty() {
        add("guard_in", base(false, Hook::Input, GUARD), guard_in(policy, all, sets));
    }
    chains
}

/// A rule that is there when its set has something in it.
fn when(rules: &mut Vec<Rule>, needed: bool, comment: &str, parts: impl Into<Vec<Part>>) {
    if needed {
        rules.push(Rule::new(comment, parts));
    }
}

fn refuse() -> Vec<Rule> {
    vec![
        Rule::new("refuse TCP", [Is(&[Protocol], Word("tcp")), Reset]),
        Rule::new("refuse the rest", [Prohibit]),
    ]
}

/// What of outbound traffic is left alone; falls back to the caller with what is not.
fn bypass(everyone: bool, sets: &Sets) -> Vec<Rule> {
    const OTHERS: &str = "users that are not captured";
    let mut rules = vec![Rule::new("only TCP is captured", [IsNot(&[Protocol], Word("tcp")), Accept])];
    when(&mut rules, !everyone, OTHERS, [IsNot(&[SocketUid], Set("captured_uids")), Accept]);
    rules.extend([
        Rule::new("networks of no mesh", [Is(&[Ip4Destination], Set("bypass_net4")), Accept]),
        Rule::new("networks of no mesh, IPv6", [Is(&[Ip6Destination], Set("bypass_net6")), Accept]),
        Rule::new("own addresses", [Is(&[DestinationType], Word("local")), Accept]),
    ]);
    let dns = || Is(&[TcpDestination], Number(DNS_PORT));
    rules.extend([
        Rule::new("DNS over TCP", [dns(), IsNot(&[Ip4Destination], Set("virtual4")), Accept]),
        Rule::new("DNS over TCP, IPv6", [dns(), IsNot(&[Ip6Destination], Set("virtual6")), Accept]),
    ]);
    for (set, left, comment) in [
        ("uid_bypass_ports", &[SocketUid, TcpDestination] as &[_], "a user's bypassed ports"),
        ("uid_bypass_net4", &[Ip4Destination, SocketUid], "a user's bypassed networks"),
        ("uid_bypass_net6", &[Ip6Destination, SocketUid], "a user's bypassed networks, IPv6"),
    ] {
        when(&mut rules, sets.has(set), comment, [Is(left, Set(set)), Accept]);
    }
    if everyone {
        let claimed = sets.has("captured_uids");
        let parts = [Is(&[SocketUid], Set("captured_uids")), Return];
        when(&mut rules, claimed, "users of other services", parts);
        for (set, left, comment) in [
            ("host_bypass_ports", &[TcpDestination] as &[_], "the host's bypassed ports"),
            ("host_bypass_net4", &[Ip4Destination], "the host's bypassed networks"),
            ("host_bypass_net6", &[Ip6Destination], "the host's bypassed networks, IPv6"),
        ] {
            when(&mut rules, sets.has(set), comment, [Is(left, Set(set)), Accept]);
        }
    }
    rules
}

/// Whether DNS over the wire is told from what is redirected by a conntrack zone. The answers of a server
/// that is itself over the wire would be looked for in that zone, and redirected queries are not in it.
/// Where only queries to some addresses are redirected, nobody else asks those.
fn has_zones(dns: &DnsCapture) -> bool {
    match &dns.server {
        DnsServer::Ours => true,
        DnsServer::Other { also, asked } => {
            let mut all = also.iter().chain([&dns.to]);
            asked.is_empty() && all.all(|to| to.ip().is_loopback())
        }
    }
}

/// What leaves for a DNS server and is not captured, and what a DNS server here answers.
fn raw_out(dns: &DnsCapture, sets: &Sets) -> Vec<Rule> {
    let over_the_wire = || IsNot(&[OutputInterface], Word("lo"));
    let uncaptured = if dns.uids.is_empty() {
        Is(&[SocketUid], Set("bypass_uids"))
    } else {
        IsNot(&[SocketUid], Set("dns_uids"))
    };
    let query = || Is(&[UdpDestination], Number(DNS_PORT));
    let answer = || Is(&[UdpSource], Number(DNS_PORT));
    let mut rules = Vec::new();
    if dns.server.is_ours() {
        let queries = [over_the_wire(), OF_THE_RESOLVER, query(), Zone(DNS_PORT)];
        rules.push(Rule::new("the resolver lives", [OF_THE_RESOLVER, Remember(ALIVE)]));
        rules.push(Rule::new("DNS queries of the resolver", queries));
    }
    rules.extend([
        Rule::new("DNS queries that go out", [over_the_wire(), uncaptured, query(), Zone(DNS_PORT)]),
        Rule::new("DNS answers that go out", [over_the_wire(), answer(), Zone(DNS_PORT)]),
    ]);
    let excepted = [over_the_wire(), Is(&[SocketUid], Set("dns_except")), query(), Zone(DNS_PORT)];
    when(&mut rules, excepts(dns, sets), "DNS queries of users with another resolver", excepted);
    let lives = dns.server.is_ours().then_some(Is(&[Family], Set(ALIVE)));
    let parts: Vec<Part> = [query()].into_iter().chain(lives).chain([Goto("raw_dns")]).collect();
    rules.push(Rule::new("DNS queries", parts));
    rules
}

/// Each query that is redirected is looked for where no query that was not redirected has left an
/// entry, and the other way round: a socket that goes on asking gets to whoever answers now, and when the resolver
/// is gone, back to the server of before. The answers come from the server here, outside of any zone.
fn raw_dns(dns: &DnsCapture, sets: &Sets) -> Vec<Rule> {
    let mut rules = Vec::new();
    when(&mut rules, dns.server.is_ours(), "our resolver", [OF_THE_RESOLVER, Return]);
    let parts = [Is(&[SocketUid], Set("bypass_uids")), Return];
    when(&mut rules, sets.has("bypass_uids"), "bypassed users", parts);
    let parts = [Is(&[SocketUid], Set("dns_except")), Return];
    when(&mut rules, excepts(dns, sets), "users with another resolver", parts);
    let users = (!dns.uids.is_empty()).then_some(Is(&[SocketUid], Set("dns_uids")));
    let parts: Vec<Part> = users.into_iter().chain([ZoneOfQuery(REDIRECTED_ZONE)]).collect();
    rules.push(Rule::new("DNS queries that are redirected", parts));
    rules
}

/// Whether there is anybody who is not captured with everybody.
fn excepts(dns: &DnsCapture, sets: &Sets) -> bool {
    dns.uids.is_empty() && sets.has("dns_except")
}

/// The other half: answers that come back, and queries from outside or from containers. Those must
/// be in the zone as well, or the answer to a masqueraded query would not find its entry.
fn raw_in() -> Vec<Rule> {
    let over_the_wire = || IsNot(&[InputInterface], Word("lo"));
    let answer = || Is(&[UdpSource], Number(DNS_PORT));
    let query = || Is(&[UdpDestination], Number(DNS_PORT));
    vec![
        Rule::new("DNS answers that come in", [over_the_wire(), answer(), Zone(DNS_PORT)]),
        Rule::new("DNS queries that come in", [over_the_wire(), query(), Zone(DNS_PORT)]),
    ]
}

fn out(policy: &RedirectPolicy, everyone: Option<&OutboundCapture>, sets: &Sets) -> Vec<Rule> {
    let mut rules = Vec::new();
    let parts = [Is(&[SocketUid], Set("bypass_uids")), Accept];
    when(&mut rules, sets.has("bypass_uids"), "bypassed users", parts);
    let ours = policy.dns.as_ref().is_some_and(|dns| dns.server.is_ours());
    when(&mut rules, ours, "our resolver", [OF_THE_RESOLVER, Accept]);
    when(&mut rules, policy.own_calls, "enmesh itself", [OF_ENMESH, Accept]);
    rules.push(Rule::new("connections that run already", [NotOpening, Accept]));
    if let Some(dns) = &policy.dns {
        rules.extend(dns_rules(dns, sets));
    }
    if policy.outbound.is_empty() {
        return rules;
    }
    rules.push(Rule::new("what is left alone", [Jump("bypass")]));
    let ipv6 = || Is(&[Family], Word("ipv6"));
    for (set, comment) in
        [("uid_allow6", "users with IPv6 allowed"), ("uid_refuse6", "users with IPv6 refused")]
    {
        when(&mut rules, sets.has(set), comment, [ipv6(), Is(&[SocketUid], Set(set)), Accept]);
    }
    let tcp = || Is(&[Protocol], Word("tcp"));
    let users = sets.has("captured_uids");
    when(&mut rules, users, "to the user's sidecar", [tcp(), Redirect(SocketUid, "uid_redirect")]);
    if let Some(capture) = everyone {
        let parts = [Is(&[SocketUid], Set("captured_uids")), Accept];
        when(&mut rules, users, "users whose sidecar is not live", parts);
        let parts = [ipv6(), Accept];
        when(&mut rules, capture.ipv6 != Ipv6Policy::Redirect, "IPv6 is not redirected", parts);
        rules.push(Rule::new("to the host's sidecar", [tcp(), Redirect(Protocol, "host_redirect")]));
    }
    rules
}

/// Queries to the server that shall answer them.
fn dns_rules(dns: &DnsCapture, sets: &Sets) -> Vec<Rule> {
    let mut rules = Vec::new();
    for to in dns_targets(dns) {
        let mut parts = Vec::new();
        if !dns.uids.is_empty() {
            parts.push(Is(&[SocketUid], Set("dns_uids")));
        }
        if excepts(dns, sets) {
            parts.push(IsNot(&[SocketUid], Set("dns_except")));
        }
        parts.extend([Is(&[Protocol], Words(&["tcp", "udp"])), Is(&[AnyDestination], Number(DNS_PORT))]);
        match &dns.server {
            DnsServer::Ours => parts.push(Is(&[Family], Set(ALIVE))),
            DnsServer::Other { asked, .. } if !asked.is_empty() => {
                let (left, set): (&'static [_], _) = match to {
                    SocketAddr::V4(_) => (&[Ip4Destination], "dns_asked4"),
                    SocketAddr::V6(_) => (&[Ip6Destination], "dns_asked6"),
                };
                if !sets.has(set) {
                    continue;
                }
                parts.push(Is(left, Set(set)));
            }
            DnsServer::Other { .. } => {}
        }
        parts.push(Dnat(to));
        rules.push(Rule::new(if to.is_ipv4() { "DNS" } else { "DNS, IPv6" }, parts));
    }
    rules
}

/// Where they go, one a family. Our resolver is in both when it listens on loopback.
fn dns_targets(dns: &DnsCapture) -> Vec<SocketAddr> {
    let other = match &dns.server {
        DnsServer::Other { also, .. } => *also,
        DnsServer::Ours => dns.to.ip().is_loopback().then(|| match dns.to {
            SocketAddr::V4(_) => SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), dns.to.port()),
            SocketAddr::V6(_) => SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), dns.to.port()),
        }),
    };
    let mut targets: Vec<SocketAddr> = [dns.to].into_iter().chain(other).collect();
    targets.sort();
    targets
}

/// Connections of the host to itself.
fn from_this_host(policy: &RedirectPolicy) -> Vec<Rule> {
    const OWN: &str = "from this host";
    let mut rules = vec![Rule::new(OWN, [Is(&[InputInterface], Word("lo")), Accept])];
    let end = policy.host_end.map(super::Operand::Address);
    rules.extend(end.map(|end| Rule::new(OWN, [Is(&[Ip4Source], end), Accept])));
    rules
}

fn inbound(policy: &RedirectPolicy, all: Option<&InboundCapture>, sets: &Sets) -> Vec<Rule> {
    let mut rules = from_this_host(policy);
    rules.extend([
        Rule::new("only TCP is captured", [IsNot(&[Protocol], Word("tcp")), Accept]),
        Rule::new("connections that run already", [NotOpening, Accept]),
        Rule::new("forwarded", [IsNot(&[DestinationType], Word("local")), Accept]),
        Rule::new("straight to a sidecar", [Is(&[TcpDestination], Set("sidecar_ports")), Accept]),
    ]);
    let ipv6 = || Is(&[Family], Word("ipv6"));
    let tcp = || Is(&[Protocol], Word("tcp"));
    inbound_bypass(&mut rules, sets);
    let parts = [ipv6(), Is(&[TcpDestination], Set("in_refuse6")), Accept];
    when(&mut rules, sets.has("in_refuse6"), "ports with IPv6 refused", parts);
    if policy.inbound.len() > usize::from(all.is_some()) {
        let parts = [tcp(), Redirect(TcpDestination, "in_redirect")];
        rules.push(Rule::new("to the port's sidecar", parts));
    }
    if let Some(capture) = all {
        all_bypass(&mut rules, sets);
        let parts = [ipv6(), Accept];
        when(&mut rules, capture.ipv6 != Ipv6Policy::Redirect, "IPv6 is not redirected", parts);
        rules.push(Rule::new("to the host's sidecar", [tcp(), Redirect(Protocol, "all_redirect")]));
    }
    rules
}

/// What the captures of single ports leave alone.
fn inbound_bypass(rules: &mut Vec<Rule>, sets: &Sets) {
    let set = "in_bypass_interfaces";
    let parts = [Is(&[InputInterface, TcpDestination], Set(set)), Accept];
    when(rules, sets.has(set), "a port's bypassed interfaces", parts);
    let parts = [Is(&[Family], Word("ipv6")), Is(&[TcpDestination], Set("in_allow6")), Accept];
    when(rules, sets.has("in_allow6"), "ports with IPv6 allowed", parts);
}

/// What the capture of all ports leaves alone, the ports of other services included.
fn all_bypass(rules: &mut Vec<Rule>, sets: &Sets) {
    let set = "all_bypass_interfaces";
    when(rules, sets.has(set), "bypassed interfaces", [Is(&[InputInterface], Set(set)), Accept]);
    let set = "all_bypass_ports";
    when(rules, sets.has(set), "bypassed ports", [Is(&[TcpDestination], Set(set)), Accept]);
    let set = "agent_ports";
    when(rules, sets.has(set), "Consul's agent", [Is(&[TcpDestination], Set(set)), Accept]);
}

fn guard_out(policy: &RedirectPolicy, everyone: Option<&OutboundCapture>, sets: &Sets) -> Vec<Rule> {
    let outbound = !policy.outbound.is_empty();
    let mut rules = Vec::new();
    if !outbound && !sets.has("virtual4") && !sets.has("virtual6") {
        return rules;
    }
    rules.push(Rule::new("connections that run already", [NotOpening, Accept]));
    let parts = [Is(&[SocketUid], Set("proxy_uids")), Accept];
    when(&mut rules, sets.has("proxy_uids"), "sidecars", parts);
    let parts = [Is(&[Ip4Destination], Set("broadcast4")), Accept];
    when(&mut rules, sets.has("broadcast4"), "limited broadcast", parts);
    for (set, left, comment) in [
        ("virtual4", &[Ip4Destination] as &[_], "virtual IPs"),
        ("virtual6", &[Ip6Destination], "virtual IPs, IPv6"),
    ] {
        when(&mut rules, sets.has(set), comment, [Is(left, Set(set)), Goto("refuse")]);
    }
    if !outbound {
        return rules;
    }
    let parts = [Is(&[SocketUid], Set("bypass_uids")), Accept];
    when(&mut rules, sets.has("bypass_uids"), "bypassed users", parts);
    when(&mut rules, policy.own_calls, "enmesh itself", [OF_ENMESH, Accept]);
    rules.push(Rule::new("what is left alone", [Jump("bypass")]));
    guard_users(&mut rules, sets);
    if let Some(capture) = everyone {
        guard_everyone(&mut rules, capture, sets);
    }
    rules
}

fn guard_users(rules: &mut Vec<Rule>, sets: &Sets) {
    let ipv6 = || Is(&[Family], Word("ipv6"));
    let user = |set| Is(&[SocketUid], Set(set));
    for (set, comment, verdict) in [
        ("uid_allow6", "users with IPv6 allowed", Accept),
        ("uid_refuse6", "users with IPv6 refused", Goto("refuse")),
    ] {
        when(rules, sets.has(set), comment, [ipv6(), user(set), verdict]);
    }
    when(rules, sets.has("uid_sealed"), "sealed users", [user("uid_sealed"), Goto("refuse")]);
    for (set, left, comment) in [
        ("mesh4", &[Ip4Destination, TcpDestination] as &[_], "users, to the mesh"),
        ("mesh6", &[Ip6Destination, TcpDestination], "users, to the mesh, IPv6"),
    ] {
        let parts = [user("uid_closed"), Is(left, Set(set)), Goto("refuse")];
        when(rules, sets.has("uid_closed") && sets.has(set), comment, parts);
    }
}

fn guard_everyone(rules: &mut Vec<Rule>, capture: &OutboundCapture, sets: &Sets) {
    let users = [Is(&[SocketUid], Set("captured_uids")), Accept];
    when(rules, sets.has("captured_uids"), "users of other services", users);
    let ipv6 = || Is(&[Family], Word("ipv6"));
    match capture.ipv6 {
        Ipv6Policy::Redirect => {}
        Ipv6Policy::Allow => rules.push(Rule::new("IPv6 is allowed", [ipv6(), Accept])),
        Ipv6Policy::Refuse => rules.push(Rule::new("IPv6 is refused", [ipv6(), Goto("refuse")])),
    }
    match capture.on_failure {
        OnProxyFailure::Open => {}
        OnProxyFailure::Sealed => rules.push(Rule::new("the host is sealed", [Goto("refuse")])),
        OnProxyFailure::Closed => {
            for (set, left, comment) in [
                ("mesh4", &[Ip4Destination, TcpDestination] as &[_], "the host, to the mesh"),
                ("mesh6", &[Ip6Destination, TcpDestination], "the host, to the mesh, IPv6"),
            ] {
                when(rules, sets.has(set), comment, [Is(left, Set(set)), Goto("refuse")]);
            }
        }
    }
}

fn guard_in(policy: &RedirectPolicy, all: Option<&InboundCapture>, sets: &Sets) -> Vec<Rule> {
    let mut rules = from_this_host(policy);
    rules.extend([
        Rule::new("only TCP is captured", [IsNot(&[Protocol], Word("tcp")), Accept]),
        Rule::new("connections that run already", [NotOpening, Accept]),
        Rule::new("to a sidecar", [Is(&[TcpDestination], Set("sidecar_ports")), Accept]),
    ]);
    inbound_bypass(&mut rules, sets);
    let ipv6 = || Is(&[Family], Word("ipv6"));
    let parts = [ipv6(), Is(&[TcpDestination], Set("in_refuse6")), Goto("refuse")];
    when(&mut rules, sets.has("in_refuse6"), "ports with IPv6 refused", parts);
    let parts = [Is(&[TcpDestination], Set("in_refused")), Goto("refuse")];
    when(&mut rules, sets.has("in_refused"), "services' ports in the clear", parts);
    if let Some(capture) = all {
        all_bypass(&mut rules, sets);
        match capture.ipv6 {
            Ipv6Policy::Redirect => {}
            Ipv6Policy::Allow => rules.push(Rule::new("IPv6 is allowed", [ipv6(), Accept])),
            Ipv6Policy::Refuse => rules.push(Rule::new("IPv6 is refused", [ipv6(), Goto("refuse")])),
        }
        let refused = capture.on_failure != OnProxyFailure::Open;
        when(&mut rules, refused, "all ports in the clear", [Goto("refuse")]);
    }
    rules
}
