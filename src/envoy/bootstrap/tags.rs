//! Tags that dashboards for Consul's mesh expect on Envoy's metrics.
//!
//! In an expression, Envoy cuts the outer capture group out of the metric's name and takes the
//! inner one as the tag's value. It tries each expression on each metric that comes to be, which
//! is most of what a new cluster costs it: so these are few, and none has to backtrack. Consul has
//! more of them, for names that are never rendered here (subsets, partitions, peers).

use serde_json::{Value, json};

use crate::plan::ServicePlan;

/// `cluster.[passthrough~PORT~]SERVICE.NAMESPACE.DC.internal.TRUST.consul.` Together the outer
/// groups cut out all of it, so that one metric's clusters differ by their tags only.
const DESTINATION: [(&str, &str); 3] = [
    ("service", "^cluster\\.((?:passthrough~[0-9]+~)?([^.]+)\\.)[^.]+\\.[^.]+\\.internal\\."),
    ("namespace", "^cluster\\.[^.]+\\.(([^.]+)\\.)[^.]+\\.internal\\."),
    ("datacenter", "^cluster\\.[^.]+\\.[^.]+\\.(([^.]+)\\.internal\\.[^.]+\\.consul\\.)"),
];

/// `tcp.upstream.SERVICE.NAMESPACE.DC.`
const UPSTREAM: [(&str, &str); 3] = [
    ("service", "^tcp\\.upstream\\.(([^.]+)\\.)[^.]+\\.[^.]+\\."),
    ("namespace", "^tcp\\.upstream\\.[^.]+\\.(([^.]+)\\.)[^.]+\\."),
    ("datacenter", "^tcp\\.upstream\\.[^.]+\\.[^.]+\\.(([^.]+)\\.)"),
];

/// Which tags the metrics of the sidecar of `service` get; with `own`, which are the user's.
pub fn stats_config(service: &ServicePlan, own: &[(String, String)]) -> Value {
    let mut tags: Vec<Value> =
        own.iter().map(|(name, value)| json!({"tag_name": name, "fixed_value": value})).collect();
    // Envoy refuses a tag that is there twice; the user's counts.
    let named =
        |tag: &Value| own.iter().any(|(name, _)| tag.get("tag_name").and_then(Value::as_str) == Some(name));
    tags.extend(self::tags(service).into_iter().filter(|tag| !named(tag)));
    json!({"use_all_default_tags": true, "stats_tags": tags})
}

/// The tags of the sidecar of `service`.
fn tags(service: &ServicePlan) -> Vec<Value> {
    let identity = &service.identity;
    let fixed = [
        ("local_cluster", &identity.service),
        ("consul.source.service", &identity.service),
        ("consul.source.namespace", &identity.namespace),
        ("consul.source.datacenter", &identity.datacenter),
    ];
    let extracted = |family: &str, parts: [(&str, &str); 3]| {
        parts.map(|(tag, regex)| json!({"tag_name": format!("consul.{family}.{tag}"), "regex": regex}))
    };
    let fixed = fixed.map(|(tag, value)| json!({"tag_name": tag, "fixed_value": value}));
    let mut tags = Vec::from(extracted("destination", DESTINATION));
    tags.extend(extracted("upstream", UPSTREAM));
    tags.extend(fixed);
    tags
}
