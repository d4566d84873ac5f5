//! Rules between the fields of one service file.

use std::collections::BTreeSet;
use std::net::Ipv6Addr;

use super::error::{ConfigError, Findings, Problem};
use super::node::{At, Step};
use super::value::{Port, PortSpec, Scope, Span};
use super::{Check, Inbound, Mode, ServiceConfig, Upstream};

/// Where in the file a path of the native form stands; legacy files map it to theirs.
pub(super) type Spot<'a> = &'a dyn Fn(&[Step<'_>]) -> At;

/// Metadata limits of Consul: pairs, bytes of a key, bytes of a value.
const META_MAX: (usize, usize, usize) = (64, 128, 512);

/// Consul counts health check times in nanoseconds of 63 bits; a year is far below.
const CHECK_TIME_MAX: Span = Span::seconds(366 * 24 * 3600);

/// Everything that is wrong with `service` beyond its single values.
pub(super) fn service(service: &ServiceConfig, spot: Spot<'_>) -> Vec<ConfigError> {
    let mut found = Found { spot, errors: Findings::default() };
    names(service, &mut found);
    meta(service, &mut found);
    for (index, each) in service.checks.iter().enumerate() {
        check(each, index, &mut found);
    }
    upstreams(service, &mut found);
    if service.capture.unit.is_some() && !matches!(service.capture.scope, Scope::Netns(_)) {
        found.add(Problem::UnitWithoutNamespace, &[Step::Key("capture"), Step::Key("unit")]);
    }
    let captures_all = service.capture.mode == Mode::Transparent && service.capture.inbound == Inbound::All;
    if captures_all && service.port.is_none() && service.legacy.is_none() {
        found.add(Problem::InboundAllWithoutPort, &[Step::Key("capture"), Step::Key("inbound")]);
    }
    found.errors.into_errors(spot(&[]).file())
}

/// What is right and may still not be what was meant.
pub(super) fn warnings(service: &ServiceConfig, spot: Spot<'_>) -> Vec<ConfigError> {
    let captured = service.capture.mode == Mode::Transparent && service.capture.inbound != Inbound::None;
    let Some(port) = service.port.map(Port::get).filter(|_| captured) else { return Vec::new() };
    let bypassed = |spec: &PortSpec| matches!(spec, PortSpec::Range(range) if range.contains(port));
    if !service.capture.bypass.inbound_ports.iter().any(bypassed) {
        return Vec::new();
    }
    vec![ConfigError::at(Problem::PortBypassed { port }, &spot(&[Step::Key("port")]))]
}

/// Whether a check that stands at `at` is right by itself.
pub(super) fn takes(single: &Check, at: &At) -> bool {
    let spot = |_: &[Step<'_>]| at.clone();
    let mut found = Found { spot: &spot, errors: Findings::default() };
    check(single, 0, &mut found);
    found.errors.into_errors(at.file()).is_empty()
}

struct Found<'a> {
    spot: Spot<'a>,
    errors: Findings,
}

impl Found<'_> {
    fn add(&mut self, problem: Problem, path: &[Step<'_>]) {
        self.errors.add(problem, &(self.spot)(path));
    }

    /// One line of text that a person sees: not empty, no control characters.
    fn line(&mut self, what: &str, text: &str, path: &[Step<'_>]) {
        if text.trim().is_empty() {
            self.add(Problem::Text { why: format!("{what} is empty") }, path);
        } else if text.contains(char::is_control) {
            self.add(Problem::Text { why: format!("{what} holds a line break or control character") }, path);
        }
    }
}

fn names(service: &ServiceConfig, found: &mut Found<'_>) {
    for (index, tag) in service.tags.iter().enumerate() {
        found.line("a tag", tag, &[Step::Key("tags"), Step::Item(index)]);
    }
    if service.weights.is_some_and(|weights| weights.passing == 0) {
        found.add(Problem::WeightZero, &[Step::Key("weights"), Step::Key("passing")]);
    }
    if let Some(locality) = &service.locality {
        found.line("the region", &locality.region, &[Step::Key("locality"), Step::Key("region")]);
        if let Some(zone) = &locality.zone {
            found.line("the zone", zone, &[Step::Key("locality"), Step::Key("zone")]);
        }
    }
}

fn meta(service: &ServiceConfig, found: &mut Found<'_>) {
    let (pairs_max, key_max, value_max) = META_MAX;
    if service.meta.len() > pairs_max {
        let why = format!("{} metadata keys are more than {pairs_max}", service.meta.len());
        found.add(Problem::Meta { why }, &[Step::Key("meta")]);
        return;
    }
    for (key, value) in &service.meta {
        let path = [Step::Key("meta"), Step::Key(key)];
        let fine = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        let why = if key.is_empty() || key.len() > key_max || !key.bytes().all(fine) {
            format!("{:?} is not a metadata key", key.chars().take(key_max).collect::<String>())
        } else if key.starts_with("consul-") {
            format!("the metadata key {key:?} begins with `consul-`, which is Consul's own")
        } else if value.len() > value_max {
            format!("the value of the metadata key {key:?} has {} bytes", value.len())
        } else if value.contains(char::is_control) {
            format!("the value of the metadata key {key:?} holds a line break or control character")
        } else {
            continue;
        };
        found.add(Problem::Meta { why }, &path);
    }
}

fn check(check: &Check, index: usize, found: &mut Found<'_>) {
    let path = |key| [Step::Key("check"), Step::Item(index), Step::Key(key)];
    if let Some(name) = &check.name {
        found.line("the name of a check", name, &path("name"));
    }
    let kinds = check.kinds();
    let count = kinds.len();
    if count != 1 {
        found.add(Problem::CheckKinds { count }, &[Step::Key("check"), Step::Item(index)]);
        return;
    }
    let kind = kinds.first().copied().unwrap_or_default();
    check_target(check, &path, found);
    check_request(check, kind, &path, found);
    check_times(check, index, found);
}

fn check_target<'a>(check: &Check, path: &dyn Fn(&'a str) -> [Step<'a>; 3], found: &mut Found<'_>) {
    let mut wrong = |key, target: &str, expected| {
        found.add(Problem::CheckTarget { target: target.to_owned(), expected }, &path(key));
    };
    if let Some(url) = check.http.as_ref().filter(|url| !is_http_url(url)) {
        wrong("http", url, "an http:// or https:// URL");
    }
    for (key, target) in [("tcp", &check.tcp), ("udp", &check.udp), ("h2ping", &check.h2ping)] {
        if let Some(target) = target.as_ref().filter(|target| !is_host_port(target)) {
            wrong(key, target, "HOST:PORT");
        }
    }
    if let Some(target) = &check.grpc {
        let (host_port, name) = target.split_once('/').unwrap_or((target, ""));
        if !is_host_port(host_port) || name.contains(|c: char| c.is_whitespace() || c.is_control()) {
            wrong("grpc", target, "HOST:PORT[/SERVICE]");
        }
    }
    if let Some(command) = &check.exec {
        let program = command.first().map_or("", String::as_str);
        if !program.starts_with('/') || program.ends_with('/') {
            wrong("exec", program, "the absolute path of a program");
        }
    }
}

/// What says more about one kind of check stands with that kind only.
fn check_request<'a>(
    check: &Check,
    kind: &str,
    path: &dyn Fn(&'a str) -> [Step<'a>; 3],
    found: &mut Found<'_>,
) {
    let of = [
        ("method", check.method.is_some(), &["http"][..]),
        ("header", !check.header.is_empty(), &["http"]),
        ("body", check.body.is_some(), &["http"]),
        ("disable_redirects", check.disable_redirects, &["http"]),
        ("grpc_use_tls", check.grpc_use_tls, &["grpc"]),
        ("tcp_use_tls", check.tcp_use_tls, &["tcp"]),
        ("h2ping_use_tls", check.h2ping_use_tls.is_some(), &["h2ping"]),
        ("docker_container_id", check.docker_container_id.is_some(), &["exec"]),
        ("tls_server_name", check.tls_server_name.is_some(), &["http", "tcp", "grpc", "h2ping"]),
        ("tls_skip_verify", check.tls_skip_verify, &["http", "tcp", "grpc", "h2ping"]),
    ];
    for (key, given, kinds) in of {
        if given && !kinds.contains(&kind) {
            let why = format!("`{key}` is for {} checks, and this one is `{kind}`", kinds.join(", "));
            found.add(Problem::Text { why }, &path(key));
        }
    }
    let method = check.method.as_deref().unwrap_or("GET");
    if hyper::Method::from_bytes(method.as_bytes()).is_err() {
        found.add(Problem::Text { why: format!("{method:?} is no method of HTTP") }, &path("method"));
    }
    for (name, values) in &check.header {
        let fine = hyper::header::HeaderName::from_bytes(name.as_bytes()).is_ok()
            && values.iter().all(|value| hyper::header::HeaderValue::from_str(value).is_ok());
        if !fine {
            found.add(Problem::Text { why: format!("{name:?} or its value is no header") }, &path("header"));
        }
    }
    let texts = [
        ("notes", &check.notes),
        ("os_service", &check.os_service),
        ("docker_container_id", &check.docker_container_id),
        ("tls_server_name", &check.tls_server_name),
    ];
    for (key, text) in texts {
        if let Some(text) = text {
            found.line(&format!("`{key}`"), text, &path(key));
        }
    }
}

fn check_times(check: &Check, index: usize, found: &mut Found<'_>) {
    let here = [Step::Key("check"), Step::Item(index)];
    let at = |key| [Step::Key("check"), Step::Item(index), Step::Key(key)];
    let mut wrong = |why, path: &[Step<'_>]| found.add(Problem::CheckTiming { why }, path);
    let runs = check.ttl.is_none() && check.alias_service.is_none();
    if !runs && check.interval.is_some() {
        wrong("a `ttl` or `alias_service` check has no `interval`: nothing is run", &at("interval"));
    }
    if runs && check.interval.is_none() {
        wrong("the check has no `interval`", &here);
    }
    if !runs && check.timeout.is_some() {
        wrong("a `ttl` or `alias_service` check has no `timeout`: nothing is run", &at("timeout"));
    }
    let spans = [
        ("ttl", check.ttl),
        ("interval", check.interval),
        ("timeout", check.timeout),
        ("deregister_critical_service_after", check.deregister_critical_service_after),
    ];
    for (key, span) in spans {
        if span.is_some_and(|span| span.0.is_zero() || span > CHECK_TIME_MAX) {
            wrong("the times of a check are above zero and at most a year", &at(key));
        }
    }
    if check.deregister_critical_service_after.is_some_and(|span| span < Span::seconds(60)) {
        wrong("an agent takes no service out before a minute", &at("deregister_critical_service_after"));
    }
}

fn upstreams(service: &ServiceConfig, found: &mut Found<'_>) {
    let mut ports = BTreeSet::new();
    let mut destinations = BTreeSet::new();
    for (index, upstream) in service.upstreams.iter().enumerate() {
        let path = |key| [Step::Key("upstream"), Step::Item(index), Step::Key(key)];
        let port = upstream.local_port.get();
        if !ports.insert(port) {
            found.add(Problem::UpstreamPortTwice { port }, &path("local_port"));
        }
        if service.port == Some(upstream.local_port) {
            found.add(Problem::UpstreamPortOwn { port }, &path("local_port"));
        }
        if upstream.peer.is_some() && upstream.datacenter.is_some() {
            found.add(Problem::UpstreamPeerAndDatacenter, &path("peer"));
        }
        if !destinations.insert(destination(upstream)) {
            found.add(Problem::UpstreamTwice { name: upstream.name.to_string() }, &path("name"));
        }
    }
}

/// What Consul compares to call two upstreams the same.
fn destination(upstream: &Upstream) -> impl Ord {
    (
        upstream.prepared_query,
        upstream.name.clone(),
        upstream.namespace.clone(),
        upstream.partition.clone(),
        upstream.peer.clone(),
        upstream.datacenter.clone(),
    )
}

/// Whether `text` is an HTTP URL with a host, and without a password in it.
pub(super) fn is_http_url(text: &str) -> bool {
    let Ok(url) = text.parse::<hyper::Uri>() else { return false };
    let http = matches!(url.scheme_str(), Some("http" | "https"));
    http && url.authority().is_some_and(|authority| {
        let host = authority.host();
        let after = authority.as_str().strip_prefix(host);
        let port = after.map(|rest| rest.strip_prefix(':').map_or(rest.is_empty(), is_port));
        !host.is_empty() && port.unwrap_or(false)
    })
}

/// Whether `text` is HOST:PORT; an IPv6 address stands in brackets.
pub(super) fn is_host_port(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let bracketed = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    let host_fine = match bracketed {
        Some(address) => address.parse::<Ipv6Addr>().is_ok(),
        None => {
            let fine = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
            !host.is_empty() && host.len() <= 253 && host.bytes().all(fine)
        }
    };
    host_fine && is_port(port)
}

fn is_port(text: &str) -> bool {
    text.parse::<Port>().is_ok()
}
