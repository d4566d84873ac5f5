//! The border between the host and the namespaces of services: a table of its own, `inet enmesh_border`,
//! in the host's namespace.
//!
//! | chain | hook | what | why |
//! |---|---|---|---|
//! | `raw` | filter prerouting, -300 | nobody in a namespace asks for loopback | a link that leads to the agent there takes such packets |
//! | `in`, `out` | nat prerouting, output, -101 | a sidecar's public port of this host leads into its namespace; from there, DNS to our resolver and Consul's xDS to the agent | before Docker's -100: the ports are of our own range |
//! | `post` | nat postrouting, 101 | what leaves a namespace gets an address of the host's | nobody beyond the host knows those networks |
//! | `local` | filter output, -50 | of the host's users, root and Consul's reach an application's port | checks of its health are run on the host |
//! | `forward` | filter forward, -50 | into a namespace passes only what was led there or is an answer | whoever has a route to the host has none to an application |
//!
//! It is nothing of [`Ruleset`](crate::redirect::ruleset): no capture and no liveness has a part in it.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddrV4};

use ipnet::Ipv4Net;
use serde_json::{Value as Json, json};

use super::diff::{self, Wordings};
use super::picture::Picture;
use super::{NAMED_DIFFERENCES, command, nft};
use crate::base::Fault;
use crate::plan::{Generation, Plan};
use crate::redirect::ruleset::generation_comment;
use crate::redirect::watch::{Drift, OwnCommits, Scope};
use crate::redirect::{BORDER, RedirectError};

/// What the border shall let pass.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Crossings {
    generation: Generation,
    ends: Vec<End>,
    /// Where the resolver listens on the host's ends.
    dns: Option<u16>,
    /// Consul's xDS on loopback.
    agent: Option<SocketAddrV4>,
    /// Who may call applications from the host.
    checkers: BTreeSet<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct End {
    link: String,
    net: Ipv4Net,
    inside: Ipv4Addr,
    inbound: Option<u16>,
    app: Option<u16>,
}

impl Crossings {
    /// Those of `plan`.
    pub fn of(plan: &Plan) -> Self {
        let end = |own: &crate::plan::NamespacePlan| End {
            link: own.link(),
            net: own.net,
            inside: own.inside(),
            inbound: own.inbound,
            app: own.app,
        };
        Crossings {
            generation: plan.generation.clone(),
            ends: plan.namespaces.values().map(end).collect(),
            dns: plan.dns.inside.first().map(std::net::SocketAddr::port),
            agent: plan.namespaces.values().find_map(|own| own.agent),
            checkers: plan.namespaces.values().flat_map(|own| own.checkers.iter().copied()).collect(),
        }
    }

