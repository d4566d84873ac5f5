//! The keys of Consul's opaque `proxy.config` that are for the bootstrap.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use serde_json::{Map, Value};

use crate::envoy::error::EnvoyError;

/// What they say.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Keys {
    /// `envoy_statsd_url`.
    pub statsd: Option<String>,
    /// `envoy_dogstatsd_url`.
    pub dogstatsd: Option<String>,
    /// `envoy_stats_tags`: tags with a fixed value.
    pub tags: Vec<(String, String)>,
    /// `envoy_prometheus_bind_addr`.
    pub prometheus: Option<SocketAddr>,
    /// `envoy_stats_bind_addr`.
    pub stats: Option<SocketAddr>,
    /// `envoy_ready_bind_addr`: what Consul's command takes as `-envoy-ready-bind-address`.
    pub ready: Option<SocketAddr>,
    /// `envoy_stats_flush_interval`, as Envoy spells it: seconds with an `s`.
    pub flush_interval: Option<String>,
    /// `envoy_tracing_json`.
    pub tracing: Option<Value>,
    /// `envoy_stats_config_json`: instead of every tag.
    pub stats_config: Option<Value>,
    /// `envoy_extra_static_clusters_json`.
    pub clusters: Vec<Value>,
    /// `envoy_extra_static_listeners_json`.
    pub listeners: Vec<Value>,
    /// `envoy_extra_stats_sinks_json`.
    pub sinks: Vec<Value>,
}

/// Keys of Consul's bootstrap that cannot be carried out, and why not.
const REFUSED: [(&str, &str); 2] = [
    ("envoy_bootstrap_json_tpl", "a template in the language of Consul's own program"),
    ("envoy_telemetry_collector_bind_socket_dir", "for a service that HashiCorp has ended"),
];

impl Keys {
    /// Reads `proxy.config`.
    ///
    /// # Errors
    /// `ENM-E010`, `ENM-E040`, `ENM-E041`.
    pub fn read(config: &Map<String, Value>) -> Result<Self, EnvoyError> {
        if let Some((key, why)) = REFUSED.into_iter().find(|(key, _)| text(config, key).is_some()) {
            return Err(EnvoyError::NotCarriedOut { key, why });
        }
        Ok(Keys {
            statsd: text(config, "envoy_statsd_url"),
            dogstatsd: text(config, "envoy_dogstatsd_url"),
            tags: tags(config)?,
            prometheus: listen(config, "envoy_prometheus_bind_addr")?,
            stats: listen(config, "envoy_stats_bind_addr")?,
            ready: listen(config, "envoy_ready_bind_addr")?,
            flush_interval: interval(config)?,
            tracing: object(config, "envoy_tracing_json")?,
            stats_config: object(config, "envoy_stats_config_json")?,
            clusters: list(config, "envoy_extra_static_clusters_json")?,
            listeners: list(config, "envoy_extra_static_listeners_json")?,
            sinks: list(config, "envoy_extra_stats_sinks_json")?,
        })
    }

    /// Envoy ends itself when two static clusters have one name.
    pub fn check_names(&self, own: &[Value]) -> Result<(), EnvoyError> {
        let key = "envoy_extra_static_clusters_json";
        let name = |cluster: &Value| cluster.get("name").and_then(Value::as_str).map(str::to_owned);
        let mut seen: BTreeSet<String> = own.iter().filter_map(name).collect();
        for cluster in &self.clusters {
            let name = name(cluster)
                .ok_or_else(|| EnvoyError::Json { key, why: "a cluster in it has no name".to_owned() })?;
            if !seen.insert(name.clone()) {
                return Err(EnvoyError::Json { key, why: format!("there is a cluster {name:?} already") });
            }
        }
        Ok(())
    }
}

fn text(config: &Map<String, Value>, key: &str) -> Option<String> {
    config.get(key).and_then(Value::as_str).filter(|text| !text.trim().is_empty()).map(str::to_owned)
}

/// `name=value`, or a name alone, whose value is then `1`.
fn tags(config: &Map<String, Value>) -> Result<Vec<(String, String)>, EnvoyError> {
    let key = "envoy_stats_tags";
    let Some(value) = config.get(key) else { return Ok(Vec::new()) };
    let wrong = || EnvoyError::option(key, value, "a list of NAME=VALUE");
    let list = value.as_array().ok_or_else(wrong)?;
    list.iter()
        .map(|tag| {
            let (name, value) =
                tag.as_str().map(|tag| tag.split_once('=').unwrap_or((tag, "1"))).ok_or_else(wrong)?;
            if name.is_empty() { Err(wrong()) } else { Ok((name.to_owned(), value.to_owned())) }
        })
        .collect()
}

fn listen(config: &Map<String, Value>, key: &'static str) -> Result<Option<SocketAddr>, EnvoyError> {
    let Some(value) = config.get(key) else { return Ok(None) };
    let Some(at) = text(config, key) else { return Ok(None) };
    at.parse().map(Some).map_err(|_| EnvoyError::option(key, value, "ADDRESS:PORT"))
}

