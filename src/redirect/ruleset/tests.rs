//! What must hold for every policy, checked by walking the rules with made-up packets.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use proptest::prelude::*;

use super::{Element, Operand, Part, Ruleset, Selector, Value, build, json, text, trial};
use crate::config::value::{PortRange, ServiceId};
use crate::config::{Ipv6Policy, OnProxyFailure};
use crate::plan::{Bypasses, Generation, InboundCapture, InboundPorts, OutboundCapture, RedirectPolicy, Who};

/// An opening TCP packet.
#[derive(Debug, Clone, Copy)]
struct Syn {
    uid: u32,
    to: IpAddr,
    port: u16,
    interface: &'static str,
    /// Whether the destination is an address of this host.
    local: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Accept,
    Redirect(u16),
    Refuse,
}

/// Where a chain sends the packet; `None` when it has nothing to say.
fn walk(rules: &Ruleset, chain: &str, syn: Syn) -> Option<Verdict> {
    let chain = rules.chains.iter().find(|one| one.name == chain)?;
    'rules: for rule in &chain.rules {
        for part in &rule.parts {
            match part {
                // Such a part looks at the family first, in either sense.
                Part::Is(left, _) | Part::IsNot(left, _) if other_family(left, syn) => continue 'rules,
                Part::Is(left, right) if !matches(rules, left, right, syn) => continue 'rules,
                Part::IsNot(left, right) if matches(rules, left, right, syn) => continue 'rules,
                Part::NotOpening => continue 'rules,
                Part::Is(..) | Part::IsNot(..) => {}
                Part::Accept => return Some(Verdict::Accept),
                Part::Return => return None,
                Part::Jump(to) => {
                    if let Some(verdict) = walk(rules, to, syn) {
                        return Some(verdict);
                    }
                }
                Part::Goto(to) => return walk(rules, to, syn),
                Part::Reset | Part::Prohibit => return Some(Verdict::Refuse),
                Part::Redirect(key, map) => match look_up(rules, map, &[value(*key, syn)]) {
                    Some(port) => return Some(Verdict::Redirect(port.unwrap())),
                    None => continue 'rules,
                },
                Part::Dnat(_) | Part::Zone(_) | Part::ZoneOfQuery(_) | Part::Remember(_) => {
                    panic!("no DNS in these policies")
                }
            }
        }
    }
    None
}

/// What becomes of an outbound packet: redirected, refused, or left alone.
fn outbound(rules: &Ruleset, syn: Syn) -> Verdict {
    match walk(rules, "out", syn) {
        Some(Verdict::Redirect(port)) => Verdict::Redirect(port),
        _ => walk(rules, "guard_out", syn).unwrap_or(Verdict::Accept),
    }
}

fn inbound(rules: &Ruleset, syn: Syn) -> Verdict {
    match walk(rules, "in", syn) {
        Some(Verdict::Redirect(port)) => Verdict::Redirect(port),
        _ => walk(rules, "guard_in", syn).unwrap_or(Verdict::Accept),
    }
}

fn other_family(left: &[Selector], syn: Syn) -> bool {
    let other = if syn.to.is_ipv4() { Selector::Ip6Destination } else { Selector::Ip4Destination };
    left.contains(&other)
}

fn matches(rules: &Ruleset, left: &[Selector], right: &Operand, syn: Syn) -> bool {
    let values: Vec<Value> = left.iter().map(|selector| value(*selector, syn)).collect();
    match right {
        Operand::Set(name) => look_up(rules, name, &values).is_some(),
        Operand::Word(word) => values == [Value::Interface((*word).to_owned())],
        Operand::Number(number) => values == [Value::Ports(*number, *number)],
        Operand::Words(_) | Operand::Mark(_) | Operand::Address(_) => {
            panic!("no DNS and no namespaces in these policies")
        }
    }
}

