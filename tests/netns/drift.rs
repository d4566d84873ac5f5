//! Somebody else changes the rules under a real daemon: it hears of it from the kernel, sets them
//! again, counts and tells it, and sleeps otherwise. Needs root: `cargo test --features netns-tests
//! --test netns_drift`.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "in a test a failure is a panic")]
#![allow(clippy::indexing_slicing, clippy::print_stderr, reason = "in a test a failure is a panic")]

#[path = "../support/host_bed.rs"]
mod host_bed;

use std::fs;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use enmesh::base::exec;
use enmesh::netns;
use enmesh::redirect::{Drift, OwnCommits};
use host_bed::{Bed, LIMIT, SOON};
use nix::sys::signal::Signal;
use serde_json::Value;

/// How often each change is made.
const ROUNDS: usize = 10;

fn settled() -> Bed {
    let mut bed = Bed::new();
    bed.start().await_ready();
    // The last changes of the start have been announced by then.
    thread::sleep(Duration::from_millis(300));
    bed
}

fn repaired(bed: &Bed) -> u64 {
    bed.status()["rules_repaired"].as_u64().unwrap()
}

/// The table as it is, without what a repair may number anew.
fn table(bed: &Bed) -> String {
    let rules = bed.rules();
    rules.lines().filter(|line| !line.contains("enmesh:gen:")).collect::<Vec<_>>().join("\n")
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// Hears when enmesh's table changes, by whomever: the same ears that the daemon has, in a second pair.
struct Ears {
    heard: mpsc::Receiver<Instant>,
    // The thread ends soon after this is gone.
    _alive: Arc<()>,
}

impl Ears {
    fn new(bed: &Bed) -> Ears {
        let (sender, heard) = mpsc::channel();
        let alive = Arc::new(());
        let wanted = Arc::downgrade(&alive);
        let (born, ready) = mpsc::channel();
        let listen = async move || {
            let mut drift = Drift::watch(OwnCommits::default()).unwrap();
            born.send(()).unwrap();
            while wanted.upgrade().is_some() {
                if let Ok(event) = tokio::time::timeout(Duration::from_millis(100), drift.next()).await {
                    event.unwrap();
                    let _ = sender.send(Instant::now());
                }
            }
        };
        drop(bed.namespace.spawn(move || netns::block_on(listen())).unwrap());
        ready.recv().unwrap();
        Ears { heard, _alive: alive }
    }

    fn next(&self) -> Instant {
        self.heard.recv_timeout(SOON).expect("a change of the table")
    }
}

/// Changes the rules with nft again and again, and returns how long it took from the kernel's word of
/// the change to its word of the repair.
fn times_of(bed: &Bed, edit: &str) -> Vec<Duration> {
    let right = table(bed);
    let before = repaired(bed);
    let ears = Ears::new(bed);
    let mut times = Vec::new();
    for round in 1..=ROUNDS {
        bed.nft(&["-f", "-"], edit).unwrap();
        let changed = ears.next();
        // On a busy machine both may be heard as one burst; that it was repaired shows in the count.
        times.extend(ears.heard.recv_timeout(Duration::from_secs(1)).ok().map(|back| back - changed));
        let counted = before + u64::try_from(round).unwrap();
        host_bed::until("the count", SOON, || match repaired(bed) {
            count if count == counted => Ok(()),
            count => Err(format!("{count} instead of {counted}")),
        })
        .unwrap_or_else(|e| panic!("{edit}: {e}\n{}", bed.log()));
        assert_eq!(table(bed), right, "{edit}\n{}", bed.log());
        thread::sleep(Duration::from_millis(110));
    }
    assert!(times.len() > ROUNDS / 2, "{edit}: {} of {ROUNDS} repairs were heard of", times.len());
    times
}

/// The edit, and what log and status say of it.
const EDITS: [(&str, &str); 7] = [
    ("flush ruleset", "deleted table inet enmesh"),
    ("delete table inet enmesh", "deleted table inet enmesh"),
    ("delete element inet enmesh uid_redirect { 10001 }", "deleted 1 element of set uid_redirect"),
    ("flush chain inet enmesh guard_out", "rules of chain guard_out"),
    ("add rule inet enmesh out tcp dport 9 accept", "- rule in out: tcp dport == 9"),
    ("add element inet enmesh bypass_uids { 10001 }", "- set bypass_uids: 10001"),
    ("add chain inet enmesh more", "- chain more"),
];

/// Rows 71 and 72.
#[test]
fn every_change_is_repaired_counted_and_told() {
    let bed = settled();
    for (edit, told) in EDITS {
        let mut times = times_of(&bed, edit);
        let status = bed.status();
        let last = &status["last_repair"];
        let what = last["what"].as_array().unwrap();
        let said = |line: &Value| line.as_str().unwrap().contains(told);
        assert!(what.iter().any(said), "{edit}: {last:#}");
        assert!(last["by"].as_str().unwrap().starts_with("`nft` (process "), "{last:#}");
        assert_eq!((&status["ready"], &last["contested"]), (&Value::Bool(true), &Value::Bool(false)));
        let middle = median(&mut times);
        eprintln!("{edit}: back after {middle:?} (median of {ROUNDS}), at most {:?}", times[ROUNDS - 1]);
        assert!(middle < Duration::from_millis(100), "{edit}: {middle:?}");
    }
    let count = EDITS.len() * ROUNDS;
    let log = bed.log();
    assert_eq!(log.matches("ENM-R011:").count(), count, "{log}");
    assert!(log.contains("changed the rules") && log.contains("`nft` (process "), "{log}");
    let text = bed.run(&["status"]).out;
    assert!(text.contains(&format!("rules set again {count} times; last after `nft`")), "{text}");
    let metrics = bed.say("GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".as_bytes());
    assert!(metrics.contains(&format!("enmesh_rules_repaired_total {count}")), "{metrics}");
}

#[test]
fn the_route_of_virtual_ips_comes_back() {
    let bed = settled();
    let ip = |arguments: &[&str]| {
        let run = || exec::run(&exec::find("ip").unwrap(), arguments, b"", LIMIT).unwrap();
        let output = bed.namespace.run(run).unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", output.stderr);
        String::from_utf8(output.stdout).unwrap()
    };
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        ip(&["route", "del", "240.0.0.0/5"]);
        let started = Instant::now();
        host_bed::until("the route's return", SOON, || {
            let routes = ip(&["route", "show", "240.0.0.0/5"]);
            if routes.contains("dev lo") { Ok(()) } else { Err(routes) }
        })
        .unwrap_or_else(|e| panic!("{e}\n{}", bed.log()));
        times.push(started.elapsed());
        thread::sleep(Duration::from_millis(110));
    }
    eprintln!("route: back after {:?} (median of {ROUNDS})", median(&mut times));
    assert_eq!(repaired(&bed), u64::try_from(ROUNDS).unwrap());
    assert!(bed.log().contains("deleted the route of virtual IPs"), "{}", bed.log());
}

