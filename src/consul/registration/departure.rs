//! Services on their way out of the catalog. An agent takes them out of itself at once and tells the
//! servers afterwards, with the token that each service came with; that has to be valid until then.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use super::registry::Key;
use crate::consul::{Client, ConsulError, Query, segment};

/// How long an agent may take to tell the servers. It does so within a second when it can.
const LIMIT: Duration = Duration::from_secs(10);
/// How often the catalog is looked at meanwhile.
const LOOK: Duration = Duration::from_millis(100);

/// What the catalog had before services were taken out at the agent.
#[derive(Debug)]
pub struct Departure {
    client: Client,
    /// By the service's id: its name, and the nodes that had it. Which of them is the agent's, not every
    /// token may ask.
    before: BTreeMap<String, (String, BTreeSet<String>)>,
}

impl Departure {
    /// Looks at the services `keys` of the agent, which are about to be taken out.
    ///
    /// # Errors
    /// Consul cannot be asked.
    pub async fn of(client: &Client, keys: &BTreeSet<Key>) -> Result<Self, ConsulError> {
        let at_agent = client.get(&Query::new("/v1/agent/services")).await?.body;
        let mut before = BTreeMap::new();
        for id in keys.iter().flat_map(|key| [key.id.to_string(), key.sidecar()]) {
            let name = at_agent.get(&id).and_then(|service| service.get("Service")).and_then(Value::as_str);
            let Some(name) = name else { continue };
            let nodes = nodes(client, &id, name).await?;
            if !nodes.is_empty() {
                before.insert(id, (name.to_owned(), nodes));
            }
        }
        Ok(Departure { client: client.clone(), before })
    }

    /// Waits until the catalog has lost them, for a while. Returns the ids of those that it still has.
    ///
    /// # Errors
    /// Consul cannot be asked.
    pub async fn wait(mut self) -> Result<Vec<String>, ConsulError> {
        let end = Instant::now() + LIMIT;
        loop {
            let mut left = BTreeMap::new();
            for (id, (name, before)) in self.before {
                if nodes(&self.client, &id, &name).await?.is_superset(&before) {
                    left.insert(id, (name, before));
                }
            }
            if left.is_empty() || Instant::now() >= end {
                return Ok(left.into_keys().collect());
            }
            self.before = left;
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// The nodes that have the service `id` in the catalog.
async fn nodes(client: &Client, id: &str, name: &str) -> Result<BTreeSet<String>, ConsulError> {
    let query = Query::new(format!("/v1/catalog/service/{}", segment(name)));
    let found = client.get(&query.with("filter", format!("ServiceID == {id:?}"))).await?.body;
    let node = |instance: &Value| instance.get("Node").and_then(Value::as_str).map(str::to_owned);
    Ok(found.as_array().into_iter().flatten().filter_map(node).collect())
}
