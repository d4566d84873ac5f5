//! Finding the redirectors of others: two on one host take each other's traffic.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::Value as Json;

use super::RedirectError;
use super::iptables::{Family, Flavour, Tool};
use super::nftables::nft;
use crate::base::Fault;

/// A redirector that is not ours.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Foreign {
    /// Whose it is, such as `consul connect redirect-traffic`.
    pub owner: &'static str,
    /// Where it was found: `table inet consul_tproxy`, or a table with its chains.
    pub place: String,
    /// The command that removes it and nothing else, for a shell.
    pub removal: String,
}

/// Chains that iptables-based redirectors make, by how their names begin.
pub(super) const CHAINS: [(&str, &str); 5] = [
    ("CONSUL_", "consul connect redirect-traffic"),
    ("ISTIO_", "istio-iptables"),
    ("KUMA_", "kumactl install transparent-proxy"),
    ("PROXY_INIT_", "linkerd proxy-init"),
    ("APPMESH_", "App Mesh's script"),
];

/// Tables that nftables-based redirectors make, by how their names begin.
pub(super) const TABLES: [(&str, &str); 2] =
    [("consul_tproxy", "consul connect redirect-traffic"), ("istio-", "istio")];

/// Chains as they are found: where, and the tool that saves and restores them -> which of [`CHAINS`]
/// -> their names.
type Found = BTreeMap<(String, String), BTreeMap<usize, BTreeSet<String>>>;

/// The redirectors of others in the network namespace of the calling thread: as far as nf_tables shows
/// them, through `nft` or else `iptables-nft`, and those of `iptables-legacy` where it lets itself be asked. What is not installed shows
/// nothing.
///
/// # Errors
/// `ENM-R002` without the privilege; `ENM-R003` without the JSON of `nft`, where there is no `iptables-nft` either.
pub fn foreign() -> Result<Vec<Foreign>, Fault> {
    let mut found = Vec::new();
    let mut chains = Found::new();
    let tools = Tool::installed();
    match nft(&["-j", "list", "chains"], b"") {
        Ok(answer) => {
            let document: Json = serde_json::from_slice(&answer)
                .map_err(|error| RedirectError::Unreadable { message: error.to_string() })?;
            in_nftables(&document, &mut found, &mut chains);
        }
        Err(RedirectError::NoNft | RedirectError::NoJson | RedirectError::KernelLacks { .. })
            if !tools.is_empty() =>
        {
            in_iptables(tools.iter().find(|tool| tool.flavour == Flavour::Nft), &mut chains)?;
        }
        Err(error) => return Err(error.into()),
    }
    // It takes a privilege (CAP_NET_RAW) that setting rules in nf_tables does without.
    if let Err(error) = in_iptables(tools.iter().find(|tool| tool.flavour == Flavour::Legacy), &mut chains) {
        tracing::warn!(%error, "redirectors of others in iptables-legacy would not be seen");
    }
    found.extend(redirectors(chains));
    found.sort();
    found.dedup();
    Ok(found)
}

fn in_nftables(document: &Json, found: &mut Vec<Foreign>, chains: &mut Found) {
    let objects = document.get("nftables").and_then(Json::as_array);
    for chain in objects.into_iter().flatten().filter_map(|object| object.get("chain")) {
        let field = |key| chain.get(key).and_then(Json::as_str).unwrap_or_default();
        let (family, table, name) = (field("family"), field("table"), field("name"));
        if let Some((_, owner)) = TABLES.iter().find(|(prefix, _)| table.starts_with(prefix)) {
            found.push(Foreign {
                owner,
                place: format!("table {family} {table}"),
                removal: format!("nft delete table {family} {}", typed(table)),
            });
        } else {
            let tool = if family == "ip6" { "ip6tables-nft" } else { "iptables-nft" };
            remember(chains, format!("table {family} {table}"), removal(tool, table), name);
        }
    }
}

