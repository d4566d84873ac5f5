//! A table's JSON, brought into one form, whether we wrote it or `nft` printed it.
//!
//! Read leniently: `nft` says different things in different versions and may say more than we know.
//! What is unknown is kept as text, so that it shows as a difference and never as a failure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value as Json;

use crate::plan::Generation;
use crate::redirect::RedirectError;
use crate::redirect::ruleset::generation_of;

/// What a table contains, without handles and counters and with intervals merged.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Picture {
    pub generation: Option<Generation>,
    pub sets: BTreeMap<String, SetPicture>,
    /// What a chain is, by name.
    pub chains: BTreeMap<String, String>,
    /// The rules by chain, in order.
    pub rules: BTreeMap<String, Vec<RulePicture>>,
    /// Whatever else there is.
    pub others: BTreeSet<String>,
}

/// A set or map.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct SetPicture {
    /// Types and flags.
    pub shape: String,
    pub elements: BTreeSet<String>,
}

/// A rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct RulePicture {
    /// Its comment: its name.
    pub comment: String,
    /// What it does.
    pub wording: String,
}

impl Picture {
    /// Of what `nft -j list table` prints.
    ///
    /// # Errors
    /// It is not JSON of that kind.
    pub fn of_answer(answer: &[u8]) -> Result<Self, RedirectError> {
        let unreadable = |message: String| RedirectError::Unreadable { message };
        let document: Json = serde_json::from_slice(answer).map_err(|e| unreadable(e.to_string()))?;
        let objects = document.get("nftables").and_then(Json::as_array);
        let objects = objects.ok_or_else(|| unreadable("it has no list `nftables`".to_owned()))?;
        Ok(Self::of_objects(objects.iter()))
    }

    /// Of the commands with which we set a table.
    pub fn of_commands(document: &Json) -> Self {
        let commands = document.get("nftables").and_then(Json::as_array);
        Self::of_objects(commands.into_iter().flatten().filter_map(|command| command.get("add")))
    }

    fn of_objects<'a>(objects: impl Iterator<Item = &'a Json>) -> Self {
        let mut picture = Picture::default();
        let mut elements: BTreeMap<String, Vec<&Json>> = BTreeMap::new();
        for (kind, object) in objects.filter_map(Json::as_object).flatten() {
            match kind.as_str() {
                "metainfo" | "table" => {}
                "set" | "map" | "element" => {
                    if kind != "element" {
                        picture.add_set(object);
                    }
                    let more = object.get("elem").and_then(Json::as_array);
                    elements.entry(name(object, "name")).or_default().extend(more.into_iter().flatten());
                }
                "chain" => {
                    let fields = ["type", "hook", "prio", "policy"];
                    let shape = fields.map(|field| text(object.get(field).unwrap_or(&Json::Null))).join(" ");
                    picture.chains.insert(name(object, "name"), shape);
                }
                "rule" => picture.add_rule(object),
                _ => {
                    picture.others.insert(format!("{kind} {}", name(object, "name")));
                }
            }
        }
        for (set, elements) in elements {
            let set = picture.sets.entry(set).or_default();
            // What packets put there comes and goes.
            if set.shape.starts_with("nf_proto ") {
                continue;
            }
            if set.shape.starts_with("inet_proto ") {
                let named: Vec<Json> = elements.into_iter().map(protocol_element).collect();
                set.elements = merged(&named.iter().collect::<Vec<_>>());
            } else {
                set.elements = merged(&elements);
            }
        }
        picture
    }

    fn add_set(&mut self, object: &Json) {
        let field = |key| text(object.get(key).unwrap_or(&Json::Null));
        let mut flags: Vec<String> = match object.get("flags") {
            Some(Json::Array(flags)) => flags.iter().map(text).collect(),
            Some(flag) => vec![text(flag)],
            None => Vec::new(),
        };
        // Not told by nft 1.0.
        flags.retain(|flag| flag != "dynamic");
        flags.sort();
        let shape = format!("{} : {} [{}]", field("type"), field("map"), flags.join(","));
        self.sets.insert(name(object, "name"), SetPicture { shape, elements: BTreeSet::new() });
    }

    fn add_rule(&mut self, object: &Json) {
        let comment = name(object, "comment");
        if self.generation.is_none() {
            self.generation = generation_of(&comment);
        }
        let statements = object.get("expr").and_then(Json::as_array).into_iter().flatten();
        let statements = statements.filter(|statement| statement.get("counter").is_none());
        let mut wording: Vec<String> = statements.map(words).collect();
        // Implied by a look at a TCP header; nft 1.1 leaves it out.
        if wording.iter().any(|statement| statement.contains("tcp dport")) {
            wording.retain(|statement| statement != "meta l4proto == tcp");
        }
        let wording = wording.join("; ");
        self.rules.entry(name(object, "chain")).or_default().push(RulePicture { comment, wording });
    }
}

