//! The loop that converges when something changed: configuration, a sidecar, a certificate, a wish.
//!
//! It sleeps otherwise: every source of work is an event, and timers exist only while something is
//! due (a renewal, a sidecar that is not live yet, the service manager's watchdog).

pub mod client;
pub mod control;
mod drift;
pub mod log;
mod namespaces;
mod readiness;
mod start;
mod timers;
mod watch;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

use nix::sys::signal::kill;
use nix::unistd::Pid;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{broadcast, mpsc};

use crate::base::units::UnitEvent;
use crate::base::{Explain, Fault, Root, files, process};
use crate::config;
use crate::config::value::Span;
use crate::converge::{Asked, ConvergeError, Engine, Lock, News, Outcome, Purpose, Status, TrialError};
use crate::supervise::reap;
use crate::systemd::{hold, notify};
use control::{Deed, Done, Names, Request};
use drift::Guard;
use timers::Timers;
use watch::Watcher;

/// Runs until told to end, by signal or by `enmesh down`.
///
/// # Errors
/// The daemon cannot start at all: another one runs, the firewall or the service manager is not to
/// be had. What goes wrong later is reported and tried again.
pub async fn run(root: Root) -> Result<(), Fault> {
    let config = start::check_environment(&root)?;
    let privileges = start::shed_privileges(&root, config);
    if reap::is_init() {
        // The container's orphans are ours.
        tokio::task::spawn_local(reap::reap_orphans());
    }
    let _lock = Lock::take(&root)?;
    let socket = root.join(control::SOCKET);
    let (engine, faults) = Engine::open(root, Purpose::Converge).await?;
    faults.iter().for_each(log::fault);
    let result = match Daemon::new(engine).await {
        Ok(daemon) => {
            daemon.status.borrow_mut().privileges = privileges;
            daemon.run().await
        }
        Err(fault) => Err(fault),
    };
    // Nobody answers on it any more.
    files::remove(&socket)?;
    result
}

struct Daemon {
    engine: Engine,
    events: broadcast::Receiver<UnitEvent>,
    watcher: Watcher,
    status: Rc<RefCell<Status>>,
    requests: mpsc::Receiver<Request>,
    timers: Timers,
    guard: Guard,
    ends: [Signal; 2],
    hangup: Signal,
    reopen: Signal,
}

/// What woke the daemon.
enum Wake {
    End,
    Reload,
    Reopen,
    Request(Request),
    Unit(UnitEvent),
    Missed,
    Recheck,
    Drift,
    Mesh,
    Registration,
    Login,
    Address,
    Checks,
    Streams,
    Watchdog,
    TrialOver,
    Units,
}

impl Daemon {
    async fn new(engine: Engine) -> Result<Daemon, Fault> {
        let listener = control::listen(engine.root(), engine.control_group())?;
        let status = Rc::new(RefCell::new(Status::default()));
        let (sender, requests) = mpsc::channel(16);
        tokio::task::spawn_local(control::serve(listener, Rc::clone(&status), sender));
        if let Some(listen) = engine.readiness() {
            readiness::start(listen, Rc::clone(&status)).await?;
        }
        let on = |kind| {
            signal(kind)
                .map_err(|source| Fault::from(ConvergeError::Watch { path: "signals".into(), source }))
        };
        Ok(Daemon {
            events: engine.units().events(),
            watcher: Watcher::new(watched(&engine))?,
            status,
            requests,
            timers: Timers::new(notify::watchdog_interval()),
            guard: Guard::new(&engine),
            ends: [on(SignalKind::terminate())?, on(SignalKind::interrupt())?],
            hangup: on(SignalKind::hangup())?,
            reopen: on(SignalKind::user_defined1())?,
            engine,
        })
    }

    async fn run(mut self) -> Result<(), Fault> {
        self.take_back_if_over().await;
        self.converge().await;
        let line = self.status.borrow().line();
        notify::status(&line);
        notify::ready();
        tracing::info!("ready: {line}");
        loop {
            match self.wake().await {
                Wake::End => break,
                Wake::Reload => {
                    notify::reloading();
                    fed(self.converge()).await;
                    notify::status(&self.status.borrow().line());
                    notify::ready();
                }
                Wake::Reopen => self.reopen_logs(),
                Wake::Request(request) => {
                    if fed(self.serve(request)).await {
                        return Ok(());
                    }
                }
                Wake::Unit(event) => fed(self.recheck(event.instance.parse().ok())).await,
                Wake::Missed | Wake::Recheck => fed(self.recheck(None)).await,
                Wake::Drift => fed(self.repair()).await,
                Wake::Mesh => fed(self.refresh()).await,
                Wake::Registration => drop(fed(self.converge()).await),
                Wake::Login => {
                    fed(self.engine.keep_login()).await;
                    fed(self.converge()).await;
                }
                Wake::Address => {
                    if fed(self.engine.ask_for_address()).await {
                        fed(self.converge()).await;
                    }
                    self.status.borrow_mut().update(&self.engine);
                }
                Wake::Checks => fed(self.tell_checks()).await,
                Wake::TrialOver => fed(self.take_back_if_over()).await,
                Wake::Streams => self.look_at_streams().await,
                Wake::Units => {
                    if fed(self.engine.has_other_users()).await {
                        fed(self.converge()).await;
                    }
                }
                Wake::Watchdog => {
                    notify::watchdog();
                    self.timers.fed();
                }
            }
        }
        self.end().await
    }

