//! This host's relation to Consul: who answers, what it takes, what is registered there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::rc::Rc;

use futures_util::stream::{self, StreamExt};
use serde::Serialize;
use serde_json::Value;

use super::engine::Purpose;
use super::facts;
use super::session::{Session, TokenStatus};
use crate::base::{Fault, Root};
use crate::config::value::ServiceId;
use crate::config::{ConsulConfig, HostConfig, PlatformConfig, RegistrationMode};
use crate::consul::xds::{self, XdsSettings};
use crate::consul::{
    AgentChecks, AgentRegistry, CatalogRegistry, Client, ConsulError, Departure, Entry, FileRegistry, Gate,
    Health, Key, Lease, Node, Presence, Registry, ServerFacts, Settings, Topic, check_rights, needed_rights,
};
use crate::netns;
use crate::plan::{Ads, Plan, Xds, XdsToken};

/// How many registrations are looked at side by side. Each is two calls or three.
const AT_ONCE: usize = 8;

/// Consul, as this host knows it.
pub(super) struct Membership {
    root: Root,
    config: ConsulConfig,
    platform: PlatformConfig,
    mode: RegistrationMode,
    client: Client,
    /// What says that this host's services are its own, where nobody else does.
    lease: Option<Rc<Lease>>,
    /// The token that the client calls with.
    pub session: Session,
    met: Option<Met>,
    presence: Presence,
    /// The health that was told last.
    told: BTreeMap<Key, Health>,
    /// How each registration is.
    registered: BTreeMap<ServiceId, Registered>,
    /// The address at which others reach this host, where that was found out.
    address: Option<IpAddr>,
}

/// Who answers.
struct Met {
    facts: ServerFacts,
    warnings: Vec<Fault>,
    registry: Option<Rc<dyn Registry>>,
    /// The same registry, where it is the catalog's.
    catalog: Option<Rc<CatalogRegistry>>,
    /// [`Presence::returns`] when it was asked.
    returns: u64,
    /// The services whose rights were asked for, and which of those the token lacks.
    rights: Option<(BTreeSet<String>, Option<Fault>)>,
}

/// How a service's registration is.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Registered {
    /// Whether Consul has it as it should be.
    pub done: bool,
    /// What a person should know of it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<Fault>,
}

/// Why there is no xDS for the sidecars.
pub(super) enum XdsFault {
    /// This Consul has none.
    None(Fault),
    /// It has one that cannot be used.
    Unusable(Fault),
}

/// How Consul is, for `enmesh status`.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ConsulStatus {
    /// Its address.
    pub server: String,
    /// Its release.
    pub version: Option<String>,
    /// Its datacenter.
    pub datacenter: Option<String>,
    /// The agent's node.
    pub node: Option<String>,
    /// How services get there.
    pub registration: &'static str,
    /// What its release does not have and enmesh does without.
    pub without: Vec<String>,
    /// Why it cannot be heard now; what it told last stays in force.
    pub fault: Option<Fault>,
    /// Since when that is so, in seconds since 1970; 0 where it was not asked yet.
    pub since: u64,
    /// The token that it is asked with.
    pub token: TokenStatus,
}

impl Membership {
    /// The relation that `host` describes. Asks nothing yet.
    ///
    /// # Errors
    /// `ENM-K001`, `ENM-K010`: the address or a file for TLS cannot be used.
    pub fn new(root: &Root, host: &HostConfig, purpose: Purpose) -> Result<Self, Fault> {
        let client = Client::new(Settings::new(&host.consul, root, &|name| std::env::var(name).ok())?)?;
        let owner = host.platform.group.as_ref().map(|group| group.to_ascii_lowercase());
        let owner = owner.unwrap_or_else(|| node_name(root, &host.consul));
        let lease = (host.registration == RegistrationMode::Catalog)
            .then(|| Rc::new(Lease::new(owner, host.platform.lease.0)));
        let owner = lease.as_ref().map(|lease| lease.owner());
        Ok(Membership {
            root: root.clone(),
            config: host.consul.clone(),
            platform: host.platform.clone(),
            mode: host.registration,
            presence: Presence::new(client.clone()),
            session: Session::new(purpose, &client, host, owner, root),
            lease,
            client,
            met: None,
            told: BTreeMap::new(),
            registered: BTreeMap::new(),
            address: None,
        })
    }

    /// Whether this is still the relation that `host` describes.
    pub fn fits(&self, host: &HostConfig) -> bool {
        self.config == host.consul && self.mode == host.registration && self.platform == host.platform
    }

