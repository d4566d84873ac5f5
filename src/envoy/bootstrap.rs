//! What Envoy is started with.

use serde_json::{Value, json};

use super::layout::{CDS, LDS, Layout};
use super::stats_tags;
use super::typed::{extension, file_source};
use crate::base::Root;
use crate::plan::ServicePlan;

/// More downstream connections at a time than this are refused, so that a flood ends in refusals
/// and not in Envoy's death for lack of memory. About 30 KiB a connection makes 1.5 GiB.
const MAX_CONNECTIONS: u32 = 50_000;

/// The bootstrap of `service`. It changes only when the sidecar must be restarted to take it up.
pub fn bootstrap(service: &ServicePlan, root: &Root) -> Value {
    let layout = Layout::new(service, root);
    json!({
        "node": {
            // Consul's names, so that metrics and dumps look as people know them.
            "id": format!("{}-sidecar-proxy", service.id),
            "cluster": service.name.as_str(),
            "metadata": {"namespace": service.identity.namespace, "partition": "default"},
        },
        // Mode 0660: the group's members may ask, nobody else.
        "admin": {"address": {"pipe": {"path": layout.admin_socket(), "mode": 0o660}}},
        "layered_runtime": {"layers": [
            // Regular expressions of intentions grow with the names in them; Consul sets the same.
            {"name": "base", "static_layer": {"re2.max_program_size.error_level": 1_048_576}},
        ]},
        "overload_manager": {"resource_monitors": [extension(
            "envoy.resource_monitors.global_downstream_max_connections",
            "envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
            json!({"max_active_downstream_connections": MAX_CONNECTIONS}),
        )]},
        "stats_config": {"use_all_default_tags": true, "stats_tags": stats_tags::tags(service)},
        "deferred_stat_options": {"enable_deferred_creation_stats": true},
        "dynamic_resources": {
            "lds_config": file_source(&layout, LDS),
            "cds_config": file_source(&layout, CDS),
        },
    })
}
