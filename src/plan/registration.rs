//! A service's registration, in the form of Consul's definition files.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::config::value::AddressSpec;
use crate::config::{Check, LegacyForm, Mode, ServiceConfig, Upstream};

/// The registration of `service` in Consul's file form: `{"service": {…}}`, snake_case, keys sorted.
///
/// It holds what the configuration says. What only the host can tell (the address for `auto`, the
/// sidecar's ports) is the planner's to add, and fields that the server's version does not know are
/// the registry's to take out. A field is left out where Consul's default is the same.
pub fn registration(service: &ServiceConfig) -> Value {
    let mut fields = match &service.legacy {
        Some(legacy) if legacy.form == LegacyForm::Plain => legacy.fields.clone(),
        _ => own_fields(service),
    };
    fields.insert("name".to_owned(), json!(service.name));
    fields.insert("id".to_owned(), json!(service.id()));
    fields.insert("connect".to_owned(), json!({ "sidecar_service": sidecar(service) }));
    sorted(json!({ "service": fields }))
}

/// Says in the registration where the sidecar's outbound listener is. Consul's default is the same
/// port for every sidecar of a host, and only one could have it.
pub(super) fn set_outbound_port(sidecar: &mut Map<String, Value>, port: u16) {
    let proxy = sidecar.entry("proxy").or_insert_with(|| json!({}));
    let Some(proxy) = proxy.as_object_mut() else { return };
    let transparent = proxy.entry("transparent_proxy").or_insert_with(|| json!({}));
    if let Some(transparent) = transparent.as_object_mut() {
        transparent.insert("outbound_listener_port".to_owned(), json!(port));
    }
}

/// Everything but the name, the id and the sidecar.
fn own_fields(service: &ServiceConfig) -> Map<String, Value> {
    let mut fields = Map::new();
    let mut put = |key: &str, value: Value| drop(fields.insert(key.to_owned(), value));
    if let Some(port) = service.port {
        put("port", json!(port));
    }
    if let AddressSpec::Ip(address) = service.address {
        put("address", json!(address));
    }
    if !service.tags.is_empty() {
        put("tags", json!(service.tags));
    }
    if !service.meta.is_empty() {
        put("meta", json!(service.meta));
    }
    if let Some(weights) = service.weights {
        put("weights", json!(weights));
    }
    if let Some(locality) = &service.locality {
        put("locality", json!(locality));
    }
    if let Some(namespace) = &service.namespace {
        put("namespace", json!(namespace));
    }
    if let Some(partition) = &service.partition {
        put("partition", json!(partition));
    }
    if !service.checks.is_empty() {
        put("checks", service.checks.iter().map(check).collect());
    }
    fields
}

/// A check; its keys are Consul's own but for `exec`, which Consul calls `args`.
fn check(check: &Check) -> Value {
    let mut value = json!(check);
    if let Some(fields) = value.as_object_mut()
        && let Some(command) = fields.remove("exec")
    {
        fields.insert("args".to_owned(), command);
    }
    value
}

fn sidecar(service: &ServiceConfig) -> Value {
    let mut proxy = Map::new();
    proxy.insert("mode".to_owned(), json!(service.capture.mode));
    if !service.upstreams.is_empty() {
        proxy.insert("upstreams".to_owned(), service.upstreams.iter().map(upstream).collect());
    }
    if !service.proxy.config.is_empty() {
        proxy.insert("config".to_owned(), json!(service.proxy.config));
    }
    let mut sidecar = Map::new();
    if let Some(legacy) = &service.legacy {
        if legacy.form == LegacyForm::Plain && service.capture.mode == Mode::Transparent {
            proxy.insert("transparent_proxy".to_owned(), json!({ "dialed_directly": true }));
        }
        if let (Some(address), Some(port)) = (legacy.virtual_ip, service.port) {
            let tagged = json!({ "virtual": { "address": address, "port": port } });
            sidecar.insert("tagged_addresses".to_owned(), tagged);
        }
    }
    sidecar.insert("proxy".to_owned(), Value::Object(proxy));
    Value::Object(sidecar)
}

fn upstream(upstream: &Upstream) -> Value {
    let mut fields = Map::new();
    let mut put = |key: &str, value: Value| drop(fields.insert(key.to_owned(), value));
    put("destination_name", json!(upstream.name));
    put("local_bind_port", json!(upstream.local_port));
    if upstream.prepared_query {
        put("destination_type", json!("prepared_query"));
    }
    let optional = [
        ("datacenter", &upstream.datacenter),
        ("destination_namespace", &upstream.namespace),
        ("destination_partition", &upstream.partition),
        ("destination_peer", &upstream.peer),
    ];
    for (key, value) in optional {
        if let Some(value) = value {
            put(key, json!(value));
        }
    }
    Value::Object(fields)
}

