//! Follows what Consul has of this host's services: notices when somebody else changes or loses it,
//! and when Consul itself was away and is back, maybe as another release.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rand::Rng;
use serde_json::Value;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::registry::{Key, MARK};
use crate::base::Fault;
use crate::consul::{Client, ConsulError, Query, Watch, segment};

/// One call waits this long for a change; Consul allows ten minutes.
const WAIT: Duration = Duration::from_secs(300);
/// The pause after the first failure; each further one is half as long again, and half is chance.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// The longest pause.
const LAST_PAUSE: Duration = Duration::from_secs(15);

/// What is followed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Topic {
    /// All services of a node that carry enmesh's mark, with one call: the catalog's node.
    Node(String),
    /// One registration at the agent, with the cluster's defaults mixed in: its id.
    Service(String),
}

impl Topic {
    /// The topic of the sidecar of `key` at the agent.
    pub fn sidecar(key: &Key) -> Self {
        Topic::Service(key.sidecar())
    }

    fn watch(&self) -> Watch {
        match self {
            Topic::Node(node) => {
                let query = Query::new(format!("/v1/catalog/node-services/{}", segment(node)));
                // Releases that do not know the parameter (before 1.12) ignore it.
                let query = query.with("merge-central-config", "true");
                Watch::by_index(query.with("filter", format!("\"{MARK}\" in Meta")), WAIT)
            }
            Topic::Service(id) => {
                Watch::by_hash(Query::new(format!("/v1/agent/service/{}", segment(id))), WAIT)
            }
        }
    }

    /// The registrations in an answer, by id.
    fn services(&self, body: &Value) -> BTreeMap<String, Value> {
        let one = |service: &Value| Some((service.get("ID")?.as_str()?.to_owned(), service.clone()));
        match self {
            Topic::Node(_) => {
                let list = body.get("Services").and_then(Value::as_array);
                list.into_iter().flatten().filter_map(one).collect()
            }
            Topic::Service(_) => one(body).into_iter().collect(),
        }
    }
}

/// The connection to Consul, as it was when last tried.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contact {
    /// Why there is none; `None` while there is.
    pub fault: Option<Fault>,
    /// Since when it is so, in seconds since 1970.
    pub since: u64,
}

/// The follower. Dropping it ends the calls.
#[derive(Debug)]
pub struct Presence {
    client: Client,
    shared: Rc<Shared>,
    followed: BTreeMap<Topic, Follower>,
}

#[derive(Debug, Default)]
struct Shared {
    /// What was seen last, by topic; `None` for what is not there.
    seen: RefCell<BTreeMap<Topic, Option<Value>>>,
    contact: RefCell<Contact>,
    /// How often contact came back after it was lost.
    returns: RefCell<u64>,
    changed: Notify,
}

#[derive(Debug)]
struct Follower(JoinHandle<()>);

impl Drop for Follower {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Presence {
    /// Follows nothing yet.
    pub fn new(client: Client) -> Self {
        Presence { client, shared: Rc::default(), followed: BTreeMap::new() }
    }

    /// Follows `topics` and nothing else from now on.
    pub fn follow(&mut self, topics: &BTreeSet<Topic>) {
        self.followed.retain(|topic, _| topics.contains(topic));
        self.shared.seen.borrow_mut().retain(|topic, _| topics.contains(topic));
        for topic in topics {
            self.followed.entry(topic.clone()).or_insert_with(|| {
                let task = follow(topic.clone(), self.client.clone(), Rc::clone(&self.shared));
                Follower(tokio::task::spawn_local(task))
            });
        }
    }

    /// The registrations as Consul has them, by id.
    pub fn services(&self) -> BTreeMap<String, Value> {
        let seen = self.shared.seen.borrow();
        seen.iter().flat_map(|(topic, body)| body.iter().flat_map(|body| topic.services(body))).collect()
    }

