//! The drivers under test.

use enmesh::redirect::{Firewall, Flavour, Iptables, Nftables};

pub fn nftables() -> Box<dyn Firewall> {
    Box::new(Nftables::new())
}

pub fn iptables_nft() -> Box<dyn Firewall> {
    iptables(Flavour::Nft)
}

pub fn iptables_legacy() -> Box<dyn Firewall> {
    iptables(Flavour::Legacy)
}

fn iptables(flavour: Flavour) -> Box<dyn Firewall> {
    Box::new(Iptables::of(flavour).unwrap_or_else(|fault| panic!("{fault}: {}", fault.hint)))
}
