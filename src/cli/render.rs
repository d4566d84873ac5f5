//! `enmesh render`

use std::fmt::Write as _;

use clap::{Args, ValueEnum};
use serde_json::{Map, Value, json};

use super::Global;
use super::output::Answer;
use crate::base::units::{Network, UnitSpec};
use crate::base::{Fault, Root};
use crate::converge::{self, ConvergeError};
use crate::netns::Namespace;
use crate::plan::{NamespacePlan, Plan, ServicePlan, Xds};
use crate::redirect::{self, Crossings};
use crate::{envoy, systemd};

/// Print an artefact
#[derive(Debug, Args)]
#[command(
    after_help = "Reads the configuration and prints what would come of it. Needs no privilege and touches nothing.\n\nExamples:\n  enmesh render nft                              the rules, as `nft -f` takes them\n  enmesh render nft api                          those in the namespace of `api`, if it has one\n  enmesh render iptables                         the same for iptables-restore and ip6tables-restore\n  enmesh render bootstrap api                    Envoy's bootstrap for `api`\n  enmesh render registration --root /mnt/image   of another tree"
)]
pub struct Render {
    /// What to print
    kind: Kind,
    /// Of which service; of all by default
    service: Option<String>,
}

/// What can be printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// The registration in Consul's file form
    Registration,
    /// The rules for nftables: of the whole host, or of the namespace that a service has for itself
    Nft,
    /// The rules of the whole host for iptables
    Iptables,
    /// Envoy's bootstrap
    Bootstrap,
    /// Listeners and clusters
    Xds,
    /// The unit's drop-in
    Unit,
    /// The names that the resolver answers
    Dns,
}

impl Render {
    pub async fn run(self, global: &Global) -> Result<Answer, Fault> {
        let root = global.root();
        let intent = converge::look(&root).await?;
        let plan = &intent.plan;
        let services = self.services(plan)?;
        let answer = match self.kind {
            Kind::Registration => documents(services, |service| Ok(service.registration.clone()))?,
            Kind::Bootstrap => documents(services, |service| envoy::bootstrap(service, &root))?,
            Kind::Xds => documents(services, |service| xds(plan, service, &root))?,
            Kind::Unit => units(plan, services, &root)?,
            Kind::Nft => nft(plan, self.service.as_deref()),
            Kind::Iptables => {
                let live = plan.services.keys().cloned().collect();
                let [v4, v6] = redirect::render_iptables(&plan.redirect, &live);
                let text = format!(
                    "# IPv4, for iptables-restore --noflush\n{v4}# IPv6, for ip6tables-restore --noflush\n{v6}"
                );
                Answer::new(text, &json!({ "iptables": v4, "ip6tables": v6, "policy": plan.redirect }))
            }
            Kind::Dns => {
                let mut text = String::new();
                for (name, addresses) in &plan.dns.records {
                    for address in addresses {
                        let kind = if address.is_ipv4() { "A" } else { "AAAA" };
                        let _ = writeln!(text, "{name}. IN {kind} {address}");
                    }
                }
                Answer::new(text, &plan.dns)
            }
        };
        Ok(answer.with_faults(intent.faults(), intent.warnings()))
    }

    fn services<'a>(&self, plan: &'a Plan) -> Result<Vec<&'a ServicePlan>, Fault> {
        let chosen: Vec<_> = plan
            .services
            .values()
            .filter(|service| self.service.as_ref().is_none_or(|name| name == service.id.as_str()))
            .collect();
        match &self.service {
            Some(id) if chosen.is_empty() => Err(ConvergeError::NoService { id: id.clone() }.into()),
            _ => Ok(chosen),
        }
    }
}

/// One service's document as it is; several by id.
fn documents(
    services: Vec<&ServicePlan>,
    render: impl Fn(&ServicePlan) -> Result<Value, Fault>,
) -> Result<Answer, Fault> {
    let json = if let [one] = services.as_slice() {
        render(one)?
    } else {
        let mut all = Map::new();
        for service in services {
            all.insert(service.id.to_string(), render(service)?);
        }
        Value::Object(all)
    };
    Ok(Answer::new(serde_json::to_string_pretty(&json).unwrap_or_default(), &json))
}

fn xds(plan: &Plan, service: &ServicePlan, root: &Root) -> Result<Value, Fault> {
    if let Xds::Ads(ads) = &service.sidecar.xds {
        // What the sidecar is told is between it and Consul.
        return Ok(json!({ "consul": ads.server }));
    }
    let resources = envoy::resources(service, &plan.mesh, root)?;
    Ok(json!({ "listeners": resources.listeners, "clusters": resources.clusters }))
}

/// The rules of each network namespace: of the host's, with the border to others, and of those. Of one service
/// those of where it lives.
fn nft(plan: &Plan, service: Option<&str>) -> Answer {
    let live = plan.services.keys().cloned().collect();
    let own = |id: &str| plan.namespaces.values().find(|own| own.service.as_str() == id);
    if let Some(own) = service.and_then(own) {
        let text = redirect::render_text(&own.redirect, &live);
        return Answer::new(text.clone(), &json!({ "nft": text, "policy": own.redirect }));
    }
    let mut text = redirect::render_text(&plan.redirect, &live);
    let mut json = json!({ "policy": plan.redirect });
    if !plan.namespaces.is_empty() {
        let border = Crossings::of(plan).text();
        let _ = write!(text, "\n# The border to the network namespaces of services\n{border}");
    }
    if let Some(fields) = json.as_object_mut() {
        fields.insert("nft".to_owned(), text.clone().into());
        let inside = |(name, own): (&String, &NamespacePlan)| {
            let text = redirect::render_text(&own.redirect, &live);
            (name.clone(), json!({ "nft": text, "policy": own.redirect }))
        };
        let inside: Map<String, Value> = plan.namespaces.iter().map(inside).collect();
        if !inside.is_empty() {
            fields.insert("namespaces".to_owned(), inside.into());
        }
    }
    Answer::new(text, &json)
}

fn units(plan: &Plan, services: Vec<&ServicePlan>, root: &Root) -> Result<Answer, Fault> {
    let (mut text, mut json) = (String::new(), Map::new());
    for service in services {
        // Which one it will be is known when it is there.
        let network = plan
            .namespace_of(&service.id)
            .map(|own| Network { path: Namespace::path_of_name(&own.name), identity: (0, 0) });
        let spec = UnitSpec { network, ..envoy::unit_spec(service, root)? };
        // The systemd that will read it is not asked, so only what every version knows is in it.
        let drop_in = systemd::dropin::render(&spec, 0);
        let path =
            format!("/run/systemd/system/{}.d/50-enmesh.conf", systemd::escape::unit(service.id.as_str()));
        let _ = write!(text, "# {path}\n{drop_in}\n");
        json.insert(path, Value::String(drop_in));
    }
    Ok(Answer::new(text, &json))
}
