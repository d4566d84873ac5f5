//! Network namespaces that services have for themselves: made, closed, connected, kept and removed.
//!
//! In this order, so that whoever is killed in between leaves nothing open: that the namespace is about to be ours
//! is written down; it is made, with nothing in it but a loopback that is down; the rules come up in it, closed;
//! only then the cable is laid. Removal goes the other way round: the cable first.
//!
//! What is set in a namespace is set by a thread that has moved there or has not begun, so it lands there or nowhere.
//! While the daemon runs it holds each open: a name that somebody takes away is given back to the same one, and what
//! runs in it goes on.

mod apps;
mod trial;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Serialize};

use super::change::{Change, Kind, Subject};
use super::engine::{Engine, keep};
use super::state::State;
use crate::base::units::Network;
use crate::base::{Fault, Root};
use crate::config::value::ServiceId;
use crate::netns::{self, Cable, Identity, Known, LinkWatch, Namespace};
use crate::plan::{INNER_LINK, LINK_PREFIX, NamespacePlan, Plan, RedirectPolicy, link_of, routed};
use crate::redirect::{BORDER, Border, Crossings, Desired, Drift, Firewall, Nftables};

/// What is remembered of a namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Which it is; `None` while it is made.
    pub identity: Option<Identity>,
    /// The network of its cable.
    pub net: Ipv4Net,
    /// When it was made, in microseconds since 1970.
    #[serde(default)]
    pub since: u64,
    /// The unit that is placed in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// What was set in it last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_force: Option<InForce>,
}

/// What a namespace was, with its rules.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InForce {
    /// The plan.
    plan: NamespacePlan,
    /// Whose sidecars were live.
    live: BTreeSet<ServiceId>,
}

impl InForce {
    fn desired(&self) -> Desired {
        Desired { policy: self.plan.redirect.clone(), live: self.live.clone() }
    }
}

impl Record {
    fn known(&self) -> Known<'static> {
        self.identity.map_or(Known::Begun, Known::Made)
    }
}

/// Those of this host.
#[derive(Default)]
pub(super) struct Namespaces {
    held: BTreeMap<String, Held>,
    /// Why one is not as it should be.
    failed: BTreeMap<String, Fault>,
    border: Border,
}

/// A namespace that is open.
struct Held {
    namespace: Namespace,
    /// It acts where it is called, so it is called in there only.
    firewall: Mutex<Nftables>,
    rules: Option<Desired>,
    plan: NamespacePlan,
}

impl Held {
    fn new(namespace: Namespace, plan: &NamespacePlan) -> Self {
        Held { namespace, firewall: Mutex::default(), rules: None, plan: plan.clone() }
    }

    fn firewall(&self) -> MutexGuard<'_, Nftables> {
        self.firewall.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Rules as its plan has them, and whatever routes they need.
    fn set(&mut self, live: &BTreeSet<ServiceId>) -> Result<InForce, Fault> {
        let in_force = InForce { plan: self.plan.clone(), live: live.clone() };
        let desired = &in_force.desired();
        let known = self.rules.as_ref() == Some(desired);
        self.namespace.run(|| {
            let firewall = self.firewall();
            if known && firewall.observe(desired)?.differences.is_empty() {
                Ok(())
            } else {
                firewall.apply(desired)
            }
        })??;
        self.rules = Some(desired.clone());
        self.route(&desired.policy)?;
        Ok(in_force)
    }

    /// The routes of virtual IPs.
    fn route(&self, policy: &RedirectPolicy) -> Result<Vec<String>, Fault> {
        let pool = policy.virtual_route;
        let wanted = pool.map(routed).unwrap_or_default();
        self.namespace.run_async(|| async move {
            netns::lo_up().await?;
            for net in netns::our_virtual_routes().await?.into_iter().filter(|net| !wanted.contains(net)) {
                netns::remove_virtual_route(net).await?;
            }
            match pool {
                Some(net) if netns::ensure_virtual_route(net).await? => {
                    Ok(vec![format!("+ route {net} dev lo")])
                }
                _ => Ok(Vec::new()),
            }
        })?
    }

