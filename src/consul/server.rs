//! What the other side is: version, names, ports of its xDS.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::Serialize;
use serde_json::Value;

use super::{Client, ConsulError, ConsulWarning, Query};
use crate::base::Fault;

/// A release of Consul.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Version {
    /// Major.
    pub major: u32,
    /// Minor.
    pub minor: u32,
    /// Patch.
    pub patch: u32,
}

impl Version {
    /// The first release of a minor.
    pub const fn minor(major: u32, minor: u32) -> Self {
        Version { major, minor, patch: 0 }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

impl FromStr for Version {
    type Err = ();

    /// `1.8.7`, `1.17.0+ent`, `1.20.0-rc1`: what follows the numbers does not count, since a
    /// release candidate has its release's fields.
    fn from_str(text: &str) -> Result<Self, ()> {
        let numbers = text.split(['-', '+', '~']).next().unwrap_or_default();
        let mut parts = numbers.trim_start_matches('v').split('.').map(str::parse);
        let mut next = || parts.next().and_then(Result::ok);
        let version = (next(), next(), next());
        match (version, parts.next()) {
            ((Some(major), Some(minor), Some(patch)), None) => Ok(Version { major, minor, patch }),
            _ => Err(()),
        }
    }
}

/// Who told the facts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The agent itself.
    Agent,
    /// The catalog's entry of the servers, since the token may not ask the agent. An agent is never
    /// newer than its servers by Consul's rules of upgrading, and may be older.
    Catalog,
    /// Nobody.
    Nobody,
}

/// What is known of the other side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ServerFacts {
    /// Who told them.
    pub source: Source,
    /// Its release.
    pub version: Option<Version>,
    /// Whether it is Consul Enterprise.
    pub enterprise: bool,
    /// Its datacenter.
    pub datacenter: Option<String>,
    /// The agent's node.
    pub node: Option<String>,
    /// The port of xDS with TLS.
    pub xds_tls: Option<u16>,
    /// The port of xDS without TLS. Before Consul 1.14 this one has TLS when the HTTP API has.
    pub xds_plaintext: Option<u16>,
    /// Releases of Envoy that it names as tried.
    pub envoys: Vec<String>,
    /// First and last port that it gives to sidecars.
    pub sidecar_ports: Option<(u16, u16)>,
    /// Whether services may call each other where no intention says anything.
    pub default_allow: Option<bool>,
}

impl ServerFacts {
    fn unknown() -> Self {
        ServerFacts {
            source: Source::Nobody,
            version: None,
            enterprise: false,
            datacenter: None,
            node: None,
            xds_tls: None,
            xds_plaintext: None,
            envoys: Vec::new(),
            sidecar_ports: None,
            default_allow: None,
        }
    }

    /// Asks the agent, and where the token may not ask that, the catalog.
    ///
    /// # Errors
    /// See [`ConsulError`]; a token without rights is no error but a warning.
    pub async fn ask(client: &Client) -> Result<(Self, Vec<Fault>), ConsulError> {
        let denied = match client.get(&Query::new("/v1/agent/self")).await {
            Ok(answer) => return Self::of_agent(&answer.body).map(|facts| (facts, Vec::new())),
            Err(error @ ConsulError::Denied { .. }) => error,
            Err(error) => return Err(error),
        };
        let facts = match client.get(&Query::new("/v1/catalog/service/consul")).await {
            Ok(answer) => Self::of_catalog(&answer.body),
            Err(ConsulError::Denied { .. }) => Self::unknown(),
            Err(error) => return Err(error),
        };
        let unknown = facts.version.is_none();
        let warning = ConsulWarning::VersionUnknown { why: denied.to_string() };
        Ok((facts, unknown.then(|| warning.into()).into_iter().collect()))
    }

    fn of_agent(body: &Value) -> Result<Self, ConsulError> {
        let text = |path: &str| body.pointer(path).and_then(Value::as_str).map(str::to_owned);
        let port = |path: &str| body.pointer(path).and_then(Value::as_u64).and_then(port_number);
        let release = text("/Config/Version").ok_or_else(|| ConsulError::Answer {
            what: "GET /v1/agent/self".to_owned(),
            why: "it has no `Config.Version`".to_owned(),
        })?;
        // Where both ports are told, the older spellings may stand for either.
        let told = body.pointer("/xDS/Ports").is_some_and(Value::is_object);
        let envoys = body.pointer("/xDS/SupportedProxies/envoy").and_then(Value::as_array);
        let sidecars =
            (port("/DebugConfig/ConnectSidecarMinPort"), port("/DebugConfig/ConnectSidecarMaxPort"));
        Ok(ServerFacts {
            source: Source::Agent,
            version: release.parse().ok(),
            enterprise: release.contains("+ent"),
            datacenter: text("/Config/Datacenter"),
            node: text("/Config/NodeName"),
            xds_tls: if told { port("/xDS/Ports/TLS") } else { port("/DebugConfig/GRPCTLSPort") },
            xds_plaintext: if told {
                port("/xDS/Ports/Plaintext")
            } else {
                port("/xDS/Port").or_else(|| port("/DebugConfig/GRPCPort"))
            },
            envoys: envoys.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect(),
            sidecar_ports: sidecars.0.zip(sidecars.1),
            default_allow: default_allow(body),
        })
    }

