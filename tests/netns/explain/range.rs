//! A host between a peer and something behind it, where every connection and datagram ends at a listener
//! that tells where. Sockets stay in the namespace in which they were made, so one thread can watch all.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::future::pending;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use enmesh::config::value::ServiceId;
use enmesh::plan::RedirectPolicy;
use enmesh::redirect::trace::{self, Watch};
use enmesh::redirect::{Desired, Firewall, Flavour, Flow, Iptables, Origin, Transport};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrIn6, SockaddrLike, bind, connect, getsockopt,
    socket, sockopt,
};
use nix::unistd::{Uid, setfsuid};

use crate::chance::PORTS;
use crate::lab::Space;

/// Where everything ends that reaches the peer or what is behind the host, whatever its port.
pub const ANY_PORT: u16 = 7777;

/// How long the end of all flows is waited for; usually it takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(3);

/// The first source port. Each flow has one of its own, so that it is told from all others and conntrack
/// takes none for an old one.
const FIRST_PORT: u16 = 24_000;

/// Who listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Host,
    Peer,
    Behind,
}

/// Where a flow ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// At this listener, which sees this destination from before a redirection to the host.
    At { place: Place, port: u16, original: Option<SocketAddr> },
    /// An error at once.
    Refused,
    /// Nothing.
    Silence,
}

struct Listener {
    place: Place,
    port: u16,
    tcp: TcpListener,
    udp: UdpSocket,
}

pub struct Range {
    host: Space,
    peer: Space,
    // Kept for its namespace.
    _behind: Space,
    listeners: Vec<Listener>,
    next_port: Cell<u16>,
}

/// Whatever comes in ends at one listener.
const CATCH_ALL: &str = "table inet catch {
    chain in {
        type nat hook prerouting priority 0; policy accept;
        meta l4proto tcp redirect to :7777
        meta l4proto udp redirect to :7777
    }
}
";

