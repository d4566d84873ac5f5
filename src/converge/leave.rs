//! Taking services out of the mesh, and leaving the host.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::timeout;

use super::engine::{Engine, Outcome, keep, load};
use super::error::ConvergeError;
use super::membership::ConsulStatus;
use super::sidecar::Phase;
use crate::base::Fault;
use crate::config::ServiceConfig;
use crate::config::value::ServiceId;
use crate::consul::Key;
use crate::plan::Plan;
use crate::redirect::Desired;

/// What Consul has to be told the end in. Whoever stops a container waits for ten seconds as a rule, and does not wait
/// for a Consul that is away.
const FAREWELL: Duration = Duration::from_secs(2);

impl Engine {
    /// Ends sidecars that the plan does not know: drained when the plan in force knew them.
    pub(super) async fn end_unplanned(&self, plan: &Plan) -> Vec<Fault> {
        let instances = match self.adapters.units.list().await {
            Ok(instances) => instances,
            Err(fault) => return vec![fault],
        };
        let planned = |instance: &String| plan.services.keys().any(|id| id.as_str() == instance);
        self.end(instances.iter().filter(|instance| !planned(instance))).await
    }

    /// Ends sidecars, all at once: drained where the plan in force knows them.
    async fn end(&self, instances: impl Iterator<Item = &String>) -> Vec<Fault> {
        let around = &self.around();
        let ends = instances.map(|instance| async move {
            let id = instance.parse::<ServiceId>().ok();
            let known = id.as_ref().and_then(|id| self.plan.as_ref()?.services.get(id));
            let ended = match known {
                Some(service) => around.take_down(service).await,
                None => around.stop(instance).await,
            };
            let forgotten = match &id {
                Some(id) => around.mesh.forget(id).await,
                None => Ok(()),
            };
            let faults = ended.err().into_iter().chain(forgotten.err());
            faults.map(|fault| fault.of_service(instance)).collect::<Vec<_>>()
        });
        join_all(ends).await.into_iter().flatten().collect()
    }

    /// Takes services out of the mesh, all of them when none is named: inbound connections drain,
    /// the sidecars end, their rules go, and with the last service everything else of enmesh's that
    /// lives in the kernel or in `/run`.
    ///
    /// # Errors
    /// `ENM-D007` a name that no service has.
    pub async fn down(&mut self, names: &[String]) -> Result<Outcome, Fault> {
        let known: BTreeSet<String> = self.known_instances().await?;
        for name in names {
            if !known.contains(name) {
                return Err(ConvergeError::NoService { id: name.clone() }.into());
            }
        }
        if self.plan.is_none() {
            // Knowing the services, their connections can be drained; not knowing them is no reason to
            // leave them up.
            self.plan = self.intend().await.ok().map(|intent| intent.plan);
        }
        let all = names.is_empty();
        let going = if all { known } else { names.iter().cloned().collect() };
        let mut faults = self.announce_end(&going).await;
        faults.extend(self.end(going.iter()).await);
        self.sidecars.retain(|id, _| !going.contains(id.as_str()));
        let keys = self.state.registered.iter().filter(|_| all).cloned().collect();
        let departure = match &mut self.adapters.drive.membership {
            Some(membership) => membership.departure(&keys).await,
            None => None,
        };
        faults.extend(self.deregister(&|key| going.contains(key.id.as_str())).await);
        if all {
            keep(&mut faults, self.end_session(departure).await);
            self.state.trial = None;
            self.state.refused = None;
            keep(&mut faults, self.remove_rules().await);
            faults.extend(self.remove_namespaces(None).await);
            keep(&mut faults, self.let_units_go().await);
            keep(&mut faults, self.names.end(self.adapters.systemd.as_ref()).await);
            self.plan = None;
            self.state.generation = None;
            self.state.services.clear();
            self.state.mesh = None;
        } else {
            self.state.down.extend(going.iter().filter_map(|name| name.parse().ok()));
            faults.extend(self.go_on_without().await);
        }
        keep(&mut faults, self.state.save(&self.root));
        Ok(Outcome { faults })
    }

    /// After some services went: what is left of the plan. Without a plan in force (nobody runs as a
    /// daemon) only the rules follow, because sidecars that nobody started are not asked for.
    async fn go_on_without(&mut self) -> Vec<Fault> {
        let intent = match self.intend().await {
            Ok(intent) => intent,
            Err(fault) => return vec![fault],
        };
        if self.plan.is_some() {
            return self.converge(intent).await.faults;
        }
        let mut faults = Vec::new();
        let desired = Desired { policy: intent.plan.redirect.clone(), live: BTreeSet::new() };
        match self.adapters.firewall.observe(&desired) {
            Ok(seen) if seen.generation.is_some() => {
                self.look_at_new(&intent.plan).await;
                keep(&mut faults, self.apply_rules(&intent.plan).await);
            }
            Ok(_) => {}
            Err(fault) => faults.push(fault),
        }
        faults.extend(self.remove_namespaces(Some(&intent.plan)).await);
        faults
    }

