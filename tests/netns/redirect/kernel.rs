//! What the kernel gives back is what was asked for, for any policy; and how it says no.

use std::collections::BTreeSet;

use enmesh::base::Class;
use enmesh::config::{Ipv6Policy, OnProxyFailure};
use enmesh::plan::{DnsCapture, Generation, InboundPorts, RedirectPolicy, Who};
use enmesh::redirect::{Desired, Firewall, Nftables, foreign, render_text};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::lab::Space;
use crate::worlds::{bare, bypasses, down, inbound, legacy, live, outbound, two_users, whole_host, with_dns};

/// How many policies are made up.
const POLICIES: u64 = 220;

fn apply_and_observe(firewall: &Nftables, desired: &Desired) -> Vec<String> {
    firewall.apply(desired).unwrap_or_else(|fault| panic!("{fault}\n{}", fault.hint));
    // A driver that has not seen the rules go in, so that it has learnt nothing.
    let observed = Nftables::new().observe(desired).unwrap();
    let expected = (!desired.policy.is_empty()).then(|| desired.policy.generation.clone());
    assert_eq!(observed.generation, expected);
    observed.differences
}

/// Once with a driver that knows nothing of what is there, once with one that goes from each policy
/// to the next.
#[test]
fn whatever_is_applied_is_observed() {
    Space::new().run(|| {
        let one_for_all = Nftables::new();
        for seed in 0..POLICIES {
            let desired = random(seed);
            let differences = apply_and_observe(&Nftables::new(), &desired);
            assert!(differences.is_empty(), "seed {seed}: {differences:#?}\n{:#?}", desired.policy);
            let desired = random(1000 + seed);
            let differences = apply_and_observe(&one_for_all, &desired);
            assert!(differences.is_empty(), "seed {seed}: {differences:#?}\n{:#?}", desired.policy);
        }
    });
}

/// The same, with nobody between the changes, so that none falls back to the whole table.
#[test]
fn whatever_is_changed_is_observed() {
    Space::new().run(|| {
        let firewall = Nftables::new();
        firewall.apply(&random(0)).unwrap();
        for seed in 1..POLICIES {
            let desired = random(seed);
            if desired.policy.is_empty() {
                continue;
            }
            let before = table_handle();
            let differences = apply_and_observe(&firewall, &desired);
            assert!(differences.is_empty(), "seed {seed}: {differences:#?}\n{:#?}", desired.policy);
            assert_eq!(before, table_handle(), "seed {seed}: the table was replaced");
        }
    });
}

/// A sidecar that comes or goes is a map element, and nothing else in the table moves.
#[test]
fn liveness_touches_no_rule() {
    let space = Space::new();
    space.run(|| {
        let firewall = Nftables::new();
        firewall.apply(&live(legacy())).unwrap();
        let numbered = || run_nft(&["-a", "list", "table", "inet", "enmesh"]);
        let before = numbered();
        firewall.apply(&down(legacy())).unwrap();
        let is_redirect = |line: &&str| !line.contains("elements") && !line.contains('}');
        let rules = |text: &str| text.lines().filter(is_redirect).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(rules(&before), rules(&numbered()));
        assert_ne!(before, numbered());
        firewall.apply(&live(legacy())).unwrap();
        assert_eq!(before, numbered());
    });
}

/// An edit that keeps a rule's name is not taken for the way in which nft words it.
#[test]
fn a_change_beside_an_edit_repairs_the_edit() {
    Space::new().run(|| {
        let firewall = Nftables::new();
        firewall.apply(&live(two_users())).unwrap();
        let listing = run_nft(&["-a", "list", "chain", "inet", "enmesh", "guard_in"]);
        let rule = listing.lines().find(|line| line.contains("in the clear")).unwrap();
        let handle = rule.rsplit(' ').next().unwrap();
        let name = "comment \"services' ports in the clear\"";
        run_nft(&["replace", "rule", "inet", "enmesh", "guard_in", "handle", handle, "accept", name]);
        // Both leave the chain `guard_in` as it is.
        for desired in [down(two_users()), live(two_users())] {
            assert_eq!(apply_and_observe(&firewall, &desired), Vec::<String>::new());
        }
    });
}

