//! `explain --live`: what the kernel tells of one packet, held against where the plan's answer says it goes; and that
//! nothing of it stays.

use std::os::unix::process::CommandExt;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use enmesh::redirect::{Flavour, Flow, Verdict, explain, render_text};
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::Value;

use crate::host_bed::{API, API_FILE, API_USER, Bed, HOST_FILE, LIMIT, until};
use crate::range::Range;
use crate::{chance, own};

/// How many policies, and packets for each. Every packet takes some programs.
const POLICIES: usize = 12;
const PACKETS: usize = 8;

/// Lets the kernel tell of made-up flows, and holds that against the answers. `told` is whether it tells of our rules.
fn hold(
    told: bool,
    set: impl Fn(
        &Range,
        &enmesh::plan::RedirectPolicy,
        &std::collections::BTreeSet<enmesh::config::value::ServiceId>,
    ),
) {
    let mut chance = StdRng::seed_from_u64(7);
    let (range, own) = (Range::new(), own());
    let (mut wrong, mut ends) = (Vec::new(), [0; 4]);
    for _ in 0..POLICIES {
        let (policy, live) = chance::policy(&mut chance);
        set(&range, &policy, &live);
        let before = tables(&range);
        for _ in 0..PACKETS {
            let flow: Flow = chance::flow(&mut chance, &policy);
            let decision = explain(&policy, &live, &flow, &own);
            let seen = range.watch(&flow);
            let agrees = seen.as_ref().is_some_and(|seen| {
                seen.is(&flow, &decision) && (seen.rules_told == told || policy.is_empty())
            });
            if !agrees {
                wrong.push(format!("{flow:?}\n  {decision:?}\n  {seen:?}"));
            }
            let kind = match &decision.verdict {
                Verdict::Direct => 0,
                Verdict::Redirected { .. } => 1,
                Verdict::Resolver { .. } => 2,
                Verdict::Refused => 3,
            };
            ends[kind] += 1;
        }
        assert_eq!(tables(&range), before, "something stays");
    }
    eprintln!("direct, redirected, resolver, refused: {ends:?}");
    assert!(wrong.is_empty(), "{} differ; the first:\n{}", wrong.len(), wrong[0]);
    assert!(ends[0] > 5 && ends[1] > 5 && ends[3] > 5, "{ends:?}");
}

fn tables(range: &Range) -> Vec<String> {
    range.rules().lines().filter(|line| line.starts_with("table ")).map(str::to_owned).collect()
}

#[test]
fn it_tells_what_nftables_does() {
    hold(true, |range, policy, live| range.load(&render_text(policy, live)));
}

#[test]
fn it_tells_what_iptables_nft_does() {
    hold(true, |range, policy, live| range.apply(Flavour::Nft, policy, live));
}

/// The way of the packet, and not the rule.
#[test]
fn it_tells_what_iptables_legacy_does() {
    hold(false, |range, policy, live| range.apply(Flavour::Legacy, policy, live));
}

/// A host whose sidecars are live, with ways to go for both families.
fn bed() -> Bed {
    bed_with("nftables")
}

fn bed_with(driver: &str) -> Bed {
    let mut bed = Bed::new();
    bed.write(HOST_FILE, format!("driver = \"{driver}\"\n{}", bed.host_file("")));
    let route = |family: &str, net: &str| {
        let arguments = [family, "route", "add", net, "dev", "lo"];
        let run =
            || enmesh::base::exec::run(&enmesh::base::exec::find("ip").unwrap(), &arguments, b"", LIMIT);
        assert!(bed.namespace.run(run).unwrap().unwrap().status.success());
    };
    route("-4", "10.99.0.0/16");
    route("-6", "fd99::/64");
    bed.start().await_ready();
    bed
}

fn trace_tables(bed: &Bed) -> Vec<String> {
    let listed = bed.nft(&["list", "tables"], "").unwrap();
    listed.lines().filter(|line| line.contains("trace")).map(str::to_owned).collect()
}

