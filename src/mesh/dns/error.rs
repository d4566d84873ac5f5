//! What the resolver can run into.

use std::io;
use std::net::SocketAddr;

use crate::base::{Class, Explain};

/// Why the resolver cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    /// The address is not loopback.
    #[error("the resolver would listen on {0}, which other hosts can reach")]
    NotLoopback(SocketAddr),
    /// Somebody else listens there.
    #[error("cannot listen on {address} ({protocol}): the port is in use")]
    InUse {
        /// Where.
        address: SocketAddr,
        /// UDP or TCP.
        protocol: &'static str,
    },
    /// A privilege is missing.
    #[error("cannot listen on {address} ({protocol}): not permitted")]
    Denied {
        /// Where.
        address: SocketAddr,
        /// UDP or TCP.
        protocol: &'static str,
    },
    /// Anything else the system says.
    #[error("cannot listen on {address} ({protocol})")]
    Other {
        /// Where.
        address: SocketAddr,
        /// UDP or TCP.
        protocol: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// It cannot mark what it sends.
    #[error("the resolver at {address} cannot mark its packets, so no DNS is redirected to it")]
    Mute {
        /// Where it listens.
        address: SocketAddr,
        /// The system's answer.
        source: io::Error,
    },
}

impl DnsError {
    pub(super) fn new(address: SocketAddr, protocol: &'static str, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::AddrInUse => DnsError::InUse { address, protocol },
            io::ErrorKind::PermissionDenied => DnsError::Denied { address, protocol },
            _ => DnsError::Other { address, protocol, source },
        }
    }
}

impl Explain for DnsError {
    fn code(&self) -> &'static str {
        match self {
            DnsError::NotLoopback(_) => "ENM-M040",
            DnsError::InUse { .. } => "ENM-M041",
            DnsError::Denied { .. } => "ENM-M042",
            DnsError::Other { .. } => "ENM-M043",
            DnsError::Mute { .. } => "ENM-M038",
        }
    }

    fn hint(&self) -> String {
        match self {
            DnsError::NotLoopback(_) => "set `[dns] listen` to an address of 127.0.0.0/8".to_owned(),
            DnsError::InUse { address, .. } => format!(
                "`ss -lntup 'sport = :{}'` shows who listens there; end it, or set `[dns] listen` to another port",
                address.port()
            ),
            DnsError::Denied { address, .. } => format!(
                "port {} needs CAP_NET_BIND_SERVICE if it is below 1024; set `[dns] listen` to a higher port",
                address.port()
            ),
            DnsError::Other { .. } => {
                "check that the loopback interface is up and has this address".to_owned()
            }
            DnsError::Mute { .. } => "run with CAP_NET_ADMIN, which `SO_MARK` needs".to_owned(),
        }
    }

    fn class(&self) -> Class {
        match self {
            DnsError::NotLoopback(_) => Class::Config,
            DnsError::InUse { .. } | DnsError::Other { .. } => Class::Unavailable,
            DnsError::Denied { .. } | DnsError::Mute { .. } => Class::Privilege,
        }
    }
}
