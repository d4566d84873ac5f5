//! Noticing that somebody else changes our table: the kernel announces every commit to nf_tables, what
//! it touched and who made it (group 7, `NFNLGRP_NFTABLES`). No program runs for it, and nothing wakes
//! while nobody changes anything.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::rc::Rc;
use std::time::Duration;

use nix::sys::socket::SockProtocol;
use tokio::time::{Instant, timeout};

use super::{RedirectError, TABLE};
use crate::base::Fault;
use crate::base::netlink::{Announcements, Heard, Message, attributes, messages};

/// A tool that changes much may do so in several commits; it counts when nothing followed for this
/// long. Short, because until the repair connections go where they should not.
const QUIET: Duration = Duration::from_millis(2);

/// However long a burst lasts, it counts after this time.
const PATIENCE: Duration = Duration::from_millis(10);

/// How many commits of our own are remembered until they are announced.
const OWN_LIMIT: usize = 16;

/// How many kinds of changes one event tells apart; the rest is not told.
const CHANGES_LIMIT: usize = 32;

/// How many lines an event has.
const LINES: usize = 5;

/// Bit of group 7, `NFNLGRP_NFTABLES` (linux/netfilter/nfnetlink.h).
const GROUP: u32 = 1 << 6;

/// `NFNL_SUBSYS_NFTABLES`, the upper byte of the kinds of nf_tables' messages.
const SUBSYSTEM: u16 = 10;

/// `NFPROTO_INET`.
const INET: u8 = 1;

/// Length of `struct nfgenmsg`, which comes before the attributes.
const NFGENMSG: usize = 4;

/// `NFT_MSG_NEWGEN`: the end of a commit, and who made it.
const NEW_GENERATION: u16 = 15;

/// Process numbers of the `nft` programs with which this process changed the table and of which the
/// kernel's announcement has not been heard yet.
#[derive(Debug, Clone, Default)]
pub struct OwnCommits(Rc<RefCell<VecDeque<u32>>>);

impl OwnCommits {
    /// The process `pid` is one of them.
    pub(super) fn add(&self, pid: u32) {
        let mut own = self.0.borrow_mut();
        if own.len() == OWN_LIMIT {
            own.pop_front();
        }
        own.push_back(pid);
    }

    /// Whether the commit from the socket `port` is one of them; each counts once.
    fn take(&self, port: u32) -> bool {
        let mut own = self.0.borrow_mut();
        let place = own.iter().position(|pid| *pid == port);
        place.and_then(|place| own.remove(place)).is_some()
    }
}

/// Somebody changed our table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DriftEvent {
    /// What was done, a line each.
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

/// Changes of our table by others, as they happen.
pub struct Drift {
    socket: Announcements,
    own: OwnCommits,
    commit: Commit,
    /// Heard, and not told to anybody yet.
    heard: Option<DriftEvent>,
}

impl Drift {
    /// Starts watching in the network namespace of the calling thread. Commits in `own` are not told.
    ///
    /// # Errors
    /// `ENM-R013` the kernel does not let us.
    pub fn watch(own: OwnCommits) -> Result<Drift, Fault> {
        let socket = Announcements::join(SockProtocol::NetlinkNetFilter, GROUP)
            .map_err(|source| RedirectError::NoWatch { source })?;
        Ok(Drift { socket, own, commit: Commit::default(), heard: None })
    }

    /// Waits for the next change and for the end of the burst that it belongs to. Safe to interrupt:
    /// nothing is lost. Where the kernel had more to tell than we could take, the event says so, and
    /// may be about nothing of ours.
    ///
    /// # Errors
    /// `ENM-R013` the socket broke; there is nothing more to come.
    pub async fn next(&mut self) -> Result<DriftEvent, Fault> {
        self.listen().await.map_err(|source| RedirectError::NoWatch { source }.into())
    }

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
                    self.commit = Commit::default();
                    let what = vec!["so much that the kernel's account of it was cut".to_owned()];
                    self.heard.get_or_insert_default().merge(DriftEvent { what, by: None });
                }
            }
        }
        Ok(())
    }
}

/// What is announced of one commit before its end.
#[derive(Debug, Default)]
struct Commit(BTreeMap<Change, usize>);

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Change {
    kind: Kind,
    added: bool,
    /// The chain or set.
    name: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Table,
    Chain,
    Rule,
    Set,
    Element,
    Other,
}

impl Commit {
    /// Takes in a message. At the end of a commit that touched our table and is not of our own it
    /// returns what it did.
    fn hear(&mut self, message: Message<'_>, own: &OwnCommits) -> Option<DriftEvent> {
        if message.kind >> 8 != SUBSYSTEM {
            return None;
        }
        let (family, attributes) = (message.body.first()?, message.body.get(NFGENMSG..)?);
        if message.kind & 0xff == NEW_GENERATION {
            let changes = std::mem::take(&mut self.0);
            let ours = own.take(message.port);
            return (!ours && !changes.is_empty())
                .then(|| DriftEvent { what: lines(&changes), by: author(attributes) });
        }
        if *family == INET
            && let Some(change) = change(message.kind & 0xff, attributes)
            && (self.0.len() < CHANGES_LIMIT || self.0.contains_key(&change))
        {
            *self.0.entry(change).or_default() += 1;
        }
        None
    }
}

