//! `enmesh early`

use clap::Args;
use serde_json::json;

use super::Global;
use super::output::Answer;
use crate::base::Fault;
use crate::converge::{Early as Done, early};

/// Refuse what belongs into the mesh until the daemon is there
#[derive(Debug, Args)]
#[command(
    after_help = "Loads the rules of the last generation with no sidecar live. enmesh-early.service calls it before the\nnetwork is up; the daemon takes the rules over as they are. It asks nobody and writes nothing.\n\nExamples:\n  systemctl enable enmesh-early enmesh      closed from power-on\n  enmesh early --json                       what it closes"
)]
pub struct Early {}

impl Early {
    pub async fn run(self, global: &Global) -> Result<Answer, Fault> {
        let Done { rules, faults } = early(&global.root()).await;
        let text = match &rules {
            Some(policy) => format!("closed: the rules of generation {}", policy.generation),
            None if faults.is_empty() => "nothing to close: no generation is recorded".to_owned(),
            None => String::new(),
        };
        let json = json!({ "rules": rules, "faults": faults });
        Ok(Answer::new(text, &json).with_faults(faults, Vec::new()))
    }
}
