//! `enmesh wait`

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value, json};

use super::Global;
use super::output::Answer;
use super::status::at;
use crate::base::Fault;
use crate::config::value::Span;
use crate::converge::ConvergeError;
use crate::daemon::client;

/// How often the daemon is asked; only while this command runs.
const LOOK: Duration = Duration::from_millis(50);

/// Wait until a service's sidecar is live, or the whole host is in the mesh
#[derive(Debug, Args)]
#[command(
    after_help = "Without a service it waits until every service of this host is live and nothing is wrong; a host \
without any service fails.\n\nExamples:\n  enmesh wait api --timeout 30s\n  enmesh wait --timeout 2m                     all of them: at the end of a machine's set-up\n  \
ExecStartPre=/usr/bin/enmesh wait api        in the application's unit"
)]
pub struct Wait {
    /// The service's id; the whole host by default
    service: Option<String>,
    /// How long to wait at most
    #[arg(long, value_name = "SPAN", default_value = "60s")]
    timeout: Span,
}

impl Wait {
    pub async fn run(self, global: &Global) -> Result<Answer, Fault> {
        let root = global.root();
        let id = match &self.service {
            Some(name) => Some(name.parse().map_err(|_| ConvergeError::NoService { id: name.clone() })?),
            None => None,
        };
        let started = Instant::now();
        loop {
            let status = client::status(&root).await?;
            let state = match (&status, &self.service) {
                (None, _) => "no daemon runs".to_owned(),
                (Some(status), Some(name)) => phase(at(status, &format!("/services/{name}"))).to_owned(),
                (Some(status), None) => host(status),
            };
            if state == LIVE {
                return Ok(Answer::new("", &json!({ "service": self.service, "live": true })));
            }
            if started.elapsed() >= self.timeout.0 {
                let limit = self.timeout.0;
                return Err(match id {
                    Some(id) => ConvergeError::NotLive { id, limit, state },
                    None => ConvergeError::NotInMesh { limit, state },
                }
                .into());
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// What is waited for.
const LIVE: &str = "live";

/// How a service is.
fn phase(service: &Value) -> &str {
    at(service, "/phase").as_str().unwrap_or("unknown")
}

/// How the host is: live, or what is missing.
fn host(status: &Value) -> String {
    let services = at(status, "/services").as_object();
    if services.is_none_or(serde_json::Map::is_empty)
        && at(status, "/faults").as_array().is_none_or(Vec::is_empty)
    {
        return "it has no service".to_owned();
    }
    if at(status, "/ready") == &Value::Bool(true) {
        return LIVE.to_owned();
    }
    let mut missing = String::new();
    for (id, service) in services.into_iter().flatten().filter(|(_, service)| phase(service) != LIVE) {
        let _ = write!(missing, "{id}: {}; ", phase(service));
    }
    for fault in at(status, "/faults").as_array().into_iter().flatten() {
        let said = |key| at(fault, key).as_str().unwrap_or_default();
        let _ = write!(missing, "{} {}; ", said("/code"), said("/message"));
    }
    match missing.trim_end_matches("; ") {
        "" => "not yet converged".to_owned(),
        missing => missing.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::host;

    #[test]
    fn a_host_says_what_it_lacks() {
        let fault = json!({ "code": "ENM-K001", "message": "nobody answers" });
        let starting = json!({ "ready": false, "faults": [fault], "services": {
            "api": { "phase": "starting" }, "web": { "phase": "live" } } });
        assert_eq!(host(&starting), "api: starting; ENM-K001 nobody answers");
        assert_eq!(
            host(&json!({ "ready": false, "services": { "web": { "phase": "live" } } })),
            "not yet converged"
        );
        assert_eq!(host(&json!({ "ready": true, "faults": [], "services": {} })), "it has no service");
        let live = json!({ "ready": true, "faults": [], "services": { "web": { "phase": "live" } } });
        assert_eq!(host(&live), "live");
    }
}
