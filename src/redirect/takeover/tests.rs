use serde_json::json;

use super::*;

fn rule(chain: &str, handle: u64, expr: serde_json::Value) -> serde_json::Value {
    json!({"rule": {"family": "ip", "table": "nat", "chain": chain, "handle": handle, "expr": expr}})
}

fn chain(family: &str, table: &str, name: &str) -> serde_json::Value {
    json!({"chain": {"family": family, "table": table, "name": name, "handle": 1}})
}

fn commands(leftover: &Leftover) -> Vec<serde_json::Value> {
    let Removal::Nft(text) = &leftover.removal else { panic!() };
    let document: serde_json::Value = serde_json::from_str(text).unwrap();
    document["nftables"].as_array().unwrap().clone()
}

#[test]
fn a_shared_table_loses_theirs_only() {
    let answer = json!({"nftables": [
        {"metainfo": {"version": "1.0.6"}},
        {"table": {"family": "ip", "name": "nat", "handle": 1}},
        chain("ip", "nat", "OUTPUT"), chain("ip", "nat", "DOCKER"), chain("ip", "nat", "CONSUL_PROXY_OUTPUT"),
        rule("OUTPUT", 7, json!([{"jump": {"target": "DOCKER"}}])),
        rule("OUTPUT", 8, json!([{"counter": {}}, {"jump": {"target": "CONSUL_PROXY_OUTPUT"}}])),
        rule("CONSUL_PROXY_OUTPUT", 9, json!([{"redirect": {"port": 15001}}])),
    ]});
    let found = nft::leftovers(answer.to_string().as_bytes()).unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].table.as_str(), found[0].whole), ("ip nat", false));
    assert_eq!(
        commands(&found[0]),
        [
            json!({"delete": {"rule": {"family": "ip", "table": "nat", "chain": "OUTPUT", "handle": 8}}}),
            json!({"flush": {"chain": {"family": "ip", "table": "nat", "name": "CONSUL_PROXY_OUTPUT"}}}),
            json!({"delete": {"chain": {"family": "ip", "table": "nat", "name": "CONSUL_PROXY_OUTPUT"}}}),
        ]
    );
}

#[test]
fn a_table_of_their_own_goes_whole() {
    let answer = json!({"nftables": [
        {"table": {"family": "inet", "name": "consul_tproxy"}}, chain("inet", "consul_tproxy", "out"),
        {"table": {"family": "inet", "name": "nat"}}, chain("inet", "nat", "CONSUL_NAT_OUTPUT"),
        {"table": {"family": "inet", "name": "mixed"}}, chain("inet", "mixed", "CONSUL_NAT_OUTPUT"),
        {"set": {"family": "inet", "table": "mixed", "name": "somebodys"}},
        {"table": {"family": "ip", "name": "nat"}}, chain("ip", "nat", "CONSUL_PROXY_OUTPUT"),
        {"table": {"family": "inet", "name": "enmesh"}}, chain("inet", "enmesh", "out"),
    ]});
    let found = nft::leftovers(answer.to_string().as_bytes()).unwrap();
    let whole: Vec<_> = found.iter().map(|one| (one.table.as_str(), one.whole)).collect();
    assert_eq!(
        whole,
        [("inet consul_tproxy", true), ("inet mixed", false), ("inet nat", true), ("ip nat", false)]
    );
    assert_eq!(commands(&found[2]), [json!({"delete": {"table": {"family": "inet", "name": "nat"}}})]);
}

#[test]
fn what_iptables_saves_is_taken_apart_by_the_line() {
    let saved = "*nat\n:OUTPUT ACCEPT [0:0]\n:DOCKER - [0:0]\n:CONSUL_PROXY_OUTPUT - [0:0]\n:CONSUL_PROXY_REDIRECT - [0:0]\n\
        -A OUTPUT -m comment --comment \"x -j CONSUL_PROXY_OUTPUT y\" -j DOCKER\n\
        -A OUTPUT -p tcp -j CONSUL_PROXY_OUTPUT\n-A OUTPUT -p tcp -j CONSUL_PROXY_OUTPUT\n\
        -A CONSUL_PROXY_OUTPUT -j CONSUL_PROXY_REDIRECT\n-A CONSUL_PROXY_REDIRECT -p tcp -j REDIRECT --to-ports 15001\nCOMMIT\n\
        *filter\n:INPUT ACCEPT [0:0]\nCOMMIT\n";
    let found = saved::leftovers(saved, "iptables-legacy", Flavour::Legacy, Family::V4);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].table, "nat of iptables-legacy");
    let Removal::Iptables(_, _, document) = &found[0].removal else { panic!() };
    assert_eq!(
        document,
        "*nat\n:CONSUL_PROXY_OUTPUT - [0:0]\n:CONSUL_PROXY_REDIRECT - [0:0]\n\
         -D OUTPUT -p tcp -j CONSUL_PROXY_OUTPUT\n-D OUTPUT -p tcp -j CONSUL_PROXY_OUTPUT\n\
         -X CONSUL_PROXY_OUTPUT\n-X CONSUL_PROXY_REDIRECT\nCOMMIT\n"
    );
}
