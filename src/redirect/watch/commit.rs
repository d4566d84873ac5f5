//! What one commit did to our rules, out of the kernel's messages about it.

use std::collections::BTreeMap;

use super::{DriftEvent, LINES, OwnCommits};
use crate::base::netlink::{Message, attributes};
use crate::redirect::iptables::{PREFIX, is_table, jumps_from};
use crate::redirect::{BORDER, TABLE};

/// How many kinds of changes one event tells apart; the rest is not told.
const CHANGES_LIMIT: usize = 32;

/// `NFNL_SUBSYS_NFTABLES`, the upper byte of the kinds of nf_tables' messages.
const SUBSYSTEM: u16 = 10;

/// `NFPROTO_INET`.
const INET: u8 = 1;
/// `NFPROTO_IPV4`.
const IPV4: u8 = 2;
/// `NFPROTO_IPV6`.
const IPV6: u8 = 10;

/// Length of `struct nfgenmsg`, which comes before the attributes.
const NFGENMSG: usize = 4;

/// `NFT_MSG_NEWGEN`: the end of a commit, and who made it.
const NEW_GENERATION: u16 = 15;

/// Which changes are about our rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::redirect) enum Scope {
    /// All in `inet enmesh`.
    OwnTable,
    /// All in `inet enmesh_border`.
    Border,
    /// Those of the chains `ENMESH_*` of iptables-nft, and of the kernel's chains that lead to them: our jump has a
    /// place there, and whoever adds a rule may take it.
    OwnChains,
}

impl Scope {
    fn includes(self, family: u8, kind: Kind, added: bool, table: &str, name: &str) -> bool {
        match self {
            Scope::OwnTable => family == INET && table == TABLE,
            Scope::Border => family == INET && table == BORDER,
            Scope::OwnChains => {
                let place = matches!(family, IPV4 | IPV6) && is_table(table);
                let what = match kind {
                    // A table that comes had nothing of ours.
                    Kind::Table => !added,
                    Kind::Chain | Kind::Rule => name.starts_with(PREFIX) || jumps_from(name),
                    Kind::Set | Kind::Element | Kind::Other => false,
                };
                place && what
            }
        }
    }
}

