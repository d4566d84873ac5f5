//! One sidecar: bringing it up, asking how it is, taking it down.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;

use super::error::ConvergeError;
use super::membership::Membership;
use super::namespaces::Namespaces;
use crate::base::units::{UnitSpec, UnitState, Units};
use crate::base::{Fault, LocalFuture, Root, files};
use crate::consul::xds;
use crate::envoy::{self, Admin, Layout, Publisher, Readiness, Secrets, Stream};
use crate::mesh::{MeshSource, ca};
use crate::plan::{Plan, ServicePlan, Xds};

/// How long converging waits for a sidecar. Envoy needs about 0.12 s; one that takes longer is
/// reported, and watched on.
const LIVE_LIMIT: Duration = Duration::from_secs(4);

/// How often a sidecar that starts or drains is looked at.
const LOOK: Duration = Duration::from_millis(5);

/// Where a sidecar is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Not started yet, or on its way.
    Starting,
    /// Takes connections.
    Live,
    /// Should be live and is not.
    Failed,
    /// Taken down.
    Stopped,
}

/// What is known of a sidecar.
#[derive(Debug, Clone, Serialize)]
pub struct SidecarStatus {
    /// Where it is.
    pub phase: Phase,
    /// Its process.
    pub pid: Option<u32>,
    /// How often it was started again by itself.
    pub restarts: u32,
    /// When its certificate ends, in seconds since 1970.
    pub certificate_expires: Option<u64>,
    /// When its certificate is to be renewed.
    #[serde(skip)]
    pub renew_at: Option<SystemTime>,
    /// Its stream to Consul, where that drives it.
    pub stream: Option<Stream>,
    /// Whether Envoy was asked what it took up.
    #[serde(skip)]
    pub verified: bool,
    /// Its last error.
    pub fault: Option<Fault>,
}

impl Default for SidecarStatus {
    fn default() -> Self {
        SidecarStatus {
            phase: Phase::Starting,
            pid: None,
            restarts: 0,
            certificate_expires: None,
            renew_at: None,
            stream: None,
            verified: false,
            fault: None,
        }
    }
}

/// What a sidecar needs around it.
pub(super) struct Around<'a> {
    pub root: &'a Root,
    pub units: &'a dyn Units,
    pub mesh: &'a dyn MeshSource,
    pub publisher: &'a Publisher,
    pub membership: Option<&'a Membership>,
    pub namespaces: &'a Namespaces,
}