    /// Whether there is no namespace and so no border.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    fn apps(&self) -> impl Iterator<Item = (u16, Ipv4Addr)> {
        self.ends.iter().filter_map(|end| Some((end.app?, end.inside)))
    }

    fn inbound(&self) -> impl Iterator<Item = (u16, Ipv4Addr)> {
        self.ends.iter().filter_map(|end| Some((end.inbound?, end.inside)))
    }

    /// As text that `nft -f` loads; it says the same as [`Crossings::commands`].
    pub fn text(&self) -> String {
        let mut text = format!("add table inet {BORDER}\ndelete table inet {BORDER}\n");
        if self.is_empty() {
            return text;
        }
        let list = |items: Vec<String>| items.join(", ");
        let links = list(self.ends.iter().map(|end| format!("\"{}\"", end.link)).collect());
        let nets = list(self.ends.iter().map(|end| end.net.to_string()).collect());
        let led = list(self.inbound().map(|(port, to)| format!("{port} : {to}")).collect());
        let open = list(self.inbound().map(|(port, to)| format!("{to} . {port}")).collect());
        let apps = list(self.apps().map(|(port, to)| format!("{to} . {port}")).collect());
        let checkers = list(self.checkers.iter().map(ToString::to_string).collect());
        let elements = |items: &str| {
            if !items.is_empty() { format!("\t\telements = {{ {items} }}\n") } else { String::new() }
        };
        let _ = write!(
            text,
            "table inet {BORDER} {{\n\
             \tset links {{\n\t\ttype ifname\n\t\telements = {{ {links} }}\n\t}}\n\n\
             \tset nets {{\n\t\ttype ipv4_addr\n\t\tflags interval\n\t\telements = {{ {nets} }}\n\t}}\n\n\
             \tset open {{\n\t\ttype ipv4_addr . inet_service\n{}\t}}\n\n\
             \tset apps {{\n\t\ttype ipv4_addr . inet_service\n{}\t}}\n\n\
             \tset checkers {{\n\t\ttype uid\n{}\t}}\n\n\
             \tmap led {{\n\t\ttype inet_service : ipv4_addr\n{}\t}}\n\n",
            elements(&open),
            elements(&apps),
            elements(&checkers),
            elements(&led),
        );
        for Chain { name, base, rules } in self.chains() {
            let _ = writeln!(text, "\tchain {name} {{");
            if let Some((kind, hook, priority)) = base {
                let _ = writeln!(text, "\t\ttype {kind} hook {hook} priority {priority}; policy accept;");
            }
            for Rule { comment, words, .. } in rules {
                let _ = writeln!(text, "\t\t{words} comment \"{comment}\"");
            }
            text.push_str("\t}\n");
        }
        text.push_str("}\n");
        text
    }

    /// One transaction that makes the table be there, whole, or be gone.
    fn commands(&self) -> Json {
        let table = json!({ "family": "inet", "name": BORDER });
        let mut commands =
            vec![json!({ "add": { "table": table } }), json!({ "delete": { "table": table } })];
        if !self.is_empty() {
            commands.push(json!({ "add": { "table": table } }));
            commands.extend(self.sets());
            for Chain { name, base, rules } in self.chains() {
                let mut chain = json!({ "family": "inet", "table": BORDER, "name": name });
                if let (Some((kind, hook, priority)), Some(fields)) = (base, chain.as_object_mut()) {
                    fields.insert("type".to_owned(), kind.into());
                    fields.insert("hook".to_owned(), hook.into());
                    fields.insert("prio".to_owned(), priority.into());
                    fields.insert("policy".to_owned(), "accept".into());
                }
                commands.push(json!({ "add": { "chain": chain } }));
                commands.extend(rules.into_iter().map(|rule| {
                    json!({ "add": { "rule": {
                        "family": "inet", "table": BORDER, "chain": name,
                        "expr": rule.parts, "comment": rule.comment,
                    } } })
                }));
            }
        }
        json!({ "nftables": commands })
    }

    fn sets(&self) -> [Json; 6] {
        let links: Vec<Json> = self.ends.iter().map(|end| json!(end.link)).collect();
        let net = |net: Ipv4Net| json!({ "prefix": { "addr": net.addr(), "len": net.prefix_len() } });
        let nets: Vec<Json> = self.ends.iter().map(|end| net(end.net)).collect();
        let open: Vec<Json> = self.inbound().map(|(port, to)| json!({ "concat": [to, port] })).collect();
        let apps: Vec<Json> = self.apps().map(|(port, to)| json!({ "concat": [to, port] })).collect();
        let checkers: Vec<Json> = self.checkers.iter().map(|uid| json!(uid)).collect();
        let led: Vec<Json> = self.inbound().map(|(port, to)| json!([port, to])).collect();
        let set = |name: &str, kind: Json, elements: Vec<Json>| {
            let mut set = json!({ "family": "inet", "table": BORDER, "name": name, "type": kind });
            if let (false, Some(fields)) = (elements.is_empty(), set.as_object_mut()) {
                fields.insert("elem".to_owned(), elements.into());
            }
            set
        };
        let mut networks = set("nets", json!("ipv4_addr"), nets);
        let mut map = set("led", json!("inet_service"), led);
        if let (Some(networks), Some(map)) = (networks.as_object_mut(), map.as_object_mut()) {
            networks.insert("flags".to_owned(), json!(["interval"]));
            map.insert("map".to_owned(), json!("ipv4_addr"));
        }
        [
            json!({ "add": { "set": set("links", json!("ifname"), links) } }),
            json!({ "add": { "set": networks } }),
            json!({ "add": { "set": set("open", json!(["ipv4_addr", "inet_service"]), open) } }),
            json!({ "add": { "set": set("apps", json!(["ipv4_addr", "inet_service"]), apps) } }),
            json!({ "add": { "set": set("checkers", json!("uid"), checkers) } }),
            json!({ "add": { "map": map } }),
        ]
    }

    fn chains(&self) -> Vec<Chain> {
        let mark = rule(generation_comment(&self.generation), "return", [json!({ "return": null })]);
        let mut from_outside = vec![led()];
        from_outside.extend(self.dns.map(to_resolver));
        from_outside.extend(self.agent.map(to_agent));
        vec![
            Chain { name: "generation", base: None, rules: vec![mark] },
            Chain { name: "raw", base: Some(("filter", "prerouting", -300)), rules: vec![to_loopback()] },
            Chain { name: "in", base: Some(("nat", "prerouting", -101)), rules: from_outside },
            Chain { name: "out", base: Some(("nat", "output", -101)), rules: vec![led()] },
            Chain { name: "post", base: Some(("nat", "postrouting", 101)), rules: vec![masquerade()] },
            Chain { name: "local", base: Some(("filter", "output", -50)), rules: local() },
            Chain { name: "forward", base: Some(("filter", "forward", -50)), rules: forward() },
        ]
    }
}