/// What a packet has at a selector; words of every kind as names.
fn value(selector: Selector, syn: Syn) -> Value {
    let word = |word: &str| Value::Interface(word.to_owned());
    match selector {
        Selector::SocketUid => Value::Uid(syn.uid),
        Selector::TcpDestination => Value::Ports(syn.port, syn.port),
        Selector::Ip4Destination | Selector::Ip6Destination => Value::Address(syn.to),
        Selector::InputInterface => word(syn.interface),
        Selector::Protocol => word("tcp"),
        Selector::Family => word(if syn.to.is_ipv4() { "ipv4" } else { "ipv6" }),
        Selector::DestinationType => word(if syn.local { "local" } else { "unicast" }),
        other => panic!("{other:?} is for DNS"),
    }
}

/// Whether a set has the values; with the port for a map.
fn look_up(rules: &Ruleset, name: &str, values: &[Value]) -> Option<Option<u16>> {
    let set = rules.sets.iter().find(|set| set.name == name).unwrap_or_else(|| panic!("no set {name}"));
    let covers = |have: &Value, want: &Value| match (have, want) {
        (Value::Ports(first, last), Value::Ports(port, _)) => first <= port && port <= last,
        (Value::Net(net), Value::Address(address)) => net.contains(address),
        (Value::Tcp, Value::Interface(word)) => word == "tcp",
        (have, want) => have == want,
    };
    let found = set.elements.iter().find(|element| element.key.iter().zip(values).all(|(h, w)| covers(h, w)));
    found.map(|element| element.to)
}

fn id(number: usize) -> ServiceId {
    format!("s{number:03}").parse().unwrap()
}

fn net() -> impl Strategy<Value = IpNet> {
    let v4 = (10..14_u8, any::<[u8; 3]>(), 8..=32_u8)
        .prop_map(|(a, [b, c, d], length)| IpNet::new(Ipv4Addr::new(a, b, c, d).into(), length).unwrap());
    let v6 = (any::<u128>(), 16..=128_u8).prop_map(|(bits, length)| {
        let address = std::net::Ipv6Addr::from_bits((bits >> 8) | (0xfd << 120));
        IpNet::new(address.into(), length).unwrap()
    });
    prop_oneof![3 => v4, 1 => v6]
}

fn bypass() -> impl Strategy<Value = Bypasses> {
    let range = (1..=u16::MAX, 0..50_u16).prop_map(|(first, more)| {
        format!("{first}-{}", first.saturating_add(more)).parse::<PortRange>().unwrap()
    });
    (prop::collection::vec(range, 0..4), prop::collection::vec(net(), 0..4))
        .prop_map(|(ports, cidrs)| Bypasses { ports, cidrs })
}

pub(in crate::redirect) fn policies() -> impl Strategy<Value = (RedirectPolicy, BTreeSet<ServiceId>)> {
    let ipv6 = prop::sample::select(vec![Ipv6Policy::Redirect, Ipv6Policy::Refuse, Ipv6Policy::Allow]);
    let failure =
        prop::sample::select(vec![OnProxyFailure::Closed, OnProxyFailure::Sealed, OnProxyFailure::Open]);
    let service = (ipv6, failure, bypass(), any::<bool>());
    let instances = prop::collection::btree_set((net().prop_map(|net| net.addr()), 1..=u16::MAX), 0..5);
    let catch_all = (any::<bool>(), any::<bool>());
    (prop::collection::vec(service, 1..5), catch_all, instances).prop_map(
        |(services, catch_all, instances)| {
            let mut policy = empty();
            policy.mesh_instances = instances;
            let mut live = BTreeSet::new();
            for (number, (ipv6, on_failure, bypass, is_live)) in services.into_iter().enumerate() {
                let n = u16::try_from(number).unwrap();
                let who =
                    if number == 0 && catch_all.0 { Who::Everyone } else { Who::Uid(1000 + u32::from(n)) };
                let all = number == 0 && catch_all.1;
                let ports = if all { InboundPorts::All } else { InboundPorts::One(8080 + n) };
                let inbound = InboundCapture {
                    ports,
                    to: 21000 + n,
                    ipv6,
                    on_failure,
                    bypass_ports: bypass.ports.clone(),
                    bypass_interfaces: BTreeSet::from(["eth9".to_owned()]),
                };
                policy.inbound.insert(id(number), inbound);
                policy
                    .outbound
                    .insert(id(number), OutboundCapture { who, port: 15001 + n, ipv6, on_failure, bypass });
                if is_live {
                    live.insert(id(number));
                }
            }
            (policy, live)
        },
    )
}

