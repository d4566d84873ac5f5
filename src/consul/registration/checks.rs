//! The states of checks in the catalog, where no agent brings them there.
//!
//! Only what changed is written, all of it in one call that holds no service: it changes the checks of
//! several services at once or none, and touches nobody else's.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::catalog::{check, check_id, check_of, id_of, scope, services_of};
use super::{CatalogRegistry, Health, Key};
use crate::base::Fault;
use crate::config::CheckStatus;
use crate::config::value::ServiceId;
use crate::consul::{ConsulError, Query, segment};

/// How one check of a service is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckReport {
    /// Unique in the service.
    pub id: String,
    /// As people see it.
    pub name: String,
    /// How it is.
    pub status: CheckStatus,
    /// Why, in one line.
    pub output: String,
}

/// How a service is, with all its checks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Vitals {
    /// Whether its sidecar lives; `None` leaves alone what was told of that.
    pub live: Option<Health>,
    /// Its checks, all of them.
    pub checks: Vec<CheckReport>,
}

/// Status and output of checks, by service and id.
pub type KnownChecks = BTreeMap<(ServiceId, String), (CheckStatus, String)>;

/// What [`CatalogRegistry::set_checks`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pushed {
    /// Ids of the checks that were written, since they were otherwise or not there.
    pub written: Vec<String>,
    /// Ids of the checks that were taken out.
    pub removed: Vec<String>,
    /// Services that are not registered, and so have no checks.
    pub unknown: Vec<Key>,
}

/// The id that a check has in the catalog, where ids are unique in a node.
fn id_in_catalog(service: &str, check: &str) -> String {
    format!("enmesh:{service}:{check}")
}

impl CatalogRegistry {
    /// Makes the checks of the services in `batch` the ones that are said: writes what differs, in one
    /// call, and takes out those that enmesh put there before and that are not said any more.
    /// Services that are not in `batch`, and everybody else's checks, stay as they are.
    ///
    /// # Errors
    /// See [`ConsulError`].
    pub async fn set_checks(&self, batch: &BTreeMap<Key, Vitals>) -> Result<Pushed, Fault> {
        Ok(self.push(batch).await?)
    }

    /// What the catalog was told of the checks of `keys`.
    ///
    /// # Errors
    /// See [`ConsulError`].
    pub async fn known_checks(&self, keys: &BTreeSet<Key>) -> Result<KnownChecks, Fault> {
        let mut known = KnownChecks::new();
        for (namespace, keys) in by_namespace(keys.iter()) {
            let seen = self.seen(namespace).await?;
            for key in keys {
                let ours = id_in_catalog(key.id.as_str(), "");
                for (id, check) in seen.get(key.id.as_str()).into_iter().flatten() {
                    let text = |name: &str| check.get(name).and_then(Value::as_str).unwrap_or_default();
                    if let (Some(id), Ok(status)) = (id.strip_prefix(&ours), text("Status").parse()) {
                        let said = (status, text("Output").to_owned());
                        known.insert((key.id.clone(), id.to_owned()), said);
                    }
                }
            }
        }
        Ok(known)
    }

    /// Tells the same health of several services and their sidecars in one call: they stop being
    /// used at once. Services that are not registered are passed over.
    ///
    /// # Errors
    /// See [`ConsulError`].
    pub async fn set_health_of_all(&self, keys: &[Key], health: &Health) -> Result<(), Fault> {
        let mut checks = Vec::new();
        for key in keys {
            let services = services_of(&self.client, &self.node, Some(key)).await?.unwrap_or_default();
            let mine = [key.id.to_string(), key.sidecar()];
            let ids = services.iter().map(id_of).filter(|id| mine.contains(id));
            checks.extend(ids.map(|id| check(&id, health, key)));
        }
        Ok(self.put_checks(checks).await?)
    }

