//! What `explain` says against what the kernel does: made-up policies are loaded into a namespace, and
//! thousands of real connections and datagrams show where they end; and what `explain --live` sees. Needs root: `cargo test --features
//! netns-tests --test netns_explain`.
//!
//! `ENMESH_SEED` repeats a run, or makes another one.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "in a test a failure is a panic")]
#![allow(clippy::indexing_slicing, clippy::print_stderr, reason = "in a test a failure is a panic")]

#[path = "explain/chance.rs"]
mod chance;
#[path = "../support/host_bed.rs"]
mod host_bed;
#[path = "redirect/lab.rs"]
#[allow(dead_code, reason = "only its namespaces are of use here")]
mod lab;
#[path = "explain/live.rs"]
mod live;
#[path = "explain/range.rs"]
mod range;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use enmesh::config::value::ServiceId;
use enmesh::plan::RedirectPolicy;
use enmesh::redirect::{Flavour, Flow, Origin, Transport, Verdict, explain, render_text};
use rand::SeedableRng;
use rand::rngs::StdRng;
use range::{Place, Range, Seen};

/// Packets for each policy: many, since a policy takes longer to load than packets take to get through.
const PACKETS: usize = 80;

/// The addresses of the host on the range.
const OWN: [&str; 6] = ["10.9.0.2", "10.9.0.22", "10.8.0.2", "172.17.0.1", "fd09::2", "fd08::2"];

fn own() -> BTreeSet<IpAddr> {
    OWN.iter().map(|text| text.parse().unwrap()).collect()
}

/// Where a flow ends if the verdict is true.
fn expected(flow: &Flow, verdict: &Verdict) -> Seen {
    let ip = flow.to.ip();
    let (place, port) = match verdict {
        Verdict::Refused => return Seen::Refused,
        Verdict::Redirected { port, .. } => (Place::Host, *port),
        Verdict::Resolver { to } => (Place::Host, to.port()),
        Verdict::Direct if ip.is_loopback() || own().contains(&ip) => (Place::Host, flow.to.port()),
        Verdict::Direct if chance::is_behind(ip) => (Place::Behind, range::ANY_PORT),
        Verdict::Direct => (Place::Peer, range::ANY_PORT),
    };
    // What was changed on the way keeps the destination where the other side can ask for it.
    let changed = *verdict != Verdict::Direct && flow.transport == Transport::Tcp;
    Seen::At { place, port, original: changed.then_some(flow.to) }
}

#[test]
fn the_answer_is_what_nftables_does() {
    hold(200, |range, policy, live| range.load(&render_text(policy, live)));
}

#[test]
fn the_answer_is_what_iptables_nft_does() {
    hold(130, |range, policy, live| range.apply(Flavour::Nft, policy, live));
}

#[test]
fn the_answer_is_what_iptables_legacy_does() {
    hold(130, |range, policy, live| range.apply(Flavour::Legacy, policy, live));
}

/// Holds the answers for `policies` policies, each set by `set`, against where the flows end.
fn hold(policies: usize, set: impl Fn(&Range, &RedirectPolicy, &BTreeSet<ServiceId>)) {
    let seed = std::env::var("ENMESH_SEED").map_or(240, |text| text.parse().unwrap());
    let mut chance = StdRng::seed_from_u64(seed);
    let started = Instant::now();
    let range = Range::new();
    let own = own();
    let (mut count, mut wrong) = (0_usize, Vec::new());
    let mut verdicts: BTreeMap<&str, usize> = BTreeMap::new();
    let mut rules: BTreeMap<(&str, String), usize> = BTreeMap::new();
    for number in 0..policies {
        let (policy, live) = chance::policy(&mut chance);
        set(&range, &policy, &live);
        let flows: Vec<Flow> = (0..PACKETS).map(|_| chance::flow(&mut chance, &policy)).collect();
        let seen = range.send(&flows);
        for (flow, seen) in flows.iter().zip(seen) {
            let decision = explain(&policy, &live, flow, &own);
            count += 1;
            let kind = match &decision.verdict {
                Verdict::Direct => "direct",
                Verdict::Redirected { service, .. } => {
                    assert!(service.is_some(), "{flow:?}: {decision:?}");
                    "redirected"
                }
                Verdict::Resolver { .. } => "resolver",
                Verdict::Refused => "refused",
            };
            *verdicts.entry(kind).or_default() += 1;
            assert!(!decision.why.is_empty(), "{flow:?}: {decision:?}");
            let rule = (decision.chain.unwrap_or("-"), decision.rule.clone().unwrap_or_default());
            *rules.entry(rule).or_default() += 1;
            let expected = expected(flow, &decision.verdict);
            if seen != expected {
                let what = format!(
                    "policy {number}: {flow:?}\n  {decision:?}\n  should be {expected:?}, is {seen:?}"
                );
                eprintln!("{what}");
                wrong.push(format!("{what}\n{}", range.rules()));
            }
            // An interface that no rule names is as good as none.
            if let Origin::Outside(Some(_)) = flow.origin
                && policy.inbound.values().all(|capture| capture.bypass_interfaces.is_empty())
            {
                let nameless = Flow { origin: Origin::Outside(None), ..flow.clone() };
                assert_eq!(explain(&policy, &live, &nameless, &own), decision, "{flow:?}");
            }
        }
    }
    let took = started.elapsed();
    eprintln!("{count} flows through {policies} policies in {took:?} (seed {seed}): {verdicts:?}");
    for ((chain, rule), times) in &rules {
        eprintln!("  {times:>6} {chain}: {rule}");
    }
    assert!(wrong.is_empty(), "{} of {count} differ; the first:\n{}", wrong.len(), wrong[0]);
    // A test that meets only easy cases would prove little.
    assert!(count >= 10_000 && rules.len() >= 45, "{count} flows, {} rules", rules.len());
    for (kind, times) in [("direct", 1000), ("redirected", 1000), ("refused", 1000), ("resolver", 30)] {
        assert!(verdicts.get(kind).is_some_and(|count| *count >= times), "{kind}: {verdicts:?}");
    }
    assert!(took < Duration::from_secs(120), "{took:?}");
}
