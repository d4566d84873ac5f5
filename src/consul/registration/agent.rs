//! Registration at the local agent, which brings it to the servers and keeps it there.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::compare::{check_ids, checks, fields, maintenance_check, sidecar_check_ids};
use super::registry::{Key, MARK, Prepared, mark_of};
use crate::base::{Fault, LocalFuture};
use crate::consul::{
    Client, ConsulError, ConsulWarning, Entry, Gate, Health, Outcome, Query, Registry, segment,
};

/// The agent's HTTP API.
#[derive(Debug)]
pub struct AgentRegistry {
    client: Client,
    gate: RefCell<Gate>,
    /// What Consul kept otherwise right after it was sent, by mark: sending it again would not help.
    kept: RefCell<BTreeMap<Key, (String, Vec<String>)>>,
}

impl AgentRegistry {
    /// For the agent that `client` reaches and that takes what `gate` lets through.
    pub fn new(client: Client, gate: Gate) -> Self {
        AgentRegistry { client, gate: RefCell::new(gate), kept: RefCell::default() }
    }

    /// What is let through by now: a server of an unknown version teaches.
    pub fn gate(&self) -> Gate {
        self.gate.borrow().clone()
    }

    fn prepared(&self, entry: &Entry) -> Result<Prepared, ConsulError> {
        Prepared::new(entry, &self.gate.borrow())
    }

    async fn differences(&self, key: &Key, prepared: &Prepared) -> Result<(Vec<String>, Seen), ConsulError> {
        let seen = Seen::ask(&self.client, key).await?;
        let differences = seen.differences(key, &prepared.http);
        let kept = self.kept.borrow();
        let known = kept.get(key).is_some_and(|(hash, kept)| *hash == prepared.hash && *kept == differences);
        Ok((if known { Vec::new() } else { differences }, seen))
    }

    /// With `again`, it is also sent when nothing differs.
    async fn make(&self, entry: &Entry, again: bool) -> Result<Outcome, ConsulError> {
        let key = &entry.key;
        let (prepared, differences, seen) = loop {
            let prepared = self.prepared(entry)?;
            let (differences, seen) = self.differences(key, &prepared).await?;
            if differences.is_empty() && !again {
                return Ok(Outcome { differences, warnings: prepared.warnings });
            }
            let query =
                scoped(Query::new("/v1/agent/service/register"), key).with("replace-existing-checks", "true");
            match self.client.put(&query, Some(&prepared.http)).await {
                Ok(_) => break (prepared, differences, seen),
                // Every turn learns one more field of a short list, so this ends.
                Err(ConsulError::UnknownField { field, .. })
                    if self.gate.borrow_mut().learn(&field, &entry.service) => {}
                Err(error) => return Err(error),
            }
        };
        // The checks are replaced, and with them goes the one that says "maintenance".
        if let Some(reason) = &seen.maintenance {
            maintain(&self.client, key, Some(reason)).await?;
        }
        let mut warnings = prepared.warnings;
        let left = Seen::ask(&self.client, key).await?.differences(key, &prepared.http);
        if left.is_empty() {
            self.kept.borrow_mut().remove(key);
        } else {
            let service = key.id.to_string();
            warnings.push(ConsulWarning::Kept { service, differences: left.clone() }.into());
            self.kept.borrow_mut().insert(key.clone(), (prepared.hash, left));
        }
        Ok(Outcome { differences, warnings })
    }

    async fn take_out(&self, key: &Key) -> Result<bool, ConsulError> {
        self.kept.borrow_mut().remove(key);
        let mut any = false;
        // The agent takes its sidecar along, unless that was registered by itself.
        for id in [key.id.to_string(), key.sidecar()] {
            if Seen::ask(&self.client, key).await?.services.contains_key(&id) {
                let path = format!("/v1/agent/service/deregister/{}", segment(&id));
                match self.client.put(&scoped(Query::new(path), key), None).await {
                    Ok(_) | Err(ConsulError::Missing { .. }) => any = true,
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(any)
    }
}

impl Registry for AgentRegistry {
    fn name(&self) -> &'static str {
        "agent"
    }

    fn observe<'a>(&'a self, entry: &'a Entry) -> LocalFuture<'a, Result<Vec<String>, Fault>> {
        Box::pin(async move {
            let prepared = self.prepared(entry)?;
            Ok(self.differences(&entry.key, &prepared).await?.0)
        })
    }

    fn register<'a>(&'a self, entry: &'a Entry) -> LocalFuture<'a, Result<Outcome, Fault>> {
        Box::pin(async move { Ok(self.make(entry, false).await?) })
    }

    fn renew<'a>(&'a self, entry: &'a Entry) -> LocalFuture<'a, Result<Outcome, Fault>> {
        Box::pin(async move { Ok(self.make(entry, true).await?) })
    }

    fn deregister<'a>(&'a self, key: &'a Key) -> LocalFuture<'a, Result<bool, Fault>> {
        Box::pin(async move { Ok(self.take_out(key).await?) })
    }

    fn set_health<'a>(&'a self, key: &'a Key, health: &'a Health) -> LocalFuture<'a, Result<(), Fault>> {
        Box::pin(async move { Ok(set_maintenance(&self.client, key, health).await?) })
    }

    fn list(&self) -> LocalFuture<'_, Result<Vec<Key>, Fault>> {
        Box::pin(async move { Ok(marked(&self.client).await?) })
    }
}

/// Stands before the reason of a maintenance that is enmesh's, so that one of an operator's is left
/// alone.
const OURS: &str = "enmesh: ";