    async fn push(&self, batch: &BTreeMap<Key, Vitals>) -> Result<Pushed, ConsulError> {
        let mut pushed = Pushed::default();
        let mut changed = Vec::new();
        let mut stale = Vec::new();
        for (namespace, keys) in by_namespace(batch.keys()) {
            let seen = self.seen(namespace).await?;
            for key in keys {
                let Some(vitals) = batch.get(key) else { continue };
                let reports = &vitals.checks;
                let Some(of_service) = seen.get(key.id.as_str()) else {
                    pushed.unknown.push(key.clone());
                    continue;
                };
                let service = key.id.as_str();
                let sidecar = seen.get(&key.sidecar());
                let own =
                    reports.iter().map(|it| (id_in_catalog(service, &it.id), body(key, it), of_service));
                for (id, wanted, are) in liveness(key, vitals, of_service, sidecar).into_iter().chain(own) {
                    if are.get(&id).is_none_or(|is| differs(&wanted, is)) {
                        changed.push(wanted);
                        pushed.written.push(id);
                    }
                }
                let ours = id_in_catalog(service, "");
                let said = |id: &str| reports.iter().any(|it| id_in_catalog(service, &it.id) == id);
                stale.extend(
                    of_service
                        .keys()
                        .filter(|id| id.starts_with(&ours) && !said(id))
                        .map(|id| (key, id.clone())),
                );
            }
        }
        self.put_checks(changed).await?;
        for (key, id) in stale {
            let mut body = json!({ "Node": self.node.name, "CheckID": id });
            scope(&mut body, key);
            self.client.put(&Query::new("/v1/catalog/deregister"), Some(&body)).await?;
            pushed.removed.push(id);
        }
        Ok(pushed)
    }

    /// Writes all of `checks` or none.
    async fn put_checks(&self, checks: Vec<Value>) -> Result<(), ConsulError> {
        if checks.is_empty() {
            return Ok(());
        }
        let body = json!({
            "Node": self.node.name, "Address": self.node.address, "SkipNodeUpdate": true, "Checks": checks,
        });
        self.client.put(&Query::new("/v1/catalog/register"), Some(&body)).await.map(drop)
    }

    /// The node's checks by service and id; a registered service without any is there too.
    async fn seen(&self, namespace: Option<&Key>) -> Result<BTreeMap<String, Are>, ConsulError> {
        let services = services_of(&self.client, &self.node, namespace).await?.unwrap_or_default();
        let mut seen: BTreeMap<String, Are> =
            services.iter().map(|service| (id_of(service), BTreeMap::new())).collect();
        let path = format!("/v1/health/node/{}", segment(&self.node.name));
        let namespace = namespace.and_then(|key| key.namespace.as_deref());
        let checks = self.client.get(&Query::new(path).with_some("ns", namespace)).await?.body;
        for check in checks.as_array().into_iter().flatten() {
            let text = |name: &str| check.get(name).and_then(Value::as_str).unwrap_or_default();
            if let Some(of_service) = seen.get_mut(text("ServiceID")) {
                of_service.insert(text("CheckID").to_owned(), check.clone());
            }
        }
        Ok(seen)
    }
}

/// The keys, by the namespace that they are asked about in; each group has a key to ask with.
fn by_namespace<'a>(keys: impl Iterator<Item = &'a Key>) -> Vec<(Option<&'a Key>, Vec<&'a Key>)> {
    let mut groups: BTreeMap<Option<&str>, Vec<&Key>> = BTreeMap::new();
    for key in keys {
        groups.entry(key.namespace.as_deref()).or_default().push(key);
    }
    groups.into_values().map(|keys| (keys.first().copied(), keys)).collect()
}

/// The checks of a service as they are, by id.
type Are = BTreeMap<String, Value>;

/// The checks that say whether the service, and its sidecar, may be used, with those that are there.
///
/// Others dial the sidecar, and ask for its health and not for the app's. So its check says both, as
/// an agent's alias check does.
fn liveness<'a>(
    key: &Key,
    vitals: &Vitals,
    service: &'a Are,
    sidecar: Option<&'a Are>,
) -> Vec<(String, Value, &'a Are)> {
    let Some(live) = &vitals.live else { return Vec::new() };
    let mut checks = vec![(check_id(key.id.as_str()), check(key.id.as_str(), live, key), service)];
    if let Some(are) = sidecar {
        let id = key.sidecar();
        let worst = vitals.checks.iter().max_by_key(|report| report.status);
        let wanted = match worst.filter(|it| it.status != CheckStatus::Passing && *live == Health::Passing) {
            Some(CheckReport { id: which, status, .. }) => {
                let why = format!("the check {which} of {} is {status}", key.id);
                check_of(&id, status.as_str(), &why, key)
            }
            None => check(&id, live, key),
        };
        checks.push((check_id(&id), wanted, are));
    }
    checks
}

fn body(key: &Key, report: &CheckReport) -> Value {
    let mut check = json!({
        "CheckID": id_in_catalog(key.id.as_str(), &report.id),
        "Name": report.name,
        "ServiceID": key.id,
        "Status": report.status,
        "Output": report.output,
    });
    scope(&mut check, key);
    check
}

fn differs(wanted: &Value, is: &Value) -> bool {
    ["Name", "Status", "Output"].iter().any(|name| wanted.get(name) != is.get(name))
}
