//! `enmesh redirect-traffic`

use std::ffi::OsString;
use std::fmt::Write as _;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::Global;
use super::output::Answer;
use crate::base::Fault;
use crate::config::Driver;
use crate::converge::handover::{Done, Hand};
use crate::plan::{DnsServer, RedirectPolicy};
use crate::redirect::{Flags, HandError};

/// The verb, and the word that stands before it in Consul's own command.
const VERB: &str = "redirect-traffic";
const BEFORE: &str = "connect";

/// Redirect traffic to an Envoy that somebody else runs
#[derive(Debug, Args)]
#[command(
    args_override_self = true,
    after_help = "The flags are those of `consul connect redirect-traffic`, with one dash or two. A script that calls it only\nneeds the program's name changed: `enmesh connect redirect-traffic …` is understood as well.\nInbound port 22, loopback and the clouds' metadata services are always left alone.\n\nExamples:\n  enmesh redirect-traffic -proxy-uid envoy -proxy-id web-sidecar-proxy\n  enmesh redirect-traffic -proxy-uid envoy -proxy-inbound-port 20000 --dry-run\n  enmesh redirect-traffic -proxy-uid envoy -proxy-inbound-port 20000 --take-over\n  enmesh redirect-traffic -remove"
)]
pub struct RedirectTraffic {
    #[command(flatten)]
    proxy: Proxy,
    #[command(flatten)]
    exclude: Exclude,
    #[command(flatten)]
    consul: Consul,
    /// IPv6: redirect, refuse or allow
    #[arg(long, value_name = "POLICY", default_value = "redirect")]
    ipv6: String,
    /// The network namespace to act on: a name below /run/netns, a path, or that of a process
    #[arg(long, value_name = "NAME|PATH|pid:PID")]
    netns: Option<String>,
    /// Who programs the rules
    #[arg(long, value_enum, default_value = "auto")]
    driver: Choice,
    /// Print the rules, touching nothing
    #[arg(long, conflicts_with_all = ["remove", "take_over"])]
    dry_run: bool,
    /// Remove the rules of other redirectors as well, once these are in force
    #[arg(long, conflicts_with = "remove")]
    take_over: bool,
    /// Take rules and route back; new connections go direct at once
    #[arg(long)]
    remove: bool,
    /// With --remove: how long connections that are redirected may go on
    #[arg(long, value_name = "DURATION", default_value = "15s", value_parser = humantime::parse_duration)]
    drain: Duration,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "The proxy")]
struct Proxy {
    /// The user that the proxy runs as, by name or number; never redirected
    #[arg(long, value_name = "USER")]
    proxy_uid: Option<String>,
    /// The proxy's id in Consul, whose registration tells its ports
    #[arg(long, value_name = "ID")]
    proxy_id: Option<String>,
    /// The node at which the catalog has the proxy, where there is no agent
    #[arg(long, value_name = "NODE")]
    node_name: Option<String>,
    /// The port of the proxy's public listener
    #[arg(long, value_name = "PORT")]
    proxy_inbound_port: Option<String>,
    /// The port of its outbound listener [default: 15001]
    #[arg(long, value_name = "PORT")]
    proxy_outbound_port: Option<String>,
    /// Consul's DNS: every query goes to it; with -consul-dns-port, queries to this address
    #[arg(long, value_name = "ADDRESS")]
    consul_dns_ip: Option<String>,
    /// The port of Consul's DNS
    #[arg(long, value_name = "PORT")]
    consul_dns_port: Option<String>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "What is left alone (each may be given several times)")]
struct Exclude {
    /// Inbound port: a number, a range (8080:9000, 8080-9000) or a name
    #[arg(long, value_name = "PORT")]
    exclude_inbound_port: Vec<String>,
    /// Outbound port: a number, a range or a name
    #[arg(long, value_name = "PORT")]
    exclude_outbound_port: Vec<String>,
    /// Outbound network or address
    #[arg(long, value_name = "CIDR")]
    exclude_outbound_cidr: Vec<String>,
    /// User, by name or number
    #[arg(long, value_name = "USER")]
    exclude_uid: Vec<String>,
}

