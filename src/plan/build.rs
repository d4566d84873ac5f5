//! The planner itself.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::agent;
use super::allocate::{self, PortPool};
use super::capture::Captures;
use super::dns;
use super::facts::User;
use super::namespace::{self, seen_from_host};
use super::problem::PlanError;
use super::registration::{registration, set_outbound_port};
use super::reserved;
use super::told::{COLLECTOR, Told};
use super::{
    Allocations, DnsPlan, ExplicitUpstream, Generation, HostFacts, InboundPorts, Instance, MeshView,
    NamespacePlan, Plan, RedirectPolicy, ServicePlan, SidecarPlan, Xds,
};
use crate::base::Fault;
use crate::config::value::{AddressSpec, Port, Scope, ServiceId, ServiceName, UserSpec};
use crate::config::{Config, DnsMode, HostConfig, Inbound, Mode, RegistrationMode, ServiceConfig};

/// Where each sidecar has its folder.
const RUN_FOLDER: &str = "/run/enmesh";

/// The user of whoever administers the host, enmesh included.
const ROOT: u32 = 0;

/// What should be true on this host.
///
/// A service that cannot be planned is left out with a fault in [`Plan::errors`] — or, where it was
/// good before, stays as it was. No other service notices.
pub fn plan(config: &Config, facts: &HostFacts) -> Plan {
    let mut builder = Builder::new(config, facts);
    let sidecar_user = builder.sidecar_user();
    if let Some(user) = sidecar_user {
        for service in wanted(config, facts) {
            builder.add(&service, user);
        }
    }
    builder.finish()
}

/// The enabled services: those whose files are good, and the last good form of those whose files are
/// not. Those that are in force as they are come first, so that a newcomer that wants what another
/// has is the one to be refused; then by id.
fn wanted(config: &Config, facts: &HostFacts) -> Vec<ServiceConfig> {
    let mut services: BTreeMap<ServiceId, ServiceConfig> =
        config.services.iter().map(|service| (service.id(), service.clone())).collect();
    for (id, service) in &facts.last_good {
        if in_error(config, &service.source) {
            services.entry(id.clone()).or_insert_with(|| service.clone());
        }
    }
    let (in_force, others): (Vec<_>, Vec<_>) = services
        .into_values()
        .filter(|service| service.enabled)
        .partition(|service| facts.last_good.get(&service.id()) == Some(service));
    in_force.into_iter().chain(others).collect()
}

fn in_error(config: &Config, file: &Path) -> bool {
    config.errors.iter().filter_map(|fault| fault.place.as_ref()).any(|place| place.file == file)
}

/// Everything that grows while services are added.
struct Builder<'a> {
    config: &'a Config,
    facts: &'a HostFacts,
    host: &'a HostConfig,
    allocations: Allocations,
    mesh: MeshView,
    wanted: BTreeSet<ServiceId>,
    namespace_names: BTreeSet<String>,
    /// Ports of applications, and those that sidecars listen on besides what they are given here.
    apps: BTreeSet<u16>,
    listens: BTreeMap<SocketAddr, ServiceId>,
    services: BTreeMap<ServiceId, ServicePlan>,
    captures: Captures,
    /// Namespaces and what is captured in them, by their names.
    namespaces: BTreeMap<String, (NamespacePlan, Captures)>,
    /// Of the services in the host's namespace, and of those that have one for themselves.
    dns_modes: BTreeMap<ServiceId, DnsMode>,
    dns_inside: BTreeMap<ServiceId, DnsMode>,
    errors: Vec<Fault>,
    warnings: Vec<Fault>,
}

