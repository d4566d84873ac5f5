//! The wire between two hosts, listened to: every TCP payload byte is counted as inside a TLS record
//! or as clear text, and secrets are searched for in everything that passes.
//!
//! Nothing is taken on trust from enmesh or Envoy. The meter reads the packets of one end of the
//! cable, follows each direction of each connection by sequence number, and reads record headers as
//! any observer could.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use serde::Serialize;

use super::error::DemoError;
use super::packet::{Packet, Segment, read_frame};
use super::tls::Framer;
use crate::base::Fault;
use crate::netns::Namespace;

/// Room for what arrives while the meter does not get the processor, in bytes.
const QUEUE: usize = 16 * 1024 * 1024;
/// A segmentation-offloaded packet is at most 64 KiB on these links; twice that is safe.
const LARGEST_FRAME: usize = 128 * 1024;
/// How long the wire must be silent to be called quiet.
const QUIET: Duration = Duration::from_millis(20);
/// How long a reader waits for that.
const QUIET_LIMIT: Duration = Duration::from_secs(2);
/// Segments that are kept while an earlier one is missing.
const OUT_OF_ORDER_LIMIT: usize = 256;

/// What passed so far.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// Connections that were opened.
    pub connections: u64,
    /// Connections by the port that they were opened to.
    pub by_port: BTreeMap<u16, u64>,
    /// Connections that carried at least one byte outside TLS.
    pub clear_connections: u64,
    /// The same by the port that they were opened to.
    pub clear_by_port: BTreeMap<u16, u64>,
    /// TCP payload bytes inside TLS records, their headers included.
    pub tls_bytes: u64,
    /// Of these, bytes of records that are encrypted application data.
    pub encrypted_bytes: u64,
    /// TCP payload bytes outside TLS.
    pub clear_bytes: u64,
    /// TCP payload bytes that sequence numbers speak of and the meter never saw.
    pub unseen_bytes: u64,
    /// Packets of IP that carry something else than TCP or what IPv6 needs to find its neighbours.
    pub other_packets: u64,
    /// Places where one of the secrets was readable.
    pub secrets_seen: u64,
}

impl Tally {
    /// What passed since `earlier`.
    pub fn since(&self, earlier: &Tally) -> Tally {
        Tally {
            connections: self.connections - earlier.connections,
            by_port: more(&self.by_port, &earlier.by_port),
            clear_connections: self.clear_connections - earlier.clear_connections,
            clear_by_port: more(&self.clear_by_port, &earlier.clear_by_port),
            tls_bytes: self.tls_bytes.saturating_sub(earlier.tls_bytes),
            encrypted_bytes: self.encrypted_bytes.saturating_sub(earlier.encrypted_bytes),
            clear_bytes: self.clear_bytes.saturating_sub(earlier.clear_bytes),
            unseen_bytes: self.unseen_bytes.saturating_sub(earlier.unseen_bytes),
            other_packets: self.other_packets - earlier.other_packets,
            secrets_seen: self.secrets_seen - earlier.secrets_seen,
        }
    }
}

/// By how much each port's count has grown; ports whose count has not are left out.
fn more(now: &BTreeMap<u16, u64>, earlier: &BTreeMap<u16, u64>) -> BTreeMap<u16, u64> {
    let grown = |(port, count): (&u16, &u64)| (*port, count - earlier.get(port).unwrap_or(&0));
    now.iter().map(grown).filter(|(_, more)| *more > 0).collect()
}

/// The meter itself: packets in, figures out. Knows no sockets, so it can be tried on any bytes.
#[derive(Debug, Default)]
pub struct Meter {
    secrets: Vec<Vec<u8>>,
    flows: BTreeMap<Ends, Flow>,
    /// What flows that are over have carried.
    done: Tally,
}

/// Source and destination.
type Ends = ((std::net::IpAddr, u16), (std::net::IpAddr, u16));

/// One connection; `Ends` are as in its first packet.
#[derive(Debug, Default)]
struct Flow {
    /// The number of its first byte, when its beginning was seen.
    opened_with: Option<u32>,
    forth: Stream,
    back: Stream,
}

/// One direction of a connection.
#[derive(Debug, Default)]
struct Stream {
    /// The sequence number that comes next; `None` until one was seen.
    next: Option<u32>,
    /// Segments after a gap, by sequence number.
    later: BTreeMap<u32, Vec<u8>>,
    framer: Framer,
    /// The last bytes, for secrets that are cut by a segment's end.
    tail: Vec<u8>,
}

