//! `enmesh migrate`

use std::fmt::Write as _;

use clap::Args;
use serde_json::json;

use super::Global;
use super::output::Answer;
use crate::base::Fault;
use crate::converge::handover::{self, Fate, Found, HandoverError};
use crate::converge::{Engine, Lock, Purpose};
use crate::daemon::client;

/// Take over from the scripts and redirectors that have set the rules so far
#[derive(Debug, Args)]
#[command(
    after_help = "Without --yes it shows what is there, what would go in which order, and what stays. With --yes the rules of\nthis host's configuration come up beside the old ones, and the old ones go when every sidecar is live.\nRules of anybody else stay as they are.\n\nExamples:\n  enmesh migrate\n  enmesh migrate --yes\n  enmesh redirect-traffic --take-over -proxy-uid envoy -proxy-inbound-port 20000    without a service file"
)]
pub struct Migrate {
    /// Do it
    #[arg(long)]
    yes: bool,
}

impl Migrate {
    pub async fn run(self, global: &Global) -> Result<Answer, Fault> {
        let root = global.root();
        let found = handover::find(&root)?;
        if !self.yes || found.is_empty() {
            return Ok(Answer::new(text(&found), &json!({ "found": found })));
        }
        if client::status(&root).await?.is_some() {
            return Err(HandoverError::DaemonRuns.into());
        }
        let _lock = Lock::take(&root)?;
        let (mut engine, unreadable) = Engine::open(root, Purpose::Converge).await?;
        let intent = engine.intend().await?;
        let mut warnings = intent.warnings();
        warnings.extend(unreadable);
        let done = engine.migrate(intent, &found).await;
        let mut text = String::new();
        for script in &done.moved {
            let _ = writeln!(text, "moved aside  {}", script.path.display());
        }
        for leftover in &done.removed {
            let _ = writeln!(text, "removed      {} ({})", leftover.table, leftover.owner);
        }
        if done.faults.is_empty() {
            text.push_str("enmesh's rules are in force; start the daemon: systemctl enable --now enmesh\n");
        }
        let json =
            json!({ "found": found, "removed": done.removed, "moved": done.moved, "faults": done.faults });
        Ok(Answer::new(text, &json).with_faults(done.faults, warnings))
    }
}

fn text(found: &Found) -> String {
    let mut text = String::new();
    if found.is_empty() {
        text.push_str("nothing to take over: no rules of another redirector, no unit of the scripts\n");
    } else {
        text.push_str("in this order:\n");
        for script in found.scripts.iter().filter(|script| script.fate == Fate::MovedAside) {
            let _ = writeln!(text, "  move aside {} ({})", script.path.display(), script.because);
        }
        text.push_str("  set enmesh's rules beside what is there, and wait until every sidecar is live\n");
        for leftover in &found.rules {
            if leftover.whole {
                let _ = writeln!(text, "  remove the table {} ({})", leftover.table, leftover.owner);
                continue;
            }
            let _ = writeln!(text, "  remove from table {} ({}):", leftover.table, leftover.owner);
            leftover.jumps.iter().for_each(|jump| text.push_str(&format!("    rule {jump}\n")));
            let _ = writeln!(text, "    chains {}", leftover.chains.join(", "));
        }
    }
    let stay: Vec<_> = found.scripts.iter().filter(|script| script.fate != Fate::MovedAside).collect();
    if !stay.is_empty() || !found.dns.is_empty() {
        text.push_str("what stays:\n");
    }
    for script in stay {
        let _ = writeln!(text, "  {} ({})", script.path.display(), script.because);
    }
    for rule in &found.dns {
        let _ = writeln!(
            text,
            "  rule {rule}: sends names to Consul; take it out by hand when enmesh answers them"
        );
    }
    if !found.is_empty() {
        text.push_str("every other rule stays as it is; `enmesh migrate --yes` does it\n");
    }
    text
}