    /// What the end means depends on the host: a container's is for good.
    async fn end(mut self) -> Result<(), Fault> {
        notify::stopping();
        self.status.borrow_mut().leaving = true;
        if !self.engine.leaves() {
            tracing::info!("stopping; the rules stay as the policy of each service says");
            self.engine.rest().await.faults.iter().for_each(log::fault);
            return Ok(());
        }
        tracing::info!("leaving the mesh; the rules stay as the policy of each service says");
        let faults = self.engine.leave().await.faults;
        faults.iter().for_each(log::fault);
        tracing::info!("gone");
        // Who looks at the exit status wants to know whether something is left behind.
        match faults.first() {
            None => Ok(()),
            Some(fault) => Err(ConvergeError::LeftBehind { why: fault.to_string() }.into()),
        }
    }

    /// Lets the sidecars open their logs anew, which is what SIGUSR1 means to Envoy.
    fn reopen_logs(&self) {
        for (id, service) in &self.status.borrow().services {
            // Looked at again: a number that is somebody else's by now must not be hit.
            let ours = |pid: &u32| process::name_of(*pid).is_some_and(|name| name.starts_with("envoy:"));
            let Some(pid) = service.pid.filter(ours).and_then(|pid| i32::try_from(pid).ok()) else {
                continue;
            };
            if let Err(error) = kill(Pid::from_raw(pid), nix::sys::signal::Signal::SIGUSR1) {
                tracing::warn!(service = id.as_str(), %error, "the signal did not reach the sidecar");
            }
        }
    }

    async fn wake(&mut self) -> Wake {
        let [terminate, interrupt] = &mut self.ends;
        tokio::select! {
            biased;
            _ = terminate.recv() => Wake::End,
            _ = interrupt.recv() => Wake::End,
            _ = self.hangup.recv() => Wake::Reload,
            _ = self.reopen.recv() => Wake::Reopen,
            Some(request) = self.requests.recv() => Wake::Request(request),
            () = self.guard.due() => Wake::Drift,
            event = self.events.recv() => match event {
                Ok(event) => Wake::Unit(event),
                Err(broadcast::error::RecvError::Lagged(_)) => Wake::Missed,
                Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
            },
            changed = self.watcher.changed() => {
                if let Err(fault) = changed { log::fault(&fault); }
                Wake::Reload
            }
            news = self.engine.mesh_changed() => match news {
                News::Mesh => Wake::Mesh,
                News::Registration => Wake::Registration,
                News::Login => Wake::Login,
                News::Address => Wake::Address,
            },
            () = self.engine.checks_changed() => Wake::Checks,
            () = self.engine.trial_over() => Wake::TrialOver,
            () = self.engine.units_moved() => Wake::Units,
            () = self.timers.streams() => Wake::Streams,
            () = self.timers.retry() => Wake::Reload,
            () = self.timers.renewal() => Wake::Reload,
            () = self.timers.recheck() => Wake::Recheck,
            () = self.timers.watchdog() => Wake::Watchdog,
        }
    }

    /// Works out what should be true and makes it so.
    async fn converge(&mut self) -> Vec<Fault> {
        let (faults, warnings) = match self.engine.intend().await {
            Ok(intent) => {
                let (mut faults, warnings) = (intent.faults(), intent.warnings());
                let Outcome { faults: more } = self.engine.converge(intent).await;
                faults.extend(more);
                (faults, warnings)
            }
            Err(fault) => (vec![fault], Vec::new()),
        };
        let told: Vec<Fault> = self.status.borrow().faults.clone();
        faults.iter().filter(|fault| !told.contains(fault)).for_each(log::fault);
        if let Err(fault) = self.watcher.retarget(watched(&self.engine)) {
            log::fault(&fault);
        }
        self.guard.follow(&self.engine);
        let mut status = self.status.borrow_mut();
        status.update(&self.engine);
        status.converged(faults.clone(), warnings);
        tracing::info!(
            generation = status.generation.as_ref().map(ToString::to_string),
            "converged: {}",
            status.line()
        );
        self.timers.converged(&self.engine, &status);
        faults
    }

    /// Takes up a change of the mesh: only what sidecars are told where that is all there is to it.
    async fn refresh(&mut self) {
        let Some(Outcome { faults }) = self.engine.refresh().await else {
            self.converge().await;
            return;
        };
        faults.iter().for_each(log::fault);
        self.status.borrow_mut().update(&self.engine);
        self.timers.refreshed(&self.engine);
        if !faults.is_empty() {
            self.timers.failed();
        }
    }