/// Tells one table `inet enmesh` from its successor.
fn table_handle() -> String {
    let listing = run_nft(&["-a", "list", "tables"]);
    listing.lines().find(|line| line.contains("enmesh")).unwrap().to_owned()
}

fn run_nft(arguments: &[&str]) -> String {
    let nft = enmesh::base::exec::find("nft").unwrap();
    let out = enmesh::base::exec::run(&nft, arguments, b"", std::time::Duration::from_secs(5)).unwrap();
    assert!(out.status.success(), "{arguments:?}: {}", out.stderr);
    String::from_utf8(out.stdout).unwrap()
}

/// Row 85, as far as setting them goes.
#[test]
fn ten_thousand_networks() {
    Space::new().run(|| {
        for who in [Who::Everyone, Who::Uid(1000)] {
            let mut policy = bare();
            let mut capture = outbound(who, 15001);
            // Every other one, so that they cannot be merged.
            let networks = (0..10_000_u32).map(|n| format!("10.{}.{}.0/25", n / 256, n % 256));
            capture.bypass.cidrs = networks.map(|text| text.parse().unwrap()).collect();
            policy.outbound.insert("api".parse().unwrap(), capture);
            assert_eq!(apply_and_observe(&Nftables::new(), &live(policy)), Vec::<String>::new());
        }
    });
}

/// What a person would load from `enmesh render nft` is what the driver loads.
#[test]
fn text_and_json_make_the_same_rules() {
    for (number, desired) in [
        live(two_users()),
        down(two_users()),
        live(legacy()),
        live(with_dns(&[])),
        live(with_dns(&[1000])),
        random(3),
    ]
    .into_iter()
    .chain((100..130).map(random))
    .enumerate()
    {
        let space = Space::new();
        let text = render_text(&desired.policy, &desired.live);
        space.tool("nft", "-f -", &text);
        let by_text = space.rules();
        space.run(move || Nftables::new().apply(&desired)).unwrap();
        assert_eq!(by_text, space.rules(), "{number}\n{text}");
    }
}

/// Row 69.
#[test]
fn applying_three_times_changes_nothing() {
    let space = Space::new();
    let mut seen = BTreeSet::new();
    for _ in 0..3 {
        space.run(|| Nftables::new().apply(&live(legacy()))).unwrap();
        seen.insert(space.rules());
    }
    assert_eq!(seen.len(), 1);
}

#[test]
fn an_empty_policy_has_no_table() {
    let space = Space::new();
    space.run(|| {
        assert_eq!(apply_and_observe(&Nftables::new(), &live(two_users())), Vec::<String>::new());
        assert_eq!(apply_and_observe(&Nftables::new(), &live(bare())), Vec::<String>::new());
    });
    assert_eq!(space.rules(), "");
}

/// Row 70: a transaction that fails at its end leaves what was there.
#[test]
fn a_refused_transaction_changes_nothing() {
    let space = Space::new();
    space.run(|| Nftables::new().apply(&live(two_users()))).unwrap();
    let before = space.rules();
    space.run(|| {
        let text = render_text(&whole_host(), &BTreeSet::new());
        let broken = text.replace("jump bypass", "jump nowhere");
        assert_ne!(text, broken);
        let nft = enmesh::base::exec::find("nft").unwrap();
        let limit = std::time::Duration::from_secs(5);
        let out = enmesh::base::exec::run(&nft, &["-f", "-"], broken.as_bytes(), limit).unwrap();
        assert!(!out.status.success());
    });
    assert_eq!(before, space.rules());
}

