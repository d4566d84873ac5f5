//! `enmesh explain`

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use clap::Args;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use super::Global;
use super::output::Answer;
use crate::base::{Fault, Root, process};
use crate::config::value::{InterfaceName, Span};
use crate::converge::explain::{self, Agrees, Explanation};
use crate::converge::{self, ConvergeError, facts};
use crate::netns::{self, Namespace};
use crate::plan::{NamespacePlan, Plan};
use crate::redirect::trace::{self, Seen, TraceError, Watch};
use crate::redirect::{Decision, Flow, Origin, Transport};

/// Say what happens to a connection
#[derive(Debug, Args)]
#[command(
    after_help = "Answers from the plan: needs no privilege, touches nothing, and works for another tree.\n\nWith --live the kernel tells as well what it does: the first such packet is traced, for which the application has to\nconnect anew, or --send has one sent. That needs root and nft; nothing of it stays. Exit status 1 when no such packet\ncame, or when the kernel does otherwise than the plan says.\n\nExamples:\n  enmesh explain --uid 1000 240.0.0.5:443\n  enmesh explain --user www-data api.virtual.consul:80\n  enmesh explain --unit shop.service 10.0.0.7:5432\n  enmesh explain --pid 4711 '[fd00::1]:80'\n  enmesh explain --from 10.9.0.1 :8080       somebody calls this host\n  enmesh explain --uid 0 --in api 240.0.0.5:80    in the network namespace of `api`\n  enmesh explain --live --wait 30s --user www-data api.virtual.consul:80\n  enmesh explain --live --send --uid 1000 240.0.0.5:443"
)]
pub struct Explain {
    /// Where to: ADDRESS:PORT, NAME:PORT with a name of the mesh, or :PORT of this host with --from
    #[arg(value_name = "DESTINATION")]
    to: String,
    #[command(flatten)]
    who: Who,
    /// The interface that it comes in by, with --from
    #[arg(long, value_name = "NAME", conflicts_with_all = ["uid", "user", "unit", "pid"])]
    interface: Option<InterfaceName>,
    /// In the network namespace that this service has for itself; with --pid that is found out
    #[arg(long = "in", value_name = "SERVICE")]
    inside: Option<String>,
    /// UDP instead of TCP
    #[arg(long)]
    udp: bool,
    /// Wait for the first such packet, and show what the kernel does with it
    #[arg(long)]
    live: bool,
    /// How long to wait for it at most
    #[arg(long, value_name = "SPAN", default_value = "10s", requires = "live")]
    wait: Span,
    /// Send such a packet as that user: a connection that is given up at once, or an empty datagram
    #[arg(long, requires = "live", conflicts_with = "from")]
    send: bool,
}

/// Who starts it.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Who {
    /// A process of the user with this number
    #[arg(long, value_name = "UID")]
    uid: Option<u32>,
    /// A process of this user
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// A process of this unit: of its main process, or else of the user that it will run as
    #[arg(long, value_name = "NAME")]
    unit: Option<String>,
    /// This process
    #[arg(long, value_name = "PID")]
    pid: Option<u32>,
    /// Somebody at this address, outside of this host
    #[arg(long, value_name = "ADDRESS")]
    from: Option<IpAddr>,
}

