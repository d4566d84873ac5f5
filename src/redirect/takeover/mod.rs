//! Removing the redirectors of others, and nothing else.
//!
//! What is theirs are the chains whose names tell it, the rules that lead to those, and tables that they
//! made for themselves. Each table goes, or loses what is theirs in it, in one transaction; every rule of
//! anybody else stays as it is.

mod nft;
mod saved;
#[cfg(test)]
mod tests;

/// For tests of the whole room.
#[cfg(test)]
pub(super) mod hostile {
    use super::{Family, Flavour, nft, saved};

    pub fn of_nft(printed: &[u8]) {
        drop(nft::leftovers(printed));
    }

    pub fn of_saved(text: &str) {
        drop(saved::leftovers(text, "iptables-nft", Flavour::Nft, Family::V4));
    }
}

use serde::Serialize;

use super::RedirectError;
use super::foreign::{CHAINS, TABLES};
use super::iptables::{Family, Flavour, Tool};
use crate::base::Fault;

/// What is theirs in one table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Leftover {
    /// Whose it is.
    pub owner: &'static str,
    /// The table, such as `ip nat` or `nat of iptables-legacy`.
    pub table: String,
    /// Their chains.
    pub chains: Vec<String>,
    /// Rules of the table's other chains that lead to those, as they are listed.
    pub jumps: Vec<String>,
    /// Whether the whole table is theirs.
    pub whole: bool,
    #[serde(skip)]
    removal: Removal,
}

/// How it goes: the program's input, in one transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Removal {
    /// Commands for `nft -j`.
    Nft(String),
    /// A document for `iptables-restore --noflush`.
    Iptables(Flavour, Family, String),
}

/// What of other redirectors is in the network namespace of the calling thread: what nf_tables has, through `nft`
/// or else `iptables-nft`, and what iptables-legacy has.
///
/// # Errors
/// As [`foreign`](super::foreign()).
pub fn leftovers() -> Result<Vec<Leftover>, Fault> {
    let mut found = Vec::new();
    let tools = Tool::installed();
    match super::nftables::nft(&["-j", "-a", "list", "ruleset"], b"") {
        Ok(answer) => found.extend(nft::leftovers(&answer)?),
        Err(RedirectError::NoNft | RedirectError::NoJson | RedirectError::KernelLacks { .. })
            if !tools.is_empty() =>
        {
            found.extend(of_flavour(&tools, Flavour::Nft)?);
        }
        Err(error) => return Err(error.into()),
    }
    found.extend(of_flavour(&tools, Flavour::Legacy)?);
    Ok(found)
}

/// Rules of iptables, of both flavours, that send DNS to Consul and are in no chain of theirs. They are nobody's by
/// their names, so they stay.
pub fn dns_rules() -> Vec<String> {
    let mut found = Vec::new();
    for tool in Tool::installed() {
        for family in Family::BOTH {
            // What cannot be asked was said when the leftovers were looked for.
            let text = tool.save(family).unwrap_or_default();
            found.extend(saved::dns(&text, tool.name(family, "save").trim_end_matches("-save")));
        }
    }
    found
}

fn of_flavour(tools: &[Tool], flavour: Flavour) -> Result<Vec<Leftover>, RedirectError> {
    let mut found = Vec::new();
    let Some(tool) = tools.iter().find(|tool| tool.flavour == flavour) else { return Ok(found) };
    for family in Family::BOTH {
        match tool.save(family) {
            Ok(text) => {
                let program = tool.name(family, "save");
                found.extend(saved::leftovers(&text, program.trim_end_matches("-save"), flavour, family));
            }
            Err(RedirectError::NoIptables { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// Removes it. Call it when the rules that shall take its place are in force: with NAT of any kind left,
/// connections that it redirected live on.
///
/// # Errors
/// The kernel or the program refused; what is theirs is as it was.
pub fn remove(leftover: &Leftover) -> Result<(), Fault> {
    match &leftover.removal {
        Removal::Nft(document) => super::nftables::nft(&["-j", "-f", "-"], document.as_bytes()).map(drop)?,
        Removal::Iptables(flavour, family, document) => {
            let tool = Tool::of(*flavour)
                .ok_or_else(|| RedirectError::NoIptables { program: "iptables-restore".to_owned() })?;
            tool.load(*family, document)?;
        }
    }
    Ok(())
}

/// Whose the chain is, by its name.
fn owner_of_chain(name: &str) -> Option<&'static str> {
    CHAINS.iter().find(|(prefix, _)| name.starts_with(prefix)).map(|(_, owner)| *owner)
}

/// Whose the table is, by its name.
fn owner_of_table(name: &str) -> Option<&'static str> {
    TABLES.iter().find(|(prefix, _)| name.starts_with(prefix)).map(|(_, owner)| *owner)
}
