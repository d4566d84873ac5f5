//! Noticing that somebody else changes our rules. The kernel announces every commit to nf_tables, what
//! it touched and who made it (group 7, `NFNLGRP_NFTABLES`). No program runs for it, and nothing wakes
//! while nobody changes anything.
//!
//! Of ip_tables, which `iptables-legacy` speaks to, the kernel announces nothing. There a look is due now and then.

mod commit;

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::socket::SockProtocol;
use tokio::time::{Instant, sleep_until, timeout};

use self::commit::Commit;
pub(super) use self::commit::Scope;
use super::RedirectError;
use crate::base::Fault;
use crate::base::netlink::{Announcements, Heard, messages};

/// A tool that changes much may do so in several commits; it counts when nothing followed for this
/// long. Short, because until the repair connections go where they should not.
const QUIET: Duration = Duration::from_millis(2);

/// However long a burst lasts, it counts after this time.
const PATIENCE: Duration = Duration::from_millis(10);

/// How many commits of our own are remembered until they are announced. One iptables program makes up to three.
const OWN_LIMIT: usize = 32;

/// How many lines an event has.
const LINES: usize = 5;

/// Bit of group 7, `NFNLGRP_NFTABLES` (linux/netfilter/nfnetlink.h).
const GROUP: u32 = 1 << 6;

/// How often rules are looked at that nobody tells about. A look is two programs, some milliseconds; this
/// keeps it under a fifth of a percent of a processor.
pub const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Process numbers of the programs with which this process changed the rules, one entry a commit, of which the
/// kernel's announcement has not been heard yet.
#[derive(Debug, Clone, Default)]
pub struct OwnCommits(Arc<Mutex<VecDeque<u32>>>);

impl OwnCommits {
    /// The process `pid` made one of them.
    pub(super) fn add(&self, pid: u32) {
        let mut own = self.numbers();
        if own.len() == OWN_LIMIT {
            own.pop_front();
        }
        own.push_back(pid);
    }

    fn numbers(&self) -> MutexGuard<'_, VecDeque<u32>> {
        // Numbers are whole whatever became of the thread that noted them.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the commit from the socket `port` is one of them; each counts once.
    fn take(&self, port: u32) -> bool {
        let mut own = self.numbers();
        let place = own.iter().position(|pid| *pid == port);
        place.and_then(|place| own.remove(place)).is_some()
    }
}

/// Somebody changed our rules, or may have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DriftEvent {
    /// What was done, a line each; nothing where a look has to tell.
    pub what: Vec<String>,
    /// Who did it, such as ``` `nft` (process 123) ```, where the kernel says so.
    pub by: Option<String>,
}

impl DriftEvent {
    /// Adds what happened later.
    pub fn merge(&mut self, later: DriftEvent) {
        self.what.extend(later.what);
        self.what.dedup();
        self.what.truncate(LINES);
        self.by = later.by.or(self.by.take());
    }
}

/// Changes of our rules by others.
pub struct Drift(Source);

enum Source {
    /// As they happen.
    Told(Box<Told>),
    /// Whenever it is time to look.
    Looks { next: Instant },
}

impl Drift {
    /// Starts watching the table `inet enmesh` in the network namespace of the calling thread. Commits in `own` are
    /// not told.
    ///
    /// # Errors
    /// `ENM-R013` the kernel does not let us.
    pub fn watch(own: OwnCommits) -> Result<Drift, Fault> {
        Drift::of(Scope::OwnTable, own)
    }

    /// The same for what is in `scope`.
    pub(super) fn of(scope: Scope, own: OwnCommits) -> Result<Drift, Fault> {
        let socket = Announcements::join(SockProtocol::NetlinkNetFilter, GROUP)
            .map_err(|source| RedirectError::NoWatch { source })?;
        let commit = Commit::new(scope);
        Ok(Drift(Source::Told(Box::new(Told { socket, own, commit, heard: None }))))
    }

    /// For rules that nobody tells about: an event every [`LOOK_EVERY`], about nothing.
    pub(super) fn by_looking() -> Drift {
        Drift(Source::Looks { next: Instant::now() + LOOK_EVERY })
    }

    /// Waits for the next change and for the end of the burst that it belongs to. Safe to interrupt:
    /// nothing is lost. Where the kernel had more to tell than we could take, the event says so, and
    /// may be about nothing of ours.
    ///
    /// # Errors
    /// `ENM-R013` the socket broke; there is nothing more to come.
    pub async fn next(&mut self) -> Result<DriftEvent, Fault> {
        match &mut self.0 {
            Source::Told(told) => {
                told.listen().await.map_err(|source| RedirectError::NoWatch { source }.into())
            }
            Source::Looks { next } => {
                sleep_until(*next).await;
                *next = Instant::now() + LOOK_EVERY;
                Ok(DriftEvent::default())
            }
        }
    }
}

struct Told {
    socket: Announcements,
    own: OwnCommits,
    commit: Commit,
    /// Heard, and not told to anybody yet.
    heard: Option<DriftEvent>,
}

impl Told {
    async fn listen(&mut self) -> io::Result<DriftEvent> {
        while self.heard.is_none() {
            self.socket.ready().await?;
            self.take_all()?;
        }
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end && timeout(QUIET, self.socket.ready()).await.is_ok() {
            self.take_all()?;
        }
        Ok(self.heard.take().unwrap_or_default())
    }

    fn take_all(&mut self) -> io::Result<()> {
        while let Some(heard) = self.socket.take()? {
            match heard {
                Heard::Datagram(datagram) => {
                    for message in messages(datagram) {
                        if let Some(event) = self.commit.hear(message, &self.own) {
                            self.heard.get_or_insert_default().merge(event);
                        }
                    }
                }
                Heard::Gap => {
                    self.commit.forget();
                    let what = vec!["so much that the kernel's account of it was cut".to_owned()];
                    self.heard.get_or_insert_default().merge(DriftEvent { what, by: None });
                }
            }
        }
        Ok(())
    }
}
