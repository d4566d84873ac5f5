//! Requests rather than bytes: the filters of services that speak HTTP.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::clusters::LOCAL_APP;
use super::options::ProxyOptions;
use super::typed::{any, extension};
use crate::plan::Protocol;

/// Which options of a cluster say what its endpoints speak.
const PROTOCOL_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// Requests to another service: all of them to `cluster`. `name` is the service's.
pub fn outbound(protocol: Protocol, stat_prefix: &str, name: &str, cluster: &str) -> Value {
    // As long as the two ends want: Envoy's own limit for an answer would be 15 s.
    let route = json!({"cluster": cluster, "timeout": "0s"});
    let manager = manager(protocol, stat_prefix, name, route, None);
    connection_manager(manager)
}

/// Requests to the app beside the sidecar, as far as `authorization`, a filter, lets them through.
pub fn inbound(protocol: Protocol, authorization: Value, options: &ProxyOptions) -> Value {
    let mut route = json!({"cluster": LOCAL_APP, "timeout": seconds(options.local_request_timeout)});
    if let (Some(idle), Some(fields)) = (options.local_idle_timeout, route.as_object_mut()) {
        fields.insert("idle_timeout".to_owned(), json!(seconds(idle)));
    }
    let mut manager = manager(protocol, "public_listener", "public_listener", route, Some(authorization));
    // Rules about paths look at the path that the app will understand.
    manager.insert("normalize_path".to_owned(), json!(true));
    if protocol != Protocol::Grpc {
        // Who called, for the app; what callers claim to be comes before it.
        manager.insert("forward_client_cert_details".to_owned(), json!("APPEND_FORWARD"));
        manager.insert(
            "set_current_client_cert_details".to_owned(),
            json!({"subject": true, "cert": true, "chain": true, "dns": true, "uri": true}),
        );
    }
    connection_manager(manager)
}

/// The protocols that the public listener of such a service names in the handshake, as in Consul. Callers
/// that name none or others are served all the same: what they speak is seen from their first bytes.
pub fn alpn(protocol: Protocol) -> &'static [&'static str] {
    match protocol {
        Protocol::Tcp => &[],
        Protocol::Http => &["http/1.1"],
        Protocol::Http2 | Protocol::Grpc => &["h2", "http/1.1"],
    }
}

/// Makes a cluster speak HTTP/2 where its service does. No ALPN is needed for that, so it also works
/// with sidecars that only pass bytes on.
pub fn speak(cluster: &mut Value, protocol: Protocol) {
    if let (Protocol::Http2 | Protocol::Grpc, Some(fields)) = (protocol, cluster.as_object_mut()) {
        let options = any(PROTOCOL_OPTIONS, json!({"explicit_http_config": {"http2_protocol_options": {}}}));
        fields.insert("typed_extension_protocol_options".to_owned(), json!({PROTOCOL_OPTIONS: options}));
    }
}

fn manager(
    protocol: Protocol,
    stat_prefix: &str,
    name: &str,
    route: Value,
    authorization: Option<Value>,
) -> Map<String, Value> {
    let mut fields = Map::new();
    let mut put = |key: &str, value: Value| drop(fields.insert(key.to_owned(), value));
    put("stat_prefix", json!(stat_prefix));
    put(
        "route_config",
        json!({
            "name": name,
            "virtual_hosts": [{
                "name": name,
                "domains": ["*"],
                "routes": [{"match": {"prefix": "/"}, "route": route}],
            }],
            // A listener is not refused for a cluster that comes a moment later.
            "validate_clusters": false,
        }),
    );
    put("http_filters", authorization.into_iter().chain(filters(protocol)).collect());
    put("server_header_transformation", json!("PASS_THROUGH"));
    if protocol == Protocol::Http {
        put("upgrade_configs", json!([{"upgrade_type": "websocket"}]));
        // Applications did not ask for a proxy, and some are that old.
        put("http_protocol_options", json!({"accept_http_10": true, "default_host_for_http_10": name}));
    }
    fields
}

fn filters(protocol: Protocol) -> impl Iterator<Item = Value> {
    let grpc = (protocol == Protocol::Grpc).then(|| {
        [
            extension(
                "envoy.filters.http.grpc_http1_bridge",
                "envoy.extensions.filters.http.grpc_http1_bridge.v3.Config",
                json!({}),
            ),
            extension(
                "envoy.filters.http.grpc_stats",
                "envoy.extensions.filters.http.grpc_stats.v3.FilterConfig",
                json!({"stats_for_all_methods": true}),
            ),
        ]
    });
    let router =
        extension("envoy.filters.http.router", "envoy.extensions.filters.http.router.v3.Router", json!({}));
    grpc.into_iter().flatten().chain([router])
}

fn connection_manager(fields: Map<String, Value>) -> Value {
    extension(
        "envoy.filters.network.http_connection_manager",
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        fields.into(),
    )
}

fn seconds(time: Duration) -> String {
    if time.is_zero() { "0s".to_owned() } else { format!("{:.3}s", time.as_secs_f64()) }
}
