//! Health checks of a service file, and how one can be.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::value::{ServiceId, Span};

/// A health check; exactly one kind is given: `http`, `tcp`, `grpc`, `exec`, `ttl`, `udp`, `h2ping`,
/// `os_service` or `alias_service`. An agent runs all of them; without one enmesh runs the first five.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Check {
    /// Id; derived unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<ServiceId>,
    /// Shown in Consul.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Shown in Consul: what a person should know.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub notes: Option<String>,
    /// URL that must answer 2xx; 429 warns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<String>,
    /// HOST:PORT that must accept a connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp: Option<String>,
    /// HOST:PORT[/SERVICE] of the gRPC health protocol.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grpc: Option<String>,
    /// Absolute path of a program and its arguments; exit status 0 passes, 1 warns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exec: Option<Vec<String>>,
    /// The app reports by itself, at least this often.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl: Option<Span>,
    /// HOST:PORT that must not refuse a datagram; an agent runs it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub udp: Option<String>,
    /// HOST:PORT that must answer a ping of HTTP/2; an agent runs it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub h2ping: Option<String>,
    /// A service of the operating system that must run; an agent runs it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub os_service: Option<String>,
    /// Id of a service of this host whose state this one has; an agent runs it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alias_service: Option<ServiceId>,
    /// Time between two runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<Span>,
    /// Time one run may take; 10 s unless given, 30 s for `exec`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Span>,
    /// `http`: the method, `GET` unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// `http`: headers.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub header: BTreeMap<String, Vec<String>>,
    /// `http`: the body.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// `http`: take a redirection for the answer instead of following it.
    #[serde(skip_serializing_if = "is_false")]
    pub disable_redirects: bool,
    /// `grpc` over TLS.
    #[serde(skip_serializing_if = "is_false")]
    pub grpc_use_tls: bool,
    /// `tcp`: also make a TLS connection.
    #[serde(skip_serializing_if = "is_false")]
    pub tcp_use_tls: bool,
    /// `h2ping`: whether over TLS; an agent does unless told otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub h2ping_use_tls: Option<bool>,
    /// The name that a certificate must be for, where it is not the host's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_server_name: Option<String>,
    /// Take any certificate.
    #[serde(skip_serializing_if = "is_false")]
    pub tls_skip_verify: bool,
    /// `exec`: the container in which the agent runs the program.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub docker_container_id: Option<String>,
    /// How often in a row it must succeed before it passes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub success_before_passing: Option<u32>,
    /// How often in a row it must fail before it warns; as `failures_before_critical` unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failures_before_warning: Option<u32>,
    /// How often in a row it must fail before it is critical.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failures_before_critical: Option<u32>,
    /// After this time in critical state an agent takes the service out; at least a minute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deregister_critical_service_after: Option<Span>,
}

impl Check {
    /// The kinds of check that are given, by their keys; a valid check has one.
    pub fn kinds(&self) -> Vec<&'static str> {
        let kinds = [
            ("http", self.http.is_some()),
            ("tcp", self.tcp.is_some()),
            ("grpc", self.grpc.is_some()),
            ("exec", self.exec.is_some()),
            ("ttl", self.ttl.is_some()),
            ("udp", self.udp.is_some()),
            ("h2ping", self.h2ping.is_some()),
            ("os_service", self.os_service.is_some()),
            ("alias_service", self.alias_service.is_some()),
        ];
        kinds.into_iter().filter_map(|(kind, given)| given.then_some(kind)).collect()
    }
}

fn is_false(flag: &bool) -> bool {
    !flag
}

/// How a check is, in Consul's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckStatus {
    /// The service may be used.
    Passing,
    /// It may be used, and somebody should look at it.
    Warning,
    /// It must not be used.
    Critical,
}

impl CheckStatus {
    /// Consul's word.
    pub fn as_str(self) -> &'static str {
        match self {
            CheckStatus::Passing => "passing",
            CheckStatus::Warning => "warning",
            CheckStatus::Critical => "critical",
        }
    }
}

impl fmt::Display for CheckStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for CheckStatus {
    type Err = String;

    /// Consul's words, and the short ones of its API.
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "passing" | "pass" => Ok(CheckStatus::Passing),
            "warning" | "warn" => Ok(CheckStatus::Warning),
            "critical" | "fail" => Ok(CheckStatus::Critical),
            _ => Err(format!("{text:?} is none of passing, warning, critical")),
        }
    }
}