impl Around<'_> {
    fn admin(&self, service: &ServicePlan) -> Admin {
        Admin::new(Layout::new(service, self.root).admin_socket())
    }

    /// Certificates, files, unit, live: each step only when the one before it stands.
    pub async fn bring_up(&self, plan: &Plan, service: &ServicePlan) -> SidecarStatus {
        let mut status = SidecarStatus::default();
        let result = self.try_bring_up(plan, service, &mut status).await;
        status.phase = Phase::Live;
        if let Err(fault) = result {
            status.fault = Some(self.cause(service).await.unwrap_or(fault).of_service(&service.id));
            // A rejected update was rolled back: the sidecar may well be live with what it had.
            status.phase = self.look(service).await;
        }
        status.stream = self.stream(service).await;
        if let Ok(unit) = self.units.status(service.id.as_str()).await {
            status.pid = unit.pid;
            status.restarts = unit.restarts;
        }
        status
    }

    /// Writes what the sidecar is to know now, where that changed. Returns when its certificate ends
    /// and when it is to be renewed.
    pub async fn tell(
        &self,
        plan: &Plan,
        service: &ServicePlan,
    ) -> Result<(Option<u64>, Option<SystemTime>), Fault> {
        let mut status = SidecarStatus::default();
        let told = self.publish(plan, service, &mut status).await;
        told.map(|()| (status.certificate_expires, status.renew_at))
            .map_err(|fault| fault.of_service(&service.id))
    }

    async fn publish(
        &self,
        plan: &Plan,
        service: &ServicePlan,
        status: &mut SidecarStatus,
    ) -> Result<(), Fault> {
        if let Xds::Ads(_) = service.sidecar.xds {
            let token = self.membership.and_then(Membership::token);
            let secrets = token.as_ref().map_or(Secrets::Kept, Secrets::Token);
            status.verified = self.publisher.publish(service, &plan.mesh, secrets).await?.verified;
            return Ok(());
        }
        let now = SystemTime::now();
        let credentials = self.mesh.credentials(&service.id, &service.identity, now).await?;
        status.certificate_expires =
            credentials.not_after.duration_since(SystemTime::UNIX_EPOCH).ok().map(|d| d.as_secs());
        status.renew_at = Some(ca::renew_at(&credentials, ca::jitter(&credentials)));
        let published = self.publisher.publish(service, &plan.mesh, Some(&credentials)).await?;
        status.verified = published.verified;
        Ok(())
    }

    async fn try_bring_up(
        &self,
        plan: &Plan,
        service: &ServicePlan,
        status: &mut SidecarStatus,
    ) -> Result<(), Fault> {
        self.publish(plan, service, status).await?;
        self.start(plan, service, Box::pin(self.until_live(service))).await?;
        self.wait_live(service).await
    }

    /// Whether its unit is known not to run.
    pub async fn is_down(&self, service: &ServicePlan) -> bool {
        let unit = self.units.status(service.id.as_str()).await;
        unit.is_ok_and(|unit| unit.state == UnitState::Inactive)
    }

    /// Certificates, files, unit; nobody waits for what becomes of it.
    pub async fn begin(&self, plan: &Plan, service: &ServicePlan) -> Result<(), Fault> {
        self.publish(plan, service, &mut SidecarStatus::default()).await?;
        self.start(plan, service, Box::pin(std::future::ready(()))).await
    }

    async fn start(
        &self,
        plan: &Plan,
        service: &ServicePlan,
        live: LocalFuture<'_, ()>,
    ) -> Result<(), Fault> {
        // Looked at before one that runs is ended for it.
        envoy::Programs::default().find(&service.sidecar.program)?;
        let network = self.namespaces.network(plan, &service.id)?;
        let spec = UnitSpec { network, ..envoy::unit_spec(service, self.root)? };
        self.units.start_until(&spec, live).await
    }

    /// Asks an Envoy that was started for it whether it took everything up.
    pub async fn verify(&self, plan: &Plan, service: &ServicePlan) -> Result<(), Fault> {
        let published = self.publisher.publish(service, &plan.mesh, None).await;
        published.map(drop).map_err(|fault| fault.of_service(&service.id))
    }

    /// Why a sidecar that Consul drives has no stream to it; `None` where it has one, or needs none.
    pub async fn cause(&self, service: &ServicePlan) -> Option<Fault> {
        let (Xds::Ads(ads), Some(membership)) = (&service.sidecar.xds, self.membership) else { return None };
        let stream = self.stream(service).await?;
        match stream.connected {
            true => None,
            false => Some(xds::stream_cause(membership.client(), &service.id, ads).await),
        }
    }

    /// The stream of a sidecar that Consul drives.
    pub async fn stream(&self, service: &ServicePlan) -> Option<Stream> {
        match &service.sidecar.xds {
            Xds::Ads(_) => self.admin(service).stream().await.ok(),
            Xds::Files => None,
        }
    }

    async fn until_live(&self, service: &ServicePlan) {
        let admin = self.admin(service);
        while admin.ready().await != Readiness::Live {
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn wait_live(&self, service: &ServicePlan) -> Result<(), Fault> {
        let admin = self.admin(service);
        let started = Instant::now();
        let mut restarts = None;
        loop {
            let readiness = admin.ready().await;
            if readiness == Readiness::Live {
                return Ok(());
            }
            let unit = self.units.status(service.id.as_str()).await?;
            // One that ended since the start will not become live by waiting.
            let ended = *restarts.get_or_insert(unit.restarts) < unit.restarts
                || matches!(unit.state, UnitState::Failed | UnitState::Inactive);
            if ended || started.elapsed() > LIVE_LIMIT {
                let state = if ended { "it ended".to_owned() } else { format!("{readiness:?}") };
                return Err(
                    ConvergeError::NotLive { id: service.id.clone(), limit: LIVE_LIMIT, state }.into()
                );
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Whether it takes connections right now.
    pub async fn look(&self, service: &ServicePlan) -> Phase {
        match self.admin(service).ready().await {
            Readiness::Live => Phase::Live,
            _ => Phase::Failed,
        }
    }

    /// Lets inbound connections end for as long as the service's drain time, then stops the unit and
    /// removes the folder.
    pub async fn take_down(&self, service: &ServicePlan) -> Result<(), Fault> {
        let admin = self.admin(service);
        if admin.ready().await == Readiness::Live && admin.drain_inbound().await.is_ok() {
            let started = Instant::now();
            while started.elapsed() < service.sidecar.drain.0 && active_inbound(&admin).await > 0 {
                tokio::time::sleep(LOOK * 10).await;
            }
        }
        self.stop(service.id.as_str()).await
    }

    /// Stops a unit that no plan knows, at once.
    pub async fn stop(&self, instance: &str) -> Result<(), Fault> {
        self.units.stop(instance).await?;
        files::remove_folder(&self.root.join("/run/enmesh").join(instance))?;
        Ok(())
    }
}

/// Connections on the public listener.
async fn active_inbound(admin: &Admin) -> u64 {
    let stats: BTreeMap<String, u64> =
        admin.stats("^listener\\.public_listener\\.downstream_cx_active$").await.unwrap_or_default();
    stats.values().sum()
}
