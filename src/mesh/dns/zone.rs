//! What is answered to a query: bytes in, bytes out, nothing else.
//!
//! We answer for one zone, `consul`, with authority:
//! - a name of the mesh has its addresses; another type of record, or a name above one
//!   (`virtual.consul`), has none (NODATA);
//! - any other name below `consul` is Consul's DNS's business. Where there is none, it does not exist
//!   (NXDOMAIN). REFUSED would be no better: everybody who asks here for `consul` was told to ask nobody
//!   else, and would only try again;
//! - anything else is the business of the host's nameservers. Where they are not ours to ask it is
//!   REFUSED, on which the C library goes on to the next resolver of its list.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, SOA};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::{BinEncodable, BinEncoder};

/// The zone that is ours.
const APEX: &str = "consul";

/// How long an answer may be kept, in seconds. Virtual IPs hardly ever change, so a burst of lookups
/// may well be served by a cache; and one that did change is noticed within these seconds.
const TTL: u32 = 5;

/// How long the answer that there is nothing may be kept: not at all (RFC 2308, 5), because
/// applications ask for a service just before it joins.
const NEGATIVE_TTL: u32 = 0;

/// The largest UDP message that we send or ask for (DNS Flag Day 2020), in bytes.
const UDP_MAX: u16 = 1232;

/// The largest UDP message without EDNS (RFC 1035, 4.2.1), in bytes.
const UDP_PLAIN_MAX: u16 = 512;

/// Length of a message's header, in bytes.
const HEADER_LENGTH: usize = 12;

/// How a query came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    /// In one datagram; what does not fit is cut off and marked, and the client asks over TCP.
    Udp,
    /// In a stream; up to 65535 bytes.
    Tcp,
}

/// Who knows a name that we do not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whom {
    /// Consul's DNS.
    Consul,
    /// The host's nameservers.
    Host,
}

/// A query that somebody else has the answer to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Elsewhere {
    /// Who.
    pub whom: Whom,
    /// How many bytes the client takes.
    pub limit: usize,
}

/// The names of the mesh at one moment.
#[derive(Debug)]
pub(super) struct Zone {
    names: BTreeMap<String, Vec<IpAddr>>,
    /// Names that exist only because there are others below them.
    above: BTreeSet<String>,
    serial: u32,
}

impl Zone {
    /// The zone with these names, in lower case and without the final dot.
    pub(super) fn new(names: BTreeMap<String, Vec<IpAddr>>, serial: u32) -> Self {
        let mut above: BTreeSet<String> = [APEX, "virtual.consul"].map(str::to_owned).into();
        for name in names.keys() {
            let mut rest = name.as_str();
            while let Some((_, parent)) = rest.split_once('.') {
                above.insert(parent.to_owned());
                rest = parent;
            }
        }
        Zone { names, above, serial }
    }

    /// The serial of the zone that comes after this one.
    pub(super) fn next_serial(&self) -> u32 {
        self.serial.wrapping_add(1)
    }

    /// Whether somebody else has the answer; not for what is no proper query for a name.
    pub(super) fn elsewhere(&self, bytes: &[u8], transport: Transport) -> Option<Elsewhere> {
        let header = bytes.get(..HEADER_LENGTH)?;
        if header.get(2)? & 0x80 != 0 || header.get(4..6) != Some(&[0, 1]) {
            return None;
        }
        let request = Message::from_vec(bytes).ok()?;
        let query = request.queries.first()?;
        let transfer = matches!(query.query_type(), RecordType::AXFR | RecordType::IXFR);
        let plain = request.version() == 0 && request.metadata.op_code == OpCode::Query;
        if !plain || transfer || query.query_class() != DNSClass::IN {
            return None;
        }
        let limit = match transport {
            Transport::Udp => request.max_payload().max(UDP_PLAIN_MAX),
            Transport::Tcp => u16::MAX,
        };
        let whom = if !in_zone(query.name()) {
            Whom::Host
        } else {
            let name = key(query.name()).unwrap_or_default();
            let ours = self.names.contains_key(&name) || self.above.contains(&name);
            if ours {
                return None;
            }
            Whom::Consul
        };
        Some(Elsewhere { whom, limit: limit.into() })
    }

    /// That nobody who knows the answer can be asked.
    pub(super) fn failure(bytes: &[u8]) -> Option<Vec<u8>> {
        let request = Message::from_vec(bytes).ok()?;
        let mut response = Self::response_to(&request);
        response.metadata.recursion_available = true;
        response.metadata.response_code = ResponseCode::ServFail;
        encode(&response, UDP_PLAIN_MAX)
    }

