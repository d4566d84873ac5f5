//! The one way in which enmesh runs another program to completion: an absolute path, an argument
//! array, a cleared environment, bytes on standard input, a time limit, and no shell.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

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

/// Runs `program` with `arguments`, feeds it `stdin`, and waits for at most `limit`.
///
/// The child sees an empty environment but for `LC_ALL=C`, so that its words do not change with the
/// caller's locale. It runs in the namespaces of the calling thread.
///
/// # Errors
/// `ENM-X011` it cannot be started, `ENM-X012` it took longer than `limit` (and was killed). A
/// program that ran and said no is not an error here: look at [`Output::status`].
pub fn run(program: &Path, arguments: &[&str], stdin: &[u8], limit: Duration) -> Result<Output, Fault> {
    let start = |source| ExecError::Start { program: program.to_owned(), source };
    #[expect(clippy::disallowed_methods, reason = "this is the helper that everyone else goes through")]
    let mut child = Command::new(program)
        .args(arguments)
        .env_clear()
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(start)?;
    if let Some(mut pipe) = child.stdin.take() {
        let bytes = stdin.to_vec();
        // A program that ends without reading all of it closes the pipe; its status says why.
        thread::spawn(move || drop(pipe.write_all(&bytes)));
    }
    let stdout = drain(child.stdout.take());
    let stderr = drain(child.stderr.take());
    let status = wait(&mut child, limit).map_err(start)?;
    // A grandchild may hold the pipes open for ever; then the output is given up, not this call.
    let collect = |receiver: mpsc::Receiver<Vec<u8>>| receiver.recv_timeout(LINGER).unwrap_or_default();
    let Some(status) = status else {
        return Err(ExecError::Timeout { program: program.to_owned(), limit }.into());
    };
    Ok(Output {
        pid: child.id(),
        status,
        stdout: collect(stdout),
        stderr: String::from_utf8_lossy(&collect(stderr)).into_owned(),
    })
}

fn drain(pipe: Option<impl Read + Send + 'static>) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    if let Some(pipe) = pipe {
        thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = pipe.take(OUTPUT_LIMIT).read_to_end(&mut bytes);
            let _ = sender.send(bytes);
        });
    }
    receiver
}

/// Waits with growing pauses (at most 5 ms, so that a 10 ms `nft` is not slowed down noticeably);
/// kills and reaps at the limit, then `None`.
fn wait(child: &mut Child, limit: Duration) -> io::Result<Option<ExitStatus>> {
    let started = std::time::Instant::now();
    let mut pause = Duration::from_micros(100);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if started.elapsed() >= limit {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(1));
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
    fn a_missing_program_is_named() {
        let fault = find("no-such-program-here").unwrap_err();
        assert_eq!(fault.code, "ENM-X010");
        assert_eq!(fault.class.exit_code(), 69);
    }
}
