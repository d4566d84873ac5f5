//! Getting services registered, however it is done.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::definition::http_form;
use super::validate::problems;
use crate::base::{Fault, LocalFuture};
use crate::config::value::ServiceId;
use crate::consul::{ConsulError, Gate};
use crate::plan::ServicePlan;

/// The key of metadata that says what a registration was made from. It tells whether what is there
/// is what would be sent now, also where Consul does not give all of it back (the definitions of
/// checks), and whether it was enmesh that sent it.
pub(super) const MARK: &str = "enmesh-hash";

/// Which registration.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Key {
    /// The service's id.
    pub id: ServiceId,
    /// Its namespace, in Consul Enterprise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Its admin partition, in Consul Enterprise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition: Option<String>,
}

impl Key {
    /// A service of the default namespace.
    pub fn new(id: ServiceId) -> Self {
        Key { id, namespace: None, partition: None }
    }

    /// The id that its sidecar has in Consul.
    pub fn sidecar(&self) -> String {
        format!("{}-sidecar-proxy", self.id)
    }
}

/// What should be registered.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Which registration.
    pub key: Key,
    /// What stands inside `{"service": …}` of a definition file, complete: with id, name, addresses
    /// and the sidecar's port.
    pub service: Value,
}

impl Entry {
    /// The registration of a planned service.
    pub fn of(plan: &ServicePlan) -> Self {
        Entry::new(plan.id.clone(), plan.registration.get("service").cloned().unwrap_or_default())
    }

    /// The registration of `id` from what stands inside `{"service": …}`.
    pub fn new(id: ServiceId, service: Value) -> Self {
        let text =
            |key| service.get(key).and_then(Value::as_str).filter(|it| *it != "default").map(str::to_owned);
        let key = Key { id, namespace: text("namespace"), partition: text("partition") };
        Entry { key, service }
    }
}

/// What [`Registry::register`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// What differed, one line each (`+` missing, `-` too much, `~` otherwise); empty when nothing
    /// did, and then nothing was written.
    pub differences: Vec<String>,
    /// What a person should know.
    pub warnings: Vec<Fault>,
}

/// How a service is, as enmesh tells Consul.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// It may be used; with an agent its own checks decide further.
    Passing,
    /// It must not be used, and why.
    Critical(String),
}

/// A way of registering services. All of it is idempotent.
pub trait Registry {
    /// Which one it is: `agent`, `catalog`, `file`, or `recorded`.
    fn name(&self) -> &'static str;

    /// What differs between what should be registered and what is, one line each; writes nothing.
    fn observe<'a>(&'a self, entry: &'a Entry) -> LocalFuture<'a, Result<Vec<String>, Fault>>;

    /// Makes the registration what it should be. Looks first; writes only when something differs.
    fn register<'a>(&'a self, entry: &'a Entry) -> LocalFuture<'a, Result<Outcome, Fault>>;

    /// As [`Registry::register`], for a token that is not the one of before. An agent tells the servers
    /// of a service, and of its checks, with the token that the service came with: it is sent again
    /// although nothing differs, or the agent goes on with a token that ends.
    fn renew<'a>(&'a self, entry: &'a Entry) -> LocalFuture<'a, Result<Outcome, Fault>> {
        self.register(entry)
    }

    /// Takes the service and its sidecar out. Returns whether there was anything.
    fn deregister<'a>(&'a self, key: &'a Key) -> LocalFuture<'a, Result<bool, Fault>>;

    /// Tells others to use the service or not to.
    fn set_health<'a>(&'a self, key: &'a Key, health: &'a Health) -> LocalFuture<'a, Result<(), Fault>>;

    /// The services that enmesh has registered here, by id.
    fn list(&self) -> LocalFuture<'_, Result<Vec<Key>, Fault>>;
}