    /// The oldest of the servers decides.
    fn of_catalog(body: &Value) -> Self {
        let servers = body.as_array().map(Vec::as_slice).unwrap_or_default();
        let text =
            |server: &Value, path: &str| server.pointer(path).and_then(Value::as_str).map(str::to_owned);
        let releases: BTreeSet<String> =
            servers.iter().filter_map(|server| text(server, "/ServiceMeta/version")).collect();
        let version = releases.iter().filter_map(|release| release.parse().ok()).min();
        if version.is_none() {
            return Self::unknown();
        }
        ServerFacts {
            source: Source::Catalog,
            version,
            enterprise: releases.iter().all(|release| release.contains("+ent")),
            datacenter: servers.iter().find_map(|server| text(server, "/Datacenter")),
            ..Self::unknown()
        }
    }
}

/// A setting of its own in newer releases; otherwise the default policy of ACLs, and everything is
/// allowed where there are none.
fn default_allow(body: &Value) -> Option<bool> {
    let debug = body.get("DebugConfig")?;
    let text = |path: &str| debug.pointer(path).and_then(Value::as_str).filter(|text| !text.is_empty());
    if let Some(policy) = text("/DefaultIntentionPolicy") {
        return Some(policy == "allow");
    }
    if !debug.get("ACLsEnabled").and_then(Value::as_bool)? {
        return Some(true);
    }
    // Moved in 1.10.
    let policy = text("/ACLResolverSettings/ACLDefaultPolicy").or_else(|| text("/ACLDefaultPolicy"))?;
    Some(policy == "allow")
}

/// 0 is how Consul says that there is none, and so is a negative number.
fn port_number(number: u64) -> Option<u16> {
    u16::try_from(number).ok().filter(|port| *port != 0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn versions_in_every_spelling() {
        for (text, expected) in [
            ("1.8.7", (1, 8, 7)),
            ("1.17.0+ent", (1, 17, 0)),
            ("2.1.0-rc1", (2, 1, 0)),
            ("v1.20.3", (1, 20, 3)),
        ] {
            let version: Version = text.parse().unwrap();
            assert_eq!((version.major, version.minor, version.patch), expected, "{text}");
        }
        for text in ["", "1.8", "1.8.x", "1.2.3.4", "latest"] {
            assert_eq!(text.parse::<Version>(), Err(()), "{text}");
        }
        assert!(Version::minor(1, 10) > "1.9.17".parse().unwrap());
    }

    #[test]
    fn the_ports_of_each_age() {
        let facts = |body| ServerFacts::of_agent(&body).unwrap();
        let old = facts(json!({
            "Config": { "Version": "1.8.7", "Datacenter": "dc1", "NodeName": "vm" },
            "DebugConfig": { "GRPCPort": 8502, "ConnectSidecarMinPort": 21000, "ConnectSidecarMaxPort": 21255 },
            "xDS": { "SupportedProxies": { "envoy": ["1.14.5"] } },
        }));
        assert_eq!(
            (old.xds_tls, old.xds_plaintext, old.sidecar_ports),
            (None, Some(8502), Some((21000, 21255)))
        );
        assert_eq!((old.node.as_deref(), old.datacenter.as_deref()), (Some("vm"), Some("dc1")));
        assert_eq!(old.envoys, ["1.14.5"]);
        let new = facts(json!({
            "Config": { "Version": "1.20.0+ent" }, "DebugConfig": { "GRPCPort": 8502, "GRPCTLSPort": 8503 },
            "xDS": { "Port": 8502, "Ports": { "TLS": 8503, "Plaintext": -1 } },
        }));
        assert_eq!((new.xds_tls, new.xds_plaintext, new.enterprise), (Some(8503), None, true));
        assert!(ServerFacts::of_agent(&json!({})).is_err());
    }

    #[test]
    fn the_default_for_intentions_of_each_age() {
        for (debug, expected) in [
            (json!({ "ACLsEnabled": false, "ACLDefaultPolicy": "deny" }), Some(true)),
            (json!({ "ACLsEnabled": true, "ACLDefaultPolicy": "deny" }), Some(false)),
            (json!({ "ACLsEnabled": true, "ACLDefaultPolicy": "allow" }), Some(true)),
            (
                json!({ "ACLsEnabled": true, "ACLResolverSettings": { "ACLDefaultPolicy": "deny" } }),
                Some(false),
            ),
            (json!({ "ACLsEnabled": false, "DefaultIntentionPolicy": "deny" }), Some(false)),
            (json!({ "ACLsEnabled": true }), None),
            (json!({}), None),
        ] {
            let body = json!({ "Config": { "Version": "1.8.7" }, "DebugConfig": debug });
            assert_eq!(ServerFacts::of_agent(&body).unwrap().default_allow, expected, "{body}");
        }
    }

    #[test]
    fn the_oldest_server_decides() {
        let server = |version: &str| json!({ "Datacenter": "dc1", "ServiceMeta": { "version": version } });
        let facts = ServerFacts::of_catalog(&json!([server("1.10.2"), server("1.9.0")]));
        assert_eq!((facts.version, facts.source), (Some(Version::minor(1, 9)), Source::Catalog));
        assert_eq!(ServerFacts::of_catalog(&json!([])), ServerFacts::unknown());
        assert_eq!(ServerFacts::of_catalog(&Value::Null), ServerFacts::unknown());
    }
}
