//! What people write: the host file, its drop-ins, the service files, and the two legacy forms.
//!
//! The types here are the whole of the configuration, already parsed into values that cannot be
//! wrong on their own (a port is a number from 1 to 65535, a CIDR has no host bits). What only the
//! host can tell — whether a user exists, which port is free — is the planner's business.

mod host;
mod service;
pub mod value;

use std::path::PathBuf;

pub use host::{
    ConsulConfig, ControlPlane, DnsConfig, Driver, EnvoyConfig, HostConfig, PortsConfig, Profile,
    RegistrationMode, StaticConfig,
};
pub use service::{
    Bypass, Capture, Check, DnsMode, Inbound, Ipv6Policy, Legacy, LegacyForm, Locality, Mode, OnProxyFailure,
    ProxyConfig, ServiceConfig, Upstream, Weights,
};

use crate::base::Fault;

/// The configuration of one host, with everything that was wrong with it.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// The host file merged with its drop-ins.
    pub host: HostConfig,
    /// Every service whose file is good, sorted by id. Disabled ones are among them.
    pub services: Vec<ServiceConfig>,
    /// Files that are in error; each names file, line, column, code and hint. The services of the
    /// other files are unaffected.
    pub errors: Vec<Fault>,
    /// Things that are accepted and that a person should know.
    pub warnings: Vec<Fault>,
    /// Every file that was read, also those in error.
    pub sources: Vec<PathBuf>,
}