impl Range {
    pub fn new() -> Range {
        let (host, peer, behind) = (Space::new(), Space::new(), Space::new());
        for (link, other) in [("eth0", &peer), ("eth1", &peer), ("br0", &behind)] {
            host.ip(&format!("link add {link} type veth peer name {link} netns {}", other.tid()));
            host.ip(&format!("link set {link} up"));
            other.ip(&format!("link set {link} up"));
        }
        let addresses: [(&Space, &str, &[&str]); 5] = [
            (&host, "eth0", &["10.9.0.2/24", "10.9.0.22/24", "fd09::2/64 nodad"]),
            (&host, "eth1", &["10.8.0.2/24", "fd08::2/64 nodad"]),
            (&host, "br0", &["172.17.0.1/24", "fd17::1/64 nodad"]),
            (&peer, "eth0", &["10.9.0.1/24", "10.9.0.11/24", "fd09::1/64 nodad"]),
            (&peer, "eth1", &["10.8.0.1/24", "fd08::1/64 nodad"]),
        ];
        for (space, link, all) in addresses {
            all.iter().for_each(|address| space.ip(&format!("addr add {address} dev {link}")));
        }
        behind.ip("addr add 172.17.0.5/24 dev br0");
        behind.ip("addr add fd17::5/64 dev br0 nodad");
        behind.ip("route add default via 172.17.0.1");
        behind.ip("-6 route add default via fd17::1");
        host.ip("route add default via 10.9.0.1");
        host.ip("-6 route add default via fd09::1");
        peer.ip("route add 172.17.0.0/24 via 10.9.0.2");
        peer.ip("-6 route add fd17::/64 via fd09::2");
        host.run(|| {
            for family in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
                std::fs::write(format!("/proc/sys/net/{family}"), "1").unwrap();
            }
        });
        peer.tool("nft", "-f -", CATCH_ALL);
        behind.tool("nft", "-f -", CATCH_ALL);
        let mut listeners = Vec::new();
        for (place, space, ports) in [
            (Place::Host, &host, &PORTS[..]),
            (Place::Peer, &peer, &[ANY_PORT]),
            (Place::Behind, &behind, &[ANY_PORT]),
        ] {
            let ports = ports.to_vec();
            listeners.extend(
                space.run(move || ports.into_iter().map(|port| listen(place, port)).collect::<Vec<_>>()),
            );
        }
        let range = Range { host, peer, _behind: behind, listeners, next_port: Cell::new(FIRST_PORT) };
        range.settle();
        range
    }

    /// Until neighbours know each other, packets wait or are lost.
    fn settle(&self) {
        let from = |origin, to: &str| Flow { origin, transport: Transport::Tcp, to: to.parse().unwrap() };
        let outside = || Origin::Outside(None);
        let flows = [
            from(Origin::User(0), "10.9.0.1:80"),
            from(Origin::User(0), "[fd09::1]:80"),
            from(outside(), "10.8.0.2:80"),
            from(outside(), "[fd08::2]:80"),
            from(outside(), "172.17.0.5:80"),
            from(outside(), "[fd17::5]:80"),
        ];
        let started = Instant::now();
        while self.send(&flows).iter().any(|seen| !matches!(seen, Seen::At { .. })) {
            assert!(started.elapsed() < Duration::from_secs(20), "neighbours do not find each other");
        }
    }

    /// Replaces the rules of the host.
    pub fn load(&self, rules: &str) {
        self.host.tool("nft", "-f -", rules);
        self.host.beat();
    }

    /// The same through the driver iptables.
    pub fn apply(&self, flavour: Flavour, policy: &RedirectPolicy, live: &BTreeSet<ServiceId>) {
        let desired = Desired { policy: policy.clone(), live: live.clone() };
        let applied = self.host.run(move || Iptables::of(flavour)?.apply(&desired));
        applied.unwrap_or_else(|fault| panic!("{fault}: {}", fault.hint));
        self.host.beat();
    }

    /// What the kernel tells of the first packet of `flow`, which is sent from where it comes.
    pub fn watch(&self, flow: &Flow) -> Option<trace::Seen> {
        let watch = Watch { flow: flow.clone(), from: None };
        let (host, (begun, told)) = (&self.host, mpsc::channel());
        let sent = flow.clone();
        thread::scope(|scope| {
            let watching = scope.spawn(move || {
                host.run(move || {
                    let begun = || match sent.origin {
                        Origin::User(_) => trace::send(&sent),
                        Origin::Outside(_) => {
                            begun.send(()).unwrap();
                            Ok(())
                        }
                    };
                    let seen = async { trace::watch(&watch, PATIENCE, begun, pending()).await };
                    enmesh::netns::block_on(seen).unwrap().unwrap()
                })
            });
            if matches!(flow.origin, Origin::Outside(_)) {
                told.recv().expect("it is watched");
                let port = self.next_port.get();
                self.next_port.set(port + 1);
                let flow = flow.clone();
                self.peer.run(move || drop(start(vec![(port, flow)])));
            }
            watching.join().unwrap()
        })
    }

    /// The rules of the host.
    pub fn rules(&self) -> String {
        self.host.rules()
    }

    /// Starts all flows at once and tells where each ended.
    pub fn send(&self, flows: &[Flow]) -> Vec<Seen> {
        let first = self.next_port.get();
        self.next_port.set(first + u16::try_from(flows.len()).expect("ports for all flows"));
        let numbered: Vec<(u16, Flow)> = (first..).zip(flows.iter().cloned()).collect();
        let (inside, outside): (Vec<_>, Vec<_>) =
            numbered.into_iter().partition(|(_, flow)| matches!(flow.origin, Origin::User(_)));
        let mut clients = self.host.run(move || start(inside));
        clients.extend(self.peer.run(move || start(outside)));
        let mut seen = vec![Seen::Silence; flows.len()];
        let started = Instant::now();
        loop {
            for (port, place) in self.arrived() {
                // One that was given up earlier may still arrive.
                if let Some(entry) =
                    port.checked_sub(first).and_then(|index| seen.get_mut(usize::from(index)))
                {
                    *entry = place;
                }
            }
            for client in &clients {
                let entry = &mut seen[usize::from(client.port - first)];
                if *entry == Seen::Silence && client.refused() {
                    *entry = Seen::Refused;
                }
            }
            if started.elapsed() > PATIENCE || !seen.contains(&Seen::Silence) {
                return seen;
            }
            thread::sleep(Duration::from_micros(300));
        }
    }

    /// What has come in since the last time: source port, and where.
    fn arrived(&self) -> Vec<(u16, Seen)> {
        let mut found = Vec::new();
        for Listener { place, port, tcp, udp } in &self.listeners {
            let at = |original| Seen::At { place: *place, port: *port, original };
            loop {
                match tcp.accept() {
                    Ok((stream, from)) => found.push((from.port(), at(redirected_from(&stream, *place)))),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => panic!("accept: {error}"),
                }
            }
            let mut buffer = [0; 8];
            while let Ok((_, from)) = udp.recv_from(&mut buffer) {
                found.push((from.port(), at(None)));
            }
        }
        found
    }
}

