//! Somebody else changes the chains of the driver iptables under a real daemon. With `iptables-nft` the kernel tells
//! of it at once; with `iptables-legacy` nobody does, and the daemon looks now and then.

use std::fs;
use std::time::{Duration, Instant};

use enmesh::base::exec;
use serde_json::Value;

use crate::host_bed::{self, Bed, HOST_FILE, LIMIT};

/// How often each change is made.
const ROUNDS: usize = 3;
/// What a look may take to come round, twice, on a busy machine.
const LOOK: Duration = Duration::from_secs(20);

/// A host whose daemon uses this flavour and has come to rest.
fn settled(flavour: &str) -> Bed {
    let mut bed = Bed::new();
    bed.write(HOST_FILE, format!("driver = \"iptables\"\n{}", bed.host_file("")));
    // The flavour that somebody uses is taken.
    tool(&bed, &format!("iptables-{flavour}"), "-A INPUT -p tcp --dport 9 -j ACCEPT");
    bed.start().await_ready();
    std::thread::sleep(Duration::from_millis(300));
    let saved = tool(&bed, &format!("iptables-{flavour}-save"), "");
    assert!(saved.contains("ENMESH_OUT"), "{saved}\n{}", bed.log());
    bed
}

fn tool(bed: &Bed, program: &str, arguments: &str) -> String {
    let words: Vec<&str> = arguments.split_whitespace().collect();
    let run = || exec::run(&exec::find(program).unwrap(), &words, b"", LIMIT).unwrap();
    let output = bed.namespace.run(run).unwrap();
    assert!(output.status.success(), "{program} {arguments}: {}", output.stderr);
    String::from_utf8(output.stdout).unwrap()
}

/// What is ours in both families, without counters and what a repair numbers anew, sorted, and where it stands: nat's
/// rules that nothing follows and others that nothing precedes are marked.
fn ours(bed: &Bed, flavour: &str) -> Vec<String> {
    let mut rules = Vec::new();
    for family in ["iptables", "ip6tables"] {
        let saved = tool(bed, &format!("{family}-{flavour}-save"), "");
        let lines: Vec<&str> = saved.lines().collect();
        let chain_of =
            |line: &&str| line.strip_prefix("-A ").and_then(|rest| rest.split(' ').next().map(str::to_owned));
        let mut table = "";
        for (place, line) in lines.iter().enumerate() {
            table = line.strip_prefix('*').unwrap_or(table);
            if line.starts_with("-A ") && line.contains("ENMESH_") && !line.contains("enmesh:gen:") {
                let next_to = if table == "nat" { lines.get(place + 1) } else { lines.get(place - 1) };
                let alone = next_to.and_then(chain_of) != chain_of(line);
                rules.push(format!("{family} {table} {line}{}", if alone { " (at the end)" } else { "" }));
            }
        }
    }
    rules.sort();
    rules
}

fn count(bed: &Bed) -> u64 {
    bed.status()["rules_repaired"].as_u64().unwrap()
}

/// Makes a change and waits for its repair; returns what status tells of it and how long it took until the rules were
/// seen to be right again.
fn changed(bed: &Bed, flavour: &str, program: &str, edit: &str, limit: Duration) -> (Value, Duration) {
    let (right, before) = (ours(bed, flavour), count(bed));
    tool(bed, program, edit);
    let started = Instant::now();
    let back = host_bed::until("the rules' return", limit, || {
        let now = ours(bed, flavour);
        if now == right { Ok(started.elapsed()) } else { Err(format!("{now:#?} instead of {right:#?}")) }
    });
    let took = back.unwrap_or_else(|e| panic!("{program} {edit}: {e}\n{}", bed.log()));
    let repair = host_bed::until("the count", LIMIT, || {
        let status = bed.status();
        if status["rules_repaired"].as_u64() > Some(before) {
            Ok(status["last_repair"].clone())
        } else {
            Err(status)
        }
    });
    (repair.unwrap_or_else(|e| panic!("{program} {edit}: {e}\n{}", bed.log())), took)
}

/// The program, what it does, and what is told.
const EDITS: [(&str, &str, &str); 7] = [
    ("nft", "flush ruleset", "deleted table ip nat"),
    ("nft", "delete table ip filter", "deleted table ip filter"),
    ("iptables-nft", "-t nat -D ENMESH_OUT 1", "deleted 1 rule of chain ENMESH_OUT in table ip nat"),
    ("ip6tables-nft", "-t nat -F ENMESH_OUT", "of chain ENMESH_OUT in table ip6 nat"),
    ("iptables-nft", "-D OUTPUT -j ENMESH_GUARD_OUT", "deleted 1 rule of chain OUTPUT in table ip filter"),
    (
        "iptables-nft",
        "-I OUTPUT 1 -p tcp --dport 9 -j ACCEPT",
        "added 1 rule of chain OUTPUT in table ip filter",
    ),
    // As a Docker does that starts later.
    (
        "iptables-nft",
        "-t nat -A PREROUTING -p tcp --dport 9 -j ACCEPT",
        "added 1 rule of chain PREROUTING in table ip nat",
    ),
];

