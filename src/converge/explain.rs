//! What happens to one flow: what the rules say, which rule and why, where the sidecar leads it, and
//! what becomes of it while the sidecar is not live. All of it from the plan, nothing from the kernel.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use serde::Serialize;

use super::error::ConvergeError;
use crate::base::Fault;
use crate::config::value::ServiceId;
use crate::envoy::{self, Lead};
use crate::plan::{Access, MeshService, NamespacePlan, Plan, Xds};
use crate::redirect::trace::Seen;
use crate::redirect::{self, Decision, Flow, Origin, Transport, Verdict};

/// The answer about one flow. The shape is stable: fields are only ever added.
#[derive(Debug, Clone, Serialize)]
pub struct Explanation {
    /// What was asked about.
    pub flow: Flow,
    /// The network namespace that it is in; `None` for the host's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The service whose capture is about it.
    pub service: Option<ServiceId>,
    /// What becomes of it, with every sidecar live.
    pub decision: Decision,
    /// Where the sidecar leads it, for an outbound flow that it gets.
    pub lead: Option<Lead>,
    /// What happens then, a line each.
    pub next: Vec<String>,
    /// What becomes of it while the service's sidecar is not live.
    pub while_not_live: Option<Decision>,
    /// The addresses that counted as this host's own, beside loopback.
    pub own_addresses: BTreeSet<IpAddr>,
}

/// Answers about `flow` on a host with the addresses `own`; those that the plan advertises for its
/// services count as well. With `inside`, about a flow in that network namespace, which has one address.
pub fn explain(
    plan: &Plan,
    flow: Flow,
    mut own: BTreeSet<IpAddr>,
    inside: Option<&NamespacePlan>,
) -> Explanation {
    let redirect = inside.map_or(&plan.redirect, |inside| &inside.redirect);
    match inside {
        Some(inside) => own = BTreeSet::from([inside.inside().into()]),
        None => own.extend(plan.services.values().filter_map(|service| service.address)),
    }
    let mut live: BTreeSet<ServiceId> = plan.services.keys().cloned().collect();
    let decision = redirect::explain(redirect, &live, &flow, &own);
    let service = redirect::concerned(redirect, &flow).cloned();
    let while_not_live = service.as_ref().map(|id| {
        live.remove(id);
        redirect::explain(redirect, &live, &flow, &own)
    });
    let lead = match (&decision.verdict, &flow.origin) {
        (Verdict::Redirected { service: Some(id), .. }, Origin::User(_)) => {
            let lead = plan.services.get(id).map(|service| envoy::lead(service, &plan.mesh, flow.to));
            // That it leads to no service is nothing that could be known of what Consul tells.
            lead.filter(|lead| lead.service.is_some() || !is_driven(plan, id))
        }
        _ => None,
    };
    let next = next(plan, &flow, &decision.verdict, lead.as_ref());
    let namespace = inside.map(|inside| inside.name.clone());
    Explanation { flow, namespace, service, decision, lead, next, while_not_live, own_addresses: own }
}

/// Which answer the kernel's deed is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Agrees {
    /// That with every sidecar live.
    Live,
    /// That while the service's sidecar is not live.
    NotLive,
    /// Neither.
    Not,
}

/// Holds what the kernel did against `explanation`. Where the plan has rules, none in the kernel is a difference, whatever became
/// of the packet.
///
/// # Errors
/// `ENM-D070` they differ; it names both.
pub fn compare(
    plan: &Plan,
    inside: Option<&NamespacePlan>,
    explanation: &Explanation,
    seen: &Seen,
) -> (Agrees, Option<Fault>) {
    let Explanation { flow, decision, while_not_live, .. } = explanation;
    let redirect = inside.map_or(&plan.redirect, |inside| &inside.redirect);
    let rules = seen.rules_there || redirect.is_empty();
    if rules && seen.is(flow, decision) {
        return (Agrees::Live, None);
    }
    if rules && while_not_live.as_ref().is_some_and(|other| seen.is(flow, other)) {
        return (Agrees::NotLive, None);
    }
    let rule = |rule: Option<&str>| rule.map_or("no rule".to_owned(), |rule| format!("rule \"{rule}\""));
    let end = seen.arrived.map_or("refused or dropped".to_owned(), |at| format!("on to {at}"));
    let kernel = match rules {
        true => format!("{end} by {}", rule(seen.rule.as_ref().map(|rule| rule.comment.as_str()))),
        false => format!("{end}, and no rules of enmesh are there"),
    };
    let plan = format!("{} by {}", decision.verdict, rule(decision.rule.as_deref()));
    (Agrees::Not, Some(ConvergeError::Differs { kernel, plan }.into()))
}

