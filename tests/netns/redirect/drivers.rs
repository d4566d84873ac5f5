//! The drivers under test, and how cases are put to all of them.

use enmesh::redirect::{Firewall, Flavour, Iptables, Nftables};

/// Makes a driver.
pub type Driver = fn() -> Box<dyn Firewall>;

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

/// Every case with every driver; none is left out for any.
macro_rules! cases {
    ($($case:ident),* $(,)?) => {
        $crate::drivers::cases!(nftables: $($case),*);
        $crate::drivers::cases!(iptables_nft: $($case),*);
        $crate::drivers::cases!(iptables_legacy: $($case),*);
    };
    ($driver:ident: $($case:ident),*) => {
        mod $driver {
            $(#[test]
            fn $case() {
                super::$case(crate::drivers::$driver);
            })*
        }
    };
}

pub(crate) use cases;
