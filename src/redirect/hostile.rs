//! What tools print of the kernel's state, cut off and bent, and flags of any text: never a panic, and nothing of it comes out
//! again as something else than it was.

use std::collections::BTreeSet;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::{Value as Json, json};

use super::by_hand::{Flags, Names};
use super::foreign::tests as foreign;
use super::iptables::hostile as iptables;
use super::nftables::hostile as nftables;
use super::ruleset::tests::policies;
use super::takeover::hostile as takeover;
use super::{iptables::Family, ruleset};

/// Something that is done to a text.
#[derive(Debug, Clone)]
enum Bend {
    Cut(Index),
    Flip(Index, u8),
    Drop(Index, usize),
    Twice(Index, usize),
    Put(Index, &'static str),
}

/// What breaks readers that trust what they read.
const PIECES: [&str; 20] = [
    "\"",
    "\\",
    "{",
    "}",
    "[",
    "]",
    "\n",
    "\r",
    "\0",
    " ",
    "-A ",
    "*nat\n",
    ":ENMESH_",
    "COMMIT\n",
    "--comment ",
    "null",
    "18446744073709551616",
    "\u{1b}[2J",
    "';$(id)`id`",
    "::ffff:10.0.0.1/8",
];

fn bend() -> impl Strategy<Value = Bend> {
    let at = any::<Index>;
    prop_oneof![
        at().prop_map(Bend::Cut),
        (at(), any::<u8>()).prop_map(|(at, bits)| Bend::Flip(at, bits)),
        (at(), 1..40_usize).prop_map(|(at, length)| Bend::Drop(at, length)),
        (at(), 1..40_usize).prop_map(|(at, length)| Bend::Twice(at, length)),
        (at(), 0..PIECES.len()).prop_map(|(at, piece)| Bend::Put(at, PIECES[piece])),
    ]
}

fn bent(text: &str, bends: &[Bend]) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    for bend in bends {
        if bytes.is_empty() {
            break;
        }
        let (length, end) = (bytes.len(), |at: usize, more: usize, length: usize| (at + more).min(length));
        match bend {
            Bend::Cut(at) => bytes.truncate(at.index(length)),
            Bend::Flip(at, bits) => bytes[at.index(length)] ^= bits,
            Bend::Drop(at, more) => drop(bytes.drain(at.index(length)..end(at.index(length), *more, length))),
            Bend::Twice(at, more) => {
                let at = at.index(length);
                let piece = bytes[at..end(at, *more, length)].to_vec();
                bytes.splice(at..at, piece);
            }
            Bend::Put(at, piece) => drop(bytes.splice(at.index(length)..at.index(length), piece.bytes())),
        }
    }
    bytes
}

/// A listing, out of the commands with which a table is set.
fn listing(ruleset: &ruleset::Ruleset) -> String {
    let commands = ruleset::json::replace(ruleset);
    let objects = commands["nftables"].as_array().unwrap().iter().filter_map(|command| command.get("add"));
    let mut objects: Vec<Json> = objects.cloned().collect();
    for (handle, object) in objects.iter_mut().enumerate() {
        if let Some(rule) = object.get_mut("rule").and_then(Json::as_object_mut) {
            rule.insert("handle".to_owned(), handle.into());
        }
    }
    json!({ "nftables": objects }).to_string()
}

proptest! {
    #[test]
    fn what_nft_prints_is_read_or_refused((policy, live) in policies(), bends in vec(bend(), 0..6)) {
        let ruleset = ruleset::build(&policy, &live);
        let text = listing(&ruleset);
        // As it is, it is what was set.
        prop_assert_eq!(nftables::differences(&ruleset, text.as_bytes()), Some(Vec::new()));
        let bytes = bent(&text, &bends);
        for line in nftables::differences(&ruleset, &bytes).unwrap_or_default() {
            prop_assert!(!line.contains('\n'), "{:?}", line);
        }
        foreign::find(&bytes);
        takeover::of_nft(&bytes);
        super::trace::hostile::read(&bytes);
    }

    #[test]
    fn what_iptables_saves_is_read_and_comes_out_in_its_place(
        (policy, live) in policies(),
        bends in vec(bend(), 0..6),
        sixth in any::<bool>(),
    ) {
        let family = if sixth { Family::V6 } else { Family::V4 };
        let ruleset = ruleset::build(&policy, &live);
        let text = iptables::saved(&ruleset, family);
        let bytes = bent(&text, &bends);
        let bent = String::from_utf8_lossy(&bytes);
        // As it is, nothing differs: what is rendered is read as what was meant.
        prop_assert!(iptables::differences(&ruleset, &text, family).is_empty());
        iptables::differences(&ruleset, &bent, family);
        for line in iptables::removal(&bent) {
            prop_assert!(iptables::is_ours(&line), "{:?} out of {}", line, bent);
        }
        foreign::find_saved(&bent);
        takeover::of_saved(&bent);
    }
}

fn some_text() -> impl Strategy<Value = String> {
    prop_oneof![
        2 => any::<String>(),
        2 => "[0-9a-f:./-]{0,20}",
        1 => (0..PIECES.len()).prop_map(|piece| PIECES[piece].to_owned()),
        1 => (any::<u16>(), 0..PIECES.len()).prop_map(|(port, piece)| format!("{port}{}", PIECES[piece])),
        2 => any::<u16>().prop_map(|port| port.to_string()),
        1 => (any::<std::net::IpAddr>(), 0..130_u8).prop_map(|(ip, length)| format!("{ip}/{length}")),
    ]
}

