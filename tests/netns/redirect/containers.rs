//! Beside containers and their engine, and traffic that is no TCP of a user: what is only forwarded or published, what
//! is addressed to the host, what the kernel itself sends.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::{Duration, Instant};

use enmesh::config::OnProxyFailure;
use enmesh::redirect::Desired;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, socket,
};

use crate::drivers::{Driver, cases};
use crate::lab::{Lab, Outcome, Space};
use crate::worlds::{APP, NOBODY, down, legacy, live, on_failure, two_users, whole_host, with};

/// A namespace behind a bridge's address, as a container is: 172.17.0.5, with the host as its way out.
pub fn container(lab: &Lab) -> Space {
    let container = Space::new();
    lab.host.ip(&format!("link add c0 type veth peer name eth0 netns {}", container.tid()));
    lab.host.ip("addr add 172.17.0.1/16 dev c0");
    lab.host.ip("link set c0 up");
    container.ip("addr add 172.17.0.5/16 dev eth0");
    container.ip("link set eth0 up");
    container.ip("route add default via 172.17.0.1");
    lab.host.tool("sysctl", "-qw net.ipv4.ip_forward=1", "");
    container.listen("container", "[::]:80");
    container
}

pub fn who(outcome: &Outcome) -> &str {
    match outcome {
        Outcome::Reached { who, .. } => who,
        Outcome::Refused => "refused",
        Outcome::Silence => "silence",
    }
}

pub fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn apply(lab: &Lab, driver: Driver, desired: Desired) {
    lab.host.run(move || driver().apply(&desired)).unwrap_or_else(|fault| panic!("{fault}"));
}

/// Row 27: a container of this host is a destination as any other, unless its network is bypassed. Row 49: what a
/// container sends to the host is inbound of the host, unless its interface is bypassed. Row 50: there is no
/// mode in which it would be outbound.
fn a_container_is_outside(driver: Driver) {
    let lab = Lab::new();
    let container = container(&lab);
    apply(&lab, driver, live(whole_host()));
    assert_eq!(who(&lab.host.dial(APP, address("172.17.0.5:80"))), "out", "row 27");
    assert_eq!(who(&container.dial(0, address("172.17.0.1:8080"))), "in", "row 49");
    assert_eq!(who(&container.dial(0, address("10.9.0.2:8080"))), "in", "row 49, another address");
    let bypassing = with(
        whole_host(),
        |capture| capture.bypass.cidrs.push("172.17.0.0/16".parse().unwrap()),
        |capture| {
            capture.bypass_interfaces.insert("c0".to_owned());
        },
    );
    apply(&lab, driver, live(bypassing));
    assert_eq!(who(&lab.host.dial(APP, address("172.17.0.5:80"))), "container", "row 27, bypassed");
    assert_eq!(who(&container.dial(0, address("172.17.0.1:8080"))), "app", "row 49, bypassed");
    assert_eq!(who(&lab.peer.dial(0, address("10.9.0.2:8080"))), "in", "only that interface");
}

/// Docker's rules as its programs set them, at -100.
const DOCKER: &str = "*nat\n:DOCKER - [0:0]\n-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER\n\
    -A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER\n\
    -A DOCKER -p tcp --dport 8088 -j DNAT --to-destination 172.17.0.5:80\nCOMMIT\n";

/// Rows 1, 28, 38, 46 and 74, for the driver nftables: the order is by priority, whichever flavour Docker uses and
/// whoever comes first.
#[test]
fn docker_like_rules_come_first_in_every_order() {
    for restore in ["iptables-nft-restore", "iptables-legacy-restore"] {
        for docker_first in [true, false] {
            let lab = Lab::new();
            let _container = container(&lab);
            if docker_first {
                lab.host.tool(restore, "--noflush", DOCKER);
            }
            // All ports captured, the published one too.
            apply(&lab, crate::drivers::nftables, live(legacy()));
            if !docker_first {
                lab.host.tool(restore, "--noflush", DOCKER);
            }
            let order = format!("{restore}, Docker first: {docker_first}");
            assert_eq!(who(&lab.host.dial(APP, address("240.0.0.1:80"))), "out", "row 1, {order}");
            assert_eq!(who(&lab.host.dial(APP, address("10.9.0.2:8088"))), "container", "row 28, {order}");
            assert_eq!(who(&lab.peer.dial(0, address("10.9.0.2:8080"))), "in", "row 38, {order}");
            assert_eq!(who(&lab.peer.dial(0, address("10.9.0.2:8088"))), "container", "row 46, {order}");
        }
    }
}