impl<'a> Builder<'a> {
    fn new(config: &'a Config, facts: &'a HostFacts) -> Self {
        let services = wanted(config, facts);
        Builder {
            config,
            facts,
            host: &config.host,
            allocations: facts.allocations.clone(),
            mesh: facts.mesh.clone(),
            wanted: services.iter().map(ServiceConfig::id).collect(),
            namespace_names: services.iter().filter_map(namespace_name).collect(),
            apps: services
                .iter()
                .flat_map(|service| claimed(service, facts))
                .chain(own_port(&config.host))
                .collect(),
            listens: BTreeMap::new(),
            services: BTreeMap::new(),
            captures: Captures::default(),
            namespaces: BTreeMap::new(),
            dns_modes: BTreeMap::new(),
            dns_inside: BTreeMap::new(),
            errors: reserved::errors(&config.host),
            warnings: reserved::warnings(config),
        }
    }

    fn sidecar_user(&mut self) -> Option<User> {
        let user = match &self.host.envoy.user {
            UserSpec::Name(name) => self.facts.users.get(name).copied(),
            UserSpec::Uid(uid) => {
                let known = self.facts.users.values().find(|user| user.uid == *uid).copied();
                Some(known.unwrap_or(User { uid: *uid, gid: *uid }))
            }
        };
        if user.is_none() && !self.wanted.is_empty() {
            self.errors.push(PlanError::NoSidecarUser { user: self.host.envoy.user.clone() }.into());
        }
        user
    }

    /// Adds a service as configured, or as it last was when it was good, or not at all.
    fn add(&mut self, service: &ServiceConfig, user: User) {
        if in_error(self.config, &service.source) {
            self.warnings
                .push(Fault::from(PlanError::KeptLastGood { id: service.id() }).of_service(service.id()));
        }
        let Err(error) = self.try_add(service, user) else { return };
        let id = service.id();
        self.errors.push(Fault::from(error).of_service(&id));
        let before = self.facts.last_good.get(&id).filter(|before| *before != service);
        if let Some(before) = before
            && self.try_add(before, user).is_ok()
        {
            self.warnings.push(Fault::from(PlanError::KeptLastGood { id: id.clone() }).of_service(id));
        }
    }

    fn try_add(&mut self, service: &ServiceConfig, user: User) -> Result<(), PlanError> {
        let id = service.id();
        let transparent = service.capture.mode == Mode::Transparent;
        // Everything that can fail is worked out first; only then does the service count.
        let mut allocations = self.allocations.clone();
        let mut told = Told::of(service, self.facts.merged.get(&id));
        let outbound = match transparent {
            true => Some(self.outbound_port(&id, &told, &mut allocations)?),
            false => None,
        };
        let inbound = match service.port {
            Some(_) => Some(self.inbound_port(&id, &told, &mut allocations)?),
            None => None,
        };
        let namespace = self.namespace(service, inbound, &mut allocations)?;
        let mut inside = Captures::default();
        if transparent {
            let ports = (outbound, inbound);
            let open = told.open_ports().into_iter().chain(own_port(self.host)).collect();
            let captures = if namespace.is_some() { &mut inside } else { &mut self.captures };
            captures.add(service, ports, &open, user.uid, self.facts, &mut self.warnings)?;
        }
        self.share_listens(&id, &mut told);
        if told.config.remove(COLLECTOR).is_some() {
            let warning = PlanError::NoEffect { id: id.clone(), key: COLLECTOR };
            self.warnings.push(Fault::from(warning).of_service(&id));
        }
        self.allocations = allocations;
        let address = self.address(service);
        self.join_mesh(service, address, inbound);
        if transparent {
            // A virtual IP is of use only to those whose connections to it are redirected.
            let modes = if namespace.is_some() { &mut self.dns_inside } else { &mut self.dns_modes };
            modes.insert(id.clone(), service.capture.dns);
        }
        let xds = match &namespace {
            Some(own) => own.seen_from_within(&self.facts.xds),
            None => self.facts.xds.clone(),
        };
        self.namespaces.extend(namespace.clone().map(|own| (own.name.clone(), (own, inside))));
        let checked = namespace.as_ref().map(|own| seen_from_host(service, own.inside()));
        let service = checked.as_ref().unwrap_or(service);
        let mut plan = self.service_plan(service, told, user, address, (outbound, inbound));
        if take_token(&mut plan.registration) {
            let warning = PlanError::TokenInFile { id: id.clone() };
            self.warnings.push(Fault::from(warning).of_service(&id));
        }
        plan.sidecar.xds = xds;
        self.services.insert(id, plan);
        Ok(())
    }

