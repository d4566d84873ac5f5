//! What is looked at and taken up between two convergences.

use std::time::SystemTime;

use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt};

use super::engine::{AT_ONCE, Engine, Outcome};
use super::sidecar::Phase;
use crate::base::Fault;
use crate::config::value::ServiceId;
use crate::plan::{self, HostFacts, Xds};

impl Engine {
    /// Takes up a change of the mesh that leaves this host's services, rules and names as they are:
    /// what sidecars are told changes, and nothing else is looked at. `None` where it takes converging.
    pub async fn refresh(&mut self) -> Option<Outcome> {
        let view = self.adapters.drive.mesh.view().await.ok()?;
        let view = self.adapters.drive.with_past(&mut self.state, &self.host, view);
        let (config, facts) = self.made_from.as_ref()?;
        let facts = HostFacts {
            mesh: view.clone(),
            allocations: self.state.allocations.clone(),
            previous: self.state.generation.clone(),
            ..facts.clone()
        };
        let plan = plan::plan(config, &facts);
        let in_force = self.plan.as_ref()?;
        let alike = plan.generation == in_force.generation
            && plan.allocations == in_force.allocations
            && plan.services.keys().all(|id| self.live().contains(id));
        if !alike {
            return None;
        }
        let around = self.around();
        let told = plan.services.values().map(|service| around.tell(&plan, service));
        let told: Vec<_> = stream::iter(told).buffered(AT_ONCE).collect().await;
        let mut faults = Vec::new();
        for (id, told) in plan.services.keys().zip(told) {
            let Some(status) = self.sidecars.get_mut(id) else { continue };
            match told {
                Ok(told) => (status.certificate_expires, status.renew_at) = (told.0, told.1),
                Err(fault) => {
                    status.fault = Some(fault.clone());
                    faults.push(fault);
                }
            }
        }
        // Written with the next generation: who is well at the moment is not worth a write to disk.
        self.state.mesh = Some(view);
        self.plan = Some(plan);
        Some(Outcome { faults })
    }

    /// Looks at the sidecars that `ids` names (all of them for `None`) and moves traffic to or away
    /// from them. Returns whether all of the plan are live.
    pub async fn recheck(&mut self, ids: Option<&ServiceId>) -> (bool, Option<Fault>) {
        let Some(plan) = self.plan.take() else { return (true, None) };
        let looked: Vec<_> =
            plan.services.values().filter(|service| ids.is_none_or(|id| *id == service.id)).collect();
        let around = self.around();
        let phases = join_all(looked.iter().map(|service| around.look(service))).await;
        let units = &self.adapters.units;
        let statuses = join_all(looked.iter().map(|service| units.status(service.id.as_str()))).await;
        for ((service, phase), unit) in looked.into_iter().zip(phases).zip(statuses) {
            let status = self.sidecars.entry(service.id.clone()).or_default();
            status.phase = phase;
            if let Ok(unit) = unit {
                status.pid = unit.pid;
                status.restarts = unit.restarts;
            }
            if phase == Phase::Live {
                status.fault = status.fault.take().filter(|fault| fault.code.starts_with("ENM-E"));
            }
        }
        let mut fault = None;
        if self.rules.as_ref().is_none_or(|rules| rules.live != self.live()) {
            if !self.is_needless(&plan) {
                fault = self.apply_rules(&plan).await.err();
            }
            fault = fault.or(self.open_namespaces(&plan).into_iter().next());
            fault = fault.or(self.tell_health(&plan).await.into_iter().next());
        }
        let all =
            plan.services.keys().all(|id| self.sidecars.get(id).is_some_and(|s| s.phase == Phase::Live));
        self.plan = Some(plan);
        (all, fault)
    }

    /// Whether Consul tells the sidecars what to do.
    pub fn is_driven_by_consul(&self) -> bool {
        let mut services = self.plan.iter().flat_map(|plan| plan.services.values());
        services.any(|service| service.sidecar.xds != Xds::Files)
    }

    /// Looks at the streams of sidecars that Consul drives; returns why one is gone that was there.
    pub async fn look_at_streams(&mut self) -> Vec<Fault> {
        let Some(plan) = self.plan.take() else { return Vec::new() };
        let around = self.around();
        let looks = plan.services.values().map(|service| async {
            let stream = around.stream(service).await;
            let cause = around.cause(service).await;
            (service.id.clone(), stream, cause)
        });
        let seen = join_all(looks).await;
        let mut news = Vec::new();
        for (id, stream, cause) in seen {
            let Some(status) = self.sidecars.get_mut(&id) else { continue };
            let was = status.stream.is_none_or(|stream| stream.connected);
            status.stream = stream;
            if was {
                news.extend(cause.clone());
            }
            // What is wrong otherwise was said before and stays until it is mended.
            if cause.is_some() || status.fault.as_ref().is_some_and(|fault| fault.code.starts_with("ENM-K")) {
                status.fault = cause;
            }
        }
        self.plan = Some(plan);
        news
    }

    /// When the next certificate is to be renewed.
    pub fn next_renewal(&self) -> Option<SystemTime> {
        self.sidecars.values().filter_map(|status| status.renew_at).min()
    }
}
