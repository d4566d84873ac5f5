//! `enmesh plan`

use std::fmt::Write as _;

use clap::Args;
use serde_json::json;

use super::Global;
use super::output::Answer;
use crate::base::Fault;
use crate::converge::{self, Change, Engine, Kind, Purpose};

/// Show what `apply` would change
#[derive(Debug, Args)]
#[command(
    after_help = "Compares the plan with what is there: rules in the kernel, route, files, units, and what Consul\nhas of this host. Touches nothing, and logs in nowhere: the daemon's login is used where there is one.\n`+` comes into being, `~` becomes different, `-` goes. Says when a change waits for `enmesh confirm`.\n\nExamples:\n  enmesh plan\n  enmesh plan --exit-code       exit status 2 when something would change\n  enmesh plan --json            the changes and the whole plan"
)]
pub struct Plan {
    /// Exit with status 2 when something would change
    #[arg(long)]
    exit_code: bool,
}

/// The exit status for "there are changes".
const CHANGES: u8 = 2;

impl Plan {
    pub async fn run(self, global: &Global) -> Result<Answer, Fault> {
        let (mut engine, _) = Engine::open(global.root(), Purpose::Look).await?;
        let intent = engine.intend().await?;
        let (changes, more) = engine.diff(&intent.plan).await?;
        let (mut faults, warnings) = (intent.faults(), intent.warnings());
        faults.extend(more);
        let pending = engine.pending();
        let left = pending.map(|until| json!({ "seconds_left": until.left().as_secs() }));
        let json = json!({
            "changes": changes, "plan": intent.plan, "pending": left, "faults": faults, "warnings": warnings,
        });
        let mut told = text(&changes);
        if let Some(until) = pending {
            let _ = writeln!(told, "{}", converge::told(until));
        }
        let mut answer = Answer::new(told, &json);
        if self.exit_code && !changes.is_empty() {
            answer.exit = CHANGES;
        }
        Ok(answer.with_faults(faults, warnings))
    }
}

fn text(changes: &[Change]) -> String {
    if changes.is_empty() {
        return "no changes: the host is as the configuration says\n".to_owned();
    }
    let mut text = String::new();
    let mut heading = None;
    for change in changes {
        let service = change.service.as_ref().map_or("host", |id| id.as_str());
        if heading != Some(service) {
            let _ = writeln!(text, "{service}");
            heading = Some(service);
        }
        let _ = writeln!(text, "  {}", change.to_string().replace('\n', "\n  "));
    }
    let count = |kind| changes.iter().filter(|change| change.kind == kind).count();
    let (add, change, remove) = (count(Kind::Add), count(Kind::Change), count(Kind::Remove));
    let _ = writeln!(text, "\nplan: {add} to add, {change} to change, {remove} to remove");
    text
}
