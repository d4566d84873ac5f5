//! Why a service cannot be planned. The other services are planned all the same.

use std::net::{IpAddr, SocketAddr};

use ipnet::Ipv4Net;

use crate::base::{Class, Explain};
use crate::config::value::{PortRange, ServiceId, UserSpec};

/// What the planner can refuse.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// The sidecars' user does not exist.
    #[error("the sidecars' user `{user}` does not exist on this host")]
    NoSidecarUser {
        /// As configured.
        user: UserSpec,
    },
    /// A range has ports that the platform reserves.
    #[error("`{key}` has port {port}, which Azure Container Instances reserves for itself")]
    ReservedPorts {
        /// The key of the host file.
        key: &'static str,
        /// The first such port.
        port: u16,
    },
    /// A service wants a port that the platform reserves (a warning).
    #[error("service `{id}`: Azure Container Instances reserves port {port} for itself")]
    ReservedPort {
        /// The service.
        id: ServiceId,
        /// The port.
        port: u16,
    },
    /// A user of a service file does not exist.
    #[error("service `{id}`: the user `{user}` of `{field}` does not exist on this host")]
    NoUser {
        /// The service.
        id: ServiceId,
        /// As configured.
        user: UserSpec,
        /// Which key names it.
        field: &'static str,
    },
    /// Nobody knows which user a unit runs as.
    #[error("service `{id}`: no unit `{unit}` is known on this host")]
    NoUnit {
        /// The service.
        id: ServiceId,
        /// The unit.
        unit: String,
    },
    /// A port name that `/etc/services` does not have.
    #[error("service `{id}`: `/etc/services` knows no TCP port named `{name}`")]
    NoPortName {
        /// The service.
        id: ServiceId,
        /// The name.
        name: String,
    },
    /// Two services would capture the same traffic.
    #[error("service `{id}` and service `{other}` both capture {what}")]
    Overlap {
        /// The service that is left out.
        id: ServiceId,
        /// The one that stays.
        other: ServiceId,
        /// What both want.
        what: String,
    },
    /// Two units run as one user, by which their connections cannot be told apart.
    #[error(
        "service `{id}` and service `{other}` name units that both run as uid {uid} ({unit} is the second)"
    )]
    SharedUser {
        /// The service that is left out.
        id: ServiceId,
        /// The one that stays.
        other: ServiceId,
        /// The unit of the one that is left out.
        unit: String,
        /// The user.
        uid: u32,
    },
    /// The service would capture its own sidecar.
    #[error("service `{id}` captures the user that sidecars run as (uid {uid})")]
    CapturesSidecar {
        /// The service.
        id: ServiceId,
        /// The user.
        uid: u32,
    },
    /// A stranger listens on a port that was given to a sidecar.
    #[error("service `{id}`: another program listens on port {port}, its sidecar's {kind} port")]
    PortTaken {
        /// The service.
        id: ServiceId,
        /// `outbound` or `inbound`.
        kind: &'static str,
        /// The port.
        port: u16,
    },
    /// `bind_port` is a port that somebody else has.
    #[error("service `{id}`: `bind_port` is {port}, which is {whose} already")]
    BindPort {
        /// The service.
        id: ServiceId,
        /// The port.
        port: u16,
        /// Whose it is.
        whose: String,
    },
    /// Two sidecars would show their metrics at one address (a warning).
    #[error(
        "service `{id}`: `{key}` is {at}, where the sidecar of `{other}` listens already, so it is left out"
    )]
    ListenTaken {
        /// The service that goes without.
        id: ServiceId,
        /// The one that has it.
        other: ServiceId,
        /// The key of `proxy.config`.
        key: &'static str,
        /// The address.
        at: std::net::SocketAddr,
    },
    /// A key of `proxy.config` without an effect (a warning).
    #[error("service `{id}`: `{key}` has no effect: it is for a service that HashiCorp has ended")]
    NoEffect {
        /// The service.
        id: ServiceId,
        /// The key.
        key: &'static str,
    },
    /// No port is left.
    #[error("service `{id}`: no {kind} port is left in {range}")]
    PortsUsedUp {
        /// The service.
        id: ServiceId,
        /// `outbound` or `inbound`.
        kind: &'static str,
        /// The range.
        range: PortRange,
    },
    /// No virtual IP is left.
    #[error("no virtual IP is left in {pool}")]
    VirtualIpsUsedUp {
        /// The pool.
        pool: Ipv4Net,
    },
    /// The host has an address in the pool of namespaces.
    #[error(
        "service `{id}`: the host has the address {address} ({interface}) in {pool}, where namespaces get theirs from"
    )]
    PoolInUse {
        /// The service.
        id: ServiceId,
        /// The pool.
        pool: Ipv4Net,
        /// The host's address.
        address: IpAddr,
        /// The interface that has it.
        interface: String,
    },
    /// No network is left for another namespace.
    #[error("service `{id}`: no network for another namespace is left in {pool}")]
    NamespacesUsedUp {
        /// The service.
        id: ServiceId,
        /// The pool.
        pool: Ipv4Net,
    },
    /// The last good configuration is used instead of a bad one (a warning).
    #[error("service `{id}` keeps its last good configuration, because its file is in error")]
    KeptLastGood {
        /// The service.
        id: ServiceId,
    },
    /// A captured port is bypassed as well (a warning).
    #[error(
        "service `{id}`: its port {port} is among `bypass.inbound_ports`, so connections to it arrive in the clear"
    )]
    PortBypassed {
        /// The service.
        id: ServiceId,
        /// The port.
        port: u16,
    },
    /// A registration holds a token (a warning).
    #[error(
        "service `{id}`: the token in its file is not used, because it would show wherever the registration does"
    )]
    TokenInFile {
        /// The service.
        id: ServiceId,
    },
    /// The port over which somebody is logged in would be captured.
    #[error("service `{id}` captures port {port}, over which {peer} is logged in ({server})")]
    CapturesSsh {
        /// The service.
        id: ServiceId,
        /// The port.
        port: u16,
        /// Who.
        peer: SocketAddr,
        /// Who serves the session.
        server: String,
    },
    /// The same, and it was asked for (a warning).
    #[error(
        "service `{id}` captures port {port}, over which {peer} is logged in ({server}), as --force says"
    )]
    SshForced {
        /// The service.
        id: ServiceId,
        /// The port.
        port: u16,
        /// Who.
        peer: SocketAddr,
        /// Who serves the session.
        server: String,
    },
    /// Nothing is refused while the sidecar is away (a warning).
    #[error(
        "service `{id}`: on_proxy_failure = \"open\" sends traffic in the clear while its sidecar is not live"
    )]
    FailsOpen {
        /// The service.
        id: ServiceId,
    },
}

