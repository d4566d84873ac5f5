//! A hundred services on one host, each with a user, ports and a sidecar of its own: whose traffic
//! ends where, and what the others see when something happens to one of them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use enmesh::config::value::ServiceId;
use enmesh::plan::{InboundPorts, RedirectPolicy, Who};
use enmesh::redirect::Desired;

use crate::drivers::{Driver, cases};
use crate::lab::{Call, Lab, Outcome};
use crate::worlds::{NOBODY, bare, bypasses, inbound, live, outbound};

const SERVICES: u16 = 100;
/// The one that something happens to.
const OTHER: u16 = 42;

fn uid(number: u16) -> u32 {
    20_000 + u32::from(number)
}

fn app(number: u16) -> u16 {
    30_000 + number
}

fn out(number: u16) -> u16 {
    16_000 + number
}

fn public(number: u16) -> u16 {
    22_000 + number
}

fn id(number: u16) -> ServiceId {
    format!("s{number}").parse().unwrap()
}

fn hundred() -> RedirectPolicy {
    let mut policy = bare();
    policy.outbound =
        (0..SERVICES).map(|n| (id(n), outbound(Who::Uid(uid(n)), out(n)))).collect::<BTreeMap<_, _>>();
    policy.inbound = (0..SERVICES).map(|n| (id(n), inbound(InboundPorts::One(app(n)), public(n)))).collect();
    policy
}

/// A sidecar and an app for each, that say who they are.
fn staff(lab: &Lab) {
    for n in 0..SERVICES {
        let name = |what: &str| -> &'static str { Box::leak(format!("{what}{n}").into_boxed_str()) };
        lab.host.listen(name("out"), &format!("127.0.0.1:{}", out(n)));
        lab.host.listen(name("in"), &format!("[::]:{}", public(n)));
        lab.host.listen(name("app"), &format!("[::]:{}", app(n)));
    }
}

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// Where a virtual IP of the service with this number is.
fn virtual_ip(number: u16) -> SocketAddr {
    at(&format!("240.0.1.{number}:80"))
}

fn reached(outcome: Outcome) -> (String, String) {
    match outcome {
        Outcome::Reached { who, original, .. } => (who, original),
        other => (format!("{other:?}"), String::new()),
    }
}

/// Both directions of one service: who answered, and where the caller wanted to go.
fn directions(lab: &Lab, n: u16) -> [(String, String); 3] {
    let inwards = at(&format!("10.9.0.2:{}", app(n)));
    [
        reached(lab.host.dial(uid(n), virtual_ip(n))),
        reached(lab.host.dial(uid(n), at("10.9.0.1:80"))),
        reached(lab.peer.dial(0, inwards)),
    ]
}

fn own(n: u16) -> [(String, String); 3] {
    [
        (format!("out{n}"), virtual_ip(n).to_string()),
        (format!("out{n}"), "10.9.0.1:80".to_owned()),
        (format!("in{n}"), format!("10.9.0.2:{}", app(n))),
    ]
}

/// Row 23 of a hundred: everybody's traffic ends at the own sidecar, and at nobody else's.
fn each_has_its_own(driver: Driver) {
    let lab = Lab::new();
    staff(&lab);
    let firewall = move || driver().apply(&live(hundred())).unwrap();
    lab.host.run(firewall);
    for n in 0..SERVICES {
        assert_eq!(directions(&lab, n), own(n), "service {n}");
    }
    // Who is no service's user has no sidecar, and another service's app is reached as on any host.
    assert_eq!(reached(lab.host.dial(NOBODY, at("10.9.0.1:80"))).0, "peer");
    assert_eq!(reached(lab.host.dial(uid(1), at(&format!("10.9.0.2:{}", app(2))))).0, "app2");
    assert_eq!(lab.on_the_wire().0, 0, "nothing for virtual IPs on the wire");
}

