//! The wire between the machines, listened to at the ports of the switch.
//!
//! A packet between the two clients is seen at both of their ports, so figures count it twice. Consul's
//! own conversation is in the clear in this lab, as it is in the field; it has ports of its own.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use enmesh::demo::wire::{Tally, Tap};

use super::apps::{COUNTING_PORT, MARK};
use crate::switch::Switch;

/// Where servers and agents talk to each other: requests, members of a datacenter, members of all.
const CONSUL: RangeInclusive<u16> = 8300..=8302;
/// Where sidecars take connections from others.
const SIDECARS: RangeInclusive<u16> = 21000..=21255;

/// Listens at the ports of a switch. Ends with the value.
pub struct Watch {
    taps: Vec<Tap>,
}

/// What was seen at each port until some moment.
pub struct Seen(Vec<Tally>);

impl Watch {
    /// Listens from now on. Whoever connects later is seen from the beginning.
    pub fn start(switch: &Switch, ports: &[&str]) -> Watch {
        let tap = |port: &&str| Tap::start(&switch.namespace, port, vec![MARK.as_bytes().to_vec()]);
        Watch { taps: ports.iter().map(|port| tap(port).expect("the port is there")).collect() }
    }

    /// What was seen so far.
    pub fn seen(&self) -> Seen {
        Seen(self.taps.iter().map(Tap::tally).collect())
    }

    /// What was seen of the load since `earlier`.
    pub fn since(&self, earlier: &Seen) -> Traffic {
        let now = self.seen();
        let mut traffic = Traffic::default();
        for tally in now.0.iter().zip(&earlier.0).map(|(now, earlier)| now.since(earlier)) {
            traffic.add(&tally);
        }
        traffic
    }
}

/// The load on the wire.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Connections to sidecars.
    pub mesh: u64,
    /// Connections to the port of the application itself, whether anybody answered or not.
    pub app: u64,
    /// Connections with a byte outside TLS, by port, but those of Consul.
    pub clear: BTreeMap<u16, u64>,
    /// Where the mark was readable, in whatever protocol.
    pub marks: u64,
    /// Bytes of encrypted application data.
    pub encrypted: u64,
    /// Bytes that passed without being looked at.
    pub unseen: u64,
}

impl Traffic {
    fn add(&mut self, tally: &Tally) {
        self.mesh += tally.by_port.range(SIDECARS).map(|(_, count)| count).sum::<u64>();
        self.app += tally.by_port.get(&COUNTING_PORT).copied().unwrap_or_default();
        for (port, count) in tally.clear_by_port.iter().filter(|(port, _)| !CONSUL.contains(port)) {
            *self.clear.entry(*port).or_default() += count;
        }
        self.marks += tally.secrets_seen;
        self.encrypted += tally.encrypted_bytes;
        self.unseen += tally.unseen_bytes;
    }

    /// What of the load was in the clear, or may have been while nobody looked; `None` for nothing.
    pub fn leak(&self) -> Option<String> {
        let sealed = self.app == 0 && self.clear.is_empty() && self.marks == 0 && self.unseen == 0;
        (!sealed).then(|| format!("in the clear on the wire: {self:?}"))
    }
}
