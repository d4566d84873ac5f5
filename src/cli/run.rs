//! `enmesh run`

use clap::Args;
use serde_json::json;

use super::Global;
use super::output::Answer;
use crate::base::Fault;
use crate::daemon;
use crate::daemon::log::LogFormat;

/// Run the daemon
#[derive(Debug, Args)]
#[command(
    after_help = "At SIGTERM and SIGINT it ends: a container leaves Consul, a machine with systemd stays registered ([stop] says\notherwise). SIGHUP reads the configuration again, SIGUSR1 goes on to the sidecars, which open their logs anew.\n\nExit status 0 after an end that was asked for, 1 when something of it failed, 65 when the environment has a bad value,\n69 when something needed is not there or another daemon runs, 77 when a privilege is missing.\n\nExamples:\n  systemctl start enmesh        the usual way\n  enmesh run                    in a container, as PID 1\n  enmesh run --log json         JSON lines on standard output, wherever it runs\n  enmesh run --root /tmp/host   a host of its own below /tmp/host"
)]
pub struct Run {
    /// How it logs, else as ENMESH_LOG says: `auto` is the journal, else lines on a terminal, else JSON lines on standard output
    #[arg(long, value_enum, value_name = "FORMAT")]
    log: Option<LogFormat>,
}

impl Run {
    /// How it logs, by the flag or else by the environment.
    pub fn log(&self) -> Result<LogFormat, Fault> {
        self.log.map_or_else(LogFormat::of_environment, Ok)
    }

    pub async fn run(self, global: &Global) -> Result<Answer, Fault> {
        daemon::run(global.root()).await?;
        Ok(Answer::new("", &json!({ "ended": true })))
    }
}
