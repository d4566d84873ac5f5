//! Takes out what one owner has, if it is still what was judged.
//!
//! All services of a node go in one transaction, in which each has to be of the version that was seen:
//! an owner who says one word meanwhile keeps everything. A node goes only when it is enmesh's and
//! nothing else is on it.

use serde_json::{Value, json};

use super::Asked;
use super::error::ReapError;
use super::holdings::{Holding, SIDECAR, list, text};
use super::lock::Lock;
use crate::base::Fault;
use crate::consul::lease::OWNER;
use crate::consul::{ConsulError, NODE_MARK, Query, segment};

/// How many steps a transaction may have, by Consul's own limit.
const STEPS: usize = 64;

/// What went.
#[derive(Debug, Default)]
pub(super) struct Removed {
    pub services: Vec<String>,
    pub nodes: Vec<String>,
    pub tokens: usize,
    pub faults: Vec<Fault>,
    /// Whether it stays, because its owner was heard at the last moment.
    pub came_back: bool,
}

/// Takes out what `owner` has; never the login `own`.
pub(super) async fn owner(
    consul: &Asked,
    lock: &Lock,
    owner: &str,
    holding: &Holding,
    own: Option<&str>,
) -> Removed {
    let mut removed = Removed::default();
    let of_services = holding.services.iter().map(|service| &service.node);
    let nodes: std::collections::BTreeSet<&String> = of_services.chain(&holding.nodes).collect();
    for node in nodes {
        match on_node(consul, lock, owner, holding, node).await {
            Ok(Some((services, with_node))) => {
                removed.services.extend(services);
                removed.nodes.extend(with_node.then(|| node.clone()));
            }
            Ok(None) => removed.came_back = true,
            Err(error) => {
                removed.faults.push(left(format!("what is on the node {node}"), owner, &error));
            }
        }
    }
    // Whoever is heard of again goes on with his login.
    if removed.came_back || !removed.faults.is_empty() {
        return removed;
    }
    for accessor in holding.tokens.iter().filter(|accessor| Some(accessor.as_str()) != own) {
        match consul.delete(&Query::new(format!("/v1/acl/token/{}", segment(accessor)))).await {
            Ok(()) | Err(ConsulError::Missing { .. }) => removed.tokens += 1,
            Err(error) => removed.faults.push(left(format!("the login {accessor}"), owner, &error)),
        }
    }
    removed
}

fn left(what: String, owner: &str, error: &ConsulError) -> Fault {
    ReapError::Left { what, owner: owner.to_owned(), why: error.to_string() }.into()
}

/// What went from one node, and whether the node did; `None` when its owner was heard meanwhile.
async fn on_node(
    consul: &Asked,
    lock: &Lock,
    owner: &str,
    holding: &Holding,
    name: &str,
) -> Result<Option<(Vec<String>, bool)>, ConsulError> {
    let seen = consul.get(&Query::new(format!("/v1/catalog/node-services/{}", segment(name)))).await?;
    let node = seen.get("Node").filter(|node| node.is_object());
    // Somebody else has taken it out.
    let Some(node) = node else { return Ok(Some((Vec::new(), false))) };
    let all = seen.get("Services").map_or(&[] as &[Value], list);
    let theirs: Vec<&Value> = all.iter().filter(|service| is_of(service, owner, all)).collect();
    let judged = |service: &&&Value| {
        let (id, index) = (text(service, "ID"), service.get("ModifyIndex").and_then(Value::as_u64));
        holding
            .services
            .iter()
            .any(|it| it.node == name && Some(it.id.as_str()) == id && Some(it.index) == index)
    };
    let leases = theirs.iter().filter(|service| meta(service, OWNER).is_some());
    if leases.clone().filter(judged).count() != leases.count() {
        return Ok(None);
    }
    let marked = node.get("Meta").and_then(|meta| meta.get(NODE_MARK)).is_some();
    let goes = marked && theirs.len() == all.len();
    let steps: Vec<Value> = theirs.iter().map(|service| delete(service, name)).collect();
    let ids = theirs.iter().filter_map(|service| text(service, "ID").map(str::to_owned)).collect();
    let last = goes.then(|| {
        json!({ "Node": { "Verb": "delete-cas", "Node": { "Node": name, "ModifyIndex": node.get("ModifyIndex") } } })
    });
    match transaction(consul, lock, steps.clone(), last.clone()).await {
        // A token that may write services only leaves the node, empty as it is.
        Err(ConsulError::Denied { .. }) if last.is_some() && !steps.is_empty() => {
            let done = transaction(consul, lock, steps, None).await?;
            Ok(done.then_some((ids, false)))
        }
        done => Ok(done?.then_some((ids, goes))),
    }
}

/// Whether a service is `owner`'s: by its lease, or as the sidecar of one.
fn is_of(service: &Value, owner: &str, all: &[Value]) -> bool {
    let own = |service: &Value| meta(service, OWNER) == Some(owner);
    let of = text(service, "ID").and_then(|id| id.strip_suffix(SIDECAR));
    own(service) || of.is_some_and(|of| all.iter().any(|other| text(other, "ID") == Some(of) && own(other)))
}

fn meta<'v>(service: &'v Value, key: &str) -> Option<&'v str> {
    service.get("Meta")?.get(key)?.as_str()
}

fn delete(service: &Value, node: &str) -> Value {
    let one = json!({
        "ID": service.get("ID"), "Service": service.get("Service"), "ModifyIndex": service.get("ModifyIndex"),
    });
    json!({ "Service": { "Verb": "delete-cas", "Node": node, "Service": one } })
}

/// All of it or nothing; returns whether. More than one transaction has room for goes in several, the
/// node with the last.
async fn transaction(
    consul: &Asked,
    lock: &Lock,
    steps: Vec<Value>,
    last: Option<Value>,
) -> Result<bool, ConsulError> {
    let steps: Vec<Value> = steps.into_iter().chain(last).collect();
    for part in steps.chunks(STEPS - 1) {
        let part: Vec<Value> = std::iter::once(lock.held()).chain(part.iter().cloned()).collect();
        match consul.put(&Query::new("/v1/txn"), &Value::Array(part)).await {
            Ok(_) => {}
            Err(ConsulError::Failed { status: 409, .. }) => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sidecar_is_its_service_s_owner_s() {
        let own = |id: &str, owner: &str| json!({ "ID": id, "Meta": { OWNER: owner } });
        let plain = |id: &str| json!({ "ID": id, "Meta": {} });
        let all = [
            own("api", "a"),
            plain("api-sidecar-proxy"),
            own("web", "b"),
            plain("web-sidecar-proxy"),
            plain("db"),
        ];
        let of_a: Vec<_> =
            all.iter().filter(|it| is_of(it, "a", &all)).filter_map(|it| text(it, "ID")).collect();
        assert_eq!(of_a, ["api", "api-sidecar-proxy"]);
    }
}
