//! One process: a child of ours, or one that an earlier enmesh left behind. Both are held by a
//! process descriptor, so that a signal reaches this process or nobody.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::unix::AsyncFd;
use tokio::process::{Child, Command};

use super::error::SuperviseError;
use crate::base::process::Identity;
use crate::base::units::{Network, UnitSpec};

/// What a killed process has to vanish in.
const AFTER_KILL: Duration = Duration::from_secs(5);

/// A process that can be waited for and signalled.
#[derive(Debug)]
pub(super) struct Process {
    pid: u32,
    descriptor: AsyncFd<OwnedFd>,
    /// Only of our own child, which must be reaped.
    child: Option<Child>,
}

impl Process {
    /// Starts what `spec` says.
    pub(super) fn spawn(spec: &UnitSpec) -> Result<Self, SuperviseError> {
        let failed = |source| SuperviseError::Start { program: spec.program.clone(), uid: spec.uid, source };
        #[expect(clippy::disallowed_methods, reason = "this is where long-running processes are started")]
        let mut command = Command::new(&spec.program);
        command
            .arg0(spec.process_name())
            .args(&spec.arguments)
            .env_clear()
            .stdin(Stdio::null())
            // Of its own, so that a terminal's Ctrl-C does not reach Envoy past our drain.
            .process_group(0);
        if nix::unistd::getegid().as_raw() != spec.gid {
            command.gid(spec.gid);
        }
        if nix::unistd::geteuid().as_raw() != spec.uid {
            // Also drops root's supplementary groups.
            command.uid(spec.uid);
        }
        let child = match &spec.network {
            None => command.spawn(),
            Some(network) => spawn_in(network, command),
        };
        let child = child.map_err(failed)?;
        let pid = child.id().ok_or_else(|| failed(io::Error::other("it has no process number")))?;
        let descriptor = open(pid)?;
        Ok(Process { pid, descriptor, child: Some(child) })
    }

    /// Takes hold of a running process, if it is still that one.
    pub(super) fn adopt(identity: Identity) -> Result<Option<Self>, SuperviseError> {
        if !identity.is_alive() {
            return Ok(None);
        }
        match open(identity.pid) {
            // Looked at again with the descriptor in hand: the number cannot have moved on now.
            Ok(descriptor) if identity.is_alive() => {
                Ok(Some(Process { pid: identity.pid, descriptor, child: None }))
            }
            Ok(_) => Ok(None),
            Err(_) if !identity.is_alive() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Its number.
    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits until it ends; says how, where the kernel tells us. May be dropped and called again.
    pub(super) async fn wait(&mut self) -> String {
        match &mut self.child {
            Some(child) => match child.wait().await {
                Ok(status) => status.to_string(),
                Err(error) => error.to_string(),
            },
            None => {
                // Readable when, and only when, the process has ended.
                let _ = self.descriptor.readable().await;
                "its parent was an earlier enmesh, so how is not known".to_owned()
            }
        }
    }

    /// Asks it to end, and after `grace` makes it.
    pub(super) async fn end(&mut self, grace: Duration) -> Result<(), SuperviseError> {
        for (signal, time) in [(Signal::TERM, grace), (Signal::KILL, AFTER_KILL)] {
            // One that has ended already has nobody to receive it.
            let _ = pidfd_send_signal(self.descriptor.get_ref(), signal);
            if tokio::time::timeout(time, self.wait()).await.is_ok() {
                return Ok(());
            }
        }
        Err(SuperviseError::Stuck { instance: format!("process {}", self.pid) })
    }
}

/// Starts `command` in a network namespace: from a thread that has moved there and then ends, since which one a
/// child gets is a matter of the thread.
fn spawn_in(network: &Network, mut command: Command) -> io::Result<Child> {
    let file = File::open(&network.path)?;
    let meta = file.metadata()?;
    if (meta.dev(), meta.ino()) != network.identity {
        return Err(io::Error::other(format!("{} is another namespace by now", network.path.display())));
    }
    let runtime = tokio::runtime::Handle::current();
    let start = || {
        let _runtime = runtime.enter();
        setns(&file, CloneFlags::CLONE_NEWNET)?;
        command.spawn()
    };
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, start)?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[expect(deprecated, reason = "sound for OwnedFd, whose number never changes; the other form is `unsafe`")]
fn open(pid: u32) -> Result<AsyncFd<OwnedFd>, SuperviseError> {
    let number = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let number = number.ok_or_else(|| io::Error::other("not a process number"));
    number
        .and_then(|number| Ok(pidfd_open(number, PidfdFlags::empty())?))
        .and_then(|descriptor| AsyncFd::with_interest(descriptor, tokio::io::Interest::READABLE))
        .map_err(|source| SuperviseError::Watch { pid, source })
}
