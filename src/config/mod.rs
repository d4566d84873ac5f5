//! What people write: the host file, its drop-ins, the service files, and the two legacy forms.
//!
//! The types here are the whole of the configuration, already parsed into values that cannot be
//! wrong on their own (a port is a number from 1 to 65535, a CIDR has no host bits). What only the
//! host can tell — whether a user exists, which port is free — is the planner's business.

mod address;
mod check;
mod consul_rules;
mod de;
mod environment;
mod error;
mod host;
mod host_rules;
mod legacy;
mod load;
mod node;
mod parse;
mod platform;
mod rules;
mod schema;
mod service;
mod source;
mod stamp;
pub mod value;

use std::path::PathBuf;

pub use address::{AddressConfig, AddressSource};
pub use check::{Check, CheckStatus};
pub use environment::Described;
pub use host::{
    AtStop, ConsulConfig, ControlPlane, DnsConfig, Driver, EnvoyConfig, HostConfig, LoginConfig,
    NamespacesConfig, PortsConfig, Profile, ReadinessConfig, RegistrationMode, StaticConfig, StopConfig,
};
pub use load::{
    consul_from_environment, is_of_environment, load, load_beside, load_path, unknown_variables, variables,
    watched_paths,
};
pub use platform::{IdentityConfig, PlatformConfig, ReapConfig, is_group, is_scope};
pub use schema::{schema_host, schema_service};
pub use service::{
    Bypass, Capture, DnsMode, Inbound, Ipv6Policy, Legacy, LegacyForm, Locality, Mode, OnProxyFailure,
    ProxyConfig, ServiceConfig, Upstream, Weights,
};
pub use stamp::stamp;

use crate::base::Fault;

/// The configuration of one host, with everything that was wrong with it.
#[derive(Debug, Clone)]
pub struct Config {
    /// The host file merged with its drop-ins and filled from the environment.
    pub host: HostConfig,
    /// Whether `host` is what was written. When not, it holds defaults in part: keep the settings
    /// that are in force and do not converge on these.
    pub host_ok: bool,
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

impl Default for Config {
    fn default() -> Self {
        Config {
            host: HostConfig::default(),
            host_ok: true,
            services: Vec::new(),
            errors: Vec::new(),
            warnings: Vec::new(),
            sources: Vec::new(),
        }
    }
}
