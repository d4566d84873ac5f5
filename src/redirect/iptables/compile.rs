//! Ruleset -> the chains of one address family.
//!
//! The ruleset is the one that the driver `nftables` sets: it says once what is left alone, redirected
//! and refused. What iptables lacks is expanded here: sets become a rule for each element (ports
//! fifteen a rule, neighbouring users as one range), the opposite of a set becomes the elements that
//! are not in it.
//!
//! `accept` means "we leave it alone", and the filters of others still have their say; in iptables
//! that is a RETURN to the kernel's own chain. So that chains of ours can say it too, they are entered by
//! `goto`, and what follows such a jump stands in a chain `…_REST` to which they go on.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use super::line::{Family, Line, Match, Target};
use super::ranges::{self, LAST_USER};
use crate::redirect::ruleset::{
    self, Base, Chain, Element, Hook, NamedSet, Operand, Part, Rule, Ruleset, Selector, Value,
};

/// What the names of our chains begin with.
pub(in crate::redirect) const PREFIX: &str = "ENMESH_";

/// Ports that one rule can name; a range counts twice.
const PORTS_IN_A_RULE: usize = 15;

/// A table's name. In the order in which they are set: what refuses comes before what redirects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Table {
    Filter,
    Raw,
    Nat,
}

impl Table {
    pub const ALL: [Table; 3] = [Table::Filter, Table::Raw, Table::Nat];

    pub fn word(self) -> &'static str {
        match self {
            Table::Filter => "filter",
            Table::Raw => "raw",
            Table::Nat => "nat",
        }
    }

    /// Whether our jump stands before everybody else's rules; else behind them. See the front page.
    pub fn jumps_first(self) -> bool {
        self != Table::Nat
    }
}

/// Whether something of ours may be in the table of this name.
pub(in crate::redirect) fn is_table(name: &str) -> bool {
    Table::ALL.iter().any(|table| table.word() == name)
}

/// Whether jumps to us stand in the chain of this name, in some table.
pub(in crate::redirect) fn jumps_from(chain: &str) -> bool {
    [Hook::Prerouting, Hook::Input, Hook::Output].iter().any(|hook| kernel_chain(*hook) == chain)
}

/// What of ours is in a table.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Content {
    pub chains: BTreeMap<String, Vec<Line>>,
    /// The kernel's own chains, and which of ours each jumps to.
    pub jumps: BTreeMap<&'static str, String>,
}

/// Everything of ours in one family.
pub(super) type Tables = BTreeMap<Table, Content>;

/// The tables of `family`.
pub(super) fn compile(ruleset: &Ruleset, family: Family) -> Tables {
    let mut tables = Tables::new();
    for chain in &ruleset.chains {
        let Some(base) = chain.base else { continue };
        let (table, own) = place(base);
        let content = tables.entry(table).or_default();
        let name = name_of(chain.name);
        Compiler { ruleset, family, chains: &mut content.chains }.chain(&name, &chain.rules, None);
        content.jumps.insert(own, name);
    }
    // One in each table, so that a table that was left behind shows.
    let marks = ruleset.chains.iter().filter(|chain| chain.base.is_none() && is_mark(chain));
    for mark in marks {
        for content in tables.values_mut() {
            let chains = &mut content.chains;
            Compiler { ruleset, family, chains }.chain(&name_of(mark.name), &mark.rules, None);
        }
    }
    tables
}

fn is_mark(chain: &Chain) -> bool {
    chain.rules.iter().any(|rule| ruleset::generation_of(&rule.comment).is_some())
}

/// The table of a base chain, and the kernel's own chain that leads to it.
fn place(base: Base) -> (Table, &'static str) {
    let own = kernel_chain(base.hook);
    let table = match base.nat {
        true => Table::Nat,
        // Before connection tracking there is only this one.
        false if base.priority <= ruleset::RAW => Table::Raw,
        false => Table::Filter,
    };
    (table, own)
}

fn kernel_chain(hook: Hook) -> &'static str {
    match hook {
        Hook::Prerouting => "PREROUTING",
        Hook::Input => "INPUT",
        Hook::Output => "OUTPUT",
    }
}

fn name_of(chain: &str) -> String {
    format!("{PREFIX}{}", chain.to_ascii_uppercase())
}

