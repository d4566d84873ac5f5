//! The table that holds the guard once more: nobody but the daemon can touch it, it outlives a flush, and nothing of
//! it is left when the daemon ends, however it ends.

use std::time::Duration;

use enmesh::base::exec;

use crate::host_bed::{self, Bed, LIMIT};

/// What `nft` says, and whether it did what it was told.
fn nft(bed: &Bed, arguments: &str) -> (bool, String) {
    let words: Vec<&str> = arguments.split_whitespace().collect();
    let run = || exec::run(&exec::find("nft").unwrap(), &words, b"", LIMIT).unwrap();
    let output = bed.namespace.run(run).unwrap();
    (output.status.success(), String::from_utf8(output.stdout).unwrap())
}

fn kept(bed: &Bed) -> bool {
    nft(bed, "list tables").1.contains("table inet enmesh_keep")
}

fn becomes(bed: &Bed, what: &str, wanted: bool) {
    let look = || if kept(bed) == wanted { Ok(()) } else { Err(nft(bed, "list ruleset").1) };
    host_bed::until(what, LIMIT, look).unwrap_or_else(|e| panic!("{e}\n{}", bed.log()));
}

/// The rules of the table but for their mark, which counts how often it was made.
fn rules(bed: &Bed) -> Vec<String> {
    let text = nft(bed, "list table inet enmesh_keep").1;
    text.lines().filter(|line| !line.contains("enmesh:keep:")).map(str::to_owned).collect()
}

/// The `nft` that holds it is a child of the daemon.
fn holder(bed: &Bed) -> nix::unistd::Pid {
    let daemon = bed.daemon.as_ref().unwrap().id();
    let children = std::fs::read_to_string(format!("/proc/{daemon}/task/{daemon}/children")).unwrap();
    let is_nft = |pid: &&str| {
        let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline"));
        line.is_ok_and(|line| line.contains("--interactive"))
    };
    let pid = children.split_whitespace().find(is_nft).expect("an nft that holds the table");
    nix::unistd::Pid::from_raw(pid.parse().unwrap())
}

#[test]
fn it_outlives_others_and_ends_with_the_daemon() {
    let mut bed = Bed::new();
    bed.start().await_ready();
    becomes(&bed, "the table", true);
    // What is set on the way to rest would be no repair.
    std::thread::sleep(Duration::from_millis(500));
    let before = rules(&bed);
    assert!(before.iter().any(|line| line.contains("virtual IPs")), "{before:#?}");
    assert!(nft(&bed, "flush ruleset").0 && kept(&bed), "a flush passes it over");
    assert!(!nft(&bed, "delete table inet enmesh_keep").0, "nobody else deletes it");
    assert!(!nft(&bed, "insert rule inet enmesh_keep guard_out accept").0, "nor edits it");
    assert_eq!(rules(&bed), before);
    bed.await_status("the repair", LIMIT, |status| {
        status["rules_repaired"].as_u64().filter(|count| *count > 0)
    });

    // Who holds it is killed, and it goes; the next repair brings both back.
    nix::sys::signal::kill(holder(&bed), nix::sys::signal::Signal::SIGKILL).unwrap();
    becomes(&bed, "the table's end", false);
    assert!(nft(&bed, "flush ruleset").0);
    becomes(&bed, "the table's return", true);
    assert_eq!(rules(&bed), before);

    bed.kill_daemon();
    becomes(&bed, "nothing that is held without a daemon", false);
    assert!(nft(&bed, "list table inet enmesh").0, "the rules themselves stay");

    bed.start().await_ready();
    becomes(&bed, "the table, with the next daemon", true);
    assert_eq!(bed.run(&["down"]).code, Some(0));
    assert!(!nft(&bed, "list ruleset").1.contains("enmesh"), "down leaves nothing");
}
