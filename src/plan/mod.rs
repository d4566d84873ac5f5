//! Config + host facts -> [`Plan`]: what should be true on this host, as data.
//!
//! Nothing in this room reads a file, a clock or a random number, and everything is kept in sorted
//! maps, so the same inputs give the same bytes. What a user asks ("what would you do?", "what
//! happens to this packet?") and what converges the host both read the same `Plan`.

mod agent;
mod allocate;
mod build;
mod capture;
mod dns;
pub mod facts;
pub mod mesh;
mod namespace;
mod policy;
mod problem;
mod registration;
mod reserved;
mod service;
mod ssh;
#[cfg(test)]
mod tests;
mod told;

pub use allocate::{Allocations, routed};
pub use build::plan;
pub use capture::NEVER;
pub use facts::HostFacts;
pub use mesh::{
    Access, Callers, Credentials, HeaderMatch, HeaderRule, Instance, MeshService, MeshView, Past, PathMatch,
    Protocol, RequestRule, SpiffeId, XdsToken,
};
pub use namespace::{INNER_LINK, LINK_PREFIX, NamespacePlan, link_of, seen_from_host};
pub use policy::{
    Bypasses, DnsCapture, DnsServer, InboundCapture, InboundPorts, OutboundCapture, RESOLVER_LAPSE,
    RESOLVER_MARK, RedirectPolicy, Who,
};
pub use problem::PlanError;
pub use registration::registration;
pub use service::{
    AccessLog, Ads, AdsServer, ExplicitUpstream, LogFormat, LogTarget, ServicePlan, SidecarPlan, Xds,
};
pub use told::RegisteredPorts;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::base::Fault;
use crate::config::value::ServiceId;

/// Everything that should be true on this host.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    /// Which plan this is.
    pub generation: Generation,
    /// Ports and virtual IPs given out so far, to be remembered.
    pub allocations: Allocations,
    /// The enabled services that can be carried out, by id.
    pub services: BTreeMap<ServiceId, ServicePlan>,
    /// The redirection in the host's own network namespace.
    pub redirect: RedirectPolicy,
    /// The namespaces that services have for themselves, by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub namespaces: BTreeMap<String, NamespacePlan>,
    /// Networks that get a route to loopback, so that virtual IPs need no default route and never
    /// reach the wire; `None` when nothing is captured.
    pub virtual_net: Option<Ipv4Net>,
    /// Names of the mesh.
    pub dns: DnsPlan,
    /// The mesh, with a virtual IP for every service in it.
    pub mesh: MeshView,
    /// Services that are left out, and why; each names its service. Their last good generation
    /// stays in force.
    pub errors: Vec<Fault>,
    /// What a person should know.
    pub warnings: Vec<Fault>,
}

impl Plan {
    /// The namespace that a service has for itself; `None` for one that lives in the host's.
    pub fn namespace_of(&self, id: &ServiceId) -> Option<&NamespacePlan> {
        self.namespaces.values().find(|namespace| namespace.service == *id)
    }
}

/// Number and hash of one plan.
///
/// The number grows by one when the hash changes; the hash covers everything that converges, not
/// the number itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Generation {
    /// From 1.
    pub number: u64,
    /// The first 12 hexadecimal digits of a SHA-256.
    pub hash: String,
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.number, self.hash)
    }
}

/// Consul's DNS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ConsulDns {
    /// Where it is, UDP and TCP.
    pub address: SocketAddr,
    /// Whether there must be one. Where there need not be, nobody listening there means that names that
    /// only Consul would know do not exist.
    pub expected: bool,
}

/// Names that our resolver answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DnsPlan {
    /// Where it listens; `None` when no service wants names.
    pub listen: Option<SocketAddr>,
    /// Where services in namespaces of their own ask it.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub inside: BTreeSet<SocketAddr>,
    /// Whether systemd-resolved shall ask it for the domain `consul`.
    pub resolved: bool,
    /// Whether queries are redirected to it, so that it has to find an answer for every name.
    pub redirect: bool,
    /// Who is asked for names below `consul` that are not in `records`.
    pub consul: Option<ConsulDns>,
    /// Lower-case names without the final dot, such as `api.virtual.consul`.
    pub records: BTreeMap<String, Vec<IpAddr>>,
}
