//! Checks of the plain form. They go to Consul as they stand; where no agent runs them, enmesh does
//! those that it can read.

use serde_json::{Map, Value};

use super::super::node::Node;
use super::super::{Check, rules};

/// Keys that say nothing about how a check is run.
const NO_MATTER: [&str; 6] = ["status", "shell", "output_max_size", "token", "service_id", "ServiceID"];

/// The checks under `check` and `checks` that would be right in a native file too.
pub(super) fn checks(root: &Node) -> Vec<Check> {
    let Value::Object(fields) = root.to_json() else { return Vec::new() };
    let single = fields.get("check").into_iter();
    let list = fields.get("checks").and_then(Value::as_array).into_iter().flatten();
    let objects = single.chain(list).filter_map(Value::as_object);
    objects.filter_map(native).filter(|check| rules::takes(check, &root.at)).collect()
}

fn native(fields: &Map<String, Value>) -> Option<Check> {
    let mut fields = fields.clone();
    fields.retain(|key, value| !NO_MATTER.contains(&key.as_str()) && !value.is_null());
    for (consul, ours) in [("args", "exec"), ("check_id", "id"), ("CheckID", "id")] {
        if let Some(value) = fields.remove(consul) {
            fields.insert(ours.to_owned(), value);
        }
    }
    // Consul takes ids of any letters; a check without one gets one.
    let fits = |id: &Value| id.as_str().is_some_and(|id| super::as_id(id).as_deref() == Some(id));
    if fields.get("id").is_some_and(|id| !fits(id)) {
        fields.remove("id");
    }
    serde_json::from_value(Value::Object(fields)).ok()
}
