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
