//! The table that has the kernel tell of one flow, and its end.
//!
//! It is a table of its own for each process, so that nobody else's rules are touched and two who look do not disturb each
//! other. What makes it trace is in a set whose elements the kernel takes back: should this process be killed, packets are
//! traced no longer than it would have waited, and whoever looks next removes the table.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value as Json, json};

use super::Watch;
use crate::redirect::nftables::nft;
use crate::redirect::{Origin, RedirectError, Transport};

/// What the names of such tables begin with; a process number follows.
const PREFIX: &str = "enmesh_trace_";

/// Before connection tracking and everything that drops.
const FIRST: i32 = -350;
/// Behind connection tracking, which has to say what opens a conversation over UDP, and before NAT.
const FIRST_OF_UDP: i32 = -190;
/// Behind all rules of others.
const LAST: i32 = 1000;

/// Names of the chains: where tracing begins, and where a packet comes to that nobody has dropped.
pub(super) const BEGIN: &str = "begin";
pub(super) const ENDS: [(&str, &str); 3] =
    [("end_output", "output"), ("end_input", "input"), ("end_forward", "forward")];

/// More packets than this a second are not traced; one is enough.
const PER_SECOND: u32 = 10;

/// How much longer than the wait the kernel may trace, in seconds.
const SPARE: u64 = 2;

/// The table, until it is dropped.
pub(super) struct Tracing {
    pub name: String,
}

impl Tracing {
    /// Begins to trace, and removes what others have left behind.
    ///
    /// # Errors
    /// `ENM-R001` and the like: there is no `nft`, or it says no.
    pub fn begin(watch: &Watch, wait: Duration) -> Result<Tracing, RedirectError> {
        sweep()?;
        let tracing = Tracing { name: format!("{PREFIX}{}", std::process::id()) };
        let document = document(&tracing.name, watch, wait.as_secs() + SPARE).to_string();
        nft(&["-j", "-f", "-"], document.as_bytes())?;
        Ok(tracing)
    }
}

impl Drop for Tracing {
    fn drop(&mut self) {
        if let Err(error) = delete(&self.name) {
            tracing::warn!(%error, table = self.name, "the table stays, and traces nothing once its time is over");
        }
    }
}

fn delete(name: &str) -> Result<(), RedirectError> {
    nft(&["delete", "table", "inet", name], b"").map(drop)
}

/// Removes tables whose process is no more, and those that have lapsed.
fn sweep() -> Result<(), RedirectError> {
    let answer = nft(&["-j", "list", "tables", "inet"], b"")?;
    for name in left_behind(&answer, &|pid| Path::new(&format!("/proc/{pid}")).exists()) {
        // Somebody else may have been faster.
        let _ = delete(&name);
    }
    Ok(())
}

/// Tables of such a name whose process does not live. What else `nft` lists is nobody's of ours.
fn left_behind(answer: &[u8], lives: &dyn Fn(u32) -> bool) -> Vec<String> {
    let document: Json = serde_json::from_slice(answer).unwrap_or_default();
    let objects = document.get("nftables").and_then(Json::as_array).into_iter().flatten();
    let names = objects.filter_map(|object| object.get("table")?.get("name")?.as_str());
    let ours = std::process::id();
    let dead = |name: &&str| {
        let pid = name.strip_prefix(PREFIX).and_then(|pid| pid.parse().ok());
        // One with our own number is of an earlier process that had it.
        pid.is_some_and(|pid| pid == ours || !lives(pid))
    };
    names.filter(dead).map(str::to_owned).collect()
}

