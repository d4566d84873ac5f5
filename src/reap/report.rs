//! What a pass has found and done, for people and programs.

use std::fmt;

use serde::Serialize;

use super::error::ReapError;
use super::holdings::Holdings;
use super::remove::Removed;
use crate::base::Fault;
use crate::config::value::Span;

/// What a pass has found and done. The shape is stable: fields are only ever added.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// The reaper that leads, where that is another one; then nothing was done.
    pub leader: Option<String>,
    /// Whether `removed` only says what would go.
    pub dry_run: bool,
    /// How many owners have something in Consul.
    pub owners: usize,
    /// How many of them are there.
    pub alive: usize,
    /// Who stays although nothing was heard, because the platform says that it is there.
    pub spared: Vec<Spared>,
    /// Who is gone, and goes when the grace is over.
    pub waiting: Vec<Waiting>,
    /// What went.
    pub removed: Vec<Gone>,
    /// How many services went.
    pub services: usize,
    /// How many nodes went.
    pub nodes: usize,
    /// How many logins were ended.
    pub tokens: usize,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
    /// How often Consul was asked.
    pub asked_consul: u64,
    /// How often the platform was asked.
    pub asked_platform: u64,
    /// What could not be taken out.
    pub faults: Vec<Fault>,
    /// What a person should know.
    pub warnings: Vec<Fault>,
}

/// Somebody who stays.
#[derive(Debug, Serialize)]
pub struct Spared {
    /// Who.
    pub owner: String,
    /// What the platform says.
    pub state: String,
}

/// Somebody who is gone, and not for long enough.
#[derive(Debug, Serialize)]
pub struct Waiting {
    /// Who.
    pub owner: String,
    /// Why he counts as gone.
    pub why: String,
    /// How much longer.
    pub seconds: u64,
}

/// Somebody who is gone for good.
#[derive(Debug, Serialize)]
pub struct Gone {
    /// Who.
    pub owner: String,
    /// Why.
    pub why: String,
    /// His services.
    pub services: Vec<String>,
}

impl Report {
    pub(super) fn would_remove(&mut self, due: &[(String, String)], holdings: &Holdings) {
        for (owner, why) in due {
            let Some(holding) = holdings.owners.get(owner) else { continue };
            let services: Vec<String> = holding.services.iter().map(|service| service.id.clone()).collect();
            self.services += services.len();
            self.nodes += holding.nodes.len();
            self.tokens += holding.tokens.len();
            self.removed.push(Gone { owner: owner.clone(), why: why.clone(), services });
        }
    }

    pub(super) fn removed(&mut self, owner: &str, why: &str, removed: Removed) {
        self.services += removed.services.len();
        self.nodes += removed.nodes.len();
        self.tokens += removed.tokens;
        if removed.came_back {
            self.warnings.push(ReapError::CameBack { owner: owner.to_owned() }.into());
        }
        let whole = !removed.came_back && removed.faults.is_empty();
        self.faults.extend(removed.faults);
        if whole {
            let gone = Gone { owner: owner.to_owned(), why: why.to_owned(), services: removed.services };
            self.removed.push(gone);
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(leader) = &self.leader {
            return writeln!(f, "another reaper leads: {leader}");
        }
        for Gone { owner, why, services } in &self.removed {
            let word = if self.dry_run { "would go" } else { "gone" };
            writeln!(f, "{word:<9} {owner}  {why}  {}", services.join(" "))?;
        }
        for Waiting { owner, why, seconds } in &self.waiting {
            writeln!(f, "{:<9} {owner}  {why}  goes in {}", "waiting", Span::seconds(*seconds))?;
        }
        for Spared { owner, state } in &self.spared {
            writeln!(f, "{:<9} {owner}  {state}", "spared")?;
        }
        let word = if self.dry_run { "would be taken out" } else { "taken out" };
        writeln!(
            f,
            "{} owners, {} there, {} waiting, {} spared; {word}: {} services, {} nodes, {} logins ({} ms, {} questions to Consul, {} to the platform)",
            self.owners,
            self.alive,
            self.waiting.len(),
            self.spared.len(),
            self.services,
            self.nodes,
            self.tokens,
            self.took_ms,
            self.asked_consul,
            self.asked_platform
        )
    }
}
