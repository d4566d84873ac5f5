//! `enmesh apply`

use clap::Args;
use serde_json::{Value, json};

use super::Global;
use super::output::Answer;
use super::status::{self, at, faults_of};
use crate::base::Fault;
use crate::converge::{Engine, Lock, Purpose, Status};
use crate::daemon::client;

/// Converge once and exit
#[derive(Debug, Args)]
#[command(
    after_help = "Where the daemon runs, it does the work and this command waits for it.\n\nExamples:\n  enmesh apply          everything\n  enmesh apply api      bring `api` back after `enmesh down api`"
)]
pub struct Apply {
    /// Services that an earlier `enmesh down` took out and that come back; all of them by default
    services: Vec<String>,
}

impl Apply {
    pub async fn run(self, global: &Global) -> Result<Answer, Fault> {
        let root = global.root();
        if let Some(done) = client::apply(&root, &self.services).await? {
            return Ok(answer(done));
        }
        let _lock = Lock::take(&root)?;
        let (mut engine, unreadable) = Engine::open(root, Purpose::Converge).await?;
        engine.lift_down(&self.services)?;
        let intent = engine.intend().await?;
        let (mut faults, mut warnings) = (intent.faults(), intent.warnings());
        warnings.extend(unreadable);
        faults.extend(engine.converge(intent).await.faults);
        let mut status = Status::default();
        status.update(&engine);
        status.converged(faults.clone(), warnings.clone());
        let json = json!({ "faults": faults, "status": status });
        Ok(Answer::new(status::table(at(&json, "/status")), &json).with_faults(faults, warnings))
    }
}

fn answer(done: Value) -> Answer {
    let faults = faults_of(at(&done, "/faults"));
    let warnings = faults_of(at(&done, "/status/warnings"));
    match faults_of(at(&done, "/error")).pop() {
        Some(fault) => Answer::new("", &done).with_faults(vec![fault], Vec::new()),
        None => Answer::new(status::table(at(&done, "/status")), &done).with_faults(faults, warnings),
    }
}
