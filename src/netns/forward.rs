//! Whether a network namespace passes on what is for others, and what a link takes for loopback.

use std::fs;

use super::error::NetnsError;
use super::namespace::Namespace;
use crate::base::Fault;

/// The kernel shows each thread its own namespace's here.
const FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";

/// Whether the calling thread's namespace passes IPv4 on between its links.
///
/// # Errors
/// `ENM-N032` the setting cannot be read.
pub fn forwards() -> Result<bool, Fault> {
    let text = fs::read_to_string(FORWARD).map_err(NetnsError::setting)?;
    Ok(text.trim() != "0")
}

/// Has it do so, or not.
///
/// # Errors
/// `ENM-N032` the setting cannot be written.
pub fn set_forwarding(on: bool) -> Result<(), Fault> {
    fs::write(FORWARD, if on { "1\n" } else { "0\n" }).map_err(|e| NetnsError::setting(e).into())
}

/// Lets packets that come in by the link `name` be led to loopback, as rules say. A link that is gone takes that along.
///
/// # Errors
/// `ENM-N032` the setting cannot be written.
pub fn lead_to_loopback(name: &str) -> Result<bool, Fault> {
    let path = format!("/proc/sys/net/ipv4/conf/{name}/route_localnet");
    if fs::read_to_string(&path).map_err(NetnsError::setting)?.trim() == "1" {
        return Ok(false);
    }
    fs::write(&path, "1\n").map_err(NetnsError::setting)?;
    Ok(true)
}

/// What hosts are tuned with and a new namespace has its defaults for.
const TUNED: [&str; 8] = [
    "core/somaxconn",
    "ipv4/ip_local_port_range",
    "ipv4/ip_local_reserved_ports",
    "ipv4/ip_unprivileged_port_start",
    "ipv4/tcp_keepalive_time",
    "ipv4/tcp_keepalive_intvl",
    "ipv4/tcp_keepalive_probes",
    "ipv4/tcp_max_syn_backlog",
];

/// Gives `namespace` the settings of the calling thread's that matter to applications. What cannot be set stays as it is:
/// an application works with the defaults, too.
///
/// # Errors
/// As [`Namespace::run`].
pub fn tune_alike(namespace: &Namespace) -> Result<(), Fault> {
    let path = |name: &str| format!("/proc/sys/net/{name}");
    let own = TUNED.map(|name| fs::read_to_string(path(name)).ok());
    namespace.run(|| {
        for (name, value) in TUNED.iter().zip(own) {
            let there = fs::read_to_string(path(name)).ok();
            if let Some(value) = value.filter(|value| there.is_some_and(|there| there != *value))
                && let Err(error) = fs::write(path(name), value)
            {
                tracing::debug!(%error, name, %namespace, "a setting of the host's does not count in a namespace");
            }
        }
    })
}
