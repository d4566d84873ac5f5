//! A fake `org.freedesktop.systemd1` at the other end of a socket pair, for what a real systemd
//! does not do on demand: lose a job, refuse a call, end a job in each way there is. Its signals and
//! their order are those recorded from systemd 252.

use std::collections::{BTreeMap, VecDeque};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard};

use zbus::connection::Builder;
use zbus::object_server::{ObjectServer, SignalEmitter};
use zbus::{Connection, Guid, ObjectPath, OwnedObjectPath, Variant, fdo, interface};

use super::escape;
use super::manager::{FileChange, ListedUnit};

/// What a unit looks like.
#[derive(Debug, Clone)]
pub(super) struct FakeUnit {
    pub active: &'static str,
    pub sub: &'static str,
    pub load: &'static str,
    pub pid: u32,
    pub restarts: u32,
    pub result: &'static str,
    pub code: i32,
    pub status: i32,
    pub condition: bool,
    pub stale: bool,
    pub uid: u32,
    pub user: &'static str,
    pub dynamic: bool,
}

impl FakeUnit {
    /// Not running, never was.
    pub(super) const DEAD: FakeUnit = FakeUnit {
        active: "inactive",
        sub: "dead",
        load: "loaded",
        pid: 0,
        restarts: 0,
        result: "success",
        code: 0,
        status: 0,
        condition: true,
        stale: false,
        uid: u32::MAX,
        user: "",
        dynamic: false,
    };

    pub(super) fn running(pid: u32) -> FakeUnit {
        FakeUnit { active: "active", sub: "running", pid, ..FakeUnit::DEAD }
    }

    /// Ended with exit status 1, waiting for its next try.
    pub(super) const ENDED: FakeUnit = FakeUnit {
        active: "activating",
        sub: "auto-restart",
        result: "exit-code",
        code: 1,
        status: 1,
        ..FakeUnit::DEAD
    };
}

/// What the next job does.
#[derive(Debug, Clone)]
pub(super) struct FakeJob {
    /// systemd's word, or nothing: the job never ends.
    pub result: Option<&'static str>,
    /// What the unit is one after the other, each told by signals, before the job's end.
    pub before: Vec<FakeUnit>,
    /// The same after the job's end.
    pub after: Vec<FakeUnit>,
}

impl FakeJob {
    pub(super) fn to(unit: FakeUnit) -> FakeJob {
        FakeJob { result: Some("done"), before: vec![unit], after: Vec::new() }
    }

    pub(super) fn ends_as(result: &'static str, unit: FakeUnit) -> FakeJob {
        FakeJob { result: Some(result), ..FakeJob::to(unit) }
    }
}

#[derive(Debug, Default)]
struct State {
    calls: Vec<String>,
    units: BTreeMap<String, FakeUnit>,
    enabled: Vec<String>,
    jobs: VecDeque<FakeJob>,
    refusal: Option<fdo::Error>,
    number: u32,
}

/// The fake, seen from a test.
#[derive(Clone)]
pub(super) struct FakeSystemd {
    state: Arc<Mutex<State>>,
    connection: Option<Connection>,
}

impl FakeSystemd {
    /// Starts one; the second part is the client's end.
    pub(super) async fn start() -> (FakeSystemd, Connection) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut fake = FakeSystemd { state: Arc::default(), connection: None };
        let server = Builder::unix_stream(ours)
            .server(Guid::generate())
            .p2p()
            .serve_at("/org/freedesktop/systemd1", FakeManager(fake.clone()))
            .build();
        let client = Builder::unix_stream(theirs).p2p().build();
        let (server, client) = tokio::try_join!(server, client).unwrap();
        fake.connection = Some(server);
        (fake, client)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// The calls since the last look, but for those that only read.
    pub(super) fn take_calls(&self) -> Vec<String> {
        std::mem::take(&mut self.state().calls)
    }

    /// Sets a unit without a word.
    pub(super) fn set(&self, name: &str, unit: FakeUnit) {
        self.state().units.insert(name.to_owned(), unit);
    }

    pub(super) fn next_job(&self, job: FakeJob) {
        self.state().jobs.push_back(job);
    }

    /// Every changing call is answered with this from now on.
    pub(super) fn refuse(&self, error: fdo::Error) {
        self.state().refusal = Some(error);
    }

    /// Lets a unit change as by itself, with the signals that systemd sends.
    pub(super) async fn change(&self, name: &str, unit: FakeUnit) {
        tell(self.connection.as_ref().unwrap(), &self.state, name, unit).await;
    }

    fn note(&self, call: String) -> fdo::Result<()> {
        let mut state = self.state();
        state.calls.push(call);
        state.refusal.clone().map_or(Ok(()), Err)
    }

