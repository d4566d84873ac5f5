//! Ethernet, IPv4, IPv6 and TCP headers, as far as the meter needs them.

use std::net::IpAddr;

const ETHERNET: usize = 14;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const IPV6_HEADER: usize = 40;

const TCP: u8 = 6;
const ICMPV6: u8 = 58;
/// Of ICMPv6 the types of router and neighbour discovery and multicast membership (RFC 4861, 3810).
const ICMPV6_UPKEEP: [u8; 9] = [130, 131, 132, 133, 134, 135, 136, 137, 143];
/// Hop-by-hop options, which membership reports carry.
const HOP_BY_HOP: u8 = 0;

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// A packet, as the meter sees it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Packet<'a> {
    /// TCP.
    Tcp(Segment<'a>),
    /// ARP and what IPv6 does instead: links cannot work without, applications cannot use it.
    Upkeep,
    /// Anything else: UDP, ICMP, fragments, what cannot be read.
    Other,
}

/// A TCP segment.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Segment<'a> {
    /// From.
    pub source: (IpAddr, u16),
    /// To.
    pub destination: (IpAddr, u16),
    /// Sequence number of the first byte.
    pub sequence: u32,
    /// SYN without ACK: opens a connection.
    pub opens: bool,
    /// SYN with ACK: answers one.
    pub answers: bool,
    /// What it carries.
    pub payload: &'a [u8],
}

/// Reads an Ethernet frame.
pub(super) fn read_frame(frame: &[u8]) -> Packet<'_> {
    match (number(frame, ETHERNET - 2), frame.get(ETHERNET..)) {
        (Some(IPV4), Some(packet)) => read_v4(packet).unwrap_or(Packet::Other),
        (Some(IPV6), Some(packet)) => read_v6(packet).unwrap_or(Packet::Other),
        _ => Packet::Upkeep,
    }
}

fn read_v4(packet: &[u8]) -> Option<Packet<'_>> {
    let header = usize::from(packet.first()? & 0x0f) * 4;
    // More fragments, or not the first one: the rest of a payload cannot be placed.
    let fragment = number(packet, 6)? & 0x3fff != 0;
    if fragment || *packet.get(9)? != TCP {
        return Some(Packet::Other);
    }
    // Behind the total length there may be padding up to Ethernet's minimum.
    let body = packet.get(header..usize::from(number(packet, 2)?))?;
    let address = |at: usize| Some(IpAddr::from(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?));
    read_tcp(body, address(12)?, address(16)?)
}

fn read_v6(packet: &[u8]) -> Option<Packet<'_>> {
    let length = usize::from(number(packet, 4)?);
    let body = packet.get(IPV6_HEADER..IPV6_HEADER + length)?;
    let address = |at: usize| Some(IpAddr::from(<[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?));
    let upkeep = |body: &[u8]| body.first().is_some_and(|kind| ICMPV6_UPKEEP.contains(kind));
    match *packet.get(6)? {
        TCP => read_tcp(body, address(8)?, address(24)?),
        ICMPV6 if upkeep(body) => Some(Packet::Upkeep),
        HOP_BY_HOP if *body.first()? == ICMPV6 => {
            let options = (usize::from(*body.get(1)?) + 1) * 8;
            Some(if upkeep(body.get(options..)?) { Packet::Upkeep } else { Packet::Other })
        }
        _ => Some(Packet::Other),
    }
}

fn read_tcp(body: &[u8], source: IpAddr, destination: IpAddr) -> Option<Packet<'_>> {
    let header = usize::from(body.get(12)? >> 4) * 4;
    let flags = *body.get(13)?;
    Some(Packet::Tcp(Segment {
        source: (source, number(body, 0)?),
        destination: (destination, number(body, 2)?),
        sequence: u32::from(number(body, 4)?) << 16 | u32::from(number(body, 6)?),
        opens: flags & (SYN | ACK) == SYN,
        answers: flags & (SYN | ACK) == SYN | ACK,
        payload: body.get(header..)?,
    }))
}

/// The 16-bit number at `at`, in network order.
fn number(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
pub(super) mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    /// A frame with an IPv4 TCP segment.
    pub(in super::super) fn tcp_frame(
        from: u16,
        to: u16,
        sequence: u32,
        flags: u8,
        payload: &[u8],
    ) -> Vec<u8> {
        let tcp = [
            &from.to_be_bytes()[..],
            &to.to_be_bytes(),
            &sequence.to_be_bytes(),
            &[0; 4],
            &[5 << 4, flags],
            &[0; 6],
            payload,
        ]
        .concat();
        let length = u16::try_from(20 + tcp.len()).unwrap().to_be_bytes();
        let (web, api) = (Ipv4Addr::new(10, 99, 0, 1), Ipv4Addr::new(10, 99, 0, 2));
        let (source, target) = if from > to { (web, api) } else { (api, web) };
        [
            &[0; 12][..],
            &[0x08, 0x00, 0x45, 0],
            &length,
            &[0, 0, 0x40, 0, 64, TCP, 0, 0],
            &source.octets(),
            &target.octets(),
            &tcp,
        ]
        .concat()
    }

    #[test]
    fn a_segment_is_read_and_padding_is_not_payload() {
        let mut frame = tcp_frame(40_000, 80, 7, ACK, b"hello");
        frame.extend([0; 6]);
        let Packet::Tcp(segment) = read_frame(&frame) else { panic!("not TCP") };
        assert_eq!(segment.destination, ("10.99.0.2".parse().unwrap(), 80));
        assert_eq!((segment.sequence, segment.opens, segment.answers), (7, false, false));
        assert_eq!(segment.payload, b"hello");
    }

    #[test]
    fn no_prefix_of_a_frame_makes_it_stumble() {
        let frame = tcp_frame(40_000, 80, 7, SYN, b"hello");
        for length in 0..frame.len() {
            assert!(!matches!(read_frame(&frame[..length]), Packet::Tcp(_)), "{length}");
        }
    }

    #[test]
    fn what_is_not_tcp_is_told_apart() {
        let mut udp = tcp_frame(40_000, 53, 0, 0, b"query");
        udp[ETHERNET + 9] = 17;
        assert_eq!(read_frame(&udp), Packet::Other);
        let mut fragment = tcp_frame(40_000, 53, 0, 0, b"rest");
        fragment[ETHERNET + 7] = 9;
        assert_eq!(read_frame(&fragment), Packet::Other);
        let mut arp = vec![0; 60];
        (arp[12], arp[13]) = (0x08, 0x06);
        assert_eq!(read_frame(&arp), Packet::Upkeep);
        let neighbour = [
            &[0; 12][..],
            &[0x86, 0xdd, 0x60, 0, 0, 0, 0, 8, ICMPV6, 255],
            &[0; 32],
            &[135, 0, 0, 0, 0, 0, 0, 0],
        ]
        .concat();
        assert_eq!(read_frame(&neighbour), Packet::Upkeep);
    }
}
