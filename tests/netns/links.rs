//! Namespaces, links and routes against the real kernel. Needs root; every test works in namespaces
//! of its own and takes them away again.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "in a test a failure is a panic")]

use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU32, Ordering};

use enmesh::base::Fault;
use enmesh::netns::{self, Namespace, VirtualRoute};
use enmesh::plan;
use ipnet::Ipv4Net;

/// A namespace that goes with the test, whatever becomes of it.
struct Bed {
    name: String,
    namespace: Namespace,
}

impl Bed {
    fn new() -> Bed {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("enmesh-test-{}-{number}", std::process::id());
        let namespace = Namespace::create(&name).expect("these tests need root and network namespaces");
        Bed { name, namespace }
    }

    /// The same with loopback switched on.
    fn with_loopback() -> Bed {
        let bed = Bed::new();
        bed.ask(netns::lo_up).unwrap();
        bed
    }

    fn ask<T: Send, W: Future<Output = Result<T, Fault>>>(
        &self,
        work: impl FnOnce() -> W + Send,
    ) -> Result<T, Fault> {
        self.namespace.run_async(work).unwrap()
    }

    fn ip(&self, arguments: &str) -> String {
        self.namespace
            .run(|| {
                let program = enmesh::base::exec::find("ip").unwrap();
                let words: Vec<&str> = arguments.split(' ').collect();
                let limit = std::time::Duration::from_secs(10);
                let output = enmesh::base::exec::run(&program, &words, b"", limit).unwrap();
                assert!(output.status.success(), "ip {arguments}: {}", output.stderr);
                String::from_utf8(output.stdout).unwrap()
            })
            .unwrap()
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        let _ = Namespace::delete(&self.name);
    }
}

fn virtual_net() -> Ipv4Net {
    "240.0.0.0/4".parse().unwrap()
}

#[test]
fn a_namespace_is_made_once_entered_by_a_thread_and_taken_away() {
    let bed = Bed::new();
    let own = Namespace::own().unwrap();
    assert_ne!(bed.namespace.identity(), own.identity());

    let again = Namespace::create(&bed.name).unwrap();
    assert_eq!(again.identity(), bed.namespace.identity(), "what is there is not made again");
    assert!(Namespace::names().unwrap().contains(&bed.name));

    let inside = bed.namespace.run(|| Namespace::own().unwrap().identity()).unwrap();
    assert_eq!(inside, bed.namespace.identity());
    assert_eq!(Namespace::own().unwrap().identity(), own.identity(), "the caller's thread has not moved");

    let thread = bed.namespace.spawn(|| Namespace::own().unwrap().identity()).unwrap();
    assert_eq!(thread.join().unwrap().unwrap(), bed.namespace.identity());

    assert!(Namespace::delete(&bed.name).unwrap());
    assert!(!Namespace::delete(&bed.name).unwrap(), "none there is fine");
    assert_eq!(Namespace::by_name(&bed.name).unwrap_err().code, "ENM-N003");
    let alive = bed.namespace.run(|| Namespace::own().unwrap().identity()).unwrap();
    assert_eq!(alive, inside, "an open namespace outlives its name");
}

#[test]
fn a_namespace_is_one_that_ip_netns_knows() {
    let bed = Bed::with_loopback();
    let listed = bed.ip(&format!("netns exec {} ip -brief link show lo", bed.name));
    assert!(listed.starts_with("lo"), "{listed}");
    assert!(bed.ip("netns list").contains(&bed.name));
}

#[test]
fn a_file_left_by_a_killed_run_is_taken_over() {
    let bed = Bed::new();
    let name = format!("{}-left", bed.name);
    std::fs::write(format!("{}/{name}", netns::FOLDER), b"").unwrap();
    assert_eq!(Namespace::by_name(&name).unwrap_err().code, "ENM-N004");
    let made = Namespace::create(&name).unwrap();
    assert_ne!(made.identity(), bed.namespace.identity());
    assert!(Namespace::delete(&name).unwrap());
}