/// A registration that is ready to be sent.
#[derive(Debug, Clone)]
pub(super) struct Prepared {
    /// In the form of definition files, gated, without the mark.
    pub file: Value,
    /// In the form of the HTTP API, gated, with the mark.
    pub http: Value,
    /// The mark.
    pub hash: String,
    /// What the gate took out.
    pub warnings: Vec<Fault>,
}

impl Prepared {
    /// # Errors
    /// `ENM-K040` Consul would not take it.
    pub fn new(entry: &Entry, gate: &Gate) -> Result<Self, ConsulError> {
        let (file, warnings) = gate.prune(&entry.service);
        let mut http = http_form(&file);
        http.sort_all_objects();
        let hash = digest(&http);
        mark(&mut http, "Meta", &hash);
        if let Some(sidecar) =
            http.pointer_mut("/Connect/SidecarService").filter(|it| it.get("Meta").is_some())
        {
            mark(sidecar, "Meta", &hash);
        }
        let why: Vec<String> = problems(entry.key.id.as_str(), &http)
            .into_iter()
            .map(|problem| match problem {
                ConsulError::Invalid { why, .. } => why,
                other => other.to_string(),
            })
            .collect();
        if !why.is_empty() {
            return Err(ConsulError::Invalid { service: entry.key.id.to_string(), why: why.join("; ") });
        }
        Ok(Prepared { file, http, hash, warnings })
    }
}

/// The first 16 hexadecimal digits of the SHA-256 of `value`, whose keys are sorted.
pub(in crate::consul) fn digest(value: &Value) -> String {
    let mut hex = String::new();
    for byte in Sha256::digest(value.to_string()).iter().take(8) {
        let _ = write!(hex, "{byte:02x}");
    }
    hex
}

/// Puts the mark into the metadata of `service`, which stands under `key`.
pub(super) fn mark(service: &mut Value, key: &str, hash: &str) {
    if let Some(fields) = service.as_object_mut() {
        let meta = fields.entry(key).or_insert_with(|| Value::Object(Map::new()));
        if let Some(meta) = meta.as_object_mut() {
            meta.insert(MARK.to_owned(), json!(hash));
        }
        fields.sort_keys();
    }
}

/// The mark of a service as Consul gives it back.
pub(super) fn mark_of(service: &Value) -> Option<&str> {
    service.get("Meta")?.get(MARK)?.as_str()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(service: Value) -> Entry {
        Entry::new("api".parse().unwrap(), service)
    }

    #[test]
    fn the_mark_changes_with_what_is_sent_and_with_nothing_else() {
        let service = json!({ "name": "api", "id": "api", "port": 80 });
        let prepared = |service: Value, gate: &Gate| Prepared::new(&entry(service), gate).unwrap();
        let any = Gate::default();
        let first = prepared(service, &any);
        assert_eq!(prepared(json!({ "port": 80, "id": "api", "name": "api" }), &any).hash, first.hash);
        assert_eq!(mark_of(&first.http), Some(first.hash.as_str()));
        assert_ne!(prepared(json!({ "name": "api", "id": "api", "port": 81 }), &any).hash, first.hash);
        // A server that was updated gets what was held back before.
        let local = json!({ "name": "api", "id": "api", "port": 80, "locality": { "region": "eu" } });
        let old = Gate::new("1.8.7".parse().ok(), false);
        assert_eq!(prepared(local.clone(), &old).hash, first.hash);
        assert_ne!(prepared(local, &Gate::new("1.16.0".parse().ok(), false)).hash, first.hash);
    }

    #[test]
    fn a_bad_one_is_not_sent_and_everything_is_said() {
        let service = json!({ "name": "", "id": "api", "address": "0.0.0.0" });
        let error = Prepared::new(&entry(service), &Gate::default()).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("no name") && text.contains("0.0.0.0"), "{text}");
    }

    #[test]
    fn the_default_namespace_is_no_namespace() {
        let service = json!({ "name": "api", "namespace": "default", "partition": "p" });
        let key = entry(service).key;
        assert_eq!((key.namespace, key.partition.as_deref()), (None, Some("p")));
    }
}
