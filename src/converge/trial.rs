//! Changes that somebody has to confirm, and that are taken back otherwise.
//!
//! While one is pending the kernel has two rulesets and a clock (`redirect::Trial`): whoever dies, when the
//! time is over traffic goes where it went before. What else a change consists of (sidecars, registration,
//! the configuration that counts) is taken back by the daemon at that moment, or by the next enmesh that runs
//! where none is alive.
//!
//! Until it is confirmed nothing of before is ended: sidecars that no plan knows any more run on, so that
//! there is something to go back to.

use std::fs;
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::engine::{Engine, Outcome, keep, read};
use super::state::{Before, Guard, Pending, Remembered, State};
use crate::base::{Class, Deadline, Explain, Fault, Root};
use crate::config::Config;
use crate::config::value::Span;
use crate::redirect::{Desired, Trial};

/// The kernel counts in seconds, and nobody reads and types in less than one.
const SHORTEST: Duration = Duration::from_secs(1);
/// Whoever wants longer does not wait for the answer.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// What can be said of a change that waits for a confirmation.
#[derive(Debug, thiserror::Error)]
pub enum TrialError {
    /// There is none.
    #[error("nothing waits for a confirmation")]
    Nothing,
    /// Nobody confirmed it in time.
    #[error("nobody confirmed the change in time, so everything is as it was before it")]
    TakenBack,
    /// The files still say what nobody confirmed.
    #[error("the configuration is not in force: it was tried with --confirm, and nobody confirmed it")]
    NotConfirmed,
    /// Too short or too long.
    #[error("{0} is no time to confirm a change in")]
    Limit(Span),
}

impl Explain for TrialError {
    fn code(&self) -> &'static str {
        match self {
            TrialError::Nothing => "ENM-D050",
            TrialError::TakenBack => "ENM-D051",
            TrialError::NotConfirmed => "ENM-D052",
            TrialError::Limit(_) => "ENM-D053",
        }
    }

    fn hint(&self) -> String {
        match self {
            TrialError::Nothing => "`enmesh apply --confirm 60s` begins; `enmesh status` shows what is pending",
            TrialError::TakenBack => "`enmesh apply --confirm` with more time tries it again",
            TrialError::NotConfirmed => {
                "what was in force before it is; change the files, or `enmesh apply` to have them in force after all"
            }
            TrialError::Limit(_) => "from 1s to 24h, such as 60s or 5m",
        }
        .to_owned()
    }

    fn class(&self) -> Class {
        match self {
            TrialError::NotConfirmed => Class::Config,
            TrialError::Limit(_) => Class::Usage,
            TrialError::Nothing | TrialError::TakenBack => Class::Failed,
        }
    }
}

impl Engine {
    /// Everything that changes from now on is taken back after `limit`, unless [`Engine::confirm`] is called
    /// before. While a change is pending already, this gives it another time.
    ///
    /// # Errors
    /// `ENM-D053` that is no sensible time; `ENM-R050` the driver cannot; the state cannot be written.
    pub fn begin_trial(&mut self, limit: Duration) -> Result<(), Fault> {
        if !(SHORTEST..=LONGEST).contains(&limit) {
            return Err(TrialError::Limit(Span(limit)).into());
        }
        let pending = self.state.trial.take();
        let before = pending.as_ref().map_or_else(|| self.in_force(), |pending| pending.before.clone());
        let next = Pending { until: Deadline::after(limit), before };
        if let Err(fault) = self.adapters.firewall.on_trial(Some(next.rules())) {
            self.state.trial = pending;
            return Err(fault);
        }
        // Before anything changes: whoever dies now is followed by somebody who takes nothing back.
        self.state.trial = Some(next);
        self.state.save(&self.root)
    }

    /// The engine that comes after another one, with a change pending.
    pub(super) fn resume_trial(&mut self) -> Result<(), Fault> {
        match &self.state.trial {
            Some(pending) => self.adapters.firewall.on_trial(Some(pending.rules())),
            None => Ok(()),
        }
    }

    fn in_force(&self) -> Before {
        if self.state.generation.is_none() {
            return Before { down: self.state.down.clone(), ..Before::default() };
        }
        Before {
            generation: self.state.generation.clone(),
            host: self.state.host.clone(),
            services: self.state.services.clone(),
            down: self.state.down.clone(),
            guard: self.state.guard.clone(),
            namespaces: self.state.in_force(),
        }
    }

    /// The change that waits for a confirmation.
    pub fn pending(&self) -> Option<&Deadline> {
        self.state.trial.as_ref().map(|pending| &pending.until)
    }

    /// Waits until the time of the pending change is over; for ever without one.
    pub async fn trial_over(&self) {
        match self.pending() {
            Some(until) => tokio::time::sleep(until.left()).await,
            None => std::future::pending().await,
        }
    }

