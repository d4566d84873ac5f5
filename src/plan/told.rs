//! What a sidecar's registration says about ports and logs, with the cluster's defaults mixed in
//! where Consul was asked, and by the service's file alone where it was not.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde_json::{Map, Value};

use super::{AccessLog, LogFormat, LogTarget};
use crate::config::ServiceConfig;

/// Keys of `proxy.config` with an address that a listener of the sidecar's own gets: metrics for
/// Prometheus, metrics as Envoy has them, readiness.
pub(super) const LISTEN_KEYS: [&str; 3] =
    ["envoy_prometheus_bind_addr", "envoy_stats_bind_addr", "envoy_ready_bind_addr"];

/// A key of `proxy.config` that Consul's own bootstrap has and ours has not.
pub(super) const COLLECTOR: &str = "envoy_telemetry_collector_bind_socket_dir";

/// What the registration says.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Told {
    /// `proxy.config`. What the service's file says counts before what Consul gives back, which is
    /// as old as the last registration.
    pub config: Map<String, Value>,
    /// `bind_port`: where the public listener is.
    pub bind_port: Option<u16>,
    /// The port that others dial, as registered.
    pub port: Option<u16>,
    /// `transparent_proxy.outbound_listener_port`, as registered.
    pub outbound_port: Option<u16>,
    /// Ports of `expose`, and of checks that Consul exposes.
    pub exposed: BTreeSet<u16>,
    /// `access_logs`.
    pub access_log: Option<AccessLog>,
}

impl Told {
    /// Of `service`, and what Consul gives back of its sidecar.
    pub fn of(service: &ServiceConfig, merged: Option<&Value>) -> Self {
        let at = |path: &str| merged.and_then(|merged| merged.pointer(path));
        let port_at = |path: &str| at(path).and_then(port);
        let mut config = at("/Proxy/Config").and_then(Value::as_object).cloned().unwrap_or_default();
        config.extend(service.proxy.config.clone());
        config.sort_keys();
        let paths = at("/Proxy/Expose/Paths").and_then(Value::as_array).into_iter().flatten();
        Told {
            bind_port: config.get("bind_port").and_then(port),
            port: port_at("/Port"),
            outbound_port: port_at("/Proxy/TransparentProxy/OutboundListenerPort"),
            exposed: paths.filter_map(|path| path.get("ListenerPort").and_then(port)).collect(),
            access_log: at("/Proxy/AccessLogs").and_then(access_log),
            config,
        }
    }

    /// Of a registration alone, whatever files say.
    fn of_registration(merged: &Value) -> Self {
        let port_at = |path: &str| merged.pointer(path).and_then(port);
        let config = merged.pointer("/Proxy/Config").and_then(Value::as_object).cloned().unwrap_or_default();
        let paths = merged.pointer("/Proxy/Expose/Paths").and_then(Value::as_array).into_iter().flatten();
        Told {
            bind_port: config.get("bind_port").and_then(port),
            port: port_at("/Port"),
            outbound_port: port_at("/Proxy/TransparentProxy/OutboundListenerPort"),
            exposed: paths.filter_map(|path| path.get("ListenerPort").and_then(port)).collect(),
            access_log: None,
            config,
        }
    }

    /// The listeners of the sidecar's own: key and address.
    pub fn listens(&self) -> impl Iterator<Item = (&'static str, SocketAddr)> + '_ {
        LISTEN_KEYS.into_iter().filter_map(|key| Some((key, self.config.get(key)?.as_str()?.parse().ok()?)))
    }

    /// Ports of the sidecar that are to be reached as they are, without a redirection.
    pub fn open_ports(&self) -> BTreeSet<u16> {
        self.exposed.iter().copied().chain(self.listens().map(|(_, at)| at.port())).collect()
    }

    /// Every port that this service's sidecar takes besides those that it is given.
    pub fn claimed(&self) -> impl Iterator<Item = u16> + '_ {
        self.open_ports().into_iter().chain(self.bind_port)
    }
}