/// The comment of what leads from a chain to the one behind it.
const GO_ON: &str = "what is left";

struct Compiler<'a> {
    ruleset: &'a Ruleset,
    family: Family,
    chains: &'a mut BTreeMap<String, Vec<Line>>,
}

impl<'a> Compiler<'a> {
    /// Adds chain `name`; `next` is the chain to go on with, for what it has nothing to say about.
    fn chain(&mut self, name: &str, rules: &[Rule], next: Option<&str>) {
        let mut lines = Vec::new();
        let mut next = next.map(str::to_owned);
        for (index, rule) in rules.iter().enumerate() {
            if let Some(Part::Jump(inner)) = rule.parts.last() {
                let rest = format!("{name}_REST");
                let inside = format!("{name}_{}", inner.to_ascii_uppercase());
                self.chain(&rest, rules.get(index + 1..).unwrap_or_default(), next.as_deref());
                self.chain(&inside, self.rules_of(inner), Some(&rest));
                self.add(&mut lines, rule, &Target::Goto(inside.clone()));
                next = (!unconditional(&lines)).then_some(rest);
                break;
            }
            self.rule(&mut lines, rule, next.as_deref());
        }
        if let Some(next) = next {
            let then = Target::Goto(next);
            lines.push(Line { when: Match::default(), then, comment: GO_ON.to_owned() });
        }
        self.chains.insert(name.to_owned(), lines);
    }

