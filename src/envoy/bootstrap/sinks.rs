//! Where metrics are sent to.

use serde_json::{Value, json};

use super::keys::Keys;
use crate::envoy::error::EnvoyError;
use crate::envoy::typed::{address, extension};
use crate::plan::ServicePlan;

/// The sinks that `keys` ask for: StatsD, its DogStatsD form, and further ones as they stand.
pub fn sinks(service: &ServicePlan, keys: &Keys) -> Result<Vec<Value>, EnvoyError> {
    let mut sinks = Vec::new();
    let kinds = [
        ("envoy_statsd_url", &keys.statsd, "envoy.stat_sinks.statsd", "StatsdSink"),
        ("envoy_dogstatsd_url", &keys.dogstatsd, "envoy.stat_sinks.dog_statsd", "DogStatsdSink"),
    ];
    for (key, url, name, message) in kinds {
        if let Some(url) = url {
            let at = destination(service, key, url)?;
            sinks.push(extension(
                name,
                &format!("envoy.config.metrics.v3.{message}"),
                json!({"address": at}),
            ));
        }
    }
    sinks.extend(keys.sinks.iter().cloned());
    Ok(sinks)
}

/// `udp://ADDRESS:PORT` or `unix:///PATH`; `$HOST_IP` and `${HOST_IP}` stand for this host's
/// address. Other variables are those of the program that would write the bootstrap; here that is a
/// daemon, in whose environment nobody would look for them.
fn destination(service: &ServicePlan, key: &'static str, url: &str) -> Result<Value, EnvoyError> {
    let wrong = |why: &str| EnvoyError::Sink { key, url: url.to_owned(), why: why.to_owned() };
    let mut expanded = url.to_owned();
    for variable in ["${HOST_IP}", "$HOST_IP"] {
        if expanded.contains(variable) {
            let own = service.address.ok_or_else(|| wrong("the service's address is not known"))?;
            let own = if own.is_ipv6() { format!("[{own}]") } else { own.to_string() };
            expanded = expanded.replace(variable, &own);
        }
    }
    if expanded.contains('$') {
        return Err(wrong("HOST_IP is the only variable in it that has a meaning"));
    }
    if let Some(path) = expanded.strip_prefix("unix://") {
        return match path.starts_with('/') {
            true => Ok(json!({"pipe": {"path": path}})),
            false => Err(wrong("the path of the socket is not absolute")),
        };
    }
    let at = expanded.strip_prefix("udp://").ok_or_else(|| wrong("it is neither udp:// nor unix://"))?;
    let at: std::net::SocketAddr =
        at.trim_end_matches('/').parse().map_err(|_| wrong("udp:// takes an IP address and a port"))?;
    let mut socket = address(at.ip(), at.port());
    if let Some(fields) = socket.pointer_mut("/socket_address").and_then(Value::as_object_mut) {
        fields.insert("protocol".to_owned(), json!("UDP"));
    }
    Ok(socket)
}
