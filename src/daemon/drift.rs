//! Rules and route that somebody else changed: when to look after them.
//!
//! At once, as a rule: until then connections go where they should not. But two programs that undo
//! each other's work as fast as they can would keep a host busy for ever, so whoever repairs often
//! in a short time waits between two repairs, longer and longer.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::log;
use super::namespaces::Namespaces;
use crate::base::{Explain, Fault};
use crate::converge::Engine;
use crate::netns::RouteWatch;
use crate::redirect::{Drift, DriftEvent, RedirectError};

/// So many repairs within [`WINDOW`] need no pause: as many as a person, or a firewall that comes up
/// in several steps, would ever cause.
const FREE: usize = 10;
/// The time in which they are counted.
const WINDOW: Duration = Duration::from_secs(1);
/// The first pause before a repair beyond that.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// The longest pause, and so the longest that a host may be without its rules.
const LAST_PAUSE: Duration = Duration::from_secs(1);
/// When nothing had to be repaired for this long, the quarrel is over.
const CALM: Duration = Duration::from_secs(3);
/// So many repairs in a row may fail before the usual pace of trying again takes over.
const FAILURES: u32 = 8;

/// Listens, and says when a look is due.
pub struct Guard {
    rules: Option<Drift>,
    routes: Option<RouteWatch>,
    namespaces: Namespaces,
    pace: Pace,
    /// What was heard since the last look.
    heard: DriftEvent,
    contested: bool,
    failures: u32,
}

impl Guard {
    /// Starts listening. Where that cannot be, it is said, and rules are looked at only when
    /// something else happens.
    pub fn new(engine: &Engine) -> Guard {
        let kept = |fault: Fault| log::fault(&fault);
        Guard {
            rules: engine.watch_rules().map_err(kept).ok().flatten(),
            routes: RouteWatch::new().map_err(kept).ok(),
            namespaces: Namespaces::default(),
            pace: Pace::default(),
            heard: DriftEvent::default(),
            contested: false,
            failures: 0,
        }
    }

    /// After converging: listens in the namespaces that there are now.
    pub fn follow(&mut self, engine: &Engine) {
        self.namespaces.follow(engine);
    }

    /// Waits until the rules are to be looked at. Safe to interrupt.
    pub async fn due(&mut self) {
        loop {
            let due = self.pace.due;
            let heard = tokio::select! {
                biased;
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    self.pace.due = None;
                    return;
                }
                event = rules(&mut self.rules) => event,
                event = routes(&mut self.routes) => event,
                event = self.namespaces.next() => Some(event),
            };
            let Some(event) = heard else { continue };
            self.heard.merge(event);
            if self.pace.due.is_some() {
                continue;
            }
            if self.pace.may_now(Instant::now()) {
                return;
            }
            if !self.contested {
                self.contested = true;
                warn(RedirectError::Contested { by: who(&self.heard) });
            }
        }
    }

    /// Rules were looked at, and this was amiss. Returns the report of a repair, if it was one.
    pub fn looked(&mut self, amiss: Vec<String>) -> Option<DriftEvent> {
        self.failures = 0;
        let mut event = std::mem::take(&mut self.heard);
        let now = Instant::now();
        if amiss.is_empty() {
            return None;
        }
        self.contested &= !self.pace.is_calm(now);
        self.pace.repaired(now);
        // That the table is missing is no news after hearing that it was deleted.
        let told = !event.what.is_empty();
        let news = |line: &String| !(told && (line.starts_with("+ table") || line.starts_with("+ route")));
        event.merge(DriftEvent { what: amiss.into_iter().filter(news).collect(), by: None });
        warn(RedirectError::Drifted { by: who(&event), what: event.what.clone() });
        Some(event)
    }

    /// Rules could not be set again. Returns whether that shall be tried again at this pace.
    pub fn failed(&mut self, fault: &Fault) -> bool {
        log::fault(fault);
        self.failures += 1;
        let again = self.failures < FAILURES;
        if again {
            self.pace.hold_back(Instant::now());
        } else {
            self.failures = 0;
        }
        again
    }

    /// Whether somebody changes the rules so often that repairs hold back.
    pub fn is_contested(&self) -> bool {
        self.contested && !self.pace.is_calm(Instant::now())
    }
}

