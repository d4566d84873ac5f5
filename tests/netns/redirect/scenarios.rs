//! Cases that take more than one connection: what lives on, what comes back, what is left behind. For every driver
//! but the last, which edits the table of one.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use enmesh::plan::RESOLVER_MARK;
use enmesh::redirect::{Desired, Firewall, Nftables};
use nix::sys::socket::{setsockopt, sockopt};

use crate::drivers::{Driver, cases, nftables};
use crate::lab::{Call, Lab, Outcome, SOON};
use crate::worlds::{APP, CONSUL, RESOLVER, down, legacy, live, two_users, whole_host, with_dns};

fn apply(lab: &Lab, driver: Driver, desired: Desired) {
    lab.host.run(move || driver().apply(&desired)).unwrap_or_else(|fault| panic!("{fault}"));
    lab.host.beat();
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn who(outcome: &Outcome) -> &str {
    match outcome {
        Outcome::Reached { who, .. } => who,
        Outcome::Refused => "refused",
        Outcome::Silence => "silence",
    }
}

fn call(result: Result<Call, Outcome>) -> Call {
    result.unwrap_or_else(|outcome| panic!("{outcome:?}"))
}

/// Rows 29, 30, 31: nothing that runs is touched by the first install.
fn connections_from_before_the_install_live_on(driver: Driver) {
    let lab = Lab::new();
    let mut out = call(lab.host.call(APP, address("10.9.0.1:80")));
    let mut out6 = call(lab.host.call(APP, address("[fd09::1]:80")));
    let mut inn = call(lab.peer.call(0, address("10.9.0.2:8080")));
    let mut ssh = call(lab.peer.call(0, address("10.9.0.2:22")));
    let mut instance = call(lab.host.call(APP, address("10.9.0.1:9000")));
    for desired in [live(whole_host()), live(legacy()), down(two_users()), live(two_users())] {
        apply(&lab, driver, desired);
        assert!(out.alive() && out6.alive(), "outbound");
        assert!(inn.alive(), "inbound");
        assert!(ssh.alive(), "SSH");
        assert!(instance.alive(), "to a mesh instance");
    }
    // Row 32.
    assert_eq!(who(&lab.peer.dial(0, address("10.9.0.2:22"))), "ssh");
}

/// Row 19: a virtual IP needs no default route. Row 20: nobody at the sidecar's port, an error at
/// once.
fn virtual_ips_need_no_route_out(driver: Driver) {
    let lab = Lab::new();
    apply(&lab, driver, live(whole_host()));
    lab.host.ip("route del default");
    let Outcome::Reached { who, original, from } = lab.host.dial(APP, address("240.0.0.1:80")) else {
        panic!("row 19")
    };
    assert_eq!((who.as_str(), original.as_str()), ("out", "240.0.0.1:80"));
    assert!(!from.is_unspecified());
    let mut policy = whole_host();
    policy.outbound.values_mut().for_each(|capture| capture.port = 15099);
    apply(&lab, driver, live(policy));
    let started = Instant::now();
    assert_eq!(lab.host.dial(APP, address("240.0.0.1:80")), Outcome::Refused, "row 20");
    assert!(started.elapsed() < SOON);
}

/// Row 21: what is refused is never seen on the wire. Row 22: the guard does not stand in the way.
fn refused_means_not_on_the_wire(driver: Driver) {
    let lab = Lab::new();
    apply(&lab, driver, down(whole_host()));
    let before = lab.on_the_wire();
    // Even when virtual IPs are routed outside.
    lab.virtual_routes("del");
    for to in ["240.0.0.1:80", "240.9.9.9:443", "10.9.0.1:9000", "[fd00:240::1]:80"] {
        let started = Instant::now();
        assert_eq!(lab.host.dial(APP, address(to)), Outcome::Refused, "{to}");
        assert!(started.elapsed() < Duration::from_millis(200), "{to}: {:?}", started.elapsed());
    }
    assert_eq!(lab.host.ask(APP, address("240.0.0.1:9999")), Outcome::Refused);
    assert_eq!(lab.on_the_wire(), before);
    lab.virtual_routes("add");
    apply(&lab, driver, live(whole_host()));
    assert_eq!(who(&lab.host.dial(APP, address("240.0.0.1:80"))), "out");
}

/// Rows 33 and 34: a thousand replacements under load, a hundred with iptables, which takes longer for each. Nothing goes astray, nothing breaks.
fn replacing_under_load_is_seamless(driver: Driver) {
    let lab = Lab::new();
    apply(&lab, driver, live(whole_host()));
    let mut redirected = call(lab.host.call(APP, address("10.9.0.1:80")));
    let stop = Arc::new(AtomicBool::new(false));
    let until = Arc::clone(&stop);
    let load = lab.host.run(move || {
        thread::spawn(move || {
            let (mut good, mut astray) = (0_u32, Vec::new());
            while !until.load(Ordering::Relaxed) {
                match Call::to_as(APP, address("10.9.0.1:80")) {
                    Outcome::Reached { who, .. } if who == "out" => good += 1,
                    other => astray.push(other),
                }
            }
            (good, astray)
        })
    });
    lab.host.run(move || {
        let firewall = driver();
        let rounds = if firewall.name() == "nftables" { 500 } else { 50 };
        for round in 0..rounds {
            let mut policy = whole_host();
            policy.generation.number = round;
            policy.bypass_cidrs.insert(format!("10.70.{}.0/24", round % 250).parse().unwrap());
            firewall.apply(&live(policy)).unwrap();
            firewall.apply(&live(legacy())).unwrap();
        }
    });
    stop.store(true, Ordering::Relaxed);
    let (good, astray) = load.join().unwrap();
    assert!(good > 100, "{good} connections are no load");
    assert!(astray.is_empty(), "{} of {good}: {:?}", astray.len(), astray.first());
    assert!(redirected.alive(), "row 34");
}

/// Row 35: the rules do not need the process that set them. Row 36: drain keeps what is redirected
/// and sends what is new directly. Rows 37 and 83: nothing of ours stays, and what is others' does.
fn drain_then_remove_leaves_nothing(driver: Driver) {
    let lab = Lab::new();
    lab.host.tool(
        "nft",
        "-f -",
        "table ip theirs { chain c { type filter hook input priority 0; accept; }\n }",
    );
    if driver().name() == "iptables" {
        // The tables of the kernel's own chains come with the first rule and stay, empty.
        lab.host.run(move || driver().apply(&live(with_dns(&[]))).and_then(|()| driver().remove())).unwrap();
    }
    let before = lab.host.rules();
    assert!(!before.contains("enmesh") && !before.contains("ENMESH"), "{before}");
    apply(&lab, driver, live(with_dns(&[])));
    let mut out = call(lab.host.call(APP, address("10.9.0.1:80")));
    let mut out6 = call(lab.host.call(APP, address("[fd09::1]:80")));
    let mut inn = call(lab.peer.call(0, address("10.9.0.2:8080")));
    lab.host.run(move || driver().drain()).unwrap();
    thread::sleep(Duration::from_millis(300));
    assert!(out.alive() && out6.alive() && inn.alive(), "redirected before the drain");
    assert_eq!(who(&lab.host.dial(APP, address("10.9.0.1:80"))), "peer");
    assert_eq!(who(&lab.peer.dial(0, address("10.9.0.2:8080"))), "app");
    let observed = lab.host.run(move || driver().observe(&live(with_dns(&[])))).unwrap();
    assert_eq!(observed.generation, None);
    assert!(!observed.differences.is_empty());
    lab.host.run(move || driver().remove()).unwrap();
    assert_eq!(lab.host.rules(), before);
    // Both are fine with nothing there.
    lab.host.run(move || driver().remove().and_then(|()| driver().drain())).unwrap();
    assert_eq!(lab.host.rules(), before);
}

/// Row 60: an application and a resolver with the same source port each get their own answer, in
/// either order.
fn dns_with_one_source_port_for_two(driver: Driver) {
    // The daemon, whose user is captured, too.
    const OURS: u32 = 0;
    let lab = Lab::new();
    apply(&lab, driver, live(with_dns(&[])));
    let ask = |uid: u32, port: u16| {
        lab.host.run_as(uid, move || {
            let socket = UdpSocket::bind(("10.9.0.2", port)).unwrap();
            if uid == OURS {
                setsockopt(&socket, sockopt::Mark, &RESOLVER_MARK).unwrap();
            }
            socket.set_read_timeout(Some(SOON)).unwrap();
            socket.connect("10.9.0.1:53").unwrap();
            socket.send(b"?").unwrap();
            let mut buffer = [0; 64];
            let length = socket.recv(&mut buffer).expect("an answer");
            String::from_utf8_lossy(&buffer[..length]).into_owned()
        })
    };
    let (app, resolver) = ((APP, "resolver"), (RESOLVER, "peer"));
    for (first, second, port) in [
        (app, (CONSUL, "peer"), 40001),
        ((CONSUL, "peer"), app, 40002),
        (app, resolver, 40003),
        (resolver, app, 40004),
        (app, (OURS, "peer"), 40005),
        ((OURS, "peer"), app, 40006),
    ] {
        lab.host.beat();
        assert_eq!(ask(first.0, port), first.1);
        assert_eq!(ask(second.0, port), second.1);
        assert_eq!(ask(first.0, port), first.1);
    }
}

/// Row 61: a program that keeps one UDP socket is answered by whoever answers now, from its first query after
/// the install, and by the server of before when the resolver is gone.
fn a_udp_socket_from_before_is_redirected_as_well(driver: Driver) {
    for users in [&[][..], &[APP]] {
        let lab = Lab::new();
        let open = |bind: &'static str, to: &'static str| {
            let socket = lab.host.run_as(APP, move || {
                let socket = UdpSocket::bind(bind).unwrap();
                socket.set_read_timeout(Some(SOON)).unwrap();
                socket.connect(to).unwrap();
                socket
            });
            move || {
                socket.send(b"?").unwrap();
                let mut buffer = [0; 64];
                let length = socket.recv(&mut buffer).expect("an answer");
                String::from_utf8_lossy(&buffer[..length]).into_owned()
            }
        };
        let wire = open("10.9.0.2:0", "10.9.0.1:53");
        let wire6 = open("[::]:0", "[fd09::1]:53");
        let stub = open("127.0.0.1:0", "127.0.0.53:53");
        let all = || [wire(), wire6(), stub()];
        // Twice: conntrack has seen an answer, and keeps the pair for longer.
        assert_eq!(
            (all(), all()),
            (["peer", "peer", "stub"].map(str::to_owned), ["peer", "peer", "stub"].map(str::to_owned))
        );
        apply(&lab, driver, live(with_dns(users)));
        assert_eq!(all(), ["resolver"; 3]);
        assert_eq!(all(), ["resolver"; 3]);
        let silent = Instant::now();
        while all() != ["peer", "peer", "stub"] {
            assert!(silent.elapsed() < Duration::from_secs(20), "DNS is still redirected: {:?}", all());
            thread::sleep(Duration::from_millis(200));
        }
    }
}

/// When the resolver says nothing any more, whatever ended it, DNS goes where it goes without us; and
/// rules alone, as they are loaded at boot, redirect none.
fn dns_lapses_with_its_resolver(driver: Driver) {
    let lab = Lab::new();
    let everything = |who_answers: &str| {
        for to in ["10.9.0.1:53", "[fd09::1]:53"] {
            let (udp, tcp) = (lab.host.ask(APP, address(to)), lab.host.dial(APP, address(to)));
            if who(&udp) != who_answers || who(&tcp) != who_answers {
                return false;
            }
        }
        true
    };
    lab.host.run(move || driver().apply(&live(with_dns(&[])))).unwrap();
    assert!(everything("peer"), "nobody has said that the resolver lives");
    lab.host.beat();
    assert!(everything("resolver"));
    let observed = lab.host.run(move || driver().observe(&live(with_dns(&[])))).unwrap();
    assert_eq!(observed.differences, [""; 0], "that it lives is no change of the rules");
    let silent = Instant::now();
    while !everything("peer") {
        assert!(silent.elapsed() < Duration::from_secs(20), "DNS is still redirected");
        thread::sleep(Duration::from_millis(100));
    }
    lab.host.beat();
    assert!(everything("resolver"), "it is back");
}

/// Rows 47 and 48, and DNS of containers beside captured DNS: what is only forwarded is nobody's
/// business, masquerading included.
fn forwarded_traffic_is_left_alone(driver: Driver) {
    let lab = Lab::new();
    let container = crate::lab::Space::new();
    lab.host.ip(&format!("link add c0 type veth peer name eth0 netns {}", container.tid()));
    lab.host.ip("addr add 172.17.0.1/16 dev c0");
    lab.host.ip("link set c0 up");
    container.ip("addr add 172.17.0.5/16 dev eth0");
    container.ip("link set eth0 up");
    container.ip("route add default via 172.17.0.1");
    lab.peer.ip("route add 172.17.0.0/16 via 10.9.0.2");
    lab.host.tool("sysctl", "-qw net.ipv4.ip_forward=1", "");
    let masquerade = "table ip docker { chain post { type nat hook postrouting priority 100; \
                      ip saddr 172.17.0.0/16 oifname \"eth0\" masquerade; }\n }";
    lab.host.tool("nft", "-f -", masquerade);
    container.listen("container", "[::]:80");
    let mut policy = legacy();
    policy.dns = with_dns(&[]).dns;
    for desired in [live(policy.clone()), down(policy)] {
        apply(&lab, driver, desired);
        assert_eq!(who(&lab.peer.dial(0, address("172.17.0.5:80"))), "container", "row 47");
        assert_eq!(who(&container.dial(0, address("10.9.0.1:80"))), "peer", "row 48");
        assert_eq!(who(&container.ask(0, address("10.9.0.1:53"))), "peer", "a container's DNS");
    }
}

/// Row 66.
fn ping_goes_both_ways(driver: Driver) {
    let lab = Lab::new();
    apply(&lab, driver, live(whole_host()));
    for (space, targets) in [(&lab.host, ["10.9.0.1", "fd09::1"]), (&lab.peer, ["10.9.0.2", "fd09::2"])] {
        for target in targets {
            assert!(space.ping(target.parse().unwrap()), "{target}");
        }
    }
}

/// Row 71: others flush or edit; it is seen and put right.
#[test]
fn drift_is_seen_and_repaired() {
    let lab = Lab::new();
    let desired = live(two_users());
    apply(&lab, nftables, desired.clone());
    let observe = |lab: &Lab| {
        lab.host.run(|| Nftables::new().observe(&live(two_users()))).unwrap_or_else(|fault| panic!("{fault}"))
    };
    assert_eq!(observe(&lab).differences, Vec::<String>::new());
    assert_eq!(observe(&lab).generation, Some(desired.policy.generation.clone()));
    let edits = [
        ("delete element inet enmesh uid_redirect { 1000 : 15001 }", "+ set uid_redirect: 1000 : 15001"),
        ("add element inet enmesh bypass_uids { 1000 }", "- set bypass_uids: 1000"),
        ("insert rule inet enmesh out accept", "- rule in out:"),
        (
            "add rule inet enmesh guard_in tcp dport 8080 accept comment \"mine\"",
            "- rule \"mine\" in guard_in",
        ),
        ("flush chain inet enmesh guard_out", "+ rule \"virtual IPs\" in guard_out"),
        ("add chain inet enmesh more", "- chain more"),
        ("add set inet enmesh more { type inet_service; }", "- set more"),
        ("delete table inet enmesh", "+ table inet enmesh"),
        ("flush ruleset", "+ table inet enmesh"),
    ];
    for (edit, expected) in edits {
        lab.host.tool("nft", "-f -", edit);
        let found = observe(&lab).differences;
        assert!(found.iter().any(|line| line.starts_with(expected)), "{edit}: {found:?}");
        apply(&lab, nftables, desired.clone());
        assert_eq!(observe(&lab).differences, Vec::<String>::new(), "{edit}");
    }
}

cases! {
    connections_from_before_the_install_live_on,
    virtual_ips_need_no_route_out,
    refused_means_not_on_the_wire,
    replacing_under_load_is_seamless,
    drain_then_remove_leaves_nothing,
    dns_with_one_source_port_for_two,
    a_udp_socket_from_before_is_redirected_as_well,
    dns_lapses_with_its_resolver,
    forwarded_traffic_is_left_alone,
    ping_goes_both_ways,
}
