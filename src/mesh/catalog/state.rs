//! What Consul has told so far, and the picture that follows from it.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::CatalogWarning;
use super::answers::ConfigEntry;
use super::instances::{Endpoints, of_sidecar};
use super::intentions::Rules;
use crate::base::Fault;
use crate::config::value::ServiceName;
use crate::mesh::Local;
use crate::plan::{MeshService, MeshView, Protocol};

/// The most services that are followed with a call of their own each. Consul takes 200 connections
/// from one address (`limits.http_max_conns_per_client`), and others talk from here, too.
pub(super) const ALONE_MAX: usize = 64;

/// The kinds of config entries that a discovery chain is made of.
pub(super) const CONFIG_KINDS: [&str; 5] =
    ["proxy-defaults", "service-defaults", "service-resolver", "service-router", "service-splitter"];

/// Consul's answers, as they were told last. What is `None` was not told yet.
#[derive(Debug, Default)]
pub(super) struct State {
    pub locals: Vec<Local>,
    pub datacenter: Option<String>,
    /// What holds between services that no intention is about.
    pub default_allow: Option<bool>,
    /// The trust domain and the roots, PEM.
    pub trust: Option<(String, String)>,
    /// The catalog's services, and whether each has sidecars of the usual name.
    pub names: Option<BTreeMap<ServiceName, bool>>,
    /// What this host's services match as sources and as destinations.
    pub rules: BTreeMap<ServiceName, LocalRules>,
    /// By kind.
    pub config: BTreeMap<&'static str, Chains>,
    pub endpoints: BTreeMap<ServiceName, Endpoints>,
}

/// The intentions of one service of this host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct LocalRules {
    pub source: Rules,
    pub destination: Rules,
}

/// What one kind of config entries says, by service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Chains {
    /// What services speak; `*` for those that say nothing.
    protocols: BTreeMap<String, Protocol>,
    /// Services whose chain is more than a plain resolver.
    chained: BTreeSet<String>,
}

/// Which services are followed, and how.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Each with a call of its own that waits.
    pub alone: BTreeSet<ServiceName>,
    /// All together.
    pub crowd: BTreeSet<ServiceName>,
}

/// The mesh, and what a person should know about it.
pub(super) struct Picture {
    pub view: MeshView,
    pub warnings: Vec<Fault>,
}

impl State {
    /// Whether the names of the whole catalog are needed: some service may call whoever is there.
    pub fn needs_names(&self) -> bool {
        let default = self.default_allow.unwrap_or_default();
        self.locals.iter().filter(|local| local.transparent).any(|local| {
            self.rules.get(&local.name).is_some_and(|rules| rules.source.may_call_unnamed(default))
        })
    }

    /// What `local` can reach, as far as is known: its explicit upstreams, and what it may call.
    fn reach(&self, local: &Local) -> BTreeSet<ServiceName> {
        let mut reach = local.upstreams.clone();
        let Some(LocalRules { source, .. }) = self.rules.get(&local.name) else { return reach };
        let Some(default) = self.default_allow.filter(|_| local.transparent) else { return reach };
        let may = |name: &ServiceName| source.may_call(name.as_str(), default);
        reach.extend(source.destinations().into_iter().filter(may));
        if source.may_call_unnamed(default) {
            reach.extend(self.names.iter().flat_map(BTreeMap::keys).filter(|name| may(name)).cloned());
        }
        reach
    }

    /// The services to follow. Those of which the catalog says that they are in the mesh get a call
    /// each, as long as these are few: a host mostly reaches a few services of a large cluster, and
    /// then hears nothing of the others. Beyond that a call each would use up the agent's
    /// connections.
    pub fn wanted(&self) -> Wanted {
        let mut alone: BTreeSet<ServiceName> = BTreeSet::new();
        let mut rest: BTreeSet<ServiceName> = BTreeSet::new();
        for local in &self.locals {
            alone.insert(local.name.clone());
            alone.extend(local.upstreams.iter().cloned());
            rest.extend(self.reach(local));
        }
        let usual =
            |name: &ServiceName| self.names.as_ref().and_then(|names| names.get(name)) != Some(&false);
        let (likely, crowd): (BTreeSet<_>, BTreeSet<_>) = rest.into_iter().partition(usual);
        let mut crowd = crowd;
        if alone.union(&likely).count() <= ALONE_MAX {
            alone.extend(likely);
        } else {
            crowd.extend(likely);
        }
        // More explicit upstreams than connections is nobody's case, and still no reason to fail.
        while alone.len() > ALONE_MAX {
            crowd.extend(alone.pop_last());
        }
        crowd.retain(|name| !alone.contains(name));
        Wanted { alone, crowd }
    }