#[test]
fn a_panic_inside_goes_on_outside() {
    let bed = Bed::new();
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _ = bed.namespace.run(|| panic!("inside"));
    }));
    assert_eq!(result.unwrap_err().downcast_ref(), Some(&"inside"));
}

#[test]
fn two_namespaces_talk_over_a_veth_pair() {
    let (left, right) = (Bed::with_loopback(), Bed::with_loopback());
    let lay = || netns::veth_pair((&left.namespace, "enm0"), (&right.namespace, "enm0")).unwrap();
    assert!(lay());
    assert!(!lay(), "a pair that is there is left alone");

    for (bed, addresses) in
        [(&left, ["10.99.7.1/24", "fd99:7::1/64"]), (&right, ["10.99.7.2/24", "fd99:7::2/64"])]
    {
        for address in addresses {
            let add = || bed.ask(|| netns::add_address("enm0", address.parse().unwrap())).unwrap();
            assert!(add());
            assert!(!add(), "an address that is there is left alone");
        }
        assert!(bed.ask(|| netns::set_up("enm0")).unwrap());
        assert!(!bed.ask(|| netns::set_up("enm0")).unwrap());
    }

    for address in ["10.99.7.2", "fd99:7::2"] {
        let address: IpAddr = address.parse().unwrap();
        let listener = right.namespace.run(|| TcpListener::bind((address, 0)).unwrap()).unwrap();
        let port = listener.local_addr().unwrap().port();
        left.namespace.run(|| TcpStream::connect((address, port)).unwrap()).unwrap();
    }

    assert!(left.ask(|| netns::remove_link("enm0")).unwrap());
    assert!(!left.ask(|| netns::remove_link("enm0")).unwrap());
    assert_eq!(right.ask(|| netns::link("enm0")).unwrap_err().code, "ENM-N013", "the other end went along");
}

#[test]
fn a_link_in_the_way_is_not_taken_for_ours() {
    let (left, right) = (Bed::new(), Bed::new());
    left.ip("link add enm0 type veth peer name other");
    let fault = netns::veth_pair((&left.namespace, "enm0"), (&right.namespace, "enm0")).unwrap_err();
    assert_eq!(fault.code, "ENM-N014");
    assert!(left.ip("link show other").contains("other"), "and it is still there");
}

#[test]
fn addresses_are_those_that_others_can_reach() {
    let (left, right) = (Bed::with_loopback(), Bed::with_loopback());
    netns::veth_pair((&left.namespace, "enm0"), (&right.namespace, "enm0")).unwrap();
    left.ip("address add 10.99.8.1/24 dev enm0");
    left.ip("address add 10.99.8.9/24 dev enm0");
    left.ip("address add fd99:8::1/64 dev enm0 nodad");
    left.ip("address add fe80::99/64 dev enm0 nodad");
    let found = left.ask(netns::addresses).unwrap();
    let found: Vec<String> = found.iter().map(|a| format!("{} {}", a.interface, a.address)).collect();
    assert_eq!(found, ["enm0 10.99.8.1", "enm0 10.99.8.9", "enm0 fd99:8::1"]);
}

#[test]
fn the_default_source_is_the_kernels_choice_and_needs_a_default_route() {
    let (left, right) = (Bed::with_loopback(), Bed::with_loopback());
    netns::veth_pair((&left.namespace, "enm0"), (&right.namespace, "enm0")).unwrap();
    for bed in [&left, &right] {
        bed.ask(|| netns::set_up("enm0")).unwrap();
    }
    left.ask(|| netns::add_address("enm0", "10.99.9.1/24".parse().unwrap())).unwrap();
    left.ask(|| netns::add_address("enm0", "fd99:9::1/64".parse().unwrap())).unwrap();
    let source = || left.namespace.run(netns::default_source).unwrap();
    assert_eq!(source(), None);

    left.ask(|| netns::ensure_virtual_route(virtual_net())).unwrap();
    assert_eq!(source(), None, "the route of the virtual IPs is not a way out");

    assert!(left.ask(|| netns::add_default_route("fd99:9::2".parse().unwrap())).unwrap());
    assert_eq!(source(), Some("fd99:9::1".parse().unwrap()));

    assert!(left.ask(|| netns::add_default_route("10.99.9.2".parse().unwrap())).unwrap());
    assert!(!left.ask(|| netns::add_default_route("10.99.9.2".parse().unwrap())).unwrap());
    assert_eq!(source(), Some("10.99.9.1".parse().unwrap()), "IPv4 first");
}

