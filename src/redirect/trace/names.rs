//! Whose the rules are that a packet met, and what they are called: the kernel tells their numbers.

use std::collections::BTreeMap;

use serde_json::Value as Json;

use super::{Event, SeenRule, Verdict};
use crate::base::Fault;
use crate::redirect::iptables::{self, Family, Flavour, Tool};
use crate::redirect::nftables::nft;
use crate::redirect::{RedirectError, TABLE};

/// Comments of our rules, by family, table, chain and number.
#[derive(Debug, Default)]
pub(super) struct Names {
    comments: BTreeMap<(String, String, String, u64), String>,
    /// Whether our rules are where the kernel tells of them.
    pub told: bool,
    /// Whether there are any.
    pub there: bool,
}

/// The rules of ours in the tables that `events` are about.
pub(super) fn of(events: &[Event]) -> Result<Names, Fault> {
    let mut names = Names { told: true, ..Names::default() };
    let mut tables: Vec<(&str, &str)> =
        events.iter().map(|event| (event.family.as_str(), event.table.as_str())).collect();
    tables.sort_unstable();
    tables.dedup();
    for (family, table) in tables {
        if (family, table) == ("inet", TABLE) {
            let listed = nft(&["-j", "list", "table", family, table], b"")?;
            names.add(family, table, numbered(&listed));
        } else if matches!(family, "ip" | "ip6") && iptables::is_table(table) {
            let of_family = if family == "ip" { Family::V4 } else { Family::V6 };
            // Without the tool nobody has set rules of ours there.
            let Some(tool) = Tool::of(Flavour::Nft) else { continue };
            let Ok(listed) = nft(&["-j", "list", "table", family, table], b"") else { continue };
            let saved = tool.save(of_family)?;
            names.add(family, table, matched(&numbered(&listed), &iptables::comments(&saved, table)));
        }
    }
    if names.comments.is_empty() {
        names.told = !has_ours(Tool::of(Flavour::Legacy))?;
    }
    // A packet may pass by all of ours.
    names.there = !names.comments.is_empty()
        || !names.told
        || nft(&["-j", "list", "table", "inet", TABLE], b"").is_ok()
        || has_ours(Tool::of(Flavour::Nft))?;
    Ok(names)
}

