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

use super::lease::without_renewal;
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
    fn saw(&self, topic: &Topic, mut body: Option<Value>) {
        let services = body.as_mut().and_then(|body| body.get_mut("Services")?.as_array_mut());
        services.into_iter().flatten().for_each(without_renewal);
        let missing = body.is_none();
        let before = self.seen.borrow_mut().insert(topic.clone(), body.clone());
        // What is there when one starts to look is what was registered just now; but the cluster's
        // defaults that are mixed in were not known until then.
        let mixed = matches!(topic, Topic::Service(_));
        let news = before.map_or(missing || mixed, |before| before != body);
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

    #[tokio::test(flavor = "current_thread")]
    async fn only_news_wake() {
        let shared = Shared::default();
        let topic = Topic::Node("a".to_owned());
        let woken =
            async || tokio::time::timeout(Duration::from_millis(10), shared.changed.notified()).await.is_ok();
        shared.saw(&topic, Some(json!(1)));
        assert!(!woken().await, "what is there at first");
        shared.saw(&topic, Some(json!(2)));
        assert!(woken().await, "a change");
        shared.saw(&topic, None);
        assert!(woken().await, "a loss");
        let service = |index: u64, renewed: &str| json!({ "Services": [{ "ID": "api", "ModifyIndex": index, "Meta": { "enmesh-renewed": renewed } }] });
        shared.saw(&topic, Some(service(1, "a")));
        assert!(woken().await, "it is there");
        shared.saw(&topic, Some(service(2, "b")));
        assert!(!woken().await, "its lease was renewed");
        shared.saw(&topic, None);
        assert!(woken().await, "another loss");
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
    async fn at_first_only_what_is_missing_or_was_not_known_is_news() {
        let news = async |topic: Topic, body| {
            let shared = Shared::default();
            shared.saw(&topic, body);
            tokio::time::timeout(Duration::from_millis(10), shared.changed.notified()).await.is_ok()
        };
        assert!(news(Topic::Node("a".to_owned()), None).await);
        assert!(!news(Topic::Node("a".to_owned()), Some(json!(1))).await);
        assert!(news(Topic::Service("a".to_owned()), Some(json!(1))).await);
    }
}
