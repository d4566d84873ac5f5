//! Tags that dashboards for Consul's mesh expect on Envoy's metrics.
//!
//! In an expression, Envoy cuts the outer capture group out of the metric's name and takes the
//! inner one as the tag's value.

use serde_json::{Value, json};

use crate::plan::ServicePlan;

/// One part of a metric's name.
struct Part {
    /// Ends the tag's name.
    tag: &'static str,
    /// What the value looks like.
    value: &'static str,
    /// What ends the part.
    end: &'static str,
    /// Whether names may lack it.
    optional: bool,
}

const fn part(tag: &'static str) -> Part {
    Part { tag, value: "[^.~]+", end: "\\.", optional: false }
}

/// `cluster.[passthrough~][HASH~][SUBSET.]SERVICE.NAMESPACE.DC.internal.TRUST.consul.`
const CLUSTER: [Part; 7] = [
    Part { tag: "custom_hash", value: "[0-9a-f]+", end: "~", optional: true },
    Part { optional: true, ..part("service_subset") },
    part("service"),
    part("namespace"),
    part("datacenter"),
    Part { value: "internal|external", ..part("routing_type") },
    Part { end: "\\.consul\\.", ..part("trust_domain") },
];

/// `tcp.upstream.SERVICE.NAMESPACE.DC.`
const UPSTREAM: [Part; 3] = [part("service"), part("namespace"), part("datacenter")];

/// The tags of the sidecar of `service`.
pub fn tags(service: &ServicePlan) -> Vec<Value> {
    let identity = &service.identity;
    let fixed = [
        ("local_cluster", &identity.service),
        ("consul.source.service", &identity.service),
        ("consul.source.namespace", &identity.namespace),
        ("consul.source.datacenter", &identity.datacenter),
    ];
    extracted("destination", "^cluster\\.(?:passthrough~)?", &CLUSTER)
        .chain(extracted("upstream", "^tcp\\.upstream\\.", &UPSTREAM))
        .chain(fixed.into_iter().map(|(tag, value)| json!({"tag_name": tag, "fixed_value": value})))
        .collect()
}

fn extracted<'a>(family: &'a str, start: &'a str, parts: &'a [Part]) -> impl Iterator<Item = Value> + 'a {
    parts.iter().enumerate().map(move |(wanted, part)| {
        json!({"tag_name": format!("consul.{family}.{}", part.tag), "regex": expression(start, parts, wanted)})
    })
}

/// Matches the whole name; only the part at `wanted` captures, and it must be there.
fn expression(start: &str, parts: &[Part], wanted: usize) -> String {
    let pieces = parts.iter().enumerate().map(|(index, Part { value, end, optional, .. })| {
        if index == wanted {
            format!("(({value}){end})")
        } else {
            format!("(?:(?:{value}){end}){}", if *optional { "?" } else { "" })
        }
    });
    std::iter::once(start.to_owned()).chain(pieces).collect()
}