impl Meter {
    /// A meter that looks for `secrets`.
    pub fn new(secrets: Vec<Vec<u8>>) -> Self {
        Meter { secrets: secrets.into_iter().filter(|s| !s.is_empty()).collect(), ..Meter::default() }
    }

    /// Takes in one Ethernet frame.
    pub fn frame(&mut self, frame: &[u8]) {
        match read_frame(frame) {
            Packet::Tcp(segment) => self.segment(&segment),
            Packet::Other => {
                self.done.other_packets += 1;
                self.done.secrets_seen += occurrences(frame, &self.secrets);
            }
            Packet::Upkeep => self.done.secrets_seen += occurrences(frame, &self.secrets),
        }
    }

    /// What passed so far.
    pub fn tally(&self) -> Tally {
        let mut tally = self.done.clone();
        for ((_, (_, port)), flow) in &self.flows {
            flow.add_to(*port, &mut tally);
        }
        tally
    }

    fn segment(&mut self, segment: &Segment<'_>) {
        let ends = (segment.source, segment.destination);
        let turned = (segment.destination, segment.source);
        if segment.opens {
            let first = segment.sequence.wrapping_add(1);
            // The same number again is the same SYN sent again.
            if self.flows.get(&ends).is_some_and(|flow| flow.opened_with == Some(first)) {
                return;
            }
            // The same pair of ports may be used again: what was is over.
            if let Some(over) = self.flows.remove(&ends) {
                over.add_to(segment.destination.1, &mut self.done);
            }
            self.done.connections += 1;
            *self.done.by_port.entry(segment.destination.1).or_default() += 1;
            let forth = Stream { next: Some(first), ..Stream::default() };
            let flow = Flow { opened_with: Some(first), forth, back: Stream::default() };
            self.flows.insert(ends, flow);
            return;
        }
        let backwards = !self.flows.contains_key(&ends) && self.flows.contains_key(&turned);
        let flow = self.flows.entry(if backwards { turned } else { ends }).or_default();
        let stream = if backwards { &mut flow.back } else { &mut flow.forth };
        if segment.answers {
            stream.next = Some(segment.sequence.wrapping_add(1));
        }
        let found = stream.take(segment.sequence, segment.payload, &self.secrets);
        self.done.secrets_seen += found;
    }
}

impl Flow {
    /// Adds what a connection to `port` has carried.
    fn add_to(&self, port: u16, tally: &mut Tally) {
        let mut clear = false;
        for stream in [&self.forth, &self.back] {
            let framed = stream.framer.count();
            tally.tls_bytes += framed.tls;
            tally.encrypted_bytes += framed.encrypted;
            tally.clear_bytes += framed.clear;
            clear |= framed.clear > 0;
            tally.unseen_bytes += stream.missing();
        }
        if clear {
            tally.clear_connections += 1;
            *tally.clear_by_port.entry(port).or_default() += 1;
        }
    }
}

impl Stream {
    /// Takes in a segment and all that follow it; returns how often a secret was readable.
    fn take(&mut self, sequence: u32, payload: &[u8], secrets: &[Vec<u8>]) -> u64 {
        if payload.is_empty() {
            return 0;
        }
        // Joined in the middle of a connection: what is seen first counts as its start.
        let next = *self.next.get_or_insert(sequence);
        if ahead(sequence, next) > 0 {
            if self.later.len() < OUT_OF_ORDER_LIMIT {
                self.later.insert(sequence, payload.to_vec());
            }
            return 0;
        }
        let mut found = self.feed(sequence, payload, secrets);
        while let Some((sequence, payload)) = self.ready() {
            found += self.feed(sequence, &payload, secrets);
        }
        found
    }

    /// A kept segment whose turn has come.
    fn ready(&mut self) -> Option<(u32, Vec<u8>)> {
        let next = self.next?;
        let key = *self.later.keys().find(|sequence| ahead(**sequence, next) <= 0)?;
        self.later.remove_entry(&key)
    }

