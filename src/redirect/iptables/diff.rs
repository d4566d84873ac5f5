//! What differs between what shall be and what is, in lines for a person.

use std::collections::{BTreeMap, BTreeSet};

use super::compile::Table;
use super::line::{Family, quoted};
use super::shape::{Shape, Shapes, Words, comment};

/// How many rules of one chain are named; the rest is counted.
const NAMED_RULES: usize = 5;

/// How the installed iptables words the rules that we asked for: ours -> its.
#[derive(Debug, Default)]
pub(super) struct Wordings(BTreeMap<Vec<String>, Vec<String>>);

impl Wordings {
    /// From rules that were set a moment ago. Only rules that stand in the same place under the same comment
    /// count as the same.
    pub fn learn(&mut self, wanted: &Shapes, found: &Shapes) {
        for (table, shape) in wanted {
            for (chain, rules) in &shape.chains {
                let printed = found.get(table).and_then(|shape| shape.chains.get(chain));
                for (ours, theirs) in rules.iter().zip(printed.into_iter().flatten()) {
                    if comment(ours) == comment(theirs) && plain(ours) != plain(theirs) {
                        self.0.insert(plain(ours), plain(theirs));
                    }
                }
            }
        }
    }

    fn translate(&self, words: &Words) -> Vec<String> {
        let plain = plain(words);
        self.0.get(&plain).cloned().unwrap_or(plain)
    }
}

/// A rule without what does not matter: the order of its parts, and `-m`, which follows from them.
fn plain(words: &[String]) -> Vec<String> {
    let mut parts: Vec<String> = Vec::new();
    let mut negated = false;
    for word in words {
        if word == "!" {
            negated = true;
        } else if negated {
            parts.push(format!("! {word}"));
            negated = false;
        } else if word.starts_with('-') && word.len() > 1 {
            parts.push(word.clone());
        } else if let Some(part) = parts.last_mut() {
            part.push(' ');
            part.push_str(word);
        } else {
            parts.push(word.clone());
        }
    }
    parts.retain(|part| !part.starts_with("-m "));
    parts.sort_unstable();
    parts
}

/// The differences by table: `+` missing in `found`, `-` too much there, `~` different.
pub(super) fn differences(
    wanted: &Shapes,
    found: &Shapes,
    family: Family,
    wordings: &Wordings,
) -> BTreeMap<Table, Vec<String>> {
    let nothing = Shape::default();
    let tables: BTreeSet<Table> = wanted.keys().chain(found.keys()).copied().collect();
    let compare = |table: Table| {
        let (wanted, found) = (wanted.get(&table).unwrap_or(&nothing), found.get(&table).unwrap_or(&nothing));
        let place = format!("table {} ({})", table.word(), family.word());
        let mut lines = Vec::new();
        chains(wanted, found, &place, wordings, &mut lines);
        jumps(wanted, found, &place, table, &mut lines);
        (table, lines)
    };
    tables.into_iter().map(compare).filter(|(_, lines)| !lines.is_empty()).collect()
}

fn chains(wanted: &Shape, found: &Shape, place: &str, wordings: &Wordings, lines: &mut Vec<String>) {
    let names: BTreeSet<&String> = wanted.chains.keys().chain(found.chains.keys()).collect();
    for name in names {
        match (wanted.chains.get(name), found.chains.get(name)) {
            (Some(_), None) => lines.push(format!("+ chain {name} in {place}")),
            (None, Some(_)) => lines.push(format!("- chain {name} in {place}")),
            (Some(want), Some(is)) => rules(want, is, &format!("{name} in {place}"), wordings, lines),
            (None, None) => {}
        }
    }
}

fn rules(want: &[Words], is: &[Words], place: &str, wordings: &Wordings, lines: &mut Vec<String>) {
    let left: Vec<Vec<String>> = want.iter().map(|words| wordings.translate(words)).collect();
    let right: Vec<Vec<String>> = is.iter().map(|words| plain(words)).collect();
    if left == right {
        return;
    }
    let before = lines.len();
    surplus('+', &left, &right, want, place, lines);
    surplus('-', &right, &left, is, place, lines);
    if lines.len() == before {
        lines.push(format!("~ the rules of chain {place} stand in another order"));
    }
}

/// What `left` has more of than `right`, counting copies; `words` are those of `left` as they are written.
fn surplus(
    sign: char,
    left: &[Vec<String>],
    right: &[Vec<String>],
    words: &[Words],
    place: &str,
    lines: &mut Vec<String>,
) {
    let mut there: BTreeMap<&Vec<String>, usize> = BTreeMap::new();
    right.iter().for_each(|rule| *there.entry(rule).or_default() += 1);
    let mut rest = 0_usize;
    let mut named = 0_usize;
    for (rule, words) in left.iter().zip(words) {
        match there.get_mut(rule) {
            Some(copies) if *copies > 0 => *copies -= 1,
            _ if named < NAMED_RULES => {
                named += 1;
                lines.push(format!("{sign} rule in {place}: {}", quoted(words)));
            }
            _ => rest += 1,
        }
    }
    if rest > 0 {
        lines.push(format!("{sign} rules in {place}: {rest} more"));
    }
}

fn jumps(wanted: &Shape, found: &Shape, place: &str, table: Table, lines: &mut Vec<String>) {
    let mut rest: Vec<_> = found.jumps.iter().collect();
    for jump in &wanted.jumps {
        let is_it = |other: &&_| {
            let other: &super::shape::Jump = other;
            other.from == jump.from && plain(&other.words) == plain(&jump.words)
        };
        let what = format!("jump from {} in {place}: {}", jump.from, quoted(&jump.words));
        match rest.iter().position(is_it).map(|index| rest.remove(index)) {
            None => lines.push(format!("+ {what}")),
            Some(other) if !other.in_place => {
                let should = if table.jumps_first() { "first" } else { "last" };
                lines.push(format!("~ {what}: should be the {should} rule"));
            }
            Some(_) => {}
        }
    }
    for jump in rest {
        lines.push(format!("- jump from {} in {place}: {}", jump.from, quoted(&jump.words)));
    }
}