/// Rows 71 and 72.
#[test]
fn of_iptables_nft_every_change_is_heard_repaired_counted_and_told() {
    let bed = settled("nft");
    for (program, edit, told) in EDITS {
        let mut times = Vec::new();
        for _ in 0..ROUNDS {
            let (repair, took) = changed(&bed, "nft", program, edit, LIMIT);
            let what = repair["what"].as_array().unwrap();
            assert!(what.iter().any(|line| line.as_str().unwrap().contains(told)), "{edit}: {repair:#}");
            // The kernel's name of the process: programs of iptables-nft are one program.
            assert!(repair["by"].as_str().unwrap().contains(" (process "), "{repair:#}");
            times.push(took);
        }
        times.sort();
        eprintln!(
            "{program} {edit}: right again after {:?} (median of {ROUNDS}), looking included",
            times[ROUNDS / 2]
        );
    }
    let log = bed.log();
    assert!(log.matches("ENM-R011:").count() >= EDITS.len() * ROUNDS, "{log}");
    assert_eq!(bed.status()["ready"], true);
}

/// Containers that come and go change chains that are nobody's business; nor does the daemon hear itself.
#[test]
fn of_iptables_nft_the_chains_of_others_are_theirs() {
    let bed = settled("nft");
    tool(&bed, "iptables-nft", "-t nat -N THEIRS");
    for port in 1..=20 {
        tool(&bed, "iptables-nft", &format!("-t nat -A THEIRS -p tcp --dport {port} -j ACCEPT"));
        tool(&bed, "iptables-nft", &format!("-t nat -A POSTROUTING -p tcp --dport {port} -j ACCEPT"));
    }
    let (own, work) = (run_time(&bed), children_time(&bed));
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(count(&bed), 0, "{}", bed.log());
    // A count in ticks of 10 ms takes in what was begun before; this does not.
    let own = run_time(&bed) - own;
    assert!(own < Duration::from_millis(10), "{own:?}\n{}", bed.log());
    assert_eq!(children_time(&bed) - work, 0, "programs were run\n{}", bed.log());
}

/// Own processor time, to the nanosecond.
fn run_time(bed: &Bed) -> Duration {
    let tasks = format!("/proc/{}/task", bed.daemon.as_ref().unwrap().id());
    let run = |thread: fs::DirEntry| {
        let text = fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default();
        text.split(' ').next().and_then(|run| run.parse().ok()).map_or(Duration::ZERO, Duration::from_nanos)
    };
    fs::read_dir(tasks).unwrap().flatten().map(run).sum()
}

/// Own and children's processor time, in ticks of 10 ms.
fn processor_time(bed: &Bed) -> u64 {
    ticks(bed, 11..15)
}

/// That of children that have ended.
fn children_time(bed: &Bed) -> u64 {
    ticks(bed, 13..15)
}

fn ticks(bed: &Bed, fields: std::ops::Range<usize>) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", bed.daemon.as_ref().unwrap().id())).unwrap();
    let numbers: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    numbers[fields].iter().map(|number| number.parse::<u64>().unwrap()).sum()
}

/// Rows 71 and 72, as far as they can hold.
#[test]
fn of_iptables_legacy_a_change_is_seen_within_one_look() {
    let bed = settled("legacy");
    assert!(bed.log().contains("announces no changes"), "{}", bed.log());
    for (program, edit, told) in [
        ("iptables-legacy", "-t nat -F", " in table nat (IPv4)"),
        (
            "iptables-legacy",
            "-I OUTPUT 1 -p tcp --dport 9 -j ACCEPT",
            "~ jump from OUTPUT in table filter (IPv4)",
        ),
    ] {
        let (repair, took) = changed(&bed, "legacy", program, edit, LOOK);
        let what = repair["what"].as_array().unwrap();
        assert!(what.iter().any(|line| line.as_str().unwrap().contains(told)), "{edit}: {repair:#}");
        eprintln!("{program} {edit}: right again after {took:?}");
    }
    assert!(bed.log().contains("ENM-R011: somebody changed the rules"), "{}", bed.log());
    let (work, started) = (processor_time(&bed), Instant::now());
    std::thread::sleep(Duration::from_secs(11));
    let worked = processor_time(&bed) - work;
    eprintln!("looking: {worked} ticks of 10 ms in {:?}", started.elapsed());
    assert!(worked < 30, "{worked} ticks of 10 ms");
    assert_eq!(count(&bed), 2, "a look that finds nothing is no repair");
}