/// What a message says was done to our table; `None` when it is about something else.
///
/// Kinds are `enum nf_tables_msg_types`. The attribute 1 is the table's name in all of them; the
/// chain's stands in attribute 3 of a chain and in 2 of a rule, the set's in 2 (linux/netfilter/nf_tables.h).
fn change(kind: u16, bytes: &[u8]) -> Option<Change> {
    let (kind, added, name) = match kind {
        0 => (Kind::Table, true, None),
        2 => (Kind::Table, false, None),
        3 => (Kind::Chain, true, Some(3)),
        5 => (Kind::Chain, false, Some(3)),
        6 => (Kind::Rule, true, Some(2)),
        8 => (Kind::Rule, false, Some(2)),
        9 => (Kind::Set, true, Some(2)),
        11 => (Kind::Set, false, Some(2)),
        12 => (Kind::Element, true, Some(2)),
        14 => (Kind::Element, false, Some(2)),
        // Objects and flow tables, which we have none of.
        18 | 22 => (Kind::Other, true, Some(2)),
        20 | 24 => (Kind::Other, false, Some(2)),
        _ => return None,
    };
    let find = |wanted| attributes(bytes).find_map(|(kind, value)| (kind == wanted).then(|| text(value)));
    let name = name.map_or_else(String::new, |number| find(number).unwrap_or_default());
    (find(1)? == TABLE).then_some(Change { kind, added, name })
}

/// Who made the commit: `NFTA_GEN_PROC_PID`, as the first process namespace counts, and
/// `NFTA_GEN_PROC_NAME`.
fn author(bytes: &[u8]) -> Option<String> {
    let (mut pid, mut name) = (None, None);
    for (kind, value) in attributes(bytes) {
        match kind {
            2 => pid = value.try_into().ok().map(u32::from_be_bytes),
            3 => name = Some(text(value)),
            _ => {}
        }
    }
    Some(format!("`{}` (process {})", name?, pid?))
}

/// A string attribute without its final zero, and without what could disturb a log.
fn text(value: &[u8]) -> String {
    let value = value.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(value).chars().filter(|letter| !letter.is_control()).collect()
}

fn lines(changes: &BTreeMap<Change, usize>) -> Vec<String> {
    // A table that goes takes everything with it, and one that comes brings it.
    let whole: Vec<_> = changes.keys().filter(|change| change.kind == Kind::Table).collect();
    if !whole.is_empty() {
        let verb = if whole.iter().any(|change| change.added) { "set" } else { "deleted" };
        return vec![format!("{verb} table inet {TABLE}")];
    }
    let line = |(change, count): (&Change, &usize)| {
        let Change { kind, added, name } = change;
        let verb = if *added { "added" } else { "deleted" };
        let many = if *count == 1 { "" } else { "s" };
        match kind {
            Kind::Chain => format!("{verb} chain {name}"),
            Kind::Set => format!("{verb} set {name}"),
            Kind::Rule => format!("{verb} {count} rule{many} of chain {name}"),
            Kind::Element => format!("{verb} {count} element{many} of set {name}"),
            Kind::Table | Kind::Other => format!("{verb} {name}"),
        }
    };
    changes.iter().take(LINES).map(line).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn body(family: u8, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![family, 0, 0, 0];
        for (kind, value) in attributes {
            bytes.extend(u16::try_from(value.len() + 4).unwrap().to_ne_bytes());
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(*value);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        bytes
    }

    fn told(messages: &[(u16, u32, Vec<u8>)], own: &OwnCommits) -> Vec<DriftEvent> {
        let mut commit = Commit::default();
        let hear = |(kind, port, body): &(u16, u32, Vec<u8>)| {
            commit.hear(Message { kind: SUBSYSTEM << 8 | kind, port: *port, body }, own)
        };
        messages.iter().filter_map(hear).collect()
    }

    fn end(port: u32) -> (u16, u32, Vec<u8>) {
        (15, port, body(0, &[(1, &[0, 0, 0, 9]), (2, &[0, 0, 0, 123]), (3, b"nft\0")]))
    }

    #[test]
    fn it_says_what_was_done_and_who_did_it() {
        let ours: &[u8] = b"enmesh\0";
        let rule = |kind| (kind, 7, body(INET, &[(1, ours), (2, b"out\0")]));
        let events = told(&[rule(8), rule(8), rule(6), end(7)], &OwnCommits::default());
        assert_eq!(events.len(), 1);
        assert_eq!(events[0].what, ["deleted 2 rules of chain out", "added 1 rule of chain out"]);
        assert_eq!(events[0].by.as_deref(), Some("`nft` (process 123)"));
        let table = (2, 7, body(INET, &[(1, ours)]));
        let events = told(&[rule(8), table, end(7)], &OwnCommits::default());
        assert_eq!(events[0].what, ["deleted table inet enmesh"]);
    }

    #[test]
    fn others_tables_and_our_own_commits_are_not_told() {
        let own = OwnCommits::default();
        let table = |family, name: &[u8]| (2, 7, body(family, &[(1, name)]));
        assert_eq!(told(&[table(INET, b"other\0"), end(7), table(2, b"enmesh\0"), end(7)], &own), []);
        own.add(7);
        assert_eq!(told(&[table(INET, b"enmesh\0"), end(7)], &own), []);
        // Counts once: the next one with that number is somebody else.
        assert_eq!(told(&[table(INET, b"enmesh\0"), end(7)], &own).len(), 1);
    }

    proptest! {
        #[test]
        fn any_bytes_are_heard_out(
            messages in proptest::collection::vec((0_u16..40, proptest::collection::vec(any::<u8>(), 0..80)), 0..20),
        ) {
            let messages: Vec<_> = messages.into_iter().map(|(kind, body)| (kind, 0, body)).collect();
            for event in told(&messages, &OwnCommits::default()) {
                prop_assert!(event.what.len() <= LINES);
            }
        }

        #[test]
        fn names_are_of_no_harm(name in proptest::collection::vec(any::<u8>(), 0..40)) {
            prop_assert!(!text(&name).contains(char::is_control));
        }
    }
}
