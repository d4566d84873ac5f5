//! Waiting, bounded, and Ctrl-C.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};

use super::error::DemoError;
use crate::base::Fault;
use crate::netns;

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(5);

/// Set once somebody wants the demo to end.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Whether somebody wants the demo to end.
pub(super) fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Acquire)
}

/// From now on SIGINT, SIGTERM and SIGHUP do not kill this process but end the demo at its next
/// wait, so that it can clean up.
///
/// # Errors
/// `ENM-T004` no thread.
pub(super) fn heed_signals() -> Result<(), Fault> {
    let (ready, readiness) = std::sync::mpsc::sync_channel(1);
    let watch = move || {
        netns::block_on(async move {
            let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
            let signals: Result<Vec<_>, _> = kinds.into_iter().map(signal).collect();
            let Ok(mut signals) = signals else { return };
            let _ = ready.send(());
            let waits = signals.iter_mut().map(|signal| Box::pin(signal.recv()));
            futures_util::future::select_all(waits).await;
            INTERRUPTED.store(true, Ordering::Release);
        })
    };
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(watch)
        .map_err(|e| DemoError::system("start a thread", e))?;
    readiness
        .recv()
        .map_err(|_| DemoError::system("watch signals", std::io::Error::other("no runtime")).into())
}

/// Looks again and again until `look` has something, for at most `limit`. What it says instead is
/// part of the error.
///
/// # Errors
/// `ENM-T005` not in time, `ENM-T006` interrupted.
pub fn until<T>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> Result<T, String>,
) -> Result<T, Fault> {
    let started = Instant::now();
    loop {
        if interrupted() {
            return Err(DemoError::Interrupted.into());
        }
        match look() {
            Ok(value) => return Ok(value),
            Err(last) if started.elapsed() >= limit => {
                return Err(
                    DemoError::NotInTime { what: what.to_owned(), seconds: limit.as_secs(), last }.into()
                );
            }
            Err(_) => thread::sleep(POLL),
        }
    }
}
