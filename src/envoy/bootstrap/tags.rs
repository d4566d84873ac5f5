//! Tags that dashboards for Consul's mesh expect on Envoy's metrics.
//!
//! In an expression, Envoy cuts the outer capture group out of the metric's name and takes the
//! inner one as the tag's value. It tries each expression on each metric that comes to be, which
//! is most of what a new cluster costs it: so for a sidecar that is driven by files these are few, and
//! none has to backtrack. One that Consul drives gets all of Consul's, since its clusters have all of
//! Consul's names (subsets, partitions, peers).

use serde_json::{Value, json};

use crate::plan::{ServicePlan, Xds};

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
        ("local_cluster", identity.service.as_str()),
        ("consul.source.service", identity.service.as_str()),
        ("consul.source.namespace", identity.namespace.as_str()),
        ("consul.source.datacenter", identity.datacenter.as_str()),
    ];
    let mut tags = match &service.sidecar.xds {
        Xds::Files => [("destination", DESTINATION), ("upstream", UPSTREAM)]
            .into_iter()
            .flat_map(|(family, parts)| parts.map(|(tag, regex)| extracted(family, tag, regex)))
            .collect(),
        Xds::Ads(_) => consuls(),
    };
    let known = fixed.into_iter().filter(|(_, value)| !value.is_empty());
    tags.extend(known.map(|(tag, value)| json!({"tag_name": tag, "fixed_value": value})));
    tags
}

fn extracted(family: &str, tag: &str, regex: &str) -> Value {
    json!({"tag_name": format!("consul.{family}.{tag}"), "regex": regex})
}

/// A part of a name: its tag, what stands before and after it, and whether it may be missing.
type Part = (&'static str, &'static str, &'static str, bool);

/// `cluster.[passthrough~][HASH~][SUBSET.]SERVICE.NAMESPACE.[PARTITION.]DC.ROUTING.TRUST.consul.`
const CLUSTER: [Part; 8] = [
    ("custom_hash", "[^.~]+", "~", true),
    ("service_subset", "[^.]+", "\\.", true),
    ("service", "[^.]+", "\\.", false),
    ("namespace", "[^.]+", "\\.", false),
    ("partition", "[^.]+", "\\.", true),
    ("datacenter", "[^.]+", "\\.", false),
    ("routing_type", "(?:in|ex)ternal[^.]*", "\\.", false),
    ("trust_domain", "[^.]+", "\\.consul\\.", false),
];

/// `SERVICE.[NAMESPACE.][PARTITION.]DC.` after `tcp.upstream.` or `http.upstream.`
const LISTENER: [Part; 4] = [
    ("service", "[^.]+", "\\.", false),
    ("namespace", "[^.]+", "\\.", true),
    ("partition", "[^.]+", "\\.", true),
    ("datacenter", "[^.]+", "\\.", false),
];

/// `SERVICE.[NAMESPACE.]PEER.` after `tcp.upstream_peered.` or `http.upstream_peered.`
const PEERED: [Part; 1] = [("peer", "[^.]+", "\\.", false)];

/// Everything that Consul's own bootstrap takes out of names.
fn consuls() -> Vec<Value> {
    let cluster = |tag: &str| format!("^cluster\\.(?:passthrough~)?({})", parts(&CLUSTER, tag));
    let mut tags: Vec<Value> =
        CLUSTER.iter().map(|(tag, ..)| extracted("destination", tag, &cluster(tag))).collect();
    // Where a connection goes as a whole: up to the datacenter, and up to the trust domain.
    for (tag, of) in [("target", 6), ("full_target", 8)] {
        let (inside, rest) = CLUSTER.split_at(of);
        let whole = parts(inside, "");
        let (whole, end) = match (whole.strip_suffix("\\.consul\\."), whole.strip_suffix("\\.")) {
            (Some(inner), _) => (inner, "\\.consul\\."),
            (None, Some(inner)) => (inner, "\\."),
            (None, None) => (whole.as_str(), ""),
        };
        let regex = format!("^cluster\\.(?:passthrough~)?(({whole}){end}{})", parts(rest, ""));
        tags.push(extracted("destination", tag, &regex));
    }
    let peer = "^cluster\\.([^.]+\\.(?:[^.]+\\.)?([^.]+)\\.external\\.[^.]+\\.consul\\.)";
    tags.push(extracted("destination", "peer", peer));
    let listener = |tag: &str| format!("^(?:tcp|http)\\.upstream\\.({})", parts(&LISTENER, tag));
    tags.extend(LISTENER.iter().map(|(tag, ..)| extracted("upstream", tag, &listener(tag))));
    let peered =
        format!("^(?:tcp|http)\\.upstream_peered\\.([^.]+\\.(?:[^.]+\\.)?{})", parts(&PEERED, "peer"));
    tags.push(extracted("upstream", "peer", &peered));
    tags
}

/// An expression for `parts`, one after the other, with a group for the value of `tag`.
fn parts(parts: &[Part], tag: &str) -> String {
    parts
        .iter()
        .map(|(name, value, after, optional)| {
            let value = if *name == tag { format!("({value})") } else { (*value).to_owned() };
            if *optional { format!("(?:{value}{after})?") } else { format!("{value}{after}") }
        })
        .collect()
}
