//! The folder of config entries: kept in Consul, compared for `enmesh plan`, and read for `enmesh check`.

use std::path::PathBuf;

use super::change::{Change, Kind, Subject};
use super::engine::Engine;
use crate::base::{Fault, Root};
use crate::config::{ConsulConfig, HostConfig};
use crate::consul::entries::{self, Difference};

/// The folder that `consul` names, below `root`.
pub(super) fn folder(root: &Root, consul: &ConsulConfig) -> Option<PathBuf> {
    consul.config_entries.as_ref().map(|folder| root.join(folder))
}

/// What is wrong with the folder of config entries that `host` names, without asking Consul; and how
/// many entries are good.
pub fn check_entries(root: &Root, host: &HostConfig) -> (usize, Vec<Fault>) {
    let Some(folder) = folder(root, &host.consul) else { return (0, Vec::new()) };
    let (entries, faults) = entries::load(&folder);
    (entries.len(), faults)
}

impl Engine {
    /// Writes those entries that Consul has otherwise; each that is wrong is a fault of its own and stops
    /// no other. Consul is asked as soon as there is contact.
    pub(super) async fn keep_entries(&mut self) -> Vec<Fault> {
        let Some(membership) = &self.adapters.drive.membership else { return Vec::new() };
        let Some(folder) = folder(&self.root, &self.host.consul) else { return Vec::new() };
        let (entries, mut faults) = entries::load(&folder);
        let Some(facts) = membership.facts() else { return faults };
        match entries::apply(membership.client(), facts.version, &entries).await {
            Ok(outcome) => {
                for Difference { entry, lines } in outcome.differences {
                    tracing::info!(entry, "written to Consul: {}", lines.join("; "));
                }
                faults.extend(outcome.faults);
            }
            Err(fault) => faults.push(fault),
        }
        faults
    }

    /// What [`Engine::keep_entries`] would write, and what is wrong with the others.
    ///
    /// # Errors
    /// Consul does not answer.
    pub(super) async fn diff_entries(&self) -> Result<(Vec<Change>, Vec<Fault>), Fault> {
        let Some(membership) = &self.adapters.drive.membership else { return Ok((Vec::new(), Vec::new())) };
        let Some(folder) = folder(&self.root, &self.host.consul) else { return Ok((Vec::new(), Vec::new())) };
        let (entries, mut faults) = entries::load(&folder);
        let Some(facts) = membership.facts() else { return Ok((Vec::new(), faults)) };
        let outcome = entries::plan(membership.client(), facts.version, &entries).await?;
        faults.extend(outcome.faults);
        Ok((outcome.differences.into_iter().map(change).collect(), faults))
    }
}

fn change(difference: Difference) -> Change {
    let Difference { entry, lines } = difference;
    let new = lines == [format!("+ {entry}")];
    Change {
        subject: Subject::ConfigEntry,
        name: entry,
        kind: if new { Kind::Add } else { Kind::Change },
        service: None,
        details: if new { Vec::new() } else { lines },
    }
}
