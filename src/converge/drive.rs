//! Who drives the sidecars: what the host file says, and, where it leaves that open, what Consul is.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use super::engine::Purpose;
use super::entries;
use super::error::ConvergeError;
use super::facts;
use super::membership::{ConsulStatus, Membership, XdsFault};
use super::state::State;
use crate::base::{Fault, LocalFuture, Root};
use crate::config::value::ServiceId;
use crate::config::{ControlPlane, HostConfig};
use crate::consul::{Client, Endpoint, Query, ServerFacts, TokenSource};
use crate::mesh::{CatalogMesh, MeshSource, StaticMesh};
use crate::plan::{Credentials, MeshView, Plan, SpiffeId, Xds};

/// A Consul that is not there is asked for again after this time, and less and less often.
const FIRST_LOOK: Duration = Duration::from_millis(250);
/// The longest pause between two looks: at boot, the agent is a matter of seconds.
const LAST_LOOK: Duration = Duration::from_secs(2);

/// What the control plane has news of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// Who is out there.
    Mesh,
    /// What Consul has of this host.
    Registration,
    /// The login is due.
    Login,
    /// It is time to look whether this host has another address.
    Address,
}

/// The control plane in force.
pub(super) struct Drive {
    /// Who is out there.
    pub mesh: Box<dyn MeshSource>,
    /// Who tells the sidecars.
    pub xds: Xds,
    /// Consul, where the control plane is one of it.
    pub membership: Option<Membership>,
    /// Whether `mesh` is Consul's catalog.
    follows_catalog: bool,
    purpose: Purpose,
    /// At which address others reach this host, where that was found out.
    address: Option<IpAddr>,
}

impl Drive {
    /// The control plane that `host` asks for, as far as that can be told without asking anybody.
    ///
    /// # Errors
    /// Consul's address or a file for TLS cannot be used.
    pub fn new(root: &Root, host: &HostConfig, purpose: Purpose) -> Result<Self, Fault> {
        let is_static = facts::is_static(root, host);
        let membership = if is_static { None } else { Some(Membership::new(root, host, purpose)?) };
        let mesh: Box<dyn MeshSource> = match &membership {
            None => Box::new(StaticMesh::new(root.clone(), host.static_mesh.clone())),
            Some(membership) => Box::new(Absent::new(membership.client(), None, false)),
        };
        Ok(Drive { mesh, xds: Xds::Files, membership, follows_catalog: false, purpose, address: None })
    }

    /// Takes up what the host file says now, and asks Consul where that takes it.
    ///
    /// # Errors
    /// As [`Drive::new`]. A Consul that is not there is no error here: the mesh says it.
    pub async fn follow(&mut self, root: &Root, host: &HostConfig) -> Result<(), Fault> {
        let fits = match &self.membership {
            None => false,
            Some(membership) => !facts::is_static(root, host) && membership.fits(host),
        };
        if !fits {
            self.replace(root, host).await?;
        }
        let Some(membership) = &mut self.membership else { return Ok(()) };
        let client = membership.client().clone();
        let met = membership.meet().await.cloned();
        let answers = met.is_ok() || membership.session.is_refused();
        let xds = match &met {
            Ok(facts) => choose(host.control_plane, membership, facts).await,
            Err(fault) => Err(fault.clone()),
        };
        match (xds, met) {
            (Ok(xds), Ok(_)) => {
                self.xds = xds;
                if !self.follows_catalog {
                    self.mesh = Box::new(CatalogMesh::start(client, root));
                    self.follows_catalog = true;
                }
            }
            // What the catalog told last stays in force, and the mesh says itself why it hears no more.
            (Err(_), _) | (_, Err(_)) if self.follows_catalog => {}
            (Err(fault), _) | (_, Err(fault)) => {
                self.mesh = Box::new(Absent::new(&client, Some(fault), answers));
            }
        }
        Ok(())
    }

    /// Another control plane. A login that nobody goes on with ends; what follows another login is told
    /// of it by the file that they share.
    async fn replace(&mut self, root: &Root, host: &HostConfig) -> Result<(), Fault> {
        let next = Drive::new(root, host, self.purpose)?;
        let goes_on = next.membership.is_some() && host.consul.login.is_some();
        if let Some(membership) = self.membership.as_mut().filter(|_| !goes_on)
            && let Err(fault) = membership.session.end().await
        {
            tracing::warn!(code = fault.code, "{fault}");
        }
        let address = self.address;
        *self = next;
        self.set_address(address);
        Ok(())
    }

    /// Takes up that others reach this host at `address`.
    pub fn set_address(&mut self, address: Option<IpAddr>) {
        self.address = address;
        if let Some(membership) = &mut self.membership {
            membership.set_address(address);
        }
    }

    /// The mesh with what was of it before. Only Consul's word is doubted like that.
    pub fn with_past(&self, state: &mut State, host: &HostConfig, mut view: MeshView) -> MeshView {
        if self.membership.is_some() {
            let before = state.mesh.clone().unwrap_or_default();
            state.past.follow(&before, &view, host.virtual_ips, SystemTime::now());
            view.past = state.past.past();
        }
        view
    }