#[test]
fn the_command_shows_both_answers() {
    let bed = bed();
    for to in ["10.99.0.7:21000", "[fd99::7]:80", "10.99.1.1:443"] {
        let said = bed.run(&["explain", "--live", "--send", "--user", "api-app", to, "--json"]);
        assert_eq!(said.code, Some(0), "{to}: {said:?}");
        let answer = said.json();
        let live = &answer["live"];
        assert_eq!((&live["agrees"], &live["fault"]), (&"live".into(), &Value::Null), "{answer:#}");
        assert_eq!(live["seen"]["to"], to, "{answer:#}");
        assert_eq!(live["seen"]["rule"]["comment"], answer["decision"]["rule"], "{answer:#}");
        let port = answer["decision"]["verdict"]["port"].as_u64().unwrap();
        let loopback = if to.starts_with('[') { "[::1]" } else { "127.0.0.1" };
        assert_eq!(live["seen"]["arrived"], format!("{loopback}:{port}"), "{answer:#}");
    }
    let said = bed.run(&["explain", "--live", "--send", "--uid", "0", "10.99.1.1:443"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    for line in
        ["went on as it was", "  rule   \"users that are not captured\" in chain bypass", "as the plan says"]
    {
        assert!(said.out.contains(line), "{line}: {said:?}");
    }
    // Another user's packet is not the one that is waited for, and nobody sends any.
    let said = bed.run(&["explain", "--live", "--wait", "300ms", "--uid", "4242", "10.99.1.1:443"]);
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.err.contains("ENM-R070"), "{said:?}");
    // Without the privilege nothing is done.
    let said = bed.run_as(65534, &["explain", "--live", "--uid", "4242", "10.99.1.1:443"]);
    assert_eq!(said.code, Some(77), "{said:?}");
    assert!(trace_tables(&bed).is_empty());
    assert_eq!(bed.status()["rules_repaired"], 0, "that was no edit of our rules");
}

/// The application's own packet, which nobody but the application sends.
#[test]
fn it_waits_for_the_application() {
    let bed = bed();
    let mut command =
        bed.command(&["explain", "--live", "--wait", "20s", "--uid", "10001", "10.99.1.1:443", "--json"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::null());
    let child = bed.namespace.run(|| child.spawn().unwrap()).unwrap();
    until("the table", LIMIT, || if trace_tables(&bed).is_empty() { Err("none") } else { Ok(()) }).unwrap();
    let dial = || {
        thread::spawn(|| {
            nix::unistd::setfsuid(nix::unistd::Uid::from_raw(API_USER));
            drop(std::net::TcpStream::connect(("10.99.1.1", 443)));
        })
        .join()
        .unwrap();
    };
    bed.namespace.run(dial).unwrap();
    let output = child.wait_with_output().unwrap();
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["live"]["agrees"], "live", "{answer:#}");
    assert!(trace_tables(&bed).is_empty());
}

#[test]
fn what_differs_is_said_with_both() {
    let mut bed = bed();
    // What the files say is not in force while no daemon runs.
    bed.kill_daemon();
    bed.write(API_FILE, format!("{API}bypass.outbound_ports = [443]\n"));
    let arguments = ["explain", "--live", "--send", "--user", "api-app", "10.99.1.1:443"];
    let said = bed.run(&arguments);
    assert_eq!(said.code, Some(1), "{said:?}");
    for word in ["ENM-D070", "to the user's sidecar", "a user's bypassed ports", "not as the plan says"] {
        assert!(format!("{}{}", said.out, said.err).contains(word), "{word}: {said:?}");
    }
    // What others drop is said, too.
    bed.write(API_FILE, API);
    let wall = "table inet wall { chain out { type filter hook output priority 10; tcp dport 443 drop; tcp dport 15001-15099 drop; }; }";
    bed.nft(&["-f", "-"], wall).unwrap();
    let said = bed.run(&arguments);
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.out.contains("of chain out of table inet wall drops it"), "{said:?}");
    assert!(said.err.contains("ENM-D070"), "{said:?}");
}

/// Row 79 of docs/traffic.md.
#[test]
fn a_host_that_has_lost_its_rules_is_told_from_one_that_has_them() {
    for driver in ["nftables", "iptables"] {
        let mut bed = bed_with(driver);
        let arguments = ["explain", "--live", "--send", "--user", "api-app", "10.99.1.1:443"];
        let said = bed.run(&arguments);
        assert_eq!(said.code, Some(0), "{driver}: {said:?}");
        bed.kill_daemon();
        bed.nft(&["flush", "ruleset"], "").unwrap();
        let started = Instant::now();
        let said = bed.run(&arguments);
        assert_eq!(said.code, Some(1), "{driver}: {said:?}");
        assert!(
            said.err.contains("ENM-D070") && said.err.contains("no rules of enmesh"),
            "{driver}: {said:?}"
        );
        assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    }
}

/// Killed, it leaves a table that traces nothing once its time is over, and the next one removes it.
#[test]
fn killed_it_leaves_nothing_that_lasts() {
    let bed = bed();
    let mut command = bed.command(&["explain", "--live", "--wait", "1s", "--uid", "4242", "10.99.1.1:443"]);
    let command = command.stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    let mut child = bed.namespace.run(|| command.spawn().unwrap()).unwrap();
    until("the table", LIMIT, || if trace_tables(&bed).is_empty() { Err("none") } else { Ok(()) }).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let left = trace_tables(&bed);
    assert_eq!(left.len(), 1, "{left:?}");
    let name = left[0].rsplit(' ').next().unwrap();
    let lapsed = || {
        let set = bed.nft(&["list", "set", "inet", name, "armed"], "").unwrap();
        if set.contains("expires") { Err(set) } else { Ok(()) }
    };
    until("the kernel to take it back", Duration::from_secs(10), lapsed).unwrap();
    let said = bed.run(&["explain", "--live", "--wait", "100ms", "--uid", "4242", "10.99.1.1:443"]);
    assert!(said.err.contains("ENM-R070"), "{said:?}");
    assert!(trace_tables(&bed).is_empty());
}
