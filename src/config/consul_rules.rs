//! Rules of `[consul]` in the host file, and what the environment adds to it.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::error::{ConfigError, Problem};
use super::rules::{is_host_port, is_http_url};
use super::{ConsulConfig, LoginConfig};
use crate::base::{Fault, Place};

/// Longest name of a node, in characters: that of a whole name in DNS (RFC 1035, 2.3.4), since it is
/// the host's own by default.
const NODE_MAX: usize = 253;
/// Longest name of an auth method, in characters, by Consul's own rule.
const METHOD_MAX: usize = 128;

/// The keys that lead to a value, and what is wrong with it.
type Wrong = (&'static [&'static str], String);

/// Everything that is wrong with `consul` beyond its single values.
pub(super) fn consul(consul: &ConsulConfig) -> Vec<Wrong> {
    let mut wrong: Vec<Wrong> = Vec::new();
    for (path, address) in [
        (&["consul", "address"] as &[_], &consul.address),
        (&["consul", "grpc_address"], &consul.grpc_address),
    ] {
        if let Some(address) = address.as_ref().filter(|address| !is_address(address)) {
            wrong
                .push((path, format!("{address:?} is none of http://HOST:PORT, https://… and unix:///PATH")));
        }
    }
    files(consul, &mut wrong);
    if let Some(name) = consul.tls_server_name.as_ref().filter(|name| !is_server_name(name)) {
        let why = format!("{name:?} is not a name that a certificate is for: a host's name or an address");
        wrong.push((&["consul", "tls_server_name"], why));
    }
    if let Some(dns) = consul.dns.filter(|dns| dns.port() == 0 || dns.ip().is_unspecified()) {
        let why = format!("nobody can be asked at {dns}: it takes an address and a port");
        wrong.push((&["consul", "dns"], why));
    }
    if let Some(node) = consul.node.as_ref().filter(|node| !is_name(node, "-_.", NODE_MAX)) {
        let why = format!(
            "{node:?} is not a node's name: letters, digits, `-`, `_` and `.`, {NODE_MAX} of them at most"
        );
        wrong.push((&["consul", "node"], why));
    }
    if let Some(login) = &consul.login {
        rules_of_login(login, &mut wrong);
        if consul.token_file.is_some() {
            let why = "the token comes from `token_file` or from a login, not from both".to_owned();
            wrong.push((&["consul", "login"], why));
        }
    }
    wrong
}

fn files(consul: &ConsulConfig, wrong: &mut Vec<Wrong>) {
    let login = consul.login.as_ref().and_then(|login| login.bearer_token_file.clone());
    for (path, file) in [
        (&["consul", "token_file"] as &[_], &consul.token_file),
        (&["consul", "ca_file"], &consul.ca_file),
        (&["consul", "ca_path"], &consul.ca_path),
        (&["consul", "cert_file"], &consul.cert_file),
        (&["consul", "key_file"], &consul.key_file),
        (&["consul", "grpc_ca_file"], &consul.grpc_ca_file),
        (&["consul", "config_entries"], &consul.config_entries),
        (&["consul", "login", "bearer_token_file"], &login),
    ] {
        if let Some(file) = file.as_ref().filter(|file| !file.is_absolute()) {
            wrong.push((path, format!("{file:?} is not an absolute path")));
        }
    }
    if consul.cert_file.is_some() != consul.key_file.is_some() {
        let path: &[_] =
            if consul.cert_file.is_some() { &["consul", "cert_file"] } else { &["consul", "key_file"] };
        wrong.push((path, "`cert_file` and `key_file` go together; one of them is missing".to_owned()));
    }
    if consul.ca_file.is_some() && consul.ca_path.is_some() {
        let why = "the CA comes from `ca_file` or from the folder `ca_path`, not from both".to_owned();
        wrong.push((&["consul", "ca_path"], why));
    }
}

fn rules_of_login(login: &LoginConfig, wrong: &mut Vec<Wrong>) {
    if !is_name(&login.method, "-_", METHOD_MAX) {
        let why = format!(
            "{:?} is not an auth method's name: letters, digits, `-` and `_`, {METHOD_MAX} of them at most",
            login.method
        );
        wrong.push((&["consul", "login", "method"], why));
    }
    if login.bearer_token_file.is_some() == login.identity.is_some() {
        let why =
            "the bearer token comes from `bearer_token_file` or from an `identity`: give one of the two"
                .to_owned();
        wrong.push((&["consul", "login"], why));
    }
    if login.identity.as_ref().is_some_and(|identity| identity.resource.trim().is_empty()) {
        let why = "it is whom the token is for, and cannot be empty".to_owned();
        wrong.push((&["consul", "login", "identity", "resource"], why));
    }
    if login.meta.keys().any(String::is_empty) {
        wrong.push((&["consul", "login", "meta"], "a key of `meta` is empty".to_owned()));
    }
}

/// Letters, digits and, except at the ends, `signs`.
fn is_name(text: &str, signs: &str, most: usize) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    text.len() <= most
        && text.chars().all(|c| c.is_ascii_alphanumeric() || signs.contains(c))
        && edge(text.chars().next())
        && edge(text.chars().last())
}

pub(super) fn is_server_name(text: &str) -> bool {
    rustls_pki_types::ServerName::try_from(text).is_ok()
}

fn is_address(text: &str) -> bool {
    match text.strip_prefix("unix://") {
        Some(path) => path.starts_with('/') && path.len() > 1,
        None => is_http_url(text),
    }
}

