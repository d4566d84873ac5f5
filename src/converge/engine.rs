//! The one way through: configuration -> plan -> host.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt};
use serde_json::Value;
use tokio::time::timeout;

use super::adapters::{self, Adapters};
use super::address::Addresses;
use super::drive::{Drive, News};
use super::facts;
use super::health::{self, Checks};
use super::membership::{ConsulStatus, Registered};
use super::names::Names;
use super::namespaces::Namespaces;
use super::preflight;
use super::sidecar::{Around, Phase, SidecarStatus};
use super::state::{Remembered, State};
use super::trial;
use crate::base::units::Units;
use crate::base::{Fault, Root};
use crate::config::value::ServiceId;
use crate::config::{self, Config, HostConfig, Mode, Profile, ServiceConfig};
use crate::envoy::{self, Publisher};
use crate::mesh::Local;
use crate::plan::facts::SshSession;
use crate::plan::{self, HostFacts, MeshView, Plan, ServicePlan, Xds};
use crate::redirect::Desired;
use crate::systemd::Systemd;
use crate::systemd::scope::UnitUser;

/// A plan together with the configuration that it came from.
pub struct Intent {
    /// What was read.
    pub config: Config,
    /// What follows from it.
    pub plan: Plan,
    /// The mesh that the plan was made for, as the control plane told it.
    pub view: MeshView,
    /// Why that is the mesh as it was seen last, where it cannot be seen now.
    pub unseen: Option<Fault>,
    /// Why this host is not logged in at Consul.
    pub login: Option<Fault>,
    /// What a person should know of the control plane.
    pub of_mesh: Vec<Fault>,
}

impl Intent {
    /// Everything that is wrong with the configuration or cannot be carried out on this host.
    pub fn faults(&self) -> Vec<Fault> {
        let login = self.login.iter().filter(|fault| self.unseen.as_ref() != Some(*fault));
        login.chain(&self.unseen).chain(&self.config.errors).chain(&self.plan.errors).cloned().collect()
    }

    /// Everything that a person should know.
    pub fn warnings(&self) -> Vec<Fault> {
        let watches = preflight::watches(&self.plan).map(Fault::from);
        let by_files = self.plan.services.values().filter(|service| service.sidecar.xds == Xds::Files);
        let unheeded = by_files.flat_map(envoy::unheeded);
        let of_files = self.config.warnings.iter().chain(&self.plan.warnings);
        of_files.chain(&self.of_mesh).cloned().chain(unheeded).chain(watches).collect()
    }
}

/// What converging did.
#[derive(Debug, Default)]
pub struct Outcome {
    /// What went wrong, each fault of one service or of the host.
    pub faults: Vec<Fault>,
}

/// How many sidecars are brought up side by side: each has its documents in memory meanwhile.
pub(super) const AT_ONCE: usize = 8;

/// The rules of a new plan wait for so long at most until new sidecars have started. Consul may take
/// its time for a certificate, and no host is to be open meanwhile.
const HEAD_START: Duration = Duration::from_millis(50);

/// What an engine is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To look: nothing is touched.
    Look,
    /// To make it so.
    Converge,
}

/// Converges one host, again and again.
pub struct Engine {
    pub(super) root: Root,
    pub(super) purpose: Purpose,
    pub(super) adapters: Adapters,
    pub(super) publisher: Publisher,
    pub(super) state: State,
    pub(super) names: Names,
    pub(super) namespaces: Namespaces,
    /// The plan in force.
    pub(super) plan: Option<Plan>,
    pub(super) sidecars: BTreeMap<ServiceId, SidecarStatus>,
    /// The checks that enmesh runs.
    pub(super) checks: Checks,
    /// The rules as they were set last.
    pub(super) rules: Option<Desired>,
    /// Whether another redirector is in force as well, from which this one takes over.
    pub(super) beside_others: bool,
    /// Who knows at which address others reach this host.
    pub(super) addresses: Addresses,
    /// Which files were read last.
    configuration: Option<String>,
    /// What the plan in force was made from.
    pub(super) made_from: Option<(Config, HostFacts)>,
    /// The host file as it counted last.
    pub(super) host: HostConfig,
    /// What a person asked for beyond what the files say.
    asked: Asked,
}

/// What a person can ask for once.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    /// Capture the ports of SSH sessions as well.
    pub force: bool,
    /// SSH sessions that whoever asks has seen.
    pub ssh_sessions: Vec<SshSession>,
}

