//! A change of a namespace that waits for a confirmation. As on the host: its kernel has two rulesets and a clock, and
//! goes back by itself. A namespace that was not there before has nothing to go back to: it stays as closed as it is
//! until it is taken away.

use std::borrow::Cow;

use super::{Held, InForce, Namespaces};
use crate::base::Fault;
use crate::converge::engine::{Engine, keep};
use crate::converge::state::{Before, Pending, State};
use crate::netns::Namespace;
use crate::plan::Plan;
use crate::redirect::{Crossings, Firewall, Trial};

/// What the rules in the namespace `name` are on trial against.
pub(super) fn of(state: &State, name: &str) -> Option<Trial> {
    let Pending { until, before } = state.trial.as_ref()?;
    let before = before.namespaces.get(name)?;
    Some(Trial { before: Some(before.desired()), until: until.clone() })
}

impl Namespaces {
    /// The namespace `name`, held or, if it still is the one that is remembered, opened; `None` where it is gone.
    fn there(&mut self, name: &str, state: &State, in_force: &InForce) -> Option<&mut Held> {
        if !self.held.contains_key(name) {
            let there = Namespace::by_name(name).ok()?;
            if state.namespaces.get(name)?.identity != Some(there.identity()) {
                return None;
            }
            self.held.insert(name.to_owned(), Held::new(there, &in_force.plan));
        }
        self.held.get_mut(name)
    }

    /// What is on trial stays: each in one step, as far as they are there.
    pub fn confirm(&mut self, state: &State) -> Result<(), Fault> {
        for (name, record) in &state.namespaces {
            let (Some(trial), Some(in_force)) = (of(state, name), &record.in_force) else { continue };
            let Some(held) = self.there(name, state, in_force) else { continue };
            let desired = in_force.desired();
            held.namespace.run(|| {
                let firewall = held.firewall();
                firewall.on_trial(Some(trial))?;
                // What is there is known then, and only what differs is touched.
                firewall.apply(&desired)?;
                firewall.on_trial(None)?;
                firewall.apply(&desired)
            })??;
        }
        Ok(())
    }

    /// Rules as they were before the change; what else there is follows with converging.
    pub fn go_back(&mut self, before: &Before, state: &mut State) -> Vec<Fault> {
        let mut faults = Vec::new();
        for (name, in_force) in &before.namespaces {
            let Some(held) = self.there(name, state, in_force) else { continue };
            keep(&mut faults, held.firewall().on_trial(None));
            held.plan = in_force.plan.clone();
            keep(
                &mut faults,
                held.set(&in_force.live).map_err(|fault| fault.of_service(&in_force.plan.service)),
            );
            if let Some(record) = state.namespaces.get_mut(name) {
                record.in_force = Some(in_force.clone());
            }
        }
        faults
    }
}

impl Engine {
    /// What the border shall let pass: what `plan` has, and what there may be to go back to.
    pub(super) fn crossings(&self, plan: &Plan) -> Crossings {
        let mut plan = Cow::Borrowed(plan);
        let before = self.state.trial.iter().flat_map(|pending| &pending.before.namespaces);
        for (name, in_force) in before {
            if !plan.namespaces.contains_key(name) {
                plan.to_mut().namespaces.insert(name.clone(), in_force.plan.clone());
            }
        }
        Crossings::of(&plan)
    }
}