/// What rules may consist of, beside their comments.
fn is_plain(letter: char) -> bool {
    letter.is_ascii_graphic() || " \t\n".contains(letter)
}

proptest! {
    /// Flags of any text: an error with a code, or rules that say what the policy says and nothing more.
    #[test]
    fn flags_are_refused_or_mean_one_thing(
        single in vec(proptest::option::of(some_text()), 8),
        many in vec(vec(some_text(), 0..4), 4),
        good in any::<bool>(),
    ) {
        let users = [("envoy".to_owned(), 5995), ("a'b\"; id".to_owned(), 7)].into();
        let names = Names { users, ports: [("ssh".to_owned(), 22)].into(), answers: &|_| false };
        let mut single = single.into_iter();
        let mut next = || single.next().flatten();
        let mut flags = Flags {
            proxy_uid: next(), proxy_id: next(), node_name: next(), inbound_port: next(), outbound_port: next(),
            dns_ip: next(), dns_port: next(), ipv6: next(),
            exclude_inbound_ports: many[0].clone(), exclude_outbound_ports: many[1].clone(),
            exclude_outbound_cidrs: many[2].clone(), exclude_uids: many[3].clone(),
        };
        if good {
            // So that more than a few come through: lists are what is long in practice.
            flags = Flags {
                proxy_uid: Some("envoy".to_owned()), inbound_port: Some("20000".to_owned()),
                exclude_inbound_ports: flags.exclude_inbound_ports,
                exclude_outbound_cidrs: flags.exclude_outbound_cidrs, ..Flags::default()
            };
        }
        let Ok(request) = flags.parse(&names) else { return Ok(()) };
        let Some(desired) = request.desired() else { return Ok(()) };
        let ruleset = ruleset::build(&desired.policy, &desired.live);
        let text = super::render_text(&desired.policy, &desired.live);
        prop_assert!(text.chars().all(is_plain), "{}", text);
        prop_assert_eq!(nftables::differences(&ruleset, listing(&ruleset).as_bytes()), Some(Vec::new()));
        for family in Family::BOTH {
            let saved = iptables::saved(&ruleset, family);
            prop_assert!(saved.chars().all(is_plain), "{}", saved);
            prop_assert!(iptables::differences(&ruleset, &saved, family).is_empty());
        }
        // The policy itself survives being written down.
        let written = serde_json::to_string(&desired.policy).unwrap();
        prop_assert_eq!(serde_json::from_str::<crate::plan::RedirectPolicy>(&written).unwrap(), desired.policy);
    }
}

/// Ten thousand of everything that there can be many of, overlapping and with host bits, and the same again.
#[test]
fn ten_thousand_entries_are_sets_and_not_rules() {
    let names = Names { users: [("envoy".to_owned(), 5995)].into(), ports: [].into(), answers: &|_| false };
    let numbered = |form: &dyn Fn(u32) -> String| (0..10_000).chain(0..100).map(form).collect::<Vec<_>>();
    let few = Flags {
        proxy_uid: Some("envoy".to_owned()),
        inbound_port: Some("20000".to_owned()),
        ..Flags::default()
    };
    let many = Flags {
        exclude_inbound_ports: numbered(&|n| (n + 30_000).to_string()),
        exclude_outbound_ports: numbered(&|n| format!("{}-{}", n + 1, n + 5)),
        exclude_outbound_cidrs: numbered(&|n| match n % 4 {
            0 => format!("10.{}.{}.7/20", n / 256, n % 256),
            1 => format!("10.{}.{}.0/25", n / 256, n % 256),
            2 => format!("::ffff:10.{}.{}.9/120", n / 256, n % 256),
            _ => format!("fd00:{n:x}::7/48"),
        }),
        exclude_uids: numbered(&|n| (n + 50_000).to_string()),
        ..few.clone()
    };
    let build = |flags: &Flags| {
        let desired = flags.parse(&names).unwrap().desired().unwrap();
        (ruleset::build(&desired.policy, &desired.live), desired)
    };
    let (few, _) = build(&few);
    let (many, desired) = build(&many);
    let rules =
        |ruleset: &ruleset::Ruleset| ruleset.chains.iter().map(|chain| chain.rules.len()).sum::<usize>();
    // A set that had been empty adds the rule that looks into it.
    assert!(rules(&many) <= rules(&few) + 6, "{} and {}", rules(&many), rules(&few));
    assert_eq!(desired.policy.bypass_uids.len(), 10_001);
    let capture = desired.policy.outbound.values().next().unwrap();
    assert!(capture.bypass.cidrs.iter().all(|net| net.addr() == net.network()), "no host bits");
    let mapped = capture.bypass.cidrs.iter().filter(|net| net.to_string().starts_with("::ffff:")).count();
    assert_eq!(mapped, 0, "IPv4-mapped networks are IPv4");
    // Sets that the kernel takes have no overlaps.
    for set in many.sets.iter().filter(|set| set.interval) {
        let keys: BTreeSet<String> =
            set.elements.iter().map(|element| format!("{:?}", element.key)).collect();
        assert_eq!(keys.len(), set.elements.len(), "{}", set.name);
    }
}