impl Engine {
    /// An engine on the tree `root`, with the adapters that the host file asks for.
    ///
    /// # Errors
    /// The state cannot be used, or an adapter is not to be had (no `nft`, no system bus).
    pub async fn open(root: Root, purpose: Purpose) -> Result<(Engine, Vec<Fault>), Fault> {
        let (state, unreadable) = match purpose {
            Purpose::Look => State::look(&root)?,
            Purpose::Converge => State::load(&root)?,
        };
        let config = load(&root, &state);
        if purpose == Purpose::Converge {
            let systemd = facts::runs_systemd(&root, &config.host);
            let captures =
                |service: &ServiceConfig| service.enabled && service.capture.mode == Mode::Transparent;
            preflight::capabilities(!systemd, systemd || config.services.iter().any(captures))?;
        }
        let adapters = Adapters::choose(&root, &config.host, purpose).await?;
        let addresses = Addresses::new(&config.host, adapters.drive.consul().as_ref());
        let publisher = Publisher::new(root.clone());
        let names = Names::new(root.clone());
        let mut engine = Engine {
            root,
            purpose,
            adapters,
            publisher,
            state,
            names,
            namespaces: Namespaces::default(),
            plan: None,
            sidecars: BTreeMap::new(),
            checks: Checks::default(),
            rules: None,
            beside_others: false,
            addresses,
            configuration: None,
            made_from: None,
            host: config.host,
            asked: Asked::default(),
        };
        if purpose == Purpose::Converge {
            engine.resume_trial()?;
        }
        Ok((engine, unreadable.into_iter().collect()))
    }

    /// The host as it was when the plan was made.
    pub(super) fn facts(&self) -> Option<&HostFacts> {
        self.made_from.as_ref().map(|(_, facts)| facts)
    }

    /// The tree.
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// The unit operations, for their events.
    pub fn units(&self) -> Rc<dyn Units> {
        Rc::clone(&self.adapters.units)
    }

    /// The group that may use the control socket: `enmesh`, where the host has it.
    pub fn control_group(&self) -> Option<u32> {
        facts::group(&self.root, "enmesh")
    }

    /// Files whose change may change the mesh.
    pub fn mesh_paths(&self) -> Vec<PathBuf> {
        self.adapters.drive.watch_paths(&self.root, &self.host)
    }

    /// How Consul is, where it has a part in this.
    pub fn consul(&self) -> Option<ConsulStatus> {
        self.adapters.drive.consul_status()
    }

    /// How each registration is.
    pub fn registered(&self, id: &ServiceId) -> Option<&Registered> {
        self.adapters.drive.membership.as_ref()?.registered().get(id)
    }

    /// Which files were read last, see [`config::stamp`].
    pub fn configuration(&self) -> Option<&str> {
        self.configuration.as_deref()
    }

    /// The plan in force.
    pub fn plan_in_force(&self) -> Option<&Plan> {
        self.plan.as_ref()
    }

    /// The sidecars of the plan in force.
    pub fn sidecars(&self) -> &BTreeMap<ServiceId, SidecarStatus> {
        &self.sidecars
    }

    /// The names of the driver, the unit manager and the control plane.
    pub fn adapters(&self) -> [&'static str; 3] {
        [self.adapters.firewall.name(), self.adapters.units.name(), self.adapters.drive.name()]
    }

    /// What kind of host this is.
    pub fn profile(&self) -> Profile {
        self.host.profile
    }

    /// Where questions about readiness are answered.
    pub fn readiness(&self) -> Option<SocketAddr> {
        self.host.readiness.listen
    }