/// Row 67: protocols that are not TCP arrive as they were sent, in both directions, with everything captured and
/// sealed and nobody live, which refuses most.
fn other_protocols_are_left_alone(driver: Driver) {
    let lab = Lab::new();
    apply(&lab, driver, down(on_failure(legacy(), OnProxyFailure::Sealed)));
    // SCTP, ESP, GRE: counted where they are delivered, behind all of our rules.
    for (from, to, source, target) in
        [(&lab.host, &lab.peer, "10.9.0.2", "10.9.0.1"), (&lab.peer, &lab.host, "10.9.0.1", "10.9.0.2")]
    {
        let counters = [132, 50, 47]
            .map(|protocol| format!("ip protocol {protocol} ip saddr {source} ip daddr {target} counter"));
        let table = format!(
            "table ip arrived {{ chain c {{ type filter hook input priority 300; {}; }}\n }}",
            counters.join("; ")
        );
        to.tool("nft", "-f -", &table);
        for protocol in [132, 50, 47] {
            from.run(move || send_raw(protocol, source.parse().unwrap(), target.parse().unwrap()));
        }
        let started = Instant::now();
        loop {
            let listing = to.tool("nft", "list table ip arrived", "");
            if listing.matches("packets 1 ").count() == 3 {
                break;
            }
            assert!(started.elapsed() < Duration::from_secs(5), "to {target}: {listing}");
            thread::sleep(Duration::from_millis(20));
        }
    }
    // Multicast and broadcast. The limited broadcast, 255.255.255.255, lies within 240.0.0.0/4; a socket without an
    // address of its own sends it where routes lead.
    for (target, source) in [
        ("224.0.0.251:5353", "10.9.0.2"),
        ("10.9.0.255:9998", "10.9.0.2"),
        ("255.255.255.255:9997", "10.9.0.2"),
        ("255.255.255.255:9996", "0.0.0.0"),
    ] {
        broadcast(&lab, APP, source, target);
    }
    // Virtual IPs are refused to users that nobody captures, too.
    apply(&lab, driver, live(two_users()));
    broadcast(&lab, NOBODY, "0.0.0.0", "255.255.255.255:9995");
    assert_eq!(lab.host.ask(NOBODY, address("255.255.255.254:9995")), Outcome::Refused, "no broadcast");
}

/// Sends from an address of the host to everybody on the wire; the peer must hear it.
fn broadcast(lab: &Lab, uid: u32, source: &'static str, target: &'static str) {
    let port = address(target).port();
    let heard = lab.peer.run(move || {
        let socket = UdpSocket::bind(("0.0.0.0", port)).unwrap();
        socket.join_multicast_v4(&"224.0.0.251".parse().unwrap(), &"10.9.0.1".parse().unwrap()).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        thread::spawn(move || socket.recv(&mut [0; 16]).is_ok())
    });
    let sent = lab.host.run_as(uid, move || {
        let socket = UdpSocket::bind((source, 0)).unwrap();
        socket.set_broadcast(true).unwrap();
        socket.send_to(b"?", target)
    });
    assert!(sent.is_ok() && heard.join().unwrap(), "{uid} from {source} to {target}: {sent:?}");
}

/// Sends a packet of any IP protocol, header included.
fn send_raw(protocol: u8, source: Ipv4Addr, target: Ipv4Addr) {
    let raw = socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw).unwrap();
    // The kernel fills in length and checksum.
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0];
    packet.extend(source.octets());
    packet.extend(target.octets());
    packet.extend([0; 32]);
    let to = SockaddrIn::from(SocketAddrV4::new(target, 0));
    sendto(raw.as_raw_fd(), &packet, &to, MsgFlags::empty()).unwrap();
}

/// Row 68: what the kernel answers by itself has no user, and arrives: RST from a port where nobody listens, and
/// ICMP for UDP, at a host that captures everybody.
fn answers_of_the_kernel_are_left_alone(driver: Driver) {
    let lab = Lab::new();
    for desired in [live(whole_host()), down(on_failure(whole_host(), OnProxyFailure::Sealed))] {
        apply(&lab, driver, desired);
        assert_eq!(lab.peer.dial(0, address("10.9.0.2:7777")), Outcome::Refused);
        assert_eq!(lab.peer.dial(0, address("[fd09::2]:7777")), Outcome::Refused);
        assert_eq!(lab.peer.ask(0, address("10.9.0.2:7777")), Outcome::Refused);
        assert_eq!(lab.peer.ask(0, address("[fd09::2]:7777")), Outcome::Refused);
    }
    apply(&lab, driver, live(two_users()));
    assert_eq!(lab.host.dial(NOBODY, address("10.9.0.1:7777")), Outcome::Refused);
}

cases! {
    a_container_is_outside,
    other_protocols_are_left_alone,
    answers_of_the_kernel_are_left_alone,
}
