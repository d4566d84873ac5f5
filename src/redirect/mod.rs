//! Redirection policy -> rules in the kernel, and back: drivers, observation, verification.
//!
//! While it runs, the daemon keeps one driver and calls [`Firewall::apply`] with every new plan and
//! whenever a sidecar becomes live or stops being so. To leave, it calls [`Firewall::drain`], gives
//! the connections that are still redirected their time, and calls [`Firewall::remove`]. The rules
//! that close a host before any sidecar runs are those of its last policy with nobody live.
//!
//! [`Nftables`] is the driver, [`Iptables`] the one for hosts without nftables, and [`best`] says which
//! works here; [`Recorded`] stands in for them in the tests of other rooms. [`render_text`] and
//! [`render_iptables`] show the rules without touching anything, [`foreign()`] finds the redirectors of others.

mod by_hand;
mod capabilities;
mod error;
mod explain;
mod foreign;
#[cfg(test)]
mod hostile;
mod iptables;
mod kernel_tables;
mod nftables;
mod none;
mod recorded;
mod ruleset;
pub mod takeover;
pub mod trace;
mod watch;

use std::collections::BTreeSet;

use serde::Serialize;

pub use by_hand::{Flags, HandError, Names, Request, in_force, is_by_hand, ports_of};
pub use capabilities::{Capabilities, Capability, CapabilityError, Found, capabilities};
pub use error::RedirectError;
pub use explain::{Decision, Flow, Origin, Transport, Verdict, concerned, explain};
pub use foreign::{Foreign, foreign};
pub use iptables::{Flavour, Iptables};
pub use nftables::Nftables;
pub use nftables::border::{Border, Crossings};
pub use none::NoRules;
pub use recorded::{Call, Recorded};
pub use ruleset::{ALWAYS_BYPASSED, DRAIN_MARK, GENERATION_MARK, TABLE};
pub use watch::{Drift, DriftEvent, OwnCommits};

use crate::base::{Deadline, Fault};
use crate::config::value::ServiceId;
use crate::plan::{Generation, RedirectPolicy};

/// The table of the border between the host and the namespaces of services. Its family is `inet`.
pub const BORDER: &str = "enmesh_border";

/// The ruleset of `policy` as text, with the sidecars of `live` taking connections. It is what the
/// driver `nftables` programs, and `nft -f` loads it to the same state. Needs no privilege and no
/// `nft`.
pub fn render_text(policy: &RedirectPolicy, live: &BTreeSet<ServiceId>) -> String {
    if policy.is_empty() {
        return ruleset::text::remove();
    }
    ruleset::text::replace(&ruleset::build(policy, live))
}

/// The same as the JSON that `nft -j -f -` takes, for programs; indented, with a final newline.
pub fn render_json(policy: &RedirectPolicy, live: &BTreeSet<ServiceId>) -> String {
    let document = if policy.is_empty() {
        ruleset::json::remove()
    } else {
        ruleset::json::replace(&ruleset::build(policy, live))
    };
    format!("{document:#}\n")
}

/// The same for iptables: the documents that `iptables-restore --noflush` and `ip6tables-restore --noflush` take
/// where no rules of ours are. Needs no privilege and no iptables.
pub fn render_iptables(policy: &RedirectPolicy, live: &BTreeSet<ServiceId>) -> [String; 2] {
    if policy.is_empty() {
        return [String::new(), String::new()];
    }
    iptables::render(&ruleset::build(policy, live))
}

/// The best driver that works here: nftables; where there is none, or one that lacks what is needed, iptables. Where
/// there is neither it is nftables, which says what it lacks whenever it is used.
pub fn best() -> Box<dyn Firewall> {
    match nftables::works() {
        Err(error) if !iptables::Tool::installed().is_empty() => {
            tracing::info!(%error, "nftables does not work here, so iptables is used");
            Box::new(Iptables::new())
        }
        _ => Box::new(Nftables::new()),
    }
}

/// Whether nftables does not work here and iptables does.
pub fn best_is_iptables() -> bool {
    nftables::works().is_err() && !iptables::Tool::installed().is_empty()
}

/// What the rules shall be: the policy, and which sidecars are live right now.
///
/// Connections are redirected to live sidecars only; for the others `on_failure` decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    /// The policy.
    pub policy: RedirectPolicy,
    /// Services whose sidecar takes connections.
    pub live: BTreeSet<ServiceId>,
}

/// Rules that count for a time only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trial {
    /// What counts afterwards; `None` leaves everything alone, as if no rules were there.
    pub before: Option<Desired>,
    /// When.
    pub until: Deadline,
}

/// How the kernel's rules compare with what they shall be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Observed {
    /// The generation that the rules carry; `None` when there are none of ours.
    pub generation: Option<Generation>,
    /// How they differ from what was asked about, each line for a person: `+` missing, `-` too
    /// many, `~` different. Empty when they are as they shall be.
    pub differences: Vec<String>,
}

/// A way to program redirection.
///
/// Calls are synchronous and bounded in time; they act on the network namespace of the calling
/// thread.
pub trait Firewall {
    /// Which driver this is: `nftables`, `iptables`, `none`, or `recorded`.
    fn name(&self) -> &'static str;

    /// Compares the kernel's rules with `desired`.
    ///
    /// # Errors
    /// The kernel or the tool that speaks to it does not answer.
    fn observe(&self, desired: &Desired) -> Result<Observed, Fault>;

    /// Makes the kernel's rules be `desired`, in one step, and reads them back.
    ///
    /// # Errors
    /// The rules could not be set (the old ones are in force then), or what was read back differs.
    fn apply(&self, desired: &Desired) -> Result<(), Fault>;

    /// Looks whether the kernel's rules, which were `desired`, still are, and sets them again if not.
    /// Returns what was amiss, in the words of [`Observed::differences`].
    ///
    /// # Errors
    /// As [`Firewall::apply`].
    fn repair(&self, desired: &Desired) -> Result<Vec<String>, Fault> {
        let seen = self.observe(desired)?;
        if !seen.differences.is_empty() {
            self.apply(desired)?;
        }
        Ok(seen.differences)
    }

    /// Starts listening for changes of the rules by others, and from then on keeps what of them can outlive those for as
    /// long as this value lives. `None` where nobody tells of them.
    ///
    /// # Errors
    /// `ENM-R013` the kernel does not let us listen.
    fn watch(&self) -> Result<Option<Drift>, Fault> {
        Ok(None)
    }

    /// From now on everything that is applied is on trial: when its time is over the kernel goes back to the
    /// rules of before by itself, whoever is dead by then. `None` ends that: what is applied next is there to
    /// stay. Nothing is touched until then.
    ///
    /// # Errors
    /// `ENM-R050` this driver has nothing that lapses by itself.
    fn on_trial(&self, trial: Option<Trial>) -> Result<(), Fault> {
        match trial {
            None => Ok(()),
            Some(_) => Err(RedirectError::NoTrial { driver: self.name() }.into()),
        }
    }

    /// The first of two steps of removal: new connections go direct from now on and nothing is
    /// refused, while the ones that are redirected already run on. Call [`Firewall::remove`] when
    /// they are gone or their time is over. Where no rules of ours are, none are made.
    ///
    /// # Errors
    /// The kernel refused; the rules are as they were.
    fn drain(&self) -> Result<(), Fault>;

    /// Removes every rule of ours and nothing else; none there is fine. Connections that are still
    /// redirected hang or are reset.
    ///
    /// # Errors
    /// The kernel refused.
    fn remove(&self) -> Result<(), Fault>;
}
