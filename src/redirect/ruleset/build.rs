//! The sets: every user, port, address and interface of a policy, sorted into its place.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::chains::chains;
use super::{Element, Kind, NamedSet, Operand, Part, Ruleset, Value};
use crate::config::value::{InterfaceName, PortRange, ServiceId};
use crate::config::{Ipv6Policy, OnProxyFailure};
use crate::plan::{DnsServer, InboundCapture, InboundPorts, OutboundCapture, RedirectPolicy, Who};

/// Never captured, whatever a policy says: loopback, and IPv6 link-local, which loses the interface
/// that it belongs to when it is redirected.
pub const ALWAYS_BYPASSED: [IpNet; 3] = [
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8)),
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128)),
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10)),
];

/// Rules for `policy` with the sidecars of `live` taking connections.
pub(in crate::redirect) fn build(policy: &RedirectPolicy, live: &BTreeSet<ServiceId>) -> Ruleset {
    let mut sets = Sets::default();
    sets.host(policy);
    let mut everyone = None;
    for (id, capture) in &policy.outbound {
        match capture.who {
            Who::Nobody => {}
            Who::Uid(uid) => sets.outbound_user(uid, capture, live.contains(id)),
            Who::Everyone => {
                sets.outbound_everyone(capture, live.contains(id));
                everyone = Some(capture);
            }
        }
    }
    let mut all_ports = None;
    for (id, capture) in &policy.inbound {
        sets.add("sidecar_ports", port(capture.to));
        match capture.ports {
            InboundPorts::One(own) => sets.inbound_port(own, capture, live.contains(id)),
            InboundPorts::All => {
                sets.inbound_all(capture, live.contains(id));
                policy.agent_ports.iter().for_each(|open| sets.add("agent_ports", port(*open)));
                all_ports = Some(capture);
            }
        }
    }
    if let Some(dns) = &policy.dns {
        dns.uids.difference(&policy.bypass_uids).for_each(|uid| sets.add("dns_uids", uid_value(*uid)));
        dns.except.difference(&policy.bypass_uids).for_each(|uid| sets.add("dns_except", uid_value(*uid)));
        if let DnsServer::Other { asked, .. } = &dns.server {
            for address in asked {
                let set = if address.is_ipv4() { "dns_asked4" } else { "dns_asked6" };
                sets.add(set, key([Value::Address(*address)]));
            }
        }
    }
    let chains = chains(policy, everyone, all_ports, &sets);
    let used: BTreeSet<&str> = chains.iter().flat_map(|chain| &chain.rules).flat_map(names).collect();
    Ruleset { sets: sets.finish(&used), chains }
}

/// The sets that a rule names.
pub(super) fn names(rule: &super::Rule) -> impl Iterator<Item = &'static str> {
    rule.parts.iter().filter_map(|part| match part {
        Part::Is(_, Operand::Set(name))
        | Part::IsNot(_, Operand::Set(name))
        | Part::Redirect(_, name)
        | Part::Remember(name) => Some(*name),
        _ => None,
    })
}

/// Name, key, value, interval: every set that there can be, in the order in which they are shown.
pub(super) const SHAPES: [(&str, &[Kind], Option<Kind>, bool); 37] = {
    use Kind::{Family, Interface, Ip4, Ip6, Port, Protocol, Uid};
    [
        ("bypass_uids", &[Uid], None, false),
        ("proxy_uids", &[Uid], None, false),
        ("bypass_net4", &[Ip4], None, true),
        ("bypass_net6", &[Ip6], None, true),
        ("broadcast4", &[Ip4], None, false),
        ("virtual4", &[Ip4], None, true),
        ("virtual6", &[Ip6], None, true),
        ("mesh4", &[Ip4, Port], None, false),
        ("mesh6", &[Ip6, Port], None, false),
        ("dns_uids", &[Uid], None, false),
        ("dns_except", &[Uid], None, false),
        ("dns_alive", &[Family], None, false),
        ("dns_asked4", &[Ip4], None, false),
        ("dns_asked6", &[Ip6], None, false),
        ("captured_uids", &[Uid], None, false),
        ("uid_bypass_ports", &[Uid, Port], None, true),
        // The network first: the kernel follows all elements that the first part fits, one by one, and one
        // user may have thousands of networks.
        ("uid_bypass_net4", &[Ip4, Uid], None, true),
        ("uid_bypass_net6", &[Ip6, Uid], None, true),
        ("uid_allow6", &[Uid], None, false),
        ("uid_refuse6", &[Uid], None, false),
        ("uid_sealed", &[Uid], None, false),
        ("uid_closed", &[Uid], None, false),
        ("uid_redirect", &[Uid], Some(Port), false),
        ("host_bypass_ports", &[Port], None, true),
        ("host_bypass_net4", &[Ip4], None, true),
        ("host_bypass_net6", &[Ip6], None, true),
        ("host_redirect", &[Protocol], Some(Port), false),
        ("sidecar_ports", &[Port], None, false),
        ("in_bypass_interfaces", &[Interface, Port], None, false),
        ("in_allow6", &[Port], None, false),
        ("in_refuse6", &[Port], None, false),
        ("in_refused", &[Port], None, false),
        ("in_redirect", &[Port], Some(Port), false),
        ("all_bypass_ports", &[Port], None, true),
        ("all_bypass_interfaces", &[Interface], None, false),
        ("agent_ports", &[Port], None, false),
        ("all_redirect", &[Protocol], Some(Port), false),
    ]
};

