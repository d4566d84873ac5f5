//! A service file.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::Check;
use super::value::{
    AddressSpec, Cidr, InterfaceName, Port, PortSpec, Scope, ServiceId, ServiceName, UnitName, UserSpec,
};

/// One service of this host: `/etc/enmesh/services/*.toml` or `*.json`.
///
/// Only `name` is required; every default is safe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ServiceConfig {
    /// The service's name in Consul.
    pub name: ServiceName,
    /// Unique on this host; the name unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<ServiceId>,
    /// Where the app listens. Leave it out for a client-only service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<Port>,
    /// The advertised address: `auto`, an IP address, or an interface name.
    #[serde(default)]
    pub address: AddressSpec,
    /// Tags in Consul.
    #[serde(default)]
    pub tags: Vec<String>,
    /// Metadata in Consul.
    #[serde(default)]
    pub meta: BTreeMap<String, String>,
    /// DNS weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<Weights>,
    /// Region and zone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locality: Option<Locality>,
    /// Consul Enterprise namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<ServiceName>,
    /// Consul Enterprise admin partition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition: Option<ServiceName>,
    /// The datacenter; the agent's own unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub datacenter: Option<ServiceName>,
    /// `false` keeps the file and takes the service out of the mesh.
    #[serde(default = "yes")]
    pub enabled: bool,
    /// What is redirected.
    #[serde(default)]
    pub capture: Capture,
    /// Health checks.
    #[serde(default, rename = "check", skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<Check>,
    /// Explicit upstreams: what transparent capture cannot reach.
    #[serde(default, rename = "upstream", skip_serializing_if = "Vec::is_empty")]
    pub upstreams: Vec<Upstream>,
    /// The sidecar.
    #[serde(default)]
    pub proxy: ProxyConfig,
    /// What only a legacy file says.
    #[serde(skip)]
    pub legacy: Option<Legacy>,
    /// The file this came from, with the `--root` prefix.
    #[serde(skip)]
    pub source: PathBuf,
}

impl ServiceConfig {
    /// The id, given or derived from the name.
    pub fn id(&self) -> ServiceId {
        self.id.clone().unwrap_or_else(|| ServiceId::from(&self.name))
    }
}

fn yes() -> bool {
    true
}

/// DNS weights (Consul: `weights`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Weights {
    /// While passing; at least 1.
    pub passing: u32,
    /// While in warning.
    pub warning: u32,
}

/// Where the instance runs (Consul: `locality`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Locality {
    /// Region.
    pub region: String,
    /// Zone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
}

/// Consul's opaque proxy configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProxyConfig {
    /// Passed on as `proxy.config`.
    #[serde(default)]
    pub config: Map<String, Value>,
}

/// Which traffic is redirected, and what happens while it cannot be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Capture {
    /// Whose outbound traffic.
    pub scope: Scope,
    /// With scope `netns:NAME`: the unit that runs the app. It is placed in the namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unit: Option<UnitName>,
    /// Which inbound ports.
    pub inbound: Inbound,
    /// `transparent`, or `direct`: no rules, explicit upstreams only.
    pub mode: Mode,
    /// What happens to captured connections while the sidecar is not live.
    pub on_proxy_failure: OnProxyFailure,
    /// What happens to captured IPv6 connections.
    pub ipv6: Ipv6Policy,
    /// How `*.virtual.consul` gets resolved.
    pub dns: DnsMode,
    /// What capture leaves alone.
    pub bypass: Bypass,
}

/// Which inbound ports are redirected to the sidecar.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Inbound {
    /// Only the service's `port`.
    #[default]
    Service,
    /// Every TCP port that is not bypassed, and is not one at which others call this host's Consul agent
    /// (8300 to 8302; its API where `[consul]` names it by an address that is not loopback's).
    All,
    /// None.
    None,
}

/// Whether traffic is redirected at all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// The application changes nothing.
    #[default]
    Transparent,
    /// No rules; explicit upstreams only.
    Direct,
}

/// What happens to captured connections while the sidecar is not live.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnProxyFailure {
    /// Mesh destinations and the service's inbound port are refused; the rest goes direct.
    #[default]
    Closed,
    /// Every captured connection is refused.
    Sealed,
    /// Nothing is refused.
    Open,
}

/// What happens to captured IPv6 connections.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Ipv6Policy {
    /// Redirected as IPv4 is.
    #[default]
    Redirect,
    /// Refused at once.
    Refuse,
    /// Left alone.
    Allow,
}

/// How `*.virtual.consul` gets resolved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DnsMode {
    /// systemd-resolved is told to ask our resolver for the domain `consul`.
    #[default]
    Resolved,
    /// Captured users' DNS is redirected to our resolver.
    Redirect,
    /// Somebody else's business.
    Off,
}

/// What capture leaves alone, beside what is always left alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Bypass {
    /// Users whose traffic is never captured. Envoy's and Consul's own always are among them.
    pub uids: Vec<UserSpec>,
    /// Outbound destination ports.
    pub outbound_ports: Vec<PortSpec>,
    /// Outbound destination networks.
    pub outbound_cidrs: Vec<Cidr>,
    /// Inbound ports.
    pub inbound_ports: Vec<PortSpec>,
    /// Interfaces whose inbound traffic is left alone.
    pub interfaces: Vec<InterfaceName>,
}

impl Default for Bypass {
    fn default() -> Self {
        Bypass {
            uids: Vec::new(),
            outbound_ports: Vec::new(),
            outbound_cidrs: Vec::new(),
            inbound_ports: vec![PortSpec::Range(super::value::PortRange::single(ssh()))],
            interfaces: Vec::new(),
        }
    }
}

/// Port 22: the one nobody must be locked out of.
#[expect(clippy::expect_used, reason = "22 is not 0")]
fn ssh() -> Port {
    Port::new(22).expect("22 is a port")
}

/// An explicit upstream: a listener on loopback that leads to another service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Upstream {
    /// The destination service, or the prepared query with `prepared_query = true`.
    pub name: ServiceName,
    /// The loopback port it gets.
    pub local_port: Port,
    /// Another datacenter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub datacenter: Option<ServiceName>,
    /// Another cluster, by peering.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<ServiceName>,
    /// Another namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<ServiceName>,
    /// Another partition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition: Option<ServiceName>,
    /// Whether `name` is that of a prepared query.
    #[serde(default)]
    pub prepared_query: bool,
}

/// What a legacy `service-config.json` says beyond the native form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Legacy {
    /// Which of the two forms.
    pub form: LegacyForm,
    /// The virtual address that the file gives the service.
    pub virtual_ip: Option<std::net::IpAddr>,
    /// Fields of the plain form that go into the registration as they are.
    pub fields: Map<String, Value>,
}

/// The two forms that share the path `/srv/consul/service-config.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LegacyForm {
    /// `{"annotations": {…}}`, after Consul on Kubernetes.
    Annotations,
    /// Plain fields of a Consul service definition.
    Plain,
}
