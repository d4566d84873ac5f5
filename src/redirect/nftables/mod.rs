//! The driver `nftables`: one `nft` process to set the rules, one to read them.

pub(super) mod border;
mod command;
mod diff;
mod keep;
mod picture;
#[cfg(test)]
mod tests;

/// For tests of the whole room.
#[cfg(test)]
pub(super) mod hostile {
    use super::{Picture, Wordings, diff, json};
    use crate::redirect::ruleset::Ruleset;

    /// How what `nft` printed differs from `ruleset`; `None` where it cannot be read.
    pub fn differences(ruleset: &Ruleset, printed: &[u8]) -> Option<Vec<String>> {
        let found = Picture::of_answer(printed).ok()?;
        let wanted = Picture::of_commands(&json::replace(ruleset));
        Some(diff::differences(&wanted, &found, &Wordings::default()))
    }
}

use std::cell::RefCell;

use serde_json::Value as Json;

use self::diff::Wordings;
use self::keep::Keep;
use self::picture::Picture;
use super::iptables;
use super::ruleset::{self, Ruleset, json};
use super::watch::{Drift, OwnCommits};
use super::{Desired, Firewall, Observed, RedirectError, Trial};
use crate::base::{Deadline, Fault};

pub(super) use command::nft;

/// How many differences an error names.
const NAMED_DIFFERENCES: usize = 3;

/// Programs `inet enmesh` through `nft -j`: what is in force changes in one transaction.
///
/// Keep one driver per network namespace for as long as the process runs: it remembers what it has set. The next
/// [`Firewall::apply`] then changes only what differs (a sidecar that comes or goes is one map
/// element), and the way in which this host's `nft` words a rule is not taken for an edit.
#[derive(Debug, Default)]
pub struct Nftables {
    wordings: RefCell<Wordings>,
    /// What was set last and found to be there.
    known: RefCell<Option<Ruleset>>,
    /// What is applied counts for a time only.
    trial: RefCell<Option<Trial>>,
    /// Until when, as the kernel was told last.
    told: RefCell<Option<Deadline>>,
    /// What [`Drift`] need not tell.
    own: OwnCommits,
    keep: RefCell<Keep>,
}

impl Nftables {
    /// A driver for the network namespace of the calling thread.
    pub fn new() -> Self {
        Self::default()
    }

    /// With what is set, the kernel is told how much time is left.
    fn load(&self, document: Json) -> Result<(), RedirectError> {
        let until = self.trial.borrow().as_ref().map(|trial| trial.until.clone());
        let document = match &until {
            Some(until) => json::with_time(document, until.left().as_millis().div_ceil(1000) as u64),
            None => document,
        };
        self.own.add(command::load(&document.to_string())?);
        self.told.replace(until);
        Ok(())
    }

    /// Without the time: what is there afterwards is in force for nobody yet.
    fn prepare(&self, document: &Json) -> Result<(), RedirectError> {
        self.own.add(command::load(&document.to_string())?);
        Ok(())
    }

    /// Makes the table, in two steps; after a failure there is none. In one where it is missed already, although
    /// exceptions may count a moment late then: until it is back nothing is refused at all.
    fn create(&self, ruleset: &Ruleset, missed: bool) -> Result<(), RedirectError> {
        if missed {
            return self.load(json::create(ruleset));
        }
        let [sets, rules] = json::create_sets_first(ruleset);
        self.prepare(&sets)?;
        self.load(rules).inspect_err(|_| {
            // Nothing of it was in force, so that it stays would do no harm either.
            let _ = self.prepare(&json::remove());
        })
    }

    fn change(&self, known: &Ruleset, ruleset: &Ruleset) -> Result<(), RedirectError> {
        if let Some(sets) = json::before_change(known, ruleset) {
            self.prepare(&sets)?;
        }
        self.load(json::change(known, ruleset))
    }