    /// The answer to a message; `None` when it deserves none: too short to be DNS, or itself an answer
    /// (two servers that answer each other's answers never stop).
    pub(super) fn answer(&self, bytes: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let header = bytes.get(..HEADER_LENGTH)?;
        let &[id_high, id_low, flags, ..] = header else { return None };
        if flags & 0x80 != 0 {
            return None;
        }
        // The counts are looked at before anything is parsed: the parser would make room for as many
        // questions as a stranger says there are.
        let one_question = header.get(4..6) == Some(&[0, 1]);
        let request = if one_question { Message::from_vec(bytes).ok() } else { None };
        let Some(request) = request else {
            let id = u16::from_be_bytes([id_high, id_low]);
            let op_code = OpCode::from_u8(flags >> 3 & 0x0f);
            return encode(&Message::error_msg(id, op_code, ResponseCode::FormErr), UDP_PLAIN_MAX);
        };
        let limit = match transport {
            Transport::Udp if request.edns.is_some() => request.max_payload().clamp(UDP_PLAIN_MAX, UDP_MAX),
            Transport::Udp => UDP_PLAIN_MAX,
            Transport::Tcp => u16::MAX,
        };
        encode(&self.respond(&request), limit)
    }

    fn respond(&self, request: &Message) -> Message {
        let mut response = Self::response_to(request);
        response.metadata.response_code = match request.queries.first() {
            _ if request.version() > 0 => ResponseCode::BADVERS,
            _ if request.metadata.op_code != OpCode::Query => ResponseCode::NotImp,
            Some(query) => self.resolve(query, &mut response),
            None => ResponseCode::FormErr,
        };
        response
    }

    /// A response without answer or code.
    fn response_to(request: &Message) -> Message {
        let mut response = Message::response(request.metadata.id, request.metadata.op_code);
        response.metadata.message_type = MessageType::Response;
        response.metadata.recursion_desired = request.metadata.recursion_desired;
        response.add_queries(request.queries.iter().cloned());
        if request.edns.is_some() {
            let mut edns = Edns::new();
            edns.set_max_payload(UDP_MAX);
            response.set_edns(edns);
        }
        response
    }

    fn resolve(&self, query: &Query, response: &mut Message) -> ResponseCode {
        let class = matches!(query.query_class(), DNSClass::IN | DNSClass::ANY);
        let transfer = matches!(query.query_type(), RecordType::AXFR | RecordType::IXFR);
        if !in_zone(query.name()) || !class || transfer {
            return ResponseCode::Refused;
        }
        response.metadata.authoritative = true;
        let name = key(query.name()).unwrap_or_default();
        let addresses = self.names.get(&name);
        for &address in addresses.into_iter().flatten() {
            if let Some(data) = record_data(address, query.query_type()) {
                response.add_answer(Record::from_rdata(query.name().clone(), TTL, data));
            }
        }
        if name == APEX && matches!(query.query_type(), RecordType::SOA | RecordType::ANY) {
            response.add_answers(self.authority());
        }
        if response.answers.is_empty() {
            response.add_authorities(self.authority());
        }
        let exists = addresses.is_some() || self.above.contains(&name);
        if exists { ResponseCode::NoError } else { ResponseCode::NXDomain }
    }

    /// The zone's SOA record, whose TTL and minimum say how long "nothing" may be kept. The other times
    /// are for secondary servers, of which there are none.
    fn authority(&self) -> Option<Record> {
        let name = |text: &str| Name::from_ascii(text).ok();
        let (apex, primary, contact) = (name("consul.")?, name("ns.consul.")?, name("hostmaster.consul.")?);
        let soa = SOA::new(primary, contact, self.serial, 3600, 600, 86400, NEGATIVE_TTL);
        Some(Record::from_rdata(apex, NEGATIVE_TTL, RData::SOA(soa)))
    }
}

fn in_zone(name: &Name) -> bool {
    name.iter().next_back().is_some_and(|top| top.eq_ignore_ascii_case(APEX.as_bytes()))
}

/// A name as it stands in [`Zone::names`]. A label with a dot inside is not the name that it would look
/// like, and none of ours.
fn key(name: &Name) -> Option<String> {
    let mut text = String::new();
    for label in name.iter() {
        let label = std::str::from_utf8(label).ok().filter(|label| !label.contains('.'))?;
        if !text.is_empty() {
            text.push('.');
        }
        text.push_str(&label.to_ascii_lowercase());
    }
    Some(text)
}

fn record_data(address: IpAddr, wanted: RecordType) -> Option<RData> {
    match (address, wanted) {
        (IpAddr::V4(address), RecordType::A | RecordType::ANY) => Some(RData::A(A(address))),
        (IpAddr::V6(address), RecordType::AAAA | RecordType::ANY) => Some(RData::AAAA(AAAA(address))),
        _ => None,
    }
}

/// Records that do not fit into `limit` bytes are left out, and the message is marked as cut off.
fn encode(message: &Message, limit: u16) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(usize::from(UDP_PLAIN_MAX));
    let mut encoder = BinEncoder::new(&mut bytes);
    encoder.set_max_size(limit);
    message.emit(&mut encoder).ok()?;
    Some(bytes)
}