    /// What is lost because nothing can be redirected here; `None` where something can.
    pub fn not_redirected(&self) -> Option<&'static str> {
        (!self.adapters.redirects).then_some(
            "this container lacks CAP_NET_ADMIN: only explicit upstreams on loopback are in the mesh, everything else \
             that the app dials goes in the clear, and its own port answers whoever reaches it",
        )
    }

    /// Works out what should be true now.
    ///
    /// # Errors
    /// The mesh or the host cannot be read; what is in force stays in force.
    pub async fn intend(&mut self) -> Result<Intent, Fault> {
        // Before they are read: what is written meanwhile is not taken for read.
        self.configuration = config::stamp(&self.root).ok();
        let config = load(&self.root, &self.state);
        // Nothing is done by halves of a file: there is a last good host file, or nothing to do.
        if let (false, None) = (config.host_ok, &self.state.host)
            && let Some(fault) = config.errors.iter().find(|fault| fault.service.is_none())
        {
            return Err(fault.clone());
        }
        self.follow_addresses(&config.host);
        self.host = config.host.clone();
        self.ask_for_address().await;
        let drive = &mut self.adapters.drive;
        drive.follow(&self.root, &config.host).await?;
        if self.purpose == Purpose::Converge {
            drive.mesh.prepare(SystemTime::now()).await?;
        }
        drive.mesh.follow(&locals(&config));
        let (view, unseen) = self.view().await;
        let view = self.adapters.drive.with_past(&mut self.state, &config.host, view);
        let users = self.adapters.unit_users(facts::scoped_units(&config)).await;
        let mut facts = facts::live(&self.root, &config, &self.state, view.clone(), users).await?;
        let drive = &self.adapters.drive;
        facts.xds = drive.xds.clone();
        facts.merged = merged(drive, &config).await;
        let Asked { force, ssh_sessions } = std::mem::take(&mut self.asked);
        facts.force = force;
        facts.default_source = self.state.address.or(facts.default_source);
        facts.ssh_sessions.extend(ssh_sessions);
        let plan = plan::plan(&config, &facts);
        self.state.ssh =
            if plan.errors.iter().any(is_about_ssh) { facts.ssh_sessions.clone() } else { BTreeSet::new() };
        self.made_from = Some((config.clone(), facts));
        let drive = &mut self.adapters.drive;
        drive.check_rights(&plan).await;
        let (login, mut of_mesh) = (drive.login_fault(), drive.warnings());
        of_mesh.extend(health::unheeded(drive.membership.as_ref(), &config));
        of_mesh.extend(self.addresses.warning());
        Ok(Intent { config, plan, view, unseen, login, of_mesh })
    }

    /// The mesh as it is; as it was seen last where it cannot be seen; and where it never was, an empty
    /// one, so that the rules close what belongs into it.
    async fn view(&self) -> (MeshView, Option<Fault>) {
        match self.adapters.drive.mesh.view().await {
            Ok(view) => (view, None),
            Err(fault) => (self.state.mesh.clone().unwrap_or_default(), Some(fault)),
        }
    }

    /// For the next time that it is worked out what should be true.
    pub fn ask(&mut self, asked: Asked) {
        self.give_another_chance();
        self.asked = asked;
    }

    /// Waits until the mesh, or what Consul has of this host, may have changed.
    pub async fn mesh_changed(&self) -> News {
        tokio::select! {
            news = self.adapters.drive.changed() => news,
            () = self.addresses.due() => News::Address,
        }
    }

    /// Makes `intent` true.
    ///
    /// Nothing is touched when the host is not fit for it (see `preflight`). Else in this order: what
    /// was given out is remembered, so that no crash gives it out twice; the rules come up with only
    /// those sidecars live that are so already, so that what is not yet in the mesh is closed rather
    /// than in the clear; each sidecar gets its certificates and files, starts, and is live; the rules
    /// let traffic to it, and it is asked whether it took everything up; sidecars that no plan knows any
    /// more end; the generation is recorded.
    pub async fn converge(&mut self, intent: Intent) -> Outcome {
        let Intent { config, plan, view, .. } = intent;
        let inodes: Vec<u64> = self.namespaces().values().map(|identity| identity.inode).collect();
        let mut faults = match preflight::check(&plan, self.beside_others, &inodes) {
            Ok(reasons) if reasons.is_empty() => Vec::new(),
            Ok(reasons) => return Outcome { faults: reasons },
            Err(fault) => return Outcome { faults: vec![fault] },
        };
        self.state.allocations = plan.allocations.clone();
        keep(&mut faults, self.state.save(&self.root));
        self.sidecars.retain(|id, _| plan.services.contains_key(id));
        self.look_at_new(&plan).await;
        let begun = self.begin_new(&plan).await;
        if let Err(fault) = self.close_rules(&plan).await {
            // Without rules that are closed, nothing more may come up.
            faults.push(fault);
            for id in begun {
                keep(&mut faults, self.around().stop(id.as_str()).await);
            }
            return Outcome { faults };
        }
        self.close_namespaces(&plan);
        // The next boot is closed by what closes this one.
        keep(&mut faults, self.state.save(&self.root));
        keep(&mut faults, self.hold_units(&config).await);

        faults.extend(self.keep_entries().await);
        faults.extend(self.register(&plan).await);
        self.run_checks(&config, &plan).await;
        faults.extend(self.tell_not_live(&plan).await);
        let around = self.around();
        let ups = plan.services.values().map(|service| around.bring_up(&plan, service));
        let statuses: Vec<SidecarStatus> = stream::iter(ups).buffered(AT_ONCE).collect().await;
        faults.extend(statuses.iter().filter_map(|status| status.fault.clone()));
        self.sidecars = plan.services.keys().cloned().zip(statuses).collect();

        keep(&mut faults, self.open_rules(&plan).await);
        faults.extend(self.open_namespaces(&plan));
        faults.extend(self.place_apps(&plan).await);
        faults.extend(self.verify(&plan).await);
        faults.extend(self.tell_health(&plan).await);
        keep(&mut faults, self.names.serve(&plan.dns, self.adapters.systemd.as_ref()).await);
        if self.pending().is_none() {
            faults.extend(self.end_unplanned(&plan).await);
            faults.extend(self.deregister_unplanned(&plan).await);
            keep(&mut faults, self.remove_needless_rules(&plan).await);
            faults.extend(self.remove_namespaces(Some(&plan)).await);
        }
        keep(&mut faults, self.write_upstreams(&plan));
        self.retire_sessions(&plan).await;
        self.remember(&config, &plan);
        self.state.mesh = Some(view);
        keep(&mut faults, self.state.save(&self.root));
        self.plan = Some(plan);
        Outcome { faults }
    }

    /// Lets sidecars of new services start while the rules come up: nothing is redirected to them before
    /// they are live, and their start is what takes longest. Returns those that may have begun. Whatever
    /// fails here, or is not at hand at once, is done in its turn, and told then.
    async fn begin_new(&self, plan: &Plan) -> BTreeSet<ServiceId> {
        let live = self.live();
        let is_new = |service: &&ServicePlan| {
            service.sidecar.xds == Xds::Files
                && plan.namespace_of(&service.id).is_none()
                && !live.contains(&service.id)
        };
        let around = self.around();
        let begun = RefCell::new(BTreeSet::new());
        let begin = |service| {
            let (around, begun) = (&around, &begun);
            async move {
                // What runs, in whichever state, is not ended by haste.
                if around.is_down(service).await {
                    begun.borrow_mut().insert(service.id.clone());
                    let _ = around.begin(plan, service).await;
                }
            }
        };
        let new = stream::iter(plan.services.values().filter(is_new).map(begin));
        let _ = timeout(HEAD_START, new.buffer_unordered(AT_ONCE).collect::<()>()).await;
        begun.into_inner()
    }

    /// Asks those Envoys that were started in this round whether they took everything up.
    async fn verify(&mut self, plan: &Plan) -> Vec<Fault> {
        let started = |id: &ServiceId| {
            self.sidecars.get(id).is_some_and(|status| status.phase == Phase::Live && !status.verified)
        };
        let services: Vec<_> = plan.services.values().filter(|service| started(&service.id)).collect();
        let around = self.around();
        let asked = services.iter().map(|service| around.verify(plan, service));
        let answers: Vec<_> = stream::iter(asked).buffered(AT_ONCE).collect().await;
        let mut faults = Vec::new();
        for (service, answer) in services.into_iter().zip(answers) {
            let status = self.sidecars.entry(service.id.clone()).or_default();
            status.verified = answer.is_ok();
            if let Err(fault) = answer {
                status.fault = Some(fault.clone());
                faults.push(fault);
            }
        }
        faults
    }

    pub(super) fn around(&self) -> Around<'_> {
        Around {
            root: &self.root,
            units: &*self.adapters.units,
            mesh: &*self.adapters.drive.mesh,
            membership: self.adapters.drive.membership.as_ref(),
            publisher: &self.publisher,
            namespaces: &self.namespaces,
        }
    }

    /// Sidecars that ran before this engine did count as live when they are.
    pub(super) async fn look_at_new(&mut self, plan: &Plan) {
        let new: Vec<_> =
            plan.services.values().filter(|service| !self.sidecars.contains_key(&service.id)).collect();
        let around = self.around();
        let phases = join_all(new.iter().map(|service| around.look(service))).await;
        for (service, phase) in new.into_iter().zip(phases) {
            let phase = if phase == Phase::Live { Phase::Live } else { Phase::Starting };
            self.sidecars.insert(service.id.clone(), SidecarStatus { phase, ..SidecarStatus::default() });
        }
    }

    fn remember(&mut self, config: &Config, plan: &Plan) {
        self.state.generation = Some(plan.generation.clone());
        if config.host_ok {
            self.state.host = Some(config.host.clone());
        }
        let erring: BTreeSet<&str> =
            plan.errors.iter().filter_map(|fault| fault.service.as_deref()).collect();
        self.state.services.retain(|id, _| plan.services.contains_key(id));
        for service in &config.services {
            let id = service.id();
            if plan.services.contains_key(&id) && !erring.contains(id.as_str()) {
                self.state.services.insert(id, Remembered::from(service));
            }
        }
    }
}