fn name(object: &Json, key: &str) -> String {
    object.get(key).and_then(Json::as_str).unwrap_or_default().to_owned()
}

/// A scalar as text; everything else as JSON.
fn text(value: &Json) -> String {
    match value {
        Json::Null => "-".to_owned(),
        Json::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// A statement or expression in words, much as nft would write it. Fields come in sorted order,
/// whatever order they were printed in, and nothing is left out.
fn words(value: &Json) -> String {
    let field = |object: &Json, key| object.get(key).map(words).unwrap_or_default();
    match value {
        Json::Array(items) => items.iter().map(words).collect::<Vec<_>>().join(", "),
        Json::Object(fields) => {
            let sorted: BTreeMap<&String, &Json> = fields.iter().collect();
            let said = sorted.into_iter().map(|(key, inner)| match key.as_str() {
                "match" => {
                    let (left, op) = (field(inner, "left"), field(inner, "op"));
                    let right = inner.get("right").unwrap_or(&Json::Null);
                    let named = left == "meta l4proto";
                    let right = if named { words(&protocols(right)) } else { words(right) };
                    format!("{left} {op} {right}")
                }
                "payload" => format!("{} {}", field(inner, "protocol"), field(inner, "field")),
                "meta" | "ct" if inner.as_object().is_some_and(|inner| inner.len() == 1) => {
                    format!("{key} {}", field(inner, "key"))
                }
                // What is not said of an element of a set.
                "elem" if inner.is_object() => format!("elem({})", words(&said_only(inner))),
                // A list of flags, in the words of nft 1.1.
                "|" => words(inner),
                _ if inner.is_null() => key.clone(),
                _ => format!("{key}({})", words(inner)),
            });
            said.collect::<Vec<_>>().join(" ")
        }
        scalar => text(scalar),
    }
}

fn said_only(object: &Json) -> Json {
    let fields = object.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null());
    Json::Object(fields.map(|(key, value)| (key.clone(), value.clone())).collect())
}

/// The same with protocols by name. `nft` takes the names from `/etc/protocols`, which a small system
/// does not have, and prints numbers there.
fn protocols(value: &Json) -> Json {
    match value {
        Json::Number(number) => match number.as_u64() {
            Some(6) => Json::from("tcp"),
            Some(17) => Json::from("udp"),
            _ => value.clone(),
        },
        Json::Array(items) => items.iter().map(protocols).collect(),
        Json::Object(fields) => {
            Json::Object(fields.iter().map(|(key, inner)| (key.clone(), protocols(inner))).collect())
        }
        other => other.clone(),
    }
}

/// The same for an element whose key is a protocol.
fn protocol_element(element: &Json) -> Json {
    match element.as_array().map(Vec::as_slice) {
        Some([key, value]) => Json::Array(vec![protocols(key), value.clone()]),
        _ => protocols(element),
    }
}

/// One component of an element.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    /// Of one kind of number (4 and 6: addresses; 0: others), first and last included.
    Interval(u8, u128, u128),
    Other(String),
}

/// What elements that may be merged have in common: the other components, and a map's value.
type Group = (Vec<Part>, Option<String>);

