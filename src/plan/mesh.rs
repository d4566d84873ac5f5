//! Who is out there: the view of the mesh that a control plane fills in, and the names that follow
//! from it. SNI, SPIFFE ids and DNS names are Consul's, so that hosts of all kinds talk to each other.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::config::value::ServiceName;

/// The mesh, as far as this host needs to know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshView {
    /// The CA's trust domain, `<uuid>.consul`.
    pub trust_domain: String,
    /// This host's datacenter.
    pub datacenter: String,
    /// The services, by name.
    pub services: BTreeMap<ServiceName, MeshService>,
    /// Which services each service of this host can reach; one that is not listed reaches all.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub reach: BTreeMap<ServiceName, BTreeSet<ServiceName>>,
    /// Where virtual IPs come from, also such as no service has (any more). The host's business, and so
    /// said by the plan, not by a control plane.
    #[serde(skip)]
    pub virtual_net: Option<Ipv4Net>,
    /// What belonged to the mesh until lately.
    #[serde(skip)]
    pub past: Past,
}

/// Destinations that belonged to the mesh and do not any more. Who still dials them means the mesh, so
/// they are closed rather than in the clear.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Past {
    /// Virtual IPs.
    pub virtual_ips: BTreeSet<IpAddr>,
    /// Instances that could be dialled directly, with the port of the app.
    pub instances: BTreeSet<(IpAddr, u16)>,
}

impl Default for MeshView {
    fn default() -> Self {
        MeshView {
            trust_domain: String::new(),
            datacenter: "dc1".to_owned(),
            services: BTreeMap::new(),
            reach: BTreeMap::new(),
            virtual_net: None,
            past: Past::default(),
        }
    }
}

impl MeshView {
    /// The identity of a service in this mesh.
    pub fn spiffe_id(&self, service: &ServiceName) -> SpiffeId {
        SpiffeId {
            trust_domain: self.trust_domain.clone(),
            namespace: "default".to_owned(),
            datacenter: self.datacenter.clone(),
            service: service.to_string(),
        }
    }

    /// Whether `from`, a service of this host, can reach `to`.
    pub fn reaches(&self, from: &ServiceName, to: &ServiceName) -> bool {
        self.reach.get(from).is_none_or(|services| services.contains(to))
    }

    /// What `service` speaks; TCP where the mesh does not know it.
    pub fn protocol(&self, service: &ServiceName) -> Protocol {
        self.services.get(service).map_or(Protocol::Tcp, |known| known.protocol)
    }

    /// The server name a client asks for: `<service>.<namespace>.<dc>.internal.<trust domain>`.
    pub fn sni(&self, service: &ServiceName) -> String {
        format!("{service}.default.{}.internal.{}", self.datacenter, self.trust_domain)
    }
}

/// One service of the mesh.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshService {
    /// Addresses that stand for the service on this host.
    pub virtual_ips: BTreeSet<IpAddr>,
    /// Where it runs.
    pub instances: BTreeSet<Instance>,
    /// Who may call it.
    #[serde(default)]
    pub callers: Callers,
    /// What it speaks.
    #[serde(default)]
    pub protocol: Protocol,
}

/// What a service speaks (Consul: the `protocol` of `service-defaults`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Anything over TCP.
    #[default]
    Tcp,
    /// HTTP/1.1.
    Http,
    /// HTTP/2.
    Http2,
    /// gRPC.
    Grpc,
}

impl Protocol {
    /// Whether requests can be told apart in it.
    pub fn is_http(self) -> bool {
        self != Protocol::Tcp
    }
}

/// One instance of a service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Instance {
    /// Its address.
    pub address: IpAddr,
    /// The port of its sidecar (mutual TLS).
    pub port: u16,
    /// The port of the app itself, for connections that dial the instance directly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_port: Option<u16>,
    /// Its share of the connections, in proportion to those of the others. One with none gets none:
    /// it belongs to the mesh and is not well.
    #[serde(default = "one")]
    pub weight: u32,
}