struct Chain {
    name: &'static str,
    base: Option<(&'static str, &'static str, i32)>,
    rules: Vec<Rule>,
}

/// A rule in both languages.
struct Rule {
    comment: String,
    words: String,
    parts: Vec<Json>,
}

fn rule(comment: impl Into<String>, words: impl Into<String>, parts: impl Into<Vec<Json>>) -> Rule {
    Rule { comment: comment.into(), words: words.into(), parts: parts.into() }
}

fn is(op: &str, left: Json, right: Json) -> Json {
    json!({ "match": { "op": op, "left": left, "right": right } })
}

fn payload(protocol: &str, field: &str) -> Json {
    json!({ "payload": { "protocol": protocol, "field": field } })
}

fn meta(key: &str) -> Json {
    json!({ "meta": { "key": key } })
}

fn own_address() -> Json {
    is("==", json!({ "fib": { "result": "type", "flags": ["daddr"] } }), json!("local"))
}

/// Not over loopback: an answer from a namespace would find no way back to such a caller.
fn led() -> Rule {
    let loopback = json!({ "prefix": { "addr": "127.0.0.0", "len": 8 } });
    let to = json!({ "map": { "key": payload("tcp", "dport"), "data": "@led" } });
    rule(
        "to a sidecar in its namespace",
        "ip daddr != 127.0.0.0/8 fib daddr type local dnat ip to tcp dport map @led",
        [
            is("!=", payload("ip", "daddr"), loopback),
            own_address(),
            json!({ "dnat": { "family": "ip", "addr": to } }),
        ],
    )
}

fn to_resolver(port: u16) -> Rule {
    rule(
        "DNS from a namespace",
        format!(
            "iifname @links fib daddr type local meta l4proto {{ tcp, udp }} th dport 53 redirect to :{port}"
        ),
        [
            is("==", meta("iifname"), json!("@links")),
            own_address(),
            is("==", meta("l4proto"), json!({ "set": ["tcp", "udp"] })),
            is("==", payload("th", "dport"), json!(53)),
            json!({ "redirect": { "port": port } }),
        ],
    )
}

