//! Children of the demo that go on beside it: the daemons and the applications of its hosts.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::error::DemoError;
use crate::base::Fault;
use crate::netns::{self, Namespace};

/// This program, whatever became of the file that it was started from. A child opens it as its own,
/// so it needs no path that the child's user can walk.
pub const OURSELVES: &str = "/proc/self/exe";
/// How often an end is looked for.
const POLL: Duration = Duration::from_millis(2);

/// How a child is to be started.
pub struct Spawn<'a> {
    /// Its network namespace.
    pub namespace: &'a Namespace,
    /// The program.
    pub program: &'a Path,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Its user and group; the demo's own unless given.
    pub user: Option<u32>,
    /// Files that it sees in the place of others: what, and where.
    pub mounts: Vec<(PathBuf, PathBuf)>,
    /// Where its standard error goes, and its standard output unless that is collected.
    pub log: PathBuf,
    /// Whether its standard output is collected.
    pub collect: bool,
}

/// A running child. It does not outlive this value unless it is [let go](Process::let_go).
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
    let_go: bool,
}

impl Process {
    /// Starts a child.
    ///
    /// # Errors
    /// `ENM-T004` the system refused; what the namespace and the mounts say otherwise.
    pub fn start(spawn: &Spawn<'_>) -> Result<Process, Fault> {
        let name = spawn.arguments.iter().take(2).cloned().collect::<Vec<_>>().join(" ");
        // A child is in the namespaces of the thread that starts it.
        let child = spawn.namespace.run(|| -> Result<Child, Fault> {
            if !spawn.mounts.is_empty() {
                let pairs: Vec<(&Path, &Path)> =
                    spawn.mounts.iter().map(|(what, place)| (what.as_path(), place.as_path())).collect();
                netns::mount_privately(&pairs)?;
            }
            let failed = |e| DemoError::system(format!("start `{name}`"), e);
            command(spawn, log(&spawn.log).map_err(failed)?)?.spawn().map_err(|e| failed(e).into())
        })??;
        Ok(Process { child, name, let_go: false })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it ended; `None` while it runs.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Waits for its end and returns what it said on standard output. It is killed at the limit.
    ///
    /// # Errors
    /// `ENM-T005` it took too long, `ENM-T009` it ended badly.
    pub fn output(mut self, limit: Duration) -> Result<String, Fault> {
        let reader = self.child.stdout.take().map(|mut pipe| {
            thread::spawn(move || {
                let mut text = String::new();
                let _ = pipe.read_to_string(&mut text);
                text
            })
        });
        let status = self.wait(limit);
        let what = format!("the end of `{}`", self.name);
        if status.is_none() {
            self.kill();
        }
        let text = reader.and_then(|reader| reader.join().ok()).unwrap_or_default();
        match status {
            Some(status) if status.success() => Ok(text),
            Some(status) => {
                let last = text.lines().last().unwrap_or_default().to_owned();
                Err(DemoError::Ended { program: self.name.clone(), status: status.to_string(), last }.into())
            }
            None => Err(DemoError::NotInTime { what, seconds: limit.as_secs(), last: String::new() }.into()),
        }
    }

    /// Asks it to end, and makes it end when it has not after `grace`. Returns whether asking was
    /// enough.
    pub fn stop(&mut self, grace: Duration) -> bool {
        if self.ended().is_some() {
            return true;
        }
        signal(self.child.id(), Signal::SIGTERM);
        let went = self.wait(grace).is_some();
        if !went {
            self.kill();
        }
        went
    }

    /// Lets it live on when this value goes.
    pub fn let_go(&mut self) {
        self.let_go = true;
    }

    fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.ended() {
                return Some(status);
            }
            if started.elapsed() >= limit {
                return None;
            }
            thread::sleep(POLL);
        }
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.let_go {
            self.kill();
        }
    }
}

/// Sends a signal; a process that is gone already is fine.
pub(super) fn signal(pid: u32, signal: Signal) {
    if let Ok(pid) = i32::try_from(pid) {
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

fn command(spawn: &Spawn<'_>, log: File) -> Result<Command, Fault> {
    #[expect(clippy::disallowed_methods, reason = "the demo keeps its hosts' processes running by itself")]
    let mut command = Command::new(spawn.program);
    command.args(&spawn.arguments).env_clear().env("LC_ALL", "C").stdin(Stdio::null());
    if spawn.program == Path::new(OURSELVES) {
        command.arg0("enmesh");
    }
    // A group of its own: Ctrl-C is for the demo, which then stops its children in order.
    command.process_group(0).current_dir("/");
    if let Some(user) = spawn.user {
        command.uid(user).gid(user);
    }
    let errors = log.try_clone().map_err(|e| DemoError::system("open a log once more", e))?;
    command.stderr(errors);
    if spawn.collect {
        command.stdout(Stdio::piped());
    } else {
        command.stdout(log);
    }
    Ok(command)
}

fn log(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}
