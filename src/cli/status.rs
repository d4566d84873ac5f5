//! `enmesh status`

use std::fmt::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use serde_json::Value;

use super::Global;
use super::output::Answer;
use crate::base::{Fault, Root};
use crate::config::value::Span;
use crate::converge::{self, ConvergeError};
use crate::daemon::{client, control};

/// Show services, sidecars, rules and the last errors
#[derive(Debug, Args)]
#[command(
    after_help = "Exit status 0 when everything is live, 1 when something is not, 69 when no daemon runs.\n\nExamples:\n  enmesh status\n  enmesh status --json\n  enmesh status --watch"
)]
pub struct Status {
    /// Show it again whenever it changed, until interrupted
    #[arg(long)]
    watch: bool,
}

impl Status {
    pub async fn run(self, global: &Global) -> Result<Answer, Fault> {
        let mut shown = String::new();
        loop {
            let status = client::status(&global.root()).await?;
            let status = status.ok_or_else(|| no_daemon(&global.root()))?;
            let ready = at(&status, "/ready").as_bool().unwrap_or(false);
            let text = table(&status);
            if !self.watch {
                let mut answer = Answer::new(text, &status);
                answer.faults = faults_of(at(&status, "/faults"));
                answer.warnings = faults_of(at(&status, "/warnings"));
                answer.exit = u8::from(!ready);
                return Ok(answer);
            }
            if text != shown {
                let _ = Answer::new(text.clone(), &status).print(global.json);
                shown = text;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
}

/// Nobody is there to say how things are; but what waits to be taken back stands in the state.
fn no_daemon(root: &Root) -> Fault {
    let mut fault = Fault::from(ConvergeError::NoDaemon { socket: root.join(control::SOCKET) });
    if let Some(until) = converge::pending(root) {
        fault.message = format!("{}; {}", fault.message, converge::told(&until));
    }
    fault
}

/// The status as a person reads it.
pub fn table(status: &Value) -> String {
    let word = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    };
    let mut text = String::new();
    let generation = at(status, "/generation");
    let _ = writeln!(
        text,
        "enmesh {}  control plane {}  driver {}  units {}  generation {}:{}",
        word(at(status, "/version")),
        word(at(status, "/control_plane")),
        word(at(status, "/driver")),
        word(at(status, "/units")),
        word(at(generation, "/number")),
        word(at(generation, "/hash"))
    );
    if let Some(lost) = at(status, "/not_redirected").as_str() {
        let _ = writeln!(text, "nothing is redirected: {lost}");
    }
    if let consul @ Value::Object(_) = at(status, "/consul") {
        text.push_str(&consul_lines(consul));
    }
    text.push_str(&address_lines(at(status, "/address")));
    let repaired = at(status, "/rules_repaired").as_u64().unwrap_or(0);
    if repaired > 0 {
        let last = at(status, "/last_repair");
        let what: Vec<String> = at(last, "/what").as_array().into_iter().flatten().map(word).collect();
        let by = at(last, "/by").as_str().unwrap_or("somebody");
        let times = if repaired == 1 { "once".to_owned() } else { format!("{repaired} times") };
        let still = if at(last, "/contested") == &Value::Bool(true) {
            ", which held it back by doing so often"
        } else {
            ""
        };
        let _ = writeln!(text, "rules set again {times}; last after {by}{still}: {}", what.join("; "));
    }
    if let Some(deadline) = at(status, "/pending/deadline").as_u64() {
        let left = Span(Duration::from_secs(deadline.saturating_sub(now())));
        let _ = writeln!(text, "taken back in {left} unless you type `enmesh confirm`");
    }
    let Some(services) = at(status, "/services").as_object() else { return text };
    if services.is_empty() {
        text.push_str("no services\n");
        return text;
    }
    let _ = writeln!(
        text,
        "\n{:<20} {:<9} {:>8} {:>9} {:>8}  CERTIFICATE",
        "SERVICE", "SIDECAR", "PID", "OUTBOUND", "INBOUND"
    );
    for (id, service) in services {
        let _ = writeln!(
            text,
            "{id:<20} {:<9} {:>8} {:>9} {:>8}  {}",
            word(at(service, "/phase")),
            word(at(service, "/pid")),
            word(at(service, "/outbound_port")),
            word(at(service, "/inbound_port")),
            expiry(at(service, "/certificate_expires").as_u64())
        );
        if let Some(name) = at(service, "/namespace/name").as_str() {
            let (address, link) = (at(service, "/namespace/address"), at(service, "/namespace/link"));
            let _ = writeln!(text, "  namespace {name}  address {}  link {}", word(address), word(link));
        }
        if let Some(connected) = at(service, "/stream/connected").as_bool() {
            let _ = writeln!(text, "  stream to Consul {}", if connected { "up" } else { "down" });
        }
        for (id, check) in at(service, "/checks").as_object().into_iter().flatten() {
            text.push_str(&check_line(id, check));
        }
        if let Some(fault) = faults_of(at(service, "/fault")).first() {
            let _ = writeln!(text, "  {fault}");
        }
    }
    text
}

/// How a check is, for how long, and what it said.
fn check_line(id: &str, check: &Value) -> String {
    let text_of = |pointer| at(check, pointer).as_str().unwrap_or_default();
    let name = text_of("/name");
    let name = if name == id { String::new() } else { format!(" ({name})") };
    let since = now().saturating_sub(at(check, "/since").as_u64().unwrap_or(0));
    let since = Span(Duration::from_secs(since));
    let line = format!("  check {id}{name} {} for {since}  {}", text_of("/status"), text_of("/output"));
    format!("{}\n", line.trim_end())
}

/// What is known of Consul.
fn consul_lines(consul: &Value) -> String {
    let text_of = |pointer| at(consul, pointer).as_str().unwrap_or("?");
    let mut text = format!(
        "consul {} at {}  datacenter {}  node {}  registration {}",
        text_of("/version"),
        text_of("/server"),
        text_of("/datacenter"),
        text_of("/node"),
        text_of("/registration")
    );
    let since = at(consul, "/since").as_u64().filter(|since| *since > 0);
    let for_so_long =
        since.map(|since| format!(" for {}", Span(Duration::from_secs(now().saturating_sub(since)))));
    match faults_of(at(consul, "/fault")).first() {
        None if since.is_some() => {
            let _ = writeln!(text, "  stream up{}", for_so_long.unwrap_or_default());
        }
        None => text.push_str("  stream not up yet\n"),
        Some(fault) => {
            let _ = writeln!(text, "  stream down{}\n  {fault}", for_so_long.unwrap_or_default());
        }
    }
    text.push_str(&token_lines(at(consul, "/token")));
    let without: Vec<&str> =
        at(consul, "/without").as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if !without.is_empty() {
        let _ = writeln!(text, "  this release is without: {}", without.join(", "));
    }
    text
}

/// At which address this host is reached, and what each source says.
fn address_lines(address: &Value) -> String {
    let word = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let mut text =
        format!("address {}  by {}\n", word(at(address, "/address")), word(at(address, "/source")));
    let sources = at(address, "/sources").as_array().map_or(&[] as &[Value], Vec::as_slice);
    // One source that says what counts is nothing that anybody has to read twice.
    let all_agree = sources.iter().all(|it| at(it, "/fault").is_null()) && sources.len() < 2;
    for source in sources.iter().filter(|_| !all_agree) {
        let age = at(source, "/at").as_u64().filter(|at| *at > 0);
        let age = age.map(|at| format!("{} ago", Span(Duration::from_secs(now().saturating_sub(at)))));
        let (name, said) = (word(at(source, "/source")), word(at(source, "/address")));
        let _ = writeln!(text, "  {name:<10} {said:<15} {}", age.unwrap_or_else(|| "never".to_owned()));
        if let Some(fault) = faults_of(at(source, "/fault")).first() {
            let _ = writeln!(text, "    {fault}");
        }
    }
    text
}

/// Where the token comes from, and how long it lives.
fn token_lines(token: &Value) -> String {
    let source = match at(token, "/source").as_str() {
        None | Some("none") => return "  token none\n".to_owned(),
        Some("login") => format!("login {}", at(token, "/method").as_str().unwrap_or("?")),
        Some(other) => other.to_owned(),
    };
    let mut text = format!("  token {source}");
    if let Some(accessor) = at(token, "/accessor").as_str() {
        let _ = write!(text, "  accessor {accessor}");
    }
    let left = |seconds: u64| Span(Duration::from_secs(seconds.saturating_sub(now())));
    if let Some(end) = at(token, "/expires").as_u64() {
        let _ = write!(text, "  ends in {}", left(end));
    }
    if let Some(renewal) = at(token, "/renew_at").as_u64() {
        let _ = write!(text, "  renewed in {}", left(renewal));
    }
    text.push('\n');
    let old = at(token, "/old_sessions").as_array().map_or(0, Vec::len);
    if old > 0 {
        let _ = writeln!(text, "  {old} session(s) of before stand until no sidecar uses them");
    }
    if let Some(fault) = faults_of(at(token, "/fault")).first() {
        let _ = writeln!(text, "  {fault}");
    }
    text
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs())
}

fn expiry(seconds: Option<u64>) -> String {
    let now = now();
    match seconds {
        None => "-".to_owned(),
        Some(at) if at <= now => "expired".to_owned(),
        Some(at) => format!("{} left", Span(Duration::from_secs((at - now) / 60 * 60))),
    }
}

/// What stands at a JSON pointer (RFC 6901); null where nothing does.
pub fn at<'a>(value: &'a Value, pointer: &str) -> &'a Value {
    value.pointer(pointer).unwrap_or(&Value::Null)
}

/// Faults that came over the socket: one, or a list of them.
pub fn faults_of(value: &Value) -> Vec<Fault> {
    let one = |value: &Value| serde_json::from_value(value.clone()).ok();
    match value {
        Value::Array(list) => list.iter().filter_map(one).collect(),
        _ => one(value).into_iter().collect(),
    }
}
