//! systemd over D-Bus: the units of the sidecars, their jobs and their signals; what systemd-resolved
//! is told; and what enmesh tells systemd about itself (`notify`).
//!
//! No `systemctl`: every call gets an answer with a name, and a job is done when systemd says so.

pub mod dropin;
pub mod error;
pub mod escape;
pub mod hold;
mod job;
pub mod manager;
pub mod notify;
pub mod placement;
pub mod resolved;
pub mod scope;
mod watch;

#[cfg(test)]
#[allow(clippy::disallowed_types, reason = "what `zbus::interface` generates has hash maps in it")]
mod fake;
#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::{Mutex, Notify, broadcast};
use tokio::task::JoinHandle;
use zbus::Connection;
use zbus::proxy::CacheProperties;

use self::error::SystemdError;
use self::job::Verb;
use self::manager::ManagerProxy;
use self::watch::{Seen, Signals};
use crate::base::units::{UnitEvent, UnitSpec, UnitState, UnitStatus, Units};
use crate::base::{Fault, LocalFuture, Root, process};

/// Which units are sidecars, for systemd's own matching.
const SIDECARS: &str = "envoy@*.service";
/// The template itself, which is no sidecar.
const TEMPLATE: &str = "envoy@.service";
/// Events that a slow listener may leave unread before it misses some.
const EVENTS: usize = 256;

/// How long things may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// One call on the bus. D-Bus' own custom is 25 s.
    pub call: Duration,
    /// A job. systemd gives a start 90 s and a stop of ours 30 s before it makes an end itself.
    pub job: Duration,
    /// How long a started Envoy is watched before it counts as started. Envoy finds a fault in its
    /// bootstrap within 50 ms on an idle machine, and is ready in about 120 ms.
    pub settle: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            call: Duration::from_secs(25),
            job: Duration::from_secs(125),
            settle: Duration::from_millis(250),
        }
    }
}

/// The sidecars as units of the host's systemd.
///
/// Never call [`Units::stop`] while enmesh's own unit is being stopped: sidecars are ordered before
/// it, so systemd runs their stop job only after enmesh has ended.
pub struct Systemd {
    shared: Rc<Shared>,
    watcher: JoinHandle<()>,
}

/// What the calls and the watcher share.
struct Shared {
    root: Root,
    limits: Limits,
    connection: RefCell<Connection>,
    /// Whether the connection is ours to make again.
    own_connection: bool,
    /// systemd's version; 0 when it does not say.
    version: Cell<u32>,
    seen: RefCell<BTreeMap<String, Seen>>,
    events: broadcast::Sender<UnitEvent>,
    /// The objects of units whose users somebody asked for, and who waits for another answer.
    scopes: RefCell<BTreeSet<String>>,
    /// How often files were written of which systemd is to hear, up to which of these it has, and whose turn it
    /// is to tell it.
    written: Cell<u64>,
    read: Cell<u64>,
    reading: Mutex<()>,
    moved: Notify,
}

/// A unit as systemd describes it at one moment.
#[derive(Debug)]
struct Look {
    status: UnitStatus,
    exists: bool,
    condition: bool,
    stale: bool,
    ending: String,
}

impl Systemd {
    /// Connects to the system bus. Needs a running `LocalSet`, on which the watcher lives.
    ///
    /// # Errors
    /// `ENM-S001` nobody answers there, `ENM-S002` not permitted.
    pub async fn connect(root: Root) -> Result<Self, Fault> {
        let limits = Limits::default();
        Self::over(system_bus(limits.call).await?, true, root, limits).await
    }

    /// The same over a connection that somebody else made, a peer-to-peer one in tests.
    ///
    /// # Errors
    /// As [`Systemd::connect`].
    pub async fn connect_to(connection: Connection, root: Root, limits: Limits) -> Result<Self, Fault> {
        Self::over(connection, false, root, limits).await
    }

    async fn over(
        connection: Connection,
        own_connection: bool,
        root: Root,
        limits: Limits,
    ) -> Result<Self, Fault> {
        let signals = Signals::subscribe(&connection).await.map_err(|e| call_failed("Subscribe", "", e))?;
        let shared = Rc::new(Shared {
            root,
            limits,
            connection: RefCell::new(connection),
            own_connection,
            version: Cell::new(0),
            seen: RefCell::new(BTreeMap::new()),
            events: broadcast::channel(EVENTS).0,
            scopes: RefCell::default(),
            written: Cell::new(0),
            read: Cell::new(0),
            reading: Mutex::new(()),
            moved: Notify::new(),
        });
        let version = shared.manager().await?.version().await.unwrap_or_default();
        shared.version.set(major(&version));
        let watcher = tokio::task::spawn_local(watch::follow(Rc::downgrade(&shared), signals));
        Ok(Systemd { shared, watcher })
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        self.watcher.abort();
    }
}