    /// Whether everything that the picture is made of was told.
    pub fn is_whole(&self) -> bool {
        let wanted = self.wanted();
        self.datacenter.is_some()
            && self.default_allow.is_some()
            && self.trust.is_some()
            && self.config.len() == CONFIG_KINDS.len()
            && self.locals.iter().all(|local| self.rules.contains_key(&local.name))
            && (!self.needs_names() || self.names.is_some())
            && wanted.alone.union(&wanted.crowd).all(|name| self.endpoints.contains_key(name))
    }

    /// The mesh, with what was told so far.
    pub fn picture(&self) -> Picture {
        let mut view = MeshView {
            trust_domain: self.trust.as_ref().map(|(domain, _)| domain.clone()).unwrap_or_default(),
            datacenter: self.datacenter.clone().unwrap_or_default(),
            ..MeshView::default()
        };
        let mut warnings = Vec::new();
        for local in &self.locals {
            view.reach.entry(local.name.clone()).or_default().extend(self.reach(local));
        }
        let named = self.locals.iter().flat_map(|it| it.upstreams.iter().chain([&it.name])).cloned();
        let named: BTreeSet<ServiceName> = named.collect();
        let reached: BTreeSet<ServiceName> = view.reach.values().flatten().cloned().collect();
        for name in named.union(&reached) {
            let endpoints = self.endpoints.get(name);
            if !named.contains(name) && !endpoints.is_some_and(|endpoints| endpoints.present) {
                continue;
            }
            warnings.extend(endpoints.iter().flat_map(|it| it.warnings.iter().cloned()));
            warnings.extend(self.chain_warnings(name));
            view.services.insert(name.clone(), self.service(name, endpoints));
        }
        for reach in view.reach.values_mut() {
            reach.retain(|name| view.services.contains_key(name));
        }
        Picture { view, warnings }
    }

    fn service(&self, name: &ServiceName, endpoints: Option<&Endpoints>) -> MeshService {
        // Who may call is enforced where the service is; of others it is not asked.
        let rules = self.rules.get(name).filter(|_| self.locals.iter().any(|local| local.name == *name));
        let callers =
            rules.zip(self.default_allow).map(|(rules, default)| rules.destination.callers(default));
        MeshService {
            virtual_ips: endpoints.map(|it| it.virtual_ips.clone()).unwrap_or_default(),
            instances: endpoints.map(|it| it.instances.clone()).unwrap_or_default(),
            callers: callers.unwrap_or_default(),
            protocol: self.protocol(name.as_str()),
        }
    }

    fn protocol(&self, name: &str) -> Protocol {
        let of = |kind, name: &str| self.config.get(kind)?.protocols.get(name).copied();
        of("service-defaults", name).or_else(|| of("proxy-defaults", ANY)).unwrap_or_default()
    }

    fn chain_warnings(&self, name: &ServiceName) -> impl Iterator<Item = Fault> {
        let chained = self.config.iter().filter(|(_, chains)| chains.chained.contains(name.as_str()));
        chained.map(|(kind, _)| CatalogWarning::Chain { service: name.to_string(), kind }.into())
    }
}

/// Stands for every service.
const ANY: &str = "*";

impl Chains {
    /// From the entries of `kind`.
    pub fn new(kind: &str, entries: Vec<ConfigEntry>) -> Self {
        let mut chains = Chains::default();
        for entry in entries {
            let plain = entry.default_subset.is_empty()
                && entry.subsets.is_empty()
                && entry.failover.is_empty()
                && entry.redirect.is_none();
            match kind {
                "service-defaults" => {
                    chains.protocols.extend(protocol(&entry.protocol).map(|it| (entry.name, it)));
                }
                "proxy-defaults" => {
                    let text = entry.config.protocol.as_str().unwrap_or_default();
                    chains.protocols.extend(protocol(text).map(|it| (ANY.to_owned(), it)));
                }
                "service-resolver" if plain => {}
                _ => drop(chains.chained.insert(entry.name)),
            }
        }
        chains
    }
}

fn protocol(text: &str) -> Option<Protocol> {
    // The same words as everywhere in this program.
    serde_json::from_value(Value::String(text.to_ascii_lowercase())).ok()
}

/// The services among the names of a catalog, without Consul's servers and without sidecars, and
/// whether each has sidecars of the usual name.
pub(super) fn services_among<'a>(
    names: impl Iterator<Item = &'a String> + Clone,
) -> BTreeMap<ServiceName, bool> {
    let sidecars: BTreeSet<&str> = names.clone().filter_map(|name| of_sidecar(name)).collect();
    let services = names.filter(|name| of_sidecar(name).is_none() && *name != "consul");
    services.filter_map(|name| Some((name.parse().ok()?, sidecars.contains(name.as_str())))).collect()
}