    async fn known_instances(&self) -> Result<BTreeSet<String>, Fault> {
        let planned = self.plan.iter().flat_map(|plan| plan.services.keys().map(ToString::to_string));
        let remembered = self.state.services.keys().map(ToString::to_string);
        Ok(self.adapters.units.list().await?.into_iter().chain(planned).chain(remembered).collect())
    }

    /// Takes back an earlier `down` of the services named, or of all.
    ///
    /// # Errors
    /// `ENM-D007` a name that no service has.
    pub fn lift_down(&mut self, names: &[String]) -> Result<(), Fault> {
        let config = load(&self.root, &self.state);
        let here = |name: &String| {
            let ids = config.services.iter().map(ServiceConfig::id);
            ids.chain(self.state.services.keys().cloned()).any(|id| id.as_str() == name)
        };
        if let Some(name) = names.iter().find(|name| !here(name)) {
            return Err(ConvergeError::NoService { id: name.clone() }.into());
        }
        self.state.down.retain(|id| !names.is_empty() && !names.iter().any(|name| name == id.as_str()));
        Ok(())
    }

    /// Whether the end of this process is the end of this host in the mesh.
    pub fn leaves(&self) -> bool {
        self.host.leaves(self.adapters.systemd.is_some())
    }

    /// Leaves the mesh because this container ends: others are told, and get the time to hear of it while everything
    /// still works; then inbound connections drain and the sidecars end, and what stands for this host in Consul goes.
    /// The rules stay with no sidecar live: an app that ends after us sends nothing in the clear, and the kernel
    /// takes them back with the network namespace.
    pub async fn leave(&mut self) -> Outcome {
        let keys: BTreeSet<Key> = self.state.registered.clone();
        let departure = match &mut self.adapters.drive.membership {
            Some(membership) => membership.departure(&keys).await,
            None => None,
        };
        let hears = |status: ConsulStatus| status.fault.is_none();
        let mut faults = Vec::new();
        if !keys.is_empty() && self.consul().is_some_and(hears) {
            let going = keys.iter().map(|key| key.id.to_string()).collect();
            // One that does not answer by then tells nobody either.
            faults.extend(timeout(FAREWELL, self.announce_end(&going)).await.unwrap_or_default());
            tokio::time::sleep(self.host.stop.grace.0).await;
        }
        if let Some(plan) = self.plan.take() {
            faults.extend(self.end_sidecars(&plan).await);
        }
        let gone = async {
            let mut faults = self.deregister(&|_| true).await;
            keep(&mut faults, self.end_session(departure).await);
            faults
        };
        match timeout(FAREWELL, gone).await {
            Ok(more) => faults.extend(more),
            Err(_) => faults.push(ConvergeError::NotGone { limit: FAREWELL }.into()),
        }
        keep(&mut faults, self.state.save(&self.root));
        Outcome { faults }
    }

    /// Drains and ends the sidecars that enmesh itself supervises. The rules stay, with those not live.
    async fn end_sidecars(&mut self, plan: &Plan) -> Vec<Fault> {
        let around = self.around();
        let ends = plan.services.values().map(|service| around.take_down(service));
        let mut faults: Vec<Fault> = join_all(ends).await.into_iter().filter_map(Result::err).collect();
        self.sidecars.values_mut().for_each(|status| status.phase = Phase::Stopped);
        keep(&mut faults, self.apply_rules(plan).await);
        faults.extend(self.open_namespaces(plan));
        faults
    }

    /// Ends what must not outlive this process: the resolver always, the sidecars where enmesh itself
    /// supervises them. The rules stay, with those sidecars not live, so the policy decides.
    pub async fn rest(&mut self) -> Outcome {
        let mut faults = Vec::new();
        if self.adapters.systemd.is_none()
            && let Some(plan) = self.plan.take()
        {
            // As long as others hear of it: without Consul they do not, and waiting for it helps nobody.
            if self.consul().is_some_and(|consul| consul.fault.is_none()) {
                let going = plan.services.keys().map(ToString::to_string).collect();
                faults.extend(self.announce_end(&going).await);
            }
            faults.extend(self.end_sidecars(&plan).await);
        }
        Outcome { faults }
    }
}
