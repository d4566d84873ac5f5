//! `enmesh apply`

use clap::Args;
use serde_json::{Value, json};

use super::Global;
use super::output::Answer;
use super::status::{self, at, faults_of};
use crate::base::Fault;
use crate::config::value::Span;
use crate::converge::{Asked, Engine, Lock, Purpose, Status, ssh};
use crate::daemon::client;
use crate::daemon::control::Names;

/// Converge once and exit
#[derive(Debug, Args)]
#[command(
    after_help = "Where the daemon runs, it does the work and this command waits for it.\n\nExamples:\n  enmesh apply          everything\n  enmesh apply api      bring `api` back after `enmesh down api`\n  enmesh apply --confirm 60s      and back to what was before, unless `enmesh confirm` follows\n\nWith --confirm the kernel takes the rules back by itself, whatever becomes of enmesh and of your\nconnection. A running daemon takes up files as they are written: begin first, then change them;\neverything until the end of the time is on trial."
)]
pub struct Apply {
    /// Services that an earlier `enmesh down` took out and that come back; all of them by default
    services: Vec<String>,
    /// Go back to what was before unless `enmesh confirm` follows within DUR (nftables only)
    #[arg(long, value_name = "DUR")]
    confirm: Option<Span>,
    /// Capture inbound ports over which somebody is logged in by SSH as well
    #[arg(long)]
    force: bool,
}

impl Apply {
    pub async fn run(self, global: &Global) -> Result<Answer, Fault> {
        let root = global.root();
        let ssh_sessions: Vec<_> = ssh::sessions(&root).into_iter().collect();
        let Apply { services, confirm, force } = self;
        let names = Names { services, confirm, force, ssh_sessions };
        if let Some(done) = client::apply(&root, names.clone()).await? {
            return Ok(answer(done));
        }
        let Names { services, confirm, force, ssh_sessions } = names;
        let _lock = Lock::take(&root)?;
        let (mut engine, unreadable) = Engine::open(root, Purpose::Converge).await?;
        if let Some(Span(limit)) = confirm {
            engine.begin_trial(limit)?;
        }
        engine.ask(Asked { force, ssh_sessions });
        engine.lift_down(&services)?;
        once(&mut engine, unreadable).await
    }
}

/// Converges once, without a daemon.
pub async fn once(engine: &mut Engine, more: Vec<Fault>) -> Result<Answer, Fault> {
    let intent = engine.intend().await?;
    let (mut faults, mut warnings) = (intent.faults(), intent.warnings());
    warnings.extend(more);
    faults.extend(engine.converge(intent).await.faults);
    let mut status = Status::default();
    status.update(engine);
    status.converged(faults.clone(), warnings.clone());
    let json = json!({ "faults": faults, "status": status });
    Ok(Answer::new(status::table(at(&json, "/status")), &json).with_faults(faults, warnings))
}

/// What the daemon answered.
pub fn answer(done: Value) -> Answer {
    let faults = faults_of(at(&done, "/faults"));
    let warnings = faults_of(at(&done, "/status/warnings"));
    match faults_of(at(&done, "/error")).pop() {
        Some(fault) => Answer::new("", &done).with_faults(vec![fault], Vec::new()),
        None => Answer::new(status::table(at(&done, "/status")), &done).with_faults(faults, warnings),
    }
}