fn one() -> u32 {
    1
}

/// Who may call a service: what Consul's intentions say of one destination. A source that is named
/// decides before everybody else, as in Consul's order of precedence.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Callers {
    /// By the caller's name.
    pub named: BTreeMap<ServiceName, Access>,
    /// Every other service with a certificate of this mesh.
    pub others: Access,
}

impl Callers {
    /// Callers of whom those in `allowed` may do everything, and nobody else may do anything.
    pub fn only(allowed: impl IntoIterator<Item = ServiceName>) -> Self {
        let named = allowed.into_iter().map(|name| (name, Access::Allow)).collect();
        Callers { named, others: Access::Deny }
    }

    /// Any service of the mesh.
    pub fn anybody() -> Self {
        Callers { named: BTreeMap::new(), others: Access::Allow }
    }
}

/// What a caller may do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// Nothing.
    #[default]
    Deny,
    /// Everything.
    Allow,
    /// What the first rule that fits a request says; one that none fits is denied. For services that
    /// speak HTTP; for others it is as much as [`Access::Deny`].
    Requests(Vec<RequestRule>),
}

/// What happens to requests of one kind (Consul: `Permissions` of an intention's source).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestRule {
    /// Whether they are let through.
    pub allow: bool,
    /// Their path; any unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathMatch>,
    /// Their method; any when empty.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub methods: BTreeSet<String>,
    /// Their headers; all of these must fit.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<HeaderRule>,
}

/// A request's path, without the query.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PathMatch {
    /// Exactly this.
    Exact(String),
    /// What begins with it.
    Prefix(String),
    /// What this expression (RE2) matches whole.
    Regex(String),
}

/// A header that a request has or has not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeaderRule {
    /// Its name, in lower case.
    pub name: String,
    /// What its value must be.
    pub value: HeaderMatch,
    /// Whether requests fit that do *not* have such a header.
    #[serde(default)]
    pub invert: bool,
}

/// The value of a header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HeaderMatch {
    /// Anything.
    Present,
    /// Exactly this.
    Exact(String),
    /// What begins with it.
    Prefix(String),
    /// What ends with it.
    Suffix(String),
    /// What has it in it.
    Contains(String),
    /// What this expression (RE2) matches whole.
    Regex(String),
}

/// `spiffe://<trust domain>/ns/<namespace>/dc/<datacenter>/svc/<service>`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct SpiffeId {
    /// Trust domain.
    pub trust_domain: String,
    /// Namespace; `default` in Consul's community edition.
    pub namespace: String,
    /// Datacenter.
    pub datacenter: String,
    /// Service name.
    pub service: String,
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SpiffeId { trust_domain, namespace, datacenter, service } = self;
        write!(f, "spiffe://{trust_domain}/ns/{namespace}/dc/{datacenter}/svc/{service}")
    }
}

/// A leaf certificate with its key, and the roots to trust.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The leaf and any intermediates, PEM.
    pub certificate_pem: String,
    /// The leaf's private key, PKCS#8 PEM.
    pub key_pem: String,
    /// The roots, PEM.
    pub roots_pem: String,
    /// When the leaf starts to be valid.
    pub not_before: std::time::SystemTime,
    /// When it ends.
    pub not_after: std::time::SystemTime,
}

impl fmt::Debug for Credentials {
    /// Without the key: debug output ends up in logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("not_after", &self.not_after).finish_non_exhaustive()
    }
}

/// The token with which a sidecar asks Consul's xDS. It is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct XdsToken(String);

impl XdsToken {
    /// The token `secret`.
    pub fn new(secret: impl Into<String>) -> Self {
        XdsToken(secret.into())
    }

    /// The secret itself, for the one file that Envoy reads it from.
    pub fn secret(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for XdsToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("XdsToken(…)")
    }
}
