//! What of ours is in the tables of one family, in words: as it shall be, as `iptables-save` shows it,
//! and as `iptables-restore` takes it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::compile::{PREFIX, Table, Tables};
use super::line::{Family, quoted, unquoted};
use crate::plan::Generation;
use crate::redirect::ruleset;

/// The words of a rule behind `-A CHAIN`.
pub(super) type Words = Vec<String>;

/// The tables that have something of ours.
pub(super) type Shapes = BTreeMap<Table, Shape>;

/// What of ours is in one table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Shape {
    pub chains: BTreeMap<String, Vec<Words>>,
    /// Rules in chains of others that lead to ours.
    pub jumps: Vec<Jump>,
}

/// A rule in a chain of others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Jump {
    pub from: String,
    pub words: Words,
    /// Whether it stands where ours do.
    pub in_place: bool,
}

/// `tables` in words.
pub(super) fn wanted(tables: &Tables, family: Family) -> Shapes {
    let shape = |content: &super::compile::Content| {
        let words = |lines: &Vec<super::line::Line>| lines.iter().map(|line| line.words(family)).collect();
        let chains = content.chains.iter().map(|(name, lines)| (name.clone(), words(lines))).collect();
        let jump = |(from, to): (&&'static str, &String)| Jump {
            from: (*from).to_owned(),
            words: vec!["-j".to_owned(), to.clone()],
            in_place: true,
        };
        Shape { chains, jumps: content.jumps.iter().map(jump).collect() }
    };
    tables.iter().map(|(table, content)| (*table, shape(content))).collect()
}

/// What of ours `iptables-save` printed. Everything else is passed over, whatever it is.
pub(super) fn saved(text: &str) -> Shapes {
    let mut shapes = Shapes::new();
    let mut table = None;
    // How many rules each chain of others has, to know a last one.
    let mut counts: BTreeMap<(Table, String), usize> = BTreeMap::new();
    let mut places: Vec<(Table, usize, usize)> = Vec::new();
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('*') {
            table = Table::ALL.into_iter().find(|table| table.word() == name);
        }
        let Some(table) = table else { continue };
        if let Some(chain) = line.strip_prefix(':').and_then(|rest| rest.split(' ').next()) {
            if chain.starts_with(PREFIX) && is_name(chain) {
                shapes.entry(table).or_default().chains.entry(chain.to_owned()).or_default();
            }
        } else if let Some(rule) = line.strip_prefix("-A ") {
            let mut words = unquoted(rule);
            if words.is_empty() {
                continue;
            }
            let chain = words.remove(0);
            if !is_name(&chain) {
                continue;
            }
            if chain.starts_with(PREFIX) {
                shapes.entry(table).or_default().chains.entry(chain).or_default().push(words);
                continue;
            }
            let count = counts.entry((table, chain.clone())).or_default();
            *count += 1;
            if target(&words).is_some_and(|target| target.starts_with(PREFIX)) {
                let jumps = &mut shapes.entry(table).or_default().jumps;
                places.push((table, jumps.len(), *count));
                jumps.push(Jump { from: chain, words, in_place: false });
            }
        }
    }
    for (table, index, place) in places {
        let Some(jump) = shapes.get_mut(&table).and_then(|shape| shape.jumps.get_mut(index)) else {
            continue;
        };
        let all = counts.get(&(table, jump.from.clone())).copied().unwrap_or_default();
        jump.in_place = place == if table.jumps_first() { 1 } else { all };
    }
    shapes
}

/// Whether a chain can have this name: what is read here is written again, as a word that is not quoted.
fn is_name(chain: &str) -> bool {
    !chain.is_empty() && chain.bytes().all(|byte| byte.is_ascii_graphic() && !b"\"'\\".contains(&byte))
}

/// The chain or extension that a rule leads to.
pub(super) fn target(words: &[String]) -> Option<&str> {
    let flag = words.iter().position(|word| matches!(word.as_str(), "-j" | "-g"))?;
    words.get(flag + 1).map(String::as_str)
}

/// A rule's comment.
pub(super) fn comment(words: &[String]) -> Option<&str> {
    let flag = words.iter().position(|word| word == "--comment")?;
    words.get(flag + 1).map(String::as_str)
}

/// The comments of all rules of our chains in `table`, in order, out of what `iptables-save` prints.
pub(in crate::redirect) fn comments(text: &str, table: &str) -> BTreeMap<String, Vec<Option<String>>> {
    let shapes = saved(text);
    let shape = shapes.iter().find(|(one, _)| one.word() == table).map(|(_, shape)| shape);
    let of_chain = |(name, rules): (&String, &Vec<Vec<String>>)| {
        let comments = rules.iter().map(|words| comment(words).map(str::to_owned)).collect();
        (name.clone(), comments)
    };
    shape.into_iter().flat_map(|shape| &shape.chains).map(of_chain).collect()
}

/// The generation that all tables carry; nothing when they do not carry the same.
pub(super) fn generation(all: &[Shapes]) -> Option<Generation> {
    let of_table = |shape: &Shape| {
        let words = shape.chains.values().flatten();
        words.filter_map(|words| comment(words)).find_map(ruleset::generation_of)
    };
    let mut found = all.iter().flat_map(BTreeMap::values).map(of_table);
    let first = found.next()??;
    found.all(|other| other.as_ref() == Some(&first)).then_some(first)
}

/// What `iptables-restore --noflush` takes to make `found` be `wanted` in the tables of `which`: each table
/// in one step, and nothing of anybody else touched.
pub(super) fn document(wanted: &Shapes, found: &Shapes, which: &BTreeSet<Table>) -> String {
    let nothing = Shape::default();
    let mut text = String::new();
    for table in which {
        let (wanted, found) = (wanted.get(table).unwrap_or(&nothing), found.get(table).unwrap_or(&nothing));
        let _ = writeln!(text, "*{}", table.word());
        // Makes it, or empties it.
        let names: BTreeSet<&String> = wanted.chains.keys().chain(found.chains.keys()).collect();
        for name in &names {
            let _ = writeln!(text, ":{name} - [0:0]");
        }
        for jump in &found.jumps {
            let _ = writeln!(text, "-D {} {}", jump.from, quoted(&jump.words));
        }
        for (name, rules) in &wanted.chains {
            for words in rules {
                let _ = writeln!(text, "-A {name} {}", quoted(words));
            }
        }
        for jump in &wanted.jumps {
            let (how, place) = if table.jumps_first() { ("-I", " 1") } else { ("-A", "") };
            let _ = writeln!(text, "{how} {}{place} {}", jump.from, quoted(&jump.words));
        }
        for gone in found.chains.keys().filter(|name| !wanted.chains.contains_key(*name)) {
            let _ = writeln!(text, "-X {gone}");
        }
        text.push_str("COMMIT\n");
    }
    text
}
