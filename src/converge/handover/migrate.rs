//! Taking over from scripts, with the rules of this host's configuration.

use serde::Serialize;

use super::super::engine::{Engine, Intent};
use super::scripts::{self, Fate, Script};
use super::{HandoverError, remove_theirs};
use crate::base::{Fault, Root};
use crate::redirect::takeover::{self, Leftover};

/// What is on this host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Found {
    /// Rules of other redirectors.
    pub rules: Vec<Leftover>,
    /// Files of the scripts that set them.
    pub scripts: Vec<Script>,
    /// Rules that send DNS to Consul. They stay.
    pub dns: Vec<String>,
}

impl Found {
    /// Whether there is nothing to take over.
    pub fn is_empty(&self) -> bool {
        let moves = self.scripts.iter().any(|script| script.fate == Fate::MovedAside);
        self.rules.is_empty() && !moves
    }
}

/// Looks for what scripts and other redirectors left on this host. Touches nothing.
///
/// # Errors
/// The rules cannot be read.
pub fn find(root: &Root) -> Result<Found, Fault> {
    let rules = takeover::leftovers()?;
    Ok(Found { rules, scripts: scripts::scripts(root), dns: takeover::dns_rules() })
}

/// What taking over did.
#[derive(Debug, Default)]
pub struct Migrated {
    /// Rules that are gone.
    pub removed: Vec<Leftover>,
    /// Units that have another name now.
    pub moved: Vec<Script>,
    /// Why it is not complete.
    pub faults: Vec<Fault>,
}

impl Engine {
    /// Makes `intent` true beside the rules of others, and removes those once every sidecar is live.
    ///
    /// Theirs come before ours at every hook, so while both stand nothing changes for a connection. When theirs go,
    /// in one transaction a table, the next connection meets ours. At no moment is there neither.
    pub async fn migrate(&mut self, intent: Intent, found: &Found) -> Migrated {
        let mut done = Migrated { faults: intent.faults(), ..Migrated::default() };
        if done.faults.is_empty() && intent.plan.redirect.is_empty() {
            done.faults.push(HandoverError::NothingInstead.into());
        }
        if !done.faults.is_empty() {
            return done;
        }
        // Their unit of the same name stands before ours, and what it does when it stops is to flush the
        // rules of everybody.
        for script in found.scripts.iter().filter(|script| script.fate == Fate::MovedAside) {
            match scripts::move_aside(script) {
                Ok(()) => done.moved.push(script.clone()),
                Err(fault) => done.faults.push(fault),
            }
        }
        if !done.faults.is_empty() {
            return done;
        }
        let plan = intent.plan.clone();
        self.beside_others = true;
        done.faults = self.converge(intent).await.faults;
        let live = self.live();
        if !done.faults.is_empty() || !plan.services.keys().all(|id| live.contains(id)) {
            done.faults.push(HandoverError::NotReady.into());
            return done;
        }
        match remove_theirs(&found.rules).await {
            Ok(removed) => done.removed = removed,
            Err(fault) => done.faults.push(fault),
        }
        if done.faults.is_empty() {
            self.beside_others = false;
            done.faults.extend(self.apply_rules(&plan).await.err());
        }
        done
    }
}
