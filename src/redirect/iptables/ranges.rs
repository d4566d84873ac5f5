//! The opposite of a set: iptables can say "not this one", and never "none of these".

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};

use super::line::Family;

/// The last user that there can be: the number after it means "none" to the kernel.
pub(super) const LAST_USER: u32 = u32::MAX - 1;

/// The users that are in none of `ranges`, which are sorted and do not overlap.
///
/// A packet without a socket has no user and is in neither, as in nftables; `! --uid-owner` would hold for it.
pub(super) fn other_users(ranges: &[(u32, u32)]) -> Vec<(u32, u32)> {
    let mut others = Vec::new();
    let mut from = Some(0);
    for (first, last) in ranges {
        match (from, first.checked_sub(1)) {
            (Some(from), Some(before)) if from <= before => others.push((from, before)),
            _ => {}
        }
        from = last.checked_add(1);
    }
    match from {
        Some(from) if from <= LAST_USER => others.push((from, LAST_USER)),
        _ => {}
    }
    others
}

/// The networks from `first` to `last`, included; of one family, or none.
pub(super) fn networks(first: IpAddr, last: IpAddr) -> Vec<IpNet> {
    match (first, last) {
        (IpAddr::V4(first), IpAddr::V4(last)) => Ipv4Subnets::new(first, last, 0).map(IpNet::V4).collect(),
        (IpAddr::V6(first), IpAddr::V6(last)) => Ipv6Subnets::new(first, last, 0).map(IpNet::V6).collect(),
        _ => Vec::new(),
    }
}

/// Every address of `family` that is in none of `nets`, which are of that family.
pub(super) fn other_networks(family: Family, nets: &[IpNet]) -> Vec<IpNet> {
    let mut nets: Vec<IpNet> = IpNet::aggregate(&nets.to_vec());
    nets.sort_unstable();
    let mut others = Vec::new();
    let (mut from, end) = match family {
        Family::V4 => (Some(0), u128::from(u32::MAX)),
        Family::V6 => (Some(0), u128::MAX),
    };
    let address = |bits: u128| match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::from_bits(u32::try_from(bits).unwrap_or(u32::MAX))),
        Family::V6 => IpAddr::V6(Ipv6Addr::from_bits(bits)),
    };
    let bits = |address: IpAddr| match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    };
    for net in nets {
        match (from, bits(net.network()).checked_sub(1)) {
            (Some(from), Some(before)) if from <= before => {
                others.extend(networks(address(from), address(before)));
            }
            _ => {}
        }
        from = bits(net.broadcast()).checked_add(1);
    }
    match from {
        Some(from) if from <= end => others.extend(networks(address(from), address(end))),
        _ => {}
    }
    others
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_else() {
        assert_eq!(other_users(&[]), [(0, LAST_USER)]);
        assert_eq!(other_users(&[(0, 0), (5, 9)]), [(1, 4), (10, LAST_USER)]);
        assert_eq!(other_users(&[(3, LAST_USER)]), [(0, 2)]);
    }

    #[test]
    fn everywhere_else() {
        let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpNet>>();
        assert_eq!(
            other_networks(Family::V4, &nets(&["240.0.0.0/4"])),
            nets(&["0.0.0.0/1", "128.0.0.0/2", "192.0.0.0/3", "224.0.0.0/4"])
        );
        assert_eq!(other_networks(Family::V4, &nets(&["0.0.0.0/1", "128.0.0.0/1"])), []);
        assert_eq!(other_networks(Family::V6, &[]), nets(&["::/0"]));
        assert_eq!(other_networks(Family::V6, &nets(&["8000::/2", "::/1"])), nets(&["c000::/2"]));
    }
}
