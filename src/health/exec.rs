//! Checks that are programs.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::oneshot;

use super::CheckStatus;
use super::state::Finding;
use crate::base::exec::{Guest, User, run_guest};

/// How much of each output is kept, in bytes.
const KEEP: u64 = 4096;

/// Ends the program when nobody waits for it any more.
struct Stop(Arc<AtomicBool>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs `command`: exit status 0 passes, 1 warns, anything else is critical.
///
/// It is waited for in a thread of its own, which the daemon's end does not wait for.
pub(super) async fn program(command: &[String], user: Option<User>, limit: Duration) -> Finding {
    let command = command.to_vec();
    let flag = Arc::new(AtomicBool::new(false));
    let stop = Stop(Arc::clone(&flag));
    let (sender, receiver) = oneshot::channel();
    let spawned = std::thread::Builder::new().name("check".to_owned()).spawn(move || {
        let _ = sender.send(run(&command, user, limit, &flag));
    });
    let finding = match spawned {
        Ok(_) => receiver.await.unwrap_or_else(|_| Finding::critical("the check was not run to its end")),
        Err(error) => Finding::critical(format!("no thread for the check: {error}")),
    };
    drop(stop);
    finding
}

fn run(command: &[String], user: Option<User>, limit: Duration, stop: &AtomicBool) -> Finding {
    let Some((program, arguments)) = command.split_first() else {
        return Finding::critical("no program is named");
    };
    let guest = Guest { program: Path::new(program), arguments, user, limit, keep: KEEP };
    let output = match run_guest(&guest, stop) {
        Ok(output) => output,
        Err(fault) => return Finding::critical(fault.message),
    };
    let said = format!("{} {}", String::from_utf8_lossy(&output.stdout), output.stderr);
    match output.status.code() {
        Some(0) => Finding::new(CheckStatus::Passing, &said),
        Some(1) => Finding::new(CheckStatus::Warning, &said),
        Some(code) => Finding::critical(format!("exit status {code}: {said}")),
        None => {
            let signal = output.status.signal().unwrap_or_default();
            Finding::critical(format!("ended by signal {signal}: {said}"))
        }
    }
}