impl Explain for PlanError {
    fn code(&self) -> &'static str {
        match self {
            PlanError::NoSidecarUser { .. } => "ENM-P001",
            PlanError::NoUser { .. } => "ENM-P002",
            PlanError::NoUnit { .. } => "ENM-P003",
            PlanError::NoPortName { .. } => "ENM-P004",
            PlanError::Overlap { .. } => "ENM-P005",
            PlanError::CapturesSidecar { .. } => "ENM-P006",
            PlanError::PortTaken { .. } => "ENM-P007",
            PlanError::PortsUsedUp { .. } => "ENM-P008",
            PlanError::VirtualIpsUsedUp { .. } => "ENM-P009",
            PlanError::KeptLastGood { .. } => "ENM-P011",
            PlanError::ReservedPorts { .. } => "ENM-P070",
            PlanError::ReservedPort { .. } => "ENM-P071",
            PlanError::PortBypassed { .. } => "ENM-P012",
            PlanError::FailsOpen { .. } => "ENM-P013",
            PlanError::TokenInFile { .. } => "ENM-P014",
            PlanError::BindPort { .. } => "ENM-P020",
            PlanError::ListenTaken { .. } => "ENM-P021",
            PlanError::NoEffect { .. } => "ENM-P022",
            PlanError::CapturesSsh { .. } => "ENM-P030",
            PlanError::SshForced { .. } => "ENM-P031",
            PlanError::PoolInUse { .. } => "ENM-P050",
            PlanError::NamespacesUsedUp { .. } => "ENM-P051",
            PlanError::SharedUser { .. } => "ENM-P060",
        }
    }

    fn hint(&self) -> String {
        match self {
            PlanError::NoSidecarUser { user } => format!(
                "create it (`useradd --system --no-create-home --shell /usr/sbin/nologin {user}`, or install the package, which does), or set [envoy] user"
            ),
            PlanError::ReservedPorts { .. } => {
                "nobody outside the group would reach it; leave the key out, or stay within 15000 to 15099".to_owned()
            }
            PlanError::ReservedPort { .. } => "let the app use another port; 8080 is free".to_owned(),
            PlanError::NoUser { user, .. } => {
                format!("create the user `{user}` first, or correct the name; `getent passwd {user}` must find it")
            }
            PlanError::NoUnit { unit, .. } => {
                format!("install the unit first, or correct its name; `systemctl cat {unit}` must find it")
            }
            PlanError::NoPortName { .. } => "write the port as a number".to_owned(),
            PlanError::Overlap { .. } => {
                "give each service a user (scope = \"user:NAME\") and a port of its own, or a namespace of its own \
                 (\"netns:NAME\"); at most one service may have scope = \"host\", and one inbound = \"all\"".to_owned()
            }
            PlanError::SharedUser { unit, .. } => format!(
                "connections are told apart by their user: give {unit} another one (`User=`, or `DynamicUser=yes`), or run \
                 the two in network namespaces of their own and name those (scope = \"netns:NAME\")"
            ),
            PlanError::CapturesSidecar { .. } => {
                "run the application under a user of its own: what runs as the sidecars' user bypasses the mesh".to_owned()
            }
            PlanError::PortTaken { port, kind, .. } => format!(
                "stop the other program (`ss -ltnp 'sport = :{port}'` names it), or move [ports] {kind} in the host file"
            ),
            PlanError::BindPort { .. } => {
                "give each service a `bind_port` of its own, or leave it out: enmesh then picks a free one".to_owned()
            }
            PlanError::ListenTaken { key, .. } => {
                format!("give each service of this host a `{key}` of its own in `[proxy] config`")
            }
            PlanError::NoEffect { key, .. } => {
                format!("take `{key}` out of `[proxy] config` or of Consul's proxy-defaults")
            }
            PlanError::CapturesSsh { port, .. } => format!(
                "nobody could log in there any more: add {port} to `capture.bypass.inbound_ports`, or say that it is \
                 meant with `enmesh apply --force` (and `--confirm 60s`, to be let in again if it was not)"
            ),
            PlanError::SshForced { port, .. } => format!(
                "sessions that are open live on; a new one to port {port} has to speak mutual TLS to the sidecar"
            ),
            PlanError::PortsUsedUp { kind, .. } => format!("widen [ports] {kind} in the host file"),
            PlanError::VirtualIpsUsedUp { .. } => "widen virtual_ips in the host file".to_owned(),
            PlanError::PoolInUse { .. } => {
                "give namespaces another network that is used nowhere: `pool` in [namespaces] of the host file".to_owned()
            }
            PlanError::NamespacesUsedUp { .. } => "widen `pool` in [namespaces] of the host file".to_owned(),
            PlanError::KeptLastGood { .. } => {
                "correct the file as the error above says; `enmesh check` validates it".to_owned()
            }
            PlanError::PortBypassed { port, .. } => {
                format!("take {port} out of bypass.inbound_ports, or set inbound = \"none\" to say that it is meant")
            }
            PlanError::TokenInFile { .. } => {
                "put the token into a file that only root can read, and name it as [consul] token_file".to_owned()
            }
            PlanError::FailsOpen { .. } => {
                "use \"closed\" unless being reachable matters more than being private".to_owned()
            }
        }
    }

    fn class(&self) -> Class {
        match self {
            PlanError::PortTaken { .. } | PlanError::NoUnit { .. } => Class::Unavailable,
            _ => Class::Config,
        }
    }
}
