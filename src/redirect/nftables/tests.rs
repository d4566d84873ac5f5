//! Reading what other versions and other people write, without a kernel.

use std::collections::BTreeSet;

use serde_json::json;

use super::diff::{Wordings, differences};
use super::picture::Picture;
use crate::redirect::RedirectError;

fn picture(objects: serde_json::Value) -> Picture {
    Picture::of_answer(json!({ "nftables": objects }).to_string().as_bytes()).unwrap()
}

fn elements(elem: serde_json::Value) -> BTreeSet<String> {
    let set = json!([{"set": {"family": "inet", "table": "enmesh", "name": "s", "type": "x", "elem": elem}}]);
    picture(set).sets.remove("s").unwrap().elements
}

#[test]
fn intervals_are_the_same_however_they_are_cut() {
    let whole = elements(json!([{"prefix": {"addr": "10.0.0.0", "len": 23}}, "10.0.2.0", 80, 81]));
    let cut = elements(json!([
        {"range": ["10.0.0.0", "10.0.0.255"]},
        {"elem": {"val": {"prefix": {"addr": "10.0.1.0", "len": 24}}, "counter": {"packets": 3}}},
        "10.0.2.0",
        {"range": [80, 81]},
    ]));
    assert_eq!(whole, cut);
    assert_eq!(whole, BTreeSet::from(["10.0.0.0-10.0.2.0".to_owned(), "80-81".to_owned()]));
    // Neighbours of different users, families or targets stay apart.
    let apart = elements(json!([{"concat": [1, 80]}, {"concat": [2, 81]}, [80, 1], [81, 2], "::1", "eth0"]));
    assert_eq!(apart.len(), 6, "{apart:?}");
}

#[test]
fn wording_does_not_depend_on_order_handles_or_version() {
    let rule = |expr: serde_json::Value, handle: u32| {
        picture(json!([{"rule": {"chain": "c", "handle": handle, "comment": "r", "expr": expr}}]))
    };
    let ours = rule(
        json!([
            {"match": {"left": {"meta": {"key": "l4proto"}}, "right": "tcp", "op": "=="}},
            {"match": {"left": {"&": [{"payload": {"protocol": "tcp", "field": "flags"}}, ["fin", "syn"]]}, "right": "syn", "op": "!="}},
            {"redirect": {"port": {"map": {"key": {"payload": {"protocol": "tcp", "field": "dport"}}, "data": "@m"}}}},
        ]),
        1,
    );
    let theirs = rule(
        json!([
            {"match": {"op": "!=", "right": "syn", "left": {"&": [{"payload": {"field": "flags", "protocol": "tcp"}}, {"|": ["fin", "syn"]}]}}},
            {"counter": {"packets": 5, "bytes": 9}},
            {"redirect": {"port": {"map": {"data": "@m", "key": {"payload": {"field": "dport", "protocol": "tcp"}}}}}},
        ]),
        77,
    );
    assert_eq!(ours, theirs);
}

#[test]
fn what_is_unknown_is_a_difference_and_no_failure() {
    let wanted = picture(json!([]));
    let found = picture(json!([
        {"metainfo": {"version": "9.9"}},
        {"table": {"name": "enmesh", "flags": ["future"]}},
        {"flowtable": {"name": "f"}},
        {"rule": {"chain": "out", "expr": [{"hologram": {"depth": 3}}]}},
        "not even an object",
    ]));
    assert_eq!(
        differences(&wanted, &found, &Wordings::default()),
        ["- rule in out: hologram(depth(3))", "- flowtable f"]
    );
    for broken in ["", "[]", "{\"nftables\": 3}", "nft: not found"] {
        let error = Picture::of_answer(broken.as_bytes()).unwrap_err();
        assert!(matches!(error, RedirectError::Unreadable { .. }), "{broken}");
    }
}

#[test]
fn another_wording_is_learnt_and_an_edit_is_not() {
    let with = |word: &str, more: &[serde_json::Value]| {
        let mut objects = vec![json!({"rule": {"chain": "out", "comment": "a", "expr": [{word: null}]}})];
        objects.extend_from_slice(more);
        picture(serde_json::Value::Array(objects))
    };
    let (wanted, printed) = (with("accept", &[]), with("verdict", &[]));
    let mut wordings = Wordings::default();
    assert_eq!(
        differences(&wanted, &printed, &wordings),
        ["~ rule \"a\" in out is verdict, should be accept"]
    );
    wordings.learn(&wanted, &printed);
    assert!(differences(&wanted, &printed, &wordings).is_empty());
    assert_eq!(differences(&wanted, &with("drop", &[]), &wordings).len(), 1);
    let twice =
        with("verdict", &[json!({"rule": {"chain": "out", "comment": "a", "expr": [{"verdict": null}]}})]);
    assert_eq!(differences(&wanted, &twice, &wordings), ["- rule \"a\" in out: verdict"]);
}

#[test]
fn long_lists_of_differences_are_cut() {
    let set = |numbers: std::ops::Range<u32>| {
        picture(json!([{"set": {"name": "s", "elem": numbers.map(|n| n * 2).collect::<Vec<_>>()}}]))
    };
    let lines = differences(&set(0..100), &set(0..0), &Wordings::default());
    assert_eq!(lines.len(), 6);
    assert_eq!(lines.last().map(String::as_str), Some("+ set s: and 95 more"));
}