/// The one way to a loopback address of the host's: whoever is led there has not asked for it.
fn to_agent(agent: SocketAddrV4) -> Rule {
    rule(
        "to Consul's agent",
        format!("iifname @links fib daddr type local tcp dport {} dnat ip to {agent}", agent.port()),
        [
            is("==", meta("iifname"), json!("@links")),
            own_address(),
            is("==", payload("tcp", "dport"), json!(agent.port())),
            json!({ "dnat": { "family": "ip", "addr": agent.ip(), "port": agent.port() } }),
        ],
    )
}

fn to_loopback() -> Rule {
    let loopback = json!({ "prefix": { "addr": "127.0.0.0", "len": 8 } });
    rule(
        "to the host's loopback",
        "iifname @links ip daddr 127.0.0.0/8 drop",
        [
            is("==", meta("iifname"), json!("@links")),
            is("==", payload("ip", "daddr"), loopback),
            json!({ "drop": null }),
        ],
    )
}

/// Also to another namespace: a service that calls itself would get a packet from its own address otherwise, which
/// the kernel does not believe.
fn masquerade() -> Rule {
    rule(
        "out of a namespace",
        "ip saddr @nets masquerade",
        [is("==", payload("ip", "saddr"), json!("@nets")), json!({ "masquerade": null })],
    )
}

fn running() -> Rule {
    rule(
        "connections that run already",
        "ct state established,related accept",
        [
            is("in", json!({ "ct": { "key": "state" } }), json!(["established", "related"])),
            json!({ "accept": null }),
        ],
    )
}

/// The host itself: only who looks after applications gets to one past its sidecar.
fn local() -> Vec<Rule> {
    let app =
        || is("==", json!({ "concat": [payload("ip", "daddr"), payload("tcp", "dport")] }), json!("@apps"));
    vec![
        running(),
        rule(
            "who checks an application",
            "ip daddr . tcp dport @apps meta skuid @checkers accept",
            [app(), is("==", meta("skuid"), json!("@checkers")), json!({ "accept": null })],
        ),
        rule(
            "past a sidecar, from the host",
            "ip daddr . tcp dport @apps reject with tcp reset",
            [app(), json!({ "reject": { "type": "tcp reset" } })],
        ),
    ]
}

fn forward() -> Vec<Rule> {
    let to_namespace = || is("==", meta("oifname"), json!("@links"));
    let open = json!({ "concat": [payload("ip", "daddr"), payload("tcp", "dport")] });
    let reject = |kind: Json| json!({ "reject": kind });
    vec![
        running(),
        rule(
            "a false sender",
            "iifname @links ip saddr != @nets drop",
            [
                is("==", meta("iifname"), json!("@links")),
                is("!=", payload("ip", "saddr"), json!("@nets")),
                json!({ "drop": null }),
            ],
        ),
        rule(
            "to a sidecar in its namespace",
            "oifname @links ct status dnat ip daddr . tcp dport @open accept",
            [
                to_namespace(),
                is("in", json!({ "ct": { "key": "status" } }), json!("dnat")),
                is("==", open, json!("@open")),
                json!({ "accept": null }),
            ],
        ),
        rule(
            "past a sidecar, TCP",
            "oifname @links meta l4proto tcp reject with tcp reset",
            [to_namespace(), is("==", meta("l4proto"), json!("tcp")), reject(json!({ "type": "tcp reset" }))],
        ),
        rule(
            "past a sidecar",
            "oifname @links reject with icmpx type admin-prohibited",
            [to_namespace(), reject(json!({ "type": "icmpx", "expr": "admin-prohibited" }))],
        ),
    ]
}

/// Sets the border's table in the network namespace of the calling thread. Keep one for as long as the
/// process runs.
#[derive(Debug, Default)]
pub struct Border {
    wordings: RefCell<Wordings>,
    set: RefCell<Option<Crossings>>,
    own: OwnCommits,
}