/// Fills what `consul` leaves open from the variables that Consul's own tools read. Two of them,
/// CONSUL_HTTP_TOKEN and CONSUL_HTTP_AUTH, hold secrets and so never get into the configuration.
///
/// Returns what does not fit, and what is worth a warning.
pub(super) fn fill_from_environment(
    consul: &mut ConsulConfig,
    env: &dyn Fn(&str) -> Option<String>,
) -> (Vec<Fault>, Vec<Fault>) {
    let mut found = Variables { env, errors: Vec::new() };
    if consul.address.is_none()
        && let Some(text) = found.get("CONSUL_HTTP_ADDR")
    {
        let tls = is_true(found.get("CONSUL_HTTP_SSL"));
        consul.address = found.address("CONSUL_HTTP_ADDR", &text, tls);
    }
    let https = consul.address.as_ref().is_some_and(|address| address.starts_with("https://"));
    if consul.grpc_address.is_none()
        && let Some(text) = found.get("CONSUL_GRPC_ADDR")
    {
        // An API with TLS is taken for an xDS with TLS by Consul's own tool too.
        let tls = https || is_true(found.get("CONSUL_HTTP_SSL"));
        consul.grpc_address = found.address("CONSUL_GRPC_ADDR", &text, tls);
    }
    if https && found.get("CONSUL_HTTP_SSL_VERIFY").is_some_and(|text| is_false(&text)) {
        let why = "certificates are always verified; name their CA (CONSUL_CACERT) and, where they are for \
                   another name, that (CONSUL_TLS_SERVER_NAME)";
        found.wrong("CONSUL_HTTP_SSL_VERIFY", why.to_owned());
    }
    fill_files(consul, &mut found);
    found.parse("CONSUL_PARTITION", &mut consul.partition);
    found.parse("CONSUL_NAMESPACE", &mut consul.namespace);
    if consul.tls_server_name.is_none() {
        consul.tls_server_name = found.get("CONSUL_TLS_SERVER_NAME");
        if let Some(name) = consul.tls_server_name.take_if(|name| !is_server_name(name)) {
            found
                .wrong("CONSUL_TLS_SERVER_NAME", format!("{name:?} is not a name that a certificate is for"));
        }
    }
    let has_token = consul.token_file.is_some() || consul.login.is_some();
    let token_lost = !has_token && found.get("CONSUL_HTTP_TOKEN").is_some();
    (found.errors, token_lost.then(|| nowhere(Problem::TokenVariable)).into_iter().collect())
}

fn fill_files(consul: &mut ConsulConfig, found: &mut Variables<'_>) {
    // A login of the file is not put aside by a token that lies about in the environment.
    if consul.login.is_none() {
        found.path("CONSUL_HTTP_TOKEN_FILE", &mut consul.token_file);
    }
    // As for Consul's own tools, a file wins over a folder; and what the host file says over both.
    if consul.ca_path.is_none() {
        found.path("CONSUL_CACERT", &mut consul.ca_file);
    }
    if consul.ca_file.is_none() {
        found.path("CONSUL_CAPATH", &mut consul.ca_path);
    }
    found.path("CONSUL_GRPC_CACERT", &mut consul.grpc_ca_file);
    // The pair is filled as one: a certificate of the file never meets a key of the environment.
    if consul.cert_file.is_none() && consul.key_file.is_none() {
        found.path("CONSUL_CLIENT_CERT", &mut consul.cert_file);
        found.path("CONSUL_CLIENT_KEY", &mut consul.key_file);
        if consul.cert_file.is_some() != consul.key_file.is_some() {
            let why = "it goes together with CONSUL_CLIENT_CERT; one is missing".to_owned();
            found.wrong("CONSUL_CLIENT_KEY", why);
        }
    }
}

/// The environment, and what does not fit in it.
struct Variables<'e> {
    env: &'e dyn Fn(&str) -> Option<String>,
    errors: Vec<Fault>,
}

impl Variables<'_> {
    /// A variable that is set to something.
    fn get(&self, name: &str) -> Option<String> {
        (self.env)(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
    }

    fn wrong(&mut self, name: &'static str, why: String) {
        self.errors.push(nowhere(Problem::Environment { name, why }));
    }

    fn path(&mut self, name: &'static str, file: &mut Option<PathBuf>) {
        if file.is_some() {
            return;
        }
        match self.get(name).map(PathBuf::from) {
            Some(path) if !path.is_absolute() => {
                self.wrong(name, format!("{path:?} is not an absolute path"))
            }
            path => *file = path,
        }
    }

    fn parse<T: FromStr>(&mut self, name: &'static str, value: &mut Option<T>)
    where
        T::Err: std::fmt::Display,
    {
        if value.is_some() {
            return;
        }
        match self.get(name).map(|text| text.parse()) {
            Some(Ok(parsed)) => *value = Some(parsed),
            Some(Err(why)) => self.wrong(name, why.to_string()),
            None => {}
        }
    }

    /// An address may lack the scheme; `tls` then says which one it is.
    fn address(&mut self, name: &'static str, text: &str, tls: bool) -> Option<String> {
        let address = if is_host_port(text) {
            format!("{}://{text}", if tls { "https" } else { "http" })
        } else {
            text.to_owned()
        };
        if !is_address(&address) {
            self.wrong(name, format!("{text:?} is not an address"));
            return None;
        }
        Some(address)
    }
}

/// The spellings of Go's strconv.ParseBool, which Consul reads its variables with.
fn is_true(text: Option<String>) -> bool {
    matches!(text.as_deref(), Some("1" | "t" | "T" | "true" | "TRUE" | "True"))
}

fn is_false(text: &str) -> bool {
    matches!(text, "0" | "f" | "F" | "false" | "FALSE" | "False")
}

fn nowhere(problem: Problem) -> Fault {
    ConfigError { problem, place: Place::whole(Path::new("")) }.into()
}
