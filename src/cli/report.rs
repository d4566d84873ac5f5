//! `enmesh report`

use clap::{Args, ValueEnum};
use serde_json::json;

use super::Global;
use super::output::Answer;
use super::status::{at, faults_of};
use crate::base::Fault;
use crate::config::CheckStatus;
use crate::converge::{self, ConvergeError};
use crate::daemon::{client, control};

/// Say how a `ttl` check is
#[derive(Debug, Args)]
#[command(
    after_help = "An app says by this how it is, more often than its check's `ttl`; once it does not, the check is\ncritical. CHECK is the `id` of the [[check]] table, else `check-N` with its place in the file.\n\nExamples:\n  enmesh report api worker pass\n  enmesh report api worker warn --output \"queue at 90 %\"\n  enmesh report api check-2 fail --output \"no database\"\n  OnFailure=…  ExecStart=/usr/bin/enmesh report api worker fail        in a unit of systemd"
)]
pub struct Report {
    /// The service's id
    service: String,
    /// The check's id
    check: String,
    /// How it is
    status: Word,
    /// Why, for whoever looks at it in Consul or in `enmesh status`
    #[arg(long, value_name = "TEXT", default_value = "")]
    output: String,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Word {
    /// The service may be used
    #[value(alias = "passing")]
    Pass,
    /// It may be used, and somebody should look at it
    #[value(alias = "warning")]
    Warn,
    /// It must not be used
    #[value(alias = "critical")]
    Fail,
}

impl Report {
    pub async fn run(self, global: &Global) -> Result<Answer, Fault> {
        let root = global.root();
        let status = match self.status {
            Word::Pass => CheckStatus::Passing,
            Word::Warn => CheckStatus::Warning,
            Word::Fail => CheckStatus::Critical,
        };
        let report =
            converge::Report { service: self.service, check: self.check, status, output: self.output };
        let Some(answer) = client::report(&root, &report).await? else {
            return Err(ConvergeError::NoDaemon { socket: root.join(control::SOCKET) }.into());
        };
        match faults_of(at(&answer, "/error")).pop() {
            Some(fault) => Ok(Answer::new("", &answer).with_faults(vec![fault], Vec::new())),
            None => Ok(Answer::new("", &json!(report))),
        }
    }
}
