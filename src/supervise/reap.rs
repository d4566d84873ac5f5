//! Reaping what nobody waits for. As process number 1 of a container, enmesh inherits every process
//! whose parent has ended, and must take their ends, or they stay as zombies.

use std::time::Duration;

use nix::errno::Errno;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};

/// How long an ended process is left for whoever may wait for it. Our own children are waited for
/// within milliseconds; the kernel does not say which of the others are ours.
const GRACE: Duration = Duration::from_millis(500);

/// Whether this process inherits orphans without having asked for it.
pub fn is_init() -> bool {
    std::process::id() == 1
}

/// Reaps orphans until dropped. Wakes up only when a child ends.
///
/// # Errors
/// When the process cannot listen for SIGCHLD.
pub async fn reap_orphans() -> std::io::Result<()> {
    let mut ends = signal(SignalKind::child())?;
    let mut left = None;
    loop {
        match ended_child() {
            Some(pid) if left == Some(pid) => {
                let _ = waitpid(pid, Some(WaitPidFlag::WNOHANG));
                left = None;
            }
            Some(pid) => {
                left = Some(pid);
                tokio::time::sleep(GRACE).await;
            }
            None => {
                left = None;
                ends.recv().await;
            }
        }
    }
}

/// A child that has ended and was not waited for; leaves it as it is.
fn ended_child() -> Option<Pid> {
    let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    match waitid(Id::All, look) {
        Ok(WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, ..)) => Some(pid),
        Ok(_) | Err(Errno::ECHILD) => None,
        Err(error) => {
            tracing::debug!(%error, "cannot look for ended children");
            None
        }
    }
}