    /// Makes the pending change the one that stays: the kernel in one step, so that no connection notices.
    /// Converging afterwards ends what only waited to be gone back to.
    ///
    /// # Errors
    /// `ENM-D050` nothing is pending; `ENM-D051` too late, and everything is taken back; the rules could not
    /// be set, and it is pending still.
    pub async fn confirm(&mut self) -> Result<(), Fault> {
        let Some(pending) = self.state.trial.clone() else { return Err(TrialError::Nothing.into()) };
        if pending.until.is_over() {
            self.take_back().await;
            return Err(TrialError::TakenBack.into());
        }
        self.namespaces.confirm(&self.state)?;
        let recorded = self.state.guard.as_ref().map(Guard::desired);
        if let Some(desired) = self.rules.clone().or(recorded) {
            let firewall = &self.adapters.firewall;
            // What is there is known then, and only what differs is touched.
            firewall.apply(&desired)?;
            firewall.on_trial(None)?;
            if let Err(fault) = firewall.apply(&desired) {
                firewall.on_trial(Some(pending.rules()))?;
                return Err(fault);
            }
            self.rules = Some(desired);
        } else {
            self.adapters.firewall.on_trial(None)?;
        }
        self.state.trial = None;
        self.state.save(&self.root)
    }

    /// Goes back to what was in force before the pending change: rules first, then the rest.
    pub async fn take_back(&mut self) -> Outcome {
        let Some(Pending { before, .. }) = self.state.trial.take() else { return Outcome::default() };
        let tried = read(&self.root, &self.state);
        let mut faults = Vec::new();
        keep(&mut faults, self.adapters.firewall.on_trial(None));
        let desired = before.guard.as_ref().map(Guard::desired);
        match &desired {
            Some(desired) => keep(&mut faults, self.adapters.firewall.apply(desired)),
            // Connections that are redirected go on until their sidecars have drained.
            None => keep(&mut faults, self.adapters.firewall.drain()),
        }
        self.rules = desired;
        faults.extend(self.namespaces.go_back(&before, &mut self.state));
        self.state.refused = (!before.is(&tried)).then(|| fingerprint(&tried));
        self.state.generation = self.state.generation.take().filter(|_| before.generation.is_some());
        self.state.host = before.host;
        self.state.services = before.services;
        self.state.down = before.down;
        self.state.guard = before.guard;
        keep(&mut faults, self.state.save(&self.root));
        match self.intend().await {
            Ok(intent) => {
                faults.extend(intent.faults());
                faults.extend(self.converge(intent).await.faults);
            }
            Err(fault) => faults.push(fault),
        }
        Outcome { faults }
    }

    /// Takes back what nobody confirmed while no enmesh was there to do it. Returns whether there was
    /// something.
    pub async fn take_back_what_is_over(&mut self) -> Option<Outcome> {
        let over = self.pending().is_some_and(Deadline::is_over);
        if over { Some(self.take_back().await) } else { None }
    }

    /// A person wants the files in force, whatever was refused before.
    pub fn give_another_chance(&mut self) {
        self.state.refused = None;
        if self.pending().is_some_and(Deadline::is_over) {
            self.state.trial = None;
            // What is asked for now would lapse at once otherwise. Ending a trial touches nothing, so it cannot fail.
            if let Err(fault) = self.adapters.firewall.on_trial(None) {
                tracing::warn!(code = fault.code, "{fault}");
            }
        }
        self.state.ssh.clear();
    }
}

/// The change that waits for a confirmation by the state of the tree `root`; `None` also where nobody may read that.
pub fn pending(root: &Root) -> Option<Deadline> {
    State::look(root).ok().and_then(|(state, _)| state.trial).map(|pending| pending.until)
}

/// What is said of it.
pub fn told(until: &Deadline) -> String {
    // What is left is told in whole seconds, as the kernel counts.
    match until.left().as_millis().div_ceil(1000) as u64 {
        0 => "the change on trial is over: the rules of before count, and the next `enmesh` takes back the rest".to_owned(),
        left => format!("taken back in {} unless you type `enmesh confirm`", Span(Duration::from_secs(left))),
    }
}

impl Pending {
    fn rules(&self) -> Trial {
        Trial { before: self.before.guard.as_ref().map(Guard::desired), until: self.until.clone() }
    }
}

impl Guard {
    /// The rules.
    pub fn desired(&self) -> Desired {
        Desired { policy: self.policy.clone(), live: self.live.clone() }
    }
}

impl Before {
    /// Whether the files say what was in force.
    fn is(&self, config: &Config) -> bool {
        let said: Vec<Remembered> = config.services.iter().map(Remembered::from).collect();
        self.host.as_ref() == Some(&config.host) && self.services.values().eq(said.iter())
    }
}

/// Which files it is. Not what they mean: that also depends on the environment, and a daemon has another one
/// than a command.
fn fingerprint(config: &Config) -> String {
    let mut digest = Sha256::new();
    for path in &config.sources {
        digest.update(path.as_os_str().as_encoded_bytes());
        digest.update(Sha256::digest(fs::read(path).unwrap_or_default()));
    }
    digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What was in force before, where the files say what nobody confirmed.
pub(super) fn hold_back(config: &mut Config, state: &State) {
    if state.refused.is_none() || state.refused != Some(fingerprint(config)) {
        return;
    }
    config.services = state.services.values().map(Into::into).collect();
    if let Some(host) = &state.host {
        config.host = host.clone();
    }
    config.errors.push(TrialError::NotConfirmed.into());
}
