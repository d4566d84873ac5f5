//! Running the checks, each in a task of its own.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use rand::Rng;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior};

use super::probe::Probe;
use super::state::{Finding, Row, Thresholds};
use super::{CheckState, CheckStatus, HealthError, HealthWarning};
use crate::base::Fault;
use crate::base::exec::User;
use crate::config::Check;
use crate::config::value::ServiceId;

/// Time between two runs unless the check says otherwise.
const INTERVAL: Duration = Duration::from_secs(10);

/// Which check: the service's id and the check's, which is unique in the service.
pub type CheckerKey = (ServiceId, String);

/// The checks of this host's services. Dropping it ends all of them.
#[derive(Debug)]
pub struct Checker {
    shared: Rc<Shared>,
    running: BTreeMap<CheckerKey, Running>,
    exec_as: Option<User>,
    /// Those who run the programs of single services.
    users: BTreeMap<ServiceId, User>,
}

/// The states of a [`Checker`], to be read also while somebody else has it.
#[derive(Debug, Clone, Default)]
pub struct States(Rc<Shared>);

impl States {
    /// All states as they are now.
    pub fn now(&self) -> BTreeMap<CheckerKey, CheckState> {
        self.0.states.borrow().clone()
    }
}

#[derive(Debug, Default)]
struct Shared {
    states: RefCell<BTreeMap<CheckerKey, CheckState>>,
    changed: Notify,
}

#[derive(Debug)]
struct Running {
    definition: Check,
    exec_as: Option<User>,
    /// Wakes a `ttl` check's task: the app has reported.
    reported: Option<Rc<Notify>>,
    task: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Checker {
    /// Starts `checks` as tasks of the current `LocalSet`. All are critical until they have been
    /// heard of. Programs of `exec` checks run as `exec_as`, else as the caller, unless
    /// [`Checker::run_as`] says otherwise.
    ///
    /// The faults are warnings: `ENM-H010` to `ENM-H012`, for checks that are not run.
    pub fn start(checks: &BTreeMap<ServiceId, Vec<Check>>, exec_as: Option<User>) -> (Self, Vec<Fault>) {
        let (shared, running, users) = (Rc::default(), BTreeMap::new(), BTreeMap::new());
        let mut checker = Checker { shared, running, exec_as, users };
        let faults = checker.update(checks);
        (checker, faults)
    }

    /// Who runs the programs of `exec` checks of single services, from the next update on.
    pub fn run_as(&mut self, users: BTreeMap<ServiceId, User>) {
        self.users = users;
    }

    fn user_of(&self, service: &ServiceId) -> Option<User> {
        self.users.get(service).copied().or(self.exec_as)
    }

    /// Takes `known` for the states of checks that were not heard of yet: what somebody else was told
    /// of them before this started. What is found next goes on from there.
    pub fn resume(&self, known: &BTreeMap<CheckerKey, (CheckStatus, String)>) {
        let mut states = self.shared.states.borrow_mut();
        for (key, state) in states.iter_mut().filter(|(_, state)| !state.heard) {
            if let Some((status, output)) = known.get(key) {
                (state.status, state.output) = (*status, Finding::new(*status, output).output);
            }
        }
    }

    /// Makes `checks` the ones that run. Those whose definition is the same go on undisturbed, with
    /// their state; the others begin anew. Returns the warnings of [`Checker::start`].
    pub fn update(&mut self, checks: &BTreeMap<ServiceId, Vec<Check>>) -> Vec<Fault> {
        let (wanted, faults) = sort(checks);
        let (users, exec_as) = (&self.users, self.exec_as);
        self.running.retain(|key, running| {
            let user = users.get(&key.0).copied().or(exec_as);
            let as_before = running.definition.exec.is_none() || running.exec_as == user;
            as_before && wanted.get(key) == Some(&running.definition)
        });
        let gone = |key: &CheckerKey| !self.running.contains_key(key);
        let mut touched = false;
        self.shared.states.borrow_mut().retain(|key, _| {
            touched |= gone(key);
            !gone(key)
        });
        for (key, check) in wanted {
            if !self.running.contains_key(&key) {
                let running = self.begin(key.clone(), check);
                self.running.insert(key, running);
                touched = true;
            }
        }
        if touched {
            self.shared.changed.notify_one();
        }
        faults
    }

    /// Waits until a state is another than when this was last awaited to its end. Nothing is lost
    /// when the future is dropped before.
    pub async fn changed(&self) {
        self.shared.changed.notified().await;
    }

    /// All states as they are now.
    pub fn states(&self) -> BTreeMap<CheckerKey, CheckState> {
        self.handle().now()
    }

    /// The same, for somebody who reads them later.
    pub fn handle(&self) -> States {
        States(Rc::clone(&self.shared))
    }

    /// Takes the app's own report about its `ttl` check.
    ///
    /// # Errors
    /// `ENM-H001` there is no such check, `ENM-H002` it is not a `ttl` check.
    pub fn report(
        &self,
        service: &ServiceId,
        check: &str,
        status: CheckStatus,
        output: &str,
    ) -> Result<(), Fault> {
        let key = (service.clone(), check.to_owned());
        let Some(running) = self.running.get(&key) else {
            let of = self.running.keys().filter(|(id, _)| id == service);
            let known = of.map(|(_, check)| check.clone()).collect();
            let (service, check) = (service.to_string(), check.to_owned());
            return Err(HealthError::Unknown { service, check, known }.into());
        };
        let Some(reported) = &running.reported else {
            let (service, check) = (service.to_string(), check.to_owned());
            return Err(HealthError::NotReported { service, check }.into());
        };
        let finding = Finding::new(status, output);
        self.shared.set(&key, status, finding.output);
        reported.notify_one();
        Ok(())
    }

    fn begin(&self, key: CheckerKey, check: Check) -> Running {
        let name = check.name.clone().unwrap_or_else(|| key.1.clone());
        let first = if check.ttl.is_some() { "nothing was reported yet" } else { "it was not run yet" };
        self.shared.states.borrow_mut().insert(key.clone(), CheckState::new(name, first));
        let shared = Rc::clone(&self.shared);
        let (definition, exec_as) = (check.clone(), self.user_of(&key.0));
        let (reported, task) = match check.ttl {
            Some(ttl) => {
                let reported = Rc::new(Notify::new());
                let task = expire(shared, key, ttl.0, Rc::clone(&reported));
                (Some(reported), tokio::task::spawn_local(task))
            }
            None => (None, tokio::task::spawn_local(repeat(shared, key, check, exec_as))),
        };
        Running { definition, exec_as, reported, task }
    }
}

impl Shared {
    /// Only another status wakes anybody; what a check says may be different each time.
    fn set(&self, key: &CheckerKey, status: CheckStatus, output: String) {
        let mut states = self.states.borrow_mut();
        let Some(state) = states.get_mut(key) else { return };
        (state.output, state.heard) = (output, true);
        if state.status != status {
            state.status = status;
            state.since = SystemTime::now();
            self.changed.notify_one();
        }
    }

