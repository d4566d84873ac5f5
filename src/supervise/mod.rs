//! The unit operations where there is no systemd: Envoy runs as a child of enmesh, with its own
//! user, an empty environment and a process group of its own, and is started again when it ends.
//!
//! A sidecar outlives enmesh: connections must not break because the daemon was killed or upgraded.
//! So each process leaves a record (`/run/enmesh/<id>/pid`), and the next enmesh adopts what still
//! runs as it should. Number, start time and name must all agree before a process is taken for ours.

pub mod error;
mod keeper;
mod leftover;
pub mod privilege;
mod process;
pub mod reap;
pub mod recorded;

#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::{Mutex, broadcast, mpsc, oneshot};

use self::error::SuperviseError;
use self::process::Process;
use crate::base::units::{UnitEvent, UnitSpec, UnitState, UnitStatus, Units};
use crate::base::{Fault, LocalFuture, Root};

/// Events that a slow listener may leave unread before it misses some.
const EVENTS: usize = 256;

/// How long things take.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// The pause before the first restart; it doubles with each one.
    pub first_pause: Duration,
    /// The longest pause.
    pub longest_pause: Duration,
    /// After this long in operation the next end counts as the first one.
    pub calm: Duration,
    /// What a process has between SIGTERM and SIGKILL. Connections were drained before.
    pub grace: Duration,
    /// How long a started process is watched before it counts as started; as in the room `systemd`.
    pub settle: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Timing {
            first_pause: Duration::from_millis(100),
            longest_pause: Duration::from_secs(10),
            calm: Duration::from_secs(30),
            grace: Duration::from_secs(10),
            settle: Duration::from_millis(250),
        }
    }
}

/// The sidecars as children of this process. Needs a running `LocalSet`.
///
/// Dropping it leaves the sidecars running, for the next one to adopt.
pub struct Supervisor {
    shared: Rc<Shared>,
    /// Held while a sidecar is exchanged, so that two calls never start it twice.
    exchange: Mutex<()>,
}

struct Shared {
    root: Root,
    timing: Timing,
    sidecars: RefCell<BTreeMap<String, Sidecar>>,
    events: broadcast::Sender<UnitEvent>,
}

/// What is known of a sidecar that a keeper looks after.
struct Sidecar {
    /// The name that its specification asks for.
    name: String,
    status: UnitStatus,
    /// As in [`Past`].
    pause: Duration,
    /// To its keeper: end the process, then answer.
    orders: mpsc::Sender<oneshot::Sender<()>>,
}

/// How often a sidecar has ended, and what follows from it.
#[derive(Debug, Clone, Copy)]
struct Past {
    /// How often it was started again.
    restarts: u32,
    /// The pause before it is the next time.
    pause: Duration,
}

impl Past {
    /// Once it is started again.
    fn again(self, timing: &Timing) -> Past {
        Past { restarts: self.restarts + 1, pause: (self.pause * 2).min(timing.longest_pause) }
    }
}

impl Shared {
    /// Notes a state and tells it to whoever listens.
    fn tell(&self, instance: &str, state: UnitState, pid: Option<u32>, past: Past) {
        if let Some(sidecar) = self.sidecars.borrow_mut().get_mut(instance) {
            sidecar.status = UnitStatus { state, pid, restarts: past.restarts };
            sidecar.pause = past.pause;
        }
        // Nobody listening is fine.
        let _ = self.events.send(UnitEvent { instance: instance.to_owned(), state, pid });
    }
}

impl Supervisor {
    /// A supervisor whose records lie below `root`.
    pub fn new(root: Root, timing: Timing) -> Self {
        // For the children's sake, as the unit file says it for theirs: no program can give a
        // sidecar powers that it was not started with. Kernels since 3.5 know it.
        if let Err(error) = nix::sys::prctl::set_no_new_privs() {
            tracing::warn!(%error, "sidecars could gain privileges by running other programs");
        }
        let shared = Shared {
            root,
            timing,
            sidecars: RefCell::new(BTreeMap::new()),
            events: broadcast::channel(EVENTS).0,
        };
        Supervisor { shared: Rc::new(shared), exchange: Mutex::new(()) }
    }

    async fn start_sidecar(&self, spec: &UnitSpec, live: LocalFuture<'_, ()>) -> Result<(), Fault> {
        let name = spec.process_name();
        let mut events = {
            let _alone = self.exchange.lock().await;
            if self.runs_as(&spec.instance, &name) {
                return Ok(());
            }
            let past = self.past_of(&spec.instance, &name);
            self.dismiss(&spec.instance).await?;
            let leftover = leftover::find(&self.shared.root, &spec.instance)?;
            match leftover {
                Some(old) if old.name == name => {
                    tracing::info!(service = %spec.instance, pid = old.process.pid(), "adopted the running sidecar");
                    self.keep(spec, name, old.process, self.afresh());
                    return Ok(());
                }
                Some(mut old) => old.process.end(self.shared.timing.grace).await?,
                None => {}
            }
            leftover::announce(&self.shared.root, spec)?;
            let process = match Process::spawn(spec) {
                Ok(process) => process,
                Err(error) => {
                    leftover::forget(&self.shared.root, &spec.instance)?;
                    return Err(error.into());
                }
            };
            leftover::record(&self.shared.root, &spec.instance, &process)?;
            let events = self.shared.events.subscribe();
            self.keep(spec, name, process, past);
            events
        };
        tokio::select! {
            settled = self.settle(&spec.instance, &mut events) => settled,
            () = live => Ok(()),
        }
    }