/// The same value with the keys of every object in order.
fn sorted(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let fields: BTreeMap<String, Value> = fields.into_iter().map(|(k, v)| (k, sorted(v))).collect();
            Value::Object(fields.into_iter().collect())
        }
        Value::Array(items) => items.into_iter().map(sorted).collect(),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::config::load_path;

    /// Everything in `part` is in `whole`, with the same values.
    fn holds(whole: &Value, part: &Value, path: &str) {
        match part {
            Value::Object(fields) => {
                for (key, value) in fields {
                    let inner =
                        whole.get(key).unwrap_or_else(|| panic!("{path}.{key} is missing in {whole}"));
                    holds(inner, value, &format!("{path}.{key}"));
                }
            }
            Value::Array(items) => {
                assert_eq!(whole.as_array().map(Vec::len), Some(items.len()), "{path}");
                for (index, item) in items.iter().enumerate() {
                    holds(&whole[index], item, &format!("{path}[{index}]"));
                }
            }
            _ => assert_eq!(whole, part, "{path}"),
        }
    }

    fn rendered(text: &str, file: &str) -> Value {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(file);
        fs::write(&path, text).unwrap();
        let config = load_path(&path);
        assert_eq!(config.errors, []);
        registration(&config.services[0])
    }

    #[test]
    fn what_the_field_has_today_stays_as_it_is() {
        let vectors = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors");
        let mut seen = 0;
        for form in ["legacy-annotations", "legacy-plain"] {
            for folder in fs::read_dir(vectors.join(form)).unwrap() {
                let folder = folder.unwrap().path();
                let config = load_path(&folder.join("service-config.json"));
                assert_eq!(config.errors, [], "{}", folder.display());
                let expected = fs::read_to_string(folder.join("registration.json")).unwrap();
                let expected: Value = serde_json::from_str(&expected).unwrap();
                holds(&registration(&config.services[0]), &expected, &folder.display().to_string());
                seen += 1;
            }
        }
        assert_eq!(seen, 6);
    }

    #[test]
    fn everything_a_native_file_can_say() {
        let text = r#"
            name = "api"
            id = "api-1"
            port = 8080
            address = "10.0.0.2"
            tags = ["v1"]
            meta = { team = "core" }
            weights = { passing = 10, warning = 1 }
            locality = { region = "eu", zone = "a" }
            namespace = "ns"
            partition = "p"
            [[check]]
            name = "health"
            exec = ["/usr/bin/true", "-x"]
            interval = "90s"
            timeout = "500ms"
            [[check]]
            ttl = "1h"
            [[upstream]]
            name = "db"
            local_port = 5432
            peer = "east"
            [[upstream]]
            name = "near"
            local_port = 5433
            prepared_query = true
            datacenter = "dc2"
            partition = "q"
            namespace = "n"
            [proxy.config]
            protocol = "http"
            envoy = { b = 1, a = 2 }
        "#;
        let expected = json!({ "service": {
            "address": "10.0.0.2",
            "checks": [
                { "args": ["/usr/bin/true", "-x"], "interval": "1m30s", "name": "health", "timeout": "500ms" },
                { "ttl": "1h" },
            ],
            "connect": { "sidecar_service": { "proxy": {
                "config": { "envoy": { "a": 2, "b": 1 }, "protocol": "http" },
                "mode": "transparent",
                "upstreams": [
                    { "destination_name": "db", "destination_peer": "east", "local_bind_port": 5432 },
                    {
                        "datacenter": "dc2", "destination_name": "near", "destination_namespace": "n",
                        "destination_partition": "q", "destination_type": "prepared_query", "local_bind_port": 5433,
                    },
                ],
            } } },
            "id": "api-1",
            "locality": { "region": "eu", "zone": "a" },
            "meta": { "team": "core" },
            "name": "api",
            "namespace": "ns",
            "partition": "p",
            "port": 8080,
            "tags": ["v1"],
            "weights": { "passing": 10, "warning": 1 },
        } });
        // As text: the order of keys counts, since artefacts are compared byte by byte.
        assert_eq!(rendered(text, "api.toml").to_string(), expected.to_string());
    }

    #[test]
    fn a_plain_file_cannot_replace_the_sidecar() {
        let text =
            r#"{"name": "pay", "z": {"b": 1, "a": 2}, "connect": {"native": true}, "check": {"ttl": "1s"}}"#;
        let rendered = rendered(text, "service-config.json");
        let proxy = json!({"mode": "transparent", "transparent_proxy": {"dialed_directly": true}});
        let expected = json!({ "service": {
            "check": { "ttl": "1s" }, "connect": { "sidecar_service": { "proxy": proxy } }, "id": "pay", "name": "pay",
            "z": { "a": 2, "b": 1 },
        } });
        assert_eq!(rendered.to_string(), expected.to_string());
    }
}