    fn ruleset(&self, desired: &Desired) -> Ruleset {
        let ruleset = ruleset::build(&desired.policy, &desired.live);
        match &*self.trial.borrow() {
            Some(Trial { before, .. }) => {
                let before = before.as_ref().map(|before| ruleset::build(&before.policy, &before.live));
                ruleset::trial::on_trial(ruleset, before)
            }
            None => ruleset,
        }
    }

    /// Whether `desired` takes no table at all.
    fn is_nothing(&self, desired: &Desired) -> bool {
        desired.policy.is_empty() && self.trial.borrow().is_none()
    }

    /// Tells the kernel the time, where it was told another.
    fn tell_time(&self) -> Result<(), RedirectError> {
        let until = self.trial.borrow().as_ref().map(|trial| trial.until.clone());
        if until.is_some() && *self.told.borrow() != until { self.load(json::nothing()) } else { Ok(()) }
    }

    /// What is in the kernel, or `None` when our table is not.
    fn read() -> Result<Option<Picture>, RedirectError> {
        match nft(&["-j", "list", "table", "inet", ruleset::TABLE], b"") {
            Ok(answer) => Picture::of_answer(&answer).map(Some),
            Err(RedirectError::KernelLacks { missing }) if command::names_no_table(&missing) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// How the kernel differs from `wanted`. With `just_set` every rule there is ours and of this
    /// moment, so another wording of it is how this `nft` speaks, and is learnt.
    fn compare(&self, wanted: &Picture, just_set: bool) -> Result<Vec<String>, RedirectError> {
        let Some(found) = Self::read()? else { return Ok(vec![no_table()]) };
        if just_set {
            self.wordings.borrow_mut().learn(wanted, &found);
        }
        Ok(diff::differences(wanted, &found, &self.wordings.borrow()))
    }

    /// Makes the table where there is none, and says how the one that is there differs. Trying is
    /// cheaper than asking first.
    fn make(&self, ruleset: &Ruleset, wanted: &Picture, missed: bool) -> Result<Vec<String>, RedirectError> {
        match self.create(ruleset, missed) {
            Ok(()) => {
                let differences = self.compare(wanted, true)?;
                if differences.is_empty() {
                    retire_the_other();
                }
                Ok(differences)
            }
            Err(RedirectError::Refused { .. }) => self.compare(wanted, false),
            Err(error) => Err(error),
        }
    }

    /// Makes the kernel's table be `ruleset`, by the gentlest way that works: nothing to do; what
    /// differs from the last time; the whole table. Returns what was amiss before the table was
    /// replaced whole.
    fn set(&self, ruleset: Ruleset, missed: bool) -> Result<Vec<String>, RedirectError> {
        let wanted = Picture::of_commands(&json::replace(&ruleset));
        let known = self.known.take();
        let differences = match &known {
            Some(known) if *known != ruleset => match self.change(known, &ruleset) {
                Ok(()) => self.compare(&wanted, false)?,
                // Somebody edited the table meanwhile.
                Err(error) => {
                    tracing::info!(%error, "the rules cannot be changed as they are, so all are replaced");
                    vec![error.to_string()]
                }
            },
            Some(_) => self.compare(&wanted, false)?,
            None => self.make(&ruleset, &wanted, missed)?,
        };
        if !differences.is_empty() {
            let there_is_none = differences == [no_table()];
            let whole = if there_is_none { json::create(&ruleset) } else { json::replace(&ruleset) };
            self.load(whole)?;
            let mut left = self.compare(&wanted, true)?;
            if !left.is_empty() {
                left.truncate(NAMED_DIFFERENCES);
                return Err(RedirectError::ReadBack { differences: left });
            }
        }
        self.tell_time()?;
        // Rules on trial may lapse at any time, and what is kept would not.
        match &*self.trial.borrow() {
            Some(_) => self.keep.borrow_mut().release(),
            None => self.keep.borrow_mut().hold(&ruleset),
        }
        self.known.replace(Some(ruleset));
        Ok(differences)
    }
}

/// Removes what the driver `iptables` left behind, now that our rules are there: the host changed its
/// driver.
fn retire_the_other() {
    match iptables::clear(None) {
        Ok(false) => {}
        Ok(true) => tracing::info!("the chains of the driver iptables are removed; nftables took over"),
        Err(error) => tracing::warn!(%error, "chains of the driver iptables may be left behind"),
    }
}

/// The difference between a host that should have our table and one that has none.
fn no_table() -> String {
    format!("+ table inet {}", ruleset::TABLE)
}

/// Whether the rules that every policy needs could be set here. Nothing is set. What a try would find
/// out, such as a missing privilege, speaks not against nftables.
///
/// # Errors
/// `nft` is not there, lacks JSON, or the kernel lacks NAT for both families at once.
pub(super) fn works() -> Result<(), RedirectError> {
    let trial = json::replace(&ruleset::husk()).to_string();
    match nft(&["-j", "-c", "-f", "-"], trial.as_bytes()) {
        Err(
            error @ (RedirectError::NoNft
            | RedirectError::NoJson
            | RedirectError::KernelLacks { .. }
            | RedirectError::Refused { .. }),
        ) => Err(error),
        _ => Ok(()),
    }
}

/// Removes our table and returns whether there was one.
///
/// # Errors
/// `nft` is not there, or the kernel refused.
pub(super) fn clear() -> Result<bool, RedirectError> {
    let any = Nftables::read()?.is_some();
    if any {
        command::load(&json::remove().to_string())?;
    }
    Ok(any)
}

impl Firewall for Nftables {
    fn name(&self) -> &'static str {
        "nftables"
    }

    fn observe(&self, desired: &Desired) -> Result<Observed, Fault> {
        let found = Self::read()?;
        let generation = found.as_ref().and_then(|picture| picture.generation.clone());
        let differences = match (found, self.is_nothing(desired)) {
            (None, true) => Vec::new(),
            (None, false) => vec![no_table()],
            (Some(_), true) => vec![format!("- table inet {}", ruleset::TABLE)],
            (Some(found), false) => {
                let ruleset = self.ruleset(desired);
                let wanted = Picture::of_commands(&json::replace(&ruleset));
                diff::differences(&wanted, &found, &self.wordings.borrow())
            }
        };
        Ok(Observed { generation, differences })
    }

    fn apply(&self, desired: &Desired) -> Result<(), Fault> {
        if self.is_nothing(desired) {
            return self.remove();
        }
        self.set(self.ruleset(desired), false)?;
        Ok(())
    }

    fn repair(&self, desired: &Desired) -> Result<Vec<String>, Fault> {
        // One reading less than the two steps apart, which counts while traffic goes astray.
        Ok(self.set(self.ruleset(desired), true)?)
    }

    fn watch(&self) -> Result<Option<Drift>, Fault> {
        // Who listens stays, and may have set rules before.
        self.keep.borrow_mut().begin();
        if let (Some(known), None) = (&*self.known.borrow(), &*self.trial.borrow()) {
            self.keep.borrow_mut().hold(known);
        }
        Drift::watch(self.own.clone()).map(Some)
    }

    fn on_trial(&self, trial: Option<Trial>) -> Result<(), Fault> {
        if trial.is_some() {
            self.keep.borrow_mut().release();
        }
        self.trial.replace(trial);
        Ok(())
    }

    fn drain(&self) -> Result<(), Fault> {
        self.trial.take();
        self.keep.borrow_mut().release();
        if Self::read()?.is_some() {
            self.known.take();
            self.load(json::replace(&ruleset::husk()))?;
        }
        Ok(())
    }

    fn remove(&self) -> Result<(), Fault> {
        self.trial.take();
        self.keep.borrow_mut().release();
        self.known.take();
        Ok(self.load(json::remove())?)
    }
}
