//! One service of the plan.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use serde::Serialize;
use serde_json::Value;

use super::SpiffeId;
use crate::config::value::{Port, ServiceId, ServiceName, Span};

/// What should be true for one service.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ServicePlan {
    /// Unique on this host.
    pub id: ServiceId,
    /// The service's name in the mesh.
    pub name: ServiceName,
    /// Where the app listens; `None` for a client-only service.
    pub port: Option<Port>,
    /// The address other hosts reach this one at.
    pub address: Option<IpAddr>,
    /// Its identity in certificates.
    pub identity: SpiffeId,
    /// Its Envoy.
    pub sidecar: SidecarPlan,
    /// Listeners on loopback that lead to one service each.
    pub upstreams: Vec<ExplicitUpstream>,
    /// The registration in Consul's file form (`{"service": {…}}`, snake_case).
    pub registration: Value,
}

/// The Envoy of one service.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SidecarPlan {
    /// The user it runs as.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Envoy's program.
    pub program: PathBuf,
    /// The outbound listener's port on loopback; `None` in mode `direct`.
    pub outbound_port: Option<u16>,
    /// The public listener's port; `None` for a client-only service.
    pub inbound_port: Option<u16>,
    /// Whether it has a network namespace for itself, in which none of the host's addresses is its own.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub apart: bool,
    /// Whether its listeners bind IPv6 as well as IPv4.
    pub ipv6: bool,
    /// Its folder, `/run/enmesh/<id>`, without the `--root` prefix.
    pub folder: PathBuf,
    /// Time that connections get to end.
    pub drain: Span,
    /// Consul's opaque `proxy.config`.
    pub config: serde_json::Map<String, Value>,
    /// Who tells it what to do.
    pub xds: Xds,
    /// The log that Consul's `AccessLogs` ask for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access_log: Option<AccessLog>,
}

/// A log of connections and requests (Consul: `AccessLogs` of `proxy-defaults`).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AccessLog {
    /// Where it goes.
    pub to: LogTarget,
    /// How a line looks.
    pub format: LogFormat,
}

/// Where a log goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogTarget {
    /// Envoy's output.
    Stdout,
    /// Envoy's other output.
    Stderr,
    /// A file.
    File(PathBuf),
}

/// How a line of a log looks, in Envoy's command operators.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// As it is unless somebody says otherwise: JSON.
    Usual,
    /// Text.
    Text(String),
    /// An object.
    Json(Value),
}

/// Who tells a sidecar what to do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Xds {
    /// Files that enmesh writes.
    #[default]
    Files,
    /// Consul, over gRPC.
    Ads(Ads),
}

/// Consul's xDS, as this host reaches it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Ads {
    /// Where it is.
    pub server: AdsServer,
    /// PEM of the CA that its certificate is from; `None` without TLS.
    pub ca_pem: Option<String>,
    /// Whether calls carry an ACL token.
    pub token: bool,
    /// The catalog's node of the service, where no agent knows it.
    pub node_name: Option<String>,
}

/// Where Consul's xDS is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AdsServer {
    /// Address and port: Envoy's static clusters take no names.
    Tcp(SocketAddr),
    /// A unix socket.
    Unix(PathBuf),
}

/// An explicit upstream.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct ExplicitUpstream {
    /// The destination.
    pub service: ServiceName,
    /// The port on 127.0.0.1.
    pub port: u16,
}
