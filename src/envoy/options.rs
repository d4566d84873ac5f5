//! What of Consul's opaque `proxy.config` means something to this room.

use std::net::IpAddr;
use std::time::Duration;

use serde_json::{Map, Value};

use super::error::EnvoyError;
use crate::base::Fault;
use crate::plan::Protocol;

/// Values of `protocol`; Consul takes the empty one for `tcp`, in either case of the letters.
const PROTOCOLS: [(&str, Protocol); 5] = [
    ("", Protocol::Tcp),
    ("tcp", Protocol::Tcp),
    ("http", Protocol::Http),
    ("http2", Protocol::Http2),
    ("grpc", Protocol::Grpc),
];
/// Values of `balance_inbound_connections`.
const BALANCES: [(&str, bool); 2] = [("", false), ("exact_balance", true)];

/// The settings of one sidecar. Consul's names where Consul has one; keys that are not known here
/// are Consul's business and pass unseen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyOptions {
    /// `bind_address`: the one address of the public listener. Otherwise it listens on all.
    pub bind_address: Option<IpAddr>,
    /// `local_connect_timeout_ms`: how long a connection to the app may take; 5 s as in Consul.
    pub local_connect_timeout: Duration,
    /// `local_request_timeout_ms`: how long the app may take to answer a request; zero, as in Consul, for
    /// as long as it likes.
    pub local_request_timeout: Duration,
    /// `local_idle_timeout_ms`: how long nothing may move in a request; zero for ever. Unless set,
    /// Envoy's five minutes.
    pub local_idle_timeout: Option<Duration>,
    /// `protocol`: what the app speaks, whatever the mesh says of the service.
    pub protocol: Option<Protocol>,
    /// `balance_inbound_connections = "exact_balance"`: connections are spread evenly over the threads.
    pub balance_inbound: bool,
    /// `max_inbound_connections`: more at a time are refused. No limit unless set.
    pub max_inbound_connections: Option<u32>,
    /// `envoy_concurrency`: worker threads; 2, as consul-dataplane starts Envoy.
    pub concurrency: u32,
    /// `envoy_access_log`: whether each inbound connection is logged with its caller's identity.
    pub access_log: bool,
}

impl Default for ProxyOptions {
    fn default() -> Self {
        ProxyOptions {
            bind_address: None,
            local_connect_timeout: Duration::from_secs(5),
            local_request_timeout: Duration::ZERO,
            local_idle_timeout: None,
            protocol: None,
            balance_inbound: false,
            max_inbound_connections: None,
            concurrency: 2,
            access_log: true,
        }
    }
}

impl ProxyOptions {
    /// Reads `proxy.config`. As in Consul, numbers and booleans may be written as strings.
    ///
    /// # Errors
    /// `ENM-E010`: a value of one of the keys above does not fit.
    pub fn read(config: &Map<String, Value>) -> Result<Self, Fault> {
        let mut options = ProxyOptions::default();
        if let Some(value) = config.get("bind_address") {
            options.bind_address = Some(parse("bind_address", value, "an IP address")?);
        }
        if let Some(milliseconds) = number(config, "local_connect_timeout_ms")? {
            options.local_connect_timeout = Duration::from_millis(milliseconds.into());
        }
        if let Some(time) = milliseconds(config, "local_request_timeout_ms")? {
            options.local_request_timeout = time;
        }
        options.local_idle_timeout = milliseconds(config, "local_idle_timeout_ms")?;
        options.protocol = choice(config, "protocol", &PROTOCOLS, "tcp, http, http2 or grpc")?;
        options.balance_inbound =
            choice(config, "balance_inbound_connections", &BALANCES, "\"exact_balance\"")?.unwrap_or(false);
        options.max_inbound_connections = number(config, "max_inbound_connections")?;
        if let Some(threads) = number(config, "envoy_concurrency")? {
            options.concurrency = threads;
        }
        if let Some(value) = config.get("envoy_access_log") {
            options.access_log = parse("envoy_access_log", value, "true or false")?;
        }
        Ok(options)
    }
}

fn number(config: &Map<String, Value>, key: &'static str) -> Result<Option<u32>, Fault> {
    let Some(value) = config.get(key) else { return Ok(None) };
    let number: u32 = parse(key, value, "a whole number above 0")?;
    if number == 0 {
        return Err(EnvoyError::option(key, value, "a whole number above 0").into());
    }
    Ok(Some(number))
}

fn milliseconds(config: &Map<String, Value>, key: &'static str) -> Result<Option<Duration>, Fault> {
    let Some(value) = config.get(key) else { return Ok(None) };
    let milliseconds: u32 = parse(key, value, "a whole number of milliseconds")?;
    Ok(Some(Duration::from_millis(milliseconds.into())))
}

fn choice<T: Copy>(
    config: &Map<String, Value>,
    key: &'static str,
    choices: &[(&str, T)],
    wanted: &'static str,
) -> Result<Option<T>, Fault> {
    let Some(value) = config.get(key) else { return Ok(None) };
    let chosen = value.as_str().and_then(|text| {
        choices.iter().find(|(name, _)| name.eq_ignore_ascii_case(text)).map(|(_, choice)| *choice)
    });
    chosen.map(Some).ok_or_else(|| EnvoyError::option(key, value, wanted).into())
}

fn parse<T: std::str::FromStr>(key: &'static str, value: &Value, wanted: &'static str) -> Result<T, Fault> {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    text.parse().map_err(|_| EnvoyError::option(key, value, wanted).into())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(config: Value) -> Result<ProxyOptions, Fault> {
        ProxyOptions::read(config.as_object().unwrap())
    }

    #[test]
    fn reads_what_consul_accepts() {
        let options = read(json!({
            "bind_address": "10.0.0.1", "local_connect_timeout_ms": "250",
            "max_inbound_connections": 7, "envoy_access_log": "false", "protocol": "HTTP",
            "local_request_timeout_ms": "1500", "local_idle_timeout_ms": 0,
            "balance_inbound_connections": "exact_balance"
        }))
        .unwrap();
        assert_eq!(options.protocol, Some(Protocol::Http));
        assert_eq!(options.local_request_timeout, Duration::from_millis(1500));
        assert_eq!(options.local_idle_timeout, Some(Duration::ZERO));
        assert!(options.balance_inbound);
        assert_eq!(options.bind_address, Some("10.0.0.1".parse().unwrap()));
        assert_eq!(options.local_connect_timeout, Duration::from_millis(250));
        assert_eq!(options.max_inbound_connections, Some(7));
        assert!(!options.access_log);
        assert_eq!(read(json!({})).unwrap(), ProxyOptions::default());
    }

    #[test]
    fn a_value_that_does_not_fit_is_named() {
        for bad in [
            json!({"bind_address": "eth0"}),
            json!({"envoy_concurrency": 0}),
            json!({"envoy_concurrency": -1}),
            json!({"protocol": "udp"}),
            json!({"balance_inbound_connections": true}),
            json!({"local_request_timeout_ms": -1}),
        ] {
            let fault = read(bad).unwrap_err();
            assert_eq!(fault.code, "ENM-E010");
            assert!(fault.message.contains("proxy.config"), "{}", fault.message);
        }
    }
}