#[test]
fn without_the_privilege_it_says_so() {
    // A thread without capabilities, whose children cannot get them back by being root's.
    let fault = Space::new().run(|| {
        std::thread::spawn(|| {
            for capability in caps::all() {
                let _ = caps::drop(None, caps::CapSet::Bounding, capability);
            }
            for set in [caps::CapSet::Inheritable, caps::CapSet::Effective, caps::CapSet::Permitted] {
                caps::clear(None, set).unwrap();
            }
            Nftables::new().apply(&live(two_users())).unwrap_err()
        })
        .join()
        .unwrap()
    });
    assert_eq!((fault.code, fault.class), ("ENM-R002", Class::Privilege), "{fault}");
}

/// Row 86: nothing that stands in a policy as text reaches nft as more than text.
#[test]
fn names_cannot_say_more_than_names() {
    let mut policy = legacy();
    policy.generation = Generation { number: 1, hash: "ab\"; flush ruleset; #".to_owned() };
    for capture in policy.inbound.values_mut() {
        for name in
            ["x\" accept; flush ruleset; #", "@bypass_uids", "a*", "new\nline", "eth0", "a b", "br-1.5"]
        {
            capture.bypass_interfaces.insert(name.to_owned());
        }
    }
    let text = render_text(&policy, &BTreeSet::new());
    assert!(!text.contains("flush ruleset") && !text.contains("\"@"), "{text}");
    assert!(text.contains("\"br-1.5\"") && text.contains("enmesh:gen:1:abflushruleset\""), "{text}");
    let space = Space::new();
    space.tool("nft", "-f -", &text);
    space.run(move || Nftables::new().apply(&live(policy))).unwrap();
}

#[test]
fn foreign_redirectors_are_found_and_can_be_removed() {
    let space = Space::new();
    assert_eq!(space.run(foreign).unwrap(), []);
    space.run(|| Nftables::new().apply(&live(two_users()))).unwrap();
    space.tool(
        "nft",
        "-f -",
        "table inet consul_tproxy { chain o { type nat hook output priority -100; }\n }",
    );
    let chains = "*nat\n:CONSUL_PROXY_OUTPUT - [0:0]\n:THEIRS - [0:0]\n-A OUTPUT -p tcp -j CONSUL_PROXY_OUTPUT\n\
                  -A OUTPUT -j THEIRS\n-A CONSUL_PROXY_OUTPUT -j REDIRECT -p tcp --to-ports 15001\nCOMMIT\n";
    space.tool("iptables-nft-restore", "--noflush", chains);
    let found = space.run(foreign).unwrap();
    let places: Vec<&str> = found.iter().map(|one| one.place.as_str()).collect();
    assert_eq!(places, ["table inet consul_tproxy", "table ip nat: CONSUL_PROXY_OUTPUT"]);
    for one in &found {
        let command = one.removal.clone();
        space.run(move || {
            let limit = std::time::Duration::from_secs(5);
            let command = format!("PATH=/usr/sbin:/usr/bin:/sbin:/bin; {command}");
            let shell = std::path::Path::new("/bin/sh");
            let out = enmesh::base::exec::run(shell, &["-c", &command], b"", limit).unwrap();
            assert!(out.status.success(), "{command}: {}", out.stderr);
        });
    }
    assert_eq!(space.run(foreign).unwrap(), []);
    let rules = space.rules();
    assert!(rules.contains("jump THEIRS") && rules.contains("table inet enmesh"), "{rules}");
}