    async fn job(
        &self,
        call: &str,
        name: &str,
        mode: &str,
        emitter: &SignalEmitter<'_>,
    ) -> fdo::Result<OwnedObjectPath> {
        self.note(format!("{call} {name} {mode}"))?;
        let (job, number) = {
            let mut state = self.state();
            state.number += 1;
            let job = state.jobs.pop_front().unwrap_or(FakeJob::to(FakeUnit::DEAD));
            (job, state.number)
        };
        for unit in job.before {
            tell(emitter.connection(), &self.state, name, unit).await;
        }
        let path = format!("/org/freedesktop/systemd1/job/{number}");
        let path = OwnedObjectPath::try_from(path).unwrap();
        if let Some(result) = job.result {
            // Before the answer to the call: whoever subscribes only then waits forever.
            FakeManager::job_removed(emitter, number, path.clone(), name, result).await.unwrap();
        }
        for unit in job.after {
            tell(emitter.connection(), &self.state, name, unit).await;
        }
        Ok(path)
    }
}

/// Changes a unit and sends the two signals that systemd sends: the service's part first.
async fn tell(connection: &Connection, state: &Mutex<State>, name: &str, unit: FakeUnit) {
    state.lock().unwrap().units.insert(name.to_owned(), unit.clone());
    let of_service: BTreeMap<&str, Variant<'_>> = [
        ("MainPID", Variant::from(unit.pid)),
        ("NRestarts", Variant::from(unit.restarts)),
        ("Result", Variant::from(unit.result)),
        ("ExecMainCode", Variant::from(unit.code)),
        ("ExecMainStatus", Variant::from(unit.status)),
    ]
    .into();
    let of_unit: BTreeMap<&str, Variant<'_>> = [
        ("ActiveState", Variant::from(unit.active)),
        ("SubState", Variant::from(unit.sub)),
        ("ConditionResult", Variant::from(unit.condition)),
    ]
    .into();
    let path = object(name);
    for (part, changed) in [("Service", of_service), ("Unit", of_unit)] {
        let body = (format!("org.freedesktop.systemd1.{part}"), changed, ["Conditions"].as_slice());
        let properties = "org.freedesktop.DBus.Properties";
        let path = ObjectPath::try_from(path.as_str()).unwrap();
        connection.emit_signal(None::<&str>, path, properties, "PropertiesChanged", &body).await.unwrap();
    }
}

fn object(name: &str) -> String {
    let label: String = name
        .bytes()
        .map(|byte| match byte {
            byte if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
            byte => format!("_{byte:02x}"),
        })
        .collect();
    format!("{}{label}", escape::UNIT_OBJECTS)
}

struct FakeManager(FakeSystemd);

#[interface(name = "org.freedesktop.systemd1.Manager")]
impl FakeManager {
    fn subscribe(&self) {}

    fn reload(&self) -> fdo::Result<()> {
        for unit in self.0.state().units.values_mut() {
            unit.stale = false;
        }
        self.0.note("Reload".to_owned())
    }

    fn enable_unit_files(
        &self,
        files: Vec<String>,
        runtime: bool,
        force: bool,
    ) -> fdo::Result<(bool, Vec<FileChange>)> {
        self.0.note(format!("EnableUnitFiles {} {runtime} {force}", files.join(" ")))?;
        let mut state = self.0.state();
        let fresh: Vec<String> = files.into_iter().filter(|file| !state.enabled.contains(file)).collect();
        let change =
            |file: &String| ("symlink".to_owned(), format!("/etc/{file}"), "/lib/envoy@.service".to_owned());
        let changes = fresh.iter().map(change).collect();
        state.enabled.extend(fresh);
        Ok((true, changes))
    }

    fn disable_unit_files(&self, files: Vec<String>, runtime: bool) -> fdo::Result<Vec<FileChange>> {
        self.0.note(format!("DisableUnitFiles {} {runtime}", files.join(" ")))?;
        let mut state = self.0.state();
        let gone = state.enabled.iter().filter(|file| files.contains(file));
        let changes = gone.map(|file| ("unlink".to_owned(), format!("/etc/{file}"), String::new())).collect();
        state.enabled.retain(|file| !files.contains(file));
        Ok(changes)
    }

    async fn restart_unit(
        &self,
        name: String,
        mode: String,
        #[zbus(signal_emitter)] emitter: SignalEmitter<'_>,
    ) -> fdo::Result<OwnedObjectPath> {
        self.0.job("RestartUnit", &name, &mode, &emitter).await
    }

    async fn stop_unit(
        &self,
        name: String,
        mode: String,
        #[zbus(signal_emitter)] emitter: SignalEmitter<'_>,
    ) -> fdo::Result<OwnedObjectPath> {
        self.0.job("StopUnit", &name, &mode, &emitter).await
    }

