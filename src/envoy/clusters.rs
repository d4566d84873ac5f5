//! Clusters: where connections go.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use serde_json::{Value, json};

use super::http;
use super::layout::Layout;
use super::options::ProxyOptions;
use super::secrets::upstream_tls;
use super::typed::{address, any};
use crate::config::value::ServiceName;
use crate::plan::{Instance, MeshService, MeshView, Protocol, ServicePlan};

/// The cluster that takes a connection to where it was going, in the clear.
pub const ORIGINAL_DESTINATION: &str = "original-destination";
/// The cluster of the app beside the sidecar.
pub const LOCAL_APP: &str = "local_app";

const CLUSTER: &str = "envoy.config.cluster.v3.Cluster";

/// Envoy stops at 1024 connections a cluster unless told otherwise, which an application that did
/// not ask for a proxy cannot know. The sidecar's own limit is for the whole of it.
const MAX_CONNECTIONS: u32 = 1_000_000;

/// The largest weight, as in Consul. Envoy takes none below one, and refuses a cluster whose weights add
/// up to more than 32 bits.
const MAX_WEIGHT: u32 = 65_535;

/// The services that `service` can reach through its sidecar.
pub fn reachable<'a>(service: &'a ServicePlan, mesh: &'a MeshView) -> BTreeSet<&'a ServiceName> {
    let explicit = service.upstreams.iter().map(|upstream| &upstream.service);
    let captured = mesh
        .services
        .iter()
        .filter(|(name, known)| {
            service.sidecar.outbound_port.is_some()
                && !known.virtual_ips.is_empty()
                && mesh.reaches(&service.name, name)
        })
        .map(|(name, _)| name);
    explicit.chain(captured).collect()
}

/// The instances of a service that an application can dial by address and app port, with that
/// port. This host's own are left out: connections to own addresses never reach the sidecar, unless that is apart from
/// the host.
pub fn direct_instances<'a>(
    service: &'a ServicePlan,
    known: &'a MeshService,
) -> impl Iterator<Item = (&'a Instance, u16)> {
    known
        .instances
        .iter()
        .filter(|instance| service.sidecar.apart || Some(instance.address) != service.address)
        .filter_map(|instance| instance.service_port.map(|port| (instance, port)))
}

/// The name of the cluster for instances dialled directly whose sidecars listen on `port`.
pub fn direct_name(sni: &str, port: u16) -> String {
    format!("passthrough~{port}~{sni}")
}

/// The clusters of `service`, sorted by kind and name.
pub fn clusters(
    service: &ServicePlan,
    mesh: &MeshView,
    layout: &Layout,
    options: &ProxyOptions,
) -> Vec<Value> {
    let mut clusters: Vec<Value> =
        reachable(service, mesh).into_iter().map(|name| upstream(name, mesh, layout)).collect();
    if service.sidecar.outbound_port.is_some() {
        clusters.extend(direct(service, mesh, layout));
        let passed_on = json!({
            "name": ORIGINAL_DESTINATION,
            "type": "ORIGINAL_DST",
            "lb_policy": "CLUSTER_PROVIDED",
        });
        clusters.push(cluster(passed_on, Protocol::Tcp));
    }
    if let (Some(_), Some(port)) = (service.sidecar.inbound_port, service.port) {
        let app = json!({"endpoint": {"address": address(IpAddr::V4(Ipv4Addr::LOCALHOST), port.get())}});
        let protocol = options.protocol.unwrap_or_else(|| mesh.protocol(&service.name));
        let app_cluster = json!({
            "name": LOCAL_APP,
            "type": "STATIC",
            "connect_timeout": format!("{:.3}s", options.local_connect_timeout.as_secs_f64()),
            "load_assignment": {"cluster_name": LOCAL_APP, "endpoints": [{"lb_endpoints": [app]}]},
        });
        clusters.push(cluster(app_cluster, protocol));
    }
    clusters
}

/// A service of the mesh, over mutual TLS.
///
/// Its endpoints stand in the cluster. A file of endpoints for each cluster would cost Envoy an
/// inotify instance each, of which a user has 128 on most hosts, and Envoy aborts when they run
/// out. A changed cluster is replaced under its name, and its open connections live on.
fn upstream(name: &ServiceName, mesh: &MeshView, layout: &Layout) -> Value {
    let sni = mesh.sni(name);
    let fields = json!({
        "name": sni,
        "alt_stat_name": sni,
        "type": "STATIC",
        "load_assignment": endpoints(&sni, mesh.services.get(name)),
        // No panic: an instance that was ejected gets nothing, as in Consul.
        "common_lb_config": {"healthy_panic_threshold": {}},
        "outlier_detection": {},
        "transport_socket": upstream_tls(layout, &sni, &mesh.spiffe_id(name).to_string()),
    });
    cluster(fields, mesh.protocol(name))
}

/// Where a service runs and is well. One that nobody runs has no endpoints, and calls to it are refused.
fn endpoints(cluster: &str, known: Option<&MeshService>) -> Value {
    let well = |instance: &&Instance| instance.weight != 0;
    let instances = || known.into_iter().flat_map(|known| &known.instances).filter(well);
    let weighted = instances().any(|instance| instance.weight != 1);
    let endpoints: Vec<Value> = instances()
        .map(|instance| {
            let endpoint = json!({"address": address(instance.address, instance.port)});
            let weight = instance.weight.min(MAX_WEIGHT);
            if weighted {
                json!({"endpoint": endpoint, "load_balancing_weight": weight})
            } else {
                json!({"endpoint": endpoint})
            }
        })
        .collect();
    let localities = if endpoints.is_empty() { json!([]) } else { json!([{"lb_endpoints": endpoints}]) };
    json!({"cluster_name": cluster, "endpoints": localities})
}

/// Instances that are dialled by their own address: over mutual TLS as well, and straight to the
/// sidecar's port, so that it works whether or not the other host redirects its app's port. As in
/// Consul, they pass bytes on, whatever the service speaks: both ends do the same.
fn direct(service: &ServicePlan, mesh: &MeshView, layout: &Layout) -> Vec<Value> {
    let mut clusters = BTreeMap::new();
    for (name, known) in mesh.services.iter().filter(|(name, _)| mesh.reaches(&service.name, name)) {
        let sni = mesh.sni(name);
        for (instance, _) in direct_instances(service, known) {
            let fields = json!({
                "name": direct_name(&sni, instance.port),
                "type": "ORIGINAL_DST",
                "lb_policy": "CLUSTER_PROVIDED",
                "original_dst_lb_config": {"upstream_port_override": instance.port},
                "outlier_detection": {},
                "transport_socket": upstream_tls(layout, &sni, &mesh.spiffe_id(name).to_string()),
            });
            clusters.insert((name, instance.port), cluster(fields, Protocol::Tcp));
        }
    }
    clusters.into_values().collect()
}

/// `fields` with what all clusters have in common, and with what such a one needs that speaks `protocol`.
fn cluster(mut fields: Value, protocol: Protocol) -> Value {
    let mut limits = json!({"max_connections": MAX_CONNECTIONS, "max_pending_requests": MAX_CONNECTIONS});
    if let (true, Some(limits)) = (protocol.is_http(), limits.as_object_mut()) {
        limits.insert("max_requests".to_owned(), json!(MAX_CONNECTIONS));
    }
    if let Some(map) = fields.as_object_mut() {
        map.entry("connect_timeout").or_insert_with(|| json!("5s"));
        map.insert("circuit_breakers".to_owned(), json!({"thresholds": [limits]}));
    }
    http::speak(&mut fields, protocol);
    any(CLUSTER, fields)
}