pub(super) fn keep<T>(faults: &mut Vec<Fault>, result: Result<T, Fault>) {
    faults.extend(result.err());
}

/// Works out what should be true on the tree `root`, for printing: needs no privilege, no adapter, and
/// no running host when the tree is not this host's own.
///
/// # Errors
/// A file of the tree is there and cannot be read.
pub async fn look(root: &Root) -> Result<Intent, Fault> {
    // Only root may read the state; without it, everything is given out as on a fresh host.
    let mut state = State::look(root).map(|(state, _)| state).unwrap_or_default();
    let config = load(root, &state);
    let mut drive = Drive::new(root, &config.host, Purpose::Look)?;
    if root.is_host() {
        drive.follow(root, &config.host).await?;
        drive.mesh.follow(&locals(&config));
    }
    let (view, unseen) = match drive.mesh.view().await {
        Ok(view) => (view, None),
        Err(fault) => (state.mesh.clone().unwrap_or_default(), Some(fault)),
    };
    let view = drive.with_past(&mut state, &config.host, view);
    let mut facts = if root.is_host() {
        facts::live(root, &config, &state, view.clone(), look_at_units(root, &config).await).await?
    } else {
        facts::offline(root, &config, &state, view.clone())?
    };
    let (login, mut of_mesh) = (drive.login_fault(), drive.warnings());
    of_mesh.extend(health::unheeded(drive.membership.as_ref(), &config));
    facts.default_source = config.host.address.ip.or(state.address).or(facts.default_source);
    facts.merged = merged(&drive, &config).await;
    facts.xds = drive.xds;
    let plan = plan::plan(&config, &facts);
    Ok(Intent { config, plan, view, unseen, login, of_mesh })
}

