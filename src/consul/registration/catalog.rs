//! Registration in the catalog, without an agent. Nobody checks health there and nothing expires:
//! what enmesh says stays until it says something else.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::rc::Rc;

use serde_json::{Map, Value, json};

use super::compare::fields;
use super::lease::{Lease, OWNER, RENEWED};
use super::registry::{Key, Prepared, mark_of};
use crate::base::{Fault, LocalFuture};
use crate::consul::{
    Client, ConsulError, ConsulWarning, Entry, Gate, Health, Outcome, Query, Registry, segment,
};

/// The key of a node's metadata that says that enmesh made it.
pub const NODE_MARK: &str = "enmesh-node";

/// The node that services of this host are put under. It stands for no agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its name, unique in the datacenter.
    pub name: String,
    /// Its address.
    pub address: IpAddr,
}

/// The catalog's HTTP API.
#[derive(Debug)]
pub struct CatalogRegistry {
    pub(super) client: Client,
    gate: RefCell<Gate>,
    pub(super) node: Node,
    lease: Option<Rc<Lease>>,
}

impl CatalogRegistry {
    /// For the servers that `client` reaches and that take what `gate` lets through.
    pub fn new(client: Client, gate: Gate, node: Node) -> Self {
        CatalogRegistry { client, gate: RefCell::new(gate), node, lease: None }
    }

    /// The same, for services whose lease `lease` is.
    #[must_use]
    pub fn with_lease(self, lease: Rc<Lease>) -> Self {
        CatalogRegistry { lease: Some(lease), ..self }
    }

    fn wanted(&self, entry: &Entry, seen: &Seen) -> Result<Wanted, ConsulError> {
        let prepared = Prepared::new(entry, &self.gate.borrow())?;
        let mut warnings = prepared.warnings;
        let mut services = vec![service(&prepared.http)];
        if let (Some(lease), Some(service)) = (&self.lease, services.first_mut()) {
            let before = seen.services.get(&id_of(service)).and_then(|is| is.get("Meta"));
            if let Some(before) = before {
                lease.resume(before);
            }
            lease.mark(service, before);
        }
        match proxy(&entry.key, &prepared.http) {
            Some(proxy) => services.push(proxy),
            None => warnings.push(ConsulWarning::NoProxy { service: entry.key.id.to_string() }.into()),
        }
        Ok(Wanted { services, warnings })
    }

    async fn make(&self, entry: &Entry) -> Result<Outcome, ConsulError> {
        let mut seen = Seen::ask(&self.client, &self.node, &entry.key).await?;
        loop {
            let wanted = self.wanted(entry, &seen)?;
            let differences = seen.differences(&entry.key, &wanted);
            match self.write(&wanted, &mut seen, entry).await {
                Ok(()) => {
                    self.move_node(&seen).await?;
                    if let Some(lease) = &self.lease {
                        lease.written();
                    }
                    return Ok(Outcome { differences, warnings: wanted.warnings });
                }
                // Every turn learns one more field of a short list, so this ends.
                Err(ConsulError::UnknownField { field, .. })
                    if self.gate.borrow_mut().learn(&field, &entry.service) => {}
                Err(error) => return Err(error),
            }
        }
    }

    async fn write(&self, wanted: &Wanted, seen: &mut Seen, entry: &Entry) -> Result<(), ConsulError> {
        for service in &wanted.services {
            let id = id_of(service);
            if seen.of_one(service).is_empty() && !seen.is_renewed_by(service) {
                continue;
            }
            self.put(service, seen, &entry.key).await?;
            seen.node = true;
            seen.services.insert(id.clone(), service.clone());
            seen.checks.insert(check_id(&id));
        }
        let ids: BTreeSet<String> = wanted.services.iter().map(id_of).collect();
        for id in seen.services.keys().filter(|id| !ids.contains(*id)) {
            self.remove(id, &entry.key).await?;
        }
        Ok(())
    }

