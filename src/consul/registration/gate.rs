//! Which fields the server's release takes. One that it does not know makes it refuse the whole
//! registration, so such a field is never sent, and what that costs is said.

use std::collections::BTreeSet;

use serde_json::Value;

use super::definition::http_key;
use crate::base::Fault;
use crate::consul::{ConsulWarning, ServerFacts, Version};

/// Something that releases of Consul have from some point on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Feature {
    /// Transparent proxies, and xDS that current Envoys speak.
    TransparentProxy,
    /// Virtual IPs that Consul gives out.
    VirtualIps,
    /// `merge-central-config` on reads of catalog and health.
    MergeCentralConfig,
    /// A port of its own for gRPC with TLS.
    GrpcTls,
    /// The API for data planes.
    Dataplane,
    /// Locality, and permissive mutual TLS.
    Locality,
    /// Certificates over SDS inside xDS.
    Sds,
}

impl Feature {
    /// All of them, by release.
    pub const ALL: [Feature; 7] = [
        Feature::TransparentProxy,
        Feature::VirtualIps,
        Feature::MergeCentralConfig,
        Feature::GrpcTls,
        Feature::Dataplane,
        Feature::Locality,
        Feature::Sds,
    ];

    /// Its name, for people.
    pub fn name(self) -> &'static str {
        match self {
            Feature::TransparentProxy => "transparent proxies",
            Feature::VirtualIps => "virtual IPs",
            Feature::MergeCentralConfig => "merged central configuration",
            Feature::GrpcTls => "gRPC with TLS",
            Feature::Dataplane => "the API for data planes",
            Feature::Locality => "locality",
            Feature::Sds => "certificates over xDS",
        }
    }

    /// The first release that has it.
    pub fn since(self) -> Version {
        match self {
            Feature::TransparentProxy => Version::minor(1, 10),
            Feature::VirtualIps => Version::minor(1, 11),
            Feature::MergeCentralConfig => Version::minor(1, 12),
            Feature::GrpcTls | Feature::Dataplane => Version::minor(1, 14),
            Feature::Locality => Version::minor(1, 16),
            Feature::Sds => Version::minor(2, 1),
        }
    }
}

/// What goes when a field cannot be sent.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Goes {
    /// The field.
    Field,
    /// The item of the list that it stands in: without the field it would mean something else.
    Item,
}

/// A field of a registration that not every server takes.
struct Field {
    /// Where it stands, in the file form; `*` is every item of a list.
    path: &'static [&'static str],
    since: Version,
    enterprise: bool,
    goes: Goes,
    /// Values that mean the same as leaving it out.
    same_without: &'static [&'static str],
    cost: &'static str,
}

const PROXY: [&str; 3] = ["connect", "sidecar_service", "proxy"];

const fn field(path: &'static [&'static str], minor: u32, cost: &'static str) -> Field {
    Field {
        path,
        since: Version::minor(1, minor),
        enterprise: false,
        goes: Goes::Field,
        same_without: &[],
        cost,
    }
}

const fn scoped(path: &'static [&'static str], minor: u32, goes: Goes, cost: &'static str) -> Field {
    Field { enterprise: true, goes, same_without: &["default"], ..field(path, minor, cost) }
}

/// Every such field, with the release that brought it.
const FIELDS: [Field; 15] = [
    Field {
        same_without: &["", "direct"],
        ..field(
            &[PROXY[0], PROXY[1], PROXY[2], "mode"],
            10,
            "Consul does not know that this sidecar is transparent, so its own xDS would not serve it; files that enmesh writes do",
        )
    },
    field(
        &[PROXY[0], PROXY[1], PROXY[2], "transparent_proxy"],
        10,
        "others learn no virtual address and no direct dialling of this service from Consul",
    ),
    field(&["socket_path"], 10, "the service has no address that the sidecar could hand connections to"),
    field(
        &[PROXY[0], PROXY[1], PROXY[2], "local_service_socket_path"],
        10,
        "the sidecar hands connections to the service's port instead of its socket",
    ),
    Field {
        goes: Goes::Item,
        ..field(
            &[PROXY[0], PROXY[1], PROXY[2], "upstreams", "*", "local_bind_socket_path"],
            10,
            "the upstream is left out, since it has no port",
        )
    },
    Field {
        goes: Goes::Item,
        ..field(
            &[PROXY[0], PROXY[1], PROXY[2], "upstreams", "*", "destination_peer"],
            13,
            "the upstream is left out, since without its peer it would lead to a service of this cluster",
        )
    },
    scoped(
        &[PROXY[0], PROXY[1], PROXY[2], "upstreams", "*", "destination_partition"],
        11,
        Goes::Item,
        "the upstream is left out, since without its partition it would lead elsewhere",
    ),
    scoped(
        &[PROXY[0], PROXY[1], PROXY[2], "upstreams", "*", "destination_namespace"],
        7,
        Goes::Item,
        "the upstream is left out, since without its namespace it would lead elsewhere",
    ),
    scoped(&["namespace"], 7, Goes::Field, "the service is in the one namespace that there is"),
    scoped(&["partition"], 11, Goes::Field, "the service is in the one partition that there is"),
    field(&["locality"], 16, "others do not prefer instances that are near"),
    field(&[PROXY[0], PROXY[1], "locality"], 16, "others do not prefer instances that are near"),
    field(
        &[PROXY[0], PROXY[1], PROXY[2], "access_logs"],
        15,
        "Consul does not switch the sidecar's access log on",
    ),
    field(&[PROXY[0], PROXY[1], PROXY[2], "envoy_extensions"], 15, "the extensions are not in the sidecar"),
    field(&["ports"], 22, "the service is registered without its further ports"),
];

