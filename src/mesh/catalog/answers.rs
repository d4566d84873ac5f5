//! Consul's answers, as far as the mesh needs them. Unknown fields are skipped, so that large
//! answers leave little behind.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

/// A list or an object that Consul writes as `null` when it is empty.
fn nullable<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// `/v1/health/connect/:service`: one of its entries.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct HealthEntry {
    pub node: HealthNode,
    pub service: HealthService,
    #[serde(default, deserialize_with = "nullable")]
    pub checks: Vec<HealthCheck>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct HealthNode {
    #[serde(default)]
    pub address: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct HealthService {
    #[serde(rename = "ID", default)]
    pub id: String,
    /// The sidecar's own name, `api-sidecar-proxy`.
    #[serde(default)]
    pub service: String,
    #[serde(default)]
    pub address: String,
    #[serde(default)]
    pub port: u16,
    #[serde(default, deserialize_with = "nullable")]
    pub weights: Weights,
    #[serde(default, deserialize_with = "nullable")]
    pub tagged_addresses: BTreeMap<String, TaggedAddress>,
    #[serde(default, deserialize_with = "nullable")]
    pub proxy: Proxy,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Weights {
    pub passing: u32,
    pub warning: u32,
}

impl Default for Weights {
    /// Consul's own for a service that names none.
    fn default() -> Self {
        Weights { passing: 1, warning: 1 }
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct TaggedAddress {
    #[serde(default)]
    pub address: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Proxy {
    pub local_service_port: u16,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct HealthCheck {
    #[serde(default)]
    pub status: String,
}

/// `/v1/health/state/:state`: one of its checks.
#[derive(Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "PascalCase")]
pub(super) struct StateCheck {
    /// Empty for a check of the node.
    #[serde(default)]
    pub service_name: String,
    #[serde(default)]
    pub node: String,
    #[serde(rename = "CheckID", default)]
    pub id: String,
}

/// `/v1/connect/intentions/match`: what one name matches, by that name.
pub(super) type Matches = BTreeMap<String, Option<Vec<Intention>>>;

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Intention {
    #[serde(rename = "SourceNS")]
    pub source_ns: String,
    pub source_name: String,
    /// Another cluster; newer releases.
    pub source_peer: String,
    /// `consul`, the only type there is.
    pub source_type: String,
    #[serde(rename = "DestinationNS")]
    pub destination_ns: String,
    pub destination_name: String,
    /// `allow` or `deny`; empty with permissions.
    pub action: String,
    #[serde(deserialize_with = "nullable")]
    pub permissions: Vec<Permission>,
    pub precedence: u32,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Permission {
    pub action: String,
    #[serde(rename = "HTTP", deserialize_with = "nullable")]
    pub http: HttpPermission,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct HttpPermission {
    pub path_exact: String,
    pub path_prefix: String,
    pub path_regex: String,
    #[serde(deserialize_with = "nullable")]
    pub methods: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub header: Vec<HeaderPermission>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct HeaderPermission {
    pub name: String,
    pub present: bool,
    pub exact: String,
    pub prefix: String,
    pub suffix: String,
    pub contains: String,
    pub regex: String,
    pub invert: bool,
    pub ignore_case: bool,
}

/// `/v1/connect/intentions/check`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Check {
    pub allowed: bool,
}

/// `/v1/agent/connect/ca/roots`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Roots {
    #[serde(default)]
    pub trust_domain: String,
    #[serde(default, deserialize_with = "nullable")]
    pub roots: Vec<RootCertificate>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct RootCertificate {
    #[serde(rename = "ID", default)]
    pub id: String,
    #[serde(default)]
    pub root_cert: String,
    #[serde(default)]
    pub active: bool,
}

/// `/v1/agent/connect/ca/leaf/:service`. It has the key, so it is never shown.
#[derive(Deserialize)]
pub(super) struct IssuedLeaf {
    #[serde(rename = "CertPEM")]
    pub certificate_pem: String,
    #[serde(rename = "PrivateKeyPEM")]
    pub key_pem: String,
}

/// `/v1/config/:kind`: one of its entries, with the fields of all kinds that are looked at.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct ConfigEntry {
    pub name: String,
    /// Of service-defaults.
    pub protocol: String,
    /// Of proxy-defaults.
    #[serde(deserialize_with = "nullable")]
    pub config: ProxyDefaults,
    /// The rest are a resolver's.
    pub default_subset: String,
    #[serde(deserialize_with = "nullable")]
    pub subsets: BTreeMap<String, serde::de::IgnoredAny>,
    #[serde(deserialize_with = "nullable")]
    pub failover: BTreeMap<String, serde::de::IgnoredAny>,
    pub redirect: Option<serde::de::IgnoredAny>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ProxyDefaults {
    /// Opaque to Consul, so it may be anything.
    pub protocol: serde_json::Value,
}