/// Voluntary context switches of the daemon's threads: how often it has slept and so how often it woke.
fn wakes(bed: &Bed) -> u64 {
    let pid = bed.daemon.as_ref().unwrap().id();
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let switches = tasks.filter_map(|task| {
        let status = fs::read_to_string(task.unwrap().path().join("status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
        line.trim().parse::<u64>().ok()
    });
    switches.sum()
}

fn processor_time(bed: &Bed) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", bed.daemon.as_ref().unwrap().id())).unwrap();
    let numbers: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    // utime and stime, fields 14 and 15 of the line; in clock ticks of 10 ms.
    numbers[11].parse::<u64>().unwrap() + numbers[12].parse::<u64>().unwrap()
}

#[test]
fn it_sleeps_while_nothing_happens() {
    let bed = settled();
    let before = wakes(&bed);
    thread::sleep(Duration::from_secs(3));
    let woken = wakes(&bed) - before;
    assert!(woken <= 1, "{woken} wake-ups in 3 s\n{}", bed.log());
}

#[test]
fn the_tables_of_others_are_theirs() {
    let bed = settled();
    let right = bed.rules();
    let (before, time) = (wakes(&bed), processor_time(&bed));
    let edits = 200;
    let script: Vec<String> =
        (0..edits).map(|n| format!("add rule inet other c tcp dport {} drop", n + 1)).collect();
    bed.nft(&["-f", "-"], "add table inet other; add chain inet other c; add table ip enmesh").unwrap();
    for line in script.chunks(10) {
        bed.nft(&["-f", "-"], &line.join("\n")).unwrap();
    }
    bed.nft(&["-f", "-"], "delete table inet other; delete table ip enmesh").unwrap();
    thread::sleep(Duration::from_millis(500));
    assert_eq!((repaired(&bed), bed.rules()), (0, right));
    // Each of the 22 commits may wake it; none makes it work.
    let (woken, worked) = (wakes(&bed) - before, processor_time(&bed) - time);
    assert!(woken < 100, "{woken} wake-ups");
    assert!(worked <= 3, "{worked} ticks of 10 ms");
}

#[test]
fn a_quarrel_is_bounded_and_won() {
    let bed = settled();
    let right = table(&bed);
    let started = Instant::now();
    for n in 1..=100 {
        bed.nft(&["flush", "ruleset"], "").unwrap();
        let next = Duration::from_millis(10) * n;
        thread::sleep(next.saturating_sub(started.elapsed()));
    }
    let lasted = started.elapsed();
    let won = host_bed::until("the table's return", SOON, || {
        let now = table(&bed);
        if now == right { Ok(()) } else { Err(now) }
    });
    won.unwrap_or_else(|e| panic!("{e}\n{}", bed.log()));
    let status = bed.status();
    let count = status["rules_repaired"].as_u64().unwrap();
    eprintln!("100 flushes in {lasted:?}: {count} repairs");
    assert!((1..=25).contains(&count), "{count} repairs in {lasted:?}\n{}", bed.log());
    assert!(bed.log().contains("ENM-R012"), "{}", bed.log());
    assert_eq!(status["ready"], true, "{status:#}");
    // Over: what comes next is repaired at once, and nothing runs on.
    thread::sleep(Duration::from_millis(3500));
    let before = wakes(&bed);
    thread::sleep(Duration::from_secs(1));
    assert!(wakes(&bed) - before <= 1);
    times_of(&bed, "flush ruleset");
}

/// More happens than the kernel keeps for a daemon that does not get to run: it is told that it missed
/// something, and looks.
#[test]
fn what_was_missed_is_looked_after() {
    let bed = settled();
    let right = table(&bed);
    bed.nft(&["-f", "-"], "add table inet other; add set inet other s { type ipv4_addr; }").unwrap();
    bed.signal(Signal::SIGSTOP);
    for part in 0..8_u32 {
        let elements: Vec<String> = (0..30_000)
            .map(|n| std::net::Ipv4Addr::from_bits(part << 24 | 0x1000_0000 | n).to_string())
            .collect();
        bed.nft(&["-f", "-"], &format!("add element inet other s {{ {} }}", elements.join(","))).unwrap();
    }
    bed.nft(&["delete", "table", "inet", "enmesh"], "").unwrap();
    bed.signal(Signal::SIGCONT);
    let back = host_bed::until("the table's return", SOON, || {
        let now = table(&bed);
        if now == right { Ok(()) } else { Err(now) }
    });
    back.unwrap_or_else(|e| panic!("{e}\n{}", bed.log()));
    host_bed::until("the report", SOON, || {
        let log = bed.log();
        if log.contains("account of it was cut") { Ok(()) } else { Err(log) }
    })
    .unwrap();
    assert_eq!(repaired(&bed), 1);
}