    /// Files whose change may change the control plane or what it tells.
    pub fn watch_paths(&self, root: &Root, host: &HostConfig) -> Vec<PathBuf> {
        let mut paths = self.mesh.watch_paths();
        if host.control_plane == ControlPlane::Auto {
            paths.push(root.join(&host.static_mesh.peers));
        }
        if let Some(membership) = &self.membership {
            paths.extend(membership.session.watch_path());
            paths.extend(entries::folder(root, &host.consul));
        }
        paths
    }

    /// The control plane's name, in the words of the configuration.
    pub fn name(&self) -> &'static str {
        match &self.xds {
            Xds::Ads(_) => "consul",
            Xds::Files => self.mesh.name(),
        }
    }

    /// What a person should know of the control plane and of registrations.
    pub fn warnings(&self) -> Vec<Fault> {
        let mut warnings = self.mesh.warnings();
        warnings.extend(self.membership.iter().flat_map(Membership::warnings));
        warnings
    }

    /// Asks whether the token may do what the services of `plan` take.
    pub async fn check_rights(&mut self, plan: &Plan) {
        let names = plan.services.values().map(|service| service.name.to_string()).collect();
        if let Some(membership) = &mut self.membership {
            membership.check_rights(names).await;
        }
    }

    /// Why this host is not logged in.
    pub fn login_fault(&self) -> Option<Fault> {
        self.membership.as_ref()?.session.fault()
    }

    /// Where Consul is, where it has a part in this.
    pub fn consul(&self) -> Option<Endpoint> {
        self.membership.as_ref().map(|membership| membership.client().settings().endpoint.clone())
    }

    /// How Consul is, where it has a part in this.
    pub fn consul_status(&self) -> Option<ConsulStatus> {
        let mut status = self.membership.as_ref()?.status();
        if let Some(link) = self.mesh.link() {
            (status.fault, status.since) = (link.fault, link.since);
        }
        Some(status)
    }

    /// Waits until the mesh, or what Consul has of this host, may have changed.
    pub async fn changed(&self) -> News {
        let membership = async {
            match &self.membership {
                Some(membership) => membership.changed().await,
                None => std::future::pending().await,
            }
        };
        let login = async {
            match &self.membership {
                Some(membership) => membership.session.due().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.mesh.changed() => News::Mesh,
            () = membership => News::Registration,
            () = login => News::Login,
        }
    }
}

/// Who tells the sidecars.
async fn choose(wanted: ControlPlane, consul: &Membership, facts: &ServerFacts) -> Result<Xds, Fault> {
    if wanted == ControlPlane::Catalog {
        return Ok(Xds::Files);
    }
    match consul.xds(facts).await {
        Ok(ads) => Ok(Xds::Ads(ads)),
        Err(XdsFault::None(_)) if wanted == ControlPlane::Auto => Ok(Xds::Files),
        Err(XdsFault::None(fault) | XdsFault::Unusable(fault)) => Err(fault),
    }
}

/// A Consul that was not reached yet. It is waited for with the rules closed, and never replaced by
/// something else.
struct Absent {
    client: Client,
    fault: Option<Fault>,
    /// Whether it answers, and is not what the host file asks for: waiting changes nothing then.
    answers: bool,
}

impl Absent {
    fn new(client: &Client, fault: Option<Fault>, answers: bool) -> Self {
        Absent { client: client.clone(), fault, answers }
    }

    fn fault(&self) -> Fault {
        let server = self.client.settings().endpoint.to_string();
        self.fault.clone().unwrap_or_else(|| ConvergeError::NotAsked { server }.into())
    }
}

impl MeshSource for Absent {
    fn name(&self) -> &'static str {
        "consul (waiting)"
    }

    fn prepare(&self, _: SystemTime) -> LocalFuture<'_, Result<(), Fault>> {
        Box::pin(async { Ok(()) })
    }

    fn view(&self) -> LocalFuture<'_, Result<MeshView, Fault>> {
        Box::pin(async { Err(self.fault()) })
    }

    fn credentials<'a>(
        &'a self,
        service: &'a ServiceId,
        _: &'a SpiffeId,
        _: SystemTime,
    ) -> LocalFuture<'a, Result<Credentials, Fault>> {
        Box::pin(async move { Err(self.fault().of_service(service)) })
    }

    fn forget<'a>(&'a self, _: &'a ServiceId) -> LocalFuture<'a, Result<(), Fault>> {
        Box::pin(async { Ok(()) })
    }

    fn watch_paths(&self) -> Vec<PathBuf> {
        Vec::new()
    }

    /// Until somebody answers.
    fn changed(&self) -> LocalFuture<'_, ()> {
        Box::pin(async {
            if self.answers {
                std::future::pending::<()>().await;
            }
            let mut pause = FIRST_LOOK;
            loop {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LAST_LOOK);
                if self.is_there().await {
                    return;
                }
            }
        })
    }
}

impl Absent {
    /// Whether asking it would do now. With a login, that is to be had first, and takes a leader.
    async fn is_there(&self) -> bool {
        if !matches!(self.client.settings().token, TokenSource::Login(_)) {
            return ServerFacts::ask(&self.client).await.is_ok();
        }
        let client = self.client.with_token(TokenSource::Anonymous);
        let leader = client.get(&Query::new("/v1/status/leader")).await;
        leader.is_ok_and(|leader| leader.body.as_str().is_some_and(|leader| !leader.is_empty()))
    }
}
