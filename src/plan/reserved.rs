//! Ports that a container group of Azure keeps for itself: nobody outside reaches them.

use super::problem::PlanError;
use crate::base::Fault;
use crate::config::value::{Port, PortRange};
use crate::config::{Config, HostConfig, Profile, ServiceConfig};

/// First and last, from the platform's list.
const RESERVED: [(u16, u16); 10] = [
    (22, 22),
    (1025, 1027),
    (3389, 3399),
    (9999, 9999),
    (19000, 19000),
    (19080, 19080),
    (19100, 19100),
    (19390, 19390),
    (20000, 30000),
    (49152, 65534),
];

fn is_reserved(port: u16) -> bool {
    RESERVED.iter().any(|(first, last)| (*first..=*last).contains(&port))
}

/// Ranges that sidecars cannot be given ports from.
pub(super) fn errors(host: &HostConfig) -> Vec<Fault> {
    if host.profile != Profile::Aci {
        return Vec::new();
    }
    let ready = host.readiness.listen.and_then(|listen| Port::new(listen.port())).map(PortRange::single);
    let ranges = [
        ("ports.outbound", Some(host.ports.outbound)),
        ("ports.inbound", Some(host.ports.inbound)),
        ("readiness.listen", ready),
    ];
    let bad = ranges.into_iter().filter_map(|(key, range)| {
        let port = range?.iter().find(|port| is_reserved(*port))?;
        Some(PlanError::ReservedPorts { key, port }.into())
    });
    bad.collect()
}

/// What the services themselves want of them.
pub(super) fn warnings(config: &Config) -> Vec<Fault> {
    if config.host.profile != Profile::Aci {
        return Vec::new();
    }
    let enabled = config.services.iter().filter(|service| service.enabled);
    enabled.flat_map(of_service).collect()
}

fn of_service(service: &ServiceConfig) -> Vec<Fault> {
    let id = service.id();
    let own = service.port.into_iter().chain(service.upstreams.iter().map(|upstream| upstream.local_port));
    let bad = own.map(Port::get).filter(|port| is_reserved(*port));
    bad.map(|port| Fault::from(PlanError::ReservedPort { id: id.clone(), port }).of_service(&id)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_profile_keeps_clear_of_what_the_platform_reserves() {
        let mut host = HostConfig { profile: Profile::Aci, ..HostConfig::default() };
        assert_eq!(errors(&host).len(), 1, "the general range is Consul's, 21000 and following");
        host.settle(false);
        assert_eq!(errors(&host), []);
        assert_eq!(host.readiness.listen.unwrap().port(), 15000);
        host.ports.inbound = "19990-20010".parse().unwrap();
        host.readiness.listen = Some("0.0.0.0:9999".parse().unwrap());
        let codes: Vec<_> = errors(&host).into_iter().map(|fault| (fault.code, fault.message)).collect();
        assert!(codes[0].1.contains("20000") && codes[1].1.contains("9999"), "{codes:?}");
        host.profile = Profile::Container;
        assert_eq!(errors(&host), []);
    }
}
