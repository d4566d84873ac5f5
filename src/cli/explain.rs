//! `enmesh explain`

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use clap::Args;

use super::Global;
use super::output::Answer;
use crate::base::{Fault, Root, process};
use crate::converge::explain::{self, Explanation};
use crate::converge::{self, ConvergeError, facts};
use crate::netns;
use crate::plan::Plan;
use crate::redirect::{Decision, Flow, Origin, Transport, Verdict};

/// Say what happens to a connection
#[derive(Debug, Args)]
#[command(
    after_help = "Answers from the plan: needs no privilege, touches nothing, and works for another tree.\n\nExamples:\n  enmesh explain --uid 1000 240.0.0.5:443\n  enmesh explain --user www-data api.virtual.consul:80\n  enmesh explain --unit shop.service 10.0.0.7:5432\n  enmesh explain --pid 4711 '[fd00::1]:80'\n  enmesh explain --from 10.9.0.1 :8080       somebody calls this host"
)]
pub struct Explain {
    /// Where to: ADDRESS:PORT, NAME:PORT with a name of the mesh, or :PORT of this host with --from
    #[arg(value_name = "DESTINATION")]
    to: String,
    #[command(flatten)]
    who: Who,
    /// The interface that it comes in by, with --from
    #[arg(long, value_name = "NAME", conflicts_with_all = ["uid", "user", "unit", "pid"])]
    interface: Option<String>,
    /// UDP instead of TCP
    #[arg(long)]
    udp: bool,
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
        let own = match root.is_host() {
            true => netns::addresses().await?.into_iter().map(|found| found.address).collect(),
            false => BTreeSet::new(),
        };
        let explanation = explain::explain(&intent.plan, flow, own);
        let answer = Answer::new(text(&explanation), &explanation);
        Ok(answer.with_faults(intent.faults(), intent.warnings()))
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
            _ => Origin::Outside(self.interface.clone()),
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
    let Explanation { flow, decision, next, while_not_live, service, .. } = explanation;
    let who = match &flow.origin {
        Origin::User(uid) => format!("uid {uid}"),
        Origin::Outside(None) => "outside".to_owned(),
        Origin::Outside(Some(interface)) => format!("outside, by {interface}"),
    };
    let to = match flow.to.ip().is_unspecified() {
        true => format!("this host's port {}", flow.to.port()),
        false => flow.to.to_string(),
    };
    let mut text = format!("{who} -> {to}/{}: {}\n", flow.transport.word(), verdict(&decision.verdict));
    let _ = writeln!(text, "  {}", because(decision));
    for line in next {
        let _ = writeln!(text, "  then   {line}");
    }
    if let (Some(other), Some(id)) = (while_not_live, service) {
        let same = if other.verdict == decision.verdict { " all the same" } else { "" };
        let _ = writeln!(text, "while the sidecar of `{id}` is not live: {}{same}", verdict(&other.verdict));
        if other != decision {
            let _ = writeln!(text, "  {}", because(other));
        }
    }
    text
}

fn verdict(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Direct => "direct".to_owned(),
        Verdict::Redirected { port, service: Some(id) } => format!("redirected to port {port} of `{id}`"),
        Verdict::Redirected { port, service: None } => format!("redirected to port {port}"),
        Verdict::Resolver { to } => format!("redirected to the resolver at {to}"),
        Verdict::Refused => "refused".to_owned(),
    }
}

fn because(decision: &Decision) -> String {
    match (&decision.chain, &decision.rule) {
        (Some(chain), Some(rule)) => format!("rule   \"{rule}\" in chain {chain}: {}", decision.why),
        _ => format!("no rule decides: {}", decision.why),
    }
}
