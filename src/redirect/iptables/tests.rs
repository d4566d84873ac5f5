//! What must hold for every policy, checked by walking the rules with made-up packets; and reading and
//! writing, without a kernel.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use proptest::prelude::*;

use super::compile::{Content, PREFIX, Table, Tables, compile};
use super::diff::{Wordings, differences};
use super::line::{Family, Line, Match, Target, quoted, unquoted};
use super::shape::{self, Shapes, document, saved};
use crate::plan::{DnsCapture, RedirectPolicy};
use crate::redirect::explain::walk::{End, Packet, base_chain};
use crate::redirect::explain::{Flow, Origin, Transport};
use crate::redirect::ruleset::tests::{destinations, policies};
use crate::redirect::ruleset::{self, Hook};

/// The longest name that iptables takes for a chain.
const LONGEST_NAME: usize = 28;

fn family_of(to: IpAddr) -> Family {
    if to.is_ipv4() { Family::V4 } else { Family::V6 }
}

fn holds(when: &Match, flow: &Flow, local: bool) -> bool {
    let (user, interface) = match &flow.origin {
        Origin::User(uid) => (Some(*uid), None),
        Origin::Outside(interface) => (None, interface.as_deref()),
    };
    let protocol = flow.transport.word();
    let sided = |side: Option<(bool, bool)>| side.is_none_or(|(not, is)| is != not);
    let port = flow.to.port();
    sided(when.destination.as_ref().map(|(not, net)| (*not, net.contains(&flow.to.ip()))))
        && sided(when.input.as_ref().map(|(not, name)| (*not, interface == Some(name))))
        && sided(when.protocol.map(|(not, name)| (not, name == protocol)))
        && !when.not_opening
        && (when.ports.is_empty() || when.ports.iter().any(|(first, last)| (*first..=*last).contains(&port)))
        && when.users.is_none_or(|(first, last)| user.is_some_and(|uid| (first..=last).contains(&uid)))
        && when.local.is_none_or(|wanted| wanted == local)
        && when.output.is_none()
        && when.source_port.is_none()
        && !when.translated
        // Packets of the resolver are no flow of anybody, and it lives.
        && when.mark.is_none()
}

/// What becomes of the first packet of a flow in a chain; `None` when the chain has nothing to say.
fn walk(content: &Content, chain: &str, flow: &Flow, local: bool) -> Option<End> {
    for Line { when, then, .. } in &content.chains[chain] {
        if !holds(when, flow, local) {
            continue;
        }
        match then {
            Target::Leave => return None,
            Target::Goto(to) => return walk(content, to, flow, local),
            Target::Call(to) => match walk(content, to, flow, local) {
                Some(end) => return Some(end),
                None => continue,
            },
            Target::Reset | Target::Prohibit => return Some(End::Refuse),
            Target::Redirect(port) => return Some(End::Redirect(*port)),
            Target::Dnat(to) => return Some(End::Dnat(*to)),
            Target::Zone(_) | Target::ZoneOfQuery(_) | Target::Remember => {}
        }
    }
    None
}

fn at(tables: &Tables, table: Table, own: &str, flow: &Flow, local: bool) -> Option<End> {
    let content = tables.get(&table)?;
    walk(content, content.jumps.get(own)?, flow, local)
}

fn flows(policy: &RedirectPolicy) -> Vec<Flow> {
    let mut targets = destinations(policy);
    let own: [IpAddr; 2] = ["10.9.0.2".parse().unwrap(), "fd09::2".parse().unwrap()];
    for port in [22, 53, 8080, 8081, 8082, 8083, 21000, 21003] {
        targets.extend(own.map(|ip| (ip, port)));
    }
    targets.push(("127.0.0.53".parse().unwrap(), 53));
    let users = [0, 102, 1000, 1001, 1002, 5995, 7777].map(Origin::User);
    let outside = ["eth0", "eth9", "lo"].map(|name| Origin::Outside(Some(name.to_owned())));
    let mut flows = Vec::new();
    for (ip, port) in targets {
        for origin in users.iter().chain(&outside) {
            for transport in [Transport::Tcp, Transport::Udp] {
                flows.push(Flow { origin: origin.clone(), transport, to: SocketAddr::new(ip, port) });
            }
        }
    }
    flows
}

fn with_dns(policy: &mut RedirectPolicy, dns: Option<(&str, Vec<u32>)>) {
    policy.dns = dns.map(|(to, uids)| DnsCapture {
        to: to.parse().unwrap(),
        uids: uids.into_iter().collect(),
        except: [102, 1001, 7777].into(),
        server: crate::plan::DnsServer::Ours,
    });
}

