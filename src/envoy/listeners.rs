//! Listeners: where connections come in, and which cluster they lead to.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde_json::{Value, json};

use super::clusters::{LOCAL_APP, ORIGINAL_DESTINATION};
use super::destinations::{Destinations, PASSED_ON, to_service};
use super::http;
use super::intentions::Intentions;
use super::layout::Layout;
use super::options::ProxyOptions;
use super::secrets::downstream_tls;
use super::typed::{address, any, extension, tcp_proxy};
use crate::plan::{ExplicitUpstream, MeshView, ServicePlan};

const LISTENER: &str = "envoy.config.listener.v3.Listener";
const LOOPBACK_V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const LOOPBACK_V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

/// The listeners of `service`, sorted: outbound, public, then explicit upstreams by port.
pub fn listeners(
    service: &ServicePlan,
    mesh: &MeshView,
    layout: &Layout,
    options: &ProxyOptions,
) -> Vec<Value> {
    let mut listeners = Vec::new();
    if let Some(port) = service.sidecar.outbound_port {
        listeners.push(outbound(service, mesh, port));
    }
    if let (Some(port), Some(_)) = (service.sidecar.inbound_port, service.port) {
        listeners.push(public(service, mesh, layout, options, port));
    }
    let upstreams: BTreeSet<(u16, &ExplicitUpstream)> =
        service.upstreams.iter().map(|u| (u.port, u)).collect();
    listeners.extend(upstreams.into_iter().map(|(_, upstream)| explicit(upstream, mesh)));
    listeners
}

/// Where the kernel redirects the captured users' connections to.
fn outbound(service: &ServicePlan, mesh: &MeshView, port: u16) -> Value {
    let destinations = Destinations::of(service, mesh);
    let mut listener = json!({
        "name": format!("outbound_listener:127.0.0.1:{port}"),
        "stat_prefix": "outbound_listener",
        "traffic_direction": "OUTBOUND",
        "address": address(LOOPBACK_V4, port),
        "listener_filters": [extension(
            "envoy.filters.listener.original_dst",
            "envoy.extensions.filters.listener.original_dst.v3.OriginalDst",
            json!({}),
        )],
        "filter_chain_matcher": destinations.matcher(),
        "filter_chains": destinations.chains(mesh),
        "default_filter_chain": {
            "name": PASSED_ON,
            "filters": [tcp_proxy("upstream.original-destination", ORIGINAL_DESTINATION)],
        },
    });
    also_listen_on(&mut listener, service.sidecar.ipv6, LOOPBACK_V6, port);
    any(LISTENER, listener)
}

/// Where other sidecars connect to.
fn public(
    service: &ServicePlan,
    mesh: &MeshView,
    layout: &Layout,
    options: &ProxyOptions,
    port: u16,
) -> Value {
    let mut filters = Vec::new();
    if let Some(limit) = options.max_inbound_connections {
        filters.push(extension(
            "envoy.filters.network.connection_limit",
            "envoy.extensions.filters.network.connection_limit.v3.ConnectionLimit",
            json!({"stat_prefix": "inbound_connection_limit", "max_connections": limit}),
        ));
    }
    let protocol = options.protocol.unwrap_or_else(|| mesh.protocol(&service.name));
    let intentions = Intentions::of(&service.name, mesh, protocol);
    if protocol.is_http() {
        filters.push(http::inbound(protocol, intentions.http_filter(), options));
    } else {
        filters.push(intentions.network_filter());
        filters.push(tcp_proxy("public_listener", LOCAL_APP));
    }
    let bind = options.bind_address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let mut listener = json!({
        "name": format!("public_listener:{}", std::net::SocketAddr::new(bind, port)),
        "stat_prefix": "public_listener",
        "traffic_direction": "INBOUND",
        "address": address(bind, port),
        "filter_chains": [{
            "name": "public_listener",
            // Who connects and never shakes hands holds a connection to the app meanwhile.
            "transport_socket_connect_timeout": "10s",
            "transport_socket": downstream_tls(layout, intentions.identities(), http::alpn(protocol)),
            "filters": filters,
        }],
    });
    let everywhere = service.sidecar.ipv6 && options.bind_address.is_none();
    also_listen_on(&mut listener, everywhere, IpAddr::V6(Ipv6Addr::UNSPECIFIED), port);
    if options.balance_inbound
        && let Some(fields) = listener.as_object_mut()
    {
        fields.insert("connection_balance_config".to_owned(), json!({"exact_balance": {}}));
    }
    if options.access_log
        && let Some(fields) = listener.as_object_mut()
    {
        fields.insert("access_log".to_owned(), json!([access_log()]));
    }
    any(LISTENER, listener)
}

/// A line of JSON for each inbound connection when it ends, refused ones as well.
fn access_log() -> Value {
    extension(
        "envoy.access_loggers.stdout",
        "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog",
        json!({"log_format": {"json_format": {
            "start": "%START_TIME%",
            "caller": "%DOWNSTREAM_PEER_URI_SAN%",
            "from": "%DOWNSTREAM_REMOTE_ADDRESS%",
            "to": "%DOWNSTREAM_LOCAL_ADDRESS%",
            "milliseconds": "%DURATION%",
            "received": "%BYTES_RECEIVED%",
            "sent": "%BYTES_SENT%",
            "flags": "%RESPONSE_FLAGS%",
            "details": "%CONNECTION_TERMINATION_DETAILS%",
            "tls": "%DOWNSTREAM_TRANSPORT_FAILURE_REASON%",
        }}}),
    )
}

/// A listener on loopback that leads to one service.
fn explicit(upstream: &ExplicitUpstream, mesh: &MeshView) -> Value {
    let ExplicitUpstream { service, port } = upstream;
    any(
        LISTENER,
        json!({
            "name": format!("{service}:127.0.0.1:{port}"),
            "traffic_direction": "OUTBOUND",
            "address": address(LOOPBACK_V4, *port),
            "filter_chains": [{
                "name": service.as_str(),
                "filters": [to_service(service, mesh)],
            }],
        }),
    )
}

fn also_listen_on(listener: &mut Value, wanted: bool, ip: IpAddr, port: u16) {
    if wanted && let Some(fields) = listener.as_object_mut() {
        fields.insert("additional_addresses".to_owned(), json!([{"address": address(ip, port)}]));
    }
}
