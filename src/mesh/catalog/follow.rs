//! The tasks: one a topic, each a call that waits for a change, again and again.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt, TryStreamExt};
use rand::Rng;
use serde::de::{DeserializeOwned, IgnoredAny};
use tokio::task::JoinHandle;

use super::answers::{Check, HealthEntry, Intention, IssuedLeaf, Matches, Roots, StateCheck};
use super::instances::Endpoints;
use super::intentions::Rules;
use super::shared::{Leaf, Shared, Topic};
use super::state::{CONFIG_KINDS, Chains, LocalRules, Wanted, services_among};
use super::{CatalogError, crowd};
use crate::base::Fault;
use crate::config::value::ServiceName;
use crate::consul::{Client, ConsulError, Query, ServerFacts, Watch, segment};

/// How long one call waits for a change. Consul's own default is five minutes.
const WAIT: Duration = Duration::from_secs(300);
/// Changes that come within this time become one picture.
const FOLD: Duration = Duration::from_millis(20);
/// The first pause before a topic is asked for again, what it grows by, and how long it can get.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const GROWTH: f64 = 1.5;
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// For how many services intentions are asked for side by side.
const AT_ONCE: usize = 4;

/// A task that ends with the value.
struct Running(JoinHandle<()>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Keeps the tasks to what is wanted, and the picture to what they brought.
pub(super) async fn keep(shared: Rc<Shared>) {
    let mut running = BTreeMap::new();
    loop {
        shared.bell.notified().await;
        let mut more = true;
        while more {
            let wanted = shared.state.borrow().wanted();
            publish(&shared, &wanted);
            reconcile(&shared, &mut running, &wanted);
            more = fold(&shared, &wanted).await;
        }
    }
}

/// Lets changes come together. While somebody waits for this host's services to be known, what leads
/// there ends that early. Returns whether there were any.
async fn fold(shared: &Shared, before: &Wanted) -> bool {
    let rung = Cell::new(false);
    let urgent = async {
        loop {
            shared.bell.notified().await;
            rung.set(true);
            let state = shared.state.borrow();
            let wanted = state.wanted();
            if !shared.settled.get() && (wanted != *before || state.is_whole(&wanted)) {
                break;
            }
        }
    };
    let _ = tokio::time::timeout(FOLD, urgent).await;
    rung.get()
}

fn reconcile(shared: &Rc<Shared>, running: &mut BTreeMap<Topic, Running>, wanted: &Wanted) {
    let wanted = topics(shared, wanted);
    running.retain(|topic, _| {
        let stays = wanted.contains(topic);
        if !stays {
            shared.ended(topic);
            if let Topic::Leaf(name) = topic {
                shared.leaves.borrow_mut().remove(name);
            }
        }
        stays
    });
    for topic in wanted {
        running.entry(topic).or_insert_with_key(|topic| start(shared, topic.clone()));
    }
}

/// What is to be followed now. Nothing, as long as nobody said for whom.
fn topics(shared: &Shared, wanted: &Wanted) -> BTreeSet<Topic> {
    let mut topics: BTreeSet<Topic> = shared.asked.borrow().values().cloned().map(Topic::Leaf).collect();
    let mut state = shared.state.borrow_mut();
    if !state.locals.is_empty() {
        topics.insert(Topic::Intentions(shared.epoch.get()));
        topics.extend(CONFIG_KINDS.map(Topic::Config));
        topics.extend(state.locals.iter().map(|local| Topic::Leaf(local.name.clone())));
    }
    if !topics.is_empty() {
        topics.insert(Topic::Roots);
    }
    if state.needs_names() {
        topics.insert(Topic::Names);
    } else {
        // They would grow old unseen.
        state.names = None;
    }
    if !wanted.crowd.is_empty() {
        topics.extend(["critical", "warning"].map(Topic::Checks));
        topics.insert(Topic::Crowd);
    }
    state.endpoints.retain(|name, _| wanted.alone.contains(name) || wanted.crowd.contains(name));
    drop(state);
    topics.extend(wanted.alone.iter().cloned().map(Topic::Service));
    crowd::set(shared, &wanted.crowd);
    topics
}

/// Makes the picture anew and tells, if it is another one.
fn publish(shared: &Shared, wanted: &Wanted) {
    let state = shared.state.borrow();
    let whole = state.is_whole(wanted);
    // The first picture is a whole one; later a part that is missing is filled in when it comes.
    if state.locals.is_empty() || (!whole && shared.view.borrow().is_none()) {
        return;
    }
    let picture = state.picture();
    drop(state);
    let settles = whole && !shared.settled.replace(whole || shared.settled.get());
    let warnings = shared.warnings.replace(picture.warnings);
    let mut view = shared.view.borrow_mut();
    let differs = view.as_deref() != Some(&picture.view) || warnings != *shared.warnings.borrow();
    if differs {
        *view = Some(Rc::new(picture.view));
        shared.changed.notify_one();
    }
    if differs || settles {
        shared.stir.notify_waiters();
    }
}

fn start(shared: &Rc<Shared>, topic: Topic) -> Running {
    let shared = Rc::clone(shared);
    Running(match topic.clone() {
        Topic::Roots => {
            spawn(shared, topic, "/v1/agent/connect/ca/roots".to_owned(), async |shared, body| {
                roots(shared, body);
                Ok(())
            })
        }
        Topic::Intentions(_) => tokio::task::spawn_local(intentions(shared, topic)),
        Topic::Names => spawn(shared, topic, "/v1/catalog/services".to_owned(), async |shared, body| {
            let names: BTreeMap<String, IgnoredAny> = body;
            shared.change(|state| state.names = Some(services_among(names.keys())));
            crowd::look(shared);
            Ok(())
        }),
        Topic::Config(kind) => {
            spawn(shared, topic, format!("/v1/config/{kind}"), async move |shared, body| {
                shared.change(|state| drop(state.config.insert(kind, Chains::new(kind, body))));
                Ok(())
            })
        }
        Topic::Leaf(name) => {
            let path = format!("/v1/agent/connect/ca/leaf/{}", segment(name.as_str()));
            spawn(shared, topic, path, async move |shared, body| {
                leaf(shared, &name, body);
                Ok(())
            })
        }
        Topic::Service(name) => {
            let path = health_path(&name);
            spawn(shared, topic, path, async move |shared, body| {
                endpoints(shared, &name, body);
                Ok(())
            })
        }
        Topic::Checks(status) => {
            let before = RefCell::new(None);
            let path = format!("/v1/health/state/{status}");
            spawn(shared, topic, path, async move |shared, body: Vec<StateCheck>| {
                crowd::hear(shared, &mut before.borrow_mut(), body);
                Ok(())
            })
        }
        Topic::Crowd => tokio::task::spawn_local(crowd::read(shared, topic)),
    })
}

/// Follows `path`, and hands over what it answers whenever its index moved.
fn spawn<T, F>(shared: Rc<Shared>, topic: Topic, path: String, take: F) -> JoinHandle<()>
where
    T: DeserializeOwned + 'static,
    F: AsyncFn(&Shared, T) -> Result<(), Fault> + 'static,
{
    tokio::task::spawn_local(async move { follow(&shared, &topic, &path, take).await })
}

async fn follow<T: DeserializeOwned>(
    shared: &Shared,
    topic: &Topic,
    path: &str,
    take: impl AsyncFn(&Shared, T) -> Result<(), Fault>,
) {
    let mut pace = Pace::default();
    loop {
        // From the start after each failure: the index may be of a server that has lost its data.
        let mut watch = Watch::by_index(Query::new(path), WAIT);
        let fault = loop {
            match watch.moved(&shared.client).await {
                Ok(body) => {
                    if let Err(fault) = take(shared, body).await {
                        break fault;
                    }
                    shared.well(topic);
                    pace = Pace::default();
                }
                Err(error) => break explain(topic, error),
            }
        };
        shared.ill(topic, fault);
        pace.wait(shared).await;
    }
}

/// The pauses between attempts. Half of each is chance, so that hosts that lost the same server do
/// not come back at the same moment.
pub(super) struct Pace(Duration);

impl Default for Pace {
    fn default() -> Self {
        Pace(FIRST_PAUSE)
    }
}

impl Pace {
    /// Waits, but not after another topic found that Consul is back.
    pub async fn wait(&mut self, shared: &Shared) {
        let pause = self.0.mul_f64(rand::rng().random_range(0.5..1.0));
        self.0 = self.0.mul_f64(GROWTH).min(LONGEST_PAUSE);
        let _ = tokio::time::timeout(pause, shared.back.notified()).await;
    }
}

/// The cause, with the right that a topic takes where that is what is missing.
pub(super) fn explain(topic: &Topic, error: ConsulError) -> Fault {
    let right = match topic {
        Topic::Leaf(name) => format!("`service:write` on `{name}`"),
        Topic::Intentions(_) => "`intentions:read` on this host's services".to_owned(),
        _ => "`service:read` and `node:read`".to_owned(),
    };
    match error {
        ConsulError::Denied { what, why } => {
            CatalogError::Right { right, why: format!("{what}: {why}") }.into()
        }
        error => error.into(),
    }
}

fn roots(shared: &Shared, body: Roots) {
    let Roots { trust_domain, mut roots } = body;
    // The one that signs first, as in the files of a CA of our own; the others in an order of theirs.
    roots.sort_by(|a, b| b.active.cmp(&a.active).then_with(|| a.id.cmp(&b.id)));
    let pem: String = roots.iter().map(|root| format!("{}\n", root.root_cert.trim())).collect();
    if trust_domain.is_empty() || pem.is_empty() {
        return;
    }
    let trust = Some((trust_domain, pem));
    if shared.state.borrow().trust != trust {
        shared.change(|state| state.trust = trust);
        renewed(shared);
    }
}

fn leaf(shared: &Shared, name: &ServiceName, body: IssuedLeaf) {
    let IssuedLeaf { certificate_pem, key_pem } = body;
    let leaf = Leaf { certificate_pem, key_pem };
    shared.leaves.borrow_mut().insert(name.clone(), leaf);
    renewed(shared);
}

/// Credentials may be others now.
fn renewed(shared: &Shared) {
    shared.stir.notify_waiters();
    shared.changed.notify_one();
}

/// What is asked for the endpoints of a service.
pub(super) fn health_path(name: &ServiceName) -> String {
    format!("/v1/health/connect/{}", segment(name.as_str()))
}

/// Takes in what was answered about the endpoints of a service.
pub(super) fn endpoints(shared: &Shared, name: &ServiceName, body: Vec<HealthEntry>) {
    let endpoints = Endpoints::new(name.as_str(), body);
    if shared.state.borrow().endpoints.get(name) != Some(&endpoints) {
        shared.change(|state| drop(state.endpoints.insert(name.clone(), endpoints)));
    }
}

/// Intentions are read by what they match. Consul 1.8 gives those calls no index to wait on, so the
/// list of all of them is waited on, and says when to read.
async fn intentions(shared: Rc<Shared>, topic: Topic) {
    let read = async |shared: &Shared, _: IgnoredAny| read_intentions(shared, &topic).await;
    follow(&shared, &topic, "/v1/connect/intentions", read).await;
}

async fn read_intentions(shared: &Shared, topic: &Topic) -> Result<(), Fault> {
    let client = &shared.client;
    let explain = |error| explain(topic, error);
    let known = shared.facts.borrow().clone();
    let facts = match known {
        Some(facts) => facts,
        None => ServerFacts::ask(client).await.map_err(explain)?.0,
    };
    let configured = client.settings().datacenter.as_ref().map(ToString::to_string);
    let datacenter = configured.or_else(|| facts.datacenter.clone()).ok_or(CatalogError::NoDatacenter)?;
    let locals: BTreeSet<ServiceName> =
        shared.state.borrow().locals.iter().map(|local| local.name.clone()).collect();
    let default_allow = async {
        match facts.default_allow {
            Some(told) => Ok(told),
            None => found_default(client).await,
        }
    };
    let (default_allow, rules) =
        tokio::try_join!(default_allow, all_rules(client, locals)).map_err(explain)?;
    shared.facts.replace(Some(facts));
    shared.change(|state| {
        state.datacenter = Some(datacenter);
        state.default_allow = Some(default_allow);
        state.rules = rules;
    });
    Ok(())
}

/// What each of `locals` matches, a few at a time.
async fn all_rules(
    client: &Client,
    locals: BTreeSet<ServiceName>,
) -> Result<BTreeMap<ServiceName, LocalRules>, ConsulError> {
    let rules = locals.into_iter().map(async |name| {
        let source = matched(client, "source", &name);
        let destination = matched(client, "destination", &name);
        let (source, destination) = tokio::try_join!(source, destination)?;
        Ok((name, LocalRules { source, destination }))
    });
    stream::iter(rules).buffer_unordered(AT_ONCE).try_collect().await
}

/// What Consul says of two services that nobody has: a name is a label of at most 63 bytes where it
/// is to be found by DNS. An intention for everybody hides the default, and decides in its place; so
/// it is asked whenever intentions change.
async fn found_default(client: &Client) -> Result<bool, ConsulError> {
    let nobody = |letter: &str| letter.repeat(100);
    let query = Query::new("/v1/connect/intentions/check")
        .with("source", nobody("x"))
        .with("destination", nobody("y"));
    let (check, _): (Check, _) = client.get_as(&query).await?;
    Ok(check.allowed)
}

async fn matched(client: &Client, by: &str, name: &ServiceName) -> Result<Rules, ConsulError> {
    let query = Query::new("/v1/connect/intentions/match").with("by", by).with("name", name.as_str());
    let (matches, _): (Matches, _) = client.get_as(&query).await?;
    let intentions: Vec<Intention> = matches.into_values().flatten().flatten().collect();
    Ok(Rules::new(intentions))
}
