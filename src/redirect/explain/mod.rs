//! What the rules do with one flow: the same ruleset that a driver would program is walked with the
//! flow's first packet. Touches nothing and asks nobody, so it also answers for a host that is
//! not this one; a test holds the answers against what the kernel does.

mod reasons;
pub(super) mod walk;

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::Serialize;

use super::ruleset::{self, Hook, Ruleset};
use crate::config::value::ServiceId;
use crate::plan::{InboundPorts, RedirectPolicy, Who};
use walk::{End, Packet, Stop};

/// The beginning of a connection, or of a conversation over UDP.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Flow {
    /// Who starts it.
    pub origin: Origin,
    /// Over what.
    pub transport: Transport,
    /// Where to. For a flow from outside an unspecified address means: some address of this host.
    pub to: SocketAddr,
}

/// Who starts a flow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// A process of this host under this user.
    User(u32),
    /// Somebody outside, whose packet comes in by this interface; without one, by an interface that
    /// no rule names.
    Outside(Option<String>),
}

/// What carries a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Transport {
    /// The protocol as rules call it.
    pub fn word(self) -> &'static str {
        match self {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
        }
    }
}

/// What becomes of a flow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "kind")]
pub enum Verdict {
    /// It goes where it was going, as if there were no rules.
    Direct,
    /// A sidecar gets it.
    Redirected {
        /// Where the sidecar listens.
        port: u16,
        /// Whose it is.
        service: Option<ServiceId>,
    },
    /// The resolver gets it.
    Resolver {
        /// Where it listens.
        to: SocketAddr,
    },
    /// An error at once: a reset for TCP, "administratively prohibited" for the rest.
    Refused,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Direct => f.write_str("direct"),
            Verdict::Redirected { port, service: Some(id) } => {
                write!(f, "redirected to port {port} of `{id}`")
            }
            Verdict::Redirected { port, service: None } => write!(f, "redirected to port {port}"),
            Verdict::Resolver { to } => write!(f, "redirected to the resolver at {to}"),
            Verdict::Refused => f.write_str("refused"),
        }
    }
}

/// A verdict and where it comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Decision {
    /// What becomes of the flow.
    pub verdict: Verdict,
    /// The chain in which that is decided; `None` when no rule has anything to say.
    pub chain: Option<&'static str>,
    /// The comment of the rule, as `nft list table inet enmesh` shows it.
    pub rule: Option<String>,
    /// Why there is such a rule.
    pub why: String,
}

/// Decides for `flow`, with the sidecars of `live` taking connections. `own` are the addresses of this
/// host; loopback is among them anyway.
pub fn explain(
    policy: &RedirectPolicy,
    live: &BTreeSet<ServiceId>,
    flow: &Flow,
    own: &BTreeSet<IpAddr>,
) -> Decision {
    let rules = if policy.is_empty() {
        Ruleset { sets: Vec::new(), chains: Vec::new() }
    } else {
        ruleset::build(policy, live)
    };
    let mut packet = Packet::of(flow, own);
    let [nat, guard] = match flow.origin {
        Origin::User(_) => [Hook::Output; 2],
        Origin::Outside(_) => [Hook::Prerouting, Hook::Input],
    };
    let first = walk::base_chain(&rules, nat, true, &packet);
    let verdict = match &first {
        Some(Stop { end: End::Redirect(port), .. }) => {
            packet.redirect(*port);
            Some(Verdict::Redirected { port: *port, service: owner(policy, flow, *port) })
        }
        Some(Stop { end: End::Dnat(to), .. }) => {
            packet.dnat(*to);
            Some(Verdict::Resolver { to: *to })
        }
        Some(Stop { end: End::Accept | End::Refuse, .. }) | None => None,
    };
    // What is only forwarded never comes to the input hook.
    let guarded = guard == Hook::Output || packet.is_for_this_host();
    let second = guarded.then(|| walk::base_chain(&rules, guard, false, &packet)).flatten();
    let decided = match (verdict, second) {
        (_, Some(refusal)) if refusal.end == End::Refuse => (Verdict::Refused, Some(refusal)),
        (Some(verdict), _) => (verdict, first),
        (None, second) => (Verdict::Direct, first.or(second)),
    };
    match decided {
        (verdict, Some(Stop { chain, rule, .. })) => {
            let why = reasons::of(chain, &rule).to_owned();
            Decision { verdict, chain: Some(chain), rule: Some(rule), why }
        }
        (verdict, None) => Decision { verdict, chain: None, rule: None, why: silence(policy, flow) },
    }
}