    fn rules_of(&self, chain: &str) -> &'a [Rule] {
        self.ruleset.chains.iter().find(|one| one.name == chain).map_or(&[], |one| &one.rules)
    }

    fn rule(&mut self, lines: &mut Vec<Line>, rule: &Rule, next: Option<&str>) {
        let target = match rule.parts.last() {
            Some(Part::Accept) => Target::Leave,
            Some(Part::Return) => next.map_or(Target::Leave, |next| Target::Goto(next.to_owned())),
            Some(Part::Goto(chain)) => self.shared(chain),
            Some(Part::Reset) => Target::Reset,
            Some(Part::Prohibit) => Target::Prohibit,
            Some(Part::Zone(zone)) => Target::Zone(*zone),
            Some(Part::ZoneOfQuery(zone)) => Target::ZoneOfQuery(*zone),
            Some(Part::Remember(_)) => Target::Remember,
            Some(Part::Dnat(to)) if to.is_ipv4() == (self.family == Family::V4) => Target::Dnat(*to),
            Some(Part::Redirect(selector, map)) => return self.redirect(lines, rule, *selector, map),
            // A translation for the other family; and a part that is no verdict ends no rule.
            _ => return,
        };
        if let (Some(Part::Is(left @ [_, _], Operand::Set(set))), Target::Goto(refuse)) =
            (rule.parts.iter().rev().nth(1), &target)
        {
            return self.by_way_of(lines, rule, (*left, set), refuse);
        }
        self.add(lines, rule, &target);
    }

    /// A chain that ends what enters it, and so can be entered from everywhere.
    fn shared(&mut self, chain: &str) -> Target {
        let name = name_of(chain);
        if !self.chains.contains_key(&name) {
            self.chain(&name, self.rules_of(chain), None);
        }
        Target::Goto(name)
    }

    /// A set of pairs has a chain of its own, asked only where the rest of the rule holds: several users and many
    /// instances would be a rule for each of each otherwise.
    fn by_way_of(
        &mut self,
        lines: &mut Vec<Line>,
        rule: &Rule,
        (left, set): (&'static [Selector], &'static str),
        refuse: &str,
    ) {
        let own = name_of(set);
        let elements = self.alternatives(left, &Operand::Set(set), false);
        if elements.is_empty() {
            return;
        }
        let line = |when| Line { when, then: Target::Goto(refuse.to_owned()), comment: rule.comment.clone() };
        self.chains.entry(own.clone()).or_insert_with(|| elements.into_iter().map(line).collect());
        let before = rule.parts.len().saturating_sub(2);
        let parts: Vec<Part> = rule.parts.iter().take(before).cloned().collect();
        self.add(lines, &Rule::new(rule.comment.clone(), parts), &Target::Call(own));
    }

    fn redirect(&self, lines: &mut Vec<Line>, rule: &Rule, selector: Selector, map: &str) {
        for element in self.elements(map) {
            let Some(port) = element.to else { continue };
            let key = self.one(&[selector], element);
            for when in self.conditions(rule).iter().filter_map(|when| when.and(key.as_ref()?)) {
                lines.push(Line { when, then: Target::Redirect(port), comment: rule.comment.clone() });
            }
        }
    }

    fn add(&self, lines: &mut Vec<Line>, rule: &Rule, target: &Target) {
        let line = |when| Line { when, then: target.clone(), comment: rule.comment.clone() };
        lines.extend(self.conditions(rule).into_iter().map(line));
    }

    /// Every way in which all conditions of `rule` hold.
    fn conditions(&self, rule: &Rule) -> Vec<Match> {
        let mut all = vec![Match::default()];
        for part in &rule.parts {
            let ways = match part {
                Part::Is(left, right) => self.alternatives(left, right, false),
                Part::IsNot(left, right) => self.alternatives(left, right, true),
                Part::NotOpening => {
                    vec![Match { protocol: Some((false, "tcp")), not_opening: true, ..Match::default() }]
                }
                _ => continue,
            };
            all = all.iter().flat_map(|one| ways.iter().filter_map(|way| one.and(way))).collect();
        }
        all
    }

    /// Every way in which `left` is (in) `right`, or with `not` is not.
    fn alternatives(&self, left: &[Selector], right: &Operand, not: bool) -> Vec<Match> {
        let other_family = match self.family {
            Family::V4 => Selector::Ip6Destination,
            Family::V6 => Selector::Ip4Destination,
        };
        if left.contains(&other_family) {
            return Vec::new();
        }
        match (left, right) {
            ([Selector::Family], Operand::Word(word)) => {
                let ours = (*word == "ipv4") == (self.family == Family::V4);
                if ours == not { Vec::new() } else { vec![Match::default()] }
            }
            ([one], Operand::Word(word)) => word_is(*one, word, not).into_iter().collect(),
            ([one], Operand::Words(words)) => {
                words.iter().filter_map(|word| word_is(*one, word, not)).collect()
            }
            ([one], Operand::Number(number)) => vec![port_is(*one, (*number, *number))],
            // Of namespaces, which are nftables' whatever the host's driver is.
            (_, Operand::Address(_)) => Vec::new(),
            (_, Operand::Mark(mark)) => vec![Match { mark: Some(*mark), ..Match::default() }],
            // The set that packets fill; here a list of xt_recent.
            ([Selector::Family], Operand::Set(_)) => {
                vec![Match { resolver_lives: true, ..Match::default() }]
            }
            ([Selector::SocketUid], Operand::Set(set)) => {
                let ranges = self.users(set);
                let ranges = if not { ranges::other_users(&ranges) } else { ranges };
                ranges.into_iter().map(|users| Match { users: Some(users), ..Match::default() }).collect()
            }
            ([Selector::Ip4Destination | Selector::Ip6Destination], Operand::Set(set)) if not => {
                match self.networks(set).as_slice() {
                    [one] if one.prefix_len() > 0 => {
                        vec![Match { destination: Some((true, *one)), ..Match::default() }]
                    }
                    nets => ranges::other_networks(self.family, nets).into_iter().map(destination).collect(),
                }
            }
            (left, Operand::Set(set)) => {
                packed(self.elements(set).filter_map(|element| self.one(left, element)))
            }
            _ => Vec::new(),
        }
    }

    fn elements(&self, set: &str) -> impl Iterator<Item = &'a Element> + use<'a> {
        let found: Option<&'a NamedSet> = self.ruleset.sets.iter().find(|one| one.name == set);
        found.into_iter().flat_map(|set| &set.elements)
    }

    /// A set's users as ranges that neither overlap nor touch.
    fn users(&self, set: &str) -> Vec<(u32, u32)> {
        let uids: BTreeSet<u32> = self
            .elements(set)
            .filter_map(|element| match element.key.as_slice() {
                [Value::Uid(uid)] if *uid <= LAST_USER => Some(*uid),
                _ => None,
            })
            .collect();
        let mut ranges: Vec<(u32, u32)> = Vec::new();
        for uid in uids {
            match ranges.last_mut() {
                Some((_, last)) if last.checked_add(1) == Some(uid) => *last = uid,
                _ => ranges.push((uid, uid)),
            }
        }
        ranges
    }

    fn networks(&self, set: &str) -> Vec<IpNet> {
        let nets = self.elements(set).filter_map(|element| match element.key.as_slice() {
            [Value::Net(net)] => Some(*net),
            [Value::Address(address)] => Some(IpNet::from(*address)),
            _ => None,
        });
        nets.collect()
    }

    /// An element as a condition; nothing for what iptables cannot say or what nothing has.
    fn one(&self, left: &[Selector], element: &Element) -> Option<Match> {
        let mut all = Match::default();
        for (selector, value) in left.iter().zip(&element.key) {
            let next = match value {
                Value::Uid(uid) if *uid <= LAST_USER => {
                    Match { users: Some((*uid, *uid)), ..Match::default() }
                }
                Value::Ports(first, last) => port_is(*selector, (*first, *last)),
                Value::Address(address) => destination(IpNet::from(*address)),
                Value::Net(net) => destination(*net),
                Value::Interface(name) => word_is(*selector, name, false)?,
                Value::Tcp => word_is(*selector, "tcp", false)?,
                Value::Uid(_) => return None,
            };
            all = all.and(&next)?;
        }
        Some(all)
    }
}

