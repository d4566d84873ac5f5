//! The peers file as it is written.

use std::borrow::Cow;
use std::net::IpAddr;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use toml::Spanned;

use crate::config::value::{Port, ServiceName, ValueError};

/// The services of a mesh without servers: `/etc/enmesh/peers.toml`.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PeersFile {
    /// The mesh's trust domain; that of the CA's root unless given.
    #[serde(default)]
    pub trust_domain: Option<TrustDomain>,
    /// The datacenter that stands in names and identities; `dc1` unless given.
    #[serde(default)]
    pub datacenter: Option<ServiceName>,
    /// The services.
    #[serde(default, rename = "service")]
    pub services: Vec<PeerService>,
}

/// A service of the mesh.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PeerService {
    /// Its name.
    #[schemars(with = "ServiceName")]
    pub name: Spanned<ServiceName>,
    /// Addresses that stand for it; allocated unless given.
    #[serde(default)]
    #[schemars(with = "Vec<IpAddr>")]
    pub virtual_ips: Vec<Spanned<IpAddr>>,
    /// Services that may call it; `*` means any service of the mesh. Nobody may unless given.
    #[serde(default)]
    pub allow: Vec<CallerName>,
    /// Where it runs.
    #[serde(default, rename = "instance")]
    #[schemars(with = "Vec<PeerInstance>")]
    pub instances: Vec<Spanned<PeerInstance>>,
}

/// An instance of a service.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PeerInstance {
    /// Its address.
    pub address: IpAddr,
    /// The public port of its sidecar.
    pub port: Port,
    /// The application's own port, for connections that dial the instance directly.
    #[serde(default)]
    pub service_port: Option<Port>,
}

/// A service name, or `*`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum CallerName {
    /// Any service with a certificate of this mesh.
    Any,
    /// One service.
    Service(ServiceName),
}

impl TryFrom<String> for CallerName {
    type Error = ValueError;

    fn try_from(text: String) -> Result<Self, ValueError> {
        if text == "*" { Ok(CallerName::Any) } else { text.parse().map(CallerName::Service) }
    }
}

impl JsonSchema for CallerName {
    fn schema_name() -> Cow<'static, str> {
        "CallerName".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let name = generator.subschema_for::<ServiceName>();
        json_schema!({ "anyOf": [{ "const": "*" }, name] })
    }
}

/// A SPIFFE trust domain. Consul's are `<uuid>.consul`; any other works the same.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct TrustDomain(String);

impl TrustDomain {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TrustDomain {
    type Err = ValueError;

    /// Lower-case letters, digits, `.`, `-`, `_` (SPIFFE-ID 2.1), and each label at most 63 bytes,
    /// because it stands in server names (SNI), too. 150 bytes leave room there for a service name
    /// and a datacenter within the 253 of a host name (RFC 1035, 2.3.4).
    fn from_str(text: &str) -> Result<Self, ValueError> {
        let fine = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_');
        let label = |label: &str| !label.is_empty() && label.len() <= 63 && label.bytes().all(fine);
        if text.len() > 150 || !text.split('.').all(label) {
            return Err(ValueError(format!(
                "{text:?} is not a trust domain: lower-case letters, digits, `-`, `_` and single dots, such as 11111111-2222-3333-4444-555555555555.consul"
            )));
        }
        Ok(TrustDomain(text.to_owned()))
    }
}

impl TryFrom<String> for TrustDomain {
    type Error = ValueError;

    fn try_from(text: String) -> Result<Self, ValueError> {
        text.parse()
    }
}

impl JsonSchema for TrustDomain {
    fn schema_name() -> Cow<'static, str> {
        "TrustDomain".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string", "maxLength": 150, "pattern": "^[a-z0-9_-]{1,63}(\\.[a-z0-9_-]{1,63})*$"
        })
    }
}
