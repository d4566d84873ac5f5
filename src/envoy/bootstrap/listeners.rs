//! Listeners that show a part of the admin interface: metrics and readiness.

use std::net::SocketAddr;

use serde_json::{Value, json};

use super::keys::Keys;
use crate::envoy::layout::Layout;
use crate::envoy::typed::{address, extension};

/// The cluster of the sidecar's own admin.
const SELF_ADMIN: &str = "self_admin";

/// The listeners that `keys` ask for.
pub fn listeners(keys: &Keys) -> Vec<Value> {
    let prometheus = |at| {
        let route = json!({"match": {"path": "/metrics"}, "route": {
            "cluster": SELF_ADMIN, "prefix_rewrite": "/stats/prometheus",
        }});
        listener("envoy_prometheus_metrics", at, route)
    };
    let stats = |at| listener("envoy_metrics", at, passed_on(json!({"prefix": "/stats"})));
    let ready = |at| listener("envoy_ready", at, passed_on(json!({"path": "/ready"})));
    [keys.prometheus.map(prometheus), keys.stats.map(stats), keys.ready.map(ready)]
        .into_iter()
        .flatten()
        .collect()
}

/// The way to the sidecar's own admin.
pub fn self_admin(layout: &Layout) -> Value {
    let endpoint = json!({"endpoint": {"address": {"pipe": {"path": layout.admin_socket()}}}});
    json!({
        "name": SELF_ADMIN,
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": {"cluster_name": SELF_ADMIN, "endpoints": [{"lb_endpoints": [endpoint]}]},
    })
}

fn passed_on(of: Value) -> Value {
    json!({"match": of, "route": {"cluster": SELF_ADMIN}})
}

/// One listener with one way through it. Anything else of the admin interface can change what the
/// sidecar does, and is not shown.
fn listener(name: &str, at: SocketAddr, mut route: Value) -> Value {
    let only_reads = json!([{"name": ":method", "string_match": {"exact": "GET"}}]);
    if let Some(of) = route.get_mut("match").and_then(Value::as_object_mut) {
        of.insert("headers".to_owned(), only_reads);
    }
    let manager = json!({
        "stat_prefix": name,
        "codec_type": "HTTP1",
        "route_config": {"name": "self_admin_route", "virtual_hosts": [{
            "name": SELF_ADMIN,
            "domains": ["*"],
            "routes": [route, {"match": {"prefix": "/"}, "direct_response": {"status": 404}}],
        }]},
        "http_filters": [extension(
            "envoy.filters.http.router",
            "envoy.extensions.filters.http.router.v3.Router",
            json!({}),
        )],
    });
    json!({
        "name": format!("{name}_listener"),
        "address": address(at.ip(), at.port()),
        "filter_chains": [{"filters": [extension(
            "envoy.filters.network.http_connection_manager",
            "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            manager,
        )]}],
    })
}
