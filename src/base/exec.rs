//! The one way in which enmesh runs another program to completion: an absolute path, an argument
//! array, a cleared environment, bytes on standard input, a time limit, and no shell. And one that stays, to be told
//! what to do.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use rustix::process::{PidfdFlags, pidfd_open};

use super::{Class, Explain, Fault};

/// The folders in which programs are looked up: fixed, never the caller's `PATH`, because enmesh
/// runs as root.
pub const SYSTEM_FOLDERS: [&str; 6] =
    ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// How much of a program's output is kept, in bytes.
const OUTPUT_LIMIT: u64 = 64 * 1024 * 1024;

/// How long output is waited for after the program ended.
const LINGER: Duration = Duration::from_secs(1);

/// What a finished program left behind.
#[derive(Debug)]
pub struct Output {
    /// The process number that it had.
    pub pid: u32,
    /// How it ended.
    pub status: ExitStatus,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error, as text.
    pub stderr: String,
}

/// What running a program can run into.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// No such program in the system's folders.
    #[error("the program `{name}` is not installed")]
    Missing {
        /// Its name.
        name: String,
    },
    /// It could not be started.
    #[error("cannot start {}", program.display())]
    Start {
        /// Its path.
        program: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// It did not end within its time and was killed.
    #[error("{} did not end within {limit:?} and was killed", program.display())]
    Timeout {
        /// Its path.
        program: PathBuf,
        /// The time it had.
        limit: Duration,
    },
}

impl Explain for ExecError {
    fn code(&self) -> &'static str {
        match self {
            ExecError::Missing { .. } => "ENM-X010",
            ExecError::Start { .. } => "ENM-X011",
            ExecError::Timeout { .. } => "ENM-X012",
        }
    }

    fn hint(&self) -> String {
        match self {
            ExecError::Missing { name } => format!(
                "install the package that brings `{name}`; it is looked for in {}",
                SYSTEM_FOLDERS.join(", ")
            ),
            ExecError::Start { program, .. } => {
                format!("check that {} is executable for this user", program.display())
            }
            ExecError::Timeout { .. } => {
                "the machine may be overloaded; the next attempt starts from the same state".to_owned()
            }
        }
    }

    fn class(&self) -> Class {
        match self {
            ExecError::Missing { .. } => Class::Unavailable,
            ExecError::Start { .. } | ExecError::Timeout { .. } => Class::Failed,
        }
    }
}

/// Where the program `name` is. An absolute path is taken as it is.
///
/// # Errors
/// `ENM-X010` when none of the system's folders has it.
pub fn find(name: &str) -> Result<PathBuf, Fault> {
    let candidates: Vec<PathBuf> = if name.starts_with('/') {
        vec![PathBuf::from(name)]
    } else {
        SYSTEM_FOLDERS.iter().map(|folder| Path::new(folder).join(name)).collect()
    };
    candidates
        .into_iter()
        .find(|path| path.is_file())
        .ok_or_else(|| ExecError::Missing { name: name.to_owned() }.into())
}

/// Somebody to run a program as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct User {
    /// Number of the user.
    pub uid: u32,
    /// Number of its group; it gets no other ones.
    pub gid: u32,
}

/// A program of somebody else's to run once: it is put into a process group of its own, and what it
/// started goes with it when it has to end.
#[derive(Debug, Clone, Copy)]
pub struct Guest<'a> {
    /// Its absolute path.
    pub program: &'a Path,
    /// Its arguments.
    pub arguments: &'a [String],
    /// Who runs it; the caller unless given.
    pub user: Option<User>,
    /// How long it may take.
    pub limit: Duration,
    /// How much of each of its outputs is kept, in bytes; the rest is read and forgotten.
    pub keep: u64,
}