/// The address behind `host`, an address or a name of the mesh: `api.virtual.consul`, or `api` alone.
/// Of several addresses an IPv4 one, the lowest.
///
/// # Errors
/// `ENM-D016` the mesh has no such name.
pub fn address_of(plan: &Plan, host: &str) -> Result<IpAddr, Fault> {
    let literal = host.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(host);
    if let Ok(ip) = literal.parse() {
        return Ok(ip);
    }
    let name = host.trim_end_matches('.').to_ascii_lowercase();
    let of_service = || {
        let (_, service) = plan.mesh.services.iter().find(|(known, _)| known.as_str() == name)?;
        service.virtual_ips.first().copied()
    };
    let recorded = plan.dns.records.get(&name).and_then(|addresses| addresses.iter().min().copied());
    recorded.or_else(of_service).ok_or_else(|| {
        let what = format!("`{host}` is neither an address nor a name of the mesh");
        let instead = "`enmesh render dns` lists the names; for others say the address, because only the host's resolver knows it";
        ConvergeError::NoFlow { what, instead }.into()
    })
}

fn next(plan: &Plan, flow: &Flow, verdict: &Verdict, lead: Option<&Lead>) -> Vec<String> {
    match verdict {
        Verdict::Direct => vec![format!("it goes to {} as if there were no mesh", shown(flow))],
        Verdict::Resolver { to } => {
            vec![format!(
                "the resolver at {to} answers for names of the mesh; the answer seems to come from {}",
                flow.to
            )]
        }
        Verdict::Refused => vec![match flow.transport {
            Transport::Tcp => "the caller gets a reset at once (connection refused)".to_owned(),
            Transport::Udp => "the caller gets an error at once (administratively prohibited)".to_owned(),
        }],
        Verdict::Redirected { port, service } => {
            let whose = service.as_ref().map_or_else(|| "?".to_owned(), |id| id.to_string());
            let mut lines = vec![format!("Envoy of `{whose}` takes it on port {port}")];
            let driven = service.as_ref().is_some_and(|id| is_driven(plan, id));
            if driven {
                lines.push(
                    "Consul tells that Envoy what becomes of it: by virtual IPs, intentions and defaults"
                        .to_owned(),
                );
            }
            match lead {
                Some(lead) => lines.extend(outbound(plan, flow, lead)),
                None if driven => {}
                None => lines.extend(service.as_ref().map(|id| inbound(plan, id)).unwrap_or_default()),
            }
            lines
        }
    }
}

/// Whether the sidecar of `id` is told by Consul what it does, rather than by files from this plan.
fn is_driven(plan: &Plan, id: &ServiceId) -> bool {
    plan.services.get(id).is_some_and(|service| matches!(service.sidecar.xds, Xds::Ads(_)))
}

fn shown(flow: &Flow) -> String {
    match flow.to.ip().is_unspecified() {
        true => format!("port {} of this host", flow.to.port()),
        false => flow.to.to_string(),
    }
}

