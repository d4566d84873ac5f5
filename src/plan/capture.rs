//! Service files -> redirection policy: names become numbers, lists become merged ranges, and two
//! services that want the same traffic are told apart or refused.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};

use super::problem::PlanError;
use super::ssh;
use super::{
    Bypasses, Generation, HostFacts, InboundCapture, InboundPorts, MeshView, OutboundCapture, RedirectPolicy,
    Who,
};
use crate::base::Fault;
use crate::config::value::{Port, PortRange, PortSpec, Scope, ServiceId, UserSpec};
use crate::config::{Inbound, OnProxyFailure, ServiceConfig};

/// Networks that no capture touches: loopback, and the metadata services of the clouds (Azure's
/// WireServer has an address of its own).
pub const NEVER: [&str; 4] = ["127.0.0.0/8", "::1/128", "169.254.169.254/32", "168.63.129.16/32"];

/// The captures of the services added so far.
#[derive(Debug, Default)]
pub(super) struct Captures {
    outbound: BTreeMap<ServiceId, OutboundCapture>,
    inbound: BTreeMap<ServiceId, InboundCapture>,
    bypass_uids: BTreeMap<ServiceId, Vec<u32>>,
    /// Those whose scope is a unit.
    units: BTreeSet<ServiceId>,
}

impl Captures {
    /// Adds what `service` captures, or nothing when it cannot be. Ports in `open` are the sidecar's
    /// own, such as for metrics, and stay reachable.
    pub fn add(
        &mut self,
        service: &ServiceConfig,
        (outbound, inbound): (Option<u16>, Option<u16>),
        open: &BTreeSet<u16>,
        sidecar_uid: u32,
        facts: &HostFacts,
        warnings: &mut Vec<Fault>,
    ) -> Result<(), PlanError> {
        let id = service.id();
        let bypass = &service.capture.bypass;
        let who = self.who(service, sidecar_uid, facts)?;
        let outbound = match outbound {
            Some(port) => Some(OutboundCapture {
                who,
                port,
                ipv6: service.capture.ipv6,
                on_failure: service.capture.on_proxy_failure,
                bypass: Bypasses {
                    ports: ports(&id, &bypass.outbound_ports, facts)?,
                    cidrs: IpNet::aggregate(&bypass.outbound_cidrs.iter().map(|cidr| cidr.0).collect()),
                },
            }),
            None => None,
        };
        let inbound = match inbound {
            Some(to) => self.inbound(service, to, open, facts, warnings)?,
            None => None,
        };
        let uids: Result<Vec<u32>, PlanError> =
            bypass.uids.iter().map(|user| uid(&id, user, "capture.bypass.uids", facts)).collect();
        self.bypass_uids.insert(id.clone(), uids?);
        if service.capture.on_proxy_failure == OnProxyFailure::Open {
            warnings.push(Fault::from(PlanError::FailsOpen { id: id.clone() }).of_service(&id));
        }
        if matches!(service.capture.scope, Scope::Unit(_)) {
            self.units.insert(id.clone());
        }
        self.outbound.extend(outbound.map(|capture| (id.clone(), capture)));
        self.inbound.extend(inbound.map(|capture| (id, capture)));
        Ok(())
    }

    fn who(&self, service: &ServiceConfig, sidecar_uid: u32, facts: &HostFacts) -> Result<Who, PlanError> {
        let id = service.id();
        let who = match &service.capture.scope {
            // In a namespace of its own, everybody is who is in there.
            Scope::Host | Scope::Netns(_) => Who::Everyone,
            Scope::User(user) => Who::Uid(uid(&id, user, "capture.scope", facts)?),
            Scope::Unit(unit) => {
                let known = facts.unit_users.get(unit).copied();
                let known = known.ok_or_else(|| PlanError::NoUnit { id: id.clone(), unit: unit.clone() })?;
                known.map_or(Who::Nobody, Who::Uid)
            }
        };
        if who == Who::Uid(sidecar_uid) {
            return Err(PlanError::CapturesSidecar { id, uid: sidecar_uid });
        }
        let holder = self.outbound.iter().find(|(_, capture)| capture.who == who);
        let Some((other, _)) = holder else { return Ok(who) };
        let (other, what) = match (who, &service.capture.scope) {
            (Who::Nobody, _) => return Ok(who),
            (Who::Uid(uid), Scope::Unit(unit)) if self.units.contains(other) => {
                return Err(PlanError::SharedUser { id, other: other.clone(), unit: unit.clone(), uid });
            }
            (Who::Uid(uid), _) => (other.clone(), format!("the connections of uid {uid}")),
            (Who::Everyone, _) => (other.clone(), "the whole host".to_owned()),
        };
        Err(PlanError::Overlap { id, other, what })
    }

