//! How this host's services are: the checks that enmesh runs where no agent does, and whether their
//! sidecars live, told to Consul together.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::time::{Duration, UNIX_EPOCH};

use serde::Serialize;

use super::engine::Engine;
use super::error::ConvergeError;
use super::membership::Membership;
use super::sidecar::Phase;
use crate::base::exec::User;
use crate::base::{Fault, LocalFuture};
use crate::config::value::{Scope, ServiceId, UserSpec};
use crate::config::{Check, CheckStatus, Config, ServiceConfig};
use crate::consul::{CatalogRegistry, CheckReport, Entry, Health, Key, KnownChecks, Vitals};
use crate::health::{self, Checker, HealthError, States};
use crate::plan::{HostFacts, Plan, seen_from_host};

/// States that change within this time are told in one write.
const SETTLE: Duration = Duration::from_millis(50);

/// The user and group `nobody`, by whom programs are run that nobody else is named for.
const NOBODY: u32 = 65534;

/// The checks that enmesh runs.
#[derive(Default)]
pub(super) struct Checks {
    checker: Option<Checker>,
    /// Whether what the catalog was told before this process began was taken up.
    resumed: bool,
    /// Whether a state changed that was not told yet.
    news: Cell<bool>,
}

/// How a check is, as `enmesh status` shows it.
#[derive(Debug, Clone, Serialize)]
pub struct CheckView {
    /// Its name, else its id.
    pub name: String,
    /// How it is.
    pub status: CheckStatus,
    /// Since when it is so, in seconds since 1970.
    pub since: u64,
    /// What it said last.
    pub output: String,
}

/// The checks of a service, as they are run on the host.
fn checks_of(plan: &Plan, service: &ServiceConfig) -> Vec<Check> {
    match plan.namespace_of(&service.id()) {
        Some(own) => seen_from_host(service, own.inside()).checks,
        None => service.checks.clone(),
    }
}

/// The checks of each service, by their ids.
pub(super) fn views(states: &States) -> BTreeMap<ServiceId, BTreeMap<String, CheckView>> {
    let mut views: BTreeMap<ServiceId, BTreeMap<String, CheckView>> = BTreeMap::new();
    for ((service, id), state) in states.now() {
        let since = state.since.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let view = CheckView { name: state.name, status: state.status, since, output: state.output };
        views.entry(service).or_default().insert(id, view);
    }
    views
}

/// What an app says about one of its checks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct Report {
    /// The service's id.
    pub service: String,
    /// The check's id.
    pub check: String,
    /// How it is.
    pub status: CheckStatus,
    /// Why.
    #[serde(default)]
    pub output: String,
}

/// What of the checks of `config` is not run, or not as it says, where enmesh runs them.
pub(super) fn unheeded(membership: Option<&Membership>, config: &Config) -> Vec<Fault> {
    match membership {
        Some(membership) if membership.runs_checks() => {
            let enabled = config.services.iter().filter(|service| service.enabled);
            health::unheeded(&enabled.map(|service| (service.id(), service.checks.clone())).collect())
        }
        _ => Vec::new(),
    }
}

impl Engine {
    /// Runs the checks of the services in force where no agent does, and no others.
    pub(super) async fn run_checks(&mut self, config: &Config, plan: &Plan) {
        let membership = self.adapters.drive.membership.as_ref();
        let Some(membership) = membership.filter(|membership| membership.runs_checks()) else {
            self.checks = Checks::default();
            return;
        };
        let services = self.configs_in_force(config, plan);
        let mut known = KnownChecks::new();
        if !self.checks.resumed
            && let Some(catalog) = membership.catalog()
            && let Ok(found) = catalog.known_checks(&self.state.registered).await
        {
            (known, self.checks.resumed) = (found, true);
        }
        let users = self.users(&services);
        let checks: BTreeMap<ServiceId, Vec<Check>> =
            services.into_iter().map(|service| (service.id(), checks_of(plan, &service))).collect();
        let checker = self.checks.checker.get_or_insert_with(|| Checker::start(&BTreeMap::new(), None).0);
        checker.run_as(users);
        // What of them is left out was said with the plan's warnings.
        checker.update(&checks);
        checker.resume(&known);
    }

