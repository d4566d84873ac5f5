//! Where Consul's xDS is, and how to reach it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use super::XdsError;
use super::probe::{Speaks, probe};
use crate::base::{Fault, Root, files};
use crate::config::ConsulConfig;
use crate::consul::{Endpoint, Feature, Gate, ServerFacts, Version};
use crate::plan::{Ads, AdsServer};

/// The port of gRPC unless somebody says otherwise.
const DEFAULT_PORT: u16 = 8502;
/// Largest file of CAs that is read, in bytes.
const CA_LIMIT: u64 = 1 << 20;

/// What is configured about xDS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct XdsSettings {
    /// `grpc_address`.
    pub address: Option<String>,
    /// Where the HTTP API is: xDS is on the same host unless an address is given.
    pub api: Endpoint,
    /// PEM file with the CA of xDS: `grpc_ca_file`, or that of the API.
    pub ca_file: Option<PathBuf>,
}

impl XdsSettings {
    /// From the host file; files are below `root`.
    pub fn new(config: &ConsulConfig, api: Endpoint, root: &Root) -> Self {
        let ca_file = config.grpc_ca_file.as_ref().or(config.ca_file.as_ref());
        XdsSettings {
            address: config.grpc_address.clone(),
            api,
            ca_file: ca_file.map(|path| root.join(path)),
        }
    }
}

/// Where xDS is said to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Name or address and port, or `None` for a socket.
    pub host: Option<(String, u16)>,
    /// A unix socket.
    pub socket: Option<PathBuf>,
    /// Whether it has TLS; `None` when only asking can tell.
    pub tls: Option<bool>,
}

impl Found {
    fn tcp(host: impl Into<String>, port: u16, tls: Option<bool>) -> Self {
        Found { host: Some((host.into(), port)), socket: None, tls }
    }
}

/// Where xDS is, from what is configured and what the other side says of itself.
///
/// # Errors
/// `ENM-K080` the release has no xDS that current Envoys speak, `ENM-K081` its gRPC is switched off,
/// `ENM-K082` the configured address is none.
pub fn find(facts: &ServerFacts, settings: &XdsSettings) -> Result<Found, XdsError> {
    if let Some(version) = facts.version
        && Gate::of(facts).has(Feature::TransparentProxy) == Some(false)
    {
        return Err(XdsError::TooOld { version: version.to_string() });
    }
    if let Some(text) = &settings.address {
        return given(text).ok_or_else(|| XdsError::Address { text: text.clone() });
    }
    let (host, api_tls) = match &settings.api {
        Endpoint::Tcp { host, tls, .. } => (host.clone(), *tls),
        Endpoint::Unix(_) => (Ipv4Addr::LOCALHOST.to_string(), false),
    };
    // Until 1.14 there was one port, and it had TLS when HTTPS was configured.
    let one_port = facts.version.is_some_and(|version| version < Version::minor(1, 14));
    match (facts.xds_tls, facts.xds_plaintext) {
        (Some(port), _) => Ok(Found::tcp(host, port, Some(true))),
        (None, Some(port)) if one_port && api_tls => Ok(Found::tcp(host, port, None)),
        (None, Some(port)) => Ok(Found::tcp(host, port, (!one_port).then_some(false))),
        (None, None) if facts.source == crate::consul::Source::Agent => Err(XdsError::SwitchedOff),
        (None, None) => Ok(Found::tcp(host, DEFAULT_PORT, None)),
    }
}

/// `http://`, `https://`, `unix://`, or `HOST:PORT`, as Consul's tools take it.
fn given(text: &str) -> Option<Found> {
    if let Some(path) = text.strip_prefix("unix://") {
        let socket = Some(PathBuf::from(path)).filter(|path| path.is_absolute());
        return socket.map(|path| Found { host: None, socket: Some(path), tls: Some(false) });
    }
    let (rest, tls) = match (text.strip_prefix("https://"), text.strip_prefix("http://")) {
        (Some(rest), _) => (rest, Some(true)),
        (_, Some(rest)) => (rest, Some(false)),
        _ => (text, None),
    };
    let (host, port) = rest.trim_end_matches('/').rsplit_once(':')?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let good = !host.is_empty() && !host.contains(['/', '@', '[', ']']);
    good.then_some(())?;
    Some(Found::tcp(host, port.parse().ok().filter(|port| *port != 0)?, tls))
}

/// What the sidecars are told about xDS: `found`, with names resolved, with TLS asked for where
/// nobody said, and with the CA.
///
/// # Errors
/// `ENM-K083` a name cannot be resolved, `ENM-K084` nobody answers, `ENM-K085` TLS without a CA,
/// `ENM-K086` the CA's file cannot be used.
pub async fn ads(found: &Found, settings: &XdsSettings, node_name: Option<String>) -> Result<Ads, Fault> {
    let server = match (&found.socket, &found.host) {
        (Some(path), _) => AdsServer::Unix(path.clone()),
        (None, Some((host, port))) => AdsServer::Tcp(resolve(host, *port).await?),
        (None, None) => return Err(XdsError::SwitchedOff.into()),
    };
    let tls = match found.tls {
        Some(tls) => tls,
        None => {
            let unreachable = |source| XdsError::Unreachable { server: shown(&server), source };
            probe(&server).await.map_err(unreachable)? != Speaks::Plaintext
        }
    };
    let ca_pem = match (tls, &settings.ca_file) {
        (false, _) => None,
        (true, Some(path)) => Some(ca(path)?),
        (true, None) => return Err(XdsError::NoCa { server: shown(&server) }.into()),
    };
    Ok(Ads { server, ca_pem, token: false, node_name })
}

