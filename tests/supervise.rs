//! Reaping orphans, in a process of its own: the reaper takes the end of every child that nobody
//! waits for, so it cannot share a process with other tests.

use std::process::Stdio;
use std::time::{Duration, Instant};

use enmesh::base::process::Identity;
use enmesh::supervise::reap;

/// What the kernel says of it: `None` when it is gone for good, zombies included.
fn state(pid: u32) -> Option<String> {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()
}

#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "the test makes an orphan and a child that enmesh knows nothing of"
)]
fn orphans_are_reaped_and_waited_for_children_are_not() {
    nix::sys::prctl::set_child_subreaper(true).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let tasks = tokio::task::LocalSet::new();
    tasks.block_on(&runtime, async {
        tokio::task::spawn_local(reap::reap_orphans());
        let mut shell = tokio::process::Command::new("/bin/sh");
        shell.args(["-c", "sleep 1 >/dev/null 2>&1 & echo $!"]).stdout(Stdio::piped());
        let output = shell.output().await.unwrap();
        let orphan: u32 = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
        assert!(Identity::of(orphan).is_some(), "the orphan runs, and is ours now");

        let mut child = tokio::process::Command::new("/bin/sh").args(["-c", "exit 7"]).spawn().unwrap();
        assert_eq!(child.wait().await.unwrap().code(), Some(7), "whoever waits gets the status");

        let deadline = Instant::now() + Duration::from_secs(10);
        while state(orphan).is_some() {
            assert!(Instant::now() < deadline, "the orphan is still there: {:?}", state(orphan));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
}
