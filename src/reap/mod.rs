//! Takes out of Consul what nobody keeps any more: services that were registered without an agent, the
//! nodes that enmesh made for them, and the tokens of their logins.
//!
//! A pass reads what Consul holds, then what the platform says is there (in this order: who registered
//! before the first is in the second), and judges. Nothing goes at first sight. What was seen in former
//! passes is kept in Consul, so that a pass may be anybody's; a lock sees to it that it is one's at a
//! time. Each removal carries the lock and the version of what was judged, so one that comes too late
//! does nothing. How services get there, and who runs them, this room does not know.

mod error;
mod holdings;
mod judge;
mod lock;
mod memory;
mod remove;
mod report;
mod session;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures_util::stream::{self, StreamExt};
use serde_json::Value;

pub use error::ReapError;
pub use report::{Report, Spared, Waiting};
pub use session::Session;

use crate::base::{Class, Fault};
use crate::consul::{Client, ConsulError, Query};
use crate::platform::{Group, Life, Management};
use holdings::Holdings;
use judge::{Evidence, Rules, Verdict, judge, worth_a_look};
use lock::Lock;
use memory::{Clock, Memory};

/// How many questions are under way at a time.
const AT_ONCE: usize = 8;
/// How many groups are asked for by themselves in one pass because their lease is late. The platform
/// counts questions, and a Consul that was away makes all leases late.
const LOOKS: usize = 100;

/// What a reaper does.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Subscriptions or resource groups whose groups the platform is asked for.
    pub scopes: Vec<String>,
    /// Whether everybody else is judged by his lease.
    pub leases: bool,
    /// How long something has to be gone.
    pub grace: Duration,
    /// The share of all owners, in percent, that one pass may take out.
    pub max_share: u8,
    /// Auth methods whose logins are ended with their owners.
    pub auth_methods: Vec<String>,
    /// Whether to say only what would be done.
    pub dry_run: bool,
}

/// Consul, with a count of what it was asked.
pub(in crate::reap) struct Asked {
    client: Client,
    count: Cell<u64>,
}

impl Asked {
    async fn get(&self, query: &Query) -> Result<Value, ConsulError> {
        self.count.set(self.count.get() + 1);
        Ok(self.client.get(query).await?.body)
    }

    async fn put(&self, query: &Query, body: &Value) -> Result<Value, ConsulError> {
        self.count.set(self.count.get() + 1);
        Ok(self.client.put(query, Some(body)).await?.body)
    }

    async fn delete(&self, query: &Query) -> Result<(), ConsulError> {
        self.count.set(self.count.get() + 1);
        self.client.delete(query).await.map(drop)
    }
}

/// Judges, and takes out.
pub struct Reaper {
    consul: Asked,
    management: Option<Management>,
    settings: Settings,
    /// Who this is, for whoever looks at the lock.
    name: String,
    lock: Option<Lock>,
}

/// Says how far a pass is.
pub type Say<'a> = &'a dyn Fn(&str);

impl Reaper {
    /// A reaper named `name` of what `client` reaches; `management` is asked about the settings' scopes.
    ///
    /// # Errors
    /// `ENM-A040` nobody is to be judged.
    pub fn new(
        client: Client,
        management: Option<Management>,
        settings: Settings,
        name: String,
    ) -> Result<Self, Fault> {
        if settings.scopes.is_empty() && !settings.leases {
            return Err(ReapError::Nobody.into());
        }
        let consul = Asked { client, count: Cell::new(0) };
        Ok(Reaper { consul, management, settings, name, lock: None })
    }

    /// One pass. While another reaper leads, nothing is done, and the report says who it is.
    ///
    /// # Errors
    /// Consul or the platform does not answer: then nothing was taken out. `ENM-A041` more would go than
    /// may; nothing was taken out.
    pub async fn pass(&mut self, say: Say<'_>) -> Result<Report, Fault> {
        let started = Instant::now();
        let asked = (self.consul.count.get(), self.management.as_ref().map_or(0, Management::asked));
        if !self.settings.dry_run
            && let Some(leader) = self.lead().await?
        {
            return Ok(Report { leader: Some(leader), ..Report::default() });
        }
        let mut report = self.kept(self.judge_and_remove(say)).await?;
        report.took_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        report.asked_consul = self.consul.count.get() - asked.0;
        report.asked_platform = self.management.as_ref().map_or(0, Management::asked) - asked.1;
        Ok(report)
    }