pub(in crate::redirect) fn empty() -> RedirectPolicy {
    RedirectPolicy {
        generation: Generation { number: 3, hash: "abc".to_owned() },
        bypass_uids: BTreeSet::from([102, 5995]),
        proxy_uids: BTreeSet::from([5995]),
        bypass_cidrs: BTreeSet::from(["169.254.169.254/32".parse().unwrap()]),
        virtual_nets: BTreeSet::from(["240.0.0.0/4".parse().unwrap(), "fd00:240::/32".parse().unwrap()]),
        mesh_instances: BTreeSet::new(),
        outbound: BTreeMap::new(),
        inbound: BTreeMap::new(),
        dns: None,
        own_calls: false,
        agent_ports: BTreeSet::new(),
        virtual_route: None,
        host_end: None,
    }
}

/// Destinations worth trying under a policy: what stands in it, and something else.
pub(in crate::redirect) fn destinations(policy: &RedirectPolicy) -> Vec<(IpAddr, u16)> {
    let mut all: Vec<(IpAddr, u16)> = policy.mesh_instances.iter().copied().collect();
    for capture in policy.outbound.values() {
        all.extend(capture.bypass.cidrs.iter().map(|net| (net.addr(), 80)));
        all.extend(capture.bypass.ports.iter().map(|range| ("192.0.2.1".parse().unwrap(), range.last.get())));
    }
    for address in ["240.0.0.9", "fd00:240::9", "192.0.2.1", "2001:db8::1", "127.0.0.9", "169.254.169.254"] {
        all.extend([80, 53].map(|port| (address.parse().unwrap(), port)));
    }
    all
}

fn owner(policy: &RedirectPolicy, uid: u32) -> Option<(&ServiceId, &OutboundCapture)> {
    let claimed = policy.outbound.iter().find(|(_, capture)| capture.who == Who::Uid(uid));
    claimed.or_else(|| policy.outbound.iter().find(|(_, capture)| capture.who == Who::Everyone))
}

/// The answer by the policy's own words, for a user that is not bypassed.
fn expected(policy: &RedirectPolicy, live: &BTreeSet<ServiceId>, syn: Syn) -> Verdict {
    let virtual_ip = policy.virtual_nets.iter().any(|net| net.contains(&syn.to));
    let unredirected = if virtual_ip { Verdict::Refuse } else { Verdict::Accept };
    let Some((service, capture)) = owner(policy, syn.uid) else { return unredirected };
    let bypassed = syn.to.is_loopback()
        || policy.bypass_cidrs.iter().chain(&capture.bypass.cidrs).any(|net| net.contains(&syn.to))
        || capture.bypass.ports.iter().any(|range| range.contains(syn.port))
        || (syn.port == 53 && !virtual_ip);
    match capture.ipv6 {
        _ if bypassed => return unredirected,
        Ipv6Policy::Refuse if syn.to.is_ipv6() => return Verdict::Refuse,
        Ipv6Policy::Allow if syn.to.is_ipv6() => return unredirected,
        _ => {}
    }
    if live.contains(service) {
        return Verdict::Redirect(capture.port);
    }
    let mesh = virtual_ip || policy.mesh_instances.contains(&(syn.to, syn.port));
    match capture.on_failure {
        OnProxyFailure::Sealed => Verdict::Refuse,
        OnProxyFailure::Closed if mesh => Verdict::Refuse,
        _ => unredirected,
    }
}

