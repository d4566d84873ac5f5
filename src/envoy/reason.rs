//! Why Envoy refused something, in Envoy's own words.

use std::time::Duration;

use serde_json::Value;

use super::admin::Admin;
use super::bootstrap::bootstrap;
use super::layout::{LDS, Layout};
use super::resources::{FileSet, validate_document};
use crate::base::files::{self, Access};
use crate::base::{Fault, Root, exec};
use crate::plan::ServicePlan;

/// How long a validation may take; an idle machine needs 0.2 s.
const VALIDATE_LIMIT: Duration = Duration::from_secs(10);

/// Why Envoy refused `rejected` of `set`. For listeners, the running Envoy keeps the reason, which
/// includes what only it can know (a port that is taken). For everything else it only logs it, so
/// the same program is asked to validate the same configuration.
pub async fn of_refusal(
    admin: &Admin,
    service: &ServicePlan,
    root: &Root,
    set: &FileSet,
    rejected: &[String],
) -> String {
    if rejected.iter().any(|path| path == LDS)
        && let Ok(dump) = admin.json("/config_dump?resource=dynamic_listeners").await
    {
        let details = listener_errors(&dump);
        if !details.is_empty() {
            return details.join("; ");
        }
    }
    match validate(service, root, set).await {
        Ok(Some(reason)) => reason,
        Ok(None) => "it gives no reason but in its log".to_owned(),
        Err(fault) => format!("its reason cannot be had: {fault}"),
    }
}

fn listener_errors(dump: &Value) -> Vec<String> {
    let listeners = dump.get("configs").and_then(Value::as_array).into_iter().flatten();
    listeners
        .filter_map(|listener| listener.pointer("/error_state/details")?.as_str().map(str::to_owned))
        .collect()
}

/// What `envoy --mode validate` has against the set; `None` when it has nothing.
async fn validate(service: &ServicePlan, root: &Root, set: &FileSet) -> Result<Option<String>, Fault> {
    let path = Layout::new(service, root).path("validate.json");
    let document = validate_document(&bootstrap(service, root)?, set);
    files::write_volatile(&path, format!("{document:#}").as_bytes(), Access::mode(0o600))?;
    let program = service.sidecar.program.clone();
    let argument = path.to_string_lossy().into_owned();
    let arguments =
        move || exec::run(&program, &["--mode", "validate", "-c", &argument], b"", VALIDATE_LIMIT);
    let output = tokio::task::spawn_blocking(arguments).await;
    files::remove(&path)?;
    let Ok(output) = output else { return Ok(None) };
    Ok(last_error(&output?.stderr))
}

/// The message of the last error in Envoy's log, without its time and place.
fn last_error(log: &str) -> Option<String> {
    let line = log.lines().rev().find(|line| {
        ["[critical]", "[error]"].iter().any(|level| line.contains(level)) || line.starts_with("error ")
    })?;
    let message = line.rsplit_once("] ").map_or(line, |(_, message)| message);
    Some(message.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_reason_in_a_log() {
        let log = "[2026-11-20 16:36:23.290][1][info][main] [source/server.cc:1] loading\n\
                   [2026-11-20 16:36:23.291][1][critical][main] [source/server.cc:2] error initializing config: no such key\n\
                   [2026-11-20 16:36:23.292][1][info][main] [source/server.cc:3] exiting\n";
        assert_eq!(last_error(log).as_deref(), Some("error initializing config: no such key"));
        assert_eq!(last_error("fine\n"), None);
    }
}
