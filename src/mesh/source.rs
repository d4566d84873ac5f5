//! Where the view of the mesh and the credentials of its services come from.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::SystemTime;

use crate::base::{Fault, LocalFuture, Root};
use crate::config::StaticConfig;
use crate::config::value::{ServiceId, ServiceName};
use crate::plan::{Credentials, MeshView, SpiffeId};

use serde::Serialize;

use super::ca::{self, Authority, CaError, FolderState, LeafStore, ROOT_CERTIFICATE, ROOT_KEY, Trust};
use super::{TrustDomain, peers};

/// Stands for the trust domain while there is no CA yet, so that a plan can be looked at on a host
/// on which nothing was applied. [`MeshSource::prepare`] replaces it by the real one.
pub const UNMADE_TRUST_DOMAIN: &str = "00000000-0000-0000-0000-000000000000.consul";

/// Who fills the mesh types. `static` and `catalog` differ only in this.
pub trait MeshSource {
    /// Which source this is, in the words of the configuration.
    fn name(&self) -> &'static str;

    /// Makes what must be there before [`MeshSource::view`] tells the truth. Whoever means to converge
    /// calls it first; whoever only looks does not, and then nothing is touched.
    fn prepare(&self, now: SystemTime) -> LocalFuture<'_, Result<(), Fault>>;

    /// The mesh as it is now. Reads and never writes.
    fn view(&self) -> LocalFuture<'_, Result<MeshView, Fault>>;

    /// What proves that this host's service `service` is `identity`: the same credentials as the last
    /// time unless they are due for renewal or do not fit any more.
    fn credentials<'a>(
        &'a self,
        service: &'a ServiceId,
        identity: &'a SpiffeId,
        now: SystemTime,
    ) -> LocalFuture<'a, Result<Credentials, Fault>>;

    /// Forgets what is kept for a service that is gone.
    fn forget<'a>(&'a self, service: &'a ServiceId) -> LocalFuture<'a, Result<(), Fault>>;

    /// Files and folders whose change may change an answer. They need not exist.
    fn watch_paths(&self) -> Vec<PathBuf>;

    /// Says which services this host has, so that what concerns them is followed. A source that knows
    /// everything at all times has nothing to do.
    fn follow(&self, _services: &[Local]) {}

    /// Waits until an answer may have changed since it was given, however long that takes. Safe to
    /// drop: what changed meanwhile is told at once the next time. Sources of files never say so; their
    /// [`MeshSource::watch_paths`] do.
    fn changed(&self) -> LocalFuture<'_, ()> {
        Box::pin(std::future::pending())
    }

    /// How the connection to the control plane is; `None` where there is none to be had.
    fn link(&self) -> Option<Link> {
        None
    }

    /// What a person should know about the view as it was told last.
    fn warnings(&self) -> Vec<Fault> {
        Vec::new()
    }
}

/// A service of this host, as far as a source needs to know it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Local {
    /// Its id.
    pub id: ServiceId,
    /// Its name in the mesh.
    pub name: ServiceName,
    /// What it wants to reach in any case: its explicit upstreams.
    pub upstreams: BTreeSet<ServiceName>,
    /// Whether it reaches whatever it may call, beside its explicit upstreams.
    pub transparent: bool,
}

/// The connection to a control plane.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Link {
    /// Where it leads.
    pub server: String,
    /// Why it does not hold now. What was told last stays in force.
    pub fault: Option<Fault>,
    /// Since when it is as it is, in seconds since 1970.
    pub since: u64,
}

/// The source of `control_plane = "static"`: a peers file and a local CA.
#[derive(Debug, Clone)]
pub struct StaticMesh {
    root: Root,
    config: StaticConfig,
}

impl StaticMesh {
    /// The source that `config` describes, below `root`.
    pub fn new(root: Root, config: StaticConfig) -> Self {
        StaticMesh { root, config }
    }

    /// The CA's folder, below the root.
    pub(super) fn ca_folder(&self) -> PathBuf {
        self.root.join(&self.config.ca)
    }