fn listen(place: Place, port: u16) -> Listener {
    let at = (Ipv6Addr::UNSPECIFIED, port);
    let (tcp, udp) = (TcpListener::bind(at).unwrap(), UdpSocket::bind(at).unwrap());
    tcp.set_nonblocking(true).unwrap();
    udp.set_nonblocking(true).unwrap();
    Listener { place, port, tcp, udp }
}

/// The destination before redirection, where there was one: it differs from the local address then.
fn redirected_from(stream: &TcpStream, place: Place) -> Option<SocketAddr> {
    let local = stream.local_addr().unwrap();
    let local = SocketAddr::new(local.ip().to_canonical(), local.port());
    if place != Place::Host {
        return None;
    }
    let original = match local {
        SocketAddr::V4(_) => getsockopt(stream, sockopt::OriginalDst).ok().map(|raw| {
            let ip = Ipv4Addr::from_bits(u32::from_be(raw.sin_addr.s_addr));
            SocketAddr::from((ip, u16::from_be(raw.sin_port)))
        }),
        SocketAddr::V6(_) => getsockopt(stream, sockopt::Ip6tOriginalDst).ok().map(|raw| {
            let ip = Ipv6Addr::from(raw.sin6_addr.s6_addr);
            SocketAddr::from((ip, u16::from_be(raw.sin6_port)))
        }),
    };
    original.filter(|original| *original != local)
}

struct Client {
    port: u16,
    socket: OwnedFd,
    refused: bool,
}

impl Client {
    fn refused(&self) -> bool {
        self.refused || getsockopt(&self.socket, sockopt::SocketError).unwrap() != 0
    }
}

/// Starts flows from the namespace of the calling thread.
fn start(flows: Vec<(u16, Flow)>) -> Vec<Client> {
    let clients = flows.into_iter().map(|(port, flow)| {
        let user = if let Origin::User(uid) = flow.origin { uid } else { 0 };
        setfsuid(Uid::from_raw(user));
        let (family, anywhere) = match flow.to {
            SocketAddr::V4(_) => (AddressFamily::Inet, IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
            SocketAddr::V6(_) => (AddressFamily::Inet6, IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
        };
        let kind = if flow.transport == Transport::Tcp { SockType::Stream } else { SockType::Datagram };
        let socket = socket(family, kind, SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC, None).unwrap();
        setfsuid(Uid::from_raw(0));
        on_address(SocketAddr::new(anywhere, port), |address| bind(socket.as_raw_fd(), address)).unwrap();
        let connected = on_address(flow.to, |address| connect(socket.as_raw_fd(), address));
        let refused = match connected {
            Ok(()) | Err(Errno::EINPROGRESS) => false,
            Err(_) => true,
        };
        let sent = match flow.transport {
            Transport::Tcp => Ok(0),
            Transport::Udp => nix::unistd::write(&socket, b"?"),
        };
        Client { port, socket, refused: refused || sent.is_err() }
    });
    clients.collect()
}

fn on_address<T>(address: SocketAddr, work: impl FnOnce(&dyn SockaddrLike) -> T) -> T {
    match address {
        SocketAddr::V4(v4) => work(&SockaddrIn::from(v4)),
        SocketAddr::V6(v6) => work(&SockaddrIn6::from(v6)),
    }
}