/// As Consul's `10s` or `1m`; a number alone is of seconds.
fn interval(config: &Map<String, Value>) -> Result<Option<String>, EnvoyError> {
    let key = "envoy_stats_flush_interval";
    let Some(value) = config.get(key) else { return Ok(None) };
    let wrong = || EnvoyError::option(key, value, "a time between 1ms and 5m");
    let given = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let seconds = given.parse().map(std::time::Duration::from_secs);
    let time = seconds.or_else(|_| humantime::parse_duration(&given)).map_err(|_| wrong())?;
    // Envoy's own limits.
    if time.as_millis() == 0 || time.as_secs() > 300 {
        return Err(wrong());
    }
    Ok(Some(format!("{}s", time.as_secs_f64())))
}

/// One object, as text of JSON or written out in the service's file.
fn object(config: &Map<String, Value>, key: &'static str) -> Result<Option<Value>, EnvoyError> {
    let Some(value) = config.get(key) else { return Ok(None) };
    let parsed = match value {
        Value::String(text) if text.trim().is_empty() => return Ok(None),
        Value::String(text) => serde_json::from_str(text).map_err(|e| EnvoyError::json(key, &e))?,
        other => other.clone(),
    };
    let what = "it is not an object".to_owned();
    if parsed.is_object() { Ok(Some(parsed)) } else { Err(EnvoyError::Json { key, why: what }) }
}

/// Objects with commas between them, as Consul has it, or a whole list.
fn list(config: &Map<String, Value>, key: &'static str) -> Result<Vec<Value>, EnvoyError> {
    let Some(value) = config.get(key) else { return Ok(Vec::new()) };
    let parsed = match value {
        Value::String(text) if text.trim_start().starts_with('[') => serde_json::from_str(text),
        Value::String(text) => serde_json::from_str(&format!("[{}]", text.trim().trim_end_matches(','))),
        other => Ok(other.clone()),
    };
    let parsed = parsed.map_err(|e| EnvoyError::json(key, &e))?;
    match parsed {
        Value::Array(items) if items.iter().all(Value::is_object) => Ok(items),
        _ => Err(EnvoyError::Json { key, why: "it is not objects with commas between them".to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(config: Value) -> Result<Keys, EnvoyError> {
        Keys::read(config.as_object().unwrap())
    }

    #[test]
    fn lists_are_read_as_consul_writes_them() {
        let keys = read(json!({
            "envoy_extra_static_clusters_json": "{\"name\": \"a\"}, {\"name\": \"b\"},\n",
            "envoy_extra_static_listeners_json": "[{\"name\": \"l\"}]",
            "envoy_extra_stats_sinks_json": "",
            "envoy_stats_tags": ["team=core=x", "bare"],
            "envoy_stats_flush_interval": "1m",
            "envoy_prometheus_bind_addr": "0.0.0.0:9102",
            "protocol": "http",
        }))
        .unwrap();
        assert_eq!(keys.clusters, [json!({"name": "a"}), json!({"name": "b"})]);
        assert_eq!((keys.listeners.len(), keys.sinks.len()), (1, 0));
        let tags = [("team", "core=x"), ("bare", "1")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        assert_eq!(keys.tags, tags);
        assert_eq!(keys.flush_interval.as_deref(), Some("60s"));
        assert_eq!(keys.prometheus, Some("0.0.0.0:9102".parse().unwrap()));
        assert_eq!(read(json!({})).unwrap(), Keys::default());
        assert_eq!(read(json!({"envoy_bootstrap_json_tpl": ""})).unwrap(), Keys::default());
    }

    #[test]
    fn each_fault_names_its_key() {
        use crate::base::Explain;
        for (config, code) in [
            (json!({"envoy_tracing_json": "{"}), "ENM-E040"),
            (json!({"envoy_tracing_json": "[]"}), "ENM-E040"),
            (json!({"envoy_extra_static_clusters_json": "{} {}"}), "ENM-E040"),
            (json!({"envoy_extra_stats_sinks_json": "1"}), "ENM-E040"),
            (json!({"envoy_bootstrap_json_tpl": "{{ .ProxyID }}"}), "ENM-E041"),
            (json!({"envoy_stats_bind_addr": "localhost:1"}), "ENM-E010"),
            (json!({"envoy_stats_flush_interval": "6m"}), "ENM-E010"),
            (json!({"envoy_stats_tags": "a=b"}), "ENM-E010"),
        ] {
            let key = config.as_object().unwrap().keys().next().unwrap().clone();
            let error = read(config).unwrap_err();
            assert_eq!(error.code(), code, "{key}");
            assert!(error.to_string().contains(&key), "{error}");
        }
    }

    #[test]
    fn a_cluster_name_is_there_once() {
        let keys = |text: &str| read(json!({"envoy_extra_static_clusters_json": text})).unwrap();
        let own = [json!({"name": "local_agent"})];
        assert!(keys("{\"name\": \"x\"}").check_names(&own).is_ok());
        for bad in ["{}", "{\"name\": \"local_agent\"}", "{\"name\": \"x\"}, {\"name\": \"x\"}"] {
            assert!(keys(bad).check_names(&own).is_err(), "{bad}");
        }
    }
}