/// Runs `program` with `arguments`, feeds it `stdin`, and waits for at most `limit`.
///
/// The child sees an empty environment but for `LC_ALL=C`, so that its words do not change with the
/// caller's locale. It runs in the namespaces of the calling thread.
///
/// # Errors
/// `ENM-X011` it cannot be started, `ENM-X012` it took longer than `limit` (and was killed). A
/// program that ran and said no is not an error here: look at [`Output::status`].
pub fn run(program: &Path, arguments: &[&str], stdin: &[u8], limit: Duration) -> Result<Output, Fault> {
    let mut command = command(program);
    command.args(arguments).stdin(Stdio::piped());
    let never = AtomicBool::new(false);
    let patience = Patience { limit, pause: QUICK, stop: &never, group: false };
    launch(command, program, stdin, OUTPUT_LIMIT, &patience)
}

/// Runs `guest` without input until it ends, its time is over, or `stop` is set.
///
/// # Errors
/// `ENM-X011` it cannot be started, `ENM-X012` it took longer than its limit or was stopped, and was
/// killed with all that it had started.
pub fn run_guest(guest: &Guest<'_>, stop: &AtomicBool) -> Result<Output, Fault> {
    let mut command = command(guest.program);
    command.args(guest.arguments).stdin(Stdio::null()).process_group(0);
    if let Some(user) = guest.user {
        // Being root, the standard library gives up the caller's further groups with the uid.
        command.uid(user.uid).gid(user.gid);
    }
    let patience = Patience { limit: guest.limit, pause: EASY, stop, group: true };
    launch(command, guest.program, b"", guest.keep, &patience)
}

/// Starts a program that does what it reads from its standard input, for as long as the caller holds that. What it
/// prints is dropped, its complaints go to a file. Whoever started it ends it.
///
/// # Errors
/// `ENM-X011` it cannot be started.
pub fn converse(program: &Path, arguments: &[&str], complaints: File) -> Result<Child, Fault> {
    let mut command = command(program);
    command.args(arguments).process_group(0);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(complaints);
    let start = |source| ExecError::Start { program: program.to_owned(), source };
    Ok(command.spawn().map_err(start)?)
}

#[expect(clippy::disallowed_methods, reason = "this is the helper that everyone else goes through")]
fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("LC_ALL", "C").stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn launch(
    mut command: Command,
    program: &Path,
    stdin: &[u8],
    keep: u64,
    patience: &Patience<'_>,
) -> Result<Output, Fault> {
    let start = |source| ExecError::Start { program: program.to_owned(), source };
    let mut child = command.spawn().map_err(start)?;
    if let Some(mut pipe) = child.stdin.take() {
        let bytes = stdin.to_vec();
        // A program that ends without reading all of it closes the pipe; its status says why.
        thread::spawn(move || drop(pipe.write_all(&bytes)));
    }
    let stdout = drain(child.stdout.take(), keep);
    let stderr = drain(child.stderr.take(), keep);
    let status = wait(&mut child, patience).map_err(start)?;
    // A grandchild may hold the pipes open for ever; then the output is given up, not this call.
    let collect = |receiver: mpsc::Receiver<Vec<u8>>| receiver.recv_timeout(LINGER).unwrap_or_default();
    let Some(status) = status else {
        return Err(ExecError::Timeout { program: program.to_owned(), limit: patience.limit }.into());
    };
    Ok(Output {
        pid: child.id(),
        status,
        stdout: collect(stdout),
        stderr: String::from_utf8_lossy(&collect(stderr)).into_owned(),
    })
}

fn drain(pipe: Option<impl Read + Send + 'static>, keep: u64) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    if let Some(mut pipe) = pipe {
        thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = pipe.by_ref().take(keep).read_to_end(&mut bytes);
            // A program whose output nobody reads would be ended by it.
            let _ = io::copy(&mut pipe, &mut io::sink());
            let _ = sender.send(bytes);
        });
    }
    receiver
}

