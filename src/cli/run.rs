//! `enmesh run`

use clap::Args;
use serde_json::json;

use super::Global;
use super::output::Answer;
use crate::base::Fault;
use crate::daemon;

/// Run the daemon
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  systemctl start enmesh        the usual way\n  enmesh run                    in a container, as PID 1\n  enmesh run --root /tmp/host   a host of its own below /tmp/host"
)]
pub struct Run {}

impl Run {
    pub async fn run(self, global: &Global) -> Result<Answer, Fault> {
        daemon::run(global.root()).await?;
        Ok(Answer::new("", &json!({ "ended": true })))
    }
}