    fn feed(&mut self, sequence: u32, payload: &[u8], secrets: &[Vec<u8>]) -> u64 {
        let next = self.next.unwrap_or(sequence);
        // What was sent again was counted already.
        let old = usize::try_from(-ahead(sequence, next)).unwrap_or(0);
        let Some(new) = payload.get(old..).filter(|new| !new.is_empty()) else { return 0 };
        self.next = Some(next.wrapping_add(u32::try_from(new.len()).unwrap_or(u32::MAX)));
        self.framer.feed(new);
        let longest = secrets.iter().map(Vec::len).max().unwrap_or(0);
        let mut text = std::mem::take(&mut self.tail);
        let before = occurrences(&text, secrets);
        text.extend_from_slice(new);
        let found = occurrences(&text, secrets) - before;
        self.tail = text.split_off(text.len().saturating_sub(longest.saturating_sub(1)));
        found
    }

    /// Bytes between what was followed and what was seen beyond.
    fn missing(&self) -> u64 {
        let (Some(next), Some(first)) = (self.next, self.later.keys().next()) else { return 0 };
        u64::try_from(ahead(*first, next)).unwrap_or(0)
    }
}

/// How far `sequence` is ahead of `next`, across the wrap of 32 bits.
fn ahead(sequence: u32, next: u32) -> i64 {
    i64::from(sequence.wrapping_sub(next).cast_signed())
}

fn occurrences(text: &[u8], secrets: &[Vec<u8>]) -> u64 {
    let count = |secret: &Vec<u8>| text.windows(secret.len()).filter(|window| window == secret).count();
    secrets.iter().map(|secret| count(secret) as u64).sum()
}

/// A meter at work on one link, on a thread of its own.
#[derive(Debug)]
pub struct Tap {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<(), Fault>>>,
}

#[derive(Debug, Default)]
struct Shared {
    meter: Mutex<Meter>,
    stop: AtomicBool,
    /// Grows each time the wire was found quiet.
    quiet: AtomicU64,
}

impl Shared {
    fn meter(&self) -> MutexGuard<'_, Meter> {
        self.meter.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tap {
    /// Listens on `interface` of `namespace` from now on, both directions.
    ///
    /// # Errors
    /// `ENM-T004` the system lets nobody listen.
    pub fn start(namespace: &Namespace, interface: &str, secrets: Vec<Vec<u8>>) -> Result<Tap, Fault> {
        let shared = Arc::new(Shared { meter: Mutex::new(Meter::new(secrets)), ..Shared::default() });
        let (ready, readiness) = std::sync::mpsc::sync_channel(1);
        let (theirs, interface) = (Arc::clone(&shared), interface.to_owned());
        let thread = namespace.spawn(move || listen(&interface, &theirs, &ready))?;
        let failed = |source: std::io::Error| DemoError::system("listen on the wire", source);
        match readiness.recv() {
            Ok(Ok(())) => Ok(Tap { shared, thread: Some(thread) }),
            Ok(Err(errno)) => Err(failed(errno.into()).into()),
            Err(_) => match thread.join() {
                Ok(Err(fault)) => Err(fault),
                _ => Err(failed(std::io::Error::other("its thread ended")).into()),
            },
        }
    }

    /// What passed so far, after the wire was quiet for a moment (or two seconds, if it never is).
    pub fn tally(&self) -> Tally {
        let seen = self.shared.quiet.load(Ordering::Acquire);
        let started = Instant::now();
        while self.shared.quiet.load(Ordering::Acquire) == seen && started.elapsed() < QUIET_LIMIT {
            std::thread::sleep(QUIET / 4);
        }
        self.shared.meter().tally()
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn listen(interface: &str, shared: &Shared, ready: &std::sync::mpsc::SyncSender<Result<(), Errno>>) {
    let opened = open(interface);
    let (socket, index) = match opened {
        Ok(opened) => opened,
        Err(errno) => {
            let _ = ready.send(Err(errno));
            return;
        }
    };
    let _ = ready.send(Ok(()));
    let mut buffer = vec![0; LARGEST_FRAME];
    while !shared.stop.load(Ordering::Acquire) {
        match recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut buffer) {
            Ok((length, Some(from))) if from.ifindex() == index => {
                shared.meter().frame(buffer.get(..length).unwrap_or(&buffer));
            }
            Ok(_) | Err(Errno::EINTR | Errno::ENETDOWN) => {}
            Err(Errno::EAGAIN) => {
                shared.quiet.fetch_add(1, Ordering::AcqRel);
            }
            Err(_) => return,
        }
    }
}

fn open(interface: &str) -> Result<(std::os::fd::OwnedFd, usize), Errno> {
    let index = usize::try_from(if_nametoindex(interface)?).map_err(|_| Errno::ENODEV)?;
    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)?;
    setsockopt(&socket, sockopt::RcvBufForce, &QUEUE)?;
    let quiet = i64::try_from(QUIET.as_millis()).unwrap_or(1);
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::milliseconds(quiet))?;
    Ok((socket, index))
}

