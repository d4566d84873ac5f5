//! What differs between two pictures of a table, in lines for a person.

use std::collections::{BTreeMap, BTreeSet};

use super::picture::{Picture, RulePicture};

/// How many elements of one set are named; the rest is counted.
const NAMED_ELEMENTS: usize = 5;

/// How the installed `nft` words the rules that we asked for: ours -> its.
#[derive(Debug, Default)]
pub(super) struct Wordings(BTreeMap<RulePicture, String>);

impl Wordings {
    /// From a table that was set a moment ago. Only rules that stand in the same place under the
    /// same name count as the same.
    pub fn learn(&mut self, wanted: &Picture, found: &Picture) {
        for (chain, rules) in &wanted.rules {
            let printed = found.rules.get(chain).map_or(&[][..], Vec::as_slice);
            for (ours, theirs) in rules.iter().zip(printed) {
                if ours.comment == theirs.comment && ours.wording != theirs.wording {
                    self.0.insert(ours.clone(), theirs.wording.clone());
                }
            }
        }
    }

    fn translate(&self, rule: &RulePicture) -> RulePicture {
        match self.0.get(rule) {
            Some(wording) => RulePicture { comment: rule.comment.clone(), wording: wording.clone() },
            None => rule.clone(),
        }
    }
}

/// The differences: `+` missing in `found`, `-` too much there, `~` different.
pub(super) fn differences(wanted: &Picture, found: &Picture, wordings: &Wordings) -> Vec<String> {
    let mut lines = Vec::new();
    if wanted.generation != found.generation {
        let show = |g: &Option<_>| g.as_ref().map_or("none".to_owned(), ToString::to_string);
        lines.push(format!(
            "~ generation is {}, should be {}",
            show(&found.generation),
            show(&wanted.generation)
        ));
    }
    sets(wanted, found, &mut lines);
    for name in keys(&wanted.chains, &found.chains) {
        match (wanted.chains.get(name), found.chains.get(name)) {
            (Some(_), None) => lines.push(format!("+ chain {name}")),
            (None, Some(_)) => lines.push(format!("- chain {name}")),
            (Some(want), Some(is)) if want != is => {
                lines.push(format!("~ chain {name} is `{is}`, should be `{want}`"));
            }
            _ => {}
        }
    }
    for chain in keys(&wanted.rules, &found.rules) {
        let want: Vec<_> =
            wanted.rules.get(chain).into_iter().flatten().map(|rule| wordings.translate(rule)).collect();
        rules(chain, &want, found.rules.get(chain).map_or(&[], Vec::as_slice), &mut lines);
    }
    lines.extend(wanted.others.difference(&found.others).map(|other| format!("+ {other}")));
    lines.extend(found.others.difference(&wanted.others).map(|other| format!("- {other}")));
    lines
}

fn keys<'a, T, U>(left: &'a BTreeMap<String, T>, right: &'a BTreeMap<String, U>) -> BTreeSet<&'a str> {
    left.keys().chain(right.keys()).map(String::as_str).collect()
}

fn sets(wanted: &Picture, found: &Picture, lines: &mut Vec<String>) {
    for name in keys(&wanted.sets, &found.sets) {
        match (wanted.sets.get(name), found.sets.get(name)) {
            (Some(_), None) => lines.push(format!("+ set {name}")),
            (None, Some(_)) => lines.push(format!("- set {name}")),
            (Some(want), Some(is)) => {
                if want.shape != is.shape {
                    lines.push(format!("~ set {name} is `{}`, should be `{}`", is.shape, want.shape));
                }
                elements('+', name, want.elements.difference(&is.elements), lines);
                elements('-', name, is.elements.difference(&want.elements), lines);
            }
            (None, None) => {}
        }
    }
}

fn elements<'a>(sign: char, set: &str, elements: impl Iterator<Item = &'a String>, lines: &mut Vec<String>) {
    let mut rest = 0_usize;
    for (index, element) in elements.enumerate() {
        if index < NAMED_ELEMENTS {
            lines.push(format!("{sign} set {set}: {element}"));
        } else {
            rest += 1;
        }
    }
    if rest > 0 {
        lines.push(format!("{sign} set {set}: and {rest} more"));
    }
}

fn rules(chain: &str, want: &[RulePicture], is: &[RulePicture], lines: &mut Vec<String>) {
    if want == is {
        return;
    }
    let before = lines.len();
    let mut missing = surplus(want, is);
    for extra in surplus(is, want) {
        let twin = missing.iter().position(|rule| rule.comment == extra.comment && !extra.comment.is_empty());
        match twin.map(|index| missing.remove(index)) {
            Some(ours) => lines.push(format!(
                "~ rule \"{}\" in {chain} is {}, should be {}",
                ours.comment, extra.wording, ours.wording
            )),
            None if extra.comment.is_empty() => lines.push(format!("- rule in {chain}: {}", extra.wording)),
            None => lines.push(format!("- rule \"{}\" in {chain}: {}", extra.comment, extra.wording)),
        }
    }
    lines.extend(missing.iter().map(|rule| format!("+ rule \"{}\" in {chain}", rule.comment)));
    if lines.len() == before {
        lines.push(format!("~ the rules of chain {chain} stand in another order"));
    }
}

/// What `left` has more of than `right`, counting copies.
fn surplus(left: &[RulePicture], right: &[RulePicture]) -> Vec<RulePicture> {
    let mut right: Vec<&RulePicture> = right.iter().collect();
    let mut rest = Vec::new();
    for rule in left {
        match right.iter().position(|other| *other == rule) {
            Some(index) => drop(right.remove(index)),
            None => rest.push(rule.clone()),
        }
    }
    rest
}
