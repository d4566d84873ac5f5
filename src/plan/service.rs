//! One service of the plan.

use std::net::IpAddr;
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
    /// Whether its listeners bind IPv6 as well as IPv4.
    pub ipv6: bool,
    /// Its folder, `/run/enmesh/<id>`, without the `--root` prefix.
    pub folder: PathBuf,
    /// Time that connections get to end.
    pub drain: Span,
    /// Consul's opaque `proxy.config`.
    pub config: serde_json::Map<String, Value>,
}

/// An explicit upstream.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct ExplicitUpstream {
    /// The destination.
    pub service: ServiceName,
    /// The port on 127.0.0.1.
    pub port: u16,
}
