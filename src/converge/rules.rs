//! Route and rules: as the plan and the sidecars' liveness want them.

use std::collections::BTreeSet;

use super::engine::Engine;
use super::handover::beside_theirs;
use super::sidecar::{Phase, SidecarStatus};
use super::state::Guard;
use crate::base::Fault;
use crate::config::value::ServiceId;
use crate::netns;
use crate::plan::{Plan, routed};
use crate::redirect::{self, Desired, Drift};

impl Engine {
    pub(super) fn live(&self) -> BTreeSet<ServiceId> {
        let live =
            |(id, status): (&ServiceId, &SidecarStatus)| (status.phase == Phase::Live).then(|| id.clone());
        self.sidecars.iter().filter_map(live).collect()
    }

    /// The first rules of a new plan: those sidecars are live that are so already. Where there is
    /// nothing to redirect any more, what is redirected goes on while the sidecars drain.
    pub(super) async fn close_rules(&mut self, plan: &Plan) -> Result<(), Fault> {
        if self.is_needless(plan) {
            return if self.rules.take().is_some() { self.adapters.firewall.drain() } else { Ok(()) };
        }
        self.apply_rules(plan).await
    }

    /// The rules once sidecars had their chance to become live.
    pub(super) async fn open_rules(&mut self, plan: &Plan) -> Result<(), Fault> {
        if self.is_needless(plan) { Ok(()) } else { self.apply_rules(plan).await }
    }

    /// Removes everything where there is nothing to redirect.
    pub(super) async fn remove_needless_rules(&mut self, plan: &Plan) -> Result<(), Fault> {
        if self.is_needless(plan) && !self.are_by_hand()? { self.remove_rules().await } else { Ok(()) }
    }

    /// Whether the rules in force are those that a script has set. They stay that script's.
    fn are_by_hand(&self) -> Result<bool, Fault> {
        if !self.adapters.redirects {
            return Ok(false);
        }
        let by_hand = |(_, mark): &(&str, _)| redirect::is_by_hand(mark);
        Ok(self.rules.is_none() && redirect::in_force()?.iter().any(by_hand))
    }

    /// Whether no rules are needed. While a change is pending there is something to go back to.
    pub(super) fn is_needless(&self, plan: &Plan) -> bool {
        plan.redirect.is_empty() && self.pending().is_none()
    }

    /// Route and rules as the plan and the sidecars' liveness want them.
    pub(super) async fn apply_rules(&mut self, plan: &Plan) -> Result<(), Fault> {
        if self.is_needless(plan) {
            if self.are_by_hand()? {
                return Ok(());
            }
            return self.remove_rules().await;
        }
        if let Some(net) = plan.virtual_net {
            netns::ensure_virtual_route(net).await?;
        }
        let wanted = plan.virtual_net.map(routed).unwrap_or_default();
        for net in netns::our_virtual_routes().await? {
            if !wanted.contains(&net) && self.pending().is_none() {
                netns::remove_virtual_route(net).await?;
            }
        }
        let mut policy = plan.redirect.clone();
        if self.beside_others {
            policy = beside_theirs(policy);
        }
        let desired = Desired { policy, live: self.live() };
        let unchanged = self.rules.as_ref() == Some(&desired)
            && self.adapters.firewall.observe(&desired).is_ok_and(|seen| seen.differences.is_empty());
        if !unchanged {
            self.adapters.firewall.apply(&desired)?;
            self.rules = Some(desired.clone());
        }
        let Desired { policy, live } = desired;
        let driver = self.adapters.firewall.name().to_owned();
        self.state.guard = Some(Guard { driver, policy, live });
        Ok(())
    }

    /// Starts listening for changes of the rules by others; `None` where the driver hears of none.
    ///
    /// # Errors
    /// `ENM-R013` the kernel does not let us listen.
    pub fn watch_rules(&self) -> Result<Option<Drift>, Fault> {
        self.adapters.firewall.watch()
    }

    /// Sets route and rules again where somebody changed them since they were set last. Returns what
    /// was amiss, a line each; nothing when all is as it was, or when there is nothing to keep.
    ///
    /// # Errors
    /// They could not be set again.
    pub async fn repair(&mut self) -> Result<Vec<String>, Fault> {
        let inside = self.repair_namespaces();
        let Some(desired) = &self.rules else { return inside };
        let rules = self.adapters.firewall.repair(desired);
        let mut amiss = Vec::new();
        if let Some(net) = desired.policy.virtual_route
            && netns::ensure_virtual_route(net).await?
        {
            amiss.push(format!("+ route {net} dev lo"));
        }
        amiss.extend(rules?);
        amiss.extend(inside?);
        Ok(amiss)
    }

    pub(super) async fn remove_rules(&mut self) -> Result<(), Fault> {
        self.rules = None;
        self.state.guard = None;
        self.adapters.firewall.remove()?;
        for net in netns::our_virtual_routes().await? {
            netns::remove_virtual_route(net).await?;
        }
        Ok(())
    }
}