impl Explain {
    pub async fn run(self, global: &Global) -> Result<Answer, Fault> {
        let root = global.root();
        let intent = converge::look(&root).await?;
        let flow = self.flow(&root, &intent.plan).await?;
        let own = match root.is_host() || self.live {
            true => netns::addresses().await?.into_iter().map(|found| found.address).collect(),
            false => BTreeSet::new(),
        };
        let inside = self.namespace(&intent.plan)?;
        let explanation = explain::explain(&intent.plan, flow, own, inside);
        let mut answer = Answer::new(text(&explanation), &explanation);
        let (mut faults, mut warnings) = (intent.faults(), intent.warnings());
        if self.live {
            let seen = self.watch(&explanation.flow, inside).await?;
            let (agrees, fault) = match &seen {
                Some(seen) => explain::compare(&intent.plan, inside, &explanation, seen),
                None => (Agrees::Not, Some(TraceError::Nothing { waited: self.wait.0 }.into())),
            };
            if seen.as_ref().is_some_and(|seen| !seen.rules_told) {
                warnings.push(TraceError::NoRules.into());
            }
            answer.text.push_str(&live_text(seen.as_ref(), agrees));
            if let Some(document) = answer.json.as_object_mut() {
                let agrees = seen.as_ref().map(|_| agrees);
                document.insert("live".to_owned(), json!({ "seen": seen, "agrees": agrees, "fault": fault }));
            }
            faults.extend(fault);
        }
        Ok(answer.with_faults(faults, warnings))
    }

    /// The namespace that is asked about; `None` for the host's.
    fn namespace<'a>(&self, plan: &'a Plan) -> Result<Option<&'a NamespacePlan>, Fault> {
        if let Some(id) = &self.inside {
            let found = plan.namespaces.values().find(|own| own.service.as_str() == id);
            return found.map(Some).ok_or_else(|| {
                let what = format!("no service `{id}` has a network namespace for itself");
                ConvergeError::NoFlow {
                    what,
                    instead: "`enmesh status` shows which have; leave out --in for the host",
                }
                .into()
            });
        }
        let Some(theirs) = self.who.pid.and_then(|pid| Namespace::by_pid(pid).ok()) else { return Ok(None) };
        let is_it = |own: &&NamespacePlan| {
            Namespace::by_name(&own.name).is_ok_and(|there| there.identity() == theirs.identity())
        };
        Ok(plan.namespaces.values().find(is_it))
    }

    /// What the kernel does with the first packet that comes.
    async fn watch(&self, flow: &Flow, inside: Option<&NamespacePlan>) -> Result<Option<Seen>, Fault> {
        let watch = Watch { flow: flow.clone(), from: self.who.from };
        let begun = || {
            // Whoever waits wants to know for what.
            let _ = writeln!(std::io::stderr(), "waiting up to {} for such a packet", self.wait);
            if self.send { trace::send(flow) } else { Ok(()) }
        };
        match inside {
            None => trace::watch(&watch, self.wait.0, begun, told_to_end()).await,
            Some(inside) => Namespace::by_name(&inside.name)?
                .run_async(|| trace::watch(&watch, self.wait.0, begun, told_to_end()))?,
        }
    }

    async fn flow(&self, root: &Root, plan: &Plan) -> Result<Flow, Fault> {
        let transport = if self.udp { Transport::Udp } else { Transport::Tcp };
        let to = self.destination(plan)?;
        let wrong = |what: String, instead| Fault::from(ConvergeError::NoFlow { what, instead });
        let origin = match &self.who {
            Who { uid: Some(uid), .. } => Origin::User(*uid),
            Who { user: Some(name), .. } => Origin::User(facts::user(root, name).ok_or_else(|| {
                wrong(format!("/etc/passwd has no user `{name}`"), "say the number with --uid")
            })?),
            Who { unit: Some(unit), .. } => Origin::User(facts::user_of_unit(root, unit).await?),
            Who { pid: Some(pid), .. } => Origin::User(process::socket_user_of(*pid).ok_or_else(|| {
                wrong(format!("there is no process {pid}"), "say the user with --user or --uid")
            })?),
            _ => Origin::Outside(self.interface.as_ref().map(ToString::to_string)),
        };
        Ok(Flow { origin, transport, to })
    }

    fn destination(&self, plan: &Plan) -> Result<SocketAddr, Fault> {
        let wrong = |what: &str, instead| {
            let what = format!("`{}` {what}", self.to);
            Fault::from(ConvergeError::NoFlow { what, instead })
        };
        let form = "write ADDRESS:PORT, [IPV6]:PORT, NAME:PORT, or :PORT with --from";
        let (host, port) = self.to.rsplit_once(':').ok_or_else(|| wrong("has no port", form))?;
        let port = port.parse().map_err(|_| wrong("has no port number at its end", form))?;
        let ip = match (host, self.who.from) {
            ("", None) => return Err(wrong("names no host", form)),
            ("", Some(IpAddr::V4(_))) => Ipv4Addr::UNSPECIFIED.into(),
            ("", Some(IpAddr::V6(_))) => Ipv6Addr::UNSPECIFIED.into(),
            (host, _) if host.contains(':') && !host.starts_with('[') => {
                return Err(wrong("leaves open where address and port part", form));
            }
            (host, _) => explain::address_of(plan, host)?,
        };
        if self.who.from.is_some_and(|from| from.is_ipv4() != ip.is_ipv4()) {
            return Err(wrong("is of another address family than --from", "give both in one family"));
        }
        Ok(SocketAddr::new(ip, port))
    }
}

