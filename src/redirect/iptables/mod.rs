//! The driver for hosts without nftables: chains `ENMESH_*` in the tables filter, raw and nat.
//!
//! The rules come from the same ruleset as those of the driver `nftables` ([`compile`]), so both do the same to a
//! connection. What differs is what iptables cannot promise; `docs/drivers.md` has the list for users:
//!
//! - IPv4 and IPv6 are two rulesets, and each table is a transaction of its own. They are set in an order
//!   in which a failure half-way leaves things closed: IPv4 before IPv6, what refuses (filter) before what
//!   redirects (nat); and after a failure the tables that were set already are put back.
//! - No sets: every bypass, user and instance is a rule, and a connection walks past all of them.
//! - No priorities. Our jump is the **last** rule of nat's chains, so that ports that Docker publishes stay Docker's,
//!   and the **first** of filter's and raw's, before any REJECT or ACCEPT of others. Where
//!   others come later the jump is out of place; that is a difference, and put right like any other.
//! - Of changes by others the kernel tells in the flavour nft only; in the other one they are found by looking.
//!
//! Nothing but chains of that name and the rules that lead to them is ever changed or removed. Tables that are as they
//! shall be are not touched.

mod compile;
mod diff;
mod line;
mod ranges;
mod shape;
#[cfg(test)]
mod tests;
mod tool;

/// For tests of the whole room.
#[cfg(test)]
pub(super) mod hostile {
    use super::compile::{PREFIX, Table};
    use super::{Family, Ruleset, Shapes, Wordings, compile, diff, shape};

    /// What `iptables-save` prints where `ruleset` is in force.
    pub fn saved(ruleset: &Ruleset, family: Family) -> String {
        let wanted = shape::wanted(&compile(ruleset, family), family);
        let text = shape::document(&wanted, &Shapes::new(), &wanted.keys().copied().collect());
        // The jump that is put first is printed like any other.
        let appended = text.lines().map(|line| match line.strip_prefix("-I ") {
            Some(rest) => format!("-A {}\n", rest.replacen(" 1 ", " ", 1)),
            None => format!("{line}\n"),
        });
        appended.collect()
    }

    pub fn differences(ruleset: &Ruleset, saved: &str, family: Family) -> Vec<String> {
        let wanted = shape::wanted(&compile(ruleset, family), family);
        let by_table = diff::differences(&wanted, &shape::saved(saved), family, &Wordings::default());
        by_table.into_values().flatten().collect()
    }

    /// The lines that take away whatever of ours was saved.
    pub fn removal(saved: &str) -> Vec<String> {
        let found = shape::saved(saved);
        let all = found.keys().copied().collect();
        let _ = shape::generation(std::slice::from_ref(&found));
        Table::ALL.iter().for_each(|table| drop(shape::comments(saved, table.word())));
        shape::document(&Shapes::new(), &found, &all).lines().map(str::to_owned).collect()
    }

    /// Whether a line of a document that takes away is about chains of ours, or a rule that leads to one.
    pub fn is_ours(line: &str) -> bool {
        let words = super::line::unquoted(line);
        let all: Vec<&str> = words.iter().map(String::as_str).collect();
        match all.as_slice() {
            ["COMMIT"] => true,
            [table] if table.starts_with('*') => Table::ALL.iter().any(|one| &table[1..] == one.word()),
            [chain, "-", "[0:0]"] => chain.strip_prefix(':').is_some_and(|name| name.starts_with(PREFIX)),
            ["-X", chain] => chain.starts_with(PREFIX),
            ["-D", _chain, rule @ ..] => {
                let rule: Vec<String> = rule.iter().map(|word| (*word).to_owned()).collect();
                shape::target(&rule).is_some_and(|target| target.starts_with(PREFIX))
            }
            _ => false,
        }
    }
}

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::path::Path;

pub(super) use compile::{PREFIX, is_table, jumps_from};
use compile::{Table, compile};
use diff::Wordings;
pub(super) use line::Family;
use shape::Shapes;
pub(super) use shape::comments;
pub use tool::Flavour;
pub(super) use tool::Tool;

use super::ruleset::{self, Ruleset};
use super::watch::{Drift, LOOK_EVERY, OwnCommits, Scope};
use super::{Desired, Firewall, Observed, RedirectError, nftables};
use crate::base::Fault;

/// How many differences an error names.
const NAMED_DIFFERENCES: usize = 10;