    fn connect(&self) -> Result<Vec<String>, Fault> {
        let end = |address| IpNet::new_assert(address, self.plan.net.prefix_len());
        let cable = Cable {
            namespace: &self.namespace,
            outer: &self.plan.link(),
            inner: INNER_LINK,
            outside: end(self.plan.outside().into()),
            inside: end(self.plan.inside().into()),
        };
        let mut done = cable.lay()?;
        if self.plan.agent.is_some() && netns::lead_to_loopback(cable.outer)? {
            done.push(format!("+ net.ipv4.conf.{}.route_localnet", cable.outer));
        }
        Ok(done)
    }

    /// Looks whether name, rules, route and cable are still there, and makes them again if not.
    fn repair(&self) -> Result<Vec<String>, Fault> {
        let name = &self.plan.name;
        let named = Namespace::by_name(name).is_ok();
        netns::claim(name, Known::Held(&self.namespace))?;
        let mut amiss = if named { Vec::new() } else { vec![format!("+ namespace {name}")] };
        if let Some(desired) = &self.rules {
            amiss.extend(self.namespace.run(|| self.firewall().repair(desired))??);
            amiss.extend(self.route(&desired.policy)?);
        }
        amiss.extend(self.connect()?);
        Ok(amiss)
    }
}

impl Namespaces {
    /// The namespace in which the sidecar of `id` runs; `None` for the host's.
    ///
    /// # Errors
    /// Why the namespace that it should have is not there.
    pub fn network(&self, plan: &Plan, id: &ServiceId) -> Result<Option<Network>, Fault> {
        let Some(own) = plan.namespace_of(id) else { return Ok(None) };
        if let Some(fault) = self.failed.get(&own.name) {
            return Err(fault.clone());
        }
        // Never the host's for want of an open one.
        let Identity { device, inode } = match self.held.get(&own.name) {
            Some(held) => held.namespace.identity(),
            None => Namespace::by_name(&own.name)?.identity(),
        };
        Ok(Some(Network { path: Namespace::path_of_name(&own.name), identity: (device, inode) }))
    }

    fn make(
        &mut self,
        own: &NamespacePlan,
        live: &BTreeSet<ServiceId>,
        root: &Root,
        state: &mut State,
    ) -> Result<(), Fault> {
        let name = &own.name;
        if let Some(before) = state.namespaces.get(name).filter(|before| before.net != own.net) {
            let link = link_of(before.net);
            Namespace::own()?.run_async(|| async move { netns::remove_link(&link).await })??;
        }
        let held = self.held.remove(name);
        let known = match (&held, state.namespaces.get(name)) {
            (Some(held), _) => Known::Held(&held.namespace),
            (None, Some(record)) => record.known(),
            (None, None) => Known::Nothing,
        };
        if matches!(known, Known::Nothing) && Namespace::by_name(name).is_err() {
            let begun = Record { identity: None, net: own.net, since: 0, unit: None, in_force: None };
            state.namespaces.insert(name.clone(), begun);
            state.save(root)?;
        }
        let claimed = netns::claim(name, known);
        let mut held = match (held, claimed) {
            (Some(held), Ok(_)) => Held { plan: own.clone(), ..held },
            (None, Ok(namespace)) => Held::new(namespace, own),
            (held, Err(fault)) => {
                self.held.extend(held.map(|held| (name.clone(), held)));
                return Err(fault);
            }
        };
        let identity = Some(held.namespace.identity());
        let before = state.namespaces.get(name).cloned();
        let since = before.as_ref().filter(|before| before.identity == identity).map(|before| before.since);
        let (unit, in_force) = before.map(|before| (before.unit, before.in_force)).unwrap_or_default();
        let since = since.unwrap_or_else(apps::now);
        let mut record = Record { identity, net: own.net, since, unit, in_force };
        state.namespaces.insert(name.clone(), record.clone());
        state.save(root)?;
        netns::tune_alike(&held.namespace)?;
        held.firewall().on_trial(trial::of(state, name))?;
        let closed = held.set(live);
        let connected = closed.and_then(|in_force| {
            record.in_force = Some(in_force);
            state.namespaces.insert(name.clone(), record);
            held.connect()
        });
        self.held.insert(name.clone(), held);
        connected.map(drop)
    }

