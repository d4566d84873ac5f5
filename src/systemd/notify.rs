//! What enmesh tells the service manager about itself (sd_notify(3)). Where none listens, because
//! enmesh was not started by one, all of this does nothing.

use std::time::Duration;

use sd_notify::NotifyState;

/// Start-up is complete: rules are in force or known to be closed.
pub fn ready() {
    send(&[NotifyState::Ready]);
}

/// A line for `systemctl status`.
pub fn status(text: &str) {
    // A line break would start another message.
    let line = text.replace(['\n', '\r'], " ");
    send(&[NotifyState::Status(&line)]);
}

/// The configuration is being read again; say [`ready`] after.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => send(&[NotifyState::Reloading, now]),
        Err(_) => send(&[NotifyState::Reloading]),
    }
}

/// The stop has begun.
pub fn stopping() {
    send(&[NotifyState::Stopping]);
}

/// Still alive; see [`watchdog_interval`].
pub fn watchdog() {
    send(&[NotifyState::Watchdog]);
}

/// Asks for at least this much more time to start, reload or stop.
pub fn extend_timeout(by: Duration) {
    let microseconds = u32::try_from(by.as_micros()).unwrap_or(u32::MAX);
    send(&[NotifyState::ExtendTimeoutUsec(microseconds)]);
}

/// How often [`watchdog`] must be said: half of what the unit allows, as sd_watchdog_enabled(3)
/// advises. `None` when nobody watches this process.
pub fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|limit| limit / 2)
}

fn send(states: &[NotifyState<'_>]) {
    // The variable stays set: removing it is not sound with threads, and children get a cleared
    // environment anyway.
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager does not listen");
    }
}