/// Programs chains `ENMESH_*` through `iptables-restore` and `ip6tables-restore`.
///
/// Keep one driver per network namespace for as long as the process runs: it remembers which
/// flavour it uses, and how that words rules.
#[derive(Debug, Default)]
pub struct Iptables {
    tool: Cell<Option<Tool>>,
    wordings: RefCell<Wordings>,
    /// Whether it was looked for rules that the other driver left behind.
    looked: Cell<bool>,
    /// What [`Drift`] need not tell.
    own: OwnCommits,
}

/// One family: what shall be, and what was found.
struct Work {
    family: Family,
    wanted: Shapes,
    found: Shapes,
    /// Tables that differ.
    tables: BTreeSet<Table>,
}

impl Iptables {
    /// A driver for the network namespace of the calling thread. It takes the flavour that the host
    /// uses.
    pub fn new() -> Self {
        Self::default()
    }

    /// A driver that takes this flavour, whatever the host uses.
    ///
    /// # Errors
    /// `ENM-R014` it is not installed.
    pub fn of(flavour: Flavour) -> Result<Self, Fault> {
        let tool = Tool::of(flavour);
        let name = match flavour {
            Flavour::Nft => "iptables-nft",
            Flavour::Legacy => "iptables-legacy",
        };
        let tool = tool.ok_or_else(|| RedirectError::NoIptables { program: name.to_owned() })?;
        Ok(Iptables { tool: Cell::new(Some(tool)), ..Self::default() })
    }

    fn tool(&self) -> Result<Tool, RedirectError> {
        if let Some(tool) = self.tool.get() {
            return Ok(tool);
        }
        let tool = Tool::choose()?;
        self.tool.set(Some(tool));
        Ok(tool)
    }

    /// Makes the kernel's rules be `ruleset` and returns what was amiss.
    fn set(&self, ruleset: &Ruleset) -> Result<Vec<String>, RedirectError> {
        let tool = self.tool()?;
        let mut differences = Vec::new();
        let mut work = Vec::new();
        for family in families() {
            let wanted = shape::wanted(&compile(ruleset, family), family);
            let found = tool.read(family)?;
            let by_table = diff::differences(&wanted, &found, family, &self.wordings.borrow());
            let tables = by_table.keys().copied().collect();
            differences.extend(by_table.into_values().flatten());
            work.push(Work { family, wanted, found, tables });
        }
        work.retain(|one| !one.tables.is_empty());
        carry_out(tool, &work, &self.own)?;
        self.read_back(tool, &work)?;
        if !work.is_empty() && !self.looked.replace(true) {
            retire_the_other();
        }
        Ok(differences)
    }

    /// Every rule there is ours and of this moment, so another wording of it is how this iptables
    /// speaks, and is learnt.
    fn read_back(&self, tool: Tool, work: &[Work]) -> Result<(), RedirectError> {
        let mut left = Vec::new();
        for Work { family, wanted, .. } in work {
            let found = tool.read(*family)?;
            self.wordings.borrow_mut().learn(wanted, &found);
            let by_table = diff::differences(wanted, &found, *family, &self.wordings.borrow());
            left.extend(by_table.into_values().flatten());
        }
        left.truncate(NAMED_DIFFERENCES);
        if left.is_empty() { Ok(()) } else { Err(RedirectError::ReadBack { differences: left }) }
    }
}

/// The families that the kernel speaks; without IPv6 there is nothing to redirect in it.
fn families() -> impl Iterator<Item = Family> {
    let has_ipv6 = Path::new("/proc/thread-self/net/if_inet6").exists();
    Family::BOTH.into_iter().filter(move |family| *family == Family::V4 || has_ipv6)
}

/// Sets every family; when one fails, those before it and what of it is set already go back.
fn carry_out(tool: Tool, work: &[Work], own: &OwnCommits) -> Result<(), RedirectError> {
    for (index, Work { family, wanted, found, tables }) in work.iter().enumerate() {
        let Err(error) = load(tool, *family, &shape::document(wanted, found, tables), own) else { continue };
        let undone = work.iter().take(index + 1).rev().try_for_each(|work| put_back(tool, work, own));
        return Err(match undone {
            Ok(()) => error,
            Err(second) => RedirectError::HalfSet { first: error.to_string(), second: second.to_string() },
        });
    }
    Ok(())
}

fn put_back(tool: Tool, work: &Work, own: &OwnCommits) -> Result<(), RedirectError> {
    let now = tool.read(work.family)?;
    load(tool, work.family, &shape::document(&work.found, &now, &work.tables), own)
}