    fn leaves(&self) -> LeafStore {
        LeafStore::new(self.root.join(LeafStore::FOLDER))
    }

    /// Makes a CA of this host's own where there is none: only in the default folder, because a
    /// folder that somebody chose and that is empty is rather a mount or a copy that is still to come.
    fn prepare_now(&self, now: SystemTime) -> Result<(), Fault> {
        let folder = self.ca_folder();
        let ours = self.config.ca == StaticConfig::default().ca;
        match ca::folder_state(&folder)? {
            FolderState::Made => return Ok(()),
            FolderState::Empty | FolderState::Unfinished if ours => {}
            FolderState::Unfinished => return Err(CaError::Unfinished { folder }.into()),
            FolderState::Empty | FolderState::Other => return Err(CaError::None { folder }.into()),
        }
        let wanted = peers::load(&self.root, &self.config.peers)?.trust_domain;
        match Authority::create(&folder, wanted.as_ref(), false, now) {
            Ok(made) => {
                tracing::warn!(
                    trust_domain = made.trust().trust_domain().unwrap_or_default(),
                    "made a CA for this host alone; for a mesh with other hosts, copy {} to each of them",
                    folder.display()
                );
                Ok(())
            }
            // Somebody else was faster, which is as good.
            Err(_) if ca::folder_state(&folder)? == FolderState::Made => Ok(()),
            Err(fault) => Err(fault),
        }
    }

    /// The mesh as the peers file has it.
    pub(super) fn view_now(&self) -> Result<MeshView, Fault> {
        let peers = peers::load(&self.root, &self.config.peers)?;
        let folder = self.ca_folder();
        let named = peers.trust_domain.as_ref().map(TrustDomain::as_str);
        let trust = Trust::open(&folder)?;
        let domain = match (named, trust.as_ref().map(Trust::trust_domain)) {
            (Some(peers), Some(Some(ca))) if peers != ca => {
                return Err(CaError::TrustDomains { peers: peers.to_owned(), ca: ca.to_owned() }.into());
            }
            (Some(named), _) | (None, Some(Some(named))) => named.to_owned(),
            (None, Some(None)) => {
                return Err(CaError::NoTrustDomain { path: folder.join(ROOT_CERTIFICATE) }.into());
            }
            (None, None) => UNMADE_TRUST_DOMAIN.to_owned(),
        };
        Ok(peers.into_view(&domain))
    }

    fn credentials_now(
        &self,
        service: &ServiceId,
        identity: &SpiffeId,
        now: SystemTime,
    ) -> Result<Credentials, Fault> {
        let folder = self.ca_folder();
        if folder.join(ROOT_KEY).exists() {
            let authority = Authority::open(&folder)?;
            let ttl = self.config.leaf_ttl.0;
            let (credentials, _) = self.leaves().current_or_issue(&authority, service, identity, ttl, now)?;
            return Ok(credentials);
        }
        ca::read_issued(&folder, identity, now)
    }
}

impl MeshSource for StaticMesh {
    fn name(&self) -> &'static str {
        "static"
    }

    fn prepare(&self, now: SystemTime) -> LocalFuture<'_, Result<(), Fault>> {
        Box::pin(async move { self.prepare_now(now) })
    }

    fn view(&self) -> LocalFuture<'_, Result<MeshView, Fault>> {
        Box::pin(async move { self.view_now() })
    }

    fn credentials<'a>(
        &'a self,
        service: &'a ServiceId,
        identity: &'a SpiffeId,
        now: SystemTime,
    ) -> LocalFuture<'a, Result<Credentials, Fault>> {
        Box::pin(async move {
            self.credentials_now(service, identity, now).map_err(|fault| fault.of_service(service))
        })
    }

    fn forget<'a>(&'a self, service: &'a ServiceId) -> LocalFuture<'a, Result<(), Fault>> {
        Box::pin(async move { self.leaves().remove(service) })
    }

    fn watch_paths(&self) -> Vec<PathBuf> {
        vec![self.root.join(&self.config.peers), self.ca_folder()]
    }
}

#[cfg(test)]
mod tests;