/// Puts the service into maintenance, or takes it out of ours. The sidecar follows, since one of its
/// checks is the service's health.
pub(super) async fn set_maintenance(client: &Client, key: &Key, health: &Health) -> Result<(), ConsulError> {
    let seen = Seen::ask(client, key).await?;
    if !seen.services.contains_key(key.id.as_str()) {
        // Nothing to do would look as if it had been told.
        let what = format!("the service {} at the agent", key.id);
        return Err(ConsulError::Missing { what, why: String::new() });
    }
    match (health, seen.maintenance) {
        (Health::Passing, Some(reason)) if reason.starts_with(OURS) => maintain(client, key, None).await,
        (Health::Critical(reason), None) => maintain(client, key, Some(&format!("{OURS}{reason}"))).await,
        (Health::Passing | Health::Critical(_), _) => Ok(()),
    }
}

/// Maintenance with a reason, or none.
async fn maintain(client: &Client, key: &Key, reason: Option<&str>) -> Result<(), ConsulError> {
    let path = format!("/v1/agent/service/maintenance/{}", segment(key.id.as_str()));
    let query = scoped(Query::new(path), key).with("enable", reason.is_some().to_string());
    client.put(&query.with_some("reason", reason), None).await.map(drop)
}

/// The services at the agent that have enmesh's mark, without sidecars.
pub(super) async fn marked(client: &Client) -> Result<Vec<Key>, ConsulError> {
    let answer = client.get(&Query::new("/v1/agent/services")).await?;
    let text = |service: &Value, field: &str| service.get(field).and_then(Value::as_str).map(str::to_owned);
    let key = |(id, service): (&String, &Value)| {
        let is_proxy = text(service, "Kind").is_some_and(|kind| !kind.is_empty());
        let known = |scope: Option<String>| scope.filter(|it| !it.is_empty() && it != "default");
        (!is_proxy && mark_of(service).is_some()).then(|| {
            let (namespace, partition) =
                (known(text(service, "Namespace")), known(text(service, "Partition")));
            id.parse().ok().map(|id| Key { id, namespace, partition })
        })?
    };
    Ok(answer.body.as_object().into_iter().flatten().filter_map(key).collect())
}

fn scoped(query: Query, key: &Key) -> Query {
    query.with_some("ns", key.namespace.as_deref()).with_some("partition", key.partition.as_deref())
}

/// What the agent has of one service.
pub(super) struct Seen {
    /// The service and its sidecar, by id, as they were registered. (`/v1/agent/service/:id` would
    /// mix the cluster's defaults in, which would look like a difference for ever.)
    services: BTreeMap<String, Value>,
    /// Ids of checks, by the service's id.
    checks: BTreeMap<String, BTreeSet<String>>,
    /// Why the service is in maintenance.
    maintenance: Option<String>,
}

impl Seen {
    pub async fn ask(client: &Client, key: &Key) -> Result<Self, ConsulError> {
        let (id, sidecar) = (key.id.as_str(), key.sidecar());
        let filter = |field: &str| format!("{field} == \"{id}\" or {field} == \"{sidecar}\"");
        let services = scoped(Query::new("/v1/agent/services").with("filter", filter("ID")), key);
        let checks = scoped(Query::new("/v1/agent/checks").with("filter", filter("ServiceID")), key);
        let (services, checks) = (client.get(&services).await?.body, client.get(&checks).await?.body);
        let mut seen = Seen {
            services: services
                .as_object()
                .into_iter()
                .flatten()
                .map(|(id, it)| (id.clone(), it.clone()))
                .collect(),
            checks: BTreeMap::new(),
            maintenance: None,
        };
        let maintenance = maintenance_check(id);
        for (check, fields) in checks.as_object().into_iter().flatten() {
            let text = |field| fields.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
            if *check == maintenance {
                seen.maintenance = Some(text("Notes"));
            }
            seen.checks.entry(text("ServiceID")).or_default().insert(check.clone());
        }
        Ok(seen)
    }

    /// The mark that the service carries.
    pub fn mark(&self, key: &Key) -> Option<&str> {
        self.services.get(key.id.as_str()).and_then(mark_of)
    }

    fn differences(&self, key: &Key, wanted: &Value) -> Vec<String> {
        let id = key.id.to_string();
        let mut lines = self.of_one(&id, wanted, &check_ids(&id, wanted));
        if let Some(sidecar) = wanted.pointer("/Connect/SidecarService") {
            let id = key.sidecar();
            lines.extend(self.of_one(&id, &expanded(sidecar, wanted), &sidecar_check_ids(&id, sidecar)));
        }
        lines
    }

    fn of_one(&self, id: &str, wanted: &Value, ids: &BTreeSet<String>) -> Vec<String> {
        let Some(is) = self.services.get(id) else { return vec![format!("+ service {id}")] };
        let mut lines = fields(id, wanted, is);
        lines.extend(checks(ids, self.checks.get(id).unwrap_or(&BTreeSet::new())));
        lines
    }
}

/// What the agent makes of `sidecar`, as far as it matters here: name, destination and mark.
fn expanded(sidecar: &Value, service: &Value) -> Value {
    let mut sidecar = sidecar.clone();
    let name = service.get("Name").and_then(Value::as_str).unwrap_or_default();
    if let Some(fields) = sidecar.as_object_mut() {
        fields.entry("Name").or_insert_with(|| format!("{name}-sidecar-proxy").into());
        if let Some(mark) = service.get("Meta").and_then(|meta| meta.get(MARK)) {
            fields.entry("Meta").or_insert_with(|| serde_json::json!({ MARK: mark }));
        }
        let proxy = fields.entry("Proxy").or_insert_with(|| Value::Object(serde_json::Map::new()));
        if let Some(proxy) = proxy.as_object_mut() {
            proxy.entry("DestinationServiceName").or_insert_with(|| name.into());
        }
    }
    sidecar
}
