//! What the kernel tells of a traced packet, message by message.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::base::netlink::{Message, attributes};

/// `NFNL_SUBSYS_NFTABLES` and `NFT_MSG_TRACE`.
const TRACE: u16 = 10 << 8 | 17;

/// Length of `struct nfgenmsg`, which comes before the attributes.
const NFGENMSG: usize = 4;

/// A packet came to a rule that holds, or to the end of a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Event {
    /// Tells packets apart.
    pub id: u32,
    /// Of the table: `inet`, `ip`, `ip6`, or a number.
    pub family: String,
    pub table: String,
    pub chain: String,
    /// Of the rule; none at the end of a chain.
    pub handle: Option<u64>,
    pub verdict: Verdict,
    /// The packet as it was when it entered the base chain; only the first event in there has it.
    pub packet: Option<Packet>,
}

/// Source and destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Packet {
    pub from: SocketAddr,
    pub to: SocketAddr,
}

/// What the rule or the chain's end says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    Accept,
    Drop,
    Return,
    Jump(String),
    Goto(String),
    /// Nothing: on to the next rule.
    Continue,
}

impl Event {
    /// `None` for a message about something else, and for one that does not add up.
    pub fn of(message: Message<'_>) -> Option<Event> {
        if message.kind != TRACE {
            return None;
        }
        // `enum nft_trace_attributes` of linux/netfilter/nf_tables.h.
        let (mut id, mut kind, mut handle, mut verdict) = (None, None, None, Verdict::Continue);
        let (mut table, mut chain, mut network, mut transport, mut policy) = (None, None, None, None, None);
        for (number, value) in attributes(message.body.get(NFGENMSG..)?) {
            match number {
                1 => table = Some(text(value)),
                2 => chain = Some(text(value)),
                3 => handle = value.try_into().ok().map(u64::from_be_bytes),
                4 => kind = be32(value),
                5 => verdict = verdict_of(value)?,
                6 => id = be32(value),
                8 => network = Some(value),
                9 => transport = Some(value),
                16 => policy = be32(value),
                _ => {}
            }
        }
        let (handle, verdict) = match kind? {
            POLICY => (None, if policy? == 0 { Verdict::Drop } else { Verdict::Accept }),
            // Without a number where the packet is shown and no rule has held yet.
            RULE => (handle, verdict),
            // The end of a chain that was jumped to.
            _ => (None, Verdict::Continue),
        };
        let family = match message.body.first()? {
            1 => "inet".to_owned(),
            2 => "ip".to_owned(),
            10 => "ip6".to_owned(),
            other => other.to_string(),
        };
        let packet = network.zip(transport).and_then(|(network, transport)| packet(network, transport));
        Some(Event { id: id?, family, table: table?, chain: chain?, handle, verdict, packet })
    }

    /// Whether this is of the table `table` of `family`.
    pub fn is_in(&self, family: &str, table: &str) -> bool {
        self.family == family && self.table == table
    }
}

/// `enum nft_trace_types`.
const POLICY: u32 = 1;
const RULE: u32 = 3;

/// `enum nft_verdict_attributes`, and the codes of `enum nft_verdicts` and linux/netfilter.h.
fn verdict_of(bytes: &[u8]) -> Option<Verdict> {
    let (mut code, mut chain) = (None, String::new());
    for (number, value) in attributes(bytes) {
        match number {
            1 => code = be32(value),
            2 => chain = text(value),
            _ => {}
        }
    }
    Some(match code?.cast_signed() {
        0 => Verdict::Drop,
        -3 => Verdict::Jump(chain),
        -4 => Verdict::Goto(chain),
        -5 => Verdict::Return,
        -2 | -1 => Verdict::Continue,
        // Taken by a program (NFQUEUE) or stolen counts as let through: whoever has it decides.
        _ => Verdict::Accept,
    })
}