    /// Takes the cable away, and the name.
    fn remove(&mut self, name: &str, state: &mut State) -> Result<(), Fault> {
        let Some(record) = state.namespaces.get(name) else { return Ok(()) };
        let link = link_of(record.net);
        Namespace::own()?.run_async(|| async move { netns::remove_link(&link).await })??;
        let held = self.held.get(name);
        netns::give_up(name, held.map_or(record.known(), |held| Known::Held(&held.namespace)))?;
        self.held.remove(name);
        self.failed.remove(name);
        state.namespaces.remove(name);
        Ok(())
    }
}

impl Engine {
    /// Makes the namespaces of `plan`, with those sidecars live that are so already. What goes wrong is kept for the
    /// services that it concerns: their sidecars do not start.
    pub(super) fn close_namespaces(&mut self, plan: &Plan) {
        self.namespaces.failed.clear();
        if plan.namespaces.is_empty() {
            return;
        }
        let border = self.let_pass().and_then(|()| self.namespaces.border.apply(&self.crossings(plan)));
        let live = self.live();
        for (name, own) in &plan.namespaces {
            let made = match &border {
                Ok(_) => self.namespaces.make(own, &live, &self.root, &mut self.state),
                Err(fault) => Err(fault.clone()),
            };
            self.namespaces.failed.extend(made.err().map(|fault| (name.clone(), fault)));
        }
    }

    /// The host passes on what is for namespaces. That it did not before is remembered.
    fn let_pass(&mut self) -> Result<(), Fault> {
        if netns::forwards()? {
            return Ok(());
        }
        self.state.forwarding_is_ours = true;
        self.state.save(&self.root)?;
        netns::set_forwarding(true)
    }

    /// The rules in each namespace as the sidecars' liveness wants them.
    pub(super) fn open_namespaces(&mut self, plan: &Plan) -> Vec<Fault> {
        let live = self.live();
        let mut faults = Vec::new();
        for (name, held) in &mut self.namespaces.held {
            let Some(own) = plan.namespaces.get(name) else { continue };
            match (held.set(&live), self.state.namespaces.get_mut(name)) {
                (Ok(in_force), Some(record)) => record.in_force = Some(in_force),
                (Ok(_), None) => {}
                (Err(fault), _) => faults.push(fault.of_service(&own.service)),
            }
        }
        faults
    }

    /// Removes the namespaces that `plan` does not know; all for `None`, and then the host is as it was before them.
    pub(super) async fn remove_namespaces(&mut self, plan: Option<&Plan>) -> Vec<Fault> {
        let wanted = |name: &String| plan.is_some_and(|plan| plan.namespaces.contains_key(name));
        let going: Vec<String> = self.state.namespaces.keys().filter(|name| !wanted(name)).cloned().collect();
        let mut faults = Vec::new();
        for name in &going {
            keep(&mut faults, self.unplace_app(name).await);
            keep(&mut faults, self.namespaces.remove(name, &mut self.state));
        }
        if !going.is_empty() && self.state.namespaces.is_empty() {
            keep(&mut faults, self.namespaces.border.apply(&Crossings::default()));
            if self.state.forwarding_is_ours {
                keep(&mut faults, netns::set_forwarding(false));
                self.state.forwarding_is_ours = false;
            }
        }
        faults
    }

