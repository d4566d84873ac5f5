//! Finding the redirectors of others: two on one host take each other's traffic.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value as Json;

use super::RedirectError;
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
const CHAINS: [(&str, &str); 4] = [
    ("CONSUL_", "consul connect redirect-traffic"),
    ("ISTIO_", "istio-iptables"),
    ("KUMA_", "kumactl install transparent-proxy"),
    ("PROXY_INIT_", "linkerd proxy-init"),
];

/// Tables that nftables-based redirectors make, by how their names begin.
const TABLES: [(&str, &str); 2] = [("consul_tproxy", "consul connect redirect-traffic"), ("istio-", "istio")];

/// The redirectors of others in the network namespace of the calling thread, as far as nf_tables
/// shows them: rules of `iptables-legacy` are not in there.
///
/// # Errors
/// `ENM-R001` without `nft`, `ENM-R002` without the privilege, `ENM-R003` without its JSON.
pub fn foreign() -> Result<Vec<Foreign>, Fault> {
    let answer = nft(&["-j", "list", "chains"], b"")?;
    let document: Json = serde_json::from_slice(&answer)
        .map_err(|error| RedirectError::Unreadable { message: error.to_string() })?;
    Ok(find(&document))
}

fn find(document: &Json) -> Vec<Foreign> {
    // (family, table, prefix) -> chains
    let mut chains: BTreeMap<(&str, &str, usize), Vec<&str>> = BTreeMap::new();
    let mut found = Vec::new();
    let objects = document.get("nftables").and_then(Json::as_array);
    for chain in objects.into_iter().flatten().filter_map(|object| object.get("chain")) {
        let field = |key| chain.get(key).and_then(Json::as_str).unwrap_or_default();
        let (family, table, name) = (field("family"), field("table"), field("name"));
        if let Some((_, owner)) = TABLES.iter().find(|(prefix, _)| table.starts_with(prefix)) {
            found.push(Foreign {
                owner,
                place: format!("table {family} {table}"),
                removal: format!("nft delete table {family} {table}"),
            });
        } else if let Some(index) = CHAINS.iter().position(|(prefix, _)| name.starts_with(prefix)) {
            chains.entry((family, table, index)).or_default().push(name);
        }
    }
    for ((family, table, index), mut names) in chains {
        let Some((prefix, owner)) = CHAINS.get(index) else { continue };
        names.sort_unstable();
        let tool = if family == "ip6" { "ip6tables-nft" } else { "iptables-nft" };
        found.push(Foreign {
            owner,
            place: format!("table {family} {table}: {}", names.join(", ")),
            // Every line of the table but those that define the chains or lead to them, as one
            // transaction; the rules of everybody else are put back as they were.
            removal: format!("{tool}-save -t {table} | grep -v -E '(^:| )({prefix})' | {tool}-restore"),
        });
    }
    found.sort();
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