/// Out of the headers of IPv4 or IPv6 and of TCP or UDP, whose ports stand at one place.
fn packet(network: &[u8], transport: &[u8]) -> Option<Packet> {
    let (from, to): (IpAddr, IpAddr) = match network.first()? >> 4 {
        4 => {
            let at =
                |from: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(network.get(from..from + 4)?).ok()?));
            (at(12)?.into(), at(16)?.into())
        }
        6 => {
            let at =
                |from: usize| Some(Ipv6Addr::from(<[u8; 16]>::try_from(network.get(from..from + 16)?).ok()?));
            (at(8)?.into(), at(24)?.into())
        }
        _ => return None,
    };
    let port = |from: usize| Some(u16::from_be_bytes(transport.get(from..from + 2)?.try_into().ok()?));
    Some(Packet { from: SocketAddr::new(from, port(0)?), to: SocketAddr::new(to, port(2)?) })
}

fn be32(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_be_bytes)
}

/// A string attribute without its final zero, and without what could disturb a terminal.
fn text(value: &[u8]) -> String {
    let value = value.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(value).chars().filter(|letter| !letter.is_control()).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = u16::try_from(value.len() + 4).unwrap().to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn hear(body: &[u8]) -> Option<Event> {
        Event::of(Message { kind: TRACE, port: 0, body })
    }

    /// The header of a packet from 10.9.0.2:4000 to 240.0.0.1:80.
    fn headers() -> [Vec<u8>; 2] {
        let mut network = vec![0x45; 12];
        network.extend([10, 9, 0, 2, 240, 0, 0, 1]);
        [network, [4000_u16.to_be_bytes(), 80_u16.to_be_bytes()].concat()]
    }

    fn rule(verdict: i32, chain: &[u8]) -> Vec<u8> {
        let [network, transport] = headers();
        let verdict = [
            attribute(1, &verdict.to_be_bytes()),
            if chain.is_empty() { Vec::new() } else { attribute(2, chain) },
        ];
        [
            vec![1, 0, 0, 0],
            attribute(6, &7_u32.to_be_bytes()),
            attribute(4, &RULE.to_be_bytes()),
            attribute(1, b"enmesh\0"),
            attribute(2, b"out\0"),
            attribute(3, &42_u64.to_be_bytes()),
            attribute(5 | 0x8000, &verdict.concat()),
            attribute(8, &network),
            attribute(9, &transport),
        ]
        .concat()
    }

    #[test]
    fn a_rule_and_its_verdict_are_read() {
        let event = hear(&rule(-4, b"refuse\0")).unwrap();
        assert!(event.is_in("inet", "enmesh"));
        assert_eq!((event.id, event.handle, event.chain.as_str()), (7, Some(42), "out"));
        assert_eq!(event.verdict, Verdict::Goto("refuse".to_owned()));
        let packet = event.packet.unwrap();
        assert_eq!(
            (packet.from.to_string(), packet.to.to_string()),
            ("10.9.0.2:4000".into(), "240.0.0.1:80".into())
        );
        for (code, verdict) in
            [(0, Verdict::Drop), (1, Verdict::Accept), (-1, Verdict::Continue), (-5, Verdict::Return)]
        {
            assert_eq!(hear(&rule(code, b"")).unwrap().verdict, verdict);
        }
        assert_eq!(Event::of(Message { kind: 10 << 8 | 15, port: 0, body: &rule(0, b"") }), None);
    }

    proptest! {
        /// A message that is cut or bent anywhere is an event or none, and never a panic.
        #[test]
        fn what_is_cut_or_bent_is_no_panic(cut in 0_usize..200, at in 0_usize..200, bits: u8) {
            let mut body = rule(-4, b"refuse\0");
            if let Some(byte) = body.get_mut(at) {
                *byte ^= bits;
            }
            body.truncate(cut);
            let _ = hear(&body);
        }

        #[test]
        fn any_bytes_are_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = hear(&bytes);
            let _ = packet(&bytes, &bytes);
        }
    }
}