    /// The services of `plan`, as they are configured, or were when they were good last.
    fn configs_in_force(&self, config: &Config, plan: &Plan) -> Vec<ServiceConfig> {
        let erring = |id: &ServiceId| plan.errors.iter().any(|it| it.service.as_deref() == Some(id.as_str()));
        let of_files = |id: &ServiceId| config.services.iter().find(|service| service.id() == *id);
        let of_plan = plan.services.keys().filter_map(|id| {
            let before = || self.state.services.get(id).map(ServiceConfig::from);
            of_files(id).filter(|_| !erring(id)).cloned().or_else(before)
        });
        of_plan.collect()
    }

    /// Who runs the programs of each service's checks; without root's rights, whoever this is.
    fn users(&self, services: &[ServiceConfig]) -> BTreeMap<ServiceId, User> {
        if !nix::unistd::geteuid().is_root() {
            return BTreeMap::new();
        }
        let facts = self.facts();
        services.iter().map(|service| (service.id(), user_of(&service.capture.scope, facts))).collect()
    }

    /// Tells which services may be used: whether their sidecars take connections, and what their checks
    /// say where enmesh runs them.
    pub(super) async fn tell_health(&mut self, plan: &Plan) -> Vec<Fault> {
        let health = |service| {
            let key = Entry::of(service).key;
            let live = self.sidecars.get(&key.id).is_some_and(|status| status.phase == Phase::Live);
            let why = || Health::Critical("its sidecar is not live".to_owned());
            (key, if live { Health::Passing } else { why() })
        };
        let health: BTreeMap<Key, Health> = plan.services.values().map(health).collect();
        let Some(membership) = &mut self.adapters.drive.membership else { return Vec::new() };
        match membership.catalog() {
            Some(catalog) => self.tell_catalog(&catalog, health).await,
            None => membership.tell(health).await,
        }
    }

    /// Those of `plan` that do not take connections must not be used meanwhile.
    pub(super) async fn tell_not_live(&mut self, plan: &Plan) -> Vec<Fault> {
        let live = self.live();
        if plan.services.keys().all(|id| live.contains(id)) {
            return Vec::new();
        }
        self.tell_health(plan).await
    }

    /// What differs from what the catalog has, in one write.
    async fn tell_catalog(&self, catalog: &CatalogRegistry, health: BTreeMap<Key, Health>) -> Vec<Fault> {
        self.checks.news.set(false);
        let mut reports: BTreeMap<ServiceId, Vec<CheckReport>> = BTreeMap::new();
        for ((service, id), state) in self.checks.checker.iter().flat_map(Checker::states) {
            let report = CheckReport { id, name: state.name, status: state.status, output: state.output };
            reports.entry(service).or_default().push(report);
        }
        let done = |key: &Key| self.registered(&key.id).is_some_and(|registered| registered.done);
        let vitals = |(key, live): (Key, Health)| {
            let checks = reports.get(&key.id).cloned().unwrap_or_default();
            (key, Vitals { live: Some(live), checks })
        };
        let batch: BTreeMap<Key, Vitals> =
            health.into_iter().filter(|(key, _)| done(key)).map(vitals).collect();
        if batch.is_empty() {
            return Vec::new();
        }
        match catalog.set_checks(&batch).await {
            Ok(pushed) => {
                let removed = pushed.removed.iter().map(|id| format!("-{id}"));
                let told: Vec<String> = pushed.written.iter().cloned().chain(removed).collect();
                if !told.is_empty() {
                    tracing::info!("told Consul how these checks are: {}", told.join(", "));
                }
                Vec::new()
            }
            Err(fault) => vec![fault],
        }
    }

    /// Waits until a check that enmesh runs is otherwise than was told. Safe to drop.
    pub async fn checks_changed(&self) {
        let Some(checker) = &self.checks.checker else { return std::future::pending().await };
        if !self.checks.news.get() {
            checker.changed().await;
            self.checks.news.set(true);
        }
        tokio::time::sleep(SETTLE).await;
    }

    /// Brings into Consul what checks found since that was done last.
    pub async fn tell_checks(&mut self) -> Vec<Fault> {
        self.checks.news.set(false);
        let Some(plan) = self.plan.take() else { return Vec::new() };
        let faults = self.tell_health(&plan).await;
        self.plan = Some(plan);
        faults
    }