/// What the server takes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Gate {
    version: Option<Version>,
    enterprise: bool,
    /// Fields that the server has refused; places in [`FIELDS`].
    refused: BTreeSet<usize>,
}

impl Gate {
    /// For a server of `version`. Without a version everything is let through, and what the server
    /// refuses is learnt.
    pub fn new(version: Option<Version>, enterprise: bool) -> Self {
        Gate { version, enterprise, refused: BTreeSet::new() }
    }

    /// For the server that told `facts`.
    pub fn of(facts: &ServerFacts) -> Self {
        Gate::new(facts.version, facts.enterprise)
    }

    /// Whether the server has `feature`; `None` when its version is not known.
    pub fn has(&self, feature: Feature) -> Option<bool> {
        self.version.map(|version| version >= feature.since())
    }

    /// The features that the server's release does not have, each with the release that brought it.
    pub fn without(&self) -> Vec<String> {
        let lacking = Feature::ALL.into_iter().filter(|feature| self.has(*feature) == Some(false));
        lacking.map(|feature| format!("{} ({})", feature.name(), feature.since())).collect()
    }

    /// `service` (the object inside `{"service": …}`) without what the server does not take, and what
    /// that costs.
    pub fn prune(&self, service: &Value) -> (Value, Vec<Fault>) {
        let mut pruned = service.clone();
        let mut warnings = Vec::new();
        for (place, field) in FIELDS.iter().enumerate() {
            if !self.lacks(place, field) {
                continue;
            }
            let mut costs = false;
            remove(&mut pruned, field.path, field, &mut costs);
            if costs {
                warnings.push(self.warning(place, field));
            }
        }
        (pruned, warnings)
    }

    /// Takes note that the server does not know the field that the API calls `name`. Returns whether
    /// that is one of the fields that can be left out of `service`.
    pub fn learn(&mut self, name: &str, service: &Value) -> bool {
        let known = FIELDS.iter().enumerate().find(|(place, field)| {
            !self.lacks(*place, field)
                && field.path.last().is_some_and(|last| http_key(last).eq_ignore_ascii_case(name))
                && stands(service, field.path)
        });
        known.is_some_and(|(place, _)| self.refused.insert(place))
    }

    fn lacks(&self, place: usize, field: &Field) -> bool {
        self.refused.contains(&place)
            || self
                .version
                .is_some_and(|version| version < field.since || (field.enterprise && !self.enterprise))
    }

    fn warning(&self, place: usize, field: &Field) -> Fault {
        let (label, cost) = (field.path.join("."), field.cost.to_owned());
        let too_old = self.version.is_none_or(|version| version < field.since);
        if field.enterprise && (!too_old || !self.refused.contains(&place)) {
            return ConsulWarning::Enterprise { field: label, cost }.into();
        }
        let version = self.version.map_or_else(|| "of an unknown version".to_owned(), |it| it.to_string());
        ConsulWarning::LeftOut { field: label, version, since: field.since.to_string(), cost }.into()
    }
}

/// Takes what `path` leads to out of `value`; says through `costs` whether that makes a difference.
/// Returns whether the item that `value` is has to go.
fn remove(value: &mut Value, path: &[&str], field: &Field, costs: &mut bool) -> bool {
    match (path, value) {
        (["*", rest @ ..], Value::Array(items)) => {
            items.retain_mut(|item| !remove(item, rest, field, costs));
            false
        }
        ([last], Value::Object(fields)) => {
            let Some(gone) = fields.remove(*last) else { return false };
            let same = gone.is_null() || gone.as_str().is_some_and(|text| field.same_without.contains(&text));
            *costs |= !same;
            !same && field.goes == Goes::Item
        }
        ([next, rest @ ..], Value::Object(fields)) => {
            fields.get_mut(*next).is_some_and(|value| remove(value, rest, field, costs))
        }
        _ => false,
    }
}