/// Has `document` carried out; its commits, one a table, are our own.
fn load(tool: Tool, family: Family, document: &str, own: &OwnCommits) -> Result<(), RedirectError> {
    let pid = tool.load(family, document)?;
    document.lines().filter(|line| *line == "COMMIT").for_each(|_| own.add(pid));
    Ok(())
}

/// Removes what the driver `nftables` left behind, now that our rules are there: the host changed its driver.
fn retire_the_other() {
    match nftables::clear() {
        // Most hosts that use this driver have no `nft`.
        Ok(false) | Err(RedirectError::NoNft | RedirectError::NoJson | RedirectError::KernelLacks { .. }) => {
        }
        Ok(true) => tracing::info!("the table of the driver nftables is removed; iptables took over"),
        Err(error) => tracing::warn!(%error, "the table of the driver nftables may be left behind"),
    }
}

/// Removes what is ours from every flavour that is installed and returns whether there was anything. Of a flavour other
/// than `own` that cannot be asked, nothing of ours is expected.
pub(super) fn clear(own: Option<Tool>) -> Result<bool, RedirectError> {
    let mut any = false;
    for tool in Tool::installed() {
        match clear_one(tool) {
            Ok(removed) => any |= removed,
            Err(error) if own == Some(tool) => return Err(error),
            Err(error) => tracing::warn!(%error, flavour = ?tool.flavour, "what is in there stays"),
        }
    }
    Ok(any)
}

fn clear_one(tool: Tool) -> Result<bool, RedirectError> {
    let mut any = false;
    for family in families() {
        let found = tool.read(family)?;
        if !found.is_empty() {
            any = true;
            let tables = found.keys().copied().collect();
            tool.load(family, &shape::document(&Shapes::new(), &found, &tables))?;
        }
    }
    Ok(any)
}

/// What `iptables-restore --noflush` and `ip6tables-restore --noflush` take to set `ruleset` where nothing of
/// ours is.
pub(super) fn render(ruleset: &Ruleset) -> [String; 2] {
    Family::BOTH.map(|family| {
        let wanted = shape::wanted(&compile(ruleset, family), family);
        shape::document(&wanted, &Shapes::new(), &wanted.keys().copied().collect())
    })
}

impl Firewall for Iptables {
    fn name(&self) -> &'static str {
        "iptables"
    }

    fn observe(&self, desired: &Desired) -> Result<Observed, Fault> {
        let tool = self.tool()?;
        let ruleset = (!desired.policy.is_empty()).then(|| ruleset::build(&desired.policy, &desired.live));
        let (mut all, mut differences) = (Vec::new(), Vec::new());
        for family in families() {
            let found = tool.read(family)?;
            let wanted = ruleset.as_ref().map(|ruleset| shape::wanted(&compile(ruleset, family), family));
            let by_table =
                diff::differences(&wanted.unwrap_or_default(), &found, family, &self.wordings.borrow());
            differences.extend(by_table.into_values().flatten());
            all.push(found);
        }
        Ok(Observed { generation: shape::generation(&all), differences })
    }

    fn apply(&self, desired: &Desired) -> Result<(), Fault> {
        if desired.policy.is_empty() {
            return self.remove();
        }
        self.set(&ruleset::build(&desired.policy, &desired.live))?;
        Ok(())
    }

    fn repair(&self, desired: &Desired) -> Result<Vec<String>, Fault> {
        // One reading less than the two steps apart.
        Ok(self.set(&ruleset::build(&desired.policy, &desired.live))?)
    }

    fn watch(&self) -> Result<Option<Drift>, Fault> {
        Ok(Some(match self.tool()?.flavour {
            Flavour::Nft => Drift::of(Scope::OwnChains, self.own.clone())?,
            Flavour::Legacy => {
                tracing::info!(
                    "iptables-legacy announces no changes, so rules are looked at every {LOOK_EVERY:?}"
                );
                Drift::by_looking()
            }
        }))
    }

    fn drain(&self) -> Result<(), Fault> {
        let tool = self.tool()?;
        for family in families() {
            if !tool.read(family)?.is_empty() {
                self.set(&ruleset::husk())?;
                break;
            }
        }
        Ok(())
    }

    fn remove(&self) -> Result<(), Fault> {
        clear(Some(self.tool()?))?;
        Ok(())
    }
}
