//! A policy from flags, where nobody plans: `enmesh redirect-traffic`, for scripts that called
//! `consul connect redirect-traffic`.
//!
//! Envoy is somebody else's here. Nobody tells when it lives, so traffic is always redirected, and while
//! it does not live connections are refused. The rules are those of every other policy.

mod error;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net};
use sha2::{Digest, Sha256};

pub use error::HandError;

use super::iptables::{Flavour, Iptables};
use super::{Desired, Firewall, Nftables};
use crate::base::Fault;
use crate::config::value::{Cidr, Port, PortRange, PortSpec, ServiceId, UserSpec};
use crate::config::{Ipv6Policy, OnProxyFailure};
use crate::plan::{
    Bypasses, DnsCapture, DnsServer, Generation, InboundCapture, InboundPorts, NEVER, OutboundCapture,
    RedirectPolicy, RegisteredPorts, Who,
};

/// The outbound listener's port where nobody names another; Consul's.
const OUTBOUND: u16 = 15001;
/// Always bypassed inbound: who sets rules over SSH must not lock themselves out.
const SSH: u16 = 22;
/// Where virtual IPs come from.
const VIRTUAL: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(240, 0, 0, 0), 4);
/// What stands for the sidecar in the policy.
const ID: &str = "redirect-traffic";
const DNS_PORT: u16 = 53;

/// The flags as they are typed.
#[derive(Debug, Clone, Default)]
pub struct Flags {
    /// `-proxy-uid`
    pub proxy_uid: Option<String>,
    /// `-proxy-id`
    pub proxy_id: Option<String>,
    /// `-node-name`
    pub node_name: Option<String>,
    /// `-proxy-inbound-port`
    pub inbound_port: Option<String>,
    /// `-proxy-outbound-port`
    pub outbound_port: Option<String>,
    /// `-consul-dns-ip`
    pub dns_ip: Option<String>,
    /// `-consul-dns-port`
    pub dns_port: Option<String>,
    /// `-exclude-inbound-port`
    pub exclude_inbound_ports: Vec<String>,
    /// `-exclude-outbound-port`
    pub exclude_outbound_ports: Vec<String>,
    /// `-exclude-outbound-cidr`
    pub exclude_outbound_cidrs: Vec<String>,
    /// `-exclude-uid`
    pub exclude_uids: Vec<String>,
    /// `-ipv6`, which Consul's command has not.
    pub ipv6: Option<String>,
}

/// What this host knows.
pub struct Names<'a> {
    /// Users.
    pub users: BTreeMap<String, u32>,
    /// TCP ports of `/etc/services`.
    pub ports: BTreeMap<String, u16>,
    /// Whether somebody answers DNS there.
    pub answers: &'a dyn Fn(SocketAddr) -> bool,
}

/// What the flags ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    proxy_uid: u32,
    bypass_uids: BTreeSet<u32>,
    inbound: Option<u16>,
    outbound: Option<u16>,
    /// The sidecar's id and the node to look it up at, where Consul has to be asked.
    pub proxy: Option<(String, Option<String>)>,
    in_bypass: Vec<PortRange>,
    out_bypass: Bypasses,
    dns: Option<DnsCapture>,
    ipv6: Ipv6Policy,
}

impl Flags {
    /// Reads them.
    ///
    /// # Errors
    /// `ENM-R030` to `ENM-R034`.
    pub fn parse(&self, names: &Names<'_>) -> Result<Request, HandError> {
        let given = |value: &Option<String>| value.clone().filter(|text| !text.is_empty());
        let proxy_uid = given(&self.proxy_uid).ok_or(HandError::Missing { what: "-proxy-uid" })?;
        // Zero is how Consul's flag says that there is none.
        let port = |flag, text: &Option<String>| match given(text).as_deref() {
            None | Some("0") => Ok(None),
            Some(text) => value::<Port>(flag, text).map(|port| Some(port.get())),
        };
        let inbound = port("proxy-inbound-port", &self.inbound_port)?;
        let outbound = port("proxy-outbound-port", &self.outbound_port)?;
        let (id, node) = (given(&self.proxy_id), given(&self.node_name));
        let proxy = match (id, node) {
            (Some(_), _) if inbound.is_some() => {
                return Err(HandError::Both { one: "-proxy-id", other: "-proxy-inbound-port" });
            }
            (Some(_), _) if outbound.is_some_and(|port| port != OUTBOUND) => {
                return Err(HandError::Both { one: "-proxy-id", other: "-proxy-outbound-port" });
            }
            (None, Some(_)) => return Err(HandError::Missing { what: "-proxy-id, beside -node-name," }),
            (None, None) if inbound.is_none() => {
                return Err(HandError::Missing { what: "-proxy-id or -proxy-inbound-port" });
            }
            (None, None) => None,
            (Some(id), node) => {
                name("proxy-id", &id)?;
                node.iter().try_for_each(|node| name("node-name", node))?;
                Some((id, node))
            }
        };
        let user = |flag, text: &str| user(flag, text, names);
        let proxy_uid = user("proxy-uid", &proxy_uid)?;
        let excluded: Result<BTreeSet<u32>, _> =
            self.exclude_uids.iter().map(|text| user("exclude-uid", text)).collect();
        let cidrs: Result<Vec<IpNet>, _> = self
            .exclude_outbound_cidrs
            .iter()
            .map(|text| value::<Cidr>("exclude-outbound-cidr", text).map(|cidr| cidr.0))
            .collect();
        Ok(Request {
            proxy_uid,
            bypass_uids: excluded?.into_iter().chain([proxy_uid]).collect(),
            inbound,
            outbound,
            proxy,
            in_bypass: ports("exclude-inbound-port", &self.exclude_inbound_ports, names)?,
            out_bypass: Bypasses {
                ports: ports("exclude-outbound-port", &self.exclude_outbound_ports, names)?,
                cidrs: IpNet::aggregate(&cidrs?),
            },
            dns: self.dns(names)?,
            ipv6: match given(&self.ipv6).as_deref() {
                None | Some("redirect") => Ipv6Policy::Redirect,
                Some("refuse") => Ipv6Policy::Refuse,
                Some("allow") => Ipv6Policy::Allow,
                Some(other) => {
                    let why = format!("{other:?} is none of redirect, refuse, allow");
                    return Err(HandError::Value { flag: "ipv6", why });
                }
            },
        })
    }