fn who(event: &DriftEvent) -> String {
    event.by.clone().unwrap_or_else(|| "somebody".to_owned())
}

/// A warning with its code and hint.
fn warn(error: RedirectError) {
    let (code, hint) = (error.code(), error.hint());
    tracing::warn!(code, hint, "{code}: {error}");
}

/// The next change of the rules; `None` when there is nothing to hear any more.
async fn rules(drift: &mut Option<Drift>) -> Option<DriftEvent> {
    let Some(listening) = drift else { return std::future::pending().await };
    match listening.next().await {
        Ok(event) => Some(event),
        Err(fault) => {
            log::fault(&fault);
            *drift = None;
            None
        }
    }
}

/// The same for the route of virtual IPs.
async fn routes(watch: &mut Option<RouteWatch>) -> Option<DriftEvent> {
    let Some(listening) = watch else { return std::future::pending().await };
    match listening.gone().await {
        Ok(()) => Some(DriftEvent { what: vec!["deleted the route of virtual IPs".to_owned()], by: None }),
        Err(fault) => {
            log::fault(&fault);
            *watch = None;
            None
        }
    }
}

/// How fast repairs may follow each other.
#[derive(Debug, Default)]
struct Pace {
    /// The last [`FREE`] repairs, the oldest first.
    recent: VecDeque<Instant>,
    /// The last pause, while there is a quarrel.
    pause: Option<Duration>,
    /// When the next repair is due.
    due: Option<Instant>,
}

impl Pace {
    /// Whether a repair may be made now; otherwise it is due later.
    fn may_now(&mut self, now: Instant) -> bool {
        if self.is_calm(now) {
            self.pause = None;
        }
        let many =
            self.recent.len() == FREE && self.recent.front().is_some_and(|first| now - *first < WINDOW);
        if self.pause.is_none() && !many {
            return true;
        }
        self.hold_back(now);
        false
    }

    /// Makes the next repair due after a pause, longer than the last one.
    fn hold_back(&mut self, now: Instant) {
        let pause = self.pause.map_or(FIRST_PAUSE, |last| (last * 2).min(LAST_PAUSE));
        self.pause = Some(pause);
        self.due = Some(now + pause);
    }

    fn repaired(&mut self, now: Instant) {
        if self.recent.len() == FREE {
            self.recent.pop_front();
        }
        self.recent.push_back(now);
    }

    fn is_calm(&self, now: Instant) -> bool {
        self.recent.back().is_none_or(|last| now - *last >= CALM)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two programs that undo each other for a minute: the pace slows down and is never zero.
    #[test]
    fn a_quarrel_is_slow_and_never_given_up() {
        let mut pace = Pace::default();
        let start = Instant::now();
        let (mut now, mut repairs) = (start, Vec::new());
        while now - start < Duration::from_secs(60) {
            if !pace.may_now(now) {
                now = pace.due.take().unwrap();
            }
            pace.repaired(now);
            repairs.push(now - start);
            now += Duration::from_millis(10);
        }
        let first = repairs.iter().filter(|at| **at < WINDOW).count();
        assert!((FREE..=FREE + 6).contains(&first), "{first}");
        assert!((50..90).contains(&repairs.len()), "{}", repairs.len());
        let longest = repairs.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
        assert!(longest <= LAST_PAUSE + Duration::from_millis(10), "{longest:?}");
        assert!(pace.may_now(now + CALM), "after a quarrel, repairs are made at once again");
    }

    #[test]
    fn a_repair_now_and_then_never_waits() {
        let mut pace = Pace::default();
        let start = Instant::now();
        for step in 0..100 {
            let now = start + Duration::from_millis(101) * step;
            assert!(pace.may_now(now), "{step}");
            pace.repaired(now);
        }
    }
}