    fn inbound(
        &self,
        service: &ServiceConfig,
        to: u16,
        open: &BTreeSet<u16>,
        facts: &HostFacts,
        warnings: &mut Vec<Fault>,
    ) -> Result<Option<InboundCapture>, PlanError> {
        let id = service.id();
        let bypass = &service.capture.bypass;
        let bypass_ports = ports(&id, &bypass.inbound_ports, facts)?;
        let captured = match (service.capture.inbound, service.port.map(Port::get)) {
            (Inbound::None, _) | (Inbound::Service, None) => return Ok(None),
            (Inbound::All, _) => InboundPorts::All,
            (Inbound::Service, Some(port)) if bypass_ports.iter().any(|range| range.contains(port)) => {
                // Where the file says it in numbers, reading it has warned already.
                let in_numbers =
                    |spec: &PortSpec| matches!(spec, PortSpec::Range(range) if range.contains(port));
                if !bypass.inbound_ports.iter().any(in_numbers) {
                    let warning = PlanError::PortBypassed { id: id.clone(), port };
                    warnings.push(Fault::from(warning).of_service(id));
                }
                return Ok(None);
            }
            (Inbound::Service, Some(port)) => InboundPorts::One(port),
        };
        if let Some((other, _)) = self.inbound.iter().find(|(_, capture)| capture.ports == captured) {
            let what = match captured {
                InboundPorts::All => "all inbound ports".to_owned(),
                InboundPorts::One(port) => format!("inbound port {port}"),
            };
            return Err(PlanError::Overlap { id, other: other.clone(), what });
        }
        let capture = InboundCapture {
            ports: captured,
            to,
            ipv6: service.capture.ipv6,
            on_failure: service.capture.on_proxy_failure,
            bypass_ports: match captured {
                InboundPorts::All => with_open(bypass_ports, open),
                InboundPorts::One(_) => bypass_ports,
            },
            bypass_interfaces: bypass.interfaces.iter().map(ToString::to_string).collect(),
        };
        ssh::check(service, &capture, facts, warnings)?;
        Ok(Some(capture))
    }

    /// Users that are left alone. One service's bypass does not take a user from another service
    /// that claims it by name.
    fn bypassed(&self) -> BTreeSet<u32> {
        let claimed_by_another = |id: &ServiceId, uid: u32| {
            self.outbound.iter().any(|(other, capture)| other != id && capture.who == Who::Uid(uid))
        };
        let listed = self.bypass_uids.iter().flat_map(|(id, uids)| uids.iter().map(move |uid| (id, *uid)));
        listed.filter(|(id, uid)| !claimed_by_another(id, *uid)).map(|(_, uid)| uid).collect()
    }

    /// The policy of everything that was added.
    pub fn policy(
        self,
        pool: Ipv4Net,
        mesh: &MeshView,
        own: &BTreeSet<IpAddr>,
        proxy_uids: BTreeSet<u32>,
    ) -> RedirectPolicy {
        let captured = !self.outbound.is_empty();
        let instances = mesh.services.values().flat_map(|service| &service.instances);
        let directs = instances.filter_map(|instance| Some((instance.address, instance.service_port?)));
        let directs = directs.chain(mesh.past.instances.iter().copied());
        let virtual_ips = mesh.services.values().flat_map(|service| &service.virtual_ips);
        let virtual_ips = virtual_ips.chain(&mesh.past.virtual_ips);
        let outside = virtual_ips.filter(|ip| !matches!(ip, IpAddr::V4(v4) if pool.contains(v4)));
        let mut virtual_nets: BTreeSet<IpNet> = outside.map(|ip| IpNet::from(*ip)).collect();
        virtual_nets.insert(IpNet::V4(pool));
        RedirectPolicy {
            generation: Generation::default(),
            bypass_uids: self.bypassed().union(&proxy_uids).copied().collect(),
            proxy_uids,
            bypass_cidrs: NEVER.iter().filter_map(|net| net.parse().ok()).collect(),
            virtual_nets: if captured { virtual_nets } else { BTreeSet::new() },
            mesh_instances: directs.filter(|(address, _)| captured && !own.contains(address)).collect(),
            outbound: self.outbound,
            inbound: self.inbound,
            agent_ports: BTreeSet::new(),
            own_calls: false,
            dns: None,
            virtual_route: captured.then_some(pool),
            host_end: None,
        }
    }
}

fn uid(id: &ServiceId, user: &UserSpec, field: &'static str, facts: &HostFacts) -> Result<u32, PlanError> {
    match user {
        UserSpec::Uid(uid) => Ok(*uid),
        UserSpec::Name(name) => facts
            .users
            .get(name)
            .map(|found| found.uid)
            .ok_or_else(|| PlanError::NoUser { id: id.clone(), user: user.clone(), field }),
    }
}

/// Ranges with names resolved, sorted and merged.
fn ports(id: &ServiceId, specs: &[PortSpec], facts: &HostFacts) -> Result<Vec<PortRange>, PlanError> {
    let mut ranges = Vec::with_capacity(specs.len());
    for spec in specs {
        ranges.push(match spec {
            PortSpec::Range(range) => *range,
            PortSpec::Name(name) => facts
                .port_names
                .get(name)
                .and_then(|port| Port::new(*port))
                .map(PortRange::single)
                .ok_or_else(|| PlanError::NoPortName { id: id.clone(), name: name.clone() })?,
        });
    }
    Ok(merged(ranges))
}

/// `ranges` and the ports in `open`.
fn with_open(mut ranges: Vec<PortRange>, open: &BTreeSet<u16>) -> Vec<PortRange> {
    ranges.extend(open.iter().filter_map(|port| Port::new(*port)).map(PortRange::single));
    merged(ranges)
}

/// Sorted, and merged where they overlap or touch.
fn merged(mut ranges: Vec<PortRange>) -> Vec<PortRange> {
    ranges.sort_unstable();
    let mut merged: Vec<PortRange> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match merged.last_mut() {
            Some(last) if u32::from(range.first.get()) <= u32::from(last.last.get()) + 1 => {
                last.last = last.last.max(range.last);
            }
            _ => merged.push(range),
        }
    }
    merged
}
