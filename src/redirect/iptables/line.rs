//! One rule of iptables, as data, and the words that `iptables-restore` takes for it.
//!
//! The words are those that `iptables-save` prints for the rule, in that order, so that what is read
//! back can be compared with what was asked for.

use std::net::SocketAddr;

use ipnet::IpNet;

use crate::plan::RESOLVER_LAPSE;

/// An address family, which in iptables is a ruleset and a program of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::redirect) enum Family {
    V4,
    V6,
}

impl Family {
    /// Both, in the order in which they are set.
    pub const BOTH: [Family; 2] = [Family::V4, Family::V6];

    /// For a person.
    pub fn word(self) -> &'static str {
        match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        }
    }
}

/// A value, or with `true` in front anything else.
pub(super) type Sided<T> = Option<(bool, T)>;

/// What a rule asks for; everything that is named must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Match {
    pub destination: Sided<IpNet>,
    pub input: Sided<String>,
    pub output: Sided<String>,
    pub protocol: Sided<&'static str>,
    /// TCP, and not the SYN that opens a connection.
    pub not_opening: bool,
    /// Any of these ranges; first and last, included.
    pub ports: Vec<(u16, u16)>,
    pub source_port: Option<u16>,
    /// First and last, included.
    pub users: Option<(u32, u32)>,
    /// Whether the destination is an address of this host.
    pub local: Option<bool>,
    /// The connection's destination was changed.
    pub translated: bool,
    pub mark: Option<u32>,
    /// Our resolver has sent something a moment ago.
    pub resolver_lives: bool,
}

impl Match {
    /// Both, or nothing where they contradict each other or one rule cannot say it.
    pub fn and(&self, other: &Match) -> Option<Match> {
        fn one<T: Clone + PartialEq>(left: &Option<T>, right: &Option<T>) -> Option<Option<T>> {
            match (left, right) {
                (Some(left), Some(right)) if left != right => None,
                (Some(value), _) | (None, Some(value)) => Some(Some(value.clone())),
                (None, None) => Some(None),
            }
        }
        let ports = match (self.ports.is_empty(), other.ports.is_empty()) {
            (false, false) if self.ports != other.ports => return None,
            (true, _) => &other.ports,
            _ => &self.ports,
        };
        Some(Match {
            destination: one(&self.destination, &other.destination)?,
            input: one(&self.input, &other.input)?,
            output: one(&self.output, &other.output)?,
            protocol: one(&self.protocol, &other.protocol)?,
            not_opening: self.not_opening || other.not_opening,
            ports: ports.clone(),
            source_port: one(&self.source_port, &other.source_port)?,
            users: one(&self.users, &other.users)?,
            local: one(&self.local, &other.local)?,
            translated: self.translated || other.translated,
            mark: one(&self.mark, &other.mark)?,
            resolver_lives: self.resolver_lives || other.resolver_lives,
        })
    }

    fn words(&self, family: Family) -> Words {
        let mut words = Words::default();
        words.sided("-d", self.destination.as_ref().map(|(not, net)| (*not, net.to_string())));
        words.sided("-i", self.input.clone());
        words.sided("-o", self.output.clone());
        words.sided("-p", self.protocol.map(|(not, name)| (not, name.to_owned())));
        let protocol = self.protocol.map_or("tcp", |(_, name)| name);
        match self.ports.as_slice() {
            [] => {}
            [one] => words.add(["-m", protocol, "--dport", &range(*one)]),
            many => {
                let ranges: Vec<String> = many.iter().copied().map(range).collect();
                words.add(["-m", "multiport", "--dports", &ranges.join(",")]);
            }
        }
        if let Some(port) = self.source_port {
            words.add(["-m", protocol, "--sport", &port.to_string()]);
        }
        if self.not_opening {
            words.add(["-m", "tcp", "!", "--tcp-flags", "FIN,SYN,RST,ACK", "SYN"]);
        }
        if let Some((first, last)) = self.users {
            let users = if first == last { first.to_string() } else { format!("{first}-{last}") };
            words.add(["-m", "owner", "--uid-owner", &users]);
        }
        match self.local {
            Some(true) => words.add(["-m", "addrtype", "--dst-type", "LOCAL"]),
            Some(false) => words.add(["-m", "addrtype", "!", "--dst-type", "LOCAL"]),
            None => {}
        }
        if self.translated {
            words.add(["-m", "conntrack", "--ctstate", "DNAT"]);
        }
        if let Some(mark) = self.mark {
            words.add(["-m", "mark", "--mark", &format!("{mark:#x}")]);
        }
        if self.resolver_lives {
            words.add(["-m", "recent", "--rcheck", "--seconds", &RESOLVER_LAPSE.to_string()]);
            words.add(one_entry(family));
        }
        words
    }
}

