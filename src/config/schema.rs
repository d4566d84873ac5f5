//! JSON Schema of the two kinds of files, made from the types.

use schemars::{JsonSchema, schema_for};
use serde_json::Value;

use super::{HostConfig, ServiceConfig};

/// The schema of a service file.
pub fn schema_service() -> Value {
    titled::<ServiceConfig>("enmesh service file")
}

/// The schema of the host file and its drop-ins.
pub fn schema_host() -> Value {
    titled::<HostConfig>("enmesh host file")
}

fn titled<T: JsonSchema>(title: &str) -> Value {
    let mut schema = schema_for!(T).to_value();
    if let Some(fields) = schema.as_object_mut() {
        fields.insert("title".to_owned(), title.into());
    }
    schema
}
