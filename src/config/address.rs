//! At which address this host is reached by others, where its services do not say it themselves.

use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::value::{Port, Span};

/// How this host finds out at which address others reach it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AddressConfig {
    /// The address itself; then nobody is asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip: Option<IpAddr>,
    /// Who is asked, in this order; the first who knows counts.
    pub sources: Vec<AddressSource>,
    /// The name that others call this host by, for the source `dns`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The port at which this host calls itself, to see whether an address of that name is its own. Others
    /// must be able to reach it.
    pub check_port: Port,
    /// How often it is looked whether the address is still the same.
    pub recheck: Span,
}

/// Who may know an address of this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum AddressSource {
    /// The kernel: from where it would speak to Consul.
    Route,
    /// The platform: the address of the group `[platform] group`.
    Management,
    /// The name `name`, where it leads to this host.
    Dns,
}

impl Default for AddressConfig {
    #[expect(clippy::expect_used, reason = "the literal is a port")]
    fn default() -> Self {
        AddressConfig {
            ip: None,
            sources: vec![AddressSource::Route, AddressSource::Management, AddressSource::Dns],
            name: None,
            check_port: "15100".parse().expect("a port"),
            recheck: Span::seconds(60),
        }
    }
}

/// Everything that is wrong with `address` beyond its single values.
pub(super) fn address(address: &AddressConfig) -> Vec<(&'static [&'static str], String)> {
    let mut wrong: Vec<(&'static [&'static str], String)> = Vec::new();
    if let Some(ip) = address.ip.filter(|ip| ip.is_unspecified() || ip.is_loopback() || ip.is_multicast()) {
        wrong.push((&["address", "ip"], format!("nobody else reaches this host at {ip}")));
    }
    if let Some(name) = address.name.as_ref().filter(|name| !super::consul_rules::is_server_name(name)) {
        wrong.push((&["address", "name"], format!("{name:?} is not a host's name")));
    }
    if address.recheck.0.as_secs() < 1 {
        wrong.push((&["address", "recheck"], "it is a second at least".to_owned()));
    }
    wrong
}
