//! Rules on trial: they count while the kernel says so, and then those of before do.
//!
//! Both rulesets are in the one table. Each base chain begins with a look into the set `trial`, which has the
//! two families in it and loses them by itself when their time is over. From that moment on every packet goes
//! to the chains of before (the same names behind `before_`), or is left alone where there were none.
//! Nobody has to be alive for that.
//!
//! The set is one for all chains, so redirect and guard lapse at once. Between the two chains of one packet it
//! can lapse as well; then the packet was redirected and is let through, or was not and is let
//! through: towards the rules of before, never into a refusal that nobody asked for.

use super::{Chain, NamedSet, Operand, Part, Rule, Ruleset, Selector};

/// The set whose elements the kernel takes back.
pub(in crate::redirect) const TRIAL: &str = "trial";

/// Every chain and set that there can be, with its name while it waits to be in force again.
macro_rules! names {
    ($($name:literal)*) => {
        [$(($name, concat!("before_", $name))),*]
    };
}

const BEFORE: [(&str, &str); 47] = names!(
    "refuse" "bypass" "raw_dns" "raw_out" "raw_in" "out" "in" "guard_out" "guard_in" "generation"
    "bypass_uids" "proxy_uids" "bypass_net4" "bypass_net6" "broadcast4" "virtual4" "virtual6" "mesh4" "mesh6"
    "dns_uids" "dns_except" "dns_asked4" "dns_asked6" "dns_alive" "captured_uids" "uid_bypass_ports" "uid_bypass_net4"
    "uid_bypass_net6" "uid_allow6" "uid_refuse6" "uid_sealed" "uid_closed" "uid_redirect"
    "host_bypass_ports" "host_bypass_net4" "host_bypass_net6" "host_redirect" "sidecar_ports"
    "in_bypass_interfaces" "in_allow6" "in_refuse6" "in_refused" "in_redirect" "all_bypass_ports"
    "all_bypass_interfaces" "agent_ports" "all_redirect"
);

/// `new` while the trial lasts, and `before` afterwards.
pub(in crate::redirect) fn on_trial(new: Ruleset, before: Option<Ruleset>) -> Ruleset {
    let before = before.map(renamed).unwrap_or_default();
    let mut sets = vec![NamedSet {
        name: TRIAL,
        key: &[super::Kind::Family],
        value: None,
        interval: false,
        elements: Vec::new(),
    }];
    sets.extend(new.sets);
    sets.extend(before.sets);
    let mut chains = new.chains;
    // A hook that only the rules of before use is entered as well.
    for chain in &before.chains {
        let Some((name, _)) = BEFORE.iter().find(|(_, waiting)| *waiting == chain.name) else { continue };
        if chain.base.is_some() && !chains.iter().any(|other| other.name == *name) {
            chains.push(Chain { name, base: chain.base, rules: Vec::new() });
        }
    }
    for chain in chains.iter_mut().filter(|chain| chain.base.is_some()) {
        let waiting = waiting(chain.name);
        let otherwise = before.chains.iter().any(|other| other.name == waiting);
        let otherwise = if otherwise { Part::Goto(waiting) } else { Part::Accept };
        let lapsed = Part::IsNot(&[Selector::Family], Operand::Set(TRIAL));
        chain.rules.insert(0, Rule::new("when the trial is over", [lapsed, otherwise]));
    }
    chains.extend(before.chains.into_iter().map(|chain| Chain { base: None, ..chain }));
    Ruleset { sets, chains }
}

fn waiting(name: &'static str) -> &'static str {
    BEFORE.iter().find(|(now, _)| *now == name).map_or(name, |(_, waiting)| waiting)
}

/// The same under other names; without the chain that says which generation is in force.
fn renamed(ruleset: Ruleset) -> Ruleset {
    let sets = ruleset.sets.into_iter().map(|set| NamedSet { name: waiting(set.name), ..set });
    let chains = ruleset.chains.into_iter().filter(|chain| chain.name != "generation");
    let chains = chains.map(|chain| {
        let rules = chain.rules.into_iter().map(|rule| {
            let parts = rule.parts.into_iter().map(renamed_part).collect();
            Rule { parts, ..rule }
        });
        Chain { name: waiting(chain.name), rules: rules.collect(), ..chain }
    });
    Ruleset { sets: sets.collect(), chains: chains.collect() }
}

fn renamed_part(part: Part) -> Part {
    let operand = |operand| match operand {
        Operand::Set(name) => Operand::Set(waiting(name)),
        other => other,
    };
    match part {
        Part::Is(left, right) => Part::Is(left, operand(right)),
        Part::IsNot(left, right) => Part::IsNot(left, operand(right)),
        Part::Jump(chain) => Part::Jump(waiting(chain)),
        Part::Goto(chain) => Part::Goto(waiting(chain)),
        Part::Redirect(key, map) => Part::Redirect(key, waiting(map)),
        Part::Remember(set) => Part::Remember(waiting(set)),
        Part::NotOpening
        | Part::Accept
        | Part::Return
        | Part::Reset
        | Part::Prohibit
        | Part::Dnat(_)
        | Part::Zone(_)
        | Part::ZoneOfQuery(_) => part,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::build::{SHAPES, names};
    use super::super::tests::policies;
    use super::super::{build, husk};
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_name_has_one_to_wait_under() {
        let known: BTreeSet<&str> = BEFORE.iter().map(|(name, _)| *name).collect();
        assert_eq!(known.len(), BEFORE.len());
        for (name, ..) in SHAPES {
            assert!(known.contains(name), "{name}");
        }
        for chain in husk().chains {
            assert!(known.contains(chain.name), "{}", chain.name);
        }
    }

    proptest! {
        /// What waits names nothing that is in force, and what is in force nothing that waits, but in the
        /// rule that leads there.
        #[test]
        fn the_two_rulesets_share_nothing((new, live) in policies(), (old, was_live) in policies()) {
            let both = on_trial(build(&new, &live), Some(build(&old, &was_live)));
            let sets: BTreeSet<&str> = both.sets.iter().map(|set| set.name).collect();
            let chains: BTreeSet<&str> = both.chains.iter().map(|chain| chain.name).collect();
            prop_assert_eq!((sets.len(), chains.len()), (both.sets.len(), both.chains.len()));
            for chain in &both.chains {
                let waits = chain.name.starts_with("before_");
                prop_assert!(BEFORE.iter().any(|(now, later)| [*now, *later].contains(&chain.name)));
                prop_assert!(!(waits && chain.base.is_some()));
                let rules = chain.rules.iter().skip(usize::from(chain.base.is_some()));
                for name in rules.flat_map(names) {
                    prop_assert_eq!(name.starts_with("before_"), waits, "{}: {}", chain.name, name);
                }
            }
        }
    }
}