    /// The namespace that `service` has for itself, if it wants one.
    fn namespace(
        &self,
        service: &ServiceConfig,
        inbound: Option<u16>,
        allocations: &mut Allocations,
    ) -> Result<Option<NamespacePlan>, PlanError> {
        let Scope::Netns(name) = &service.capture.scope else { return Ok(None) };
        let id = service.id();
        if let Some((other, _)) = self.namespaces.get(name) {
            let (other, what) = (other.service.clone(), format!("all of the namespace `{name}`"));
            return Err(PlanError::Overlap { id, other, what });
        }
        let unit = service.capture.unit.as_ref().map(ToString::to_string);
        let same = |(own, _): &&(NamespacePlan, Captures)| unit.is_some() && own.unit == unit;
        if let Some((other, _)) = self.namespaces.values().find(same) {
            let (other, what) = (other.service.clone(), format!("the unit {}", unit.unwrap_or_default()));
            return Err(PlanError::Overlap { id, other, what });
        }
        let given = &mut allocations.namespaces;
        let pool = self.host.namespaces.pool;
        let net = namespace::network(given, &self.namespace_names, pool, self.facts, (&id, name))?;
        let redirect = RedirectPolicy::default();
        let agent = namespace::agent(&self.facts.xds);
        // What is captured by port can be told from everything else, for those who check it.
        let app = service.port.filter(|_| service.capture.inbound == Inbound::Service).map(Port::get);
        let (name, checkers) = (name.clone(), BTreeSet::new());
        Ok(Some(NamespacePlan { name, service: id, net, inbound, app, checkers, agent, unit, redirect }))
    }

    /// Where the registration is not ours, what it says is where Consul puts the listener. Otherwise
    /// it says what we told it.
    fn outbound_port(
        &self,
        id: &ServiceId,
        told: &Told,
        allocations: &mut Allocations,
    ) -> Result<u16, PlanError> {
        let registered = told.outbound_port.filter(|_| self.host.registration == RegistrationMode::None);
        match registered {
            Some(port) => Ok(port),
            None => self.pool("outbound").port(&mut allocations.outbound, &self.wanted, id),
        }
    }

    fn inbound_port(
        &self,
        id: &ServiceId,
        told: &Told,
        allocations: &mut Allocations,
    ) -> Result<u16, PlanError> {
        let registered = told.port.filter(|_| self.host.registration == RegistrationMode::None);
        let Some(port) = told.bind_port.or(registered) else {
            return self.pool("inbound").port(&mut allocations.inbound, &self.wanted, id);
        };
        if self.facts.foreign_ports.contains(&port) {
            return Err(PlanError::PortTaken { id: id.clone(), kind: "inbound", port });
        }
        let has = |service: &&ServicePlan| {
            let SidecarPlan { inbound_port, outbound_port, .. } = &service.sidecar;
            [*inbound_port, *outbound_port, service.port.map(Port::get)].contains(&Some(port))
        };
        match self.services.values().find(has) {
            Some(other) => {
                let whose = format!("a port of service `{}`", other.id);
                Err(PlanError::BindPort { id: id.clone(), port, whose })
            }
            None => Ok(port),
        }
    }

    /// Metrics of two sidecars cannot be at one address, which is what defaults for the whole
    /// cluster ask for on a host with two services. The first keeps it.
    fn share_listens(&mut self, id: &ServiceId, told: &mut Told) {
        for (key, at) in told.listens().collect::<Vec<_>>() {
            let other = self.listens.entry(at).or_insert_with(|| id.clone()).clone();
            if other != *id {
                told.config.remove(key);
                let warning = PlanError::ListenTaken { id: id.clone(), other, key, at };
                self.warnings.push(Fault::from(warning).of_service(id));
            }
        }
    }

