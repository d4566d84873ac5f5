//! What the planner is told about the host: the inputs that configuration cannot know.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Allocations, Generation, MeshView, Xds};
use crate::config::value::ServiceId;

/// Facts about one host at one moment.
#[derive(Debug, Clone, Default)]
pub struct HostFacts {
    /// The host's name.
    pub hostname: String,
    /// Users of `/etc/passwd`, by name.
    pub users: BTreeMap<String, User>,
    /// TCP port names of `/etc/services`.
    pub port_names: BTreeMap<String, u16>,
    /// Addresses of the host, in the kernel's order, loopback left out.
    pub addresses: Vec<HostAddress>,
    /// The source address of the default route.
    pub default_source: Option<IpAddr>,
    /// Whether `::1` can be bound.
    pub ipv6: bool,
    /// Whether systemd runs this host, or enmesh supervises by itself.
    pub systemd: bool,
    /// Envoy's program.
    pub envoy: Option<PathBuf>,
    /// TCP ports on which somebody listens who is not one of our sidecars.
    pub foreign_ports: BTreeSet<u16>,
    /// Users that run the units named in `unit:` scopes; `None` for one that is there only while its unit
    /// runs (`DynamicUser=`), which it does not.
    pub unit_users: BTreeMap<String, Option<u32>>,
    /// Ports and virtual IPs given out before.
    pub allocations: Allocations,
    /// The generation in force.
    pub previous: Option<Generation>,
    /// Who is out there.
    pub mesh: MeshView,
    /// Whether the mesh is Consul's, and no peers file's.
    pub consul: bool,
    /// Who tells the sidecars what to do.
    pub xds: Xds,
    /// The sidecars' registrations as Consul gives them back, with the cluster's defaults mixed in.
    pub merged: BTreeMap<ServiceId, Value>,
    /// Who is logged in over SSH.
    pub ssh_sessions: BTreeSet<SshSession>,
    /// Whether their ports may be captured all the same.
    pub force: bool,
    /// Services whose file is in error and whose last good plan is to stay: their configuration as
    /// it was when it was good.
    pub last_good: BTreeMap<ServiceId, crate::config::ServiceConfig>,
}

/// Somebody who is logged in over SSH.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SshSession {
    /// Where from.
    pub peer: SocketAddr,
    /// To which address of this host, and which port.
    pub local: SocketAddr,
    /// Who serves it, such as `sshd (process 123)`.
    pub server: String,
}

/// A line of `/etc/passwd`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct User {
    /// Numeric user.
    pub uid: u32,
    /// Its primary group.
    pub gid: u32,
}

/// An address of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostAddress {
    /// The interface.
    pub interface: String,
    /// The address.
    pub address: IpAddr,
}
