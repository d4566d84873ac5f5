//! Follows the signals of every sidecar's unit and tells them as [`UnitEvent`]s; when the bus goes
//! away, connects again and tells what changed meanwhile.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::rc::Weak;
use std::time::Duration;

use futures_util::StreamExt;
use zbus::fdo::DBusProxy;
use zbus::names::{BusName, OwnedUniqueName};
use zbus::{Connection, MatchRule, Message, MessageStream, OwnedVariant};

use super::manager::ManagerProxy;
use super::{Shared, escape};
use crate::base::units::{UnitEvent, UnitState};

/// Signals that may wait unread; a daemon-reload on a busy host sends a few hundred.
const QUEUE: NonZeroUsize = NonZeroUsize::MIN.saturating_add(4095);
/// First and longest pause before the bus is tried again.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// What the signals have said about one unit.
#[derive(Debug, Default)]
pub(super) struct Seen {
    state: Option<UnitState>,
    pid: Option<u32>,
    result: String,
    code: i32,
    status: i32,
    told: Option<(UnitState, Option<u32>)>,
    /// How its process ended the last time that it ended badly.
    pub(super) failure: String,
}

/// A subscription: the stream, and who may speak in it.
pub(super) struct Signals {
    stream: MessageStream,
    systemd: Option<OwnedUniqueName>,
}

impl Signals {
    /// Asks systemd for signals and starts to queue them.
    pub(super) async fn subscribe(connection: &Connection) -> zbus::Result<Self> {
        let rule = MatchRule::builder()
            .msg_type(zbus::message::Type::Signal)
            .interface("org.freedesktop.DBus.Properties")
            .member("PropertiesChanged")
            .path_namespace("/org/freedesktop/systemd1/unit")
            .build()?;
        let stream = MessageStream::for_match_rule(rule, connection, Some(QUEUE)).await?;
        // On the system bus any user may send signals to everybody: only systemd's own count.
        let systemd = if connection.is_bus() {
            let name = BusName::try_from("org.freedesktop.systemd1")?;
            Some(DBusProxy::new(connection).await?.get_name_owner(name).await?)
        } else {
            None
        };
        ManagerProxy::new(connection).await?.subscribe().await?;
        Ok(Signals { stream, systemd })
    }

    fn is_from_systemd(&self, message: &Message) -> bool {
        self.systemd
            .as_ref()
            .is_none_or(|owner| message.header().sender().is_some_and(|sender| sender == owner))
    }
}

/// Follows until the owner is gone.
pub(super) async fn follow(shared: Weak<Shared>, mut signals: Signals) {
    loop {
        while let Some(message) = signals.stream.next().await {
            let Some(shared) = shared.upgrade() else { return };
            match message {
                Ok(message) if signals.is_from_systemd(&message) => shared.hear(&message),
                Ok(_) => {}
                Err(_) => break,
            }
        }
        tracing::warn!(ENMESH_CODE = "ENM-S001", "the system bus closed the connection; connecting again");
        match again(&shared).await {
            Some(fresh) => signals = fresh,
            None => return,
        }
    }
}

/// Connects again, however long it takes; `None` when the owner is gone.
async fn again(shared: &Weak<Shared>) -> Option<Signals> {
    let mut pause = PAUSES.0;
    loop {
        tokio::time::sleep(pause).await;
        let shared = shared.upgrade()?;
        if !shared.own_connection {
            return None;
        }
        match shared.reconnect().await {
            Ok(signals) => {
                tracing::info!("connected to the system bus again");
                shared.catch_up().await;
                shared.moved.notify_one();
                return Some(signals);
            }
            Err(error) => tracing::debug!(%error, "the system bus is still away"),
        }
        pause = (pause * 2).min(PAUSES.1);
    }
}

impl Shared {
    /// Takes in one signal.
    fn hear(&self, message: &Message) {
        let header = message.header();
        self.hear_of_scopes(message);
        let Some(instance) = header.path().and_then(|path| escape::instance_of_object(path)) else { return };
        let body = message.body();
        let Ok((interface, changed, _)) =
            body.deserialize::<(String, BTreeMap<String, OwnedVariant>, Vec<String>)>()
        else {
            return;
        };
        let mut seen = self.seen.borrow_mut();
        let unit = seen.entry(instance.clone()).or_default();
        match interface.as_str() {
            // systemd sends the service's part first, so that the unit's part completes the picture.
            "org.freedesktop.systemd1.Service" => unit.take_service(&changed),
            "org.freedesktop.systemd1.Unit" => {
                unit.take_unit(&changed);
                if let Some(event) = unit.news(instance) {
                    // Nobody listening is fine.
                    let _ = self.events.send(event);
                }
            }
            _ => {}
        }
    }

