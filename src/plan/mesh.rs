//! Who is out there: the view of the mesh that a control plane fills in, and the names that follow
//! from it. SNI, SPIFFE ids and DNS names are Consul's, so that hosts of all kinds talk to each other.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

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
}

impl Default for MeshView {
    fn default() -> Self {
        MeshView { trust_domain: String::new(), datacenter: "dc1".to_owned(), services: BTreeMap::new() }
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
    /// Who may call it. Empty: nobody.
    pub allow: BTreeSet<Caller>,
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
}

/// Somebody who may call a service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Caller {
    /// Any service with a certificate of this mesh.
    Any,
    /// One service.
    Service(ServiceName),
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