/// What is announced of one commit before its end.
#[derive(Debug)]
pub(super) struct Commit {
    scope: Scope,
    changes: BTreeMap<Change, usize>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Change {
    kind: Kind,
    added: bool,
    /// Family and table, in words.
    table: String,
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
    pub fn new(scope: Scope) -> Commit {
        Commit { scope, changes: BTreeMap::new() }
    }

    /// Forgets what was announced so far.
    pub fn forget(&mut self) {
        self.changes.clear();
    }

    /// Takes in a message. At the end of a commit that touched our rules and is not of our own it
    /// returns what it did.
    pub fn hear(&mut self, message: Message<'_>, own: &OwnCommits) -> Option<DriftEvent> {
        if message.kind >> 8 != SUBSYSTEM {
            return None;
        }
        let (family, attributes) = (message.body.first()?, message.body.get(NFGENMSG..)?);
        if message.kind & 0xff == NEW_GENERATION {
            let changes = std::mem::take(&mut self.changes);
            let ours = own.take(message.port);
            return (!ours && !changes.is_empty())
                .then(|| DriftEvent { what: self.lines(&changes), by: author(attributes) });
        }
        if let Some(change) = self.change(*family, message.kind & 0xff, attributes)
            && (self.changes.len() < CHANGES_LIMIT || self.changes.contains_key(&change))
        {
            *self.changes.entry(change).or_default() += 1;
        }
        None
    }

    /// What a message says was done to our rules; `None` when it is about something else.
    ///
    /// Kinds are `enum nf_tables_msg_types`. The attribute 1 is the table's name in all of them; the
    /// chain's stands in attribute 3 of a chain and in 2 of a rule, the set's in 2 (linux/netfilter/nf_tables.h).
    fn change(&self, family: u8, kind: u16, bytes: &[u8]) -> Option<Change> {
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
        let table = find(1)?;
        let family_word = match family {
            IPV4 => "ip",
            IPV6 => "ip6",
            _ => "inet",
        };
        let ours = self.scope.includes(family, kind, added, &table, &name);
        ours.then(|| Change { kind, added, table: format!("{family_word} {table}"), name })
    }

    fn lines(&self, changes: &BTreeMap<Change, usize>) -> Vec<String> {
        // A table that goes takes everything with it, and one that comes brings it.
        let mut whole: BTreeMap<&String, bool> = BTreeMap::new();
        for change in changes.keys().filter(|change| change.kind == Kind::Table) {
            *whole.entry(&change.table).or_default() |= change.added;
        }
        if !whole.is_empty() {
            let verb = |added| if added { "set" } else { "deleted" };
            let line = |(table, added)| format!("{} table {table}", verb(added));
            return whole.into_iter().take(LINES).map(line).collect();
        }
        let line = |(change, count): (&Change, &usize)| {
            let Change { kind, added, table, name } = change;
            let verb = if *added { "added" } else { "deleted" };
            let many = if *count == 1 { "" } else { "s" };
            // In our own table that needs no saying.
            let place = match self.scope {
                Scope::OwnTable | Scope::Border => String::new(),
                Scope::OwnChains => format!(" in table {table}"),
            };
            match kind {
                Kind::Chain => format!("{verb} chain {name}{place}"),
                Kind::Set => format!("{verb} set {name}"),
                Kind::Rule => format!("{verb} {count} rule{many} of chain {name}{place}"),
                Kind::Element => format!("{verb} {count} element{many} of set {name}"),
                Kind::Table | Kind::Other => format!("{verb} {name}"),
            }
        };
        changes.iter().take(LINES).map(line).collect()
    }
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

    fn told(scope: Scope, messages: &[(u16, u32, Vec<u8>)], own: &OwnCommits) -> Vec<DriftEvent> {
        let mut commit = Commit::new(scope);
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
        let events = told(Scope::OwnTable, &[rule(8), rule(8), rule(6), end(7)], &OwnCommits::default());
        assert_eq!(events.len(), 1);
        assert_eq!(events[0].what, ["deleted 2 rules of chain out", "added 1 rule of chain out"]);
        assert_eq!(events[0].by.as_deref(), Some("`nft` (process 123)"));
        let table = (2, 7, body(INET, &[(1, ours)]));
        let events = told(Scope::OwnTable, &[rule(8), table, end(7)], &OwnCommits::default());
        assert_eq!(events[0].what, ["deleted table inet enmesh"]);
    }

    #[test]
    fn others_tables_and_our_own_commits_are_not_told() {
        let own = OwnCommits::default();
        let table = |family, name: &[u8]| (2, 7, body(family, &[(1, name)]));
        let others = [table(INET, b"other\0"), end(7), table(IPV4, b"enmesh\0"), end(7)];
        assert_eq!(told(Scope::OwnTable, &others, &own), []);
        own.add(7);
        let one = [table(INET, b"enmesh\0"), end(7)];
        assert_eq!(told(Scope::OwnTable, &one, &own), []);
        // Counts once: the next one with that number is somebody else.
        assert_eq!(told(Scope::OwnTable, &one, &own).len(), 1);
    }

    #[test]
    fn of_iptables_the_own_chains_and_those_that_lead_there_are_told() {
        let rule = |family, table: &[u8], chain: &[u8]| (6, 7, body(family, &[(1, table), (2, chain)]));
        let hear = |messages: &[(u16, u32, Vec<u8>)]| {
            let events = told(Scope::OwnChains, messages, &OwnCommits::default());
            events.into_iter().flat_map(|event| event.what).collect::<Vec<_>>()
        };
        let told =
            hear(&[rule(IPV4, b"nat\0", b"ENMESH_OUT\0"), rule(IPV6, b"filter\0", b"INPUT\0"), end(7)]);
        assert_eq!(
            told,
            [
                "added 1 rule of chain ENMESH_OUT in table ip nat",
                "added 1 rule of chain INPUT in table ip6 filter"
            ]
        );
        for others in [
            rule(IPV4, b"nat\0", b"DOCKER\0"),
            rule(IPV4, b"nat\0", b"POSTROUTING\0"),
            rule(IPV4, b"mangle\0", b"OUTPUT\0"),
            rule(INET, b"nat\0", b"OUTPUT\0"),
            rule(INET, b"enmesh\0", b"out\0"),
            (0, 7, body(IPV4, &[(1, b"nat\0")])),
        ] {
            assert_eq!(hear(&[others, end(7)]), [""; 0]);
        }
        let gone = |family, name: &[u8]| (2, 7, body(family, &[(1, name)]));
        let told = hear(&[
            rule(IPV4, b"nat\0", b"OUTPUT\0"),
            gone(IPV4, b"nat\0"),
            gone(IPV4, b"mangle\0"),
            gone(IPV6, b"nat\0"),
            end(7),
        ]);
        assert_eq!(told, ["deleted table ip nat", "deleted table ip6 nat"]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_heard_out(
            messages in proptest::collection::vec((0_u16..40, proptest::collection::vec(any::<u8>(), 0..80)), 0..20),
        ) {
            let messages: Vec<_> = messages.into_iter().map(|(kind, body)| (kind, 0, body)).collect();
            for scope in [Scope::OwnTable, Scope::Border, Scope::OwnChains] {
                for event in told(scope, &messages, &OwnCommits::default()) {
                    prop_assert!(event.what.len() <= LINES);
                }
            }
        }

        #[test]
        fn names_are_of_no_harm(name in proptest::collection::vec(any::<u8>(), 0..40)) {
            prop_assert!(!text(&name).contains(char::is_control));
        }
    }
}
