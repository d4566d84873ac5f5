//! Whether a network namespace passes on what is for others, and what a link takes for loopback.

use std::fs;

use super::error::NetnsError;
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
