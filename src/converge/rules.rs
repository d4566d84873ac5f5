//! Route and rules: as the plan and the sidecars' liveness want them.

use std::collections::BTreeSet;

use super::engine::Engine;
use super::handover::beside_theirs;
use super::sidecar::{Phase, SidecarStatus};
use crate::base::Fault;
use crate::config::value::ServiceId;
use crate::netns;
use crate::plan::Plan;
use crate::redirect::{self, Desired, Drift};

impl Engine {
    pub(super) fn live(&self) -> BTreeSet<ServiceId> {
        let live =
            |(id, status): (&ServiceId, &SidecarStatus)| (status.phase == Phase::Live).then(|| id.clone());
        self.sidecars.iter().filter_map(live).collect()
    }

    /// Route and rules as the plan and the sidecars' liveness want them.
    pub(super) async fn apply_rules(&mut self, plan: &Plan) -> Result<(), Fault> {
        if plan.redirect.is_empty() {
            // Rules that a script has set stay that script's.
            let by_hand = |(_, mark): &(&str, _)| redirect::is_by_hand(mark);
            if self.rules.is_none() && redirect::in_force()?.iter().any(by_hand) {
                return Ok(());
            }
            return self.remove_rules().await;
        }
        for net in netns::our_virtual_routes().await? {
            if Some(net) != plan.virtual_net {
                netns::remove_virtual_route(net).await?;
            }
        }
        if let Some(net) = plan.virtual_net {
            netns::ensure_virtual_route(net).await?;
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
            self.rules = Some(desired);
        }
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
        let Some(desired) = &self.rules else { return Ok(Vec::new()) };
        let rules = self.adapters.firewall.repair(desired);
        let mut amiss = Vec::new();
        if let Some(net) = desired.policy.virtual_route
            && netns::ensure_virtual_route(net).await?
        {
            amiss.push(format!("+ route {net} dev lo"));
        }
        amiss.extend(rules?);
        Ok(amiss)
    }

    pub(super) async fn remove_rules(&mut self) -> Result<(), Fault> {
        self.rules = None;
        self.adapters.firewall.remove()?;
        for net in netns::our_virtual_routes().await? {
            netns::remove_virtual_route(net).await?;
        }
        Ok(())
    }
}