fn outbound(plan: &Plan, flow: &Flow, lead: &Lead) -> Vec<String> {
    let Some(cluster) = &lead.cluster else {
        return vec![format!("filter chain `{}` closes it", lead.chain)];
    };
    let mut lines = vec![format!("filter chain `{}` leads it to cluster `{cluster}`", lead.chain)];
    let Some(name) = &lead.service else {
        lines.push(format!("it is passed on to {} in the clear: no service of the mesh is there", flow.to));
        return lines;
    };
    let dialled = lead.chain != name.as_str();
    let instances: Vec<String> = plan
        .mesh
        .services
        .get(name)
        .into_iter()
        .flat_map(|service| &service.instances)
        // Who dials an instance gets that one; behind a virtual IP stand all.
        .filter(|instance| !dialled || instance.address == flow.to.ip())
        .map(|instance| SocketAddr::new(instance.address, instance.port).to_string())
        .collect();
    let identity = plan.mesh.spiffe_id(name);
    lines.push(match instances.is_empty() {
        true => format!("service `{name}` has no instance, so the connection is closed"),
        false => format!("mutual TLS to service `{name}` ({identity}), at one of: {}", instances.join(", ")),
    });
    lines
}

fn inbound(plan: &Plan, id: &ServiceId) -> Vec<String> {
    let Some(service) = plan.services.get(id) else { return Vec::new() };
    let callers = plan.mesh.services.get(&service.name).map(who).unwrap_or_default();
    let callers = if callers.is_empty() { "nobody".to_owned() } else { callers.join(", ") };
    let mut lines = vec![format!("it demands mutual TLS; who may call: {callers}")];
    lines
        .extend(service.port.map(|port| format!("cluster `local_app`: the application at 127.0.0.1:{port}")));
    lines
}

/// Those who may call, and what.
fn who(service: &MeshService) -> Vec<String> {
    let MeshService { callers, protocol, .. } = service;
    let (mut may, mut must_not) = (Vec::new(), Vec::new());
    for (name, access) in &callers.named {
        match access {
            Access::Allow => may.push(format!("`{name}`")),
            Access::Requests(_) if protocol.is_http() => may.push(format!("`{name}` (some requests)")),
            Access::Deny | Access::Requests(_) => must_not.push(format!("`{name}`")),
        }
    }
    let but = if must_not.is_empty() { String::new() } else { format!(" but {}", must_not.join(", ")) };
    match &callers.others {
        Access::Allow => may.push(format!("any service of the mesh{but}")),
        Access::Requests(_) if protocol.is_http() => {
            may.push(format!("any service of the mesh{but} (some requests)"));
        }
        Access::Deny | Access::Requests(_) => {}
    }
    may
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::{Config, ServiceConfig};
    use crate::plan::facts::{HostFacts, User};
    use crate::plan::{Ads, AdsServer, plan};

    #[test]
    fn what_consul_tells_is_not_guessed() {
        let api: ServiceConfig = serde_json::from_value(json!({ "name": "api", "port": 8080 })).unwrap();
        let config = Config { services: vec![api], ..Config::default() };
        let users = [("envoy".to_owned(), User { uid: 5995, gid: 5995 })].into();
        let server = AdsServer::Tcp("127.0.0.1:8502".parse().unwrap());
        let xds = Xds::Ads(Ads { server, ca_pem: None, token: false, node_name: None });
        let mut facts = HostFacts { users, ..HostFacts::default() };
        let asked = |facts: &HostFacts| {
            let to = "10.9.9.9:5432".parse().unwrap();
            let flow = Flow { origin: Origin::User(1000), transport: Transport::Tcp, to };
            explain(&plan(&config, facts), flow, BTreeSet::new(), None)
        };
        let by_files = asked(&facts);
        assert!(by_files.lead.is_some() && by_files.next.iter().any(|line| line.contains("passed on")));
        facts.xds = xds;
        let by_consul = asked(&facts);
        assert_eq!(by_consul.decision, by_files.decision, "the rules are the same");
        assert!(by_consul.lead.is_none());
        assert!(by_consul.next.iter().any(|line| line.contains("Consul tells")), "{:?}", by_consul.next);
        assert!(!by_consul.next.iter().any(|line| line.contains("passed on")), "{:?}", by_consul.next);
    }
}
