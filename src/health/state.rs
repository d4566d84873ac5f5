//! How a check is, and when it becomes something else.

use std::fmt;
use std::time::SystemTime;

use serde::Serialize;

use crate::config::{Check, CheckStatus};

/// Longest output of a check that is kept, in characters; Consul's own limit is 4 KiB.
const OUTPUT_MAX: usize = 1000;

/// How a check is, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CheckState {
    /// How it is shown: its name, else its id.
    pub name: String,
    /// How it is.
    pub status: CheckStatus,
    /// What it said last: bounded, without control characters.
    pub output: String,
    /// Since when it is so.
    pub since: SystemTime,
    /// Whether it was run or reported since this process began; before, it is what was known of it.
    #[serde(skip)]
    pub heard: bool,
}

impl CheckState {
    /// Critical until it has been heard of.
    pub(super) fn new(name: String, output: &str) -> Self {
        CheckState {
            name,
            status: CheckStatus::Critical,
            output: output.to_owned(),
            since: SystemTime::now(),
            heard: false,
        }
    }
}

/// What one run, or one report, found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finding {
    pub status: CheckStatus,
    pub output: String,
}

impl Finding {
    pub fn new(status: CheckStatus, output: &str) -> Self {
        Finding { status, output: tidy(output) }
    }

    pub fn critical(output: impl fmt::Display) -> Self {
        Finding::new(CheckStatus::Critical, &output.to_string())
    }
}

/// Text from anywhere, as it may stand in a log, in a terminal and in Consul.
fn tidy(text: &str) -> String {
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let text = text.trim();
    match text.char_indices().nth(OUTPUT_MAX) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

/// How many findings in a row it takes before a state changes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Thresholds {
    passing: u32,
    warning: u32,
    critical: u32,
}

impl Thresholds {
    pub fn of(check: &Check) -> Self {
        let critical = check.failures_before_critical.unwrap_or(0);
        Thresholds {
            passing: check.success_before_passing.unwrap_or(0),
            warning: check.failures_before_warning.unwrap_or(critical),
            critical,
        }
    }
}

/// The findings in a row.
#[derive(Debug, Default)]
pub(super) struct Row {
    successes: u32,
    failures: u32,
}

impl Row {
    /// What `finding` makes of the state; `None` when it does not change it yet. A run that warns
    /// counts as a success, as with Consul's agent.
    pub fn take(&mut self, finding: &Finding, thresholds: Thresholds) -> Option<CheckStatus> {
        if finding.status == CheckStatus::Critical {
            self.successes = 0;
            self.failures = self.failures.saturating_add(1);
            if self.failures >= thresholds.critical {
                return Some(CheckStatus::Critical);
            }
            return (self.failures >= thresholds.warning).then_some(CheckStatus::Warning);
        }
        self.failures = 0;
        self.successes = self.successes.saturating_add(1);
        (self.successes >= thresholds.passing).then_some(finding.status)
    }
}