fn document(name: &str, watch: &Watch, seconds: u64) -> Json {
    let hook = match watch.flow.origin {
        Origin::User(_) => "output",
        Origin::Outside(_) => "prerouting",
    };
    let begins = if watch.flow.transport == Transport::Tcp { FIRST } else { FIRST_OF_UDP };
    let add = |kind: &str, fields: Json| {
        let mut object = json!({ "family": "inet", "table": name });
        if let (Some(object), Json::Object(fields)) = (object.as_object_mut(), fields) {
            object.extend(fields);
        }
        json!({ "add": { kind: object } })
    };
    let chain = |name: &str, hook: &str, priority: i32| {
        add(
            "chain",
            json!({ "name": name, "type": "filter", "hook": hook, "prio": priority, "policy": "accept" }),
        )
    };
    let armed = |family: &str| json!({ "elem": { "val": family, "timeout": seconds } });
    let mut commands = vec![
        json!({ "add": { "table": { "family": "inet", "name": name } } }),
        add("set", json!({ "name": "armed", "type": "nf_proto", "flags": ["timeout"] })),
        add("element", json!({ "name": "armed", "elem": [armed("ipv4"), armed("ipv6")] })),
        chain(BEGIN, hook, begins),
    ];
    commands.extend(ENDS.map(|(name, hook)| chain(name, hook, LAST)));
    commands.push(add("rule", json!({ "chain": BEGIN, "expr": rule(watch) })));
    json!({ "nftables": commands })
}

/// Traces what opens the flow.
fn rule(watch: &Watch) -> Vec<Json> {
    let Watch { flow, from } = watch;
    let is = |left: Json, right: Json| json!({ "match": { "op": "==", "left": left, "right": right } });
    let meta = |key: &str| json!({ "meta": { "key": key } });
    let field = |protocol: &str, field: &str| json!({ "payload": { "protocol": protocol, "field": field } });
    let family = |ip: IpAddr| if ip.is_ipv4() { "ip" } else { "ip6" };
    let mut parts = vec![is(meta("nfproto"), json!("@armed"))];
    match &flow.origin {
        Origin::User(uid) => parts.push(is(meta("skuid"), json!(uid))),
        Origin::Outside(interface) => {
            parts.extend(interface.iter().map(|name| is(meta("iifname"), json!(name))));
        }
    }
    if let Some(from) = from {
        parts.push(is(field(family(*from), "saddr"), json!(from.to_string())));
    }
    match flow.to.ip() {
        ip if ip.is_unspecified() => {
            parts.push(is(json!({ "fib": { "result": "type", "flags": ["daddr"] } }), json!("local")));
        }
        ip => parts.push(is(field(family(ip), "daddr"), json!(ip.to_string()))),
    }
    parts.push(is(field(flow.transport.word(), "dport"), json!(flow.to.port())));
    match flow.transport {
        Transport::Tcp => {
            let flags = json!({ "&": [field("tcp", "flags"), ["fin", "syn", "rst", "ack"]] });
            parts.push(is(flags, json!("syn")));
        }
        Transport::Udp => parts.push(json!({ "match": {
            "op": "in", "left": { "ct": { "key": "state" } }, "right": "new"
        } })),
    }
    parts.push(json!({ "limit": { "rate": PER_SECOND, "burst": PER_SECOND, "per": "second" } }));
    parts.push(json!({ "mangle": { "key": meta("nftrace"), "value": 1 } }));
    parts
}

#[cfg(test)]
pub(super) fn hostile(printed: &[u8]) {
    drop(left_behind(printed, &|_| false));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tables_of_the_dead_are_removed() {
        let ours = std::process::id();
        let names =
            ["enmesh", "enmesh_trace_1", "enmesh_trace_2", "enmesh_trace_x", "filter", "enmesh_trace_"];
        let tables = names.iter().map(|name| json!({ "table": { "family": "inet", "name": name } }));
        let own = json!({ "table": { "family": "inet", "name": format!("{PREFIX}{ours}") } });
        let answer = json!({ "nftables": tables.chain([own]).collect::<Vec<_>>() }).to_string();
        let found = left_behind(answer.as_bytes(), &|pid| pid != 2);
        assert_eq!(found, ["enmesh_trace_2".to_owned(), format!("{PREFIX}{ours}")]);
        assert!(left_behind(b"no JSON", &|_| false).is_empty());
    }
}