/// The ports of `tally` that are not among `expected`.
pub fn unexpected_ports(tally: &Tally, expected: &[u16]) -> BTreeSet<u16> {
    tally.by_port.keys().copied().filter(|port| !expected.contains(port)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::packet::tests::tcp_frame;
    use super::*;

    const SYN: u8 = 2;
    const ACK: u8 = 16;
    const HELLO: &[u8] = &[22, 3, 1, 0, 3, 1, 2, 3];

    fn meter(frames: &[Vec<u8>]) -> Tally {
        let mut meter = Meter::new(vec![b"s3cret".to_vec()]);
        frames.iter().for_each(|frame| meter.frame(frame));
        meter.tally()
    }

    #[test]
    fn both_directions_are_counted_and_what_is_sent_again_is_not() {
        let tally = meter(&[
            tcp_frame(40_000, 21_000, 99, SYN, b""),
            tcp_frame(40_000, 21_000, 99, SYN, b""),
            tcp_frame(21_000, 40_000, 499, SYN | ACK, b""),
            tcp_frame(40_000, 21_000, 100, ACK, HELLO),
            tcp_frame(40_000, 21_000, 100, ACK, HELLO),
            tcp_frame(21_000, 40_000, 500, ACK, HELLO),
        ]);
        assert_eq!((tally.connections, tally.tls_bytes, tally.clear_bytes), (1, 16, 0));
        assert_eq!(tally.by_port, BTreeMap::from([(21_000, 1)]));
    }

    #[test]
    fn clear_text_is_counted_and_a_secret_is_found_across_segments() {
        let tally = meter(&[
            tcp_frame(40_000, 8080, 99, SYN, b""),
            tcp_frame(40_000, 8080, 100, ACK, b"token: s3c"),
            tcp_frame(40_000, 8080, 110, ACK, b"ret and s3cret"),
        ]);
        assert_eq!((tally.clear_bytes, tally.clear_connections, tally.secrets_seen), (24, 1, 2));
        assert_eq!(tally.clear_by_port, BTreeMap::from([(8080, 1)]));
    }

    #[test]
    fn order_does_not_matter_and_a_gap_is_not_overlooked() {
        let opening = [tcp_frame(40_000, 21_000, u32::MAX - 3, SYN, b"")];
        let parts = [(u32::MAX - 2, &HELLO[..4]), (1, &HELLO[4..])];
        let parts = parts.map(|(sequence, part)| tcp_frame(40_000, 21_000, sequence, ACK, part));
        let turned = [&opening[..], &[parts[1].clone(), parts[0].clone()]].concat();
        assert_eq!((meter(&turned).tls_bytes, meter(&turned).unseen_bytes), (8, 0), "across the wrap");
        let torn = [&opening[..], &[parts[1].clone()]].concat();
        assert_eq!((meter(&torn).tls_bytes, meter(&torn).unseen_bytes), (0, 4));
    }

    #[test]
    fn a_port_pair_that_is_used_again_is_a_connection_of_its_own() {
        let tally = meter(&[
            tcp_frame(40_000, 21_000, 99, SYN, b""),
            tcp_frame(40_000, 21_000, 100, ACK, b"plain"),
            tcp_frame(40_000, 21_000, 7_000, SYN, b""),
            tcp_frame(40_000, 21_000, 7_001, ACK, HELLO),
        ]);
        assert_eq!((tally.connections, tally.clear_connections), (2, 1));
        assert_eq!((tally.clear_bytes, tally.tls_bytes), (5, 8));
    }

    #[test]
    fn secrets_are_found_outside_tcp_too() {
        let mut query = tcp_frame(40_000, 53, 0, 0, b"s3cret.example");
        query[14 + 9] = 17;
        let tally = meter(&[query]);
        assert_eq!((tally.other_packets, tally.secrets_seen, tally.connections), (1, 1, 0));
    }
}