    fn pool(&self, kind: &'static str) -> PortPool<'_> {
        let range = if kind == "outbound" { self.host.ports.outbound } else { self.host.ports.inbound };
        PortPool { kind, range, foreign: &self.facts.foreign_ports, apps: &self.apps }
    }

    fn address(&self, service: &ServiceConfig) -> Option<IpAddr> {
        let mut addresses = self.facts.addresses.iter();
        match &service.address {
            AddressSpec::Ip(ip) => Some(*ip),
            AddressSpec::Interface(name) => {
                addresses.find(|a| a.interface == name.as_str()).map(|a| a.address)
            }
            AddressSpec::Auto => self.facts.default_source.or_else(|| addresses.next().map(|a| a.address)),
        }
    }

    /// A service of this host is part of the mesh as this host sees it, whether or not the control
    /// plane lists it.
    fn join_mesh(&mut self, service: &ServiceConfig, address: Option<IpAddr>, inbound: Option<u16>) {
        let entry = self.mesh.services.entry(service.name.clone()).or_default();
        if let Some(ip) = service.legacy.as_ref().and_then(|legacy| legacy.virtual_ip) {
            entry.virtual_ips.insert(ip);
        }
        if let (Some(address), Some(port)) = (address, inbound)
            && !entry.instances.iter().any(|instance| instance.address == address)
        {
            // On the host's address nobody listens on the app's port where the app is in a namespace.
            let reached = namespace_name(service).is_none();
            let service_port = service.port.filter(|_| reached).map(Port::get);
            entry.instances.insert(Instance { address, port, service_port, weight: 1 });
        }
    }

    fn service_plan(
        &self,
        service: &ServiceConfig,
        told: Told,
        user: User,
        address: Option<IpAddr>,
        (outbound_port, inbound_port): (Option<u16>, Option<u16>),
    ) -> ServicePlan {
        let id = service.id();
        // Files are rendered from the plan's own port; Consul has to be told.
        let said = outbound_port.filter(|_| matches!(self.facts.xds, Xds::Ads(_)));
        ServicePlan {
            name: service.name.clone(),
            port: service.port,
            address,
            identity: self.mesh.spiffe_id(&service.name),
            sidecar: SidecarPlan {
                uid: user.uid,
                gid: user.gid,
                program: self.program(),
                outbound_port,
                inbound_port,
                apart: namespace_name(service).is_some(),
                ipv6: self.facts.ipv6,
                folder: Path::new(RUN_FOLDER).join(id.as_str()),
                drain: self.host.envoy.drain,
                config: told.config,
                xds: self.facts.xds.clone(),
                access_log: told.access_log,
            },
            upstreams: service
                .upstreams
                .iter()
                .map(|up| ExplicitUpstream { service: up.name.clone(), port: up.local_port.get() })
                .collect(),
            registration: complete(registration(service), &id, address, (said, inbound_port)),
            id,
        }
    }

    /// Where it is not installed yet, the place where packages put it: an offline look at another
    /// host's configuration needs no Envoy, and starting it says what is missing.
    fn program(&self) -> PathBuf {
        self.facts.envoy.clone().unwrap_or_else(|| Path::new("/usr/bin").join(&self.host.envoy.path))
    }

    fn finish(mut self) -> Plan {
        self.allocate_virtual_ips();
        let (redirect, namespaces) = self.redirect();
        let dns = self.dns(&namespaces);
        let inside = namespaces.values().find_map(|namespace| namespace.redirect.virtual_route);
        self.mesh.virtual_net = redirect.virtual_route.or(inside);
        self.errors.sort_by(|a, b| (&a.service, a.code).cmp(&(&b.service, b.code)));
        let mut plan = Plan {
            generation: Generation::default(),
            allocations: self.allocations,
            services: self.services,
            virtual_net: redirect.virtual_route,
            redirect,
            namespaces,
            dns,
            mesh: self.mesh,
            errors: self.errors,
            warnings: self.warnings,
        };
        plan.generation = generation(&plan, self.facts.previous.as_ref());
        let inside = plan.namespaces.values_mut().map(|namespace| &mut namespace.redirect);
        for policy in inside.chain([&mut plan.redirect]) {
            policy.generation = plan.generation.clone();
        }
        plan
    }

    fn allocate_virtual_ips(&mut self) {
        let names: BTreeSet<ServiceName> = self.mesh.services.keys().cloned().collect();
        let taken: BTreeSet<IpAddr> =
            self.mesh.services.values().flat_map(|service| service.virtual_ips.iter().copied()).collect();
        for name in &names {
            let without = self.mesh.services.get_mut(name).filter(|service| service.virtual_ips.is_empty());
            let Some(service) = without else { continue };
            let given = &mut self.allocations.virtual_ips;
            match allocate::virtual_ip(given, &taken, &names, self.host.virtual_ips, name) {
                Ok(ip) => drop(service.virtual_ips.insert(IpAddr::V4(ip))),
                Err(error) => self.errors.push(error.into()),
            }
        }
    }

    /// The redirection in the host's namespace and in those of services.
    fn redirect(&mut self) -> (RedirectPolicy, BTreeMap<String, NamespacePlan>) {
        let own: BTreeSet<IpAddr> = self.facts.addresses.iter().map(|a| a.address).collect();
        let consul = match &self.host.consul.user {
            Some(UserSpec::Uid(uid)) => Some(*uid),
            Some(UserSpec::Name(name)) => self.facts.users.get(name).map(|user| user.uid),
            None => self.facts.users.get("consul").map(|user| user.uid),
        };
        let proxy_uids: BTreeSet<u32> =
            self.services.values().map(|service| service.sidecar.uid).chain(consul).collect();
        let checkers: BTreeSet<u32> = consul.into_iter().chain([ROOT]).collect();
        let pool = self.host.virtual_ips;
        let inside = std::mem::take(&mut self.namespaces).into_iter().map(|(name, (own, captures))| {
            // What the host's own addresses are there is elsewhere from in here.
            let here = BTreeSet::from([IpAddr::V4(own.inside())]);
            let mut redirect = captures.policy(pool, &self.mesh, &here, proxy_uids.clone());
            redirect.host_end = own.app.map(|_| own.outside());
            (name, NamespacePlan { redirect, checkers: checkers.clone(), ..own })
        });
        let inside = inside.collect();
        let mut policy = std::mem::take(&mut self.captures).policy(pool, &self.mesh, &own, proxy_uids);
        policy.own_calls = self.facts.consul && !policy.outbound.is_empty();
        let listen = self.host.dns.listen;
        if policy.inbound.values().any(|capture| capture.ports == InboundPorts::All) {
            let agent = agent::ports(self.host, self.facts);
            policy.agent_ports = agent.difference(&self.apps).copied().collect();
        }
        policy.dns = dns::capture(listen, &self.dns_modes, &policy.outbound, &self.facts.users);
        (policy, inside)
    }

    fn dns(&self, namespaces: &BTreeMap<String, NamespacePlan>) -> DnsPlan {
        let listen = self.host.dns.listen;
        let asks = |own: &&NamespacePlan| {
            self.dns_inside.get(&own.service).is_some_and(|mode| *mode != DnsMode::Off)
        };
        let inside: BTreeSet<SocketAddr> =
            namespaces.values().filter(asks).map(|own| (own.outside(), listen.port()).into()).collect();
        let resolved_inside = self.dns_inside.values().any(|mode| *mode == DnsMode::Resolved);
        let wanted = !inside.is_empty() || self.dns_modes.values().any(|mode| *mode != DnsMode::Off);
        let name = |name: &ServiceName| format!("{}.virtual.consul", name.as_str().to_ascii_lowercase());
        let has = |wanted| self.dns_modes.values().any(|mode| *mode == wanted);
        let services = self.mesh.services.iter().filter(|_| wanted);
        DnsPlan {
            listen: wanted.then_some(listen),
            inside,
            // In a namespace, who looks names up through nss-resolve asks the host's systemd-resolved.
            resolved: self.facts.systemd && (has(DnsMode::Resolved) || resolved_inside),
            redirect: has(DnsMode::Redirect),
            consul: if wanted { dns::consul(self.host) } else { None },
            records: services
                .map(|(service, entry)| (name(service), entry.virtual_ips.iter().copied().collect()))
                .collect(),
        }
    }
}

fn namespace_name(service: &ServiceConfig) -> Option<String> {
    match &service.capture.scope {
        Scope::Netns(name) => Some(name.clone()),
        Scope::Host | Scope::User(_) | Scope::Unit(_) => None,
    }
}

/// The port that enmesh itself answers at.
fn own_port(host: &HostConfig) -> Option<u16> {
    host.readiness.listen.map(|listen| listen.port())
}

/// Ports that `service` takes by itself: no sidecar is given one of those.
fn claimed(service: &ServiceConfig, facts: &HostFacts) -> Vec<u16> {
    let told = Told::of(service, facts.merged.get(&service.id()));
    told.claimed().chain(service.port.map(Port::get)).collect()
}

/// The registration with what enmesh knows beyond the service file.
fn complete(
    mut registration: Value,
    id: &ServiceId,
    address: Option<IpAddr>,
    (outbound, inbound): (Option<u16>, Option<u16>),
) -> Value {
    let Some(service) = registration.get_mut("service").and_then(Value::as_object_mut) else {
        return registration;
    };
    service.entry("id").or_insert_with(|| json!(id));
    if let Some(address) = address {
        service.entry("address").or_insert_with(|| json!(address));
    }
    let nested = service.get_mut("connect").and_then(|connect| connect.get_mut("sidecar_service"));
    if let Some(nested) = nested.and_then(Value::as_object_mut) {
        if let Some(port) = inbound {
            nested.entry("port").or_insert_with(|| json!(port));
        }
        if let Some(port) = outbound {
            set_outbound_port(nested, port);
        }
    }
    registration.sort_all_objects();
    registration
}

/// A registration is printed, compared and written; a secret has no place in it.
fn take_token(registration: &mut Value) -> bool {
    let service = registration.get_mut("service").and_then(Value::as_object_mut);
    service.is_some_and(|service| service.remove("token").is_some())
}

fn generation(plan: &Plan, previous: Option<&Generation>) -> Generation {
    /// Everything that converges; a change in any of it is another generation.
    #[derive(Serialize)]
    struct Content<'a> {
        services: &'a BTreeMap<ServiceId, ServicePlan>,
        redirect: &'a RedirectPolicy,
        #[serde(skip_serializing_if = "BTreeMap::is_empty")]
        namespaces: &'a BTreeMap<String, NamespacePlan>,
        dns: &'a DnsPlan,
        mesh: &'a MeshView,
    }
    // Who is well at the moment is no matter of generations: it changes all the time, and nothing but
    // the endpoints that sidecars are told follows from it.
    let mut mesh = plan.mesh.clone();
    mesh.services.values_mut().for_each(|service| service.instances.clear());
    let Plan { services, redirect, namespaces, dns, .. } = plan;
    let content = Content { services, redirect, namespaces, dns, mesh: &mesh };
    // Plain data with string keys always serialises; an empty text would only merge generations.
    let bytes = serde_json::to_vec(&content).unwrap_or_default();
    let hash: String = Sha256::digest(&bytes).iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    let number = match previous {
        Some(previous) if previous.hash == hash => previous.number,
        Some(previous) => previous.number + 1,
        None => 1,
    };
    Generation { number, hash }
}