    fn status(&self, key: &CheckerKey) -> CheckStatus {
        self.states.borrow().get(key).map_or(CheckStatus::Critical, |state| state.status)
    }
}

/// What is not run, or not as it says, of `checks` where enmesh runs them: `ENM-H010` to `ENM-H012`.
pub fn unheeded(checks: &BTreeMap<ServiceId, Vec<Check>>) -> Vec<Fault> {
    sort(checks).1
}

/// The checks that can be run here, by their ids, and warnings about the others.
fn sort(checks: &BTreeMap<ServiceId, Vec<Check>>) -> (BTreeMap<CheckerKey, Check>, Vec<Fault>) {
    let mut wanted = BTreeMap::new();
    let mut faults = Vec::new();
    for (service, checks) in checks {
        for (place, check) in checks.iter().enumerate() {
            let id = id_of(check, place);
            let mut warn = |warning: HealthWarning| {
                let mut fault = Fault::from(warning);
                fault.service = Some(service.to_string());
                faults.push(fault);
            };
            let (name, label) = (service.to_string(), id.clone());
            let other = check.kinds().into_iter().find(|kind| !Probe::KINDS.contains(kind) && *kind != "ttl");
            let docker = check.docker_container_id.is_some().then_some("docker");
            if let Some(kind) = other.or(docker) {
                warn(HealthWarning::AgentOnly { service: name, check: label, kind });
                continue;
            }
            let key = (service.clone(), id);
            if wanted.contains_key(&key) {
                warn(HealthWarning::Twice { service: name, check: label });
                continue;
            }
            if check.deregister_critical_service_after.is_some() {
                let field = "deregister_critical_service_after";
                warn(HealthWarning::NoEffect { service: name, check: label, field });
            }
            wanted.insert(key, check.clone());
        }
    }
    (wanted, faults)
}

/// The id of the check that stands at `place` in its file, from 0.
pub fn id_of(check: &Check, place: usize) -> String {
    check.id.as_ref().map_or_else(|| format!("check-{}", place + 1), ServiceId::to_string)
}

/// Runs a check at once and then at its interval. The second run comes after a part of it, so that
/// checks that were started together do not stay together.
async fn repeat(shared: Rc<Shared>, key: CheckerKey, check: Check, exec_as: Option<User>) {
    let interval = check.interval.map_or(INTERVAL, |interval| interval.0);
    let thresholds = Thresholds::of(&check);
    let mut row = Row::default();
    let probe = Probe::new(check, exec_as);
    let part = interval.mul_f64(rand::rng().random_range(0.5..1.0));
    let second = Instant::now() + part;
    let mut ticks: Option<tokio::time::Interval> = None;
    loop {
        let finding = probe.run().await;
        let status = row.take(&finding, thresholds).unwrap_or_else(|| shared.status(&key));
        shared.set(&key, status, finding.output);
        let ticks = ticks.get_or_insert_with(|| {
            let mut ticks = tokio::time::interval_at(second, interval);
            // A run that took longer than the interval delays the next: two never overlap.
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ticks
        });
        ticks.tick().await;
    }
}

/// Makes a check critical when nothing is reported in time. The time counts from the start, since
/// what was known of it before may be that it passes.
async fn expire(shared: Rc<Shared>, key: CheckerKey, ttl: Duration, reported: Rc<Notify>) {
    loop {
        while tokio::time::timeout(ttl, reported.notified()).await.is_ok() {}
        let span = humantime::format_duration(ttl);
        shared.set(&key, CheckStatus::Critical, format!("nothing was reported for {span}"));
        reported.notified().await;
    }
}