proptest! {
    #[test]
    fn sidecars_and_bypassed_users_are_never_captured((policy, live) in policies()) {
        let rules = build(&policy, &live);
        for (to, port) in destinations(&policy) {
            let syn = |uid| Syn { uid, to, port, interface: "eth0", local: false };
            prop_assert_eq!(outbound(&rules, syn(5995)), Verdict::Accept);
            let virtual_ip = policy.virtual_nets.iter().any(|net| net.contains(&to));
            let other = if virtual_ip { Verdict::Refuse } else { Verdict::Accept };
            prop_assert_eq!(outbound(&rules, syn(102)), other);
        }
    }

    #[test]
    fn outbound_goes_where_the_policy_says((policy, live) in policies()) {
        let rules = build(&policy, &live);
        for (to, port) in destinations(&policy) {
            for uid in [0, 1000, 1001, 1002, 1003, 7777] {
                let syn = Syn { uid, to, port, interface: "eth0", local: false };
                prop_assert_eq!(outbound(&rules, syn), expected(&policy, &live, syn), "{:?}", syn);
                let own = Syn { local: true, to: "192.0.2.77".parse().unwrap(), ..syn };
                prop_assert_eq!(outbound(&rules, own), Verdict::Accept);
            }
        }
    }

    #[test]
    fn inbound_goes_where_the_policy_says((policy, live) in policies()) {
        let rules = build(&policy, &live);
        let to: IpAddr = "10.9.0.2".parse().unwrap();
        for port in [8080, 8081, 8082, 8083, 9, 21000, 21003] {
            let syn = Syn { uid: 0, to, port, interface: "eth0", local: true };
            let own = policy.inbound.iter().find(|(_, c)| c.ports == InboundPorts::One(port));
            let all = policy.inbound.iter().find(|(_, c)| c.ports == InboundPorts::All);
            let sidecar = policy.inbound.values().any(|capture| capture.to == port);
            let want = match own.or(all) {
                Some((service, capture)) if !sidecar => {
                    if capture.bypass_ports.iter().any(|range| range.contains(port)) {
                        Verdict::Accept
                    } else if live.contains(service) {
                        Verdict::Redirect(capture.to)
                    } else if capture.on_failure == OnProxyFailure::Open {
                        Verdict::Accept
                    } else {
                        Verdict::Refuse
                    }
                }
                _ => Verdict::Accept,
            };
            prop_assert_eq!(inbound(&rules, syn), want, "{:?}", syn);
            let from_here = Syn { interface: "lo", ..syn };
            prop_assert_eq!(inbound(&rules, from_here), Verdict::Accept);
            let bypassed = inbound(&rules, Syn { interface: "eth9", ..syn });
            prop_assert_eq!(bypassed, Verdict::Accept);
            prop_assert_eq!(walk(&rules, "in", Syn { local: false, ..syn }), Some(Verdict::Accept));
        }
    }

    #[test]
    fn more_of_the_same_makes_no_more_rules((policy, live) in policies(), more in 1..40_usize) {
        let before = build(&policy, &live);
        let mut bigger = policy.clone();
        for number in 0..more {
            for (service, capture) in &policy.outbound {
                let Who::Uid(_) = capture.who else { continue };
                let mut capture = capture.clone();
                capture.who = Who::Uid(2000 + u32::try_from(bigger.outbound.len()).unwrap());
                bigger.outbound.insert(format!("{service}-{number}").parse().unwrap(), capture);
            }
        }
        let after = build(&bigger, &live);
        prop_assert_eq!(count(&before), count(&after));
        prop_assert!(count(&after) < 75, "{}", count(&after));
        // Who is live changes no rule.
        prop_assert_eq!(&before.chains, &build(&policy, &BTreeSet::new()).chains);
    }

    #[test]
    fn the_same_policy_gives_the_same_bytes((policy, live) in policies()) {
        let [one, two] = [build(&policy, &live), build(&policy.clone(), &live.clone())];
        prop_assert_eq!(text::replace(&one), text::replace(&two));
        prop_assert_eq!(json::replace(&one).to_string(), json::replace(&two).to_string());
    }
}