fn dns() -> impl Strategy<Value = Option<(&'static str, Vec<u32>)>> {
    let to = prop::sample::select(vec!["127.0.0.1:8600", "[::1]:8600", "10.9.0.1:53"]);
    prop::option::of((to, prop::collection::vec(1000..1003_u32, 0..3)))
}

proptest! {
    // Each goes through hundreds of flows.
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases.div_ceil(4), ..ProptestConfig::default() })]

    /// The walk over the ruleset is held against the kernel elsewhere; whatever it says, these rules say.
    #[test]
    fn every_flow_meets_the_same_fate_as_with_nftables(
        (mut policy, live) in policies(),
        dns in dns(),
        more_virtual in any::<bool>(),
    ) {
        with_dns(&mut policy, dns);
        if more_virtual {
            policy.virtual_nets.insert("11.8.0.0/16".parse().unwrap());
            policy.virtual_nets.insert("fd00:11::/64".parse().unwrap());
        }
        let ruleset = ruleset::build(&policy, &live);
        let own: BTreeSet<IpAddr> = ["10.9.0.2".parse().unwrap(), "fd09::2".parse().unwrap()].into();
        let tables = Family::BOTH.map(|family| compile(&ruleset, family));
        for flow in flows(&policy) {
            let packet = Packet::of(&flow, &own);
            let tables = &tables[usize::from(family_of(flow.to.ip()) == Family::V6)];
            let hooks = match flow.origin {
                Origin::User(_) => [(Hook::Output, true, "OUTPUT"), (Hook::Output, false, "OUTPUT")],
                Origin::Outside(_) => [(Hook::Prerouting, true, "PREROUTING"), (Hook::Input, false, "INPUT")],
            };
            for (hook, nat, chain) in hooks {
                let wanted = base_chain(&ruleset, hook, nat, &packet).map(|stop| stop.end);
                let wanted = wanted.filter(|end| *end != End::Accept);
                let table = if nat { Table::Nat } else { Table::Filter };
                let got = at(tables, table, chain, &flow, packet.is_for_this_host());
                prop_assert_eq!(got, wanted, "{:?} in {:?} {}", flow, table, chain);
            }
        }
    }

    /// Nobody else's chain is made, emptied or removed, and no rule goes into one but our jump.
    #[test]
    fn only_chains_of_ours_are_named((mut policy, live) in policies(), dns in dns()) {
        with_dns(&mut policy, dns);
        let ruleset = ruleset::build(&policy, &live);
        for family in Family::BOTH {
            let wanted = shape::wanted(&compile(&ruleset, family), family);
            let all = Table::ALL.into_iter().collect();
            for text in [
                document(&wanted, &Shapes::new(), &all),
                document(&Shapes::new(), &wanted, &all),
                document(&wanted, &wanted, &all),
            ] {
                check_names(&text)?;
            }
        }
    }

    #[test]
    fn the_same_policy_gives_the_same_bytes((policy, live) in policies()) {
        let [one, two] = [(); 2].map(|()| super::render(&ruleset::build(&policy.clone(), &live.clone())));
        prop_assert_eq!(one, two);
    }

    #[test]
    fn what_is_written_is_read(words in prop::collection::vec("[ -~]{1,20}", 1..5)) {
        prop_assert_eq!(unquoted(&quoted(&words)), words);
    }

    #[test]
    fn anything_can_be_read(text in "(\\*nat|\\*filter|:ENMESH_A|-A|-A ENMESH_A -j|\\PC{0,8}|[ \n\"\\\\])*") {
        let shapes = saved(&text);
        let _ = differences(&Shapes::new(), &shapes, Family::V4, &Wordings::default());
        prop_assert!(shapes.values().flat_map(|shape| shape.chains.keys()).all(|name| name.starts_with(PREFIX)));
    }
}

fn check_names(text: &str) -> Result<(), TestCaseError> {
    let mut declared = BTreeSet::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let ours = |name: &str| name.starts_with(PREFIX) && name.len() <= LONGEST_NAME;
        match *words.as_slice() {
            ["COMMIT"] => declared.clear(),
            [table] => prop_assert!(["*filter", "*raw", "*nat"].contains(&table), "{line}"),
            [name, "-", "[0:0]"] => {
                prop_assert!(name.strip_prefix(':').is_some_and(ours), "{line}");
                declared.insert(name.trim_start_matches(':'));
            }
            ["-X", name] => prop_assert!(ours(name), "{line}"),
            ["-I", _, "1", "-j", name] | ["-A" | "-D", "OUTPUT" | "PREROUTING" | "INPUT", "-j", name] => {
                prop_assert!(declared.contains(name), "{line}");
            }
            ["-A", name, ..] => {
                prop_assert!(declared.contains(name), "{line}");
                let goes_to = words.iter().position(|word| *word == "-g").map(|at| words[at + 1]);
                prop_assert!(goes_to.is_none_or(|chain| declared.contains(chain)), "{line}");
            }
            _ => prop_assert!(false, "{line}"),
        }
    }
    Ok(())
}