/// The elements as text, with intervals in the last component merged: kernels and versions cut
/// them up differently.
fn merged(elements: &[&Json]) -> BTreeSet<String> {
    let mut groups: BTreeMap<Group, Vec<(u8, u128, u128)>> = BTreeMap::new();
    let mut out = BTreeSet::new();
    for element in elements {
        let (mut key, value) = element_parts(element);
        match key.pop() {
            Some(Part::Interval(kind, first, last)) => {
                groups.entry((key, value)).or_default().push((kind, first, last));
            }
            last => {
                key.extend(last);
                out.insert(show(&key, value.as_deref()));
            }
        }
    }
    for ((key, value), mut intervals) in groups {
        intervals.sort_unstable();
        let mut joined: Vec<(u8, u128, u128)> = Vec::new();
        for (kind, first, last) in intervals {
            match joined.last_mut() {
                Some(one) if one.0 == kind && first <= one.2.saturating_add(1) => one.2 = one.2.max(last),
                _ => joined.push((kind, first, last)),
            }
        }
        for (kind, first, last) in joined {
            let mut key = key.clone();
            key.push(Part::Interval(kind, first, last));
            out.insert(show(&key, value.as_deref()));
        }
    }
    out
}

/// Key and value of an element: a scalar, a concatenation, a `[key, value]` pair of a map, or one
/// of these wrapped together with its properties.
fn element_parts(element: &Json) -> (Vec<Part>, Option<String>) {
    if let Some([key, value]) = element.as_array().map(Vec::as_slice) {
        return (element_parts(key).0, Some(text(value)));
    }
    if let Some(inner) = element.pointer("/elem/val") {
        return element_parts(inner);
    }
    match element.get("concat").and_then(Json::as_array) {
        Some(parts) => (parts.iter().map(part).collect(), None),
        None => (vec![part(element)], None),
    }
}

fn part(value: &Json) -> Part {
    interval(value)
        .map_or_else(|| Part::Other(text(value)), |(kind, first, last)| Part::Interval(kind, first, last))
}

fn interval(value: &Json) -> Option<(u8, u128, u128)> {
    if let Some(number) = value.as_u64() {
        return Some((0, number.into(), number.into()));
    }
    if let Some(text) = value.as_str() {
        let (kind, number) = number_of(text.parse().ok()?);
        return Some((kind, number, number));
    }
    if let Some([first, last]) = value.get("range").and_then(Json::as_array).map(Vec::as_slice) {
        let ((kind, first, _), (other, _, last)) = (interval(first)?, interval(last)?);
        return (kind == other).then_some((kind, first, last));
    }
    let prefix = value.get("prefix")?;
    let address: IpAddr = prefix.get("addr")?.as_str()?.parse().ok()?;
    let length = u8::try_from(prefix.get("len")?.as_u64()?).ok()?;
    let net = IpNet::new(address, length).ok()?;
    let ((kind, first), (_, last)) = (number_of(net.network()), number_of(net.broadcast()));
    Some((kind, first, last))
}

fn number_of(address: IpAddr) -> (u8, u128) {
    match address {
        IpAddr::V4(v4) => (4, u128::from(v4.to_bits())),
        IpAddr::V6(v6) => (6, v6.to_bits()),
    }
}

fn show(key: &[Part], value: Option<&str>) -> String {
    let key: Vec<String> = key.iter().map(show_part).collect();
    let key = key.join(" . ");
    value.map_or(key.clone(), |value| format!("{key} : {value}"))
}

fn show_part(part: &Part) -> String {
    let (kind, first, last) = match part {
        Part::Other(text) => return text.clone(),
        Part::Interval(kind, first, last) => (*kind, *first, *last),
    };
    let one = |number: u128| match kind {
        4 => std::net::Ipv4Addr::from_bits(u32::try_from(number).unwrap_or(u32::MAX)).to_string(),
        6 => std::net::Ipv6Addr::from_bits(number).to_string(),
        _ => number.to_string(),
    };
    if first == last { one(first) } else { format!("{}-{}", one(first), one(last)) }
}
