//! What Consul holds that enmesh put there without an agent, by owner, in few questions: one for the
//! nodes, one for the checks (each of our services has one, so they tell the names), and one a name.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::error::ReapError;
use super::{AT_ONCE, Asked};
use crate::base::Fault;
use crate::consul::lease::{EVERY, OWNER, RENEWED};
use crate::consul::{ConsulError, NODE_MARK, Query, segment};

/// How often a lease is renewed that does not say it.
const USUAL: Duration = Duration::from_secs(600);
/// What a sidecar's service has at the end of its id and its name.
pub(super) const SIDECAR: &str = "-sidecar-proxy";
/// What Consul puts before the metadata of a login.
const LOGIN: &str = "token created via login: ";

/// Everything, by owner.
#[derive(Debug, Default)]
pub(super) struct Holdings {
    pub owners: BTreeMap<String, Holding>,
    pub warnings: Vec<Fault>,
}

/// What one owner has.
#[derive(Debug, Default)]
pub(super) struct Holding {
    pub services: Vec<Service>,
    /// Nodes that enmesh made for him.
    pub nodes: BTreeSet<String>,
    /// Accessors of his logins.
    pub tokens: BTreeSet<String>,
    /// How often he renews his lease.
    pub every: Duration,
    /// Is another one whenever he has said that he is there.
    pub mark: String,
}

/// A service with a lease.
#[derive(Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Service {
    pub node: String,
    pub id: String,
    pub renewed: String,
    /// Its version.
    pub index: u64,
}

/// # Errors
/// Consul does not answer, or not to us.
pub(super) async fn read(consul: &Asked, auth_methods: &[String]) -> Result<Holdings, ConsulError> {
    let mut holdings = Holdings::default();
    let nodes =
        consul.get(&Query::new("/v1/catalog/nodes").with("node-meta", format!("{NODE_MARK}:true"))).await?;
    for node in list(&nodes) {
        if let (Some(owner), Some(name)) =
            (node.pointer(&format!("/Meta/{OWNER}")).and_then(Value::as_str), text(node, "Node"))
        {
            holdings.of(owner).nodes.insert(name.to_owned());
        }
    }
    let names = names(consul).await?;
    let asked = names.iter().map(|name| async move {
        let query = Query::new(format!("/v1/catalog/service/{}", segment(name)));
        consul.get(&query.with("filter", format!("\"{OWNER}\" in ServiceMeta"))).await
    });
    let mut asked = stream::iter(asked).buffer_unordered(AT_ONCE);
    while let Some(instances) = asked.next().await {
        list(&instances?).iter().for_each(|instance| holdings.add(instance));
    }
    for method in auth_methods {
        match tokens(consul, method).await {
            Ok(tokens) => {
                for (owner, accessor) in tokens {
                    holdings.of(&owner).tokens.insert(accessor);
                }
            }
            Err(error) => {
                let warning = ReapError::Tokens { method: method.clone(), why: error.to_string() };
                holdings.warnings.push(warning.into());
            }
        }
    }
    holdings.owners.values_mut().for_each(Holding::finish);
    Ok(holdings)
}

impl Holdings {
    fn of(&mut self, owner: &str) -> &mut Holding {
        let new = || Holding { every: USUAL, ..Holding::default() };
        self.owners.entry(owner.to_owned()).or_insert_with(new)
    }

    fn add(&mut self, instance: &Value) {
        let meta = |key: &str| instance.get("ServiceMeta")?.get(key)?.as_str();
        let (Some(owner), Some(node), Some(id)) =
            (meta(OWNER), text(instance, "Node"), text(instance, "ServiceID"))
        else {
            return;
        };
        let every = meta(EVERY).and_then(|text| text.parse().ok()).filter(|seconds| *seconds > 0);
        let service = Service {
            node: node.to_owned(),
            id: id.to_owned(),
            renewed: meta(RENEWED).unwrap_or_default().to_owned(),
            index: instance.get("ModifyIndex").and_then(Value::as_u64).unwrap_or(0),
        };
        let holding = self.of(owner);
        // Of several, the slowest counts.
        let every = every.map_or(USUAL, Duration::from_secs);
        holding.every = if holding.services.is_empty() { every } else { holding.every.max(every) };
        holding.services.push(service);
    }
}

impl Holding {
    fn finish(&mut self) {
        self.services.sort();
        let mut hash = Sha256::new();
        for service in &self.services {
            hash.update(format!("{} {} {} {}\n", service.node, service.id, service.renewed, service.index));
        }
        if self.services.is_empty() {
            hash.update(format!("{:?} {:?}", self.nodes, self.tokens));
        }
        self.mark = hash.finalize().iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    }
}

/// The names of the services that have a check of enmesh's, without sidecars.
async fn names(consul: &Asked) -> Result<BTreeSet<String>, ConsulError> {
    let query = Query::new("/v1/health/state/any");
    let checks = consul.get(&query.with("filter", "CheckID matches \"^enmesh:[^:]+$\"")).await?;
    let names = list(&checks).iter().filter_map(|check| text(check, "ServiceName"));
    Ok(names.filter(|name| !name.ends_with(SIDECAR)).map(str::to_owned).collect())
}

/// Owner and accessor of each login at `method` that says whose it is.
async fn tokens(consul: &Asked, method: &str) -> Result<Vec<(String, String)>, ConsulError> {
    let found = consul.get(&Query::new("/v1/acl/tokens").with("authmethod", method)).await?;
    let of = |token: &Value| {
        let meta: Value = serde_json::from_str(text(token, "Description")?.strip_prefix(LOGIN)?).ok()?;
        Some((text(&meta, OWNER)?.to_owned(), text(token, "AccessorID")?.to_owned()))
    };
    // Releases that do not know the parameter (before 1.8) list all.
    let ours = list(&found).iter().filter(|token| text(token, "AuthMethod") == Some(method));
    Ok(ours.filter_map(of).collect())
}

pub(super) fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

pub(super) fn text<'v>(value: &'v Value, key: &str) -> Option<&'v str> {
    value.get(key)?.as_str()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn instance(owner: &str, renewed: &str, index: u64) -> Value {
        json!({
            "Node": "n", "ServiceID": "api", "ModifyIndex": index,
            "ServiceMeta": { OWNER: owner, RENEWED: renewed, EVERY: "60" },
        })
    }

    #[test]
    fn any_word_of_the_owner_s_changes_the_mark() {
        let mark = |renewed: &str, index| {
            let mut holdings = Holdings::default();
            holdings.add(&instance("o", renewed, index));
            let mut holding = holdings.owners.remove("o").unwrap();
            holding.finish();
            assert_eq!(holding.every, Duration::from_secs(60));
            holding.mark
        };
        let first = mark("a", 1);
        assert_eq!(mark("a", 1), first);
        assert_ne!(mark("b", 1), first);
        assert_ne!(mark("a", 2), first);
    }

    #[test]
    fn what_has_no_owner_is_nobody_s() {
        let mut holdings = Holdings::default();
        for bad in [json!({}), json!({ "Node": "n", "ServiceID": "x", "ServiceMeta": {} }), json!(7)] {
            holdings.add(&bad);
        }
        assert!(holdings.owners.is_empty());
    }
}
