//! Which destination of a redirected connection belongs to which service.
//!
//! A chain's own `filter_chain_match` cannot say it: Envoy looks at the port first and does not come
//! back from there, so one chain for port 8080 of an instance would take port 8080 away from all
//! virtual IPs. A matcher tree looks at the address first, and at the port only where it matters.
//! Besides, chains then do not change when instances come and go, and nothing is drained.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::Ipv4Net;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::clusters;
use super::http;
use super::names::address_in;
use super::typed::{any, extension, tcp_proxy};
use crate::config::value::ServiceName;
use crate::plan::{MeshService, MeshView, Protocol, ServicePlan};

/// Where the outbound listener itself is. Who connects to it directly, rather than being redirected
/// to it, has it for a destination: passed on like any other, the connection would come back, and
/// again, until Envoy has no descriptor left.
const OURSELVES: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
/// The chain of such connections, and of those to services that may not be reached or are not there. Without a filter, Envoy closes them.
const CLOSED: &str = "default/closed";
/// The chain of connections to no service: they are passed on to where they were going. A name that no
/// service can have: names of chains are unique in a listener.
pub const PASSED_ON: &str = "default/original-destination";

/// The destinations that are not just passed on. An address or an address and port that two
/// services claim belongs to the first in the order of names, those that may be reached before the others.
pub struct Destinations<'a> {
    /// Virtual IPs: every port is the service's. `None`: one that may not be reached, or was of a service
    /// that is gone.
    virtual_ips: BTreeMap<IpAddr, Option<&'a ServiceName>>,
    /// Instances that are dialled by their own address: the app's port is the service's. `None` as above.
    instances: BTreeMap<IpAddr, BTreeMap<u16, Option<Direct<'a>>>>,
    /// Virtual IPs that are nobody's.
    unassigned: Option<Ipv4Net>,
}

/// A service whose instances' sidecars listen on `port`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Direct<'a> {
    service: &'a ServiceName,
    port: u16,
}

impl Direct<'_> {
    /// The name of its chain. No service's name has a slash in it.
    fn chain(self) -> String {
        format!("{}/{}", self.service, self.port)
    }
}

impl<'a> Destinations<'a> {
    /// What `service` can reach in `mesh`, and what is of the mesh and must not be passed on in the clear.
    pub fn of(service: &'a ServicePlan, mesh: &'a MeshView) -> Self {
        let mut found = Destinations {
            virtual_ips: BTreeMap::new(),
            instances: BTreeMap::new(),
            unassigned: mesh.virtual_net,
        };
        let (reached, others): (Vec<_>, Vec<_>) =
            mesh.services.iter().partition(|(name, _)| mesh.reaches(&service.name, name));
        for (name, known) in reached {
            found.add(service, known, Some(name));
        }
        for (_, known) in others {
            found.add(service, known, None);
        }
        for ip in &mesh.past.virtual_ips {
            found.virtual_ips.entry(*ip).or_insert(None);
        }
        for (ip, port) in &mesh.past.instances {
            found.instances.entry(*ip).or_default().entry(*port).or_insert(None);
        }
        found.instances.retain(|ip, _| !found.virtual_ips.contains_key(ip));
        found
    }

    fn add(&mut self, service: &ServicePlan, known: &'a MeshService, name: Option<&'a ServiceName>) {
        for ip in &known.virtual_ips {
            self.virtual_ips.entry(*ip).or_insert(name);
        }
        for (instance, app_port) in clusters::direct_instances(service, known) {
            let direct = name.map(|service| Direct { service, port: instance.port });
            self.instances.entry(instance.address).or_default().entry(app_port).or_insert(direct);
        }
    }

    /// Whether `ip`, which is not that of a service, is one for services.
    fn is_unassigned(&self, ip: IpAddr) -> bool {
        matches!((self.unassigned, ip), (Some(net), IpAddr::V4(ip)) if net.contains(&ip))
    }

    /// One chain a service, one more for each port on which sidecars of instances listen that can be
    /// dialled directly, and one for what must go nowhere.
    pub fn chains(&self, mesh: &MeshView) -> Vec<Value> {
        let services: BTreeSet<&ServiceName> = self.virtual_ips.values().copied().flatten().collect();
        let directs: BTreeSet<Direct<'_>> =
            self.instances.values().flat_map(BTreeMap::values).copied().flatten().collect();
        let chain = |name: &str, filter: Value| json!({"name": name, "filters": [filter]});
        let by_virtual_ip = services.into_iter().map(|name| chain(name.as_str(), to_service(name, mesh)));
        let by_instance = directs.into_iter().map(|direct| {
            let cluster = clusters::direct_name(&mesh.sni(direct.service), direct.port);
            chain(&direct.chain(), tcp_proxy(&upstream_stats(direct.service, mesh), &cluster))
        });
        let closed = json!({"name": CLOSED, "filters": []});
        by_virtual_ip.chain(by_instance).chain([closed]).collect()
    }

