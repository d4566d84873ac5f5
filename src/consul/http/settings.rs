//! What is needed to talk to Consul: the address, the token, the files for TLS.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use hyper::Uri;

use super::token::{BasicAuth, SessionToken, TokenSource};
use crate::base::Root;
use crate::config::ConsulConfig;
use crate::config::value::ServiceName;
use crate::consul::ConsulError;

/// Where an agent listens unless somebody says otherwise.
const DEFAULT_ADDRESS: &str = "http://127.0.0.1:8500";
/// How long one call may take, retries included.
const LIMIT: Duration = Duration::from_secs(10);

/// How to reach Consul.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where its API listens.
    pub endpoint: Endpoint,
    /// PEM file with the CA; the system's own bundle unless set.
    pub ca_file: Option<PathBuf>,
    /// Folder with CAs, where there is no `ca_file`.
    pub ca_path: Option<PathBuf>,
    /// The name that the API's certificate is for, where it is not that of the address.
    pub tls_server_name: Option<String>,
    /// PEM files with client certificate and key.
    pub client: Option<(PathBuf, PathBuf)>,
    /// For a proxy in front of Consul that asks for a name and password.
    pub auth: Option<BasicAuth>,
    /// Where the token comes from.
    pub token: TokenSource,
    /// Asked for in calls that are not the agent's own business.
    pub datacenter: Option<ServiceName>,
    /// Admin partition, in every call.
    pub partition: Option<ServiceName>,
    /// Namespace, in every call that does not name one itself.
    pub namespace: Option<ServiceName>,
    /// How long one call may take, retries included.
    pub limit: Duration,
}

impl Settings {
    /// From the host file, which the `CONSUL_*` variables have filled already. `env` is asked for
    /// what is not in it: `CREDENTIALS_DIRECTORY` and, being secrets, `CONSUL_HTTP_TOKEN` and
    /// `CONSUL_HTTP_AUTH`. With a login, calls are refused (`ENM-K069`) until it is done.
    ///
    /// # Errors
    /// `ENM-K001` the address is none.
    pub fn new(
        config: &ConsulConfig,
        root: &Root,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, ConsulError> {
        let below = |path: &PathBuf| root.join(path);
        Ok(Settings {
            endpoint: Endpoint::parse(config.address.as_deref().unwrap_or(DEFAULT_ADDRESS))?,
            ca_file: config.ca_file.as_ref().map(below),
            ca_path: config.ca_path.as_ref().map(below),
            tls_server_name: config.tls_server_name.clone(),
            client: config.cert_file.as_ref().map(below).zip(config.key_file.as_ref().map(below)),
            auth: env("CONSUL_HTTP_AUTH").as_deref().and_then(BasicAuth::new),
            token: match config.login {
                Some(_) => TokenSource::Login(SessionToken::default()),
                None => TokenSource::find(config.token_file.as_ref().map(below), env),
            },
            datacenter: config.datacenter.clone(),
            partition: config.partition.clone(),
            namespace: config.namespace.clone(),
            limit: LIMIT,
        })
    }
}

/// Where Consul's API listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// TCP, with or without TLS.
    Tcp {
        /// Name or address, IPv6 without brackets.
        host: String,
        /// Port.
        port: u16,
        /// Whether it is HTTPS.
        tls: bool,
        /// What stands before `/v1`; empty for most.
        prefix: String,
    },
    /// A unix socket.
    Unix(PathBuf),
}

impl Endpoint {
    /// `http://HOST[:PORT][/PREFIX]`, the same with `https`, or `unix:///PATH`. Ports default to
    /// those of the schemes, as in Consul's own tools.
    ///
    /// # Errors
    /// `ENM-K001`.
    pub fn parse(text: &str) -> Result<Self, ConsulError> {
        let wrong = || ConsulError::Address { text: text.to_owned() };
        if let Some(path) = text.strip_prefix("unix://") {
            return if path.starts_with('/') && path.len() > 1 {
                Ok(Endpoint::Unix(PathBuf::from(path)))
            } else {
                Err(wrong())
            };
        }
        let uri: Uri = text.parse().map_err(|_| wrong())?;
        let tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(wrong()),
        };
        let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
        let authority = uri.authority().map(hyper::http::uri::Authority::as_str).unwrap_or_default();
        // A name and password in an address would be shown wherever the address is.
        if host.is_empty() || authority.contains('@') || uri.query().is_some() {
            return Err(wrong());
        }
        Ok(Endpoint::Tcp {
            host: host.to_owned(),
            port: uri.port_u16().unwrap_or(if tls { 443 } else { 80 }),
            tls,
            prefix: uri.path().trim_end_matches('/').to_owned(),
        })
    }

    /// What stands before the path of a call.
    pub(super) fn prefix(&self) -> &str {
        match self {
            Endpoint::Tcp { prefix, .. } => prefix,
            Endpoint::Unix(_) => "",
        }
    }

    /// The header `Host`.
    pub(super) fn authority(&self) -> String {
        match self {
            Endpoint::Tcp { host, port, .. } if host.contains(':') => format!("[{host}]:{port}"),
            Endpoint::Tcp { host, port, .. } => format!("{host}:{port}"),
            Endpoint::Unix(_) => "localhost".to_owned(),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Tcp { tls, prefix, .. } => {
                write!(f, "{}://{}{prefix}", if *tls { "https" } else { "http" }, self.authority())
            }
            Endpoint::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn addresses_in_every_form() {
        let tcp = |host: &str, port, tls, prefix: &str| Endpoint::Tcp {
            host: host.to_owned(),
            port,
            tls,
            prefix: prefix.to_owned(),
        };
        for (text, endpoint) in [
            ("http://127.0.0.1:8500", tcp("127.0.0.1", 8500, false, "")),
            ("https://consul.example:8501/", tcp("consul.example", 8501, true, "")),
            ("https://consul.example/pre/fix/", tcp("consul.example", 443, true, "/pre/fix")),
            ("http://[::1]:8500", tcp("::1", 8500, false, "")),
            ("unix:///run/consul.sock", Endpoint::Unix(PathBuf::from("/run/consul.sock"))),
        ] {
            let parsed = Endpoint::parse(text).unwrap();
            assert_eq!(parsed, endpoint, "{text}");
            assert_eq!(Endpoint::parse(&parsed.to_string()).unwrap(), endpoint);
        }
        for text in [
            "",
            "127.0.0.1:8500",
            "unix://",
            "unix://rel",
            "ftp://x",
            "http://",
            "http://u:p@h",
            "http://h?x=1",
        ] {
            assert!(matches!(Endpoint::parse(text), Err(ConsulError::Address { .. })), "{text}");
        }
    }

    #[test]
    fn settings_follow_the_host_file_below_the_root() {
        let config = ConsulConfig {
            address: Some("https://c:8501".to_owned()),
            ca_file: Some(PathBuf::from("/ca.pem")),
            cert_file: Some(PathBuf::from("/c.pem")),
            key_file: Some(PathBuf::from("/k.pem")),
            ..ConsulConfig::default()
        };
        let settings = Settings::new(&config, &Root::new("/r"), &|_| None).unwrap();
        assert_eq!(settings.ca_file.as_deref(), Some(Path::new("/r/ca.pem")));
        assert_eq!(settings.client, Some((PathBuf::from("/r/c.pem"), PathBuf::from("/r/k.pem"))));
        let settings = Settings::new(&ConsulConfig::default(), &Root::default(), &|_| None).unwrap();
        assert_eq!(settings.endpoint.to_string(), DEFAULT_ADDRESS);
    }
}
