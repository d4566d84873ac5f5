//! What has to be touched to make one ruleset into another.

use std::collections::BTreeSet;

use super::build::names;
use super::{Chain, Element, NamedSet, Ruleset, Value};

/// The difference between two rulesets, as steps in order. Chains and sets of one name have one
/// kind, always, so only their content can differ.
#[derive(Debug, Default)]
pub(super) struct Changes<'a> {
    /// Chains whose rules go, to come back changed or not at all.
    pub emptied: Vec<&'a Chain>,
    pub gone_chains: Vec<&'a Chain>,
    /// Sets that go, or go to come back with other elements.
    pub gone_sets: Vec<&'a NamedSet>,
    pub new_chains: Vec<&'a Chain>,
    pub new_sets: Vec<&'a NamedSet>,
    /// New interval sets, which are made in a transaction of their own before.
    pub early_sets: Vec<&'a NamedSet>,
    /// Sets and maps that stay, old and new, with elements that differ.
    pub elements: Vec<(&'a NamedSet, &'a NamedSet)>,
    /// Chains that get rules.
    pub filled: Vec<&'a Chain>,
}

impl<'a> Changes<'a> {
    pub fn between(old: &'a Ruleset, new: &'a Ruleset) -> Self {
        let mut changes = Changes::default();
        let mut remade = BTreeSet::new();
        for set in &old.sets {
            match new.sets.iter().find(|other| other.name == set.name) {
                Some(same) if same == set => {}
                Some(other) if is_apart(set, other) => changes.elements.push((set, other)),
                other => {
                    changes.gone_sets.push(set);
                    changes.new_sets.extend(other);
                    remade.insert(set.name);
                }
            }
        }
        let is_new = |set: &&NamedSet| !old.sets.iter().any(|other| other.name == set.name);
        let (early, late): (Vec<_>, Vec<_>) = new.sets.iter().filter(is_new).partition(|set| set.interval);
        changes.early_sets = early;
        changes.new_sets.extend(late);
        // A rule holds on to the set that it was made with.
        let holds = |chain: &Chain| chain.rules.iter().flat_map(names).any(|name| remade.contains(name));
        for chain in &old.chains {
            match new.chains.iter().find(|other| other.name == chain.name) {
                Some(same) if same == chain && !holds(chain) => {}
                Some(other) => {
                    changes.emptied.push(chain);
                    changes.filled.push(other);
                }
                None => {
                    changes.emptied.push(chain);
                    changes.gone_chains.push(chain);
                }
            }
        }
        for chain in &new.chains {
            if !old.chains.iter().any(|other| other.name == chain.name) {
                changes.new_chains.push(chain);
                changes.filled.push(chain);
            }
        }
        changes
    }
}

/// Whether one transaction can take out what is too much and put in what is missing. An interval that comes may not
/// overlap one that goes.
fn is_apart(old: &NamedSet, new: &NamedSet) -> bool {
    let missing = |from: &'_ NamedSet, than: &NamedSet| -> Vec<Element> {
        let there: BTreeSet<&Element> = than.elements.iter().collect();
        from.elements.iter().filter(|element| !there.contains(element)).cloned().collect()
    };
    let (gone, come) = (missing(old, new), missing(new, old));
    !old.dynamic() && (!old.interval || !come.iter().any(|come| gone.iter().any(|gone| overlap(gone, come))))
}

fn overlap(one: &Element, other: &Element) -> bool {
    one.key.iter().zip(&other.key).all(|(one, other)| match (one, other) {
        (Value::Ports(first, last), Value::Ports(from, to)) => first <= to && from <= last,
        (Value::Net(one), Value::Net(other)) => one.contains(other) || other.contains(one),
        (one, other) => one == other,
    })
}
