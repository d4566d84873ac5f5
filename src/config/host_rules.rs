//! Rules of the host file, and what the environment adds to it.

use std::path::{Path, PathBuf};

use super::error::{ConfigError, Problem};
use super::node::{Node, Step};
use super::rules::{is_host_port, is_http_url};
use super::value::UserSpec;
use super::{ConsulConfig, HostConfig};
use crate::base::{Fault, Place};

/// Everything that is wrong with `host` beyond its single values.
pub(super) fn host(host: &HostConfig, root: &Node) -> Vec<ConfigError> {
    let mut errors = Vec::new();
    let mut wrong = |why: String, path: &[&str]| {
        let steps: Vec<Step<'_>> = path.iter().map(|key| Step::Key(key)).collect();
        errors.push(ConfigError::at(Problem::Host { why }, &root.spot(&steps)));
    };
    if host.virtual_ips.trunc() != host.virtual_ips {
        let why =
            format!("the network {} has host bits; it is {}", host.virtual_ips, host.virtual_ips.trunc());
        wrong(why, &["virtual_ips"]);
    }
    let (outbound, inbound) = (host.ports.outbound, host.ports.inbound);
    if outbound.first <= inbound.last && inbound.first <= outbound.last {
        wrong(format!("the port ranges {outbound} and {inbound} overlap"), &["ports", "inbound"]);
    }
    if !host.dns.listen.ip().to_canonical().is_loopback() || host.dns.listen.port() == 0 {
        wrong(
            format!(
                "the resolver cannot listen on {}: it takes an address of loopback and a port",
                host.dns.listen
            ),
            &["dns", "listen"],
        );
    }
    if matches!(&host.envoy.user, UserSpec::Uid(0)) || host.envoy.user == UserSpec::Name("root".to_owned()) {
        // Sidecars' users are never captured, so all of root's programs would leave the mesh.
        wrong("sidecars do not run as root".to_owned(), &["envoy", "user"]);
    }
    if !is_program(&host.envoy.path) {
        let why = format!("{:?} is neither the name nor the absolute path of a program", host.envoy.path);
        wrong(why, &["envoy", "path"]);
    }
    for (key, path) in [("peers", &host.static_mesh.peers), ("ca", &host.static_mesh.ca)] {
        if !path.is_absolute() {
            wrong(format!("{path:?} is not an absolute path"), &["static", key]);
        }
    }
    if host.static_mesh.leaf_ttl.0.as_secs() < 60 {
        wrong("a leaf certificate is valid for a minute at least".to_owned(), &["static", "leaf_ttl"]);
    }
    for (key, why) in consul(&host.consul) {
        wrong(why, &["consul", key]);
    }
    errors
}

fn is_program(path: &Path) -> bool {
    path.is_absolute() || (path.components().count() == 1 && path.file_name().is_some())
}

fn consul(consul: &ConsulConfig) -> Vec<(&'static str, String)> {
    let mut wrong = Vec::new();
    if let Some(address) = consul.address.as_ref().filter(|address| !is_api_address(address)) {
        wrong.push((
            "address",
            format!("{address:?} is none of http://HOST:PORT, https://… and unix:///PATH"),
        ));
    }
    let files = [
        ("token_file", &consul.token_file),
        ("ca_file", &consul.ca_file),
        ("cert_file", &consul.cert_file),
        ("key_file", &consul.key_file),
    ];
    for (key, path) in files {
        if let Some(path) = path.as_ref().filter(|path| !path.is_absolute()) {
            wrong.push((key, format!("{path:?} is not an absolute path")));
        }
    }
    if consul.cert_file.is_some() != consul.key_file.is_some() {
        let key = if consul.cert_file.is_some() { "cert_file" } else { "key_file" };
        wrong.push((key, "`cert_file` and `key_file` go together; one of them is missing".to_owned()));
    }
    wrong
}

fn is_api_address(text: &str) -> bool {
    match text.strip_prefix("unix://") {
        Some(path) => path.starts_with('/') && path.len() > 1,
        None => is_http_url(text),
    }
}

/// Fills what `consul` leaves open from the variables that Consul's own tools read.
///
/// Returns what does not fit, and what is worth a warning.
pub(super) fn fill_from_environment(
    consul: &mut ConsulConfig,
    env: &dyn Fn(&str) -> Option<String>,
) -> (Vec<Fault>, Vec<Fault>) {
    let get = |name: &str| env(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
    let mut errors = Vec::new();
    let mut wrong = |name, why: String| errors.push(nowhere(Problem::Environment { name, why }));

    if consul.address.is_none()
        && let Some(text) = get("CONSUL_HTTP_ADDR")
    {
        match api_address(&text, get("CONSUL_HTTP_SSL").as_deref()) {
            Some(address) => consul.address = Some(address),
            None => wrong("CONSUL_HTTP_ADDR", format!("{text:?} is not an address")),
        }
    }
    let files = [("CONSUL_HTTP_TOKEN_FILE", &mut consul.token_file), ("CONSUL_CACERT", &mut consul.ca_file)];
    // The pair is filled as one: a certificate of the file never meets a key of the environment.
    let pair = [("CONSUL_CLIENT_CERT", &mut consul.cert_file), ("CONSUL_CLIENT_KEY", &mut consul.key_file)];
    let pair_open = pair.iter().all(|(_, file)| file.is_none());
    for (name, file) in files.into_iter().chain(pair.into_iter().filter(|_| pair_open)) {
        if file.is_some() {
            continue;
        }
        match get(name).map(PathBuf::from) {
            Some(path) if !path.is_absolute() => wrong(name, format!("{path:?} is not an absolute path")),
            path => *file = path,
        }
    }
    if consul.cert_file.is_some() != consul.key_file.is_some() && pair_open {
        wrong("CONSUL_CLIENT_KEY", "it goes together with CONSUL_CLIENT_CERT; one is missing".to_owned());
    }
    if consul.partition.is_none()
        && let Some(text) = get("CONSUL_PARTITION")
    {
        match text.parse() {
            Ok(partition) => consul.partition = Some(partition),
            Err(why) => wrong("CONSUL_PARTITION", why.to_string()),
        }
    }
    let token_lost = consul.token_file.is_none() && get("CONSUL_HTTP_TOKEN").is_some();
    (errors, token_lost.then(|| nowhere(Problem::TokenVariable)).into_iter().collect())
}

/// `CONSUL_HTTP_ADDR` may lack the scheme; `CONSUL_HTTP_SSL` then says which one it is.
fn api_address(text: &str, tls: Option<&str>) -> Option<String> {
    let address = if is_host_port(text) {
        // The spellings of Go's strconv.ParseBool, which Consul reads the variable with.
        let tls = matches!(tls, Some("1" | "t" | "T" | "true" | "TRUE" | "True"));
        format!("{}://{text}", if tls { "https" } else { "http" })
    } else {
        text.to_owned()
    };
    is_api_address(&address).then_some(address)
}

fn nowhere(problem: Problem) -> Fault {
    ConfigError { problem, place: Place::whole(Path::new("")) }.into()
}
