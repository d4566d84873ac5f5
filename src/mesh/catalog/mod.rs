//! The mesh of `control_plane = "catalog"`: what Consul's HTTP API tells, followed with calls that
//! wait for a change.
//!
//! Tasks keep a picture of what concerns this host's services; whoever asks gets the last one at
//! once. While Consul is away the picture stays as it is. When nothing changes in Consul, a call
//! comes back every few minutes, and nothing else happens.

mod answers;
mod crowd;
mod error;
mod follow;
mod instances;
mod intentions;
mod shared;
mod state;

use std::path::PathBuf;
use std::rc::Rc;
use std::time::SystemTime;

use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

pub use error::{CatalogError, CatalogWarning};

use super::ca::{self, LeafStore};
use super::source::{Link, Local, MeshSource};
use crate::base::{Fault, LocalFuture, Root};
use crate::config::value::{ServiceId, ServiceName};
use crate::consul::Client;
use crate::plan::{Credentials, MeshView, SpiffeId};

use shared::{Shared, Topic};

/// The source of `control_plane = "catalog"`: Consul's HTTP API.
pub struct CatalogMesh {
    shared: Rc<Shared>,
    store: LeafStore,
    keeper: JoinHandle<()>,
}

impl CatalogMesh {
    /// Follows what `client` reaches, in tasks of the `LocalSet` that this is called on; they end with
    /// the value. Leaves are kept below `root`, for a start while Consul is away. Nothing is asked
    /// before [`MeshSource::follow`] or [`MeshSource::credentials`] says for whom.
    pub fn start(client: Client, root: &Root) -> Self {
        let shared = Rc::new(Shared::new(client));
        let keeper = tokio::task::spawn_local(follow::keep(Rc::clone(&shared)));
        CatalogMesh { shared, store: LeafStore::new(root.join(LeafStore::FOLDER)), keeper }
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.shared.client.settings().limit
    }

    async fn view_now(&self) -> Result<MeshView, Fault> {
        let deadline = self.deadline();
        let shared = &self.shared;
        loop {
            let stirred = shared.stir.notified();
            let view = shared.view.borrow().clone();
            let stays = shared.settled.get() || shared.fault().is_some();
            if let Some(view) = view.as_ref().filter(|_| stays) {
                return Ok(MeshView::clone(view));
            }
            if timeout_at(deadline, stirred).await.is_err() {
                let limit = shared.client.settings().limit;
                return match view {
                    Some(view) => Ok(MeshView::clone(&view)),
                    None => Err(shared.fault().unwrap_or_else(|| CatalogError::Unfinished { limit }.into())),
                };
            }
        }
    }

    async fn credentials_now(
        &self,
        service: &ServiceId,
        identity: &SpiffeId,
        now: SystemTime,
    ) -> Result<Credentials, Fault> {
        let deadline = self.deadline();
        let shared = &self.shared;
        let Ok(name) = identity.service.parse::<ServiceName>() else {
            return Err(self.no_leaf(identity));
        };
        let asked = shared.asked.borrow_mut().insert(service.clone(), name.clone());
        if asked.as_ref() != Some(&name) {
            shared.bell.notify_one();
        }
        let mut unfit = None;
        loop {
            let stirred = shared.stir.notified();
            match self.issued(&name, identity, now) {
                Some(Ok(credentials)) => {
                    self.store.keep(service, &credentials)?;
                    return Ok(credentials);
                }
                Some(Err(fault)) => unfit = Some(fault),
                None => {}
            }
            let fault =
                shared.fault_of(&Topic::Leaf(name.clone())).or_else(|| shared.fault_of(&Topic::Roots));
            if fault.is_some()
                && let Some(kept) = self.store.kept_whole(service)
                && ca::verify(&kept, identity, now).is_ok()
            {
                return Ok(kept);
            }
            if timeout_at(deadline, stirred).await.is_err() {
                return Err(fault.or(unfit).unwrap_or_else(|| self.no_leaf(identity)));
            }
        }
    }

    /// What Consul issued last, if it proves `identity`.
    fn issued(
        &self,
        name: &ServiceName,
        identity: &SpiffeId,
        now: SystemTime,
    ) -> Option<Result<Credentials, Fault>> {
        let leaf = self.shared.leaves.borrow().get(name).cloned()?;
        let (_, roots) = self.shared.state.borrow().trust.clone()?;
        let fit = ca::assemble(leaf.certificate_pem, leaf.key_pem, roots)
            .and_then(|credentials| ca::verify(&credentials, identity, now).map(|()| credentials));
        Some(fit.map_err(|source| CatalogError::Leaf { identity: identity.to_string(), source }.into()))
    }

    fn no_leaf(&self, identity: &SpiffeId) -> Fault {
        let limit = self.shared.client.settings().limit;
        CatalogError::NoLeaf { identity: identity.to_string(), limit }.into()
    }
}

impl Drop for CatalogMesh {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

impl MeshSource for CatalogMesh {
    fn name(&self) -> &'static str {
        "catalog"
    }

    fn prepare(&self, _now: SystemTime) -> LocalFuture<'_, Result<(), Fault>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn view(&self) -> LocalFuture<'_, Result<MeshView, Fault>> {
        Box::pin(self.view_now())
    }

    fn credentials<'a>(
        &'a self,
        service: &'a ServiceId,
        identity: &'a SpiffeId,
        now: SystemTime,
    ) -> LocalFuture<'a, Result<Credentials, Fault>> {
        Box::pin(async move {
            let credentials = self.credentials_now(service, identity, now).await;
            credentials.map_err(|fault| fault.of_service(service))
        })
    }

    fn forget<'a>(&'a self, service: &'a ServiceId) -> LocalFuture<'a, Result<(), Fault>> {
        Box::pin(async move {
            self.shared.asked.borrow_mut().remove(service);
            self.shared.bell.notify_one();
            self.store.remove(service)
        })
    }

    fn watch_paths(&self) -> Vec<PathBuf> {
        Vec::new()
    }

    fn follow(&self, services: &[Local]) {
        let mut locals = services.to_vec();
        locals.sort();
        let shared = &self.shared;
        if shared.state.borrow().locals == locals {
            return;
        }
        shared.settled.set(false);
        shared.epoch.set(shared.epoch.get() + 1);
        shared.change(|state| {
            state.rules.retain(|name, _| locals.iter().any(|local| local.name == *name));
            state.locals = locals;
        });
    }

    fn changed(&self) -> LocalFuture<'_, ()> {
        Box::pin(self.shared.changed.notified())
    }

    fn link(&self) -> Option<Link> {
        Some(self.shared.link())
    }

    fn warnings(&self) -> Vec<Fault> {
        self.shared.warnings.borrow().clone()
    }
}