/// What else is not given comes from the variables of Consul's own tools.
#[derive(Debug, Args)]
#[command(next_help_heading = "Consul, for -proxy-id (else the CONSUL_* variables)")]
struct Consul {
    /// Address of its API
    #[arg(long, value_name = "ADDRESS")]
    http_addr: Option<String>,
    /// File with the token
    #[arg(long, value_name = "FILE")]
    token_file: Option<String>,
    /// The token itself, which everybody on this host can read then
    #[arg(long, value_name = "TOKEN")]
    token: Option<String>,
    /// File with the CA
    #[arg(long, value_name = "FILE")]
    ca_file: Option<String>,
    /// Folder with CAs
    #[arg(long, value_name = "DIR")]
    ca_path: Option<String>,
    /// File with a client certificate
    #[arg(long, value_name = "FILE")]
    client_cert: Option<String>,
    /// File with its key
    #[arg(long, value_name = "FILE")]
    client_key: Option<String>,
    /// The name that the API's certificate is for
    #[arg(long, value_name = "NAME")]
    tls_server_name: Option<String>,
    /// Namespace of the proxy
    #[arg(long, value_name = "NAME")]
    namespace: Option<String>,
    /// Admin partition of the proxy
    #[arg(long, value_name = "NAME")]
    partition: Option<String>,
}

/// [`Driver`], for the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Choice {
    Auto,
    Nftables,
    Iptables,
}

impl Consul {
    /// The environment, with what was given on the command line in the place of its variable.
    fn variable(&self, name: &str) -> Option<String> {
        let (flag, whole) = match name {
            "CONSUL_HTTP_ADDR" => (&self.http_addr, false),
            "CONSUL_HTTP_TOKEN_FILE" => (&self.token_file, self.token.is_some()),
            "CONSUL_HTTP_TOKEN" => (&self.token, self.token_file.is_some()),
            "CREDENTIALS_DIRECTORY" => (&None, self.token.is_some()),
            "CONSUL_CACERT" => (&self.ca_file, self.ca_path.is_some()),
            "CONSUL_CAPATH" => (&self.ca_path, self.ca_file.is_some()),
            "CONSUL_CLIENT_CERT" => (&self.client_cert, false),
            "CONSUL_CLIENT_KEY" => (&self.client_key, false),
            "CONSUL_TLS_SERVER_NAME" => (&self.tls_server_name, false),
            "CONSUL_NAMESPACE" => (&self.namespace, false),
            "CONSUL_PARTITION" => (&self.partition, false),
            _ => (&None, false),
        };
        // A flag for one of several that answer the same question leaves the others unasked.
        flag.clone().or_else(|| if whole { None } else { std::env::var(name).ok() })
    }
}

impl RedirectTraffic {
    pub async fn run(self: Box<Self>, global: &Global) -> Result<Answer, Fault> {
        let hand = self.hand();
        let variable = |name: &str| self.consul.variable(name);
        let root = global.root();
        let done = match (self.remove, self.dry_run) {
            (true, _) => hand.take_back(self.drain)?,
            (false, true) => hand.show(&root, &variable).await?,
            (false, false) => hand.set(&root, &variable, self.take_over).await?,
        };
        let seen = self.consul.token.as_ref().map(|_| Fault::from(HandError::TokenSeen));
        Ok(Answer::new(text(&done), &done).with_faults(Vec::new(), seen.into_iter().collect()))
    }

    fn hand(&self) -> Hand {
        let Proxy { proxy_uid, proxy_id, node_name, .. } = &self.proxy;
        let flags = Flags {
            proxy_uid: proxy_uid.clone(),
            proxy_id: proxy_id.clone(),
            node_name: node_name.clone(),
            inbound_port: self.proxy.proxy_inbound_port.clone(),
            outbound_port: self.proxy.proxy_outbound_port.clone(),
            dns_ip: self.proxy.consul_dns_ip.clone(),
            dns_port: self.proxy.consul_dns_port.clone(),
            exclude_inbound_ports: self.exclude.exclude_inbound_port.clone(),
            exclude_outbound_ports: self.exclude.exclude_outbound_port.clone(),
            exclude_outbound_cidrs: self.exclude.exclude_outbound_cidr.clone(),
            exclude_uids: self.exclude.exclude_uid.clone(),
            ipv6: Some(self.ipv6.clone()),
        };
        let driver = match self.driver {
            Choice::Auto => Driver::Auto,
            Choice::Nftables => Driver::Nftables,
            Choice::Iptables => Driver::Iptables,
        };
        // An empty value is how a script says none.
        Hand { flags, driver, netns: self.netns.clone().filter(|netns| !netns.is_empty()) }
    }
}