fn in_iptables(tool: Option<&Tool>, chains: &mut Found) -> Result<(), RedirectError> {
    let Some(tool) = tool else { return Ok(()) };
    for family in Family::BOTH {
        match tool.save(family) {
            Ok(saved) => in_saved(&saved, tool.name(family, "save").trim_end_matches("-save"), chains),
            // Without the program for IPv6 nobody has set rules with it.
            Err(RedirectError::NoIptables { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn in_saved(saved: &str, program: &str, chains: &mut Found) {
    let mut table = "";
    for line in saved.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = name;
        } else if let Some(name) = line.strip_prefix(':').and_then(|rest| rest.split(' ').next()) {
            remember(chains, format!("table {table} of {program}"), removal(program, table), name);
        }
    }
}

/// A name as a person has to type it into a shell. Tables are named by whoever makes them.
fn typed(name: &str) -> String {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "_-.".contains(letter);
    if name.chars().all(plain) {
        return name.to_owned();
    }
    let shown: String = name.chars().filter(|letter| !letter.is_control()).collect();
    format!("'{}'", shown.replace('\'', r"'\''"))
}

/// Every line of the table but those that define the chains or lead to them, as one transaction; the
/// rules of everybody else are put back as they were. `{}` stands for the prefix.
fn removal(tool: &str, table: &str) -> String {
    let table = typed(table);
    format!("{tool}-save -t {table} | grep -v -E '(^:| )({{}})' | {tool}-restore")
}

fn remember(chains: &mut Found, place: String, removal: String, name: &str) {
    if let Some(index) = CHAINS.iter().position(|(prefix, _)| name.starts_with(prefix)) {
        let owners = chains.entry((place, removal)).or_default();
        owners.entry(index).or_default().insert(name.to_owned());
    }
}

fn redirectors(chains: Found) -> impl Iterator<Item = Foreign> {
    let one = |place: &str, removal: &str, index: usize, names: &BTreeSet<String>| {
        let (prefix, owner) = CHAINS.get(index)?;
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let (place, removal) = (format!("{place}: {}", names.join(", ")), removal.replace("{}", prefix));
        Some(Foreign { owner, place, removal })
    };
    chains.into_iter().flat_map(move |((place, removal), owners)| {
        owners
            .into_iter()
            .filter_map(|(index, names)| one(&place, &removal, index, &names))
            .collect::<Vec<_>>()
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// For tests of the whole room.
    pub fn find(printed: &[u8]) {
        let (mut found, mut chains) = (Vec::new(), Found::new());
        in_nftables(&serde_json::from_slice(printed).unwrap_or_default(), &mut found, &mut chains);
        drop(redirectors(chains).collect::<Vec<_>>());
    }

    pub fn find_saved(text: &str) {
        let mut chains = Found::new();
        in_saved(text, "iptables-nft", &mut chains);
        drop(redirectors(chains).collect::<Vec<_>>());
    }

    #[test]
    fn redirectors_are_told_from_everybody_else() {
        let chain = |family: &str, table: &str, name: &str| serde_json::json!({"chain": {"family": family, "table": table, "name": name, "handle": 1}});
        let document = serde_json::json!({"nftables": [
            {"metainfo": {"version": "1.0.6"}},
            chain("ip", "nat", "DOCKER"),
            chain("ip", "nat", "CONSUL_PROXY_REDIRECT"),
            chain("ip", "nat", "CONSUL_PROXY_OUTPUT"),
            chain("ip6", "nat", "KUMA_MESH_OUTBOUND"),
            chain("inet", "consul_tproxy", "out"),
            chain("inet", "consul_tproxy", "in"),
            chain("inet", "enmesh", "out"),
            {"future": 7},
        ]});
        let find = |document: &Json| {
            let (mut found, mut chains) = (Vec::new(), Found::new());
            in_nftables(document, &mut found, &mut chains);
            found.extend(redirectors(chains));
            found.sort();
            found.dedup();
            found
        };
        let found = find(&document);
        let places: Vec<_> = found.iter().map(|f| f.place.as_str()).collect();
        assert_eq!(
            places,
            [
                "table inet consul_tproxy",
                "table ip nat: CONSUL_PROXY_OUTPUT, CONSUL_PROXY_REDIRECT",
                "table ip6 nat: KUMA_MESH_OUTBOUND",
            ]
        );
        assert_eq!(found[0].removal, "nft delete table inet consul_tproxy");
        assert!(found[2].removal.starts_with("ip6tables-nft-save -t nat"));
        assert_eq!(find(&serde_json::json!({})), []);
    }

    /// A person types what is shown.
    #[test]
    fn a_name_is_no_command() {
        assert_eq!(typed("consul_tproxy"), "consul_tproxy");
        assert_eq!(typed("istio-x;reboot\n"), "'istio-x;reboot'");
        assert_eq!(typed("istio-'$(id)'"), r"'istio-'\''$(id)'\'''");
        let chain = serde_json::json!({"chain": {"family": "inet", "table": "istio-`id`", "name": "x"}});
        let (mut found, mut chains) = (Vec::new(), Found::new());
        in_nftables(&serde_json::json!({ "nftables": [chain] }), &mut found, &mut chains);
        assert_eq!(found[0].removal, "nft delete table inet 'istio-`id`'");
    }

    #[test]
    fn redirectors_are_told_in_what_iptables_saves() {
        let saved = "*nat\n:PREROUTING ACCEPT [0:0]\n:DOCKER - [0:0]\n:ISTIO_OUTPUT - [0:0]\n-A OUTPUT -j ISTIO_OUTPUT\nCOMMIT\n";
        let mut chains = Found::new();
        in_saved(saved, "ip6tables-legacy", &mut chains);
        let found: Vec<Foreign> = redirectors(chains).collect();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].place, "table nat of ip6tables-legacy: ISTIO_OUTPUT");
        assert_eq!(
            found[0].removal,
            "ip6tables-legacy-save -t nat | grep -v -E '(^:| )(ISTIO_)' | ip6tables-legacy-restore"
        );
    }
}
