//! What differs between a registration as it was sent and as Consul gives it back.

use std::collections::BTreeSet;

use serde_json::Value;

/// The check that Consul adds to a service in maintenance; it is nobody's drift.
const MAINTENANCE: &str = "_service_maintenance:";

/// The fields of `wanted` (the API's form of a registration) that are otherwise in `is` (the API's
/// form of a registered service), as lines about `id`.
pub(super) fn fields(id: &str, wanted: &Value, is: &Value) -> Vec<String> {
    /// Not part of what is given back.
    const APART: [&str; 7] = ["Check", "Checks", "Connect", "Namespace", "Partition", "Token", "Locality"];
    let mut lines = Vec::new();
    for (key, value) in wanted.as_object().into_iter().flatten() {
        // Tags that others may change are theirs.
        let theirs = key == "Tags" && wanted.get("EnableTagOverride") == Some(&Value::Bool(true));
        if theirs || APART.contains(&key.as_str()) {
            continue;
        }
        let key = if key == "Name" { "Service" } else { key };
        differ(value, is.get(key).unwrap_or(&Value::Null), key, &mut |path| {
            lines.push(format!("~ {id}: {path}"))
        });
    }
    lines
}

/// Says the places where `is` lacks what `wanted` has. What Consul adds (defaults, addresses) is no
/// difference, and neither is a default that it leaves out.
fn differ(wanted: &Value, is: &Value, path: &str, say: &mut dyn FnMut(&str)) {
    match (wanted, is) {
        (Value::Object(wanted), Value::Object(is)) => {
            for (key, value) in wanted {
                let path = format!("{path}.{key}");
                differ(value, is.get(key).unwrap_or(&Value::Null), &path, say);
            }
        }
        (Value::Array(wanted), Value::Array(is)) if wanted.len() == is.len() => {
            for (position, (wanted, is)) in wanted.iter().zip(is).enumerate() {
                differ(wanted, is, &format!("{path}[{position}]"), say);
            }
        }
        // Go writes 1.0 as 1.
        (Value::Number(wanted), Value::Number(is)) if wanted.as_f64() == is.as_f64() => {}
        _ if wanted == is || (is_empty(wanted) && is_empty(is)) => {}
        _ => say(path),
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(flag) => !flag,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.values().all(is_empty),
    }
}

/// The checks that are missing or too many, as lines.
pub(super) fn checks(wanted: &BTreeSet<String>, are: &BTreeSet<String>) -> Vec<String> {
    let missing = wanted.difference(are).map(|id| format!("+ check {id}"));
    let extra = are.difference(wanted).filter(|id| !id.starts_with(MAINTENANCE));
    missing.chain(extra.map(|id| format!("- check {id}"))).collect()
}

/// The ids that an agent gives to the checks of `service`: the one that a check has, else one that
/// is made of the service's id and, among several, the check's place.
pub(super) fn check_ids(id: &str, service: &Value) -> BTreeSet<String> {
    let single = service.get("Check").filter(|check| !is_empty(check));
    let list = service.get("Checks").and_then(Value::as_array);
    let all: Vec<&Value> = single.into_iter().chain(list.into_iter().flatten()).collect();
    let own = |check: &Value| check.get("CheckID").and_then(Value::as_str).map(str::to_owned);
    all.iter()
        .enumerate()
        .map(|(place, check)| {
            own(check).unwrap_or_else(|| {
                if all.len() == 1 { format!("service:{id}") } else { format!("service:{id}:{}", place + 1) }
            })
        })
        .collect()
}

/// The ids of a sidecar's checks: an agent adds two where none are given.
pub(super) fn sidecar_check_ids(id: &str, sidecar: &Value) -> BTreeSet<String> {
    let own = check_ids(id, sidecar);
    if own.is_empty() { (1..=2).map(|place| format!("service:{id}:{place}")).collect() } else { own }
}

/// The id of the check that says that service `id` is in maintenance.
pub(super) fn maintenance_check(id: &str) -> String {
    format!("{MAINTENANCE}{id}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_consul_adds_is_no_difference_and_what_it_lost_is() {
        // As Consul 1.8.7 gives it back.
        let is = json!({
            "Service": "api", "ID": "api", "Port": 8080, "Tags": ["a"], "Address": "127.0.0.1",
            "TaggedAddresses": { "lan_ipv4": { "Address": "127.0.0.1", "Port": 8080 } },
            "Weights": { "Passing": 1, "Warning": 1 },
            "Proxy": { "Config": { "a": 1 }, "MeshGateway": {}, "Upstreams": [
                { "DestinationType": "service", "DestinationName": "db", "LocalBindPort": 5432, "MeshGateway": {} },
            ] },
        });
        let wanted = json!({
            "Name": "api", "ID": "api", "Port": 8080, "Tags": ["a"], "EnableTagOverride": false, "Checks": [{}],
            "Proxy": { "Config": { "a": 1.0, "none": {} }, "Upstreams": [
                { "DestinationName": "db", "LocalBindPort": 5432 },
            ] },
        });
        assert_eq!(fields("api", &wanted, &is), Vec::<String>::new());
        for (path, key, value, line) in [
            ("", "Name", json!("web"), "~ api: Service"),
            ("", "Port", json!(80), "~ api: Port"),
            ("", "Tags", json!(["a", "b"]), "~ api: Tags"),
            ("/Proxy/Upstreams/0", "LocalBindPort", json!(1), "~ api: Proxy.Upstreams[0].LocalBindPort"),
            ("/Proxy/Config", "b", json!("x"), "~ api: Proxy.Config.b"),
            ("", "Meta", json!({ "k": "v" }), "~ api: Meta"),
        ] {
            let mut wanted = wanted.clone();
            wanted.pointer_mut(path).unwrap()[key] = value;
            assert_eq!(fields("api", &wanted, &is), [line]);
        }
    }

    #[test]
    fn checks_get_the_ids_that_an_agent_gives() {
        let ids = |service: Value| check_ids("api", &service).into_iter().collect::<Vec<_>>();
        assert_eq!(ids(json!({})), Vec::<String>::new());
        assert_eq!(ids(json!({ "Checks": [{ "TTL": "1s" }] })), ["service:api"]);
        let mixed = json!({ "Check": { "TCP": "x" }, "Checks": [{ "CheckID": "mine" }, { "TTL": "1s" }] });
        assert_eq!(ids(mixed), ["mine", "service:api:1", "service:api:3"]);
        assert_eq!(sidecar_check_ids("p", &json!({})).len(), 2);
        let set = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect::<BTreeSet<_>>();
        let lines = checks(&set(&["a", "b"]), &set(&["b", "c", "_service_maintenance:api"]));
        assert_eq!(lines, ["+ check a", "- check c"]);
    }
}
