//! One job, from the call that queues it to systemd's word that it is over.

use futures_util::StreamExt;

use super::error::{NO_SUCH_UNIT, SystemdError};
use super::manager::JobRemovedStream;
use super::{Shared, call_failed, escape};

/// What the job shall do. All queue with mode `replace`: our job takes the place of one that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    /// Start it; if it runs, end it first.
    Start,
    /// End it.
    Stop,
    /// Make it read its configuration again.
    Reload,
}

impl Verb {
    fn word(self) -> &'static str {
        match self {
            Verb::Start => "start",
            Verb::Stop => "stop",
            Verb::Reload => "reload",
        }
    }

    fn call(self) -> &'static str {
        match self {
            Verb::Start => "RestartUnit",
            Verb::Stop => "StopUnit",
            Verb::Reload => "ReloadOrRestartUnit",
        }
    }
}

impl Shared {
    /// Queues a job and waits until it is over. Stopping a unit that is not loaded is done at once.
    pub(super) async fn job(&self, verb: Verb, unit: &str) -> Result<(), SystemdError> {
        let manager = self.manager().await?;
        // Before the call: a quick job is over before its answer arrives.
        let removed = manager.receive_job_removed_with_args(&[(2, unit)]).await;
        let mut removed = removed.map_err(|e| call_failed("AddMatch", unit, e))?;
        let queued = match verb {
            Verb::Start => manager.restart_unit(unit, "replace").await,
            Verb::Stop => manager.stop_unit(unit, "replace").await,
            Verb::Reload => manager.reload_or_restart_unit(unit, "replace").await,
        };
        let job = match queued {
            Ok(job) => job,
            Err(zbus::Error::MethodError(name, ..))
                if verb == Verb::Stop && name.as_str() == NO_SUCH_UNIT =>
            {
                return Ok(());
            }
            Err(error) => return Err(call_failed(verb.call(), unit, error)),
        };
        let over = tokio::time::timeout(self.limits.job, result_of(&mut removed, job.as_str())).await;
        let slow = || SystemdError::Slow { verb: verb.word(), unit: unit.to_owned(), limit: self.limits.job };
        let result = over.map_err(|_| slow())??;
        if result == "done" {
            return Ok(());
        }
        let heard = escape::instance(unit).map(|instance| self.failure(&instance)).unwrap_or_default();
        let detail = match heard.as_str() {
            "" => self.look(unit).await.map(|look| look.ending).unwrap_or_default(),
            _ => heard,
        };
        Err(SystemdError::Job { verb: verb.word(), unit: unit.to_owned(), result, detail })
    }
}

async fn result_of(removed: &mut JobRemovedStream, job: &str) -> Result<String, SystemdError> {
    while let Some(signal) = removed.next().await {
        let args = signal.args().map_err(|e| call_failed("JobRemoved", "", e))?;
        if args.job.as_str() == job {
            return Ok(args.result);
        }
    }
    let source = zbus::Error::Failure("the connection closed while a job was under way".to_owned());
    Err(SystemdError::NoBus { source })
}
