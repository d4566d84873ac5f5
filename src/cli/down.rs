//! `enmesh down`

use clap::Args;
use serde_json::json;

use super::Global;
use super::output::Answer;
use super::status::{at, faults_of};
use crate::base::Fault;
use crate::converge::{Engine, Lock, Purpose};
use crate::daemon::client;

/// Take services out of the mesh
#[derive(Debug, Args)]
#[command(
    after_help = "Inbound connections get the time of [envoy] drain to end. Without names everything goes: sidecars,\nrules, route, names, and the daemon ends. What was given out (ports, virtual IPs) and the local CA\nare remembered, so that coming back changes nothing.\n\nExamples:\n  enmesh down           everything\n  enmesh down api       only `api`, until `enmesh apply api`"
)]
pub struct Down {
    /// Services to take out; all of them by default
    services: Vec<String>,
}

impl Down {
    pub async fn run(self, global: &Global) -> Result<Answer, Fault> {
        let root = global.root();
        let text = match self.services.as_slice() {
            [] => "everything is down".to_owned(),
            names => format!("down: {}", names.join(", ")),
        };
        if let Some(done) = client::down(&root, &self.services).await? {
            let faults = match faults_of(at(&done, "/error")) {
                refused if !refused.is_empty() => refused,
                _ => faults_of(at(&done, "/faults")),
            };
            let text = if faults.is_empty() { text } else { String::new() };
            return Ok(Answer::new(text, &done).with_faults(faults, Vec::new()));
        }
        let _lock = Lock::take(&root)?;
        let (mut engine, _) = Engine::open(root, Purpose::Converge).await?;
        let faults = engine.down(&self.services).await?.faults;
        let text = if faults.is_empty() { text } else { String::new() };
        Ok(Answer::new(text, &json!({ "faults": faults })).with_faults(faults, Vec::new()))
    }
}
