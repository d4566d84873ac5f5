//! The guard a second time, in a table that nobody else can flush, edit or delete.
//!
//! `nft flush ruleset` leaves a host without its rules until they are set again. What the guard refuses stays refused
//! meanwhile: the chains of the guard, with their sets, stand in a table of their own that has the flag `owner`. To the
//! kernel (from 5.12) it belongs to the netlink socket that made it, and goes with it. That socket is held by an `nft`
//! that reads commands from us (`nft --interactive`); when the daemon ends, however it ends, its input ends, and then
//! itself and its table.
//!
//! The guards ask not who is live, so this table changes with the policy only. Redirected connections never meet it.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::AsRawFd;
use std::process::Child;
use std::time::{Duration, Instant};

use nix::sys::memfd::{MFdFlags, memfd_create};

use super::command::nft;
use crate::base::{Explain, exec};
use crate::redirect::ruleset::{KEPT, Ruleset, guards, text};
use crate::redirect::{RedirectError, ruleset};

/// How long `nft` has to make the table.
const LIMIT: Duration = Duration::from_secs(3);
/// How often it is looked whether it has.
const LOOK: Duration = Duration::from_millis(3);

/// What is kept, and by whom. Nothing is, until somebody [begins](Keep::begin).
#[derive(Debug, Default)]
pub(super) struct Keep {
    wanted: bool,
    holder: Option<Holder>,
    kept: Option<Ruleset>,
    /// How often a table was made.
    number: u64,
}

/// An `nft` that holds the socket. It and its table end with this.
#[derive(Debug)]
struct Holder {
    child: Child,
    complaints: File,
    /// What it was last told to read.
    files: Vec<File>,
}

impl Keep {
    /// From now on there is somebody who stays, and so can hold a table.
    pub fn begin(&mut self) {
        self.wanted = true;
    }

    /// Keeps the guard of `rules`. Where that cannot be, it is said, once, and not tried again.
    pub fn hold(&mut self, rules: &Ruleset) {
        if !self.wanted {
            return;
        }
        let guards = guards(rules);
        let holds = self.holder.as_mut().is_some_and(Holder::lives);
        if holds && self.kept.as_ref() == Some(&guards) {
            return;
        }
        if let Err(error) = self.make(guards) {
            self.release();
            self.wanted = false;
            let (code, hint) = (error.code(), error.hint());
            tracing::warn!(code, hint, "{code}: {error}");
        }
    }

    fn make(&mut self, guards: Ruleset) -> Result<(), RedirectError> {
        let held = self.holder.take().and_then(|mut holder| holder.lives().then_some(holder));
        let mut holder = match held {
            Some(holder) => holder,
            None => {
                self.kept = None;
                Holder::start()?
            }
        };
        self.number += 1;
        let mark = format!("enmesh:keep:{}:{}", std::process::id(), self.number);
        let [sets, rules] = text::kept(&guards, &mark, self.kept.is_some());
        // Sets first, for the reason that the other table has.
        for document in [sets, rules] {
            holder.carry_out(&document).map_err(not_kept)?;
        }
        holder.await_mark(&mark)?;
        self.holder = Some(holder);
        self.kept = Some(guards);
        Ok(())
    }

    /// Lets go: there is no such table any more.
    pub fn release(&mut self) {
        self.holder = None;
        self.kept = None;
    }
}

impl Holder {
    fn start() -> Result<Holder, RedirectError> {
        let program = exec::find("nft").map_err(|_| RedirectError::NoNft)?;
        let complaints = memory().map_err(not_kept)?;
        let heard = complaints.try_clone().map_err(not_kept)?;
        let child = exec::converse(&program, &["--interactive"], heard)
            .map_err(|fault| RedirectError::NotRun { message: fault.message })?;
        Ok(Holder { child, complaints, files: Vec::new() })
    }

    fn lives(&mut self) -> bool {
        self.child.try_wait().is_ok_and(|ended| ended.is_none())
    }

    /// Has it carry out a document, in one transaction. A line names the place: it is too long to be one itself.
    fn carry_out(&mut self, document: &str) -> std::io::Result<()> {
        let mut file = memory()?;
        file.write_all(document.as_bytes())?;
        let Some(stdin) = &mut self.child.stdin else { return Ok(()) };
        writeln!(stdin, "include \"/proc/{}/fd/{}\"", std::process::id(), file.as_raw_fd())?;
        // It may not have been read yet.
        self.files.push(file);
        stdin.flush()
    }

    /// Waits until the table is there that has this mark.
    fn await_mark(&mut self, mark: &str) -> Result<(), RedirectError> {
        let started = Instant::now();
        loop {
            let listed = nft(&["list", "chain", "inet", KEPT, ruleset::MARK_CHAIN], b"");
            if listed.is_ok_and(|listed| String::from_utf8_lossy(&listed).contains(mark)) {
                self.files.clear();
                return Ok(());
            }
            if started.elapsed() > LIMIT || !self.lives() {
                return Err(RedirectError::NotKept { why: self.complaint() });
            }
            std::thread::sleep(LOOK);
        }
    }

    fn complaint(&mut self) -> String {
        let mut text = String::new();
        let read = self.complaints.rewind().and_then(|()| self.complaints.read_to_string(&mut text));
        let line = text.lines().find(|line| read.is_ok() && !line.trim().is_empty());
        line.unwrap_or("nft did not make the table in time").to_owned()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // When it is gone, so is the table.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn not_kept(source: std::io::Error) -> RedirectError {
    RedirectError::NotKept { why: format!("nft --interactive: {source}") }
}

/// A file that is nowhere.
fn memory() -> std::io::Result<File> {
    Ok(File::from(memfd_create(c"enmesh", MFdFlags::MFD_CLOEXEC)?))
}
