//! When this host's services are told to Consul, and when they are taken back.

use std::collections::BTreeSet;

use super::engine::{Engine, keep};
use crate::base::Fault;
use crate::consul::{Entry, Key};
use crate::plan::Plan;

/// Why a service that is leaving must not be used any more.
const LEAVING: &str = "it is being taken out of the mesh";

impl Engine {
    /// Brings the services of `plan` into Consul. What is there is remembered before it is, so that it
    /// is found again whatever happens.
    pub(super) async fn register(&mut self, plan: &Plan) -> Vec<Fault> {
        let Some(membership) = &self.adapters.drive.membership else { return Vec::new() };
        if membership.facts().is_none() {
            return Vec::new();
        }
        let mut faults = Vec::new();
        self.state.registered.extend(plan.services.values().map(|service| Entry::of(service).key));
        keep(&mut faults, self.state.save(&self.root));
        let again = self.registered_otherwise();
        if let Some(membership) = &mut self.adapters.drive.membership {
            faults.extend(membership.register(plan, &again).await);
        }
        self.remember_registered(plan);
        faults
    }

    /// Tells others not to use the services that are about to end.
    pub(super) async fn announce_end(&mut self, going: &BTreeSet<String>) -> Vec<Fault> {
        let going = |key: &&Key| going.contains(key.id.as_str());
        let keys: Vec<Key> = self.state.registered.iter().filter(going).cloned().collect();
        match &mut self.adapters.drive.membership {
            Some(membership) => membership.leave(&keys, LEAVING).await,
            None => Vec::new(),
        }
    }

    /// Takes out what was registered and is in no plan any more.
    pub(super) async fn deregister_unplanned(&mut self, plan: &Plan) -> Vec<Fault> {
        let planned: BTreeSet<Key> = plan.services.values().map(|service| Entry::of(service).key).collect();
        self.deregister(&|key| !planned.contains(key)).await
    }

    /// Takes the registrations out that `which` says. Those that Consul could not be told stay
    /// remembered, and are tried again the next time.
    pub(super) async fn deregister(&mut self, which: &dyn Fn(&Key) -> bool) -> Vec<Fault> {
        let keys: BTreeSet<Key> = self.state.registered.iter().filter(|key| which(key)).cloned().collect();
        let Some(membership) = &mut self.adapters.drive.membership else { return Vec::new() };
        let (out, mut faults) = membership.deregister(&keys).await;
        self.state.registered.retain(|key| !out.contains(key));
        self.state.registered_with.retain(|id, _| out.iter().all(|key| key.id != *id));
        if !out.is_empty() && self.state.registered.is_empty() {
            keep(&mut faults, membership.leave_node().await);
        }
        if !out.is_empty() {
            keep(&mut faults, self.state.save(&self.root));
        }
        faults
    }
}