    /// Gives the lead to whoever wants it next.
    pub async fn rest(&mut self) {
        if let Some(lock) = self.lock.take() {
            lock.release(&self.consul).await;
        }
    }

    /// Keeps the lead while nothing is done; when that fails, the next pass sees to it.
    pub async fn keep_lead(&mut self) {
        if let Some(lock) = &self.lock
            && !lock.renew(&self.consul).await
        {
            self.lock = None;
        }
    }

    /// How often [`Reaper::keep_lead`] has to be called.
    pub fn lead_lasts(&self) -> Duration {
        lock::RENEWED_EVERY
    }

    /// Takes the lead; `Some` is who has it.
    async fn lead(&mut self) -> Result<Option<String>, Fault> {
        self.keep_lead().await;
        if self.lock.is_some() {
            return Ok(None);
        }
        match lock::take(&self.consul, &self.name).await? {
            Ok(lock) => {
                self.lock = Some(lock);
                Ok(None)
            }
            Err(leader) => Ok(Some(leader)),
        }
    }

    /// Does `work` and keeps the lead meanwhile: a platform may make one wait for minutes.
    async fn kept<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return done,
                () = tokio::time::sleep(lock::RENEWED_EVERY) => {
                    if let Some(lock) = &self.lock {
                        // Without it, each removal fails by itself.
                        lock.renew(&self.consul).await;
                    }
                }
            }
        }
    }

    async fn judge_and_remove(&self, say: Say<'_>) -> Result<Report, Fault> {
        let mut report = Report { dry_run: self.settings.dry_run, ..Report::default() };
        say("reading what Consul holds");
        let (mut memory, unreadable) = Memory::load(&self.consul).await?;
        report.warnings.extend(unreadable);
        let holdings = holdings::read(&self.consul, &self.settings.auth_methods).await?;
        report.warnings.extend(holdings.warnings.iter().cloned());
        let listed = self.listed(say).await?;
        let elapsed = Clock::now().passed_since(&memory);
        let mut due = Vec::new();
        let evidence = self.evidence(&holdings, &listed, &memory, elapsed).await?;
        let rules = Rules { grace: self.settings.grace, leases: self.settings.leases };
        for (owner, holding) in &holdings.owners {
            let evidence = evidence.get(owner).cloned().unwrap_or(Evidence::Unasked);
            let seen = memory.follow(owner, &holding.mark, evidence.is_gone(), elapsed, holding.every);
            match judge(&evidence, &seen, holding, &rules) {
                Verdict::Alive => report.alive += 1,
                Verdict::Spared(state) => report.spared.push(Spared { owner: owner.clone(), state }),
                Verdict::Waiting { why, left } => {
                    report.waiting.push(Waiting { owner: owner.clone(), why, seconds: left.as_secs() });
                }
                Verdict::Orphan(why) => due.push((owner.clone(), why)),
            }
        }
        memory.forget_others(&holdings);
        report.owners = holdings.owners.len();
        let due = self.confirmed(due, &mut report).await;
        let outcome = self.remove(&holdings, due, &mut report, say).await;
        if !self.settings.dry_run
            && let Some(lock) = &self.lock
        {
            memory.save(&self.consul, lock, &Clock::now()).await?;
        }
        outcome.map(|()| report)
    }

    /// The groups that the platform lists, by their ids. Whoever is not in it and could be, is gone.
    async fn listed(&self, say: Say<'_>) -> Result<BTreeMap<String, Group>, Fault> {
        let mut listed = BTreeMap::new();
        let Some(management) = &self.management else { return Ok(listed) };
        for scope in &self.settings.scopes {
            say(&format!("asking the platform for the groups in {scope}"));
            let groups = management.list(scope).await?;
            listed.extend(groups.into_iter().map(|group| (group.id.clone(), group)));
        }
        Ok(listed)
    }

    /// What the platform says of each owner that it can say something of.
    async fn evidence(
        &self,
        holdings: &Holdings,
        listed: &BTreeMap<String, Group>,
        memory: &Memory,
        elapsed: Duration,
    ) -> Result<BTreeMap<String, Evidence>, Fault> {
        let mut evidence = BTreeMap::new();
        let mut late = Vec::new();
        for (owner, holding) in holdings.owners.iter().filter(|(owner, _)| self.is_asked(owner)) {
            let Some(group) = listed.get(owner) else {
                evidence.insert(owner.clone(), Evidence::Absent);
                continue;
            };
            evidence.insert(owner.clone(), Evidence::of(&group.life));
            let seen = memory.look(owner, &holding.mark, false, elapsed, holding.every);
            if worth_a_look(&seen, holding) {
                late.push(owner);
            }
        }
        let looks = late.into_iter().take(LOOKS).map(|owner| async move { (owner, self.look(owner).await) });
        let mut looks = stream::iter(looks).buffer_unordered(AT_ONCE);
        while let Some((owner, looked)) = looks.next().await {
            evidence.insert(owner.clone(), looked?);
        }
        Ok(evidence)
    }

    /// Whether the platform is asked about `owner`.
    fn is_asked(&self, owner: &str) -> bool {
        let within = |scope: &String| {
            owner.strip_prefix(&scope.to_ascii_lowercase()).is_some_and(|rest| rest.starts_with('/'))
        };
        self.management.is_some() && crate::config::is_group(owner) && self.settings.scopes.iter().any(within)
    }

    /// How one group is, asked for by itself.
    async fn look(&self, owner: &str) -> Result<Evidence, Fault> {
        match &self.management {
            None => Ok(Evidence::Unasked),
            Some(management) => match management.look(owner).await? {
                Some(group) => Ok(Evidence::of(&group.life)),
                None => Ok(Evidence::Absent),
            },
        }
    }

    /// Those of `due` of whom the platform says once more, of each by itself, that he is gone: a list that
    /// lacks somebody by a slip takes nobody out.
    async fn confirmed(&self, due: Vec<(String, String)>, report: &mut Report) -> Vec<(String, String)> {
        let asked = due.into_iter().map(|(owner, why)| async move {
            let looked = if self.is_asked(&owner) { Some(self.look(&owner).await) } else { None };
            (owner, why, looked)
        });
        let mut confirmed = Vec::new();
        let mut asked = stream::iter(asked).buffered(AT_ONCE);
        while let Some((owner, why, looked)) = asked.next().await {
            match looked {
                None => confirmed.push((owner, why)),
                Some(Ok(evidence)) if evidence.is_gone() => confirmed.push((owner, why)),
                Some(Ok(evidence)) => report.spared.push(Spared { owner, state: evidence.to_string() }),
                Some(Err(fault)) => {
                    report.warnings.push(fault);
                    report.spared.push(Spared { owner, state: "not known".to_owned() });
                }
            }
        }
        confirmed
    }

    async fn remove(
        &self,
        holdings: &Holdings,
        due: Vec<(String, String)>,
        report: &mut Report,
        say: Say<'_>,
    ) -> Result<(), Fault> {
        let share = due.len() * 100;
        if due.len() > 1 && share > usize::from(self.settings.max_share) * holdings.owners.len() {
            let (gone, all, share) = (due.len(), holdings.owners.len(), self.settings.max_share);
            return Err(ReapError::TooMany { gone, all, share }.into());
        }
        if self.settings.dry_run {
            report.would_remove(&due, holdings);
            return Ok(());
        }
        let Some(lock) = &self.lock else { return Ok(()) };
        let own = session::own_accessor(&self.consul).await;
        let all = due.len();
        let removals = due.iter().filter_map(|(owner, why)| Some((owner, why, holdings.owners.get(owner)?)));
        let removals = removals.map(|(owner, why, holding)| {
            let own = own.as_deref();
            async move { (owner, why, remove::owner(&self.consul, lock, owner, holding, own).await) }
        });
        let mut removals = stream::iter(removals).buffer_unordered(AT_ONCE);
        let mut done = 0;
        while let Some((owner, why, removed)) = removals.next().await {
            done += 1;
            if done % 50 == 0 || done == all {
                say(&format!("taken out: {done} of {all}"));
            }
            report.removed(owner, why, removed);
        }
        Ok(())
    }
}

/// Whether a pass that failed so may succeed another time.
pub fn may_pass(fault: &Fault) -> bool {
    !matches!(fault.class, Class::Usage | Class::Config)
}

impl Evidence {
    fn of(life: &Life) -> Self {
        match life {
            Life::There(state) => Evidence::There(state.clone()),
            Life::Ended(state) => Evidence::Ended(state.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdings::Holding;

    /// What the judge is told of somebody.
    pub(super) fn holding(every: u64, services: bool) -> Holding {
        let mut holding = Holding { every: Duration::from_secs(every), ..Holding::default() };
        if services {
            holding.services.push(holdings::Service::default());
        }
        holding
    }
}