    /// The client.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Who answers: asked once, and again when contact was lost meanwhile. With a login, that comes
    /// before anything is asked.
    ///
    /// # Errors
    /// Nobody does, or not to us.
    pub async fn meet(&mut self) -> Result<&ServerFacts, Fault> {
        let returns = self.presence.returns();
        let fresh = self.met.take().filter(|met| met.returns == returns);
        self.session.keep().await?;
        let met = match fresh {
            Some(met) => met,
            None => {
                let (facts, warnings) = ServerFacts::ask(&self.client).await?;
                self.session.meet(&self.client).await;
                let gate = Gate::of(&facts);
                let catalog = self.lease.clone().map(|lease| {
                    Rc::new(CatalogRegistry::new(self.client.clone(), gate, self.node()).with_lease(lease))
                });
                let registry = match &catalog {
                    Some(catalog) => Some(Rc::clone(catalog) as Rc<dyn Registry>),
                    None => self.registry(&facts),
                };
                Met { facts, warnings, registry, catalog, returns, rights: None }
            }
        };
        Ok(&self.met.insert(met).facts)
    }

    /// Takes up that others reach this host at `address`. Who answers is met anew for the node's.
    pub fn set_address(&mut self, address: Option<IpAddr>) {
        if self.address != address && self.runs_checks() {
            self.met = None;
        }
        self.address = address;
    }

    /// What is known of who answers; `None` before anybody has.
    pub fn facts(&self) -> Option<&ServerFacts> {
        self.met.as_ref().map(|met| &met.facts)
    }

    /// Asks whether the token may do what the services `names` take: once after a meeting, and again
    /// for other services and while something is missing.
    pub async fn check_rights(&mut self, names: BTreeSet<String>) {
        let registers = self.mode != RegistrationMode::None;
        let Some(met) = &mut self.met else { return };
        if names.is_empty() || matches!(&met.rights, Some((asked, None)) if *asked == names) {
            return;
        }
        let needed = needed_rights(names.iter().map(String::as_str), registers);
        // Where it cannot be asked, each call that is refused says itself what it takes.
        let missing = check_rights(&self.client, &needed).await.err();
        let missing = missing.filter(|error| matches!(error, ConsulError::Rights { .. }));
        met.rights = Some((names, missing.map(Fault::from)));
    }

    /// What a person should know: of the server, of the token, and of each registration.
    pub fn warnings(&self) -> Vec<Fault> {
        let of_server = self.met.iter().flat_map(|met| &met.warnings);
        let of_token = self.met.iter().filter_map(|met| met.rights.as_ref()?.1.as_ref());
        let of_services = self.registered.values().flat_map(|registered| &registered.warnings);
        let of_session = self.session.warnings();
        of_server.chain(of_token).chain(of_services).cloned().chain(of_session).collect()
    }

    /// How each registration is.
    pub fn registered(&self) -> &BTreeMap<ServiceId, Registered> {
        &self.registered
    }

    /// How it is.
    pub fn status(&self) -> ConsulStatus {
        let contact = self.presence.contact();
        let facts = self.facts();
        ConsulStatus {
            server: self.client.settings().endpoint.to_string(),
            version: facts.and_then(|facts| facts.version).map(|version| version.to_string()),
            datacenter: facts.and_then(|facts| facts.datacenter.clone()),
            node: facts.and_then(|facts| facts.node.clone()),
            registration: self.mode(),
            without: facts.map(|facts| Gate::of(facts).without()).unwrap_or_default(),
            fault: contact.fault,
            since: contact.since,
            token: self.session.status(),
        }
    }