/// The ports of a sidecar that somebody else runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RegisteredPorts {
    /// Of its public listener.
    pub inbound: Option<u16>,
    /// Of its outbound listener, where the registration names one.
    pub outbound: Option<u16>,
    /// Those that are to be reached as they are.
    pub open: BTreeSet<u16>,
}

impl RegisteredPorts {
    /// What `merged` says, the sidecar's registration as Consul gives it back.
    pub fn of(merged: &Value) -> Self {
        let told = Told::of_registration(merged);
        RegisteredPorts {
            inbound: told.bind_port.or(told.port),
            outbound: told.outbound_port,
            open: told.open_ports(),
        }
    }
}

/// A port, also one that is written as text or as a number with a fraction of nothing: Consul's
/// configuration passes through languages that know no other numbers. 0 is how Consul says none.
fn port(value: &Value) -> Option<u16> {
    let number = match value {
        Value::String(text) => text.trim().parse().ok()?,
        Value::Number(number) => match number.as_u64() {
            Some(whole) => u16::try_from(whole).ok()?,
            None => number.to_string().strip_suffix(".0")?.parse().ok()?,
        },
        _ => return None,
    };
    (number != 0).then_some(number)
}

fn access_log(logs: &Value) -> Option<AccessLog> {
    let text = |key: &str| logs.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
    if logs.get("Enabled").and_then(Value::as_bool) != Some(true) {
        return None;
    }
    let to = match (text("Type"), text("Path")) {
        (Some("stderr"), _) => LogTarget::Stderr,
        (Some("file"), Some(path)) => LogTarget::File(PathBuf::from(path)),
        _ => LogTarget::Stdout,
    };
    let json = text("JSONFormat").and_then(|text| serde_json::from_str(text).ok()).map(LogFormat::Json);
    let plain = || text("TextFormat").map(|text| LogFormat::Text(text.to_owned()));
    Some(AccessLog { to, format: json.or_else(plain).unwrap_or(LogFormat::Usual) })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn service(config: Value) -> ServiceConfig {
        serde_json::from_value(json!({"name": "api", "proxy": {"config": config}})).unwrap()
    }

    #[test]
    fn the_file_counts_before_what_consul_gives_back() {
        let merged = json!({"Port": 21000, "Proxy": {
            "Config": {"bind_port": 20000.0, "envoy_prometheus_bind_addr": "0.0.0.0:9102", "protocol": "http"},
            "TransparentProxy": {"OutboundListenerPort": 15007},
            "Expose": {"Paths": [{"ListenerPort": 21500, "ParsedFromCheck": true}, {"ListenerPort": 0}]},
            "AccessLogs": {"Enabled": true, "Type": "file", "Path": "/var/log/x", "JSONFormat": "{\"a\": \"%PROTOCOL%\"}"},
        }});
        let told = Told::of(&service(json!({"bind_port": "20001"})), Some(&merged));
        assert_eq!((told.bind_port, told.port, told.outbound_port), (Some(20001), Some(21000), Some(15007)));
        assert_eq!(told.config["protocol"], "http");
        assert_eq!(told.open_ports(), BTreeSet::from([9102, 21500]));
        let log = told.access_log.unwrap();
        assert_eq!(log.to, LogTarget::File("/var/log/x".into()));
        assert_eq!(log.format, LogFormat::Json(json!({"a": "%PROTOCOL%"})));
    }

    #[test]
    fn without_consul_the_file_is_all() {
        let told =
            Told::of(&service(json!({"bind_port": 0, "envoy_stats_bind_addr": "127.0.0.1:9000"})), None);
        assert_eq!((told.bind_port, told.outbound_port, told.access_log.clone()), (None, None, None));
        assert_eq!(told.claimed().collect::<Vec<_>>(), [9000]);
        let logs = json!({"Proxy": {"AccessLogs": {"Enabled": false, "Type": "stderr"}}});
        assert_eq!(Told::of(&service(json!({})), Some(&logs)).access_log, None);
    }
}