    /// How often contact came back: who remembers the number knows whether to ask anew who answers.
    pub fn returns(&self) -> u64 {
        *self.shared.returns.borrow()
    }

    /// How the connection is.
    pub fn contact(&self) -> Contact {
        self.shared.contact.borrow().clone()
    }

    /// Waits until something is otherwise than when it was first seen or last told, or contact came
    /// back. Safe to drop.
    pub async fn changed(&self) {
        self.shared.changed.notified().await;
    }
}

async fn follow(topic: Topic, client: Client, shared: Rc<Shared>) {
    let (mut watch, mut pause) = (topic.watch(), FIRST_PAUSE);
    loop {
        let failed = match watch.next(&client).await {
            Ok(body) => {
                shared.saw(&topic, Some(body));
                pause = FIRST_PAUSE;
                continue;
            }
            Err(ConsulError::Missing { .. }) => {
                shared.saw(&topic, None);
                true
            }
            Err(error) => {
                shared.lost(error.into());
                true
            }
        };
        if failed {
            // From the start: what comes next may be another server, or the same without its data.
            watch = topic.watch();
            tokio::time::sleep(pause.mul_f64(rand::rng().random_range(0.5..1.0))).await;
            pause = (pause * 3 / 2).min(LAST_PAUSE);
        }
    }
}

impl Shared {
    fn saw(&self, topic: &Topic, body: Option<Value>) {
        let missing = body.is_none();
        let before = self.seen.borrow_mut().insert(topic.clone(), body.clone());
        // What is there when one starts to look is what was registered just now.
        let news = before.map_or(missing, |before| before != body);
        let back = self.contact.borrow().fault.is_some();
        if back || self.contact.borrow().since == 0 {
            *self.contact.borrow_mut() = Contact { fault: None, since: now() };
        }
        if back {
            *self.returns.borrow_mut() += 1;
        }
        if news || back {
            self.changed.notify_one();
        }
    }

    fn lost(&self, fault: Fault) {
        let mut contact = self.contact.borrow_mut();
        let since = if contact.fault.is_some() { contact.since } else { now() };
        let news = contact.fault.is_none();
        *contact = Contact { fault: Some(fault), since };
        if news {
            self.changed.notify_one();
        }
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn registrations_are_found_in_both_kinds_of_answers() {
        let node = Topic::Node("vm".to_owned());
        let body = json!({ "Node": {}, "Services": [{ "ID": "a" }, { "ID": "b" }, {}] });
        assert_eq!(node.services(&body).keys().collect::<Vec<_>>(), ["a", "b"]);
        assert!(node.services(&Value::Null).is_empty());
        let one = Topic::Service("a".to_owned());
        assert_eq!(one.services(&json!({ "ID": "a", "Port": 1 }))["a"]["Port"], 1);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn only_news_wake() {
        let shared = Shared::default();
        let topic = Topic::Service("a".to_owned());
        let woken =
            async || tokio::time::timeout(Duration::from_millis(10), shared.changed.notified()).await.is_ok();
        shared.saw(&topic, Some(json!(1)));
        assert!(!woken().await, "what is there at first");
        shared.saw(&topic, Some(json!(2)));
        assert!(woken().await, "a change");
        shared.saw(&topic, None);
        assert!(woken().await, "a loss");
        shared.lost(ConsulError::Told("x".to_owned()).into());
        assert!(woken().await, "lost contact");
        shared.lost(ConsulError::Told("x".to_owned()).into());
        assert!(!woken().await, "which is told once");
        let before = *shared.returns.borrow();
        shared.saw(&topic, None);
        assert!(woken().await && *shared.returns.borrow() == before + 1, "contact is back");
        assert_eq!(shared.contact.borrow().fault, None);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn one_that_is_not_there_at_first_is_news() {
        let shared = Shared::default();
        shared.saw(&Topic::Service("a".to_owned()), None);
        assert!(tokio::time::timeout(Duration::from_millis(10), shared.changed.notified()).await.is_ok());
    }
}