    /// An address alone: every query, to its port 53. With a port: only queries to that address, which is
    /// 127.0.0.1 unless it is given.
    fn dns(&self, names: &Names<'_>) -> Result<Option<DnsCapture>, HandError> {
        let given = |value: &Option<String>| value.clone().filter(|text| !text.is_empty());
        let ip = given(&self.dns_ip).map(|text| value::<IpAddr>("consul-dns-ip", &text)).transpose()?;
        let port = match given(&self.dns_port).as_deref() {
            None | Some("0") => None,
            Some(text) => Some(value::<Port>("consul-dns-port", text)?.get()),
        };
        if ip.is_none() && port.is_none() {
            return Ok(None);
        }
        let ip = ip.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)).to_canonical();
        if ip.is_unspecified() || ip.is_multicast() {
            let why = format!("{ip} is no address of a server");
            return Err(HandError::Value { flag: "consul-dns-ip", why });
        }
        let to = SocketAddr::new(ip, port.unwrap_or(DNS_PORT));
        let twin = match ip {
            IpAddr::V4(v4) if v4.is_loopback() => Some(IpAddr::V6(Ipv6Addr::LOCALHOST)),
            IpAddr::V6(v6) if v6.is_loopback() => Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            _ => None,
        };
        let also = twin.map(|ip| SocketAddr::new(ip, to.port())).filter(|at| (names.answers)(*at));
        let asked = match port {
            None => BTreeSet::new(),
            Some(_) => also.iter().map(SocketAddr::ip).chain([ip]).collect(),
        };
        let server = DnsServer::Other { also, asked };
        Ok(Some(DnsCapture { to, uids: BTreeSet::new(), except: BTreeSet::new(), server }))
    }
}

impl Request {
    /// Takes up what the sidecar's registration says.
    pub fn take(&mut self, ports: &RegisteredPorts) {
        self.inbound = ports.inbound;
        self.outbound = ports.outbound;
        let open = ports.open.iter().filter_map(|port| Port::new(*port)).map(PortRange::single);
        self.in_bypass.extend(open);
    }

    /// The outbound and the inbound port; the latter where it is known.
    pub fn ports(&self) -> (u16, Option<u16>) {
        (self.outbound.unwrap_or(OUTBOUND), self.inbound)
    }

    /// The rules that it takes; nothing where the sidecar's port is not known.
    pub fn desired(&self) -> Option<Desired> {
        let id: ServiceId = ID.parse().ok()?;
        let (outbound, inbound) = (self.outbound.unwrap_or(OUTBOUND), self.inbound?);
        let own = Port::new(SSH).map(PortRange::single);
        let mut bypass_ports: Vec<PortRange> = self.in_bypass.iter().copied().chain(own).collect();
        bypass_ports.sort_unstable();
        bypass_ports.dedup();
        let out = OutboundCapture {
            who: Who::Everyone,
            port: outbound,
            ipv6: self.ipv6,
            on_failure: OnProxyFailure::Closed,
            bypass: self.out_bypass.clone(),
        };
        let inn = InboundCapture {
            ports: InboundPorts::All,
            to: inbound,
            ipv6: self.ipv6,
            on_failure: OnProxyFailure::Closed,
            bypass_ports,
            bypass_interfaces: BTreeSet::new(),
        };
        let mut policy = RedirectPolicy {
            own_calls: false,
            generation: Generation::default(),
            bypass_uids: self.bypass_uids.clone(),
            proxy_uids: [self.proxy_uid].into(),
            bypass_cidrs: NEVER.iter().filter_map(|net| net.parse().ok()).collect(),
            virtual_nets: [IpNet::V4(VIRTUAL)].into(),
            mesh_instances: BTreeSet::new(),
            outbound: [(id.clone(), out)].into(),
            inbound: [(id.clone(), inn)].into(),
            dns: self.dns.clone(),
            agent_ports: BTreeSet::new(),
            virtual_route: Some(VIRTUAL),
            host_end: None,
        };
        policy.generation = mark(&policy, outbound, inbound);
        Some(Desired { policy, live: [id].into() })
    }
}