    /// Brings into Consul what the checks found that enmesh runs.
    async fn tell_checks(&mut self) {
        let faults = self.engine.tell_checks().await;
        faults.iter().for_each(log::fault);
        self.status.borrow_mut().update(&self.engine);
        if !faults.is_empty() {
            self.timers.failed();
        }
    }

    /// How the streams are of sidecars that Consul drives.
    async fn look_at_streams(&mut self) {
        self.engine.look_at_streams().await.iter().for_each(log::fault);
        self.engine.retire_unused_sessions().await;
        self.status.borrow_mut().update(&self.engine);
        self.timers.refreshed(&self.engine);
    }

    async fn recheck(&mut self, id: Option<config::value::ServiceId>) {
        let (all_live, fault) = self.engine.recheck(id.as_ref()).await;
        if let Some(fault) = &fault {
            log::fault(fault);
        }
        let before = self.status.borrow().line();
        self.status.borrow_mut().update(&self.engine);
        self.status.borrow_mut().forget_recovered();
        let line = self.status.borrow().line();
        if line != before {
            tracing::info!("{line}");
            notify::status(&line);
        }
        self.timers.looked(all_live && fault.is_none());
    }

    /// Converges because somebody says so.
    async fn apply(&mut self, names: Names) -> Result<Vec<Fault>, Fault> {
        let Names { services, confirm, force, ssh_sessions } = names;
        if let Some(Span(limit)) = confirm {
            self.engine.begin_trial(limit)?;
        }
        self.engine.ask(Asked { force, ssh_sessions });
        self.engine.lift_down(&services)?;
        Ok(self.converge().await)
    }

    /// Sees to it that the user of a unit is captured, before the unit runs.
    async fn hold(&mut self, unit: &str) -> Result<Vec<Fault>, Fault> {
        if self.engine.captures_unit(unit).await? {
            return Ok(Vec::new());
        }
        let faults = self.converge().await;
        if self.engine.captures_unit(unit).await? {
            return Ok(faults);
        }
        let why = faults.first().map_or("its user is not known".to_owned(), |fault| fault.message.clone());
        Err(hold::refusal(unit, Some(why)))
    }

    /// Goes back to what was before a change that nobody has confirmed in time.
    async fn take_back_if_over(&mut self) {
        let Some(Outcome { faults }) = self.engine.take_back_what_is_over().await else { return };
        let (code, hint) = (TrialError::TakenBack.code(), TrialError::TakenBack.hint());
        tracing::warn!(code, hint, "{code}: {}", TrialError::TakenBack);
        faults.iter().for_each(log::fault);
        self.converge().await;
    }

    /// Sets rules and route again if somebody changed them.
    async fn repair(&mut self) {
        match self.engine.repair().await {
            Ok(amiss) => {
                if let Some(event) = self.guard.looked(amiss) {
                    self.status.borrow_mut().repaired(event, self.guard.is_contested());
                }
            }
            Err(fault) if self.guard.failed(&fault) => {}
            Err(_) => self.timers.failed(),
        }
    }

    /// Does what was asked; returns whether the daemon shall end.
    async fn serve(&mut self, request: Request) -> bool {
        let Request { deed, reply } = request;
        let (answer, end) = match deed {
            Deed::Apply(names) => (self.apply(names).await, false),
            Deed::Confirm => match self.engine.confirm().await {
                Ok(()) => (Ok(self.converge().await), false),
                Err(fault) => {
                    self.converge().await;
                    (Err(fault), false)
                }
            },
            Deed::Down(names) => {
                let outcome = self.engine.down(&names).await.map(|outcome| outcome.faults);
                self.status.borrow_mut().update(&self.engine);
                let end = names.is_empty() && outcome.is_ok();
                (outcome, end)
            }
            Deed::Hold(unit) => (self.hold(&unit).await, false),
            Deed::Report(report) => {
                // An agent that takes its time holds nobody up but who reports.
                let work = self.engine.report(&report);
                tokio::task::spawn_local(async move {
                    let _ = reply.send(work.await.map(|()| Done::default()));
                });
                return false;
            }
        };
        let status = self.status.borrow().clone();
        // Nobody may be waiting any more.
        let _ = reply.send(answer.map(|faults| Done { faults, status }));
        if end {
            notify::stopping();
            // The answer leaves on the socket's own task.
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        end
    }
}

/// Does `work` and feeds the watchdog meanwhile: connections that drain and units that stop may take
/// longer than it waits. Every step of the work has a limit of its own.
async fn fed<T>(work: impl Future<Output = T>) -> T {
    let Some(every) = notify::watchdog_interval() else { return work.await };
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            biased;
            done = &mut work => return done,
            () = tokio::time::sleep(every) => notify::watchdog(),
        }
    }
}

/// Every file whose change may change the plan.
fn watched(engine: &Engine) -> BTreeSet<std::path::PathBuf> {
    config::watched_paths(engine.root()).into_iter().chain(engine.mesh_paths()).collect()
}