/// The command line with `--flag` for `-flag`, as Go's programs take both, behind the verb; and without the word that
/// stands before the verb in Consul's command.
pub fn two_dashes(arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut words: Vec<OsString> = arguments.collect();
    let is = |words: &[OsString], at: usize, word: &str| words.get(at).is_some_and(|is| is == word);
    if is(&words, 1, BEFORE) && is(&words, 2, VERB) {
        words.remove(1);
    }
    let Some(verb) = words.iter().position(|word| word == VERB) else { return words };
    for word in words.iter_mut().skip(verb + 1) {
        let one = word.to_str().and_then(|text| text.strip_prefix('-')).filter(|rest| {
            // One letter is a flag of ours (`-h`), and a number a value.
            rest.len() > 1 && rest.starts_with(|first: char| first.is_ascii_alphabetic())
        });
        if let Some(rest) = one {
            *word = OsString::from(format!("--{rest}"));
        }
    }
    words
}

fn text(done: &Done) -> String {
    if let Some(rules) = &done.rules {
        return rules.clone();
    }
    let place = done.netns.as_ref().map_or(String::new(), |name| format!(" in {name}"));
    let Some(policy) = &done.policy else {
        return match (done.driver.as_str(), done.cut) {
            ("none", _) => format!("there were no rules{place}; none are there"),
            (_, 0) => format!("the rules are gone{place}"),
            (_, cut) => format!("the rules are gone{place}; {cut} connections were still open"),
        };
    };
    let mut text = format!("traffic is redirected{place} ({})\n", done.driver);
    policy_text(&mut text, policy);
    for leftover in &done.replaced {
        let _ = writeln!(
            text,
            "  removed   {} ({}: {})",
            leftover.table,
            leftover.owner,
            leftover.chains.join(", ")
        );
    }
    text
}

fn policy_text(text: &mut String, policy: &RedirectPolicy) {
    for capture in policy.outbound.values() {
        let uids: Vec<String> = policy.bypass_uids.iter().map(ToString::to_string).collect();
        let _ = writeln!(text, "  outbound  to port {}; not of uid {}", capture.port, uids.join(", "));
    }
    for capture in policy.inbound.values() {
        let open: Vec<String> = capture.bypass_ports.iter().map(ToString::to_string).collect();
        let _ = writeln!(text, "  inbound   to port {}; not to {} (22 always)", capture.to, open.join(", "));
    }
    if let Some(dns) = &policy.dns {
        let asked = match &dns.server {
            DnsServer::Other { asked, .. } if !asked.is_empty() => {
                let asked: Vec<String> = asked.iter().map(ToString::to_string).collect();
                format!("queries to {}", asked.join(" and "))
            }
            _ => "every query".to_owned(),
        };
        let _ = writeln!(text, "  DNS       {asked} to {}", dns.to);
    }
    if let Some(net) = policy.virtual_route {
        let _ = writeln!(text, "  route     {net} dev lo");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dashes(line: &str) -> String {
        let words = two_dashes(line.split(' ').map(OsString::from));
        words.iter().map(|word| word.to_str().unwrap()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn one_dash_or_two_and_with_or_without_connect() {
        assert_eq!(
            dashes("enmesh connect redirect-traffic -proxy-id=web -exclude-uid 102 --proxy-uid=5995 -h"),
            "enmesh redirect-traffic --proxy-id=web --exclude-uid 102 --proxy-uid=5995 -h"
        );
        assert_eq!(
            dashes("enmesh redirect-traffic -exclude-uid -1 x-y"),
            "enmesh redirect-traffic --exclude-uid -1 x-y"
        );
        assert_eq!(dashes("enmesh status -json"), "enmesh status -json");
    }
}