/// What stands in rules that nobody planned: no number, which plans count from 1, and the ports, by
/// which the connections are found that have to drain when the rules go.
fn mark(policy: &RedirectPolicy, outbound: u16, inbound: u16) -> Generation {
    let digest = Sha256::digest(serde_json::to_vec(policy).unwrap_or_default());
    let hash: String = digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    Generation { number: 0, hash: format!("{outbound}x{inbound}x{hash}") }
}

/// Whether rules with this mark come from flags.
pub fn is_by_hand(generation: &Generation) -> bool {
    generation.number == 0
}

/// The outbound and the inbound port of such rules.
pub fn ports_of(generation: &Generation) -> Option<(u16, u16)> {
    let mut words = generation.hash.split('x');
    is_by_hand(generation).then_some(())?;
    Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
}

/// Our rules in the network namespace of the calling thread: the driver, and what they are marked with.
/// Drivers that are not installed have none.
///
/// # Errors
/// The kernel does not let itself be asked by any of them.
pub fn in_force() -> Result<Vec<(&'static str, Generation)>, Fault> {
    let mut drivers: Vec<Box<dyn Firewall>> = vec![Box::new(Nftables::new())];
    for flavour in [Flavour::Nft, Flavour::Legacy] {
        if let Ok(driver) = Iptables::of(flavour) {
            drivers.push(Box::new(driver));
        }
    }
    let nothing = Desired { policy: nothing(), live: BTreeSet::new() };
    let answers: Vec<_> = drivers.iter().map(|driver| (driver.name(), driver.observe(&nothing))).collect();
    if answers.iter().all(|(_, answer)| answer.is_err()) {
        answers.into_iter().try_for_each(|(_, answer)| answer.map(drop))?;
        return Ok(Vec::new());
    }
    let found = answers.into_iter().filter_map(|(name, answer)| Some((name, answer.ok()?.generation?)));
    Ok(found.collect())
}

fn nothing() -> RedirectPolicy {
    RedirectPolicy {
        own_calls: false,
        generation: Generation::default(),
        bypass_uids: BTreeSet::new(),
        proxy_uids: BTreeSet::new(),
        bypass_cidrs: BTreeSet::new(),
        virtual_nets: BTreeSet::new(),
        mesh_instances: BTreeSet::new(),
        outbound: BTreeMap::new(),
        inbound: BTreeMap::new(),
        dns: None,
        agent_ports: BTreeSet::new(),
        virtual_route: None,
        host_end: None,
    }
}

fn value<T: FromStr<Err: ToString>>(flag: &'static str, text: &str) -> Result<T, HandError> {
    text.parse()
        .map_err(|error: T::Err| HandError::Value { flag, why: format!("{text:?}: {}", error.to_string()) })
}

fn user(flag: &'static str, text: &str, names: &Names<'_>) -> Result<u32, HandError> {
    match value::<UserSpec>(flag, text)? {
        UserSpec::Uid(uid) => Ok(uid),
        UserSpec::Name(user) => names.users.get(&user).copied().ok_or(HandError::NoUser { flag, user }),
    }
}

fn ports(flag: &'static str, texts: &[String], names: &Names<'_>) -> Result<Vec<PortRange>, HandError> {
    let one = |text: &String| match value::<PortSpec>(flag, text)? {
        PortSpec::Range(range) => Ok(range),
        PortSpec::Name(name) => {
            let port = names.ports.get(&name).and_then(|port| Port::new(*port));
            port.map(PortRange::single).ok_or(HandError::NoPortName { flag, name })
        }
    };
    let mut ranges: Vec<PortRange> = texts.iter().map(one).collect::<Result<_, _>>()?;
    ranges.sort_unstable();
    ranges.dedup();
    Ok(ranges)
}

/// Ids go into paths and filters of Consul's API, and its filters have no way to write every character.
fn name(flag: &'static str, text: &str) -> Result<(), HandError> {
    if text.chars().any(|c| c.is_control() || matches!(c, '"' | '`' | '\\')) {
        let why = format!("{text:?} has a quote, a backslash or a control character in it");
        return Err(HandError::Value { flag, why });
    }
    Ok(())
}