/// The address of a name. Of several the smallest, so that a bootstrap does not change with the
/// order in which a resolver gives them out.
async fn resolve(host: &str, port: u16) -> Result<SocketAddr, XdsError> {
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(SocketAddr::new(ip, port));
    }
    let wrong = |source| XdsError::Name { host: host.to_owned(), source };
    let all = tokio::net::lookup_host((host, port)).await.map_err(wrong)?;
    all.min().ok_or_else(|| wrong(io::Error::from(io::ErrorKind::NotFound)))
}

fn ca(path: &Path) -> Result<String, XdsError> {
    let wrong = |why: &str| XdsError::CaFile { path: path.to_owned(), why: why.to_owned() };
    let bytes = files::read(path, CA_LIMIT).map_err(|fault| wrong(&fault.message))?;
    let text = String::from_utf8(bytes.ok_or_else(|| wrong("there is no such file"))?);
    let text = text.map_err(|_| wrong("it is not text"))?;
    if text.contains("-----BEGIN CERTIFICATE-----") {
        Ok(text)
    } else {
        Err(wrong("there is no certificate in it"))
    }
}

/// An address for people.
pub(super) fn shown(server: &AdsServer) -> String {
    match server {
        AdsServer::Tcp(at) => at.to_string(),
        AdsServer::Unix(path) => format!("unix://{}", path.display()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::base::Explain;

    fn settings(address: Option<&str>, api: &str) -> XdsSettings {
        let api = Endpoint::parse(api).unwrap();
        XdsSettings { address: address.map(str::to_owned), api, ca_file: None }
    }

    fn agent(version: &str, tls: i32, plaintext: i32) -> ServerFacts {
        ServerFacts::of_agent(&json!({
            "Config": {"Version": version}, "xDS": {"Ports": {"TLS": tls, "Plaintext": plaintext}},
        }))
        .unwrap()
    }

    #[test]
    fn the_agent_says_where_and_how() {
        let local = settings(None, "http://127.0.0.1:8500");
        let found = |facts: &ServerFacts, settings: &XdsSettings| find(facts, settings).unwrap();
        assert_eq!(found(&agent("1.20.1", 8503, 8502), &local), Found::tcp("127.0.0.1", 8503, Some(true)));
        assert_eq!(found(&agent("1.20.1", -1, 8502), &local), Found::tcp("127.0.0.1", 8502, Some(false)));
        assert_eq!(found(&agent("1.12.0", -1, 8502), &local), Found::tcp("127.0.0.1", 8502, None));
        let remote = settings(None, "https://consul.example:8501");
        assert_eq!(
            found(&agent("1.20.1", 8503, -1), &remote),
            Found::tcp("consul.example", 8503, Some(true))
        );
        let socket = settings(None, "unix:///run/consul.sock");
        assert_eq!(found(&agent("1.20.1", -1, 8502), &socket), Found::tcp("127.0.0.1", 8502, Some(false)));
    }

    #[test]
    fn why_there_is_none() {
        let local = settings(None, "http://127.0.0.1:8500");
        let error = find(&agent("1.8.7", -1, 8502), &local).unwrap_err();
        assert_eq!(error.code(), "ENM-K080");
        assert!(error.hint().contains("catalog"), "{}", error.hint());
        // An address does not make an old server younger.
        let given = settings(Some("127.0.0.1:8502"), "http://127.0.0.1:8500");
        assert_eq!(find(&agent("1.9.17", -1, 8502), &given).unwrap_err().code(), "ENM-K080");
        assert_eq!(find(&agent("1.20.1", -1, -1), &local).unwrap_err().code(), "ENM-K081");
        let wrong = settings(Some("ftp://x"), "http://127.0.0.1:8500");
        assert_eq!(find(&agent("1.20.1", -1, 8502), &wrong).unwrap_err().code(), "ENM-K082");
    }

    #[test]
    fn addresses_as_people_give_them() {
        for (text, expected) in [
            ("127.0.0.1:8502", Some(Found::tcp("127.0.0.1", 8502, None))),
            ("https://consul.example:8503/", Some(Found::tcp("consul.example", 8503, Some(true)))),
            ("http://[::1]:8502", Some(Found::tcp("::1", 8502, Some(false)))),
            (
                "unix:///run/x.sock",
                Some(Found { host: None, socket: Some("/run/x.sock".into()), tls: Some(false) }),
            ),
            ("unix://x.sock", None),
            ("consul.example", None),
            ("u:p@host:1", None),
            ("host:0", None),
            (":8502", None),
        ] {
            assert_eq!(given(text), expected, "{text}");
        }
    }
}
