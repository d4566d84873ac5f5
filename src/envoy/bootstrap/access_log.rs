//! The log of what was asked of the admin interface.

use serde_json::{Value, json};

use crate::envoy::typed::extension;
use crate::plan::{AccessLog, LogFormat, LogTarget};

/// `log` as an access logger.
pub fn access_log(log: &AccessLog) -> Value {
    let (name, message) = match &log.to {
        LogTarget::Stdout => ("envoy.access_loggers.stdout", "stream.v3.StdoutAccessLog"),
        LogTarget::Stderr => ("envoy.access_loggers.stderr", "stream.v3.StderrAccessLog"),
        LogTarget::File(_) => ("envoy.access_loggers.file", "file.v3.FileAccessLog"),
    };
    let mut fields = match &log.format {
        LogFormat::Usual => json!({"log_format": {"json_format": usual()}}),
        LogFormat::Json(format) => json!({"log_format": {"json_format": format}}),
        LogFormat::Text(text) => {
            json!({"log_format": {"text_format_source": {"inline_string": format!("{text}\n")}}})
        }
    };
    if let (LogTarget::File(path), Some(map)) = (&log.to, fields.as_object_mut()) {
        map.insert("path".to_owned(), json!(path));
    }
    extension(name, &format!("envoy.extensions.access_loggers.{message}"), fields)
}

/// What there is to say about a request of an administrator.
fn usual() -> Value {
    json!({
        "start_time": "%START_TIME%",
        "method": "%REQ(:METHOD)%",
        "path": "%REQ(:PATH)%",
        "response_code": "%RESPONSE_CODE%",
        "response_flags": "%RESPONSE_FLAGS%",
        "bytes_sent": "%BYTES_SENT%",
        "duration": "%DURATION%",
        "user_agent": "%REQ(USER-AGENT)%",
    })
}
