//! Did Envoy take up what was written? Its own metrics know: each subscription tells the version
//! that it runs, how often it looked, and how often it said no.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::admin::{Admin, PAUSES};
use super::error;
use super::layout::{CDS, LDS, SECRETS};
use super::resources::{FileSet, version_of};
use crate::base::Fault;

/// Everything that is looked at, in one request.
const FILTER: &str = r"^(listener_manager\.lds|cluster_manager\.cds|sds\.[^.]+)\.(version_text|update_rejected|update_attempt)$|^cluster_manager\.warming_clusters$";

/// Metrics of Envoy's subscriptions at one moment.
#[derive(Debug, Clone, Default)]
pub struct Snapshot(BTreeMap<String, String>);

impl Snapshot {
    /// Asks Envoy.
    pub async fn take(admin: &Admin) -> Result<Self, Fault> {
        Ok(Snapshot(admin.raw_stats(FILTER).await?))
    }

    fn number(&self, prefix: &str, name: &str) -> u64 {
        self.0.get(&format!("{prefix}.{name}")).and_then(|value| value.parse().ok()).unwrap_or(0)
    }

    fn version(&self, prefix: &str) -> Option<&str> {
        self.0.get(&format!("{prefix}.version_text")).map(String::as_str)
    }

    /// The files of `set` that Envoy does not run, by path.
    pub fn stale(&self, set: &FileSet) -> BTreeSet<String> {
        set.files()
            .iter()
            .filter(|(path, bytes)| Watch::new(path, bytes, false).is_some_and(|watch| !watch.is_run(self)))
            .map(|(path, _)| path.clone())
            .collect()
    }
}

/// What became of files that were written.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Envoy runs them.
    Taken,
    /// Envoy said no to these.
    Rejected(Vec<String>),
    /// Envoy has not looked at these.
    Late(Vec<String>),
}

/// One file to watch.
struct Watch {
    path: String,
    prefix: String,
    version: String,
    /// Whether it was written since the snapshot, so that Envoy must have looked once more.
    written: bool,
}

impl Watch {
    fn new(path: &str, bytes: &[u8], written: bool) -> Option<Self> {
        Some(Watch {
            path: path.to_owned(),
            prefix: metrics_prefix(path)?,
            version: version_of(bytes)?,
            written,
        })
    }

    /// A certificate that nothing uses yet is not subscribed to, and has no metrics.
    fn is_run(&self, now: &Snapshot) -> bool {
        match now.version(&self.prefix) {
            Some(version) => version == self.version,
            None => self.path.starts_with(SECRETS),
        }
    }

    fn verdict(&self, before: &Snapshot, now: &Snapshot) -> Option<bool> {
        let more = |name| now.number(&self.prefix, name) > before.number(&self.prefix, name);
        let unused = now.version(&self.prefix).is_none();
        if more("update_rejected") {
            Some(false)
        } else if self.is_run(now) && (!self.written || unused || more("update_attempt")) {
            Some(true)
        } else {
            None
        }
    }
}

/// The prefix of the metrics of the subscription to the file at `path`.
fn metrics_prefix(path: &str) -> Option<String> {
    match path.split_once('/') {
        None if path == LDS => Some("listener_manager.lds".to_owned()),
        None if path == CDS => Some("cluster_manager.cds".to_owned()),
        Some((SECRETS, file)) => Some(format!("sds.{}", file.trim_end_matches(".json"))),
        _ => None,
    }
}

/// Waits until Envoy runs the files of `set` among `paths`. Those in `written` were renamed into
/// place after `before` was taken.
///
/// # Errors
/// Envoy cannot be asked.
pub async fn wait(
    admin: &Admin,
    before: &Snapshot,
    set: &FileSet,
    paths: impl Fn(&str) -> bool,
    written: &BTreeSet<String>,
    limit: Duration,
) -> Result<Verdict, Fault> {
    let watches: Vec<Watch> = set
        .files()
        .iter()
        .filter(|(path, _)| paths(path))
        .filter_map(|(path, bytes)| Watch::new(path, bytes, written.contains(path)))
        .collect();
    let started = Instant::now();
    let mut pause = PAUSES.0;
    loop {
        let now = match Snapshot::take(admin).await {
            Ok(now) => now,
            // A large change keeps Envoy's one main thread busy for seconds.
            Err(fault) if fault.code == error::SLOW && started.elapsed() < limit => continue,
            Err(fault) => return Err(fault),
        };
        let of = |wanted: Option<bool>| -> Vec<String> {
            let found = watches.iter().filter(|watch| watch.verdict(before, &now) == wanted);
            found.map(|watch| watch.path.clone()).collect()
        };
        let rejected = of(Some(false));
        if !rejected.is_empty() {
            return Ok(Verdict::Rejected(rejected));
        }
        let late = of(None);
        if late.is_empty() && now.number("cluster_manager", "warming_clusters") == 0 {
            return Ok(Verdict::Taken);
        }
        if started.elapsed() >= limit {
            return Ok(if late.is_empty() { Verdict::Taken } else { Verdict::Late(late) });
        }
        sleep(pause).await;
        pause = (pause * 2).min(PAUSES.1);
    }
}