impl Border {
    /// One that has set nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// How the kernel's table differs from `wanted`, each line for a person.
    ///
    /// # Errors
    /// `nft` is not there, or does not answer.
    pub fn observe(&self, wanted: &Crossings) -> Result<Vec<String>, Fault> {
        Ok(self.differences(wanted)?)
    }

    fn differences(&self, wanted: &Crossings) -> Result<Vec<String>, RedirectError> {
        Ok(match (read()?, wanted.is_empty()) {
            (None, true) => Vec::new(),
            (None, false) => vec![format!("+ table inet {BORDER}")],
            (Some(_), true) => vec![format!("- table inet {BORDER}")],
            (Some(found), false) => {
                let wanted = Picture::of_commands(&wanted.commands());
                diff::differences(&wanted, &found, &self.wordings.borrow())
            }
        })
    }

    /// Makes the table be `wanted`, in one step, and reads it back. Returns what was amiss: nothing when all
    /// was as it had been set.
    ///
    /// # Errors
    /// `nft` is not there, the kernel refused, or what was read back differs.
    pub fn apply(&self, wanted: &Crossings) -> Result<Vec<String>, Fault> {
        Ok(self.make(wanted)?)
    }

    fn make(&self, wanted: &Crossings) -> Result<Vec<String>, RedirectError> {
        let known = self.set.borrow().as_ref() == Some(wanted);
        let amiss = self.differences(wanted)?;
        if amiss.is_empty() {
            self.set.replace(Some(wanted.clone()));
            return Ok(amiss);
        }
        self.own.add(command::load(&wanted.commands().to_string())?);
        if let (false, Some(found)) = (wanted.is_empty(), read()?) {
            let picture = Picture::of_commands(&wanted.commands());
            self.wordings.borrow_mut().learn(&picture, &found);
        }
        let mut differences = self.differences(wanted)?;
        if !differences.is_empty() {
            differences.truncate(NAMED_DIFFERENCES);
            return Err(RedirectError::ReadBack { differences });
        }
        self.set.replace(Some(wanted.clone()));
        Ok(if known { amiss } else { Vec::new() })
    }

    /// Sets again what was set last. Returns what was amiss.
    ///
    /// # Errors
    /// As [`Border::apply`].
    pub fn repair(&self) -> Result<Vec<String>, Fault> {
        let wanted = self.set.borrow().clone();
        wanted.map_or(Ok(Vec::new()), |wanted| self.apply(&wanted))
    }

    /// Starts listening for changes of the table by others.
    ///
    /// # Errors
    /// `ENM-R013` the kernel does not let us listen.
    pub fn watch(&self) -> Result<Drift, Fault> {
        Drift::of(Scope::Border, self.own.clone())
    }
}

fn read() -> Result<Option<Picture>, RedirectError> {
    match nft(&["-j", "list", "table", "inet", BORDER], b"") {
        Ok(answer) => Picture::of_answer(&answer).map(Some),
        Err(RedirectError::KernelLacks { missing }) if command::names_no_table(&missing) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_namespaces_there_is_no_table() {
        let none = Crossings::default();
        assert_eq!(none.text(), "add table inet enmesh_border\ndelete table inet enmesh_border\n");
        assert_eq!(none.commands()["nftables"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn both_languages_have_the_same_rules() {
        let end = End {
            link: "enm-c6120000".to_owned(),
            net: "198.18.0.0/30".parse().unwrap(),
            inside: "198.18.0.2".parse().unwrap(),
            inbound: Some(21000),
            app: Some(8080),
        };
        let agent = Some("127.0.0.1:8502".parse().unwrap());
        let crossings = Crossings { ends: vec![end], dns: Some(8653), agent, ..Crossings::default() };
        let (text, picture) = (crossings.text(), Picture::of_commands(&crossings.commands()));
        let rules: Vec<_> = picture.rules.values().flatten().collect();
        assert_eq!(text.matches(" comment ").count(), rules.len());
        assert!(rules.iter().all(|rule| text.contains(&format!("comment \"{}\"", rule.comment))));
    }
}
