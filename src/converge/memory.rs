//! What was of the mesh before.
//!
//! A service can go from the catalog while those who call it still hold its address: its agent is
//! restarted and leaves, its host is switched off. What they send then must not be seen on the wire, so
//! its destinations stay closed. Only Consul's word is doubted like that; who takes a service out of a
//! peers file means it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::plan::{MeshView, Past};

/// How long an instance's address and port stay closed. Somebody who is in no mesh may get them some
/// day, so not for ever; a host is back from a restart in less.
const INSTANCES_FOR: Duration = Duration::from_secs(600);

/// Destinations that are gone. Virtual IPs stand for services and for nothing else, so they are not
/// forgotten; those from this host's own range are closed without this.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Memory {
    /// Virtual IPs of services that are gone.
    virtual_ips: BTreeSet<IpAddr>,
    /// Instances that are gone, with the port of the app, and since when: seconds since 1970.
    instances: BTreeMap<SocketAddr, u64>,
}

impl Memory {
    /// Goes from what was told `before` to what is told `now`.
    pub fn follow(&mut self, before: &MeshView, now: &MeshView, range: Ipv4Net, time: SystemTime) {
        let time = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let ours = |ip: &IpAddr| matches!(ip, IpAddr::V4(ip) if range.contains(ip));
        self.virtual_ips.extend(virtual_ips(before).filter(|ip| !ours(ip)));
        for ip in virtual_ips(now) {
            self.virtual_ips.remove(&ip);
        }
        for gone in instances(before) {
            self.instances.entry(gone).or_insert(time);
        }
        for there in instances(now) {
            self.instances.remove(&there);
        }
        // One that was told a moment ago is entered anew the next time that it goes.
        self.instances.retain(|_, since| time.saturating_sub(*since) < INSTANCES_FOR.as_secs());
    }

    /// What is to stay closed.
    pub fn past(&self) -> Past {
        Past {
            virtual_ips: self.virtual_ips.clone(),
            instances: self.instances.keys().map(|at| (at.ip(), at.port())).collect(),
        }
    }
}

fn virtual_ips(view: &MeshView) -> impl Iterator<Item = IpAddr> {
    view.services.values().flat_map(|service| service.virtual_ips.iter().copied())
}

fn instances(view: &MeshView) -> impl Iterator<Item = SocketAddr> {
    let all = view.services.values().flat_map(|service| &service.instances);
    all.filter_map(|instance| Some(SocketAddr::new(instance.address, instance.service_port?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Instance, MeshService};

    fn view(virtual_ip: &str, instance: &str) -> MeshView {
        let at: SocketAddr = instance.parse().unwrap();
        let instance = Instance { address: at.ip(), port: 21000, service_port: Some(at.port()), weight: 1 };
        let service = MeshService {
            virtual_ips: [virtual_ip.parse().unwrap()].into(),
            instances: [instance].into(),
            ..MeshService::default()
        };
        MeshView { services: [("api".parse().unwrap(), service)].into(), ..MeshView::default() }
    }

    fn follow(memory: &mut Memory, before: &MeshView, now: &MeshView, seconds: u64) -> (usize, usize) {
        let time = UNIX_EPOCH + Duration::from_secs(seconds);
        memory.follow(before, now, "240.0.0.0/4".parse().unwrap(), time);
        let past = memory.past();
        (past.virtual_ips.len(), past.instances.len())
    }

    #[test]
    fn what_goes_is_closed_until_it_is_back_or_somebody_elses() {
        let mut memory = Memory::default();
        let (there, gone) = (view("203.0.113.20", "10.0.0.1:80"), MeshView::default());
        assert_eq!(follow(&mut memory, &there, &there, 1000), (0, 0));
        assert_eq!(follow(&mut memory, &there, &gone, 1001), (1, 1));
        assert_eq!(follow(&mut memory, &gone, &gone, 1600), (1, 1));
        assert_eq!(follow(&mut memory, &gone, &there, 1600), (0, 0));
        // The time counts from when it went the last time.
        assert_eq!(follow(&mut memory, &there, &gone, 2000), (1, 1));
        assert_eq!(follow(&mut memory, &gone, &gone, 2599), (1, 1));
        assert_eq!(follow(&mut memory, &gone, &gone, 2600), (1, 0));
        // Moved elsewhere.
        let elsewhere = view("203.0.113.20", "10.0.0.2:80");
        assert_eq!(follow(&mut memory, &there, &elsewhere, 3000), (0, 1));
    }

    #[test]
    fn virtual_ips_of_the_hosts_own_range_need_no_memory() {
        let own = view("240.0.0.7", "10.0.0.1:80");
        assert_eq!(follow(&mut Memory::default(), &own, &MeshView::default(), 1000), (0, 1));
    }

    #[test]
    fn it_outlives_a_restart() {
        let mut memory = Memory::default();
        follow(&mut memory, &view("203.0.113.20", "[fd00::1]:80"), &MeshView::default(), 1000);
        let text = serde_json::to_string(&memory).unwrap();
        assert_eq!(serde_json::from_str::<Memory>(&text).unwrap(), memory);
    }
}
