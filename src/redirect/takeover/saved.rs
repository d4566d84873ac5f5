//! What is theirs in what `iptables-save` prints.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::{Leftover, Removal, owner_of_chain};
use crate::redirect::iptables::{Family, Flavour};

/// One table as it is read.
#[derive(Default)]
struct Table<'a> {
    name: &'a str,
    chains: Vec<&'a str>,
    /// Chain and the rest of the line, verbatim: what `-D` takes.
    rules: Vec<(&'a str, &'a str)>,
}

/// One for each table and owner.
pub(super) fn leftovers(text: &str, program: &str, flavour: Flavour, family: Family) -> Vec<Leftover> {
    let mut found = Vec::new();
    let mut table = Table::default();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = Table { name, ..Table::default() };
        } else if let Some(chain) = line.strip_prefix(':').and_then(|rest| rest.split(' ').next()) {
            table.chains.push(chain);
        } else if let Some((chain, rule)) = line.strip_prefix("-A ").and_then(|rest| rest.split_once(' ')) {
            table.rules.push((chain, rule));
        } else if line == "COMMIT" {
            found.extend(of_table(&table, program, flavour, family));
        }
    }
    found
}

/// Rules outside of their chains that send queries to the port on which Consul answers names: a script's, and
/// names may depend on them. As they are listed, each with its table.
pub(super) fn dns(text: &str, program: &str) -> Vec<String> {
    let (mut table, mut found) = ("", Vec::new());
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = name;
        }
        let chain = line.strip_prefix("-A ").and_then(|rest| rest.split(' ').next());
        let theirs = chain.is_none_or(|chain| owner_of_chain(chain).is_some());
        let to_consul = line.ends_with(":8600") || line.ends_with("--to-ports 8600");
        if !theirs && to_consul && line.contains("--dport 53 ") {
            found.push(format!("{line} (table {table} of {program})"));
        }
    }
    found
}

fn of_table(table: &Table<'_>, program: &str, flavour: Flavour, family: Family) -> Option<Leftover> {
    let theirs: BTreeSet<&str> =
        table.chains.iter().copied().filter(|chain| owner_of_chain(chain).is_some()).collect();
    let owner = theirs.first().and_then(|chain| owner_of_chain(chain))?;
    let leads = |rule: &str| target(rule).is_some_and(|target| theirs.contains(target));
    let jumps: Vec<_> =
        table.rules.iter().filter(|(chain, rule)| !theirs.contains(chain) && leads(rule)).collect();
    let mut document = format!("*{}\n", table.name);
    for chain in &theirs {
        // A chain that is there and named is emptied.
        let _ = writeln!(document, ":{chain} - [0:0]");
    }
    for (chain, rule) in &jumps {
        let _ = writeln!(document, "-D {chain} {rule}");
    }
    for chain in &theirs {
        let _ = writeln!(document, "-X {chain}");
    }
    document.push_str("COMMIT\n");
    Some(Leftover {
        owner,
        table: format!("{} of {program}", table.name),
        chains: theirs.iter().map(|&chain| chain.to_owned()).collect(),
        jumps: jumps.iter().map(|(chain, rule)| format!("-A {chain} {rule}")).collect(),
        whole: false,
        removal: Removal::Iptables(flavour, family, document),
    })
}

/// Where a rule leads. A comment may hold any text, also one that looks like a target, but the
/// target is the last that a rule says.
fn target(rule: &str) -> Option<&str> {
    let at = [" -j ", " -g "].iter().filter_map(|flag| rule.rfind(flag)).max();
    let at =
        at.map(|at| at + 1).or_else(|| (rule.starts_with("-j ") || rule.starts_with("-g ")).then_some(0))?;
    rule.get(at + 3..)?.split(' ').next()
}
