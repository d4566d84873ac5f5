//! What the tasks share: the state, the bells that they ring, and how the connection is.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::Notify;

use super::state::State;
use crate::base::Fault;
use crate::config::value::{ServiceId, ServiceName};
use crate::consul::{Client, ServerFacts};
use crate::mesh::Link;
use crate::plan::MeshView;

/// Something that is followed by a task of its own.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Topic {
    Roots,
    /// Intentions; anew for every set of services of this host, which is what the number counts.
    Intentions(u64),
    Names,
    Config(&'static str),
    Leaf(ServiceName),
    Service(ServiceName),
    /// The checks in one state.
    Checks(&'static str),
    /// The services without a call of their own.
    Crowd,
}

/// A certificate with its key.
#[derive(Clone)]
pub(super) struct Leaf {
    pub certificate_pem: String,
    pub key_pem: String,
}

/// What of the crowd is to be read.
#[derive(Debug, Default)]
pub(super) struct Due {
    pub names: BTreeSet<ServiceName>,
    pub all: bool,
}

pub(super) struct Shared {
    pub client: Client,
    pub state: RefCell<State>,
    /// Rung by whoever changed the state.
    pub bell: Notify,
    /// Rung when there is something new for whoever asked: a picture, a leaf, a fault.
    pub stir: Notify,
    /// Rung for [`crate::mesh::MeshSource::changed`]: another picture, another state of the link.
    pub changed: Notify,
    /// Rung when a topic answers again.
    pub back: Notify,
    pub view: RefCell<Option<Rc<MeshView>>>,
    pub warnings: RefCell<Vec<Fault>>,
    /// Whether the picture has been whole since this host's services were told.
    pub settled: Cell<bool>,
    /// Counts the sets of services of this host.
    pub epoch: Cell<u64>,
    pub leaves: RefCell<BTreeMap<ServiceName, Leaf>>,
    /// Whose credentials were asked for, whether or not it was told that they are here.
    pub asked: RefCell<BTreeMap<ServiceId, ServiceName>>,
    pub crowd: RefCell<BTreeSet<ServiceName>>,
    /// Who answers, once that was asked.
    pub facts: RefCell<Option<ServerFacts>>,
    pub due: RefCell<Due>,
    pub due_bell: Notify,
    faults: RefCell<BTreeMap<Topic, Fault>>,
    since: Cell<u64>,
}

impl Shared {
    pub fn new(client: Client) -> Self {
        Shared {
            client,
            state: RefCell::default(),
            bell: Notify::new(),
            stir: Notify::new(),
            changed: Notify::new(),
            back: Notify::new(),
            view: RefCell::default(),
            warnings: RefCell::default(),
            settled: Cell::new(false),
            epoch: Cell::new(0),
            leaves: RefCell::default(),
            asked: RefCell::default(),
            crowd: RefCell::default(),
            facts: RefCell::default(),
            due: RefCell::default(),
            due_bell: Notify::new(),
            faults: RefCell::default(),
            since: Cell::new(now()),
        }
    }

    /// Changes the state, and has the picture made anew.
    pub fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.borrow_mut());
        self.bell.notify_one();
    }

    /// `topic` was answered.
    pub fn well(&self, topic: &Topic) {
        let mut faults = self.faults.borrow_mut();
        if faults.remove(topic).is_some() {
            if faults.is_empty() {
                self.since.set(now());
                tracing::info!("the connection to {} holds again", self.client.settings().endpoint);
                self.changed.notify_one();
            }
            self.back.notify_waiters();
        }
    }

    /// `topic` was not answered. What it said last stays.
    pub fn ill(&self, topic: &Topic, fault: Fault) {
        let mut faults = self.faults.borrow_mut();
        if faults.is_empty() {
            self.since.set(now());
        }
        // Another agent may answer after a failure, so who it is is asked anew then.
        self.facts.take();
        if faults.values().all(|known| known.code != fault.code) {
            tracing::warn!(ENMESH_CODE = fault.code, "{fault}; what was told last stays in force");
            // Whoever shows how the link is wants to know.
            self.changed.notify_one();
        }
        faults.insert(topic.clone(), fault);
        drop(faults);
        self.stir.notify_waiters();
    }

    /// Nobody asks for `topic` any more, so its fault is nobody's.
    pub fn ended(&self, topic: &Topic) {
        self.well(topic);
    }

    pub fn fault(&self) -> Option<Fault> {
        self.faults.borrow().values().next().cloned()
    }

    /// The fault that keeps `topic` from being answered.
    pub fn fault_of(&self, topic: &Topic) -> Option<Fault> {
        self.faults.borrow().get(topic).cloned()
    }

    pub fn link(&self) -> Link {
        Link {
            server: self.client.settings().endpoint.to_string(),
            fault: self.fault(),
            since: self.since.get(),
        }
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map(|time| time.as_secs()).unwrap_or_default()
}
