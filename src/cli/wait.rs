//! `enmesh wait`

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

/// Wait until a service's sidecar is live
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  enmesh wait api --timeout 30s\n  ExecStartPre=/usr/bin/enmesh wait api        in the application's unit"
)]
pub struct Wait {
    /// The service's id
    service: String,
    /// How long to wait at most
    #[arg(long, value_name = "SPAN", default_value = "60s")]
    timeout: Span,
}

impl Wait {
    pub async fn run(self, global: &Global) -> Result<Answer, Fault> {
        let root = global.root();
        let id = self.service.parse().map_err(|_| ConvergeError::NoService { id: self.service.clone() })?;
        let started = Instant::now();
        loop {
            let phase = match client::status(&root).await? {
                Some(status) => at(&status, &format!("/services/{}/phase", self.service))
                    .as_str()
                    .unwrap_or("unknown")
                    .to_owned(),
                None => "no daemon runs".to_owned(),
            };
            if phase == "live" {
                let json: Value = json!({ "service": self.service, "live": true });
                return Ok(Answer::new("", &json));
            }
            if started.elapsed() >= self.timeout.0 {
                return Err(ConvergeError::NotLive { id, limit: self.timeout.0, state: phase }.into());
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}