const SAVED: &str = r#"
# Generated by iptables-nft-save v9.9
*security
:ENMESH_ELSEWHERE - [0:0]
COMMIT
*nat
:OUTPUT ACCEPT [1:60]
:DOCKER - [0:0]
:ENMESH_OUT - [0:0]
-A OUTPUT -j DOCKER
-A OUTPUT -j ENMESH_OUT
-A OUTPUT -j LATER
-A DOCKER -p tcp -m tcp --dport 80 -j DNAT --to-destination 172.17.0.2:80
-A ENMESH_OUT -m hologram --depth 3 -m comment --comment "a user\'s \"own\"" -j RETURN
COMMIT
"#;

#[test]
fn only_ours_is_read_out_of_what_is_there() {
    let found = saved(SAVED);
    assert_eq!(found.keys().copied().collect::<Vec<_>>(), [Table::Nat]);
    let nat = &found[&Table::Nat];
    assert_eq!(nat.chains.keys().collect::<Vec<_>>(), ["ENMESH_OUT"]);
    assert_eq!(shape::comment(&nat.chains["ENMESH_OUT"][0]), Some("a user's \"own\""));
    assert_eq!((nat.jumps.len(), nat.jumps[0].from.as_str(), nat.jumps[0].in_place), (1, "OUTPUT", false));
    let removal = document(&Shapes::new(), &found, &BTreeSet::from([Table::Nat]));
    assert_eq!(removal, "*nat\n:ENMESH_OUT - [0:0]\n-D OUTPUT -j ENMESH_OUT\n-X ENMESH_OUT\nCOMMIT\n");
}

#[test]
fn a_jump_is_in_place_last_in_nat_and_first_elsewhere() {
    let place = |table: &str, rules: [&str; 2]| {
        let rules = rules.map(|target| format!("-A OUTPUT -j {target}\n")).concat();
        let found = saved(&format!("*{table}\n:ENMESH_A - [0:0]\n{rules}COMMIT\n"));
        found.into_values().next().unwrap().jumps[0].in_place
    };
    assert!(place("nat", ["DOCKER", "ENMESH_A"]) && !place("nat", ["ENMESH_A", "DOCKER"]));
    assert!(place("filter", ["ENMESH_A", "REJECT"]) && !place("filter", ["REJECT", "ENMESH_A"]));
}

#[test]
fn differences_name_what_is_amiss() {
    let found = saved(SAVED);
    let mut wanted = found.clone();
    let shape = wanted.get_mut(&Table::Nat).unwrap();
    shape.jumps[0].in_place = true;
    let compare = |wanted: &Shapes, wordings: &Wordings| {
        differences(wanted, &found, Family::V4, wordings).into_values().flatten().collect::<Vec<_>>()
    };
    assert_eq!(
        compare(&wanted, &Wordings::default()),
        ["~ jump from OUTPUT in table nat (IPv4): -j ENMESH_OUT: should be the last rule"]
    );
    // Another order of the same parts is the same; another wording is learnt; an edit is neither.
    let rules = wanted.get_mut(&Table::Nat).unwrap().chains.get_mut("ENMESH_OUT").unwrap();
    rules[0].rotate_left(4);
    assert_eq!(compare(&wanted, &Wordings::default()).len(), 1);
    let rules = wanted.get_mut(&Table::Nat).unwrap().chains.get_mut("ENMESH_OUT").unwrap();
    rules[0] = unquoted("-m hologram --depth 0x3 -m comment --comment \"a user\\'s \\\"own\\\"\" -j RETURN");
    let lines = compare(&wanted, &Wordings::default());
    assert!(
        lines[0].starts_with("+ rule in ENMESH_OUT in table nat (IPv4): -m hologram --depth 0x3"),
        "{lines:?}"
    );
    assert!(
        lines[1].starts_with("- rule in ENMESH_OUT in table nat (IPv4): -m hologram --depth 3"),
        "{lines:?}"
    );
    let mut wordings = Wordings::default();
    wordings.learn(&wanted, &found);
    assert_eq!(compare(&wanted, &wordings).len(), 1);
}
