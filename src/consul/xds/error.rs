//! What can be wrong with Consul's xDS.

use std::io;
use std::path::PathBuf;

use crate::base::{Class, Explain, Fault};
use crate::consul::ServerFacts;

/// Why there is no stream, or cannot be one.
#[derive(Debug, thiserror::Error)]
pub enum XdsError {
    /// The release is older than xDS as current Envoys speak it.
    #[error("Consul {version} does not speak the xDS of current Envoys: that came with 1.10")]
    TooOld {
        /// The release.
        version: String,
    },
    /// gRPC is off.
    #[error("Consul's gRPC is switched off, so there is no xDS")]
    SwitchedOff,
    /// The address is none.
    #[error("{text:?} is not an address of Consul's xDS")]
    Address {
        /// As it was given.
        text: String,
    },
    /// The name has no address.
    #[error("the name {host:?} of Consul's xDS cannot be resolved")]
    Name {
        /// The name.
        host: String,
        /// The resolver's answer.
        source: io::Error,
    },
    /// Nobody answers.
    #[error("Consul's xDS at {server} cannot be reached")]
    Unreachable {
        /// The address.
        server: String,
        /// The system's answer.
        source: io::Error,
    },
    /// TLS, and no CA.
    #[error("Consul's xDS at {server} has TLS, and the CA of its certificate is not known")]
    NoCa {
        /// The address.
        server: String,
    },
    /// The CA's file cannot be used.
    #[error("{} is no file of CAs: {why}", path.display())]
    CaFile {
        /// The file.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// The sidecar speaks without TLS to a port that has it.
    #[error("Consul's xDS at {server} wants TLS, and the sidecar does not speak it")]
    WantsTls {
        /// The address.
        server: String,
    },
    /// The sidecar speaks TLS to a port that has none.
    #[error("the sidecar wants TLS, and Consul's xDS at {server} does not speak it")]
    NotTls {
        /// The address.
        server: String,
    },
    /// Consul does not know the sidecar.
    #[error("the sidecar of {id:?} is not registered, so Consul tells it nothing")]
    NotRegistered {
        /// The service's id.
        id: String,
    },
    /// All that can be asked is well.
    #[error(
        "the sidecar has no stream to Consul's xDS at {server}, and all that can be asked about it is well"
    )]
    NoCause {
        /// The address.
        server: String,
    },
}

impl Explain for XdsError {
    fn code(&self) -> &'static str {
        match self {
            XdsError::TooOld { .. } => "ENM-K080",
            XdsError::SwitchedOff => "ENM-K081",
            XdsError::Address { .. } => "ENM-K082",
            XdsError::Name { .. } => "ENM-K083",
            XdsError::Unreachable { .. } => "ENM-K084",
            XdsError::NoCa { .. } => "ENM-K085",
            XdsError::CaFile { .. } => "ENM-K086",
            XdsError::WantsTls { .. } => "ENM-K087",
            XdsError::NotTls { .. } => "ENM-K088",
            XdsError::NotRegistered { .. } => "ENM-K089",
            XdsError::NoCause { .. } => "ENM-K090",
        }
    }

    fn hint(&self) -> String {
        let text = match self {
            XdsError::TooOld { .. } => {
                "set `control_plane = \"catalog\"`: enmesh then drives the sidecars by itself, from what this Consul knows; or use a newer Consul"
            }
            XdsError::SwitchedOff => {
                "set `ports { grpc = 8502 }` for the agent, or `[consul] grpc_address` to where it is"
            }
            XdsError::Address { .. } => {
                "write HOST:PORT, http://HOST:PORT, https://HOST:PORT or unix:///PATH"
            }
            XdsError::Name { .. } => "check `[consul] grpc_address` and this host's own name resolution",
            XdsError::Unreachable { .. } => {
                "is the agent running, and is its gRPC there? `[consul] grpc_address` or CONSUL_GRPC_ADDR say otherwise"
            }
            XdsError::NoCa { .. } => "name its file as `[consul] grpc_ca_file` or CONSUL_GRPC_CACERT",
            XdsError::CaFile { .. } => "a PEM file with certificates that this user may read",
            XdsError::WantsTls { .. } => {
                "write https:// in `[consul] grpc_address` and name the CA as `grpc_ca_file`"
            }
            XdsError::NotTls { .. } => {
                "write http:// in `[consul] grpc_address`, or the port that has TLS (8503)"
            }
            XdsError::NotRegistered { .. } => {
                "is `registration` on, and is it the same agent? `enmesh status` shows its last error"
            }
            XdsError::NoCause { .. } => {
                "`journalctl -u envoy@ID` has Envoy's own words, with the code of the stream's end"
            }
        };
        text.to_owned()
    }

    fn class(&self) -> Class {
        match self {
            XdsError::Address { .. } | XdsError::NoCa { .. } | XdsError::CaFile { .. } => Class::Config,
            _ => Class::Unavailable,
        }
    }
}

/// Something that works, and that a person should know.
#[derive(Debug, thiserror::Error)]
pub enum XdsWarning {
    /// This Envoy is newer than any that this Consul was tried with.
    #[error("Envoy {envoy} is newer than those that this Consul was tried with (up to {newest})")]
    Newer {
        /// The version of Envoy.
        envoy: String,
        /// The newest that Consul names.
        newest: String,
    },
}

impl Explain for XdsWarning {
    fn code(&self) -> &'static str {
        "ENM-K091"
    }

    fn hint(&self) -> String {
        "nothing, as long as it works: Consul does not refuse it; a newer Consul names it".to_owned()
    }
}

/// A warning when `envoy`, such as `1.40.0`, is of a later minor than any that Consul says it was
/// tried with. One that names none, or an Envoy whose version cannot be read, is no cause for it.
pub fn newer_than_tried(envoy: &str, facts: &ServerFacts) -> Option<Fault> {
    let minor = |text: &str| -> Option<(u32, u32)> {
        let mut parts = text.split(['.', '-']);
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    };
    let newest = facts.envoys.iter().filter_map(|text| Some((minor(text)?, text))).max()?;
    let newer = minor(envoy)? > newest.0;
    newer.then(|| XdsWarning::Newer { envoy: envoy.to_owned(), newest: newest.1.clone() }.into())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_a_newer_envoy_is_worth_a_word() {
        let facts = |envoys: &[&str]| {
            let body =
                json!({"Config": {"Version": "1.20.0"}, "xDS": {"SupportedProxies": {"envoy": envoys}}});
            ServerFacts::of_agent(&body).unwrap()
        };
        let tried = facts(&["1.28.7", "1.31.2", "1.9.1"]);
        let warning = newer_than_tried("1.40.0", &tried).unwrap();
        assert_eq!(warning.code, "ENM-K091");
        assert!(warning.message.contains("1.31.2"), "{}", warning.message);
        for envoy in ["1.31.9", "1.10.0", "", "x.y"] {
            assert_eq!(newer_than_tried(envoy, &tried), None, "{envoy}");
        }
        assert_eq!(newer_than_tried("1.40.0", &facts(&[])), None);
    }
}
