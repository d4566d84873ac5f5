//! A double that runs nothing: it keeps what it was asked, and answers as told. For the tests of the
//! rooms above.

use std::cell::RefCell;
use std::collections::BTreeMap;

use tokio::sync::broadcast;

use crate::base::units::{UnitEvent, UnitSpec, UnitState, UnitStatus, Units};
use crate::base::{Fault, LocalFuture};

/// One thing that was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// [`Units::start`], and whether it led to a start (the specification differed from what ran).
    Start {
        /// What to run.
        spec: UnitSpec,
        /// Whether anything was started.
        acted: bool,
    },
    /// [`Units::stop`].
    Stop {
        /// The instance.
        instance: String,
    },
}

/// Units that exist only here.
#[derive(Debug)]
pub struct Recorded {
    asked: RefCell<Vec<Asked>>,
    running: RefCell<BTreeMap<String, UnitSpec>>,
    failing: RefCell<BTreeMap<String, Fault>>,
    events: broadcast::Sender<UnitEvent>,
}

impl Default for Recorded {
    fn default() -> Self {
        Recorded {
            asked: RefCell::default(),
            running: RefCell::default(),
            failing: RefCell::default(),
            events: broadcast::channel(256).0,
        }
    }
}

impl Recorded {
    /// Everything that was asked, in order; forgets it.
    pub fn take(&self) -> Vec<Asked> {
        self.asked.take()
    }

    /// Lets starts and stops of `instance` fail with this, until [`Recorded::mend`].
    pub fn fail(&self, instance: &str, fault: Fault) {
        self.failing.borrow_mut().insert(instance.to_owned(), fault);
    }

    /// Takes [`Recorded::fail`] back.
    pub fn mend(&self, instance: &str) {
        self.failing.borrow_mut().remove(instance);
    }

    /// Tells a state change as if it had happened by itself.
    pub fn happen(&self, instance: &str, state: UnitState, pid: Option<u32>) {
        // Nobody listening is fine.
        let _ = self.events.send(UnitEvent { instance: instance.to_owned(), state, pid });
    }

    fn refusal(&self, instance: &str) -> Result<(), Fault> {
        self.failing.borrow().get(instance).cloned().map_or(Ok(()), Err)
    }

    fn start_one(&self, spec: &UnitSpec) -> Result<(), Fault> {
        let acted = self.running.borrow().get(&spec.instance) != Some(spec);
        self.asked.borrow_mut().push(Asked::Start { spec: spec.clone(), acted });
        self.refusal(&spec.instance)?;
        if acted {
            self.running.borrow_mut().insert(spec.instance.clone(), spec.clone());
            self.happen(&spec.instance, UnitState::Active, Some(PID));
        }
        Ok(())
    }

    fn stop_one(&self, instance: &str) -> Result<(), Fault> {
        self.asked.borrow_mut().push(Asked::Stop { instance: instance.to_owned() });
        self.refusal(instance)?;
        if self.running.borrow_mut().remove(instance).is_some() {
            self.happen(instance, UnitState::Inactive, None);
        }
        Ok(())
    }
}

/// The process number of everything that runs here: higher than any the kernel gives (2^22).
const PID: u32 = 1 << 30;

impl Units for Recorded {
    fn name(&self) -> &'static str {
        "recorded"
    }

    fn start_until<'a>(
        &'a self,
        spec: &'a UnitSpec,
        _live: LocalFuture<'a, ()>,
    ) -> LocalFuture<'a, Result<(), Fault>> {
        Box::pin(async move { self.start_one(spec) })
    }

    fn stop<'a>(&'a self, instance: &'a str) -> LocalFuture<'a, Result<(), Fault>> {
        Box::pin(async move { self.stop_one(instance) })
    }

    fn status<'a>(&'a self, instance: &'a str) -> LocalFuture<'a, Result<UnitStatus, Fault>> {
        let pid = self.running.borrow().contains_key(instance).then_some(PID);
        let state = if pid.is_some() { UnitState::Active } else { UnitState::Inactive };
        Box::pin(async move { Ok(UnitStatus { state, pid, restarts: 0 }) })
    }

    fn list(&self) -> LocalFuture<'_, Result<Vec<String>, Fault>> {
        let instances = self.running.borrow().keys().cloned().collect();
        Box::pin(async move { Ok(instances) })
    }

    fn events(&self) -> broadcast::Receiver<UnitEvent> {
        self.events.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::supervise::error::SuperviseError;

    #[tokio::test(flavor = "current_thread")]
    async fn it_answers_like_the_real_ones() {
        let units = Recorded::default();
        let mut events = units.events();
        let spec = UnitSpec {
            instance: "api".to_owned(),
            program: PathBuf::from("/usr/bin/envoy"),
            arguments: Vec::new(),
            uid: 1,
            gid: 1,
            revision: "1".to_owned(),
            network: None,
        };
        units.start(&spec).await.unwrap();
        units.start(&spec).await.unwrap();
        units.fail("api", SuperviseError::Ended { instance: "api".to_owned() }.into());
        assert_eq!(units.stop("api").await.unwrap_err().code, "ENM-V002");
        assert_eq!(units.list().await.unwrap(), ["api"]);
        units.mend("api");
        units.stop("api").await.unwrap();
        assert_eq!(units.status("api").await.unwrap().state, UnitState::Inactive);
        let stop = Asked::Stop { instance: "api".to_owned() };
        let start = |acted| Asked::Start { spec: spec.clone(), acted };
        assert_eq!(units.take(), [start(true), start(false), stop.clone(), stop]);
        assert_eq!(events.recv().await.unwrap().state, UnitState::Active);
        assert_eq!(events.recv().await.unwrap().state, UnitState::Inactive);
    }
}
