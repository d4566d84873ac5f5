//! The redirection as policy: who is captured, where to, and what is left alone. Drivers turn it
//! into rules; `explain` reads it to answer for one flow.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Serialize};

use super::Generation;
use crate::config::value::{PortRange, ServiceId};
use crate::config::{Ipv6Policy, OnProxyFailure};

/// The whole redirection of one network namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RedirectPolicy {
    /// Stands in the rules, so that a reader of the kernel's state knows whose they are.
    pub generation: Generation,
    /// Users that are never captured: Envoy's, Consul's, and those of every `bypass.uids`.
    pub bypass_uids: BTreeSet<u32>,
    /// The sidecars' own users; a subset of `bypass_uids`. The guard lets them pass, too.
    pub proxy_uids: BTreeSet<u32>,
    /// Networks that are never captured: loopback and the clouds' metadata services.
    pub bypass_cidrs: BTreeSet<IpNet>,
    /// Networks of virtual IPs: mesh destinations, never reached in the clear.
    pub virtual_nets: BTreeSet<IpNet>,
    /// Instances of mesh services, as an application would dial them directly (address and app
    /// port): mesh destinations as well.
    pub mesh_instances: BTreeSet<(IpAddr, u16)>,
    /// Whose outbound connections go to which sidecar. At most one is [`Who::Everyone`].
    pub outbound: BTreeMap<ServiceId, OutboundCapture>,
    /// Which inbound ports go to which sidecar. At most one is [`InboundPorts::All`].
    pub inbound: BTreeMap<ServiceId, InboundCapture>,
    /// Ports at which others call the Consul agent of this host; [`InboundPorts::All`] leaves them alone.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub agent_ports: BTreeSet<u16>,
    /// What enmesh sends in its own name, to Consul and to platforms, is left alone; it knows it by
    /// [`OWN_MARK`](crate::base::own::OWN_MARK).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub own_calls: bool,
    /// DNS that goes to our resolver.
    pub dns: Option<DnsCapture>,
    /// Gets a route to loopback.
    pub virtual_route: Option<Ipv4Net>,
    /// In a namespace of one service, the host's end of the cable. From there the host itself calls, as over loopback.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_end: Option<Ipv4Addr>,
}

impl RedirectPolicy {
    /// Whether there is nothing to redirect and so nothing to program.
    pub fn is_empty(&self) -> bool {
        self.outbound.is_empty() && self.inbound.is_empty() && self.dns.is_none()
    }
}

/// Outbound capture of one service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutboundCapture {
    /// Whose connections.
    pub who: Who,
    /// The sidecar's outbound port, on 127.0.0.1 and `::1`.
    pub port: u16,
    /// What happens to IPv6.
    pub ipv6: Ipv6Policy,
    /// What happens while the sidecar is not live.
    pub on_failure: OnProxyFailure,
    /// What is left alone.
    pub bypass: Bypasses,
}

/// Whose connections are captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Who {
    /// One user's.
    Uid(u32),
    /// Nobody's for now: a user that is there only while a unit runs, which it does not.
    Nobody,
    /// Everybody's that no other service claims.
    Everyone,
}

/// Outbound destinations that are left alone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bypasses {
    /// Destination ports, sorted and merged: no two overlap or touch.
    pub ports: Vec<PortRange>,
    /// Destination networks, sorted and merged.
    pub cidrs: Vec<IpNet>,
}

/// Inbound capture of one service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InboundCapture {
    /// Which ports.
    pub ports: InboundPorts,
    /// The sidecar's public port.
    pub to: u16,
    /// What happens to IPv6.
    pub ipv6: Ipv6Policy,
    /// What happens while the sidecar is not live.
    pub on_failure: OnProxyFailure,
    /// Ports that are left alone, sorted and merged. Only meaningful with [`InboundPorts::All`]
    /// and when it contains the one port.
    pub bypass_ports: Vec<PortRange>,
    /// Interfaces whose traffic is left alone.
    pub bypass_interfaces: BTreeSet<String>,
}

/// Which inbound ports are captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InboundPorts {
    /// One.
    One(u16),
    /// Every port that is not bypassed and that no other service has for itself.
    All,
}

/// The mark on what our resolver sends in its own name. It is not captured again, and it is how the
/// kernel knows that the resolver lives.
pub const RESOLVER_MARK: u32 = 0x656e_6d64;

/// For how long DNS stays redirected after a packet of our resolver, in seconds. Whatever ends the
/// resolver, after this every query goes where it would go without enmesh.
pub const RESOLVER_LAPSE: u32 = 5;

/// DNS redirection (`dns = "redirect"`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsCapture {
    /// Our resolver.
    pub to: SocketAddr,
    /// Whose queries; empty means everybody's.
    pub uids: BTreeSet<u32>,
    /// Whose not, where it is everybody's: users of services that want none of it, and local resolvers.
    pub except: BTreeSet<u32>,
    /// Whose server it is.
    #[serde(default, skip_serializing_if = "DnsServer::is_ours")]
    pub server: DnsServer,
}

/// Who answers redirected queries.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DnsServer {
    /// Our resolver. Queries go to it for as long as it gives its sign of life.
    #[default]
    Ours,
    /// A server of somebody else. It gives no such sign, so queries go to it whether it lives or not.
    Other {
        /// The same server in the other family.
        also: Option<SocketAddr>,
        /// Only queries to these addresses; every query where there are none.
        asked: BTreeSet<IpAddr>,
    },
}

impl DnsServer {
    /// Whether it is our resolver.
    pub fn is_ours(&self) -> bool {
        *self == DnsServer::Ours
    }
}