fn unconditional(lines: &[Line]) -> bool {
    lines.last().is_some_and(|line| line.when == Match::default())
}

/// Everywhere is no condition; iptables leaves that out as well.
fn destination(net: IpNet) -> Match {
    if net.prefix_len() == 0 {
        return Match::default();
    }
    Match { destination: Some((false, net)), ..Match::default() }
}

/// A selector that is compared with a word.
fn word_is(selector: Selector, word: &str, not: bool) -> Option<Match> {
    let side = || Some((not, word.to_owned()));
    let protocol = ["tcp", "udp"].into_iter().find(|name| *name == word).map(|name| (not, name));
    Some(match selector {
        Selector::Protocol => Match { protocol: Some(protocol?), ..Match::default() },
        Selector::InputInterface => Match { input: side(), ..Match::default() },
        Selector::OutputInterface => Match { output: side(), ..Match::default() },
        Selector::DestinationType if word == "local" => Match { local: Some(!not), ..Match::default() },
        Selector::ConnectionStatus if word == "dnat" && !not => {
            Match { translated: true, ..Match::default() }
        }
        _ => return None,
    })
}

fn port_is(selector: Selector, ports: (u16, u16)) -> Match {
    let of = |protocol| Match { protocol: Some((false, protocol)), ..Match::default() };
    match selector {
        Selector::UdpSource => Match { source_port: Some(ports.0), ..of("udp") },
        Selector::UdpDestination => Match { ports: vec![ports], ..of("udp") },
        // The rule names the protocols itself.
        Selector::AnyDestination => Match { ports: vec![ports], ..Match::default() },
        _ => Match { ports: vec![ports], ..of("tcp") },
    }
}

/// Conditions that differ in their ports only, as few as can hold them; in order.
fn packed(conditions: impl Iterator<Item = Match>) -> Vec<Match> {
    let mut groups: BTreeMap<Match, Vec<(u16, u16)>> = BTreeMap::new();
    for mut one in conditions {
        let ports = std::mem::take(&mut one.ports);
        groups.entry(one).or_default().extend(ports);
    }
    let mut all = Vec::new();
    for (rest, ports) in groups {
        if ports.is_empty() {
            all.push(rest.clone());
        }
        let mut ports = ports.as_slice();
        while !ports.is_empty() {
            let (now, later) = ports.split_at(how_many(ports));
            all.push(Match { ports: now.to_vec(), ..rest.clone() });
            ports = later;
        }
    }
    all
}

/// How many of these fit into one rule; at least one.
fn how_many(ports: &[(u16, u16)]) -> usize {
    let mut room = PORTS_IN_A_RULE;
    let fits = |(first, last): &&(u16, u16)| {
        let needed = if first == last { 1 } else { 2 };
        let fits = needed <= room;
        room = room.saturating_sub(needed);
        fits
    };
    ports.iter().take_while(fits).count().max(1)
}
