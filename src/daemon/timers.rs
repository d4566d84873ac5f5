//! When the daemon wakes by itself: only while something is due.

use std::time::{Duration, SystemTime};

use tokio::time::{Instant, sleep_until};

use crate::base::Class;
use crate::converge::{Engine, Phase, Status};

/// A sidecar that is not live is looked at after this time, and less and less often.
const FIRST_LOOK: Duration = Duration::from_millis(50);
/// The longest pause between two looks.
const LAST_LOOK: Duration = Duration::from_secs(2);
/// After converging with a fault, this long until the next try, and longer each time.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// The longest pause between two tries.
const LAST_RETRY: Duration = Duration::from_secs(60);

/// A certificate that is overdue right after converging cannot be renewed on this host: somebody else
/// puts it there, and the watcher tells when. It is looked at all the same, at this pace.
const OVERDUE_LOOK: Duration = Duration::from_secs(10);

/// The daemon's alarm clock.
pub struct Timers {
    recheck: Pause,
    retry: Pause,
    renewal: Option<Instant>,
    watchdog: Option<Duration>,
    watchdog_due: Instant,
}

/// A pause that doubles.
struct Pause {
    first: Duration,
    last: Duration,
    next: Duration,
    due: Option<Instant>,
}

impl Pause {
    fn new(first: Duration, last: Duration) -> Self {
        Pause { first, last, next: first, due: None }
    }

    fn arm(&mut self) {
        self.due = Some(Instant::now() + self.next);
        self.next = (self.next * 2).min(self.last);
    }

    fn disarm(&mut self) {
        self.due = None;
        self.next = self.first;
    }
}

impl Timers {
    /// Timers with a service manager that wants to hear from us every `watchdog`.
    pub fn new(watchdog: Option<Duration>) -> Self {
        Timers {
            recheck: Pause::new(FIRST_LOOK, LAST_LOOK),
            retry: Pause::new(FIRST_RETRY, LAST_RETRY),
            renewal: None,
            watchdog,
            watchdog_due: Instant::now(),
        }
    }

    /// After converging: what is due next.
    pub fn converged(&mut self, engine: &Engine, status: &Status) {
        self.refreshed(engine);
        self.looked(status.services.values().all(|service| service.phase == Phase::Live));
        // Bad configuration does not get better by itself: the watcher tells when it changed.
        if status.faults.iter().any(|fault| fault.class != Class::Config) {
            self.retry.arm();
        } else {
            self.retry.disarm();
        }
    }

    /// After sidecars were told something: when their certificates are due.
    pub fn refreshed(&mut self, engine: &Engine) {
        let now = SystemTime::now();
        self.renewal =
            engine.next_renewal().map(|at| Instant::now() + at.duration_since(now).unwrap_or(OVERDUE_LOOK));
    }

    /// After something went wrong that converging may mend.
    pub fn failed(&mut self) {
        self.retry.arm();
    }

    /// After a look at the sidecars.
    pub fn looked(&mut self, all_live: bool) {
        if all_live {
            self.recheck.disarm();
        } else {
            self.recheck.arm();
        }
    }

    /// When sidecars are to be looked at.
    pub async fn recheck(&self) {
        at(self.recheck.due).await;
    }

    /// When converging is to be tried again.
    pub async fn retry(&self) {
        at(self.retry.due).await;
    }

    /// When a certificate is to be renewed.
    pub async fn renewal(&self) {
        at(self.renewal).await;
    }

    /// When the service manager wants to hear from us.
    pub async fn watchdog(&self) {
        at(self.watchdog.map(|_| self.watchdog_due)).await;
    }

    /// It has heard from us.
    pub fn fed(&mut self) {
        self.watchdog_due = Instant::now() + self.watchdog.unwrap_or_default();
    }
}

async fn at(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}