    /// Leads each destination to its chain. What it does not know goes to the listener's default
    /// chain, but for virtual IPs that are nobody's: passed on, they would come to their end only when
    /// the time to connect is up. Addresses are matched as text, whole: Envoy's matcher for ranges is
    /// not covered by its threat model yet.
    pub fn matcher(&self) -> Value {
        let virtual_ips = self
            .virtual_ips
            .iter()
            .map(|(ip, name)| (*ip, to_chain(name.map_or(CLOSED, ServiceName::as_str))));
        let instances = self.instances.iter().map(|(ip, ports)| {
            let chain = |direct: &Option<Direct<'_>>| direct.map_or(CLOSED.to_owned(), Direct::chain);
            let ports = ports.iter().map(|(port, direct)| (port.to_string(), to_chain(&chain(direct))));
            (*ip, json!({"matcher": exactly("Port", ports)}))
        });
        let ourselves = OURSELVES.into_iter().map(|ip| (ip, to_chain(CLOSED)));
        let addresses: BTreeMap<IpAddr, Value> = virtual_ips.chain(instances).chain(ourselves).collect();
        let mut matcher =
            exactly("IP", addresses.into_iter().map(|(ip, on_match)| (ip.to_string(), on_match)));
        if let (Some(net), Some(fields)) = (self.unassigned, matcher.as_object_mut()) {
            fields.insert("on_no_match".to_owned(), json!({"matcher": closed_within(net)}));
        }
        matcher
    }
}

/// The filter that leads to a service: its requests where it speaks HTTP, and otherwise its bytes.
pub fn to_service(service: &ServiceName, mesh: &MeshView) -> Value {
    let (stats, cluster) = (upstream_stats(service, mesh), mesh.sni(service));
    match mesh.protocol(service) {
        Protocol::Tcp => tcp_proxy(&stats, &cluster),
        protocol => http::outbound(protocol, &stats, service.as_str(), &cluster),
    }
}

/// Consul's prefix for the metrics of an upstream.
fn upstream_stats(service: &ServiceName, mesh: &MeshView) -> String {
    format!("upstream.{service}.default.{}", mesh.datacenter)
}

/// A matcher over the text of the destination's `what`.
fn exactly(what: &str, map: impl Iterator<Item = (String, Value)>) -> Value {
    let map: Map<String, Value> = map.collect();
    json!({"matcher_tree": {"input": destination(what), "exact_match_map": {"map": map}}})
}

/// A matcher that leads destinations in `net` nowhere, and no others.
fn closed_within(net: Ipv4Net) -> Value {
    // This message of xDS itself demands the engine that Envoy's own leaves out.
    let regex = json!({"google_re2": {}, "regex": address_in(net)});
    let is_in = json!({"input": destination("IP"), "value_match": {"safe_regex": regex}});
    json!({"matcher_list": {"matchers": [
        {"predicate": {"single_predicate": is_in}, "on_match": to_chain(CLOSED)},
    ]}})
}

fn destination(what: &str) -> Value {
    let message = format!("envoy.extensions.matching.common_inputs.network.v3.Destination{what}Input");
    extension(&format!("destination-{}", what.to_lowercase()), &message, json!({}))
}

fn to_chain(name: &str) -> Value {
    json!({"action": {"name": "chain", "typed_config": any("google.protobuf.StringValue", json!({"value": name}))}})
}

/// Where a sidecar leads a connection that the kernel redirected to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Lead {
    /// The filter chain of the outbound listener.
    pub chain: String,
    /// The cluster; `None` when the connection is closed.
    pub cluster: Option<String>,
    /// The service of the mesh that is at its end; `None` when the connection is just passed on.
    pub service: Option<ServiceName>,
}

impl Lead {
    fn closed() -> Self {
        Lead { chain: CLOSED.to_owned(), cluster: None, service: None }
    }
}

/// Where the sidecar of `service` leads a connection to `to`, by the same maps that its listener has.
pub fn lead(service: &ServicePlan, mesh: &MeshView, to: SocketAddr) -> Lead {
    let destinations = Destinations::of(service, mesh);
    let (ip, port) = (to.ip(), to.port());
    if OURSELVES.contains(&ip) {
        return Lead::closed();
    }
    if let Some(name) = destinations.virtual_ips.get(&ip) {
        return name.map_or_else(Lead::closed, |name| Lead {
            chain: name.to_string(),
            cluster: Some(mesh.sni(name)),
            service: Some(name.clone()),
        });
    }
    match destinations.instances.get(&ip).and_then(|ports| ports.get(&port)) {
        Some(direct) => direct.map_or_else(Lead::closed, |direct| Lead {
            chain: direct.chain(),
            cluster: Some(clusters::direct_name(&mesh.sni(direct.service), direct.port)),
            service: Some(direct.service.clone()),
        }),
        None if destinations.is_unassigned(ip) => Lead::closed(),
        None => Lead {
            chain: PASSED_ON.to_owned(),
            cluster: Some(clusters::ORIGINAL_DESTINATION.to_owned()),
            service: None,
        },
    }
}