fn stands(value: &Value, path: &[&str]) -> bool {
    match (path, value) {
        ([], _) => true,
        (["*", rest @ ..], Value::Array(items)) => items.iter().any(|item| stands(item, rest)),
        ([next, rest @ ..], Value::Object(fields)) => {
            fields.get(*next).is_some_and(|value| stands(value, rest))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn everything() -> Value {
        json!({
            "name": "api", "namespace": "ns", "partition": "default", "locality": { "region": "eu" },
            "connect": { "sidecar_service": { "port": 21000, "proxy": {
                "mode": "transparent", "transparent_proxy": { "dialed_directly": true },
                "access_logs": { "enabled": true },
                "upstreams": [
                    { "destination_name": "near", "local_bind_port": 1, "destination_namespace": "default" },
                    { "destination_name": "far", "local_bind_port": 2, "destination_peer": "east" },
                ],
            } } },
        })
    }

    fn gate(version: &str, enterprise: bool) -> Gate {
        Gate::new(Some(version.parse().unwrap()), enterprise)
    }

    fn codes(warnings: &[Fault]) -> Vec<&'static str> {
        warnings.iter().map(|warning| warning.code).collect()
    }

    #[test]
    fn an_old_server_gets_what_it_knows_and_each_loss_is_said() {
        let (pruned, warnings) = gate("1.8.7", false).prune(&everything());
        let left = json!({
            "name": "api",
            "connect": { "sidecar_service": { "port": 21000, "proxy": {
                "upstreams": [{ "destination_name": "near", "local_bind_port": 1 }],
            } } },
        });
        assert_eq!(pruned, left);
        // mode, transparent_proxy, the peer's upstream, namespace, locality, access_logs.
        assert_eq!(
            codes(&warnings),
            ["ENM-K050", "ENM-K050", "ENM-K050", "ENM-K051", "ENM-K050", "ENM-K050"]
        );
        assert!(warnings[0].message.contains("1.8.7") && warnings[0].message.contains("1.10"));
    }

    #[test]
    fn a_new_server_gets_everything() {
        let (pruned, warnings) = gate("1.22.0", true).prune(&everything());
        assert_eq!((pruned, warnings), (everything(), vec![]));
        let (pruned, warnings) = gate("1.22.0", false).prune(&everything());
        assert_eq!(codes(&warnings), ["ENM-K051"]);
        assert_eq!(
            pruned.pointer("/connect/sidecar_service/proxy/upstreams/1/destination_peer"),
            Some(&json!("east"))
        );
    }

    #[test]
    fn a_default_goes_without_a_word() {
        let service = json!({ "connect": { "sidecar_service": { "proxy": { "mode": "direct" } } } });
        let (pruned, warnings) = gate("1.8.7", false).prune(&service);
        assert_eq!(pruned, json!({ "connect": { "sidecar_service": { "proxy": {} } } }));
        assert_eq!(warnings, []);
    }

    #[test]
    fn without_a_version_the_server_teaches() {
        let mut gate = Gate::default();
        assert_eq!(gate.prune(&everything()), (everything(), vec![]));
        assert!(gate.learn("Mode", &everything()));
        assert!(!gate.learn("Mode", &everything()), "a second time it would not help");
        assert!(!gate.learn("Zed", &everything()), "not a field that can be left out");
        assert!(!gate.learn("SocketPath", &everything()), "not a field of this service");
        let (pruned, warnings) = gate.prune(&everything());
        assert_eq!(pruned.pointer("/connect/sidecar_service/proxy/mode"), None);
        assert_eq!(codes(&warnings), ["ENM-K050"]);
        assert!(gate.learn("Namespace", &everything()));
        assert_eq!(gate.has(Feature::VirtualIps), None);
    }

    #[test]
    fn features_follow_the_version() {
        let has = |version, feature| gate(version, false).has(feature).unwrap();
        assert!(!has("1.9.17", Feature::TransparentProxy) && has("1.10.0", Feature::TransparentProxy));
        assert!(!has("1.10.9", Feature::VirtualIps) && has("1.11.0", Feature::VirtualIps));
        assert!(
            !has("1.15.3", Feature::Locality)
                && has("2.0.0", Feature::Locality)
                && !has("2.0.0", Feature::Sds)
        );
    }
}
