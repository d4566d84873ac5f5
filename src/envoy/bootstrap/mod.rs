//! What Envoy is started with.
//!
//! In its effect it is what Consul's own command for it writes: the same node, the same names, the
//! same keys of `proxy.config`. Two things differ on purpose: the admin is a unix socket, and the
//! token is not in it.

mod access_log;
mod ads;
mod keys;
mod listeners;
mod sinks;
mod tags;

use serde_json::{Map, Value, json};

use super::layout::{CDS, LDS, Layout};
use super::typed::{extension, file_source};
use crate::base::{Fault, Root};
use crate::plan::{ServicePlan, Xds};
use keys::Keys;

pub use ads::LOCAL_AGENT;

/// More downstream connections at a time than this are refused, so that a flood ends in refusals
/// and not in Envoy's death for lack of memory. About 30 KiB a connection makes 1.5 GiB.
const MAX_CONNECTIONS: u32 = 50_000;

/// The bootstrap of `service`. It changes only when the sidecar must be restarted to take it up.
///
/// # Errors
/// `ENM-E040` to `ENM-E043`: a key of `proxy.config` that is for it cannot be carried out;
/// `ENM-E045`: TLS to Consul without a CA.
pub fn bootstrap(service: &ServicePlan, root: &Root) -> Result<Value, Fault> {
    let layout = Layout::new(service, root);
    let keys = Keys::read(&service.sidecar.config)?;
    let mut document = Map::new();
    let mut put = |key: &str, value: Value| drop(document.insert(key.to_owned(), value));
    put("node", node(service));
    put("admin", admin(service, &layout));
    put(
        "layered_runtime",
        json!({"layers": [
            // Regular expressions of intentions grow with the names in them; Consul sets the same.
            {"name": "base", "static_layer": {"re2.max_program_size.error_level": 1_048_576}},
        ]}),
    );
    put(
        "overload_manager",
        json!({"resource_monitors": [extension(
            "envoy.resource_monitors.global_downstream_max_connections",
            "envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
            json!({"max_active_downstream_connections": MAX_CONNECTIONS}),
        )]}),
    );
    put("stats_config", keys.stats_config.clone().unwrap_or_else(|| tags::stats_config(service, &keys.tags)));
    put("deferred_stat_options", json!({"enable_deferred_creation_stats": true}));
    let sinks = sinks::sinks(service, &keys)?;
    if !sinks.is_empty() {
        put("stats_sinks", sinks.into());
    }
    if let Some(interval) = &keys.flush_interval {
        put("stats_flush_interval", json!(interval));
    }
    if let Some(tracing) = &keys.tracing {
        put("tracing", tracing.clone());
    }
    if let Some(resources) = static_resources(service, &layout, &keys)? {
        put("static_resources", resources);
    }
    put(
        "dynamic_resources",
        match &service.sidecar.xds {
            Xds::Files => json!({
                "lds_config": file_source(&layout, LDS),
                "cds_config": file_source(&layout, CDS),
            }),
            Xds::Ads(_) => ads::dynamic_resources(),
        },
    );
    Ok(Value::Object(document))
}

/// Consul's names, so that metrics and dumps look as people know them, and so that Consul's xDS
/// finds the registration.
fn node(service: &ServicePlan) -> Value {
    let mut metadata = Map::new();
    metadata.insert("namespace".to_owned(), json!(scope(service, "namespace")));
    metadata.insert("partition".to_owned(), json!(scope(service, "partition")));
    if let Xds::Ads(ads) = &service.sidecar.xds
        && let Some(name) = &ads.node_name
    {
        metadata.insert("node_name".to_owned(), json!(name));
    }
    json!({
        "id": format!("{}-sidecar-proxy", service.id),
        "cluster": service.name.as_str(),
        "metadata": metadata,
    })
}

/// The service's `namespace` or `partition`; `default` is how Consul calls the one that there is.
fn scope<'a>(service: &'a ServicePlan, key: &str) -> &'a str {
    let given = service.registration.pointer(&format!("/service/{key}")).and_then(Value::as_str);
    given.filter(|name| !name.is_empty()).unwrap_or("default")
}

fn admin(service: &ServicePlan, layout: &Layout) -> Value {
    let mut admin = Map::new();
    // Mode 0660: the group's members may ask, nobody else.
    let pipe = json!({"pipe": {"path": layout.admin_socket(), "mode": 0o660}});
    admin.insert("address".to_owned(), pipe);
    if let Some(log) = &service.sidecar.access_log {
        admin.insert("access_log".to_owned(), json!([access_log::access_log(log)]));
    }
    Value::Object(admin)
}

/// Clusters and listeners that are there from the start; `None` when there are none.
fn static_resources(service: &ServicePlan, layout: &Layout, keys: &Keys) -> Result<Option<Value>, Fault> {
    let mut clusters = Vec::new();
    if let Xds::Ads(ads) = &service.sidecar.xds {
        clusters.push(ads::cluster(ads, layout)?);
    }
    let mut listeners = listeners::listeners(keys);
    if !listeners.is_empty() {
        clusters.push(listeners::self_admin(layout));
    }
    keys.check_names(&clusters)?;
    clusters.extend(keys.clusters.iter().cloned());
    listeners.extend(keys.listeners.iter().cloned());
    let mut resources = Map::new();
    for (key, list) in [("clusters", clusters), ("listeners", listeners)] {
        if !list.is_empty() {
            resources.insert(key.to_owned(), list.into());
        }
    }
    Ok((!resources.is_empty()).then_some(Value::Object(resources)))
}
