//! `enmesh render`

use std::fmt::Write as _;

use clap::{Args, ValueEnum};
use serde_json::{Map, Value, json};

use super::Global;
use super::output::Answer;
use crate::base::{Fault, Root};
use crate::converge::{self, ConvergeError};
use crate::plan::{Plan, ServicePlan};
use crate::{envoy, redirect, systemd};

/// Print an artefact
#[derive(Debug, Args)]
#[command(
    after_help = "Reads the configuration and prints what would come of it. Needs no privilege and touches nothing.\n\nExamples:\n  enmesh render nft                              the rules, as `nft -f` takes them\n  enmesh render iptables                         the same for iptables-restore and ip6tables-restore\n  enmesh render bootstrap api                    Envoy's bootstrap for `api`\n  enmesh render registration --root /mnt/image   of another tree"
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
    /// The rules of the whole host for nftables
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
            Kind::Unit => units(services, &root)?,
            Kind::Nft => {
                let live = plan.services.keys().cloned().collect();
                let text = redirect::render_text(&plan.redirect, &live);
                Answer::new(text.clone(), &json!({ "nft": text, "policy": plan.redirect }))
            }
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
    let resources = envoy::resources(service, &plan.mesh, root)?;
    Ok(json!({ "listeners": resources.listeners, "clusters": resources.clusters }))
}

fn units(services: Vec<&ServicePlan>, root: &Root) -> Result<Answer, Fault> {
    let (mut text, mut json) = (String::new(), Map::new());
    for service in services {
        let spec = envoy::unit_spec(service, root)?;
        // The systemd that will read it is not asked, so only what every version knows is in it.
        let drop_in = systemd::dropin::render(&spec, 0);
        let path =
            format!("/run/systemd/system/{}.d/50-enmesh.conf", systemd::escape::unit(service.id.as_str()));
        let _ = write!(text, "# {path}\n{drop_in}\n");
        json.insert(path, Value::String(drop_in));
    }
    Ok(Answer::new(text, &json))
}