/// The service whose capture is about `flow`, live or not. That its bypasses or the host's leave the
/// flow alone is another matter.
pub fn concerned<'a>(policy: &'a RedirectPolicy, flow: &Flow) -> Option<&'a ServiceId> {
    match &flow.origin {
        Origin::User(uid) => {
            let of = |who| policy.outbound.iter().find(|(_, capture)| capture.who == who);
            of(Who::Uid(*uid)).or_else(|| of(Who::Everyone)).map(|(id, _)| id)
        }
        Origin::Outside(_) => {
            let of = |ports| policy.inbound.iter().find(|(_, capture)| capture.ports == ports);
            of(InboundPorts::One(flow.to.port())).or_else(|| of(InboundPorts::All)).map(|(id, _)| id)
        }
    }
}

/// Whose sidecar listens on `port`.
fn owner(policy: &RedirectPolicy, flow: &Flow, port: u16) -> Option<ServiceId> {
    let found = match flow.origin {
        Origin::User(_) => policy.outbound.iter().find(|(_, c)| c.port == port).map(|(id, _)| id),
        Origin::Outside(_) => policy.inbound.iter().find(|(_, c)| c.to == port).map(|(id, _)| id),
    };
    found.cloned()
}

/// Why no rule has anything to say about `flow`.
fn silence(policy: &RedirectPolicy, flow: &Flow) -> String {
    match concerned(policy, flow) {
        None => "no service captures it".to_owned(),
        Some(id) => format!(
            "the sidecar of `{id}` is not live, and `on_proxy_failure` of the service lets this through meanwhile"
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::config::{Ipv6Policy, OnProxyFailure};
    use crate::plan::{Bypasses, DnsCapture, Generation, InboundCapture, OutboundCapture};

    const APP: u32 = 1000;

    /// Everything at once: the whole host and all of its ports beside a user and a port of their own.
    fn policy(ipv6: Ipv6Policy, on_failure: OnProxyFailure) -> RedirectPolicy {
        let bypass =
            Bypasses { ports: vec!["3306".parse().unwrap()], cidrs: vec!["10.50.0.0/16".parse().unwrap()] };
        let out = |who, port| OutboundCapture { who, port, ipv6, on_failure, bypass: bypass.clone() };
        let inn = |ports, to| InboundCapture {
            ports,
            to,
            ipv6,
            on_failure,
            bypass_ports: vec!["22".parse().unwrap()],
            bypass_interfaces: BTreeSet::from(["br0".to_owned()]),
        };
        let id = |text: &str| text.parse().unwrap();
        let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        RedirectPolicy {
            own_calls: false,
            generation: Generation { number: 1, hash: "a".to_owned() },
            bypass_uids: BTreeSet::from([102, 5995]),
            proxy_uids: BTreeSet::from([5995]),
            bypass_cidrs: nets(&["127.0.0.0/8", "::1/128", "169.254.169.254/32"]),
            virtual_nets: nets(&["240.0.0.0/4", "fd00:240::/32"]),
            mesh_instances: BTreeSet::from([("10.9.0.1".parse().unwrap(), 9000)]),
            outbound: BTreeMap::from([
                (id("api"), out(Who::Uid(APP), 15001)),
                (id("all"), out(Who::Everyone, 15002)),
            ]),
            inbound: BTreeMap::from([
                (id("api"), inn(InboundPorts::One(8080), 21000)),
                (id("all"), inn(InboundPorts::All, 21001)),
            ]),
            dns: Some(DnsCapture {
                to: "127.0.0.1:8600".parse().unwrap(),
                uids: BTreeSet::new(),
                except: BTreeSet::new(),
                server: crate::plan::DnsServer::Ours,
            }),
            agent_ports: BTreeSet::from([8300, 8301, 8302]),
            virtual_route: None,
            host_end: None,
        }
    }

    fn user(uid: u32, to: &str) -> Flow {
        Flow { origin: Origin::User(uid), transport: Transport::Tcp, to: to.parse().unwrap() }
    }

    fn outside(to: &str) -> Flow {
        Flow { origin: Origin::Outside(None), transport: Transport::Tcp, to: to.parse().unwrap() }
    }

    fn answer(policy: &RedirectPolicy, live: &[&str], flow: &Flow) -> (String, String) {
        let live = live.iter().map(|id| id.parse().unwrap()).collect();
        let own = BTreeSet::from(["10.9.0.2".parse().unwrap()]);
        let Decision { verdict, rule, .. } = explain(policy, &live, flow, &own);
        let verdict = match verdict {
            Verdict::Direct => "direct".to_owned(),
            Verdict::Redirected { port, service } => format!("{port} {}", service.unwrap()),
            Verdict::Resolver { to } => to.to_string(),
            Verdict::Refused => "refused".to_owned(),
        };
        (verdict, rule.unwrap_or_default())
    }

    #[test]
    fn it_names_verdict_and_rule() {
        let policy = policy(Ipv6Policy::Redirect, OnProxyFailure::Closed);
        let rows: [(&[&str], Flow, &str, &str); 15] = [
            (&["api", "all"], user(APP, "240.0.0.1:80"), "15001 api", "to the user's sidecar"),
            (&["api", "all"], user(7, "10.9.0.1:80"), "15002 all", "to the host's sidecar"),
            (&["api", "all"], user(5995, "10.9.0.1:80"), "direct", "bypassed users"),
            (&["api", "all"], user(APP, "10.9.0.1:3306"), "direct", "a user's bypassed ports"),
            (&["api", "all"], user(APP, "10.9.0.2:80"), "direct", "own addresses"),
            (&["api", "all"], user(APP, "[::1]:80"), "direct", "networks of no mesh, IPv6"),
            (&["api", "all"], user(APP, "10.9.0.1:53"), "127.0.0.1:8600", "DNS"),
            (&["all"], user(APP, "240.0.0.1:80"), "refused", "virtual IPs"),
            (&["all"], user(APP, "10.9.0.1:9000"), "refused", "users, to the mesh"),
            (&["all"], user(APP, "10.9.0.1:80"), "direct", "users whose sidecar is not live"),
            (&["api", "all"], outside("10.9.0.2:8080"), "21000 api", "to the port's sidecar"),
            (&["api", "all"], outside("0.0.0.0:22"), "direct", "bypassed ports"),
            (&["api"], outside("10.9.0.2:8301"), "direct", "Consul's agent"),
            (&["api", "all"], outside("172.17.0.5:80"), "direct", "forwarded"),
            (&["api"], outside("0.0.0.0:99"), "refused", "all ports in the clear"),
        ];
        for (live, flow, verdict, rule) in rows {
            let expected = (verdict.to_owned(), rule.to_owned());
            assert_eq!(answer(&policy, live, &flow), expected, "{flow:?}");
        }
    }

    #[test]
    fn the_limited_broadcast_is_no_virtual_ip() {
        let policy = policy(Ipv6Policy::Redirect, OnProxyFailure::Closed);
        let to = |to: &str| Flow { transport: Transport::Udp, ..user(APP, to) };
        assert_eq!(answer(&policy, &["api"], &to("255.255.255.255:67")).0, "direct");
        assert_eq!(answer(&policy, &["api"], &to("255.255.255.254:67")).0, "refused");
    }

    #[test]
    fn the_interface_counts() {
        let policy = policy(Ipv6Policy::Redirect, OnProxyFailure::Closed);
        let flow = Flow { origin: Origin::Outside(Some("br0".to_owned())), ..outside("0.0.0.0:8080") };
        assert_eq!(answer(&policy, &["api"], &flow).1, "a port's bypassed interfaces");
    }

    #[test]
    fn nothing_captured_is_said() {
        let mut policy = policy(Ipv6Policy::Redirect, OnProxyFailure::Open);
        policy.dns = None;
        policy.outbound.remove(&"all".parse().unwrap());
        policy.inbound.clear();
        let decide = |flow: &Flow| explain(&policy, &BTreeSet::new(), flow, &BTreeSet::new());
        assert_eq!(decide(&outside("0.0.0.0:80")).why, "no service captures it");
        let decision = decide(&user(APP, "10.9.0.1:80"));
        assert_eq!((decision.verdict, decision.rule), (Verdict::Direct, None));
        assert!(decision.why.contains("not live"), "{}", decision.why);
    }

    /// A rule that decides is never unexplained, whatever the policy.
    #[test]
    fn every_rule_has_a_reason() {
        for ipv6 in [Ipv6Policy::Redirect, Ipv6Policy::Refuse, Ipv6Policy::Allow] {
            for on_failure in [OnProxyFailure::Closed, OnProxyFailure::Sealed, OnProxyFailure::Open] {
                for everyone in [true, false] {
                    let mut policy = policy(ipv6, on_failure);
                    if !everyone {
                        policy.outbound.remove(&"all".parse().unwrap());
                    }
                    let rules = ruleset::build(&policy, &BTreeSet::new());
                    for chain in &rules.chains {
                        let decides =
                            !["generation", "refuse", "raw_dns", "raw_out", "raw_in"].contains(&chain.name);
                        for rule in chain.rules.iter().filter(|_| decides) {
                            let why = reasons::of(chain.name, &rule.comment);
                            let is_jump = rule.comment == "what is left alone";
                            assert!(is_jump || !why.is_empty(), "{}: {}", chain.name, rule.comment);
                        }
                    }
                }
            }
        }
    }
}
