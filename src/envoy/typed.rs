//! The few shapes that Envoy's JSON repeats.

use std::net::IpAddr;

use serde_json::{Map, Value, json};

use super::layout::Layout;

/// `fields` as a `google.protobuf.Any` of the message `message`.
pub fn any(message: &str, fields: Value) -> Value {
    let mut map = Map::new();
    map.insert("@type".to_owned(), Value::String(format!("type.googleapis.com/{message}")));
    if let Value::Object(fields) = fields {
        map.extend(fields);
    }
    Value::Object(map)
}

/// An extension: a name and its typed configuration.
pub fn extension(name: &str, message: &str, fields: Value) -> Value {
    json!({"name": name, "typed_config": any(message, fields)})
}

/// A TCP address.
pub fn address(ip: IpAddr, port: u16) -> Value {
    json!({"socket_address": {"address": ip.to_string(), "port_value": port}})
}

/// Subscribes to one file. Without a watched directory Envoy looks at renames onto that very path,
/// so that a new certificate does not make it read every other file again.
pub fn file_source(layout: &Layout, relative: &str) -> Value {
    json!({
        "resource_api_version": "V3",
        "path_config_source": {"path": layout.path(relative)},
    })
}

/// Forwards a connection to `cluster`.
pub fn tcp_proxy(stat_prefix: &str, cluster: &str) -> Value {
    extension(
        "envoy.filters.network.tcp_proxy",
        "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        json!({"stat_prefix": stat_prefix, "cluster": cluster}),
    )
}
