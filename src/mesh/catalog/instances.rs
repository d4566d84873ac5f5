//! Where a service runs, from what Consul says of its sidecars' health.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::CatalogWarning;
use super::answers::{HealthCheck, HealthEntry, HealthService};
use crate::base::Fault;
use crate::plan::Instance;

/// Where a service can be reached.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Endpoints {
    /// Whether it has instances in the mesh at all, healthy or not.
    pub present: bool,
    pub instances: BTreeSet<Instance>,
    pub virtual_ips: BTreeSet<IpAddr>,
    /// Names that its sidecars are registered under beside the usual one.
    pub aliases: BTreeSet<String>,
    pub warnings: Vec<Fault>,
}

/// The name that the sidecars of `service` have by convention.
pub(super) fn sidecar_name(service: &str) -> String {
    format!("{service}{SIDECAR}")
}

/// The service whose sidecars are called `name` by convention.
pub(super) fn of_sidecar(name: &str) -> Option<&str> {
    name.strip_suffix(SIDECAR)
}

const SIDECAR: &str = "-sidecar-proxy";

impl Endpoints {
    /// From the answer about `service`.
    pub fn new(service: &str, entries: Vec<HealthEntry>) -> Self {
        let mut endpoints = Endpoints { present: !entries.is_empty(), ..Endpoints::default() };
        let usual = sidecar_name(service);
        let mut instances = BTreeMap::new();
        for HealthEntry { node, service: sidecar, checks } in entries {
            endpoints.virtual_ips.extend(virtual_ips(&sidecar));
            let weight = weight(&sidecar, &checks);
            let HealthService { id, service: name, address, port, proxy, .. } = sidecar;
            if name != usual {
                endpoints.aliases.insert(name);
            }
            // One that is not well is still the mesh's: nobody may dial it in the clear.
            let Some(port) = port_of(port) else { continue };
            let address = if address.is_empty() { node.address } else { address };
            match address.parse::<IpAddr>() {
                Ok(ip) if !ip.is_unspecified() => {
                    let service_port = port_of(proxy.local_service_port);
                    let address = ip.to_canonical();
                    instances.insert((address, port), Instance { address, port, service_port, weight });
                }
                _ => endpoints
                    .warnings
                    .push(CatalogWarning::Address { service: service.to_owned(), id, address }.into()),
            }
        }
        endpoints.instances = instances.into_values().collect();
        endpoints
    }
}

/// Its share as its health is; 0 when it is out.
fn weight(service: &HealthService, checks: &[HealthCheck]) -> u32 {
    let any = |status: &str| checks.iter().any(|check| check.status == status);
    if checks.iter().any(|check| !matches!(check.status.as_str(), "passing" | "warning")) {
        return 0;
    }
    let weight = if any("warning") { service.weights.warning } else { service.weights.passing };
    u32::try_from(weight).unwrap_or(0).min(WEIGHT_MAX)
}

/// The largest weight that Consul takes (its DNS answers have 16 bits for it).
const WEIGHT_MAX: u32 = 65535;

fn port_of(number: i64) -> Option<u16> {
    u16::try_from(number).ok().filter(|port| *port != 0)
}

/// `consul-virtual` is the servers' (from 1.11 on), `virtual` its owner's.
fn virtual_ips(service: &HealthService) -> impl Iterator<Item = IpAddr> {
    let tagged =
        ["consul-virtual", "virtual"].into_iter().filter_map(|key| service.tagged_addresses.get(key));
    let ips = tagged.filter_map(|tagged| tagged.address.parse::<IpAddr>().ok());
    ips.filter(|ip| !ip.is_unspecified() && !ip.is_loopback()).map(|ip| ip.to_canonical())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn endpoints(entries: Value) -> Endpoints {
        Endpoints::new("api", serde_json::from_value(entries).unwrap())
    }

    fn entry(address: &str, statuses: &[&str]) -> Value {
        let checks: Vec<Value> = statuses.iter().map(|it| json!({ "Status": it, "Output": "x" })).collect();
        json!({
            "Node": { "Node": "n1", "Address": "10.0.0.1", "TaggedAddresses": null },
            "Service": {
                "Kind": "connect-proxy", "ID": "api-1-sidecar-proxy", "Service": "api-sidecar-proxy",
                "Address": address, "Port": 21000, "Weights": { "Passing": 3, "Warning": 2 }, "Tags": [],
                "Meta": null, "Proxy": { "DestinationServiceName": "api", "LocalServicePort": 8080 },
            },
            "Checks": checks,
        })
    }

    #[test]
    fn health_decides_about_the_share() {
        let weights = |statuses: &[&str]| {
            let found = endpoints(json!([entry("", statuses)]));
            assert!(found.present && found.warnings.is_empty() && found.aliases.is_empty());
            found.instances.iter().map(|instance| instance.weight).collect::<Vec<_>>()
        };
        assert_eq!(weights(&[]), [3]);
        assert_eq!(weights(&["passing", "passing"]), [3]);
        assert_eq!(weights(&["passing", "warning"]), [2]);
        assert_eq!(weights(&["warning", "critical"]), [0]);
        assert_eq!(weights(&["maintenance"]), [0]);
        assert!(!endpoints(json!([])).present);
    }

    #[test]
    fn odd_numbers_spoil_one_instance_only() {
        let mut odd = entry("10.0.0.2", &["passing"]);
        odd["Service"]["Port"] = json!(70000);
        let mut negative = entry("10.0.0.3", &["passing"]);
        negative["Service"]["Weights"]["Passing"] = json!(-1);
        let found = endpoints(json!([odd, negative, entry("10.0.0.4", &["passing"])]));
        let seen: Vec<_> = found.instances.iter().map(|it| (it.address.to_string(), it.weight)).collect();
        assert_eq!(seen, [("10.0.0.3".to_owned(), 0), ("10.0.0.4".to_owned(), 3)]);
    }

    #[test]
    fn the_services_address_comes_before_the_nodes_and_a_name_is_none() {
        let of = |address: &str| endpoints(json!([entry(address, &["passing"])]));
        let address = |address: &str| of(address).instances.into_iter().next().unwrap().address.to_string();
        assert_eq!((address(""), address("10.0.0.9")), ("10.0.0.1".to_owned(), "10.0.0.9".to_owned()));
        let named = of("api.example");
        assert!(named.instances.is_empty() && named.present);
        assert_eq!(named.warnings.iter().map(|it| it.code).collect::<Vec<_>>(), ["ENM-M050"]);
        assert_eq!(of("").instances.into_iter().next().unwrap().service_port, Some(8080));
    }

    /// The shape of releases from 1.11 on, and of a service that speaks TLS itself.
    #[test]
    fn virtual_ips_are_read_where_there_are_any() {
        let mut tagged = entry("", &["passing"]);
        tagged["Service"]["TaggedAddresses"] = json!({
            "consul-virtual": { "Address": "240.0.0.7", "Port": 21000 },
            "virtual": { "Address": "10.96.1.1", "Port": 80 }, "lan": { "Address": "10.0.0.1", "Port": 1 },
        });
        let ips: BTreeSet<IpAddr> = ["240.0.0.7", "10.96.1.1"].map(|ip| ip.parse().unwrap()).into();
        assert_eq!(endpoints(json!([tagged])).virtual_ips, ips);
        let mut native = entry("", &["passing"]);
        native["Service"]["Service"] = json!("api");
        native["Service"]["Proxy"] = json!({});
        let native = endpoints(json!([native]));
        assert_eq!(native.instances.first().unwrap().service_port, None);
        assert_eq!(native.aliases, ["api".to_owned()].into());
    }
}