    /// Makes again what somebody changed of namespaces, and of the border to them. Returns what was amiss.
    pub(super) fn repair_namespaces(&self) -> Result<Vec<String>, Fault> {
        let Namespaces { held, border, .. } = &self.namespaces;
        let mut amiss = Vec::new();
        if held.is_empty() {
            return Ok(amiss);
        }
        if !netns::forwards()? {
            netns::set_forwarding(true)?;
            amiss.push("+ net.ipv4.ip_forward".to_owned());
        }
        amiss.extend(border.repair()?);
        for held in held.values() {
            amiss.extend(held.repair().map_err(|fault| fault.of_service(&held.plan.service))?);
        }
        Ok(amiss)
    }

    /// What converging would change about namespaces.
    pub(super) fn diff_namespaces(&self, plan: &Plan) -> Result<Vec<Change>, Fault> {
        let change = |name: &str, service: Option<&ServiceId>, kind, details| Change {
            subject: Subject::Namespace,
            name: name.to_owned(),
            kind,
            service: service.cloned(),
            details,
        };
        let mut changes = Vec::new();
        let live: BTreeSet<ServiceId> = plan.services.keys().cloned().collect();
        for (name, own) in &plan.namespaces {
            let id = Some(&own.service);
            let Ok(there) = Namespace::by_name(name) else {
                changes.push(change(name, id, Kind::Add, Vec::new()));
                continue;
            };
            let desired = Desired { policy: own.redirect.clone(), live: live.clone() };
            let held = Held::new(there, own);
            held.firewall().on_trial(trial::of(&self.state, name))?;
            let differences = held.namespace.run(|| held.firewall().observe(&desired))??.differences;
            if !differences.is_empty() {
                changes.push(change(name, id, Kind::Change, differences));
            }
        }
        let going = self.state.namespaces.keys().filter(|name| !plan.namespaces.contains_key(*name));
        changes.extend(going.map(|name| change(name, None, Kind::Remove, Vec::new())));
        if !plan.namespaces.is_empty() || !self.state.namespaces.is_empty() {
            let differences = self.namespaces.border.observe(&self.crossings(plan))?;
            let kind = match differences.first() {
                None => return Ok(changes),
                Some(line) if line.starts_with("+ table") => Kind::Add,
                Some(line) if line.starts_with("- table") => Kind::Remove,
                Some(_) => Kind::Change,
            };
            let details = if kind == Kind::Change { differences } else { Vec::new() };
            let table = Change {
                subject: Subject::Rules,
                ..change(&format!("table inet {BORDER}"), None, kind, details)
            };
            changes.push(table);
        }
        Ok(changes)
    }

    /// The namespaces that are open.
    pub fn namespaces(&self) -> BTreeMap<&str, Identity> {
        let held = self.namespaces.held.iter();
        held.map(|(name, held)| (name.as_str(), held.namespace.identity())).collect()
    }

    /// Starts listening for changes in the namespace `name`.
    ///
    /// # Errors
    /// `ENM-R013`, `ENM-N010` the kernel does not let us listen.
    pub fn watch_namespace(&self, name: &str) -> Result<Option<(Drift, LinkWatch)>, Fault> {
        let Some(held) = self.namespaces.held.get(name) else { return Ok(None) };
        // Sockets hear of the namespace that they were opened in, whoever reads them.
        let runtime = tokio::runtime::Handle::current();
        held.namespace.run(|| {
            let _runtime = runtime.enter();
            let rules = held.firewall().watch()?;
            let links = LinkWatch::new()?;
            Ok(rules.map(|rules| (rules, links)))
        })?
    }

    /// The same for the border.
    ///
    /// # Errors
    /// As [`Engine::watch_namespace`].
    pub fn watch_border(&self) -> Result<(Drift, LinkWatch), Fault> {
        // On a host links of containers come and go.
        Ok((self.namespaces.border.watch()?, LinkWatch::named(LINK_PREFIX)?))
    }
}
