//! The rules alone, set once: what an init container does before the app of its group starts.
//!
//! Nobody is asked. An init container has no identity to log in with and no port to answer at, and what the mesh would
//! tell it (instances that are dialled by their own address) the sidecar hears as soon as it runs.

use std::collections::BTreeSet;

use super::adapters::firewall;
use super::early::Early;
use super::engine::load;
use super::lock::Lock;
use super::state::State;
use super::{facts, preflight};
use crate::base::{Fault, Root};
use crate::netns;
use crate::plan::{self, MeshView};
use crate::redirect::Desired;

/// Closes the group by its configuration: the rules of every service, with no sidecar live.
///
/// # Errors
/// `ENM-D014` without the capability, `ENM-D003` where the daemon runs already, and what the firewall says. What is
/// wrong with the configuration is among the faults of the answer, and then nothing was set.
pub async fn init(root: &Root) -> Result<Early, Fault> {
    let state = State::default();
    let config = load(root, &state);
    if facts::is_reduced(&config.host) {
        // A sidecar does without, and says so; whoever starts this wants rules.
        preflight::capabilities(false, true)?;
    }
    let facts = facts::offline(root, &config, &state, MeshView::default())?;
    let plan = plan::plan(&config, &facts);
    let faults: Vec<Fault> = config.errors.into_iter().chain(plan.errors).collect();
    if !faults.is_empty() || plan.redirect.is_empty() {
        return Ok(Early { rules: None, faults });
    }
    preflight::capabilities(false, true)?;
    let _lock = Lock::take(root)?;
    if let Some(net) = plan.redirect.virtual_route {
        netns::ensure_virtual_route(net).await?;
    }
    firewall(config.host.driver).apply(&Desired { policy: plan.redirect.clone(), live: BTreeSet::new() })?;
    Ok(Early { rules: Some(plan.redirect), faults })
}