#[test]
fn ipv6_is_there_when_loopback_has_it() {
    let bed = Bed::new();
    let available = || bed.namespace.run(netns::ipv6_available).unwrap();
    assert!(!available(), "loopback is down");
    bed.ask(netns::lo_up).unwrap();
    assert!(available());
    bed.ip("address del ::1/128 dev lo");
    assert!(!available());
}

#[test]
fn the_virtual_route_comes_once_and_goes() {
    let bed = Bed::with_loopback();
    let before = bed.ip("route show table all");
    let state = || bed.ask(|| netns::virtual_route_state(virtual_net())).unwrap();
    assert_eq!(state(), VirtualRoute::Absent);
    assert!(bed.ask(|| netns::ensure_virtual_route(virtual_net())).unwrap());
    assert!(!bed.ask(|| netns::ensure_virtual_route(virtual_net())).unwrap());
    assert_eq!(state(), VirtualRoute::Ours);
    assert_eq!(bed.ask(netns::our_virtual_routes).unwrap(), plan::routed(virtual_net()));
    let shown = bed.ip("route show proto 240");
    assert!(shown.starts_with("240.0.0.0/5 dev lo"), "{shown}");

    bed.ip("route del 252.0.0.0/7");
    assert_eq!(state(), VirtualRoute::Absent, "not all of them");
    assert!(bed.ask(|| netns::ensure_virtual_route(virtual_net())).unwrap());
    assert_eq!(state(), VirtualRoute::Ours);
    for part in plan::routed(virtual_net()) {
        assert!(bed.ask(move || netns::remove_virtual_route(part)).unwrap());
        assert!(!bed.ask(move || netns::remove_virtual_route(part)).unwrap());
    }
    assert_eq!(bed.ip("route show table all"), before, "nothing is left");
}

#[test]
fn a_foreign_route_for_the_same_network_is_respected() {
    let bed = Bed::with_loopback();
    bed.ip("route add 240.0.0.0/4 dev lo");
    let before = bed.ip("route show table all");
    assert!(!bed.ask(|| netns::ensure_virtual_route(virtual_net())).unwrap());
    assert_eq!(bed.ask(|| netns::virtual_route_state(virtual_net())).unwrap(), VirtualRoute::Foreign);
    assert!(!bed.ask(|| netns::remove_virtual_route(virtual_net())).unwrap());
    assert_eq!(bed.ip("route show table all"), before);
}

#[test]
fn only_our_route_goes_when_a_foreign_one_stands_beside_it() {
    let bed = Bed::with_loopback();
    bed.ask(|| netns::ensure_virtual_route(virtual_net())).unwrap();
    bed.ip("route add 240.0.0.0/5 dev lo metric 500");
    bed.ip("route add 240.0.0.0/4 dev lo metric 500");
    assert_eq!(bed.ask(|| netns::virtual_route_state(virtual_net())).unwrap(), VirtualRoute::Ours);
    for part in plan::routed(virtual_net()) {
        assert!(bed.ask(move || netns::remove_virtual_route(part)).unwrap());
    }
    let left = bed.ip("route show root 240.0.0.0/4");
    assert_eq!(left.lines().count(), 2, "{left}");
    assert!(left.lines().all(|line| line.contains("metric 500")), "{left}");
}