    async fn put(&self, service: &Value, seen: &Seen, key: &Key) -> Result<(), ConsulError> {
        let id = id_of(service);
        // A token for the service may not touch the node; a new service starts critical; the state of
        // one that is there is not touched.
        let owner = self.lease.as_ref().map(|lease| lease.owner());
        let mut meta = json!({ "synthetic-node": "true", NODE_MARK: "true" });
        if let (Some(meta), Some(owner)) = (meta.as_object_mut(), owner) {
            meta.insert(OWNER.to_owned(), json!(owner));
        }
        let meta = (!seen.node).then_some(meta);
        let new = !seen.checks.contains(&check_id(&id));
        let first = new.then(|| check(&id, &Health::Critical("not live yet".to_owned()), key));
        let body = json!({
            "Node": self.node.name,
            "Address": self.node.address,
            "SkipNodeUpdate": seen.node,
            "NodeMeta": meta,
            "Service": service,
            "Check": first,
        });
        match self.client.put(&Query::new("/v1/catalog/register"), Some(&body)).await {
            Ok(_) => Ok(()),
            Err(ConsulError::Denied { .. }) if !seen.node => {
                Err(ConsulError::Node { node: self.node.name.clone() })
            }
            Err(error) => Err(error),
        }
    }

    /// Says the node's address anew where this host has another one. Only of a node that enmesh made; who
    /// may not write nodes leaves it, since each service has the address as well.
    async fn move_node(&self, seen: &Seen) -> Result<(), ConsulError> {
        let Some((address, meta)) = &seen.ours else { return Ok(()) };
        if address.parse() == Ok(self.node.address) {
            return Ok(());
        }
        let body = json!({ "Node": self.node.name, "Address": self.node.address, "NodeMeta": meta });
        match self.client.put(&Query::new("/v1/catalog/register"), Some(&body)).await {
            Ok(_) | Err(ConsulError::Denied { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn remove(&self, id: &str, key: &Key) -> Result<(), ConsulError> {
        let mut body = json!({ "Node": self.node.name, "ServiceID": id });
        scope(&mut body, key);
        self.client.put(&Query::new("/v1/catalog/deregister"), Some(&body)).await.map(drop)
    }

    async fn take_out(&self, key: &Key) -> Result<bool, ConsulError> {
        let seen = Seen::ask(&self.client, &self.node, key).await?;
        // The sidecar first: while it is there, others dial it.
        for id in seen.services.keys().rev() {
            self.remove(id, key).await?;
        }
        Ok(!seen.services.is_empty())
    }

    /// Takes the node out when it is enmesh's and has nothing left. Returns whether it went; who may
    /// not write nodes leaves it, empty as it is.
    ///
    /// # Errors
    /// See [`ConsulError`].
    pub async fn remove_empty_node(&self) -> Result<bool, Fault> {
        let path = format!("/v1/catalog/node-services/{}", segment(&self.node.name));
        let body = self.client.get(&Query::new(path)).await.map_err(Fault::from)?.body;
        let ours = body.pointer("/Node/Meta/synthetic-node").and_then(Value::as_str) == Some("true");
        let empty = body.get("Services").and_then(Value::as_array).is_none_or(Vec::is_empty);
        if !ours || !empty {
            return Ok(false);
        }
        let body = json!({ "Node": self.node.name });
        match self.client.put(&Query::new("/v1/catalog/deregister"), Some(&body)).await {
            Ok(_) => Ok(true),
            Err(ConsulError::Denied { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    async fn tell(&self, key: &Key, health: &Health) -> Result<(), ConsulError> {
        let seen = Seen::ask(&self.client, &self.node, key).await?;
        if seen.services.is_empty() {
            let what = format!("the service {} of the node {}", key.id, self.node.name);
            return Err(ConsulError::Missing { what, why: String::new() });
        }
        // One call without a service changes all checks at once.
        let checks: Vec<Value> = seen.services.keys().map(|id| check(id, health, key)).collect();
        let body = json!({
            "Node": self.node.name, "Address": self.node.address, "SkipNodeUpdate": true, "Checks": checks,
        });
        self.client.put(&Query::new("/v1/catalog/register"), Some(&body)).await.map(drop)
    }
}

impl Registry for CatalogRegistry {
    fn name(&self) -> &'static str {
        "catalog"
    }

    fn observe<'a>(&'a self, entry: &'a Entry) -> LocalFuture<'a, Result<Vec<String>, Fault>> {
        Box::pin(async move {
            let seen = Seen::ask(&self.client, &self.node, &entry.key).await?;
            let wanted = self.wanted(entry, &seen)?;
            Ok(seen.differences(&entry.key, &wanted))
        })
    }

    fn register<'a>(&'a self, entry: &'a Entry) -> LocalFuture<'a, Result<Outcome, Fault>> {
        Box::pin(async move { Ok(self.make(entry).await?) })
    }

    fn deregister<'a>(&'a self, key: &'a Key) -> LocalFuture<'a, Result<bool, Fault>> {
        Box::pin(async move { Ok(self.take_out(key).await?) })
    }

    fn set_health<'a>(&'a self, key: &'a Key, health: &'a Health) -> LocalFuture<'a, Result<(), Fault>> {
        Box::pin(async move { Ok(self.tell(key, health).await?) })
    }

    fn list(&self) -> LocalFuture<'_, Result<Vec<Key>, Fault>> {
        Box::pin(async move {
            let services = services_of(&self.client, &self.node, None).await?.unwrap_or_default();
            let ours = services.iter().filter(|service| mark_of(service).is_some() && !is_proxy(service));
            Ok(ours.filter_map(|service| id_of(service).parse().ok()).map(Key::new).collect())
        })
    }
}

struct Wanted {
    /// The service, and its sidecar if others shall reach it.
    services: Vec<Value>,
    warnings: Vec<Fault>,
}

/// What the catalog has of one service.
struct Seen {
    /// Whether the node is there.
    node: bool,
    /// Its address and metadata, where it is a node that enmesh made.
    ours: Option<(String, Value)>,
    services: BTreeMap<String, Value>,
    /// Ids of checks of the node.
    checks: BTreeSet<String>,
}

impl Seen {
    async fn ask(client: &Client, node: &Node, key: &Key) -> Result<Self, ConsulError> {
        let (there, services) = node_of(client, node, Some(key)).await?;
        let path = format!("/v1/health/node/{}", segment(&node.name));
        let checks = client.get(&Query::new(path).with_some("ns", key.namespace.as_deref())).await?.body;
        let ids = checks.as_array().into_iter().flatten().filter_map(|check| check.get("CheckID")?.as_str());
        let mine = [key.id.to_string(), key.sidecar()];
        Ok(Seen {
            node: there.is_some(),
            ours: there.as_ref().and_then(ours),
            services: services
                .into_iter()
                .map(|service| (id_of(&service), service))
                .filter(|(id, _)| mine.contains(id))
                .collect(),
            checks: ids.map(str::to_owned).collect(),
        })
    }

    fn differences(&self, key: &Key, wanted: &Wanted) -> Vec<String> {
        let mut lines: Vec<String> =
            wanted.services.iter().flat_map(|service| self.of_one(service)).collect();
        let sidecar = key.sidecar();
        if self.services.contains_key(&sidecar) && !wanted.services.iter().any(|it| id_of(it) == sidecar) {
            lines.push(format!("- service {sidecar}"));
        }
        lines
    }

    /// Whether `wanted` says anew that its owner is there.
    fn is_renewed_by(&self, wanted: &Value) -> bool {
        let renewed = |service: &Value| service.get("Meta")?.get(RENEWED).cloned();
        renewed(wanted).is_some() && renewed(wanted) != self.services.get(&id_of(wanted)).and_then(renewed)
    }

    fn of_one(&self, wanted: &Value) -> Vec<String> {
        let id = id_of(wanted);
        let Some(is) = self.services.get(&id) else { return vec![format!("+ service {id}")] };
        let mut lines = fields(&id, wanted, is);
        // A renewal is no difference that anybody should hear of.
        lines.retain(|line| !line.ends_with(&format!("Meta.{RENEWED}")));
        let check = check_id(&id);
        if !self.checks.contains(&check) {
            lines.push(format!("+ check {check}"));
        }
        lines
    }
}

/// All services of the node; `None` when there is no such node.
pub(super) async fn services_of(
    client: &Client,
    node: &Node,
    key: Option<&Key>,
) -> Result<Option<Vec<Value>>, ConsulError> {
    let (there, services) = node_of(client, node, key).await?;
    Ok(there.map(|_| services))
}

/// The node, where it is there, and all its services.
async fn node_of(
    client: &Client,
    node: &Node,
    key: Option<&Key>,
) -> Result<(Option<Value>, Vec<Value>), ConsulError> {
    let path = format!("/v1/catalog/node-services/{}", segment(&node.name));
    let query = Query::new(path).with_some("ns", key.and_then(|key| key.namespace.as_deref()));
    let body = client.get(&query).await?.body;
    let there = body.get("Node").filter(|node| node.is_object()).cloned();
    let services = body.get("Services").and_then(Value::as_array).cloned().unwrap_or_default();
    Ok((there, services))
}

/// Address and metadata of a node that enmesh made.
fn ours(node: &Value) -> Option<(String, Value)> {
    let meta = node.get("Meta").filter(|meta| meta.get(NODE_MARK).is_some())?;
    Some((node.get("Address")?.as_str()?.to_owned(), meta.clone()))
}

pub(super) fn id_of(service: &Value) -> String {
    service.get("ID").and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn is_proxy(service: &Value) -> bool {
    service.get("Kind").and_then(Value::as_str).is_some_and(|kind| !kind.is_empty())
}

/// The id of the one check that enmesh keeps for a service.
pub(super) fn check_id(service: &str) -> String {
    format!("enmesh:{service}")
}

pub(super) fn check(service: &str, health: &Health, key: &Key) -> Value {
    let (status, output) = match health {
        Health::Passing => ("passing", ""),
        Health::Critical(why) => ("critical", why.as_str()),
    };
    check_of(service, status, output, key)
}

/// The check that enmesh keeps for a service, with what it says.
pub(super) fn check_of(service: &str, status: &str, output: &str, key: &Key) -> Value {
    let mut check = json!({
        "CheckID": check_id(service), "Name": "enmesh", "ServiceID": service, "Status": status, "Output": output,
    });
    scope(&mut check, key);
    check
}

pub(super) fn scope(body: &mut Value, key: &Key) {
    if let Some(fields) = body.as_object_mut() {
        for (name, value) in [("Namespace", &key.namespace), ("Partition", &key.partition)] {
            if let Some(value) = value {
                fields.insert(name.to_owned(), json!(value));
            }
        }
    }
}

/// The fields of a registration that the catalog has too, under the catalog's names.
fn service(http: &Value) -> Value {
    /// An agent's business: checks it runs, a sidecar it makes, the token it uses.
    const AGENT: [&str; 4] = ["Check", "Checks", "Connect", "Token"];
    let fields = http.as_object().into_iter().flatten().filter(|(key, _)| !AGENT.contains(&key.as_str()));
    let name = |key: &String| if key == "Name" { "Service".to_owned() } else { key.clone() };
    let mut fields: Map<String, Value> = fields.map(|(key, value)| (name(key), value.clone())).collect();
    fields.sort_keys();
    Value::Object(fields)
}

/// What an agent would make of the sidecar; `None` without a port that it could be reached at.
fn proxy(key: &Key, http: &Value) -> Option<Value> {
    let sidecar = http.pointer("/Connect/SidecarService")?;
    sidecar.get("Port").and_then(Value::as_u64).filter(|port| *port != 0)?;
    let name = http.get("Name").and_then(Value::as_str)?;
    let mut proxy = service(sidecar);
    let fields = proxy.as_object_mut()?;
    fields.insert("ID".to_owned(), json!(key.sidecar()));
    fields.insert("Service".to_owned(), json!(format!("{name}-sidecar-proxy")));
    fields.insert("Kind".to_owned(), json!("connect-proxy"));
    for inherited in ["Address", "Tags", "Meta", "Namespace", "Partition", "Locality"] {
        if let Some(value) = http.get(inherited) {
            fields.entry(inherited).or_insert_with(|| value.clone());
        }
    }
    let inner = fields.entry("Proxy").or_insert_with(|| Value::Object(Map::new())).as_object_mut()?;
    inner.insert("DestinationServiceName".to_owned(), json!(name));
    inner.insert("DestinationServiceID".to_owned(), json!(key.id));
    if let Some(port) = http.get("Port").filter(|port| port.as_u64() != Some(0)) {
        inner.entry("LocalServiceAddress").or_insert_with(|| json!("127.0.0.1"));
        inner.entry("LocalServicePort").or_insert_with(|| port.clone());
    }
    inner.sort_keys();
    fields.sort_keys();
    Some(proxy)
}