/// The list of xt_recent, in which all addresses are one.
fn one_entry(family: Family) -> [&'static str; 5] {
    let nothing = match family {
        Family::V4 => "0.0.0.0",
        Family::V6 => "::",
    };
    ["--name", "enmesh_dns", "--mask", nothing, "--rsource"]
}

fn range((first, last): (u16, u16)) -> String {
    if first == last { first.to_string() } else { format!("{first}:{last}") }
}

/// What happens to a packet for which a rule holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    /// Back to where the kernel's own chain jumped to ours: we have nothing against it, others may.
    Leave,
    /// On in this chain, and not back here.
    Goto(String),
    /// On in this chain, and back here if it has nothing to say.
    Call(String),
    Reset,
    Prohibit,
    Redirect(u16),
    Dnat(SocketAddr),
    Zone(u16),
    ZoneOfQuery(u16),
    /// Our resolver lives; and on to the next rule.
    Remember,
}

/// A rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    pub when: Match,
    pub then: Target,
    /// What for, as in the other driver.
    pub comment: String,
}

impl Line {
    /// The words behind `-A CHAIN`.
    pub fn words(&self, family: Family) -> Vec<String> {
        let mut words = self.when.words(family);
        words.add(["-m", "comment", "--comment", &self.comment]);
        match &self.then {
            Target::Leave => words.add(["-j", "RETURN"]),
            Target::Goto(chain) => words.add(["-g", chain]),
            Target::Call(chain) => words.add(["-j", chain]),
            Target::Reset => words.add(["-j", "REJECT", "--reject-with", "tcp-reset"]),
            Target::Prohibit => {
                let answer = match family {
                    Family::V4 => "icmp-admin-prohibited",
                    Family::V6 => "icmp6-adm-prohibited",
                };
                words.add(["-j", "REJECT", "--reject-with", answer]);
            }
            Target::Redirect(port) => words.add(["-j", "REDIRECT", "--to-ports", &port.to_string()]),
            Target::Dnat(to) => words.add(["-j", "DNAT", "--to-destination", &to.to_string()]),
            Target::Remember => {
                words.add(["-m", "recent", "--set"]);
                words.add(one_entry(family));
            }
            Target::Zone(zone) => words.add(["-j", "CT", "--zone", &zone.to_string()]),
            Target::ZoneOfQuery(zone) => words.add(["-j", "CT", "--zone-orig", &zone.to_string()]),
        }
        words.0
    }
}

#[derive(Default)]
struct Words(Vec<String>);

impl Words {
    fn add<'a>(&mut self, words: impl IntoIterator<Item = &'a str>) {
        self.0.extend(words.into_iter().map(str::to_owned));
    }

    fn sided(&mut self, flag: &str, value: Sided<String>) {
        if let Some((not, value)) = value {
            if not {
                self.add(["!"]);
            }
            self.add([flag, &value]);
        }
    }
}

/// Words on one line as `iptables-restore` reads them.
pub(super) fn quoted(words: &[String]) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:,!+@[]=".contains(c);
    let quote = |word: &String| {
        if !word.is_empty() && word.chars().all(plain) {
            return word.clone();
        }
        // A line's end would end the rule; nothing of ours has one.
        let inner: String = word.chars().filter(|c| !c.is_control()).fold(String::new(), |mut text, c| {
            if matches!(c, '"' | '\\' | '\'') {
                text.push('\\');
            }
            text.push(c);
            text
        });
        format!("\"{inner}\"")
    };
    words.iter().map(quote).collect::<Vec<_>>().join(" ")
}

/// The words of such a line.
pub(super) fn unquoted(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let (mut word, mut in_word, mut in_quotes) = (String::new(), false, false);
    let mut letters = line.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '"' => (in_quotes, in_word) = (!in_quotes, true),
            '\\' if in_quotes => word.extend(letters.next()),
            ' ' | '\t' if !in_quotes => {
                if in_word {
                    words.push(std::mem::take(&mut word));
                }
                in_word = false;
            }
            other => {
                word.push(other);
                in_word = true;
            }
        }
    }
    if in_word {
        words.push(word);
    }
    words
}