/// What may happen to one service, one after the other.
fn fates() -> Vec<Desired> {
    let down = |mut desired: Desired| {
        desired.live.remove(&id(OTHER));
        desired
    };
    let mut moved = hundred();
    moved.outbound.insert(id(OTHER), outbound(Who::Uid(uid(500)), out(OTHER)));
    moved.inbound.insert(id(OTHER), inbound(InboundPorts::One(app(500)), public(OTHER)));
    let mut bypassing = hundred();
    if let Some(capture) = bypassing.outbound.get_mut(&id(OTHER)) {
        capture.bypass = bypasses(&["3306", "9000-9100"], &["10.50.0.0/16"]);
    }
    let mut gone = hundred();
    gone.outbound.remove(&id(OTHER));
    gone.inbound.remove(&id(OTHER));
    let all = [down(live(hundred())), live(moved), live(bypassing), live(gone), live(hundred())];
    let numbered = all.into_iter().zip(1..).map(|(mut desired, number)| {
        desired.policy.generation.number = number;
        desired
    });
    numbered.collect()
}

/// One fails, comes back, changes its user and port, gets bypasses, goes: 99 others see nothing.
fn the_others_see_nothing(driver: Driver) {
    let lab = Lab::new();
    staff(&lab);
    let (fates, before) = (fates(), live(hundred()));
    lab.host.run(move || driver().apply(&before).unwrap());
    let stop = Arc::new(AtomicBool::new(false));
    let mut callers = Vec::new();
    for quarter in 0..4 {
        let stop = Arc::clone(&stop);
        let work = move || {
            let (mut calls, mut bad) = (0_u32, Vec::new());
            let others: Vec<u16> = (quarter * 25..(quarter + 1) * 25).filter(|n| *n != OTHER).collect();
            while !stop.load(Ordering::Acquire) {
                for n in &others {
                    let got = reached(Call::to_as(uid(*n), virtual_ip(*n)));
                    calls += 1;
                    if got != own(*n)[0] {
                        bad.push((*n, got));
                    }
                }
            }
            (calls, bad)
        };
        callers.push(lab.host.run(move || thread::spawn(work)));
    }
    let outside = {
        let stop = Arc::clone(&stop);
        let work = move || {
            let (mut calls, mut bad) = (0_u32, Vec::new());
            while !stop.load(Ordering::Acquire) {
                for n in (0..SERVICES).filter(|n| *n != OTHER) {
                    let got = reached(Call::to_as(0, at(&format!("10.9.0.2:{}", app(n)))));
                    calls += 1;
                    if got != own(n)[2] {
                        bad.push((n, got));
                    }
                }
            }
            (calls, bad)
        };
        lab.peer.run(move || thread::spawn(work))
    };
    let changes = lab.host.run(move || {
        let firewall = driver();
        let (started, mut changes) = (Instant::now(), 0);
        while started.elapsed() < Duration::from_secs(4) || changes < fates.len() {
            firewall.apply(&fates[changes % fates.len()]).unwrap();
            changes += 1;
        }
        firewall.apply(&fates[0]).unwrap();
        changes
    });
    stop.store(true, Ordering::Release);
    let mut calls = 0;
    for caller in callers.into_iter().chain([outside]) {
        let (made, bad) = caller.join().unwrap();
        assert!(bad.is_empty(), "{} of {made}: {:?}", bad.len(), &bad[..bad.len().min(3)]);
        calls += made;
    }
    println!("{calls} connections of 99 services during {changes} changes of one");
    assert!(calls > 500 && changes >= 5);
    // The one that is down is closed, both ways; the rest as ever.
    assert_eq!(lab.host.dial(uid(OTHER), virtual_ip(OTHER)), Outcome::Refused);
    assert_eq!(lab.peer.dial(0, at(&format!("10.9.0.2:{}", app(OTHER)))), Outcome::Refused);
    assert_eq!(directions(&lab, OTHER + 1), own(OTHER + 1));
}

cases!(each_has_its_own, the_others_see_nothing);