/// The users of units, as far as anybody may ask for them.
async fn look_at_units(root: &Root, config: &Config) -> BTreeMap<String, UnitUser> {
    let units = facts::scoped_units(config);
    if units.is_empty() || !facts::runs_systemd(root, &config.host) {
        return BTreeMap::new();
    }
    match Systemd::connect(root.clone()).await {
        Ok(systemd) => adapters::unit_users(&systemd, units).await,
        Err(_) => BTreeMap::new(),
    }
}

/// What Consul makes of the registrations, where it drives the sidecars.
async fn merged(drive: &Drive, config: &Config) -> BTreeMap<ServiceId, Value> {
    match (&drive.xds, &drive.membership) {
        (Xds::Ads(_), Some(membership)) => {
            let ids: Vec<ServiceId> = config.services.iter().map(ServiceConfig::id).collect();
            membership.merged(ids.iter()).await
        }
        _ => BTreeMap::new(),
    }
}

/// The services that a control plane is to follow.
fn locals(config: &Config) -> Vec<Local> {
    let local = |service: &ServiceConfig| Local {
        id: service.id(),
        name: service.name.clone(),
        upstreams: service.upstreams.iter().map(|upstream| upstream.name.clone()).collect(),
        transparent: service.capture.mode == Mode::Transparent,
    };
    config.services.iter().filter(|service| service.enabled).map(local).collect()
}

fn is_about_ssh(fault: &Fault) -> bool {
    fault.code == "ENM-P030"
}

/// The configuration as it counts: a bad host file leaves the last good one in force, what nobody
/// confirmed is not, and what `enmesh down` took out stays out.
pub(super) fn load(root: &Root, state: &State) -> Config {
    let mut config = read(root, state);
    trial::hold_back(&mut config, state);
    for service in &mut config.services {
        service.enabled &= !state.down.contains(&service.id());
    }
    config
}

/// The configuration as it is written; a bad host file leaves the last good one in force.
pub(super) fn read(root: &Root, state: &State) -> Config {
    let in_force = |id: &ServiceId, file: &Path| {
        state.services.get(id).is_some_and(|service| ServiceConfig::from(service).source == file)
    };
    let env = |name: &str| std::env::var(name).ok();
    let mut config = config::load_beside(root, &env, &in_force);
    facts::settle(root, &mut config, &env);
    if let (false, Some(host)) = (config.host_ok, &state.host) {
        config.host = host.clone();
    }
    config
}
