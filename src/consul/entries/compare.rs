//! What differs between an entry as the file has it and as Consul gives it back.

use serde_json::Value;

use super::entry::get;

/// The places where `is` is not as `wanted` says. What Consul adds is no difference, and neither is
/// how it spells a key, a time or a default.
pub(super) fn differences(wanted: &Value, is: &Value) -> Vec<String> {
    let mut paths = Vec::new();
    differ(wanted, is, "", &mut paths);
    paths
}

fn differ(wanted: &Value, is: &Value, path: &str, paths: &mut Vec<String>) {
    match (wanted, is) {
        (Value::Object(fields), Value::Object(_)) => {
            for (key, value) in fields {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                differ(value, get(is, key).unwrap_or(&Value::Null), &path, paths);
            }
        }
        (Value::Array(items), Value::Array(others)) if items.len() == others.len() => {
            for (position, (wanted, is)) in items.iter().zip(others).enumerate() {
                differ(wanted, is, &format!("{path}[{position}]"), paths);
            }
        }
        _ if same(wanted, is) => {}
        _ => paths.push(path.to_owned()),
    }
}

fn same(wanted: &Value, is: &Value) -> bool {
    match (wanted, is) {
        // Go writes 1.0 as 1.
        (Value::Number(wanted), Value::Number(is)) => wanted.as_f64() == is.as_f64(),
        // "90s" comes back as "1m30s".
        (Value::String(wanted), Value::String(is)) => {
            wanted == is || span(wanted).is_some_and(|time| span(is) == Some(time))
        }
        // A time in nanoseconds, and as Consul writes it.
        (Value::Number(wanted), Value::String(is)) => wanted
            .as_u64()
            .is_some_and(|nanos| span(is).is_some_and(|time| time.as_nanos() == u128::from(nanos))),
        _ => wanted == is || (is_empty(wanted) && is_empty(is)),
    }
}

fn span(text: &str) -> Option<std::time::Duration> {
    humantime::parse_duration(text).ok()
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_consul_makes_of_it_is_no_difference_and_what_it_lost_is() {
        let is = json!({
            "Kind": "service-resolver", "Name": "api", "ConnectTimeout": "1m30s", "DefaultSubset": "v1",
            "Subsets": { "v1": { "Filter": "x", "OnlyPassing": false } }, "CreateIndex": 5, "ModifyIndex": 5,
        });
        let wanted = json!({
            "Kind": "service-resolver", "Name": "api", "connect_timeout": "90s", "default_subset": "v1",
            "Subsets": { "v1": { "filter": "x" } }, "Redirect": null, "Failover": {},
        });
        assert_eq!(differences(&wanted, &is), Vec::<String>::new());
        assert_eq!(differences(&json!({ "ConnectTimeout": 90_000_000_000_u64 }), &is), Vec::<String>::new());
        for (wanted, path) in [
            (json!({ "connect_timeout": "91s" }), "connect_timeout"),
            (json!({ "Subsets": { "v1": { "Filter": "y" } } }), "Subsets.v1.Filter"),
            (json!({ "Subsets": { "v2": { "Filter": "x" } } }), "Subsets.v2"),
            (json!({ "Meta": { "a": "b" } }), "Meta"),
        ] {
            assert_eq!(differences(&wanted, &is), [path]);
        }
    }
}