    /// The states of the checks that enmesh runs.
    pub fn check_states(&self) -> Option<States> {
        self.checks.checker.as_ref().map(Checker::handle)
    }

    /// Takes an app's report about its `ttl` check, or passes it on to the agent that has the check.
    /// What comes back is the rest of that work, which needs nothing of the engine.
    ///
    /// `ENM-D007` no such service, `ENM-D017` Consul was not asked yet, `ENM-D035` nobody takes reports
    /// here, `ENM-H001` no such check, `ENM-H002` not a `ttl` check, and what the agent says.
    pub fn report(&self, report: &Report) -> LocalFuture<'static, Result<(), Fault>> {
        match self.try_report(report) {
            Ok(work) => work,
            Err(fault) => Box::pin(std::future::ready(Err(fault))),
        }
    }

    fn try_report(&self, report: &Report) -> Result<LocalFuture<'static, Result<(), Fault>>, Fault> {
        let Report { service, check, status, output } = report.clone();
        let id = service.parse::<ServiceId>().ok();
        let plan = id.as_ref().and_then(|id| self.plan.as_ref()?.services.get(id));
        let Some(plan) = plan else { return Err(ConvergeError::NoService { id: service }.into()) };
        let membership = self.adapters.drive.membership.as_ref();
        let membership = membership.filter(|membership| membership.has_checks());
        let Some(membership) = membership else {
            return Err(ConvergeError::NoReports { id: service }.into());
        };
        if let Some(checker) = self.checks.checker.as_ref().filter(|_| membership.runs_checks()) {
            checker.report(&plan.id, &check, status, &output)?;
            return Ok(Box::pin(std::future::ready(Ok(()))));
        }
        let Some(agent) = membership.agent_checks() else {
            let server = membership.client().settings().endpoint.to_string();
            return Err(ConvergeError::NotAsked { server }.into());
        };
        let entry = Entry::of(plan);
        let checks = agent.of(&entry);
        let Some(found) = checks.iter().find(|it| it.id == check) else {
            let known = checks.into_iter().map(|it| it.id).collect();
            return Err(HealthError::Unknown { service, check, known }.into());
        };
        match found.at_agent.clone().filter(|_| found.ttl) {
            Some(id) => Ok(Box::pin(async move { agent.report(&entry, &id, status, &output).await })),
            None => Err(HealthError::NotReported { service, check }.into()),
        }
    }
}

/// Who runs the programs of a service's checks: the user whose traffic the service captures, which is
/// the app's, else `nobody`; never root, whose rights a check does not need to find out how an app is.
fn user_of(scope: &Scope, facts: Option<&HostFacts>) -> User {
    let nobody = User { uid: NOBODY, gid: NOBODY };
    let Some(facts) = facts else { return nobody };
    let uid = match scope {
        Scope::User(UserSpec::Uid(uid)) => Some(*uid),
        Scope::User(UserSpec::Name(name)) => facts.users.get(name).map(|user| user.uid),
        Scope::Unit(unit) => facts.unit_users.get(unit).copied().flatten(),
        Scope::Host | Scope::Netns(_) => None,
    };
    let Some(uid) = uid.filter(|uid| *uid != 0) else { return nobody };
    let gid = facts.users.values().find(|user| user.uid == uid).map_or(NOBODY, |user| user.gid);
    User { uid, gid }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::facts::User as Known;

    #[test]
    fn programs_run_as_the_apps_user_and_never_as_root() {
        let mut facts = HostFacts::default();
        facts.users.insert("root".to_owned(), Known { uid: 0, gid: 0 });
        facts.users.insert("app".to_owned(), Known { uid: 1000, gid: 100 });
        facts.unit_users.insert("shop.service".to_owned(), Some(1000));
        let user = |scope: &str| {
            let user = user_of(&scope.parse().unwrap(), Some(&facts));
            (user.uid, user.gid)
        };
        assert_eq!(user("user:app"), (1000, 100));
        assert_eq!(user("user:1000"), (1000, 100));
        assert_eq!(user("unit:shop.service"), (1000, 100));
        assert_eq!(user("user:2000"), (2000, NOBODY));
        for scope in ["host", "user:root", "user:0", "user:ghost", "unit:other.service"] {
            assert_eq!(user(scope), (NOBODY, NOBODY), "{scope}");
        }
    }
}