    fn runs_as(&self, instance: &str, name: &str) -> bool {
        let sidecars = self.shared.sidecars.borrow();
        sidecars.get(instance).is_some_and(|s| s.name == name && s.status.state == UnitState::Active)
    }

    /// What counts of a sidecar that is started now: one that has ended by itself and waits for its keeper is started
    /// again, only sooner, and its pauses go on growing.
    fn past_of(&self, instance: &str, name: &str) -> Past {
        let sidecars = self.shared.sidecars.borrow();
        let waits = |s: &&Sidecar| s.name == name && s.status.state == UnitState::Failed;
        match sidecars.get(instance).filter(waits) {
            Some(waiting) => {
                Past { restarts: waiting.status.restarts, pause: waiting.pause }.again(&self.shared.timing)
            }
            None => self.afresh(),
        }
    }

    fn afresh(&self) -> Past {
        Past { restarts: 0, pause: self.shared.timing.first_pause }
    }

    /// Hands the process to a keeper of its own.
    fn keep(&self, spec: &UnitSpec, name: String, process: Process, past: Past) {
        let (orders, receiver) = mpsc::channel(1);
        let status =
            UnitStatus { state: UnitState::Active, pid: Some(process.pid()), restarts: past.restarts };
        let sidecar = Sidecar { name, status, pause: past.pause, orders };
        self.shared.sidecars.borrow_mut().insert(spec.instance.clone(), sidecar);
        self.shared.tell(&spec.instance, UnitState::Active, Some(process.pid()), past);
        let keeper = keeper::Keeper::new(Rc::downgrade(&self.shared), spec.clone(), receiver, past);
        tokio::task::spawn_local(keeper.run(process));
    }

    /// Watches what has just started for a moment, because a program that does not like its
    /// configuration starts well and ends right after.
    async fn settle(&self, instance: &str, events: &mut broadcast::Receiver<UnitEvent>) -> Result<(), Fault> {
        let fails = async {
            loop {
                match events.recv().await {
                    Ok(event) if event.instance == instance && event.state == UnitState::Failed => return,
                    Err(broadcast::error::RecvError::Closed) => return,
                    _ => {}
                }
            }
        };
        match tokio::time::timeout(self.shared.timing.settle, fails).await {
            Ok(()) => Err(SuperviseError::Ended { instance: instance.to_owned() }.into()),
            Err(_) => Ok(()),
        }
    }

    /// Has the keeper of `instance` end the process, if there is one, and forgets both.
    async fn dismiss(&self, instance: &str) -> Result<(), Fault> {
        let orders = self.shared.sidecars.borrow().get(instance).map(|sidecar| sidecar.orders.clone());
        let Some(orders) = orders else { return Ok(()) };
        let (answer, done) = oneshot::channel();
        let ended = orders.send(answer).await.is_ok() && done.await.is_ok();
        self.shared.sidecars.borrow_mut().remove(instance);
        if ended { Ok(()) } else { Err(SuperviseError::Stuck { instance: instance.to_owned() }.into()) }
    }

    async fn stop_sidecar(&self, instance: &str) -> Result<(), Fault> {
        let _alone = self.exchange.lock().await;
        self.dismiss(instance).await?;
        if let Some(mut old) = leftover::find(&self.shared.root, instance)? {
            old.process.end(self.shared.timing.grace).await?;
        }
        leftover::forget(&self.shared.root, instance)
    }

    fn status_of(&self, instance: &str) -> Result<UnitStatus, Fault> {
        if let Some(sidecar) = self.shared.sidecars.borrow().get(instance) {
            return Ok(sidecar.status.clone());
        }
        let running = leftover::find(&self.shared.root, instance)?.map(|old| old.process.pid());
        let state = if running.is_some() { UnitState::Active } else { UnitState::Inactive };
        Ok(UnitStatus { state, pid: running, restarts: 0 })
    }
}

impl Units for Supervisor {
    fn name(&self) -> &'static str {
        "supervise"
    }

    fn start_until<'a>(
        &'a self,
        spec: &'a UnitSpec,
        live: LocalFuture<'a, ()>,
    ) -> LocalFuture<'a, Result<(), Fault>> {
        Box::pin(self.start_sidecar(spec, live))
    }

    fn stop<'a>(&'a self, instance: &'a str) -> LocalFuture<'a, Result<(), Fault>> {
        Box::pin(self.stop_sidecar(instance))
    }

    fn status<'a>(&'a self, instance: &'a str) -> LocalFuture<'a, Result<UnitStatus, Fault>> {
        Box::pin(async move { self.status_of(instance) })
    }

    fn list(&self) -> LocalFuture<'_, Result<Vec<String>, Fault>> {
        Box::pin(async move {
            let mut instances: BTreeSet<String> = self.shared.sidecars.borrow().keys().cloned().collect();
            instances.extend(leftover::recorded(&self.shared.root));
            Ok(instances.into_iter().collect())
        })
    }

    fn events(&self) -> broadcast::Receiver<UnitEvent> {
        self.shared.events.subscribe()
    }
}