/// The sets while they fill.
#[derive(Default)]
pub(super) struct Sets(BTreeMap<&'static str, BTreeSet<Element>>);

impl Sets {
    /// Whether `set` has an element.
    pub fn has(&self, set: &str) -> bool {
        self.0.get(set).is_some_and(|elements| !elements.is_empty())
    }

    fn add(&mut self, set: &'static str, element: Element) {
        self.0.entry(set).or_default().insert(element);
    }

    fn host(&mut self, policy: &RedirectPolicy) {
        for uid in policy.bypass_uids.union(&policy.proxy_uids) {
            self.add("bypass_uids", uid_value(*uid));
        }
        for uid in &policy.proxy_uids {
            self.add("proxy_uids", uid_value(*uid));
        }
        self.nets(
            ["bypass_net4", "bypass_net6"],
            None,
            ALWAYS_BYPASSED.iter().chain(&policy.bypass_cidrs).copied(),
        );
        self.nets(["virtual4", "virtual6"], None, policy.virtual_nets.iter().copied());
        let broadcast = IpAddr::V4(Ipv4Addr::BROADCAST);
        if policy.virtual_nets.iter().any(|net| net.contains(&broadcast)) {
            self.add("broadcast4", key([Value::Address(broadcast)]));
        }
        for (address, own) in &policy.mesh_instances {
            let set = if address.is_ipv4() { "mesh4" } else { "mesh6" };
            self.add(set, key([Value::Address(*address), Value::Ports(*own, *own)]));
        }
    }

    fn outbound_user(&mut self, uid: u32, capture: &OutboundCapture, live: bool) {
        self.add("captured_uids", uid_value(uid));
        for (first, last) in merge(&capture.bypass.ports) {
            self.add("uid_bypass_ports", key([Value::Uid(uid), Value::Ports(first, last)]));
        }
        self.nets(
            ["uid_bypass_net4", "uid_bypass_net6"],
            Some(Value::Uid(uid)),
            capture.bypass.cidrs.iter().copied(),
        );
        match capture.ipv6 {
            Ipv6Policy::Redirect => {}
            Ipv6Policy::Refuse => self.add("uid_refuse6", uid_value(uid)),
            Ipv6Policy::Allow => self.add("uid_allow6", uid_value(uid)),
        }
        match capture.on_failure {
            OnProxyFailure::Closed => self.add("uid_closed", uid_value(uid)),
            OnProxyFailure::Sealed => self.add("uid_sealed", uid_value(uid)),
            OnProxyFailure::Open => {}
        }
        if live {
            self.add("uid_redirect", Element { to: Some(capture.port), ..uid_value(uid) });
        }
    }

    fn outbound_everyone(&mut self, capture: &OutboundCapture, live: bool) {
        for (first, last) in merge(&capture.bypass.ports) {
            self.add("host_bypass_ports", key([Value::Ports(first, last)]));
        }
        self.nets(["host_bypass_net4", "host_bypass_net6"], None, capture.bypass.cidrs.iter().copied());
        if live {
            self.add("host_redirect", Element { key: vec![Value::Tcp], to: Some(capture.port) });
        }
    }

    fn inbound_port(&mut self, own: u16, capture: &InboundCapture, live: bool) {
        // In the way of a capture of all ports even when it is bypassed: it is this service's port.
        self.add("all_bypass_ports", port(own));
        if capture.bypass_ports.iter().any(|range| range.contains(own)) {
            return;
        }
        for interface in interfaces(capture) {
            self.add("in_bypass_interfaces", key([interface, Value::Ports(own, own)]));
        }
        match capture.ipv6 {
            Ipv6Policy::Redirect => {}
            Ipv6Policy::Refuse => self.add("in_refuse6", port(own)),
            Ipv6Policy::Allow => self.add("in_allow6", port(own)),
        }
        if capture.on_failure != OnProxyFailure::Open {
            self.add("in_refused", port(own));
        }
        if live {
            self.add("in_redirect", Element { to: Some(capture.to), ..port(own) });
        }
    }

    fn inbound_all(&mut self, capture: &InboundCapture, live: bool) {
        for (first, last) in merge(&capture.bypass_ports) {
            self.add("all_bypass_ports", key([Value::Ports(first, last)]));
        }
        for interface in interfaces(capture) {
            self.add("all_bypass_interfaces", key([interface]));
        }
        if live {
            self.add("all_redirect", Element { key: vec![Value::Tcp], to: Some(capture.to) });
        }
    }

    /// Adds `nets`, merged, each before `after`, to the set of its family.
    fn nets(&mut self, [v4, v6]: [&'static str; 2], after: Option<Value>, nets: impl Iterator<Item = IpNet>) {
        let nets: Vec<IpNet> = nets.map(|net| net.trunc()).collect();
        for net in IpNet::aggregate(&nets) {
            let set = if net.addr().is_ipv4() { v4 } else { v6 };
            self.add(set, key([Value::Net(net)].into_iter().chain(after.clone())));
        }
    }

    /// The sets in `used`, in order, ready for a kernel that refuses overlapping intervals.
    fn finish(mut self, used: &BTreeSet<&str>) -> Vec<NamedSet> {
        SHAPES
            .iter()
            .filter(|(name, ..)| used.contains(name))
            .map(|&(name, key, value, interval)| {
                let elements = self.0.remove(name).unwrap_or_default();
                let elements = if key == [Kind::Port] && interval {
                    merged_ports(&elements)
                } else {
                    elements.into_iter().collect()
                };
                NamedSet { name, key, value, interval, elements }
            })
            .collect()
    }
}

fn key(values: impl IntoIterator<Item = Value>) -> Element {
    Element { key: values.into_iter().collect(), to: None }
}

fn uid_value(uid: u32) -> Element {
    key([Value::Uid(uid)])
}

fn port(port: u16) -> Element {
    key([Value::Ports(port, port)])
}

/// The interfaces of a capture. A name that no interface can have matches nothing and is left out;
/// nft would take some of those (`@x`, `x*`) for something else.
fn interfaces(capture: &InboundCapture) -> impl Iterator<Item = Value> {
    capture
        .bypass_interfaces
        .iter()
        .filter(|name| !name.starts_with('@') && name.parse::<InterfaceName>().is_ok())
        .map(|name| Value::Interface(name.clone()))
}

/// Sorted and merged: none overlap or touch.
fn merge(ranges: &[PortRange]) -> Vec<(u16, u16)> {
    merge_pairs(ranges.iter().map(|range| (range.first.get(), range.last.get())).collect())
}

fn merge_pairs(mut pairs: Vec<(u16, u16)>) -> Vec<(u16, u16)> {
    pairs.sort_unstable();
    let mut merged: Vec<(u16, u16)> = Vec::with_capacity(pairs.len());
    for (first, last) in pairs {
        match merged.last_mut() {
            Some(previous) if first <= previous.1.saturating_add(1) => previous.1 = previous.1.max(last),
            _ => merged.push((first, last)),
        }
    }
    merged
}

/// Several services may add to one set of port ranges.
fn merged_ports(elements: &BTreeSet<Element>) -> Vec<Element> {
    let pairs = elements.iter().filter_map(|element| match element.key.as_slice() {
        [Value::Ports(first, last)] => Some((*first, *last)),
        _ => None,
    });
    merge_pairs(pairs.collect()).into_iter().map(|(first, last)| key([Value::Ports(first, last)])).collect()
}
