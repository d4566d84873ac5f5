//! Who is gone: from what the platform says, from how long nothing was heard, and from nothing else.

use std::fmt;
use std::time::Duration;

use super::holdings::Holding;
use super::memory::Seen;

/// After so many renewals that did not come, a lease is over.
const MISSED: u32 = 3;
/// Who has no services has no lease: only his logins or his empty node are there. Those take long to be
/// left behind, since a host with nothing to do renews nothing.
const IDLE: Duration = Duration::from_secs(24 * 3600);

/// What the platform says of an owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Evidence {
    /// It is there, in the platform's words.
    There(String),
    /// It has ended, in the platform's words.
    Ended(String),
    /// There is no such thing.
    Absent,
    /// It was not asked.
    Unasked,
}

impl Evidence {
    pub fn is_gone(&self) -> bool {
        matches!(self, Evidence::Ended(_) | Evidence::Absent)
    }
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Evidence::There(state) => f.write_str(state),
            Evidence::Ended(state) => write!(f, "the platform says: {state}"),
            Evidence::Absent => f.write_str("the platform does not have it"),
            Evidence::Unasked => f.write_str("nobody was asked"),
        }
    }
}

/// By what is judged.
#[derive(Debug)]
pub(super) struct Rules {
    pub grace: Duration,
    /// Whether a lease alone decides where the platform was not asked.
    pub leases: bool,
}

/// What becomes of an owner.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// He is there.
    Alive,
    /// His lease is over, and the platform says that he is there.
    Spared(String),
    /// He is gone, and not for long enough.
    Waiting { why: String, left: Duration },
    /// He is gone.
    Orphan(String),
}

/// How long nothing may be heard of the owner of `holding`.
fn lease(holding: &Holding) -> Duration {
    if holding.services.is_empty() { IDLE } else { holding.every * MISSED }
}

/// Whether the platform should be asked for somebody whom it lists: a renewal is late.
pub(super) fn worth_a_look(seen: &Seen, holding: &Holding) -> bool {
    !holding.services.is_empty() && seen.silent > holding.every + holding.every / 4
}

/// The verdict on one owner.
pub(super) fn judge(evidence: &Evidence, seen: &Seen, holding: &Holding, rules: &Rules) -> Verdict {
    let (silent, lease) = (seen.silent, lease(holding));
    let (why, after, over) = match evidence {
        Evidence::There(state) if silent > lease => return Verdict::Spared(state.clone()),
        Evidence::There(_) => return Verdict::Alive,
        Evidence::Ended(_) | Evidence::Absent => {
            (evidence.to_string(), rules.grace, seen.gone.unwrap_or_default())
        }
        Evidence::Unasked if !rules.leases || silent < lease => return Verdict::Alive,
        Evidence::Unasked => ("its lease is over".to_owned(), lease + rules.grace, silent),
    };
    match after.saturating_sub(over) {
        left if left.is_zero() => Verdict::Orphan(why),
        left => Verdict::Waiting { why, left },
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::holding;
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn seen(silent: u64, gone: Option<u64>) -> Seen {
        Seen { mark: String::new(), silent: seconds(silent), gone: gone.map(seconds) }
    }

    fn word(verdict: &Verdict) -> &'static str {
        match verdict {
            Verdict::Alive => "alive",
            Verdict::Spared(_) => "spared",
            Verdict::Waiting { .. } => "waiting",
            Verdict::Orphan(_) => "orphan",
        }
    }

    #[test]
    fn the_platform_s_word_counts_before_any_lease() {
        let rules = Rules { grace: seconds(60), leases: true };
        let there = Evidence::There("Repairing".to_owned());
        let ended = Evidence::Ended("Stopped".to_owned());
        for (evidence, silent, gone, wanted) in [
            (&there, 0, None, "alive"),
            (&there, 100_000, None, "spared"),
            (&Evidence::Absent, 0, Some(0), "waiting"),
            (&Evidence::Absent, 100_000, Some(59), "waiting"),
            (&Evidence::Absent, 0, Some(60), "orphan"),
            (&ended, 100_000, Some(0), "waiting"),
            (&ended, 100_000, Some(61), "orphan"),
        ] {
            let verdict = judge(evidence, &seen(silent, gone), &holding(10, true), &rules);
            assert_eq!(word(&verdict), wanted, "{evidence:?} {silent} {gone:?}");
        }
    }

    #[test]
    fn a_lease_alone_takes_three_renewals_and_the_grace() {
        let rules = Rules { grace: seconds(60), leases: true };
        for (silent, wanted) in
            [(0, "alive"), (29, "alive"), (30, "waiting"), (89, "waiting"), (90, "orphan")]
        {
            let verdict = judge(&Evidence::Unasked, &seen(silent, None), &holding(10, true), &rules);
            assert_eq!(word(&verdict), wanted, "{silent}");
        }
        let alone = judge(&Evidence::Unasked, &seen(3600, None), &holding(10, false), &rules);
        assert_eq!(word(&alone), "alive", "without services there is no lease");
        let rules = Rules { leases: false, ..rules };
        let verdict = judge(&Evidence::Unasked, &seen(1_000_000, None), &holding(10, true), &rules);
        assert_eq!(word(&verdict), "alive", "leases do not count unless asked for");
    }
}