    async fn reload_or_restart_unit(
        &self,
        name: String,
        mode: String,
        #[zbus(signal_emitter)] emitter: SignalEmitter<'_>,
    ) -> fdo::Result<OwnedObjectPath> {
        self.0.job("ReloadOrRestartUnit", &name, &mode, &emitter).await
    }

    fn reset_failed_unit(&self, name: String) -> fdo::Result<()> {
        self.0.note(format!("ResetFailedUnit {name}"))
    }

    async fn load_unit(
        &self,
        name: String,
        #[zbus(object_server)] server: &ObjectServer,
    ) -> fdo::Result<OwnedObjectPath> {
        self.0.state().units.entry(name.clone()).or_insert(FakeUnit::DEAD);
        let path = object(&name);
        server.at(path.as_str(), FakeUnitPart(self.0.state.clone(), name.clone())).await?;
        server.at(path.as_str(), FakeServicePart(self.0.state.clone(), name)).await?;
        Ok(OwnedObjectPath::try_from(path).unwrap())
    }

    fn list_units_by_patterns(&self, states: Vec<String>, patterns: Vec<String>) -> Vec<ListedUnit> {
        let state = self.0.state();
        let wanted = |name: &str| match patterns.first().and_then(|pattern| pattern.split_once('*')) {
            Some((start, end)) => name.starts_with(start) && name.ends_with(end),
            None => patterns.iter().any(|pattern| pattern == name),
        };
        let any = |unit: &FakeUnit| states.is_empty() || states.iter().any(|state| state == unit.active);
        let units = state.units.iter().filter(|(name, unit)| wanted(name) && any(unit));
        let path = |text: String| OwnedObjectPath::try_from(text).unwrap();
        let line = |(name, unit): (&String, &FakeUnit)| {
            let none = String::new;
            let (load, active, sub) = (unit.load.to_owned(), unit.active.to_owned(), unit.sub.to_owned());
            let object = path(object(name));
            (name.clone(), none(), load, active, sub, none(), object, 0, none(), path("/".to_owned()))
        };
        units.map(line).collect()
    }

    fn list_unit_files_by_patterns(
        &self,
        _states: Vec<String>,
        _patterns: Vec<String>,
    ) -> Vec<(String, String)> {
        let state = self.0.state();
        let file = |name: &str, state: &str| (format!("/usr/lib/systemd/system/{name}"), state.to_owned());
        let enabled = state.enabled.iter().map(|name| file(name, "enabled"));
        enabled.chain([file("envoy@.service", "disabled")]).collect()
    }

    #[zbus(property)]
    fn version(&self) -> String {
        "252.39-1~deb12u2".to_owned()
    }

    #[zbus(signal)]
    async fn job_removed(
        emitter: &SignalEmitter<'_>,
        id: u32,
        job: OwnedObjectPath,
        unit: &str,
        result: &str,
    ) -> zbus::Result<()>;
}

struct FakeUnitPart(Arc<Mutex<State>>, String);

impl FakeUnitPart {
    fn unit(&self) -> FakeUnit {
        self.0.lock().unwrap().units[&self.1].clone()
    }
}

#[interface(name = "org.freedesktop.systemd1.Unit")]
impl FakeUnitPart {
    #[zbus(property)]
    fn active_state(&self) -> String {
        self.unit().active.to_owned()
    }
    #[zbus(property)]
    fn sub_state(&self) -> String {
        self.unit().sub.to_owned()
    }
    #[zbus(property)]
    fn load_state(&self) -> String {
        self.unit().load.to_owned()
    }
    #[zbus(property)]
    fn condition_result(&self) -> bool {
        self.unit().condition
    }
    #[zbus(property)]
    fn need_daemon_reload(&self) -> bool {
        self.unit().stale
    }
}

struct FakeServicePart(Arc<Mutex<State>>, String);

impl FakeServicePart {
    fn unit(&self) -> FakeUnit {
        self.0.lock().unwrap().units[&self.1].clone()
    }
}

#[interface(name = "org.freedesktop.systemd1.Service")]
impl FakeServicePart {
    #[zbus(property, name = "MainPID")]
    fn main_pid(&self) -> u32 {
        self.unit().pid
    }
    #[zbus(property, name = "UID")]
    fn uid(&self) -> u32 {
        self.unit().uid
    }
    #[zbus(property)]
    fn user(&self) -> String {
        self.unit().user.to_owned()
    }
    #[zbus(property)]
    fn dynamic_user(&self) -> bool {
        self.unit().dynamic
    }
    #[zbus(property, name = "NRestarts")]
    fn n_restarts(&self) -> u32 {
        self.unit().restarts
    }
    #[zbus(property)]
    fn result(&self) -> String {
        self.unit().result.to_owned()
    }
    #[zbus(property)]
    fn exec_main_code(&self) -> i32 {
        self.unit().code
    }
    #[zbus(property)]
    fn exec_main_status(&self) -> i32 {
        self.unit().status
    }
}
