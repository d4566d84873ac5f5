//! What this room can run into.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use super::admin::Readiness;
use crate::base::{Class, Explain, exec};

/// The code of [`EnvoyError::Slow`].
pub(super) const SLOW: &str = "ENM-E021";

/// An error of this room.
#[derive(Debug, thiserror::Error)]
pub enum EnvoyError {
    /// There is no Envoy.
    #[error("Envoy is not installed: there is no {}", path.display())]
    Missing {
        /// What was looked for.
        path: PathBuf,
    },
    /// The file is not a program.
    #[error("{} is not a program that can be executed", path.display())]
    NotExecutable {
        /// The file.
        path: PathBuf,
    },
    /// It does not say which version it is.
    #[error("{} does not tell Envoy's version: {answer}", path.display())]
    Version {
        /// The program.
        path: PathBuf,
        /// What it said instead.
        answer: String,
    },
    /// A value in `proxy.config` does not fit.
    #[error("proxy.config: `{key}` is {value}, which is not {wanted}")]
    Option {
        /// The key.
        key: &'static str,
        /// What it is set to.
        value: String,
        /// What it should be.
        wanted: &'static str,
    },
    /// A value in `proxy.config` should be a part of the bootstrap, and is none.
    #[error("proxy.config: `{key}` cannot be put into the bootstrap: {why}")]
    Json {
        /// The key.
        key: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// A key of `proxy.config` that only Consul's own program can carry out.
    #[error("proxy.config: `{key}` is not carried out: it is {why}")]
    NotCarriedOut {
        /// The key.
        key: &'static str,
        /// What it is.
        why: &'static str,
    },
    /// Metrics cannot be sent there.
    #[error("proxy.config: metrics cannot be sent to {url:?} of `{key}`: {why}")]
    Sink {
        /// The key.
        key: &'static str,
        /// As it was given.
        url: String,
        /// Why not.
        why: String,
    },
    /// There is no token for Consul's xDS.
    #[error("there is no token for the sidecar yet")]
    NoToken,
    /// TLS to Consul's xDS without a CA.
    #[error("Consul's xDS wants TLS, and the CA of its certificate is not known")]
    EmptyCa,
    /// A key in `proxy.config` has no effect (a warning).
    #[error("proxy.config: `{key}` has no effect on a sidecar that is driven by files")]
    Unheeded {
        /// The key.
        key: String,
        /// The key that has, and is written almost so.
        instead: Option<&'static str>,
    },
    /// The path of the admin socket is longer than a socket's path can be.
    #[error("the path of the admin socket is too long ({} bytes): {}", path.as_os_str().len(), path.display())]
    SocketPath {
        /// The path.
        path: PathBuf,
    },
    /// There is no certificate for the sidecar.
    #[error("there is no certificate for the sidecar yet")]
    NoCredentials,
    /// The mesh's trust domain is not known.
    #[error("the trust domain of the mesh is not known yet")]
    NoTrustDomain,
    /// The admin socket does not answer, or not in HTTP, or without end.
    #[error("Envoy cannot be asked on {}", socket.display())]
    Unreachable {
        /// The socket.
        socket: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// The admin socket takes too long.
    #[error("Envoy did not answer {path} within {limit:?}")]
    Slow {
        /// What was asked.
        path: String,
        /// The time it had.
        limit: Duration,
    },
    /// The admin socket answers something else.
    #[error("Envoy answered {path} with {answer}")]
    Answer {
        /// What was asked.
        path: String,
        /// What came back.
        answer: String,
    },
    /// Envoy said no to what was published.
    #[error("Envoy refused {what}: {reason}")]
    Rejected {
        /// Which files.
        what: String,
        /// Envoy's own words.
        reason: String,
        /// Whether the last good files are in force again.
        rolled_back: bool,
    },
    /// Envoy did not look at what was published.
    #[error("Envoy did not take up {what} within {limit:?}")]
    NotTaken {
        /// Which files.
        what: String,
        /// The time it had.
        limit: Duration,
    },
    /// Envoy is not ready.
    #[error("Envoy is {state:?} after {waited:?}")]
    NotLive {
        /// What it says of itself.
        state: Readiness,
        /// How long it was waited for.
        waited: Duration,
    },
}

impl EnvoyError {
    pub(super) fn option(key: &'static str, value: &Value, wanted: &'static str) -> Self {
        EnvoyError::Option { key, value: value.to_string(), wanted }
    }

    pub(super) fn json(key: &'static str, error: &serde_json::Error) -> Self {
        EnvoyError::Json { key, why: format!("it is not JSON: {error}") }
    }
}

impl Explain for EnvoyError {
    fn code(&self) -> &'static str {
        match self {
            EnvoyError::Missing { .. } => "ENM-E001",
            EnvoyError::NotExecutable { .. } => "ENM-E002",
            EnvoyError::Version { .. } => "ENM-E003",
            EnvoyError::Option { .. } => "ENM-E010",
            EnvoyError::SocketPath { .. } => "ENM-E011",
            EnvoyError::NoCredentials => "ENM-E012",
            EnvoyError::NoTrustDomain => "ENM-E013",
            EnvoyError::Unheeded { .. } => "ENM-E014",
            EnvoyError::Unreachable { .. } => "ENM-E020",
            EnvoyError::Slow { .. } => SLOW,
            EnvoyError::Answer { .. } => "ENM-E022",
            EnvoyError::Rejected { .. } => "ENM-E030",
            EnvoyError::NotTaken { .. } => "ENM-E031",
            EnvoyError::NotLive { .. } => "ENM-E032",
            EnvoyError::Json { .. } => "ENM-E040",
            EnvoyError::NotCarriedOut { .. } => "ENM-E041",
            EnvoyError::Sink { .. } => "ENM-E042",
            EnvoyError::NoToken => "ENM-E044",
            EnvoyError::EmptyCa => "ENM-E045",
        }
    }

    fn hint(&self) -> String {
        match self {
            EnvoyError::Missing { .. } => format!(
                "install Envoy into one of {}, or set `path` in `[envoy]` to where it is",
                exec::SYSTEM_FOLDERS.join(", ")
            ),
            EnvoyError::NotExecutable { path } => {
                format!("`chmod 0755 {0}`, or set `path` in `[envoy]` to Envoy's program", path.display())
            }
            EnvoyError::Version { path, .. } => {
                format!("run `{} --version`: it may be built for another machine or lack a library", path.display())
            }
            EnvoyError::Option { key, .. } => format!("correct `{key}` in `[proxy] config` of the service, or leave it out"),
            EnvoyError::Json { key, .. } => {
                format!("correct `{key}` in `[proxy] config` of the service or in Consul's proxy-defaults")
            }
            EnvoyError::NotCarriedOut { key, .. } => format!(
                "take `{key}` out of `[proxy] config` or of Consul's proxy-defaults; the other keys that begin with `envoy_` are carried out"
            ),
            EnvoyError::Sink { key, .. } => {
                format!("write `{key}` as udp://ADDRESS:PORT, udp://$HOST_IP:PORT or unix:///PATH")
            }
            EnvoyError::EmptyCa => "set `grpc_ca_file` in `[consul]` to the PEM file of that CA".to_owned(),
            EnvoyError::Unheeded { instead: Some(instead), .. } => format!("did you mean `{instead}`?"),
            EnvoyError::Unheeded { instead: None, .. } => {
                "leave it out; if only Consul's own xDS heeds it, it counts with control_plane = \"consul\"".to_owned()
            }
            EnvoyError::SocketPath { .. } => "give the service a shorter `id`, or use a shorter --root".to_owned(),
            EnvoyError::NoCredentials | EnvoyError::NoTrustDomain | EnvoyError::NoToken => {
                "nothing to do if this is the start: the control plane is still being asked; see `enmesh status`".to_owned()
            }
            EnvoyError::Unreachable { .. } | EnvoyError::Slow { .. } | EnvoyError::Answer { .. } => {
                "look at the sidecar: `systemctl status envoy@ID` and `journalctl -u envoy@ID`".to_owned()
            }
            EnvoyError::Rejected { rolled_back: true, .. } => {
                "the last good configuration is in force again; correct what Envoy's words point at".to_owned()
            }
            EnvoyError::Rejected { rolled_back: false, .. } => {
                "there is no earlier configuration to go back to; correct what Envoy's words point at".to_owned()
            }
            EnvoyError::NotTaken { .. } => {
                "the machine may be overloaded; the next attempt looks again, or restart the sidecar".to_owned()
            }
            EnvoyError::NotLive { .. } => "`journalctl -u envoy@ID` says what Envoy waits for".to_owned(),
        }
    }

    fn class(&self) -> Class {
        match self {
            EnvoyError::Option { .. }
            | EnvoyError::SocketPath { .. }
            | EnvoyError::Json { .. }
            | EnvoyError::NotCarriedOut { .. }
            | EnvoyError::Sink { .. }
            | EnvoyError::Unheeded { .. }
            | EnvoyError::EmptyCa => Class::Config,
            EnvoyError::Missing { .. }
            | EnvoyError::NotExecutable { .. }
            | EnvoyError::NoCredentials
            | EnvoyError::NoToken
            | EnvoyError::NoTrustDomain
            | EnvoyError::Unreachable { .. }
            | EnvoyError::NotLive { .. } => Class::Unavailable,
            EnvoyError::Version { .. }
            | EnvoyError::Slow { .. }
            | EnvoyError::Answer { .. }
            | EnvoyError::Rejected { .. }
            | EnvoyError::NotTaken { .. } => Class::Failed,
        }
    }
}