#[test]
fn a_sidecar_that_comes_is_one_map_element() {
    let mut policy = empty();
    let capture = OutboundCapture {
        who: Who::Uid(1000),
        port: 15001,
        ipv6: Ipv6Policy::Redirect,
        on_failure: OnProxyFailure::Closed,
        bypass: Bypasses::default(),
    };
    policy.outbound.insert(id(0), capture);
    let [down, up] = [BTreeSet::new(), BTreeSet::from([id(0)])].map(|live| build(&policy, &live));
    let commands =
        |from: &Ruleset, to: &Ruleset| json::change(from, to)["nftables"].as_array().unwrap().clone();
    let expected = serde_json::json!([{"add": {"element": {
        "family": "inet", "table": "enmesh", "name": "uid_redirect", "elem": [[1000, 15001]],
    }}}]);
    assert_eq!(serde_json::Value::Array(commands(&down, &up)), expected);
    assert!(commands(&up, &up).is_empty());
    // A set gets elements, and no chain is touched for it.
    let flushed = |from: &RedirectPolicy, to: &RedirectPolicy| -> Vec<_> {
        let [from, to] = [from, to].map(|policy| build(policy, &BTreeSet::from([id(0)])));
        let flushed = commands(&from, &to);
        let flushed = flushed.iter().filter_map(|command| command.pointer("/flush/chain/name").cloned());
        flushed.collect()
    };
    policy.mesh_instances.insert(("10.0.0.1".parse().unwrap(), 80));
    policy.bypass_cidrs.insert("10.8.0.0/16".parse().unwrap());
    let mut more = policy.clone();
    more.mesh_instances.insert(("10.0.0.2".parse().unwrap(), 80));
    more.bypass_cidrs.insert("10.7.0.0/24".parse().unwrap());
    assert!(flushed(&policy, &more).is_empty());
    // But one with an interval that overlaps a former one is made anew, with the chains that look into it.
    more.bypass_cidrs.insert("10.8.0.0/14".parse().unwrap());
    assert_eq!(flushed(&policy, &more), ["bypass"]);
    // An interval set that was not there comes before everything else.
    let without = build(&policy, &BTreeSet::new());
    policy.outbound.get_mut(&id(0)).unwrap().bypass.ports.push("80".parse().unwrap());
    let with = build(&policy, &BTreeSet::new());
    let early = json::before_change(&without, &with).unwrap();
    assert_eq!(early.pointer("/nftables/0/add/set/name").unwrap(), "uid_bypass_ports");
    assert!(!json::change(&without, &with).to_string().contains("\"set\":{"));
    assert_eq!(json::before_change(&with, &without), None);
}

/// The same ruleset while the trial lasts.
fn lasting(mut rules: Ruleset) -> Ruleset {
    let set = rules.sets.iter_mut().find(|set| set.name == trial::TRIAL).unwrap();
    let family = |word: &str| Element { key: vec![Value::Interface(word.to_owned())], to: None };
    set.elements = ["ipv4", "ipv6"].map(family).to_vec();
    rules
}

proptest! {
    /// While the trial lasts the new rules decide everything, and afterwards those of before, to the letter.
    #[test]
    fn a_trial_goes_back_to_what_was((new, live) in policies(), (old, was_live) in policies(), first in any::<bool>()) {
        let old_rules = (!first).then(|| build(&old, &was_live));
        let new_rules = build(&new, &live);
        let over = trial::on_trial(new_rules.clone(), old_rules.clone());
        let old_rules = old_rules.unwrap_or_default();
        let on = lasting(over.clone());
        for (to, port) in destinations(&new).into_iter().chain(destinations(&old)) {
            for uid in [0, 102, 1000, 1001, 5995, 7777] {
                let syn = Syn { uid, to, port, interface: "eth0", local: false };
                prop_assert_eq!(outbound(&on, syn), outbound(&new_rules, syn));
                prop_assert_eq!(outbound(&over, syn), outbound(&old_rules, syn));
            }
        }
        for port in [22, 8080, 8081, 8083, 9, 21000, 21003] {
            for interface in ["eth0", "eth9", "lo"] {
                let syn = Syn { uid: 0, to: "10.9.0.2".parse().unwrap(), port, interface, local: true };
                prop_assert_eq!(inbound(&on, syn), inbound(&new_rules, syn));
                prop_assert_eq!(inbound(&over, syn), inbound(&old_rules, syn));
            }
        }
    }
}

fn count(rules: &Ruleset) -> usize {
    rules.chains.iter().map(|chain| chain.rules.len()).sum()
}