#[test]
fn our_route_that_leads_elsewhere_is_set_right() {
    let (bed, other) = (Bed::with_loopback(), Bed::new());
    netns::veth_pair((&bed.namespace, "enm0"), (&other.namespace, "enm0")).unwrap();
    bed.ask(|| netns::set_up("enm0")).unwrap();
    bed.ip("route add 240.0.0.0/5 dev enm0 proto 240");
    assert_eq!(bed.ask(|| netns::virtual_route_state(virtual_net())).unwrap(), VirtualRoute::Absent);
    assert!(bed.ask(|| netns::ensure_virtual_route(virtual_net())).unwrap());
    let shown = bed.ip("route show root 240.0.0.0/5");
    assert!(shown.starts_with("240.0.0.0/5 dev lo") && shown.lines().count() == 1, "{shown}");
}

#[test]
fn with_loopback_down_the_virtual_route_says_what_to_do() {
    let bed = Bed::new();
    let fault = bed.ask(|| netns::ensure_virtual_route(virtual_net())).unwrap_err();
    assert_eq!(fault.code, "ENM-N015");
    assert!(fault.hint.contains("ip link set lo up"));
}

#[test]
fn a_virtual_ip_is_routed_to_loopback_and_no_other_address_is() {
    let bed = Bed::with_loopback();
    let connect = |address: &'static str| {
        let target = (address.parse::<IpAddr>().unwrap(), 9);
        bed.namespace
            .run(|| TcpStream::connect_timeout(&target.into(), std::time::Duration::from_millis(300)))
            .unwrap()
    };
    let unreachable = |address| connect(address).unwrap_err().raw_os_error() == Some(nix::libc::ENETUNREACH);
    assert!(unreachable("240.0.0.5"), "without the route the rules would never see the connection");
    bed.ask(|| netns::ensure_virtual_route(virtual_net())).unwrap();
    assert!(!unreachable("240.0.0.5"));
    assert!(unreachable("10.99.0.2"));
}

#[test]
fn a_virtual_ip_is_dialled_from_an_address_that_can_be_answered() {
    let bed = Bed::with_loopback();
    bed.ask(|| netns::ensure_virtual_route(virtual_net())).unwrap();
    let source = || {
        bed.namespace
            .run(|| {
                let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                socket.connect("240.0.0.5:9").unwrap();
                socket.local_addr().unwrap().ip().to_string()
            })
            .unwrap()
    };
    assert_eq!(source(), "127.0.0.1", "with loopback alone");
    bed.ip("address add 10.99.8.1/32 dev lo");
    assert_eq!(source(), "127.0.0.1", "and so that no change of address ends a connection");
}

#[test]
fn private_mounts_are_seen_by_the_thread_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, theirs) = (dir.path().join("ours"), dir.path().join("theirs"));
    std::fs::write(&ours, b"ours").unwrap();
    std::fs::write(&theirs, b"theirs").unwrap();
    let seen = Namespace::own()
        .unwrap()
        .run(|| {
            netns::mount_privately(&[(&ours, &theirs)]).unwrap();
            std::fs::read(&theirs).unwrap()
        })
        .unwrap();
    assert_eq!(seen, b"ours");
    assert_eq!(std::fs::read(&theirs).unwrap(), b"theirs");
}

#[test]
fn without_privilege_it_is_said_and_nothing_is_left() {
    let bed = Bed::with_loopback();
    let name = format!("{}-none", bed.name);
    let (made, routed) = bed
        .namespace
        .run(|| {
            for capability in [caps::Capability::CAP_SYS_ADMIN, caps::Capability::CAP_NET_ADMIN] {
                caps::drop(None, caps::CapSet::Effective, capability).unwrap();
            }
            let routed = netns::block_on(netns::ensure_virtual_route(virtual_net())).unwrap();
            (Namespace::create(&name).map(drop), routed)
        })
        .unwrap();
    for fault in [made.unwrap_err(), routed.unwrap_err()] {
        assert_eq!((fault.code, fault.class.exit_code()), ("ENM-N001", 77), "{fault}");
    }
    assert!(!Namespace::names().unwrap().contains(&name));
}
