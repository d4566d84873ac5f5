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
}

#[derive(Debug, Default)]
struct Shared {
    states: RefCell<BTreeMap<CheckerKey, CheckState>>,
    changed: Notify,
}

#[derive(Debug)]
struct Running {
    definition: Check,
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
    /// heard of. Programs of `exec` checks run as `exec_as`, else as the caller.
    ///
    /// The faults are warnings: `ENM-H010` to `ENM-H012`, for checks that are not run.
    pub fn start(checks: &BTreeMap<ServiceId, Vec<Check>>, exec_as: Option<User>) -> (Self, Vec<Fault>) {
        let mut checker = Checker { shared: Rc::default(), running: BTreeMap::new(), exec_as };
        let faults = checker.update(checks);
        (checker, faults)
    }

    /// Makes `checks` the ones that run. Those whose definition is the same go on undisturbed, with
    /// their state; the others begin anew. Returns the warnings of [`Checker::start`].
    pub fn update(&mut self, checks: &BTreeMap<ServiceId, Vec<Check>>) -> Vec<Fault> {
        let (wanted, faults) = sort(checks);
        self.running.retain(|key, running| wanted.get(key) == Some(&running.definition));
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
        self.shared.states.borrow().clone()
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
        let definition = check.clone();
        let (reported, task) = match check.ttl {
            Some(ttl) => {
                let reported = Rc::new(Notify::new());
                let task = expire(shared, key, ttl.0, Rc::clone(&reported));
                (Some(reported), tokio::task::spawn_local(task))
            }
            None => (None, tokio::task::spawn_local(repeat(shared, key, check, self.exec_as))),
        };
        Running { definition, reported, task }
    }
}

impl Shared {
    /// Only another status wakes anybody; what a check says may be different each time.
    fn set(&self, key: &CheckerKey, status: CheckStatus, output: String) {
        let mut states = self.states.borrow_mut();
        let Some(state) = states.get_mut(key) else { return };
        state.output = output;
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

/// The checks that can be run here, by their ids, and warnings about the others.
fn sort(checks: &BTreeMap<ServiceId, Vec<Check>>) -> (BTreeMap<CheckerKey, Check>, Vec<Fault>) {
    let mut wanted = BTreeMap::new();
    let mut faults = Vec::new();
    for (service, checks) in checks {
        for (place, check) in checks.iter().enumerate() {
            let own = check.id.as_ref().map(ServiceId::to_string);
            let id = own.unwrap_or_else(|| format!("check-{}", place + 1));
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

/// Makes a check critical when nothing is reported in time.
async fn expire(shared: Rc<Shared>, key: CheckerKey, ttl: Duration, reported: Rc<Notify>) {
    loop {
        reported.notified().await;
        while tokio::time::timeout(ttl, reported.notified()).await.is_ok() {}
        let ttl = humantime::format_duration(ttl);
        shared.set(&key, CheckStatus::Critical, format!("nothing was reported for {ttl}"));
    }
}