async fn system_bus(limit: Duration) -> Result<Connection, SystemdError> {
    let connecting = zbus::connection::Builder::system().method_timeout(limit).build();
    connecting.await.map_err(|source| SystemdError::NoBus { source })
}

fn call_failed(call: &'static str, unit: &str, source: zbus::Error) -> SystemdError {
    SystemdError::of_call(call, unit, source)
}

/// `252` of `252.39-1~deb12u2`.
fn major(version: &str) -> u32 {
    let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or(0)
}

impl Shared {
    fn connection(&self) -> Connection {
        self.connection.borrow().clone()
    }

    async fn manager(&self) -> Result<ManagerProxy<'static>, SystemdError> {
        let connection = self.connection();
        let building = ManagerProxy::builder(&connection).cache_properties(CacheProperties::No).build();
        building.await.map_err(|e| call_failed("Manager", "", e))
    }

    /// Has systemd read its files again. Whoever wants that while somebody else's reading is under way shares
    /// the next one: a hundred readings of the files of a hundred units take systemd half a minute.
    async fn reload(&self, unit: &str) -> Result<(), SystemdError> {
        let wanted = self.written.get() + 1;
        self.written.set(wanted);
        let _turn = self.reading.lock().await;
        if self.read.get() >= wanted {
            return Ok(());
        }
        // Files that are written from now on may come too late for this one.
        let covered = self.written.get();
        self.manager().await?.reload().await.map_err(|e| call_failed("Reload", unit, e))?;
        self.read.set(covered);
        Ok(())
    }

    async fn reconnect(&self) -> Result<Signals, SystemdError> {
        let connection = system_bus(self.limits.call).await?;
        let signals = Signals::subscribe(&connection).await.map_err(|e| call_failed("Subscribe", "", e))?;
        *self.connection.borrow_mut() = connection;
        Ok(signals)
    }

    /// Tells what changed while nobody listened.
    async fn catch_up(&self) {
        for instance in self.list().await.unwrap_or_default() {
            if let Ok(look) = self.look(&escape::unit(&instance)).await {
                self.learn(&instance, look.status.state, look.status.pid);
            }
        }
    }

    async fn look(&self, unit: &str) -> Result<Look, SystemdError> {
        let connection = self.connection();
        let manager = self.manager().await?;
        let path = manager.load_unit(unit).await.map_err(|e| call_failed("LoadUnit", unit, e))?;
        let read = async {
            let (of_unit, of_service) = manager::faces(&connection, &path).await?;
            let pid = Some(of_service.main_pid().await?).filter(|&pid| pid != 0);
            let (active, sub) = (of_unit.active_state().await?, of_unit.sub_state().await?);
            let state = watch::state_of(&active, &sub, pid);
            let (code, status) = (of_service.exec_main_code().await?, of_service.exec_main_status().await?);
            let result = of_service.result().await?;
            zbus::Result::Ok(Look {
                status: UnitStatus { state, pid, restarts: of_service.n_restarts().await? },
                exists: of_unit.load_state().await? != "not-found",
                condition: of_unit.condition_result().await?,
                stale: of_unit.need_daemon_reload().await?,
                ending: watch::ending(&result, code, status),
            })
        };
        read.await.map_err(|e| call_failed("Get", unit, e))
    }

    async fn start(&self, spec: &UnitSpec, live: LocalFuture<'_, ()>) -> Result<(), Fault> {
        let unit = escape::unit(&spec.instance);
        let manager = self.manager().await?;
        let written = dropin::write(&self.root, spec, self.version.get())?;
        let enabling = manager.enable_unit_files(&[&unit], false, true).await;
        let (_, links) = enabling.map_err(|e| call_failed("EnableUnitFiles", &unit, e))?;
        if written || !links.is_empty() || self.look(&unit).await?.stale {
            self.reload(&unit).await?;
        }
        let now = self.look(&unit).await?;
        let name = now.status.pid.and_then(process::name_of);
        if now.status.state == UnitState::Active && name.as_deref() == Some(&spec.process_name()) {
            return Ok(());
        }
        if now.status.state == UnitState::Failed {
            // Clears the start counter, should an administrator have set a limit.
            let _ = manager.reset_failed_unit(&unit).await;
        }
        self.forget_failure(&spec.instance);
        let mut events = self.events.subscribe();
        self.job(Verb::Start, &unit).await?;
        self.settle(&spec.instance, &unit, &mut events, live).await
    }

    /// Watches what has just started for a moment, because a program that does not like its
    /// configuration starts well and ends right after.
    async fn settle(
        &self,
        instance: &str,
        unit: &str,
        events: &mut broadcast::Receiver<UnitEvent>,
        live: LocalFuture<'_, ()>,
    ) -> Result<(), Fault> {
        let fails = async {
            // A failure before it was active is the end of the process that ran until now.
            let mut was_active = false;
            loop {
                match events.recv().await {
                    Ok(event) if event.instance != instance => {}
                    Ok(event) if event.state == UnitState::Failed && was_active => return,
                    Ok(event) => was_active |= event.state == UnitState::Active,
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return,
                }
            }
        };
        let ended = tokio::select! {
            ended = tokio::time::timeout(self.limits.settle, fails) => ended.is_ok(),
            () = live => return Ok(()),
        };
        let now = self.look(unit).await?;
        if now.status.state == UnitState::Inactive && !now.condition {
            return Err(SystemdError::Skipped { unit: unit.to_owned() }.into());
        }
        if ended || now.status.state != UnitState::Active {
            let heard = self.failure(instance);
            let detail = if heard.is_empty() { now.ending } else { heard };
            return Err(SystemdError::Ended { unit: unit.to_owned(), detail }.into());
        }
        Ok(())
    }

    async fn stop(&self, instance: &str) -> Result<(), Fault> {
        let unit = escape::unit(instance);
        let manager = self.manager().await?;
        if self.look(&unit).await?.exists {
            self.job(Verb::Stop, &unit).await?;
        }
        let unlinked = match manager.disable_unit_files(&[&unit], false).await {
            Ok(changes) => !changes.is_empty(),
            Err(error) => match call_failed("DisableUnitFiles", &unit, error) {
                SystemdError::NotInstalled { .. } => false,
                error => return Err(error.into()),
            },
        };
        if dropin::remove(&self.root, instance)? || unlinked {
            self.reload(&unit).await?;
        }
        // Nothing is left to see in `systemctl --failed`; a unit that has not failed says no.
        let _ = manager.reset_failed_unit(&unit).await;
        Ok(())
    }

    async fn list(&self) -> Result<Vec<String>, Fault> {
        let manager = self.manager().await?;
        let loaded = manager.list_units_by_patterns(&[], &[SIDECARS]).await;
        let loaded = loaded.map_err(|e| call_failed("ListUnitsByPatterns", "", e))?;
        let files = manager.list_unit_files_by_patterns(&[], &[SIDECARS]).await;
        let files = files.map_err(|e| call_failed("ListUnitFilesByPatterns", "", e))?;
        let enabled = files.iter().map(|(path, _)| path.rsplit('/').next().unwrap_or(path));
        let names = loaded.iter().map(|unit| unit.0.as_str()).chain(enabled);
        let instances: BTreeSet<String> =
            names.filter(|name| *name != TEMPLATE).filter_map(escape::instance).collect();
        Ok(instances.into_iter().collect())
    }
}

impl Units for Systemd {
    fn name(&self) -> &'static str {
        "systemd"
    }

    fn start_until<'a>(
        &'a self,
        spec: &'a UnitSpec,
        live: LocalFuture<'a, ()>,
    ) -> LocalFuture<'a, Result<(), Fault>> {
        Box::pin(self.shared.start(spec, live))
    }

    fn stop<'a>(&'a self, instance: &'a str) -> LocalFuture<'a, Result<(), Fault>> {
        Box::pin(self.shared.stop(instance))
    }

    fn status<'a>(&'a self, instance: &'a str) -> LocalFuture<'a, Result<UnitStatus, Fault>> {
        Box::pin(async move { Ok(self.shared.look(&escape::unit(instance)).await?.status) })
    }

    fn list(&self) -> LocalFuture<'_, Result<Vec<String>, Fault>> {
        Box::pin(self.shared.list())
    }

    fn events(&self) -> broadcast::Receiver<UnitEvent> {
        self.shared.events.subscribe()
    }
}
