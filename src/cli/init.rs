//! `enmesh init`

use clap::Args;
use serde_json::json;

use super::Global;
use super::output::Answer;
use crate::base::Fault;
use crate::converge::{Early, init};

/// Set the rules with no sidecar live, and exit: for an init container
#[derive(Debug, Args)]
#[command(
    after_help = "Nothing that belongs into the mesh leaves the group in the clear from then on, and nothing reaches the app's port,\nuntil `enmesh run` has its sidecar up. It asks nobody, needs CAP_NET_ADMIN, and takes the configuration that the sidecar\nhas. Where nothing is captured it does nothing.\n\nExit status 0 when the rules are set or none are needed, 65 when the configuration is bad, 77 without the privilege.\n\nExamples:\n  enmesh init            in an init container, which shares the network namespace of the group\n  enmesh init --json     what it closes"
)]
pub struct Init {}

impl Init {
    pub async fn run(self, global: &Global) -> Result<Answer, Fault> {
        let Early { rules, faults } = init(&global.root()).await?;
        let text = match &rules {
            Some(policy) => {
                let ids: Vec<String> = policy.outbound.keys().map(ToString::to_string).collect();
                format!("closed until the sidecar is there: {}", ids.join(", "))
            }
            None if faults.is_empty() => "nothing is captured, so no rules are set".to_owned(),
            None => String::new(),
        };
        let json = json!({ "rules": rules, "faults": faults });
        Ok(Answer::new(text, &json).with_faults(faults, Vec::new()))
    }
}