fn has_ours(tool: Option<Tool>) -> Result<bool, RedirectError> {
    let Some(tool) = tool else { return Ok(false) };
    for family in Family::BOTH {
        if tool.save(family)?.contains(iptables::PREFIX) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A rule in a listing: its chain, its number, and its comment.
type Numbered = (String, u64, Option<String>);

impl Names {
    fn add(&mut self, family: &str, table: &str, rules: Vec<Numbered>) {
        for (chain, handle, comment) in rules {
            let key = (family.to_owned(), table.to_owned(), chain, handle);
            self.comments.extend(comment.map(|comment| (key, comment)));
        }
    }

    fn comment(&self, event: &Event) -> Option<&String> {
        let key = (event.family.clone(), event.table.clone(), event.chain.clone(), event.handle?);
        self.comments.get(&key)
    }
}

/// The rules of what `nft -j list table` prints, in order.
fn numbered(listed: &[u8]) -> Vec<Numbered> {
    let document: Json = serde_json::from_slice(listed).unwrap_or_default();
    let objects = document.get("nftables").and_then(Json::as_array).into_iter().flatten();
    let rule = |object: &Json| {
        let rule = object.get("rule")?;
        let text = |key| rule.get(key).and_then(Json::as_str).map(str::to_owned);
        Some((text("chain")?, rule.get("handle")?.as_u64()?, text("comment")))
    };
    objects.filter_map(rule).collect()
}

/// Comments of `iptables-save` for the rules of `nft`, which cannot read those of iptables: both print a chain's rules in
/// one order. Where the rules changed in between, a chain has another number of them, and says nothing.
fn matched(listed: &[Numbered], saved: &BTreeMap<String, Vec<Option<String>>>) -> Vec<Numbered> {
    let mut places: BTreeMap<&str, usize> = BTreeMap::new();
    let mut found = Vec::new();
    for (chain, handle, _) in listed {
        let place = places.entry(chain).or_default();
        let all = listed.iter().filter(|(other, ..)| other == chain).count();
        let of_chain = saved.get(chain).filter(|comments| comments.len() == all);
        let comment = of_chain.and_then(|comments| comments.get(*place)?.clone());
        *place += 1;
        found.push((chain.clone(), *handle, comment));
    }
    found
}

/// Whether a NAT chain that has rules of ours was asked.
pub(super) fn asked_nat(events: &[Event]) -> bool {
    events.iter().any(|event| match event.family.as_str() {
        "inet" => event.table == TABLE && matches!(event.chain.as_str(), "out" | "in"),
        _ => event.table == "nat" && event.chain.starts_with(iptables::PREFIX),
    })
}

/// The rule of ours that ends a packet's way through one base chain.
pub(super) fn stop(in_chain: &[Event], names: &Names) -> Option<SeenRule> {
    // These only choose a zone.
    let chooses = |event: &Event| event.chain.to_ascii_lowercase().contains("raw_");
    let ours = || in_chain.iter().filter(|event| names.comment(event).is_some() && !chooses(event));
    let last = ours().find(|event| {
        // A chain of iptables gives a packet back that it leaves alone.
        let left = event.verdict == Verdict::Return && event.chain.starts_with(iptables::PREFIX);
        left || matches!(event.verdict, Verdict::Accept | Verdict::Drop)
    })?;
    let refuses = last.verdict == Verdict::Drop;
    // How it is refused is no news; why is what the rule says that leads there.
    let led = ours().rfind(|event| event.verdict == Verdict::Goto(last.chain.clone()));
    let named = led.filter(|_| refuses).unwrap_or(last);
    let comment = names.comment(named)?.clone();
    let place = format!("chain {} of table {} {}", named.chain, named.family, named.table);
    Some(SeenRule { place, comment, refuses })
}

/// The rule of somebody else that drops the packet.
pub(super) fn dropped(in_chain: &[Event]) -> Option<String> {
    let Event { family, table, chain, handle, .. } =
        in_chain.iter().find(|event| event.verdict == Verdict::Drop)?;
    let by = handle.map_or("the policy".to_owned(), |handle| format!("rule {handle}"));
    Some(format!(
        "{by} of chain {chain} of table {family} {table} drops it (`nft -a list chain {family} {table} {chain}`)"
    ))
}

#[cfg(test)]
pub(super) fn hostile(printed: &[u8]) {
    drop(matched(&numbered(printed), &BTreeMap::new()));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(chain: &str, handle: u64, verdict: Verdict) -> Event {
        let (family, table) = ("inet".to_owned(), TABLE.to_owned());
        Event { id: 1, family, table, chain: chain.to_owned(), handle: Some(handle), verdict, packet: None }
    }

    fn names(rules: &[(&str, u64, &str)]) -> Names {
        let mut names = Names { told: true, ..Names::default() };
        let rules = rules
            .iter()
            .map(|(chain, handle, comment)| ((*chain).to_owned(), *handle, Some((*comment).to_owned())));
        names.add("inet", TABLE, rules.collect());
        names
    }

    #[test]
    fn a_refusal_is_named_by_what_leads_to_it() {
        let names =
            names(&[("guard_out", 1, "virtual IPs"), ("refuse", 2, "refuse TCP"), ("out", 3, "sidecars")]);
        let way =
            [event("guard_out", 1, Verdict::Goto("refuse".to_owned())), event("refuse", 2, Verdict::Drop)];
        let found = stop(&way, &names).unwrap();
        assert_eq!((found.comment.as_str(), found.refuses), ("virtual IPs", true));
        let found = stop(&[event("out", 3, Verdict::Accept)], &names).unwrap();
        assert_eq!((found.comment.as_str(), found.refuses), ("sidecars", false));
        assert_eq!(stop(&[event("out", 9, Verdict::Accept)], &names), None, "a rule that is not ours");
    }

    #[test]
    fn rules_of_iptables_are_told_by_their_place() {
        let listed: Vec<Numbered> =
            [("A", 4), ("B", 5), ("A", 9)].map(|(c, h)| (c.to_owned(), h, None)).into();
        let some = |text: &str| Some(text.to_owned());
        let saved = BTreeMap::from([("A".to_owned(), vec![some("first"), some("second")])]);
        let found = matched(&listed, &saved);
        assert_eq!(found[2], ("A".to_owned(), 9, some("second")));
        assert_eq!(found[1].2, None);
        let fewer = BTreeMap::from([("A".to_owned(), vec![some("first")])]);
        assert!(matched(&listed, &fewer).iter().all(|(.., comment)| comment.is_none()));
    }
}
