//! What converging would change, worked out without touching anything.

use std::collections::BTreeSet;

use super::change::{Change, Kind, Subject};
use super::engine::Engine;
use crate::base::Fault;
use crate::config::value::ServiceId;
use crate::consul::Key;
use crate::netns;
use crate::plan::{Plan, ServicePlan, routed};
use crate::redirect::Desired;

impl Engine {
    /// What converging would change, in the order of its doing; and what of it is wrong in itself.
    ///
    /// # Errors
    /// The kernel, Consul or the unit manager does not answer.
    pub async fn diff(&mut self, plan: &Plan) -> Result<(Vec<Change>, Vec<Fault>), Fault> {
        let mut changes = Vec::new();
        self.look_at_new(plan).await;
        changes.extend(self.diff_route(plan).await?);
        changes.extend(self.diff_rules(plan)?);
        changes.extend(self.diff_namespaces(plan)?);
        for service in plan.services.values() {
            changes.extend(self.diff_files(plan, service)?);
        }
        let (entries, faults) = self.diff_entries().await?;
        changes.extend(entries);
        changes.extend(self.diff_registrations(plan).await?);
        changes.extend(self.diff_units(plan).await?);
        Ok((changes, faults))
    }

    fn diff_files(&self, plan: &Plan, service: &ServicePlan) -> Result<Vec<Change>, Fault> {
        let change = |name: String| {
            let path = service.sidecar.folder.join(name);
            let kind = if self.root.join(&path).exists() { Kind::Change } else { Kind::Add };
            Change {
                subject: Subject::File,
                name: path.display().to_string(),
                kind,
                service: Some(service.id.clone()),
                details: Vec::new(),
            }
        };
        Ok(self.publisher.diff(service, &plan.mesh, None)?.into_iter().map(change).collect())
    }

    async fn diff_route(&self, plan: &Plan) -> Result<Vec<Change>, Fault> {
        if !self.adapters.redirects {
            return Ok(Vec::new());
        }
        let ours = netns::our_virtual_routes().await?;
        let change = |net: &ipnet::Ipv4Net, kind| Change {
            subject: Subject::Route,
            name: format!("{net} dev lo"),
            kind,
            service: None,
            details: Vec::new(),
        };
        let wanted = plan.virtual_net.map(routed).unwrap_or_default();
        let removed = ours.iter().filter(|net| !wanted.contains(net)).map(|net| change(net, Kind::Remove));
        let added = wanted.iter().filter(|net| !ours.contains(net)).map(|net| change(net, Kind::Add));
        Ok(removed.chain(added).collect())
    }

    fn diff_rules(&self, plan: &Plan) -> Result<Option<Change>, Fault> {
        let live: BTreeSet<ServiceId> = plan.services.keys().cloned().collect();
        let seen = self.adapters.firewall.observe(&Desired { policy: plan.redirect.clone(), live })?;
        let kind = match (&seen.generation, plan.redirect.is_empty()) {
            (None, true) => return Ok(None),
            (None, false) => Kind::Add,
            (Some(_), true) => Kind::Remove,
            (Some(_), false) if seen.differences.is_empty() => return Ok(None),
            (Some(_), false) => Kind::Change,
        };
        let details = if kind == Kind::Change { seen.differences } else { Vec::new() };
        let name = match self.adapters.firewall.name() {
            "iptables" => "chains ENMESH_*",
            _ => "table inet enmesh",
        };
        let name = name.to_owned();
        Ok(Some(Change { subject: Subject::Rules, name, kind, service: None, details }))
    }

    async fn diff_registrations(&self, plan: &Plan) -> Result<Vec<Change>, Fault> {
        let Some(membership) = &self.adapters.drive.membership else { return Ok(Vec::new()) };
        let change = |key: &Key, kind, details| Change {
            subject: Subject::Registration,
            name: key.id.to_string(),
            kind,
            service: Some(key.id.clone()),
            details,
        };
        let mut changes = Vec::new();
        for (key, differences) in membership.observe(plan).await? {
            let new = format!("+ service {}", key.id);
            match differences.contains(&new) {
                _ if differences.is_empty() => {}
                true => changes.push(change(&key, Kind::Add, Vec::new())),
                false => changes.push(change(&key, Kind::Change, differences)),
            }
        }
        let planned = |key: &Key| plan.services.contains_key(&key.id);
        let gone = self.state.registered.iter().filter(|key| !planned(key));
        changes.extend(gone.map(|key| change(key, Kind::Remove, Vec::new())));
        Ok(changes)
    }

    async fn diff_units(&self, plan: &Plan) -> Result<Vec<Change>, Fault> {
        let there = self.adapters.units.list().await?;
        let change = |id: &str, kind| Change {
            subject: Subject::Unit,
            name: format!("envoy@{id}.service"),
            kind,
            service: id.parse().ok(),
            details: Vec::new(),
        };
        let planned = |id: &String| plan.services.keys().any(|planned| planned.as_str() == id);
        let removed = there.iter().filter(|id| !planned(id)).map(|id| change(id, Kind::Remove));
        let added = plan
            .services
            .keys()
            .filter(|id| !there.iter().any(|there| there == id.as_str()))
            .map(|id| change(id.as_str(), Kind::Add));
        Ok(added.chain(removed).collect())
    }
}
