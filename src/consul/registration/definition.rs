//! From the form of definition files (snake_case) to that of the HTTP API (CamelCase).

use serde_json::{Map, Value};

/// Parts of a key that the API writes in capitals. Consul reads keys without looking at case; these
/// are for people who compare with its documentation.
const CAPITALS: [&str; 11] =
    ["id", "http", "tcp", "udp", "grpc", "ttl", "tls", "json", "os", "h2ping", "dns"];

/// What stands below a key.
#[derive(Clone, Copy)]
enum Below {
    /// Fields of Consul's.
    Fields,
    /// Fields of a check, whose `id` the API calls `CheckID`.
    Check,
    /// Names that somebody chose, each with fields below.
    Named,
    /// Nothing that is Consul's: kept as it is.
    Opaque,
}

/// `service`, the object inside `{"service": …}`, as the API takes it.
pub(super) fn http_form(service: &Value) -> Value {
    convert(service, Below::Fields)
}

/// How the API spells the file's key `name`. A key that is in CamelCase already stays.
pub(super) fn http_key(name: &str) -> String {
    if name.starts_with(|first: char| first.is_ascii_uppercase()) {
        return name.to_owned();
    }
    name.split('_')
        .map(|part| {
            let mut letters = part.chars();
            match letters.next() {
                Some(_) if CAPITALS.contains(&part) => part.to_ascii_uppercase(),
                Some(first) => format!("{}{}", first.to_ascii_uppercase(), letters.as_str()),
                None => String::new(),
            }
        })
        .collect()
}

fn convert(value: &Value, below: Below) -> Value {
    match (value, below) {
        (_, Below::Opaque) => value.clone(),
        (Value::Array(items), _) => items.iter().map(|item| convert(item, below)).collect(),
        (Value::Object(fields), Below::Named) => {
            fields.iter().map(|(name, value)| (name.clone(), convert(value, Below::Fields))).collect()
        }
        (Value::Object(fields), _) => {
            let mut converted: Map<String, Value> =
                fields.iter().map(|(name, value)| (key(name, below), convert(value, under(name)))).collect();
            converted.sort_keys();
            Value::Object(converted)
        }
        (scalar, _) => scalar.clone(),
    }
}

fn key(name: &str, below: Below) -> String {
    match below {
        Below::Check if name.eq_ignore_ascii_case("id") => "CheckID".to_owned(),
        _ => http_key(name),
    }
}

fn under(name: &str) -> Below {
    match http_key(name).as_str() {
        "Check" | "Checks" => Below::Check,
        "TaggedAddresses" => Below::Named,
        "Meta" | "Config" | "Header" | "Arguments" => Below::Opaque,
        _ => Below::Fields,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keys_as_consul_documents_them() {
        for (file, http) in [
            ("id", "ID"),
            ("enable_tag_override", "EnableTagOverride"),
            ("sidecar_service", "SidecarService"),
            ("destination_service_id", "DestinationServiceID"),
            ("grpc_use_tls", "GRPCUseTLS"),
            ("tls_skip_verify", "TLSSkipVerify"),
            ("ttl", "TTL"),
            ("json_format", "JSONFormat"),
            ("LocalPathPort", "LocalPathPort"),
        ] {
            assert_eq!(http_key(file), http);
        }
    }

    #[test]
    fn what_is_not_consuls_stays() {
        let file = json!({
            "name": "api", "id": "api-1", "meta": { "my_key": "v" },
            "tagged_addresses": { "lan_ipv4": { "address": "10.0.0.1", "port": 80 } },
            "checks": [{ "id": "c", "http": "http://x", "header": { "x_y": ["1"] } }],
            "connect": { "sidecar_service": { "proxy": {
                "mode": "transparent",
                "config": { "local_connect_timeout_ms": 1, "nested": { "a_b": 2 } },
                "upstreams": [{ "destination_name": "db", "config": { "connect_timeout": 1 } }],
                "expose": { "checks": true, "paths": [{ "local_path_port": 1 }] },
            } } },
        });
        let http = json!({
            "Checks": [{ "CheckID": "c", "HTTP": "http://x", "Header": { "x_y": ["1"] } }],
            "Connect": { "SidecarService": { "Proxy": {
                "Config": { "local_connect_timeout_ms": 1, "nested": { "a_b": 2 } },
                "Expose": { "Checks": true, "Paths": [{ "LocalPathPort": 1 }] },
                "Mode": "transparent",
                "Upstreams": [{ "Config": { "connect_timeout": 1 }, "DestinationName": "db" }],
            } } },
            "ID": "api-1", "Meta": { "my_key": "v" }, "Name": "api",
            "TaggedAddresses": { "lan_ipv4": { "Address": "10.0.0.1", "Port": 80 } },
        });
        assert_eq!(http_form(&file), http);
    }
}
