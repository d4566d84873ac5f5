//! The driver `nftables`: one `nft` process to set the rules, one to read them.

mod command;
mod diff;
mod picture;

use std::cell::RefCell;

use self::diff::Wordings;
use self::picture::Picture;
use super::ruleset::{self, Ruleset, json};
use super::{Desired, Firewall, Observed, RedirectError};
use crate::base::Fault;

pub(super) use command::nft;

/// How many differences an error names.
const NAMED_DIFFERENCES: usize = 3;

/// Programs `inet enmesh` through `nft -j`.
///
/// A driver that has applied rules remembers how this host's `nft` words each of them, so that
/// another version's spelling is not taken for an edit later on. Keep one for as long as the
/// process runs.
#[derive(Debug, Default)]
pub struct Nftables {
    wordings: RefCell<Wordings>,
}

impl Nftables {
    /// A driver for the network namespace of the calling thread.
    pub fn new() -> Self {
        Self::default()
    }

    fn load(ruleset: &Ruleset) -> Result<(), RedirectError> {
        nft(&["-j", "-f", "-"], json::replace(ruleset).to_string().as_bytes()).map(drop)
    }

    /// What is in the kernel, or `None` when our table is not.
    fn read() -> Result<Option<Picture>, RedirectError> {
        match nft(&["-j", "list", "table", "inet", ruleset::TABLE], b"") {
            Ok(answer) => Picture::of_answer(&answer).map(Some),
            Err(RedirectError::KernelLacks { missing }) if command::names_no_table(&missing) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sets `wanted` and reads it back; what differs in substance is an error, and the table goes
    /// back to nothing half-done: the rules that were asked for are loaded once more.
    fn set(&self, ruleset: &Ruleset) -> Result<(), RedirectError> {
        let wanted = Picture::of_commands(&json::replace(ruleset));
        let mut differences = Vec::new();
        // A second try, because somebody may have edited the table between the two steps.
        for _ in 0..2 {
            Self::load(ruleset)?;
            let Some(found) = Self::read()? else {
                differences = vec![format!("- table inet {}", ruleset::TABLE)];
                continue;
            };
            let learnt = Wordings::learn(&wanted, &found);
            differences = diff::differences(&wanted, &found, &learnt);
            if differences.is_empty() {
                self.wordings.replace(learnt);
                return Ok(());
            }
        }
        differences.truncate(NAMED_DIFFERENCES);
        Err(RedirectError::ReadBack { differences })
    }
}

impl Firewall for Nftables {
    fn name(&self) -> &'static str {
        "nftables"
    }

    fn observe(&self, desired: &Desired) -> Result<Observed, Fault> {
        let found = Self::read()?;
        let generation = found.as_ref().and_then(|picture| picture.generation.clone());
        let table = format!("table inet {}", ruleset::TABLE);
        let differences = match (found, desired.policy.is_empty()) {
            (None, true) => Vec::new(),
            (None, false) => vec![format!("+ {table}")],
            (Some(_), true) => vec![format!("- {table}")],
            (Some(found), false) => {
                let ruleset = ruleset::build(&desired.policy, &desired.live);
                let wanted = Picture::of_commands(&json::replace(&ruleset));
                diff::differences(&wanted, &found, &self.wordings.borrow())
            }
        };
        Ok(Observed { generation, differences })
    }

    fn apply(&self, desired: &Desired) -> Result<(), Fault> {
        if desired.policy.is_empty() {
            return self.remove();
        }
        Ok(self.set(&ruleset::build(&desired.policy, &desired.live))?)
    }

    fn drain(&self) -> Result<(), Fault> {
        if Self::read()?.is_some() {
            Self::load(&ruleset::husk())?;
        }
        Ok(())
    }

    fn remove(&self) -> Result<(), Fault> {
        nft(&["-j", "-f", "-"], json::remove().to_string().as_bytes())?;
        Ok(())
    }
}