/// How a program's end is waited for.
struct Patience<'a> {
    limit: Duration,
    /// The longest pause between two looks.
    pause: Duration,
    /// Set by who does not want to wait any more.
    stop: &'a AtomicBool,
    /// Whether the program leads a process group, which then ends with it.
    group: bool,
}

/// A 10 ms `nft` is not slowed down noticeably.
const QUICK: Duration = Duration::from_millis(1);
/// For programs that may take seconds.
const EASY: Duration = Duration::from_millis(20);

/// Waits with growing pauses; kills and reaps at the limit, then `None`.
fn wait(child: &mut Child, patience: &Patience<'_>) -> io::Result<Option<ExitStatus>> {
    let started = std::time::Instant::now();
    // Tells of the end at once; a kernel before 5.3 has none, and there the pause is slept.
    let end = pidfd_open(rustix::process::Pid::from_child(child), PidfdFlags::empty()).ok();
    let mut pause = Duration::from_micros(100);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if started.elapsed() >= patience.limit || patience.stop.load(Ordering::Relaxed) {
            if patience.group
                && let Ok(group) = i32::try_from(child.id())
            {
                let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
            }
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        match &end {
            Some(end) => {
                let mut ends = [PollFd::new(end.as_fd(), PollFlags::POLLIN)];
                let at_most = PollTimeout::try_from(patience.pause).unwrap_or(PollTimeout::ZERO);
                // Interrupted or not, the child is looked at.
                let _ = poll(&mut ends, at_most);
            }
            None => thread::sleep(pause),
        }
        pause = (pause * 2).min(patience.pause);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn feeds_collects_and_reports_the_status() {
        let out = run(Path::new("/bin/cat"), &[], b"hello", Duration::from_secs(5)).unwrap();
        assert!(out.status.success());
        assert_eq!(out.stdout, b"hello");
        let out = run(Path::new("/bin/ls"), &["/nowhere"], b"", Duration::from_secs(5)).unwrap();
        assert!(!out.status.success());
        assert!(out.stderr.contains("/nowhere"));
    }

    #[test]
    fn kills_what_takes_too_long() {
        let fault = run(Path::new("/bin/sleep"), &["30"], b"", Duration::from_millis(50)).unwrap_err();
        assert_eq!(fault.code, "ENM-X012");
    }

    #[test]
    fn a_grandchild_that_lives_on_holds_nobody_up() {
        let started = std::time::Instant::now();
        let arguments = ["-c", "sleep 30 & echo started"];
        let out = run(Path::new("/bin/sh"), &arguments, b"", Duration::from_secs(5)).unwrap();
        assert!(out.status.success());
        assert!(started.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn a_guest_ends_with_all_that_it_started() {
        let arguments = ["-c".to_owned(), "sleep 30 & echo $!; yes | head -c 100000; wait".to_owned()];
        let stop = AtomicBool::new(false);
        let mut guest = Guest {
            program: Path::new("/bin/sh"),
            arguments: &arguments,
            user: None,
            limit: Duration::from_millis(300),
            keep: 10,
        };
        assert_eq!(run_guest(&guest, &stop).unwrap_err().code, "ENM-X012");
        // Stopped from outside, long before its time.
        guest.limit = Duration::from_secs(60);
        stop.store(true, Ordering::Relaxed);
        assert_eq!(run_guest(&guest, &stop).unwrap_err().code, "ENM-X012");
        let arguments = ["-c".to_owned(), "yes | head -c 1000000".to_owned()];
        let guest = Guest { arguments: &arguments, ..guest };
        let out = run_guest(&guest, &AtomicBool::new(false)).unwrap();
        assert!(out.status.success());
        assert_eq!(out.stdout, b"y\ny\ny\ny\ny\n");
    }

    #[test]
    fn a_missing_program_is_named() {
        let fault = find("no-such-program-here").unwrap_err();
        assert_eq!(fault.code, "ENM-X010");
        assert_eq!(fault.class.exit_code(), 69);
    }
}