    /// How services get there, in the words of the configuration.
    fn mode(&self) -> &'static str {
        match self.mode {
            RegistrationMode::Agent => "agent",
            RegistrationMode::Catalog => "catalog",
            RegistrationMode::File => "file",
            RegistrationMode::None => "none",
        }
    }

    /// The sidecars' registrations as Consul gives them back, with the cluster's defaults mixed in; one
    /// that it does not have, or does not tell, is left out.
    pub async fn merged(&self, ids: impl Iterator<Item = &ServiceId>) -> BTreeMap<ServiceId, Value> {
        let node = (self.mode == RegistrationMode::Catalog).then(|| self.node().name);
        let mut merged = BTreeMap::new();
        for id in ids.filter(|_| self.met.is_some()) {
            if let Ok(Some(service)) = xds::merged(&self.client, id, node.as_deref()).await {
                merged.insert(id.clone(), service);
            }
        }
        merged
    }

    /// Where Consul's xDS is for the sidecars of this host.
    ///
    /// # Errors
    /// Its release has none that current Envoys speak, it is switched off, or not to be reached.
    pub async fn xds(&self, facts: &ServerFacts) -> Result<Ads, XdsFault> {
        let settings = XdsSettings::new(&self.config, self.client.settings().endpoint.clone(), &self.root);
        let found = xds::find(facts, &settings).map_err(|error| XdsFault::None(error.into()))?;
        let node = (self.mode == RegistrationMode::Catalog).then(|| self.node().name);
        let ads = xds::ads(&found, &settings, node).await.map_err(XdsFault::Unusable)?;
        Ok(Ads { token: self.token().is_some(), ..ads })
    }

    /// The token, for sidecars that Consul drives.
    pub fn token(&self) -> Option<XdsToken> {
        self.client.settings().token.read().ok().flatten().map(|token| token.for_xds())
    }

    /// Waits until what Consul has of this host may have changed by somebody else's doing, or is to be
    /// said anew.
    pub async fn changed(&self) {
        let lease = async {
            match &self.lease {
                Some(lease) => lease.due().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.presence.changed() => {}
            () = lease => {}
        }
    }

    /// Whether checks are enmesh's to run: there is no agent that would.
    pub fn runs_checks(&self) -> bool {
        self.mode == RegistrationMode::Catalog
    }

    /// Whether anybody is told how checks are.
    pub fn has_checks(&self) -> bool {
        self.mode != RegistrationMode::None
    }

    /// The catalog that this host's services are in, without an agent; `None` before anybody answered.
    pub fn catalog(&self) -> Option<Rc<CatalogRegistry>> {
        self.met.as_ref()?.catalog.clone()
    }

    /// The checks at the agent; `None` before it answered.
    pub fn agent_checks(&self) -> Option<AgentChecks> {
        Some(AgentChecks::new(self.client.clone(), Gate::of(self.facts()?)))
    }

    fn registry(&self, facts: &ServerFacts) -> Option<Rc<dyn Registry>> {
        let (client, gate) = (self.client.clone(), Gate::of(facts));
        match self.mode {
            RegistrationMode::Agent => Some(Rc::new(AgentRegistry::new(client, gate))),
            RegistrationMode::File => {
                let group = facts::group(&self.root, "consul");
                Some(Rc::new(FileRegistry::new(client, gate, &self.root, group)))
            }
            RegistrationMode::Catalog | RegistrationMode::None => None,
        }
    }

    /// The node for services without an agent.
    fn node(&self) -> Node {
        let name = node_name(&self.root, &self.config);
        let address = self.address.or_else(netns::default_source).unwrap_or(IpAddr::from([127, 0, 0, 1]));
        Node { name, address }
    }

    /// What differs between what should be registered and what is, by service; writes nothing.
    ///
    /// # Errors
    /// Consul does not answer, or would not take one of them.
    pub async fn observe(&self, plan: &Plan) -> Result<Vec<(Key, Vec<String>)>, Fault> {
        let Some(registry) = self.met.as_ref().and_then(|met| met.registry.clone()) else {
            return Ok(Vec::new());
        };
        let mut found = Vec::new();
        for entry in plan.services.values().map(Entry::of) {
            found.push((entry.key.clone(), registry.observe(&entry).await?));
        }
        Ok(found)
    }

    /// Brings the services of `plan` into Consul where it has them otherwise; returns what went wrong,
    /// each fault of one service. Without contact nothing is tried: that was said already.
    /// Those of `again` are sent although nothing differs.
    pub async fn register(&mut self, plan: &Plan, again: &BTreeSet<ServiceId>) -> Vec<Fault> {
        let Some(registry) = self.met.as_ref().and_then(|met| met.registry.clone()) else {
            return Vec::new();
        };
        let entries: Vec<Entry> = plan.services.values().map(Entry::of).collect();
        let registry = &registry;
        let tries = entries.iter().map(|entry| match again.contains(&entry.key.id) {
            true => registry.renew(entry),
            false => registry.register(entry),
        });
        let outcomes: Vec<_> = stream::iter(tries).buffered(AT_ONCE).collect().await;
        self.registered.retain(|id, _| plan.services.contains_key(id));
        let mut faults = Vec::new();
        for (entry, outcome) in entries.iter().zip(outcomes) {
            let id = &entry.key.id;
            let registered = match outcome {
                Ok(outcome) => {
                    if !outcome.differences.is_empty() {
                        tracing::info!(service = %id, "registered: {}", outcome.differences.join("; "));
                        // It may have been lost, and with it what was told of its health.
                        self.told.remove(&entry.key);
                    }
                    let warnings = outcome.warnings.into_iter().map(|fault| fault.of_service(id)).collect();
                    Registered { done: true, warnings }
                }
                Err(fault) => {
                    faults.push(fault.of_service(id));
                    Registered::default()
                }
            };
            self.registered.insert(id.clone(), registered);
        }
        let by_xds = plan.services.values().any(|service| service.sidecar.xds != Xds::Files);
        self.follow(&entries, by_xds);
        faults
    }

    /// Follows what was registered. An agent that does not tell its node is asked for each service.
    fn follow(&mut self, entries: &[Entry], by_xds: bool) {
        let done =
            entries.iter().filter(|entry| self.registered.get(&entry.key.id).is_some_and(|it| it.done));
        let node = match self.mode {
            RegistrationMode::Catalog => Some(self.node().name),
            // For those that Consul drives, its defaults matter as well.
            _ if by_xds => None,
            _ => self.facts().and_then(|facts| facts.node.clone()),
        };
        let topics: BTreeSet<Topic> = match node {
            Some(node) => done.take(1).map(|_| Topic::Node(node.clone())).collect(),
            None => done.map(|entry| Topic::sidecar(&entry.key)).collect(),
        };
        self.presence.follow(&topics);
    }

    /// Tells which services may be used, where that is enmesh's to tell and where it changed.
    pub async fn tell(&mut self, health: BTreeMap<Key, Health>) -> Vec<Fault> {
        let Some(registry) = self.met.as_ref().and_then(|met| met.registry.clone()) else {
            return Vec::new();
        };
        let mut faults = Vec::new();
        for (key, health) in health {
            let registered = self.registered.get(&key.id).is_some_and(|registered| registered.done);
            if !registered || self.told.get(&key) == Some(&health) {
                continue;
            }
            match registry.set_health(&key, &health).await {
                Ok(()) => drop(self.told.insert(key, health)),
                Err(fault) => faults.push(fault.of_service(&key.id)),
            }
        }
        faults
    }

    /// Whether services are registered at an agent.
    pub fn is_at_agent(&self) -> bool {
        self.mode == RegistrationMode::Agent
    }

    /// What the catalog has of `keys`, where an agent is to take it out and needs a token that ends with
    /// the login for it.
    pub async fn departure(&mut self, keys: &BTreeSet<Key>) -> Option<Departure> {
        if !self.is_at_agent() || !self.session.is_login() || keys.is_empty() {
            return None;
        }
        self.meet().await.ok()?;
        Departure::of(&self.client, keys).await.ok()
    }

    /// Tells that `keys` must not be used any more. One that is not there is not used.
    pub async fn leave(&mut self, keys: &[Key], why: &str) -> Vec<Fault> {
        let Some(met) = self.met.as_ref().filter(|_| !keys.is_empty()) else { return Vec::new() };
        let health = Health::Critical(why.to_owned());
        if let Some(catalog) = &met.catalog {
            return catalog.set_health_of_all(keys, &health).await.err().into_iter().collect();
        }
        let Some(registry) = &met.registry else { return Vec::new() };
        let mut faults = Vec::new();
        for key in keys {
            self.told.remove(key);
            match registry.set_health(key, &health).await {
                Err(fault) if fault.code != "ENM-K024" => faults.push(fault.of_service(&key.id)),
                _ => {}
            }
        }
        faults
    }

    /// Takes the node out that stood for this host, now that nothing is left on it.
    ///
    /// # Errors
    /// Consul could not be told.
    pub async fn leave_node(&self) -> Result<(), Fault> {
        match self.catalog() {
            Some(catalog) => catalog.remove_empty_node().await.map(drop),
            None => Ok(()),
        }
    }

    /// Takes `keys` out of Consul. Returns those that are out, and what went wrong with the others.
    pub async fn deregister(&mut self, keys: &BTreeSet<Key>) -> (BTreeSet<Key>, Vec<Fault>) {
        let (mut out, mut faults) = (BTreeSet::new(), Vec::new());
        if keys.is_empty() {
            return (out, faults);
        }
        let registry = match self.meet().await {
            Ok(_) => self.met.as_ref().and_then(|met| met.registry.clone()),
            Err(fault) => return (out, vec![fault]),
        };
        // Nobody to take them out of: they were put there in another mode, by another address.
        let Some(registry) = registry else { return (keys.clone(), faults) };
        for key in keys {
            match registry.deregister(key).await {
                Ok(_) => {
                    self.told.remove(key);
                    self.registered.remove(&key.id);
                    out.insert(key.clone());
                }
                Err(fault) => faults.push(fault.of_service(&key.id)),
            }
        }
        (out, faults)
    }
}

/// The name of the node for services without an agent.
fn node_name(root: &Root, consul: &ConsulConfig) -> String {
    consul.node.clone().unwrap_or_else(|| format!("{}-enmesh", facts::hostname(root)))
}
