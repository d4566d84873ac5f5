//! `enmesh wait`

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value, json};

use super::Global;
use super::output::Answer;
use super::status::at;
use crate::base::Fault;
use crate::config::{self, value::Span};
use crate::converge::ConvergeError;
use crate::daemon::client;

/// How often the daemon is asked; only while this command runs.
const LOOK: Duration = Duration::from_millis(50);

/// Wait until a service's sidecar is live, or the whole host is in the mesh
#[derive(Debug, Args)]
#[command(
    after_help = "Without a service it waits until every service of this host is live and nothing is wrong; a host \
without any service fails. What was written before it is called counts.\n\nExamples:\n  enmesh wait api --timeout 30s\n  enmesh wait --timeout 2m                     all of them: at the end of a machine's set-up\n  \
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
            let written = config::stamp(&root).ok();
            let status = client::status(&root).await?;
            let state = match (&status, &self.service) {
                (None, _) => "no daemon runs".to_owned(),
                (Some(status), _) if is_behind(status, written.as_deref()) => BEHIND.to_owned(),
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

/// What was live before says nothing of what is written now.
const BEHIND: &str = "the daemon has not taken up what is in the files now";

/// Whether the daemon read other files than those there are. Where nobody knows, it is not.
fn is_behind(status: &Value, written: Option<&str>) -> bool {
    let read = at(status, "/configuration").as_str();
    matches!((read, written), (Some(read), Some(written)) if read != written)
}

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

    use super::{host, is_behind};

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

    #[test]
    fn other_files_than_were_read_are_waited_for() {
        let status = json!({ "configuration": "ab" });
        assert!(is_behind(&status, Some("cd")));
        assert!(!is_behind(&status, Some("ab")));
        // Who may not look at the files, and a daemon that does not tell.
        assert!(!is_behind(&status, None));
        assert!(!is_behind(&json!({}), Some("ab")));
    }
}