/// A policy made up from `seed`; every kind of thing occurs, also what planners should not ask for
/// (overlaps, services under bypassed users).
pub fn random(seed: u64) -> Desired {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut policy = bare();
    policy.generation.number = seed;
    for _ in 0..rng.random_range(0..4) {
        policy.bypass_uids.insert(rng.random_range(0..u32::MAX));
    }
    for _ in 0..rng.random_range(0..20) {
        let address = network(&mut rng).addr();
        policy.mesh_instances.insert((address, rng.random_range(1..=u16::MAX)));
    }
    for _ in 0..rng.random_range(0..6) {
        policy.bypass_cidrs.insert(network(&mut rng));
    }
    if rng.random_ratio(1, 5) {
        policy.virtual_nets.clear();
    }
    let services = rng.random_range(0..6);
    for number in 0..services {
        service(&mut rng, &mut policy, number);
    }
    if rng.random_ratio(1, 3) {
        let to = ["127.0.0.1:8600", "[::1]:53", "10.9.0.1:5300", "[fd09::1]:5300"][rng.random_range(0..4)];
        let uids = (0..rng.random_range(0..3)).map(|_| rng.random_range(0..3000)).collect();
        policy.dns = Some(DnsCapture {
            to: to.parse().unwrap(),
            uids,
            except: [990].into(),
            server: enmesh::plan::DnsServer::Ours,
        });
    }
    let ids = policy.outbound.keys().chain(policy.inbound.keys());
    let live = ids.filter(|_| rng.random_ratio(2, 3)).cloned().collect();
    Desired { policy, live }
}

fn service(rng: &mut StdRng, policy: &mut RedirectPolicy, number: u16) {
    let id: enmesh::config::value::ServiceId = format!("s{number}").parse().unwrap();
    let ipv6 = [Ipv6Policy::Redirect, Ipv6Policy::Refuse, Ipv6Policy::Allow][rng.random_range(0..3)];
    let failure =
        [OnProxyFailure::Closed, OnProxyFailure::Sealed, OnProxyFailure::Open][rng.random_range(0..3)];
    let mut ports: Vec<String> = Vec::new();
    for _ in 0..rng.random_range(0..6) {
        let first: u16 = rng.random_range(1..=u16::MAX);
        let last = first.saturating_add([0, 1, 100][rng.random_range(0..3)]);
        ports.push(format!("{first}-{last}"));
    }
    let ports: Vec<&str> = ports.iter().map(String::as_str).collect();
    if rng.random_ratio(3, 4) {
        let everyone = number == 0 && rng.random_ratio(1, 2);
        let who = if everyone { Who::Everyone } else { Who::Uid(1000 + u32::from(number)) };
        let mut capture = outbound(who, 15001 + number);
        (capture.ipv6, capture.on_failure) = (ipv6, failure);
        capture.bypass = bypasses(&ports, &[]);
        capture.bypass.cidrs = (0..rng.random_range(0..8)).map(|_| network(rng)).collect();
        policy.outbound.insert(id.clone(), capture);
    }
    if rng.random_ratio(3, 4) {
        let all = number == 0 && rng.random_ratio(1, 2);
        let which = if all { InboundPorts::All } else { InboundPorts::One(8080 + number) };
        let mut capture = inbound(which, 21000 + number);
        (capture.ipv6, capture.on_failure) = (ipv6, failure);
        capture.bypass_ports = bypasses(&ports, &[]).ports;
        if rng.random_ratio(1, 3) {
            capture.bypass_interfaces = ["eth0", "br-abc", "wlan0.5"].map(str::to_owned).into();
        }
        policy.inbound.insert(id, capture);
    }
}

fn network(rng: &mut StdRng) -> ipnet::IpNet {
    let address: std::net::IpAddr = if rng.random_ratio(2, 3) {
        // Few first bytes, so that some overlap.
        std::net::Ipv4Addr::new(rng.random_range(10..14), rng.random(), rng.random(), rng.random()).into()
    } else {
        std::net::Ipv6Addr::new(0xfd00, rng.random_range(0..3), rng.random(), 0, 0, 0, 0, rng.random()).into()
    };
    let length = if address.is_ipv4() { rng.random_range(8..=32) } else { rng.random_range(16..=128) };
    ipnet::IpNet::new(address, length).unwrap()
}