fn text(explanation: &Explanation) -> String {
    let Explanation { flow, namespace, decision, next, while_not_live, service, .. } = explanation;
    let place = namespace.as_ref().map_or(String::new(), |name| format!(", in namespace {name}"));
    let who = match &flow.origin {
        Origin::User(uid) => format!("uid {uid}"),
        Origin::Outside(None) => "outside".to_owned(),
        Origin::Outside(Some(interface)) => format!("outside, by {interface}"),
    };
    let to = match flow.to.ip().is_unspecified() {
        true => format!("this host's port {}", flow.to.port()),
        false => flow.to.to_string(),
    };
    let mut text = format!("{who} -> {to}/{}{place}: {}\n", flow.transport.word(), decision.verdict);
    let _ = writeln!(text, "  {}", because(decision));
    for line in next {
        let _ = writeln!(text, "  then   {line}");
    }
    if let (Some(other), Some(id)) = (while_not_live, service) {
        let same = if other.verdict == decision.verdict { " all the same" } else { "" };
        let _ = writeln!(text, "while the sidecar of `{id}` is not live: {}{same}", other.verdict);
        if other != decision {
            let _ = writeln!(text, "  {}", because(other));
        }
    }
    text
}

/// Being interrupted, so that what was set in the kernel is taken back first.
async fn told_to_end() {
    let interrupted = tokio::signal::ctrl_c();
    match signal(SignalKind::terminate()) {
        Ok(mut terminated) => tokio::select! {
            _ = terminated.recv() => {}
            _ = interrupted => {}
        },
        Err(_) => drop(interrupted.await),
    }
}

/// What the kernel did, behind what the plan says.
fn live_text(seen: Option<&Seen>, agrees: Agrees) -> String {
    let Some(seen) = seen else { return "in the kernel: no such packet came\n".to_owned() };
    let Seen { from, to, arrived, rule, others, .. } = seen;
    let end = match arrived {
        Some(at) if at == to => "went on as it was".to_owned(),
        Some(at) => format!("went on to {at}"),
        None if rule.as_ref().is_some_and(|rule| rule.refuses) => "was refused".to_owned(),
        None => "was refused or dropped".to_owned(),
    };
    let mut text = format!("in the kernel: the packet from {from} to {to} {end}\n");
    if let Some(rule) = rule {
        let _ = writeln!(text, "  rule   \"{}\" in {}", rule.comment, rule.place);
    }
    for line in others {
        let _ = writeln!(text, "  others {line}");
    }
    let _ = match agrees {
        Agrees::Live => writeln!(text, "  as the plan says"),
        Agrees::NotLive => writeln!(text, "  as the plan says for while the sidecar is not live"),
        Agrees::Not => writeln!(text, "  not as the plan says"),
    };
    text
}

fn because(decision: &Decision) -> String {
    match (&decision.chain, &decision.rule) {
        (Some(chain), Some(rule)) => format!("rule   \"{rule}\" in chain {chain}: {}", decision.why),
        _ => format!("no rule decides: {}", decision.why),
    }
}