    /// A unit of a scope starts, ends, or has another user.
    fn hear_of_scopes(&self, message: &Message) {
        let header = message.header();
        if !header.path().is_some_and(|path| self.scopes.borrow().contains(path.as_str())) {
            return;
        }
        let body = message.body();
        let told = body.deserialize::<(String, BTreeMap<String, OwnedVariant>, Vec<String>)>();
        let of_user = |key: &str| matches!(key, "UID" | "ActiveState" | "NeedDaemonReload");
        if told.is_ok_and(|(_, changed, gone)| {
            changed.keys().any(|key| of_user(key)) || gone.iter().any(|key| of_user(key))
        }) {
            self.moved.notify_one();
        }
    }

    /// Tells what is known otherwise than by a signal.
    pub(super) fn learn(&self, instance: &str, state: UnitState, pid: Option<u32>) {
        let mut seen = self.seen.borrow_mut();
        let unit = seen.entry(instance.to_owned()).or_default();
        unit.state = Some(state);
        unit.pid = pid;
        if let Some(event) = unit.news(instance.to_owned()) {
            let _ = self.events.send(event);
        }
    }

    /// How the process of `instance` ended last, if it ended badly.
    pub(super) fn failure(&self, instance: &str) -> String {
        self.seen.borrow().get(instance).map(|unit| unit.failure.clone()).unwrap_or_default()
    }

    /// Forgets how it ended, before a new start.
    pub(super) fn forget_failure(&self, instance: &str) {
        if let Some(unit) = self.seen.borrow_mut().get_mut(instance) {
            unit.failure.clear();
        }
    }
}

impl Seen {
    fn take_service(&mut self, changed: &BTreeMap<String, OwnedVariant>) {
        if let Some(pid) = number::<u32>(changed, "MainPID") {
            self.pid = (pid != 0).then_some(pid);
        }
        if let Some(text) = text(changed, "Result") {
            self.result = text;
        }
        if let Some(code) = number::<i32>(changed, "ExecMainCode") {
            self.code = code;
        }
        if let Some(status) = number::<i32>(changed, "ExecMainStatus") {
            self.status = status;
        }
        if self.result != "success" && !self.result.is_empty() {
            self.failure = ending(&self.result, self.code, self.status);
        }
    }

    fn take_unit(&mut self, changed: &BTreeMap<String, OwnedVariant>) {
        let (Some(active), Some(sub)) = (text(changed, "ActiveState"), text(changed, "SubState")) else {
            return;
        };
        self.state = Some(state_of(&active, &sub, self.pid));
    }

    /// What has not been told yet.
    fn news(&mut self, instance: String) -> Option<UnitEvent> {
        let state = self.state?;
        let pid = self.pid.filter(|_| state != UnitState::Inactive);
        if self.told == Some((state, pid)) || (self.told.is_none() && state == UnitState::Inactive) {
            return None;
        }
        self.told = Some((state, pid));
        Some(UnitEvent { instance, state, pid })
    }
}

/// systemd's two words as one state. A unit between two starts counts as failed; one that is
/// `inactive` with a main process is about to start.
pub(super) fn state_of(active: &str, sub: &str, pid: Option<u32>) -> UnitState {
    match active {
        "active" | "reloading" | "refreshing" => UnitState::Active,
        "activating" if sub.starts_with("auto-restart") => UnitState::Failed,
        "activating" => UnitState::Activating,
        "deactivating" => UnitState::Deactivating,
        "failed" => UnitState::Failed,
        "inactive" if pid.is_some() => UnitState::Activating,
        _ => UnitState::Inactive,
    }
}

/// A process's end in words. `code` is one of sigaction(2)'s `CLD_…`.
pub(super) fn ending(result: &str, code: i32, status: i32) -> String {
    match (result, code) {
        ("success" | "", 0) => String::new(),
        (_, 1) => format!("{result}, exit status {status}"),
        (_, 2 | 3) => format!("{result}, signal {status}"),
        _ => result.to_owned(),
    }
}

fn text(changed: &BTreeMap<String, OwnedVariant>, key: &str) -> Option<String> {
    changed.get(key).and_then(|value| value.downcast_ref::<&str>().ok()).map(str::to_owned)
}

fn number<T>(changed: &BTreeMap<String, OwnedVariant>, key: &str) -> Option<T>
where
    T: for<'a> TryFrom<&'a zbus::Variant<'a>, Error = zbus::Error>,
{
    changed.get(key).and_then(|value| value.downcast_ref::<T>().ok())
}
