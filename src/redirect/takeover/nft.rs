//! What is theirs in what `nft -j -a list ruleset` prints.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value as Json, json};

use super::{Leftover, Removal, owner_of_chain, owner_of_table};
use crate::redirect::RedirectError;

/// Tables that iptables-nft makes; they stay, also when they are empty.
const OF_IPTABLES: [&str; 5] = ["filter", "mangle", "nat", "raw", "security"];

/// One table as it is read.
#[derive(Default)]
struct Table<'a> {
    chains: BTreeSet<&'a str>,
    rules: Vec<&'a Json>,
    /// Sets, maps and whatever else a table can have.
    others: usize,
}

/// One for each table.
pub(super) fn leftovers(answer: &[u8]) -> Result<Vec<Leftover>, RedirectError> {
    let document: Json = serde_json::from_slice(answer)
        .map_err(|error| RedirectError::Unreadable { message: error.to_string() })?;
    let mut tables: BTreeMap<(&str, &str), Table<'_>> = BTreeMap::new();
    let objects = document.get("nftables").and_then(Json::as_array);
    for (kind, object) in objects.into_iter().flatten().filter_map(|one| one.as_object()?.iter().next()) {
        match kind.as_str() {
            "table" => drop(tables.entry((text(object, "family"), text(object, "name"))).or_default()),
            "metainfo" => {}
            kind => {
                let table = tables.entry((text(object, "family"), text(object, "table"))).or_default();
                match kind {
                    "chain" => drop(table.chains.insert(text(object, "name"))),
                    "rule" => table.rules.push(object),
                    _ => table.others += 1,
                }
            }
        }
    }
    Ok(tables.iter().filter_map(|(&name, table)| of_table(name, table)).collect())
}

fn text<'a>(object: &'a Json, key: &str) -> &'a str {
    object.get(key).and_then(Json::as_str).unwrap_or_default()
}

fn of_table((family, name): (&str, &str), table: &Table<'_>) -> Option<Leftover> {
    let by_table = owner_of_table(name);
    let is_theirs = |chain: &&str| by_table.is_some() || owner_of_chain(chain).is_some();
    let theirs: BTreeSet<&str> = table.chains.iter().copied().filter(is_theirs).collect();
    let owner = by_table.or_else(|| theirs.first().and_then(|chain| owner_of_chain(chain)))?;
    let leads = |rule: &&&Json| {
        !theirs.contains(text(rule, "chain")) && targets(rule).iter().any(|target| theirs.contains(target))
    };
    let jumps: Vec<&Json> = table.rules.iter().filter(leads).copied().collect();
    let nothing_else = theirs.len() == table.chains.len() && table.others == 0;
    let of_iptables = family.starts_with("ip") && OF_IPTABLES.contains(&name) && family != "inet";
    let whole = by_table.is_some() || (nothing_else && !of_iptables);
    let commands = if whole {
        vec![json!({"delete": {"table": {"family": family, "name": name}}})]
    } else {
        let chain = |name_of_chain: &&str| json!({"family": family, "table": name, "name": name_of_chain});
        let jump = |rule: &&Json| {
            let handle = rule.get("handle").cloned().unwrap_or_default();
            json!({"delete": {"rule": {"family": family, "table": name, "chain": text(rule, "chain"), "handle": handle}}})
        };
        let empty = theirs.iter().map(|one| json!({"flush": {"chain": chain(one)}}));
        let delete = theirs.iter().map(|one| json!({"delete": {"chain": chain(one)}}));
        jumps.iter().map(jump).chain(empty).chain(delete).collect()
    };
    Some(Leftover {
        owner,
        table: format!("{family} {name}"),
        chains: theirs.iter().map(|&chain| chain.to_owned()).collect(),
        jumps: jumps.iter().map(|rule| shown(rule)).collect(),
        whole,
        removal: Removal::Nft(json!({"nftables": commands}).to_string()),
    })
}

fn statements(rule: &Json) -> impl Iterator<Item = &Json> {
    rule.get("expr").and_then(Json::as_array).into_iter().flatten()
}

fn targets(rule: &Json) -> Vec<&str> {
    statements(rule)
        .filter_map(|one| one.get("jump").or_else(|| one.get("goto"))?.get("target")?.as_str())
        .collect()
}

fn shown(rule: &Json) -> String {
    let target = targets(rule).first().copied().unwrap_or_default();
    let handle = rule.get("handle").and_then(Json::as_u64).unwrap_or_default();
    format!("{}: jump {target} (handle {handle})", text(rule, "chain"))
}
