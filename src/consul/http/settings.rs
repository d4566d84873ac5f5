//! What is needed to talk to Consul: the address, the token, the files for TLS.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper::Uri;

use crate::base::Root;
use crate::base::files;
use crate::config::ConsulConfig;
use crate::config::value::ServiceName;
use crate::consul::ConsulError;

/// Where an agent listens unless somebody says otherwise.
const DEFAULT_ADDRESS: &str = "http://127.0.0.1:8500";
/// Longest token, in bytes. A secret id has 36, a JWT that somebody puts there by mistake far more.
const TOKEN_LIMIT: u64 = 1024;
/// How long one call may take, retries included.
const LIMIT: Duration = Duration::from_secs(10);

/// How to reach Consul.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where its API listens.
    pub endpoint: Endpoint,
    /// PEM file with the CA; the system's own bundle unless set.
    pub ca_file: Option<PathBuf>,
    /// PEM files with client certificate and key.
    pub client: Option<(PathBuf, PathBuf)>,
    /// Where the token comes from.
    pub token: TokenSource,
    /// Asked for in calls that are not the agent's own business.
    pub datacenter: Option<ServiceName>,
    /// Admin partition, in every call.
    pub partition: Option<ServiceName>,
    /// How long one call may take, retries included.
    pub limit: Duration,
}

impl Settings {
    /// From the host file, which the `CONSUL_*` variables have filled already. `env` is asked for
    /// what is not in it: `CREDENTIALS_DIRECTORY` and `CONSUL_HTTP_TOKEN`.
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
            client: config.cert_file.as_ref().map(below).zip(config.key_file.as_ref().map(below)),
            token: TokenSource::find(config.token_file.as_ref().map(below), env),
            datacenter: config.datacenter.clone(),
            partition: config.partition.clone(),
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

/// An ACL token. It is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// The token in `text`, without the white space around it; `None` when that is all there is.
    ///
    /// # Errors
    /// What is wrong with it, without repeating any of it.
    pub fn new(text: &str) -> Result<Option<Self>, &'static str> {
        let text = text.trim();
        if text.contains(|c: char| !c.is_ascii_graphic()) {
            return Err("it has more than one word, or characters that no token has");
        }
        Ok((!text.is_empty()).then(|| Token(text.to_owned())))
    }

    /// The secret itself, for the header of a request and for a file that only the agent may read.
    pub(in crate::consul) fn secret(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// Where the token comes from. Files are read anew for each call, so that a token that is renewed in
/// place is taken up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenSource {
    /// There is none: Consul treats the caller as anonymous.
    Anonymous,
    /// A file, which has to be there.
    File(PathBuf),
    /// The environment.
    Variable(Token),
    /// A variable that holds something else.
    BadVariable(&'static str),
}

impl TokenSource {
    /// The first of: the configured file, systemd's credential `consul-token`, `CONSUL_HTTP_TOKEN`.
    fn find(file: Option<PathBuf>, env: &dyn Fn(&str) -> Option<String>) -> Self {
        if let Some(file) = file {
            return TokenSource::File(file);
        }
        let credential = env("CREDENTIALS_DIRECTORY").map(|folder| Path::new(&folder).join("consul-token"));
        if let Some(file) = credential.filter(|file| file.exists()) {
            return TokenSource::File(file);
        }
        match env("CONSUL_HTTP_TOKEN").as_deref().map(Token::new) {
            Some(Ok(Some(token))) => TokenSource::Variable(token),
            Some(Err(why)) => TokenSource::BadVariable(why),
            Some(Ok(None)) | None => TokenSource::Anonymous,
        }
    }

    /// The token, as it is now.
    ///
    /// # Errors
    /// `ENM-K020` the file cannot be read, or holds no token.
    pub fn read(&self) -> Result<Option<Token>, ConsulError> {
        let path = match self {
            TokenSource::Anonymous => return Ok(None),
            TokenSource::Variable(token) => return Ok(Some(token.clone())),
            TokenSource::BadVariable(why) => {
                let origin = "CONSUL_HTTP_TOKEN".to_owned();
                return Err(ConsulError::Token { origin, why: (*why).to_owned() });
            }
            TokenSource::File(path) => path,
        };
        let wrong = |why: String| ConsulError::Token { origin: path.display().to_string(), why };
        let bytes = files::read(path, TOKEN_LIMIT).map_err(|fault| wrong(fault.message))?;
        let bytes = bytes.ok_or_else(|| wrong("there is no such file".to_owned()))?;
        let text = str::from_utf8(&bytes).map_err(|_| wrong("it is not text".to_owned()))?;
        let token = Token::new(text).map_err(|why| wrong(why.to_owned()))?;
        token.map(Some).ok_or_else(|| wrong("it is empty".to_owned()))
    }
}

#[cfg(test)]
mod tests {
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
    fn a_token_comes_from_the_first_place_that_has_one_and_is_never_shown() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("configured");
        let credential = folder.path().join("consul-token");
        let variables = |name: &str| match name {
            "CREDENTIALS_DIRECTORY" => Some(folder.path().display().to_string()),
            "CONSUL_HTTP_TOKEN" => Some("of-the-environment".to_owned()),
            _ => None,
        };
        let find = |file: Option<&Path>| TokenSource::find(file.map(Path::to_owned), &variables);
        let read = |source: TokenSource| source.read().unwrap().unwrap().secret().to_owned();
        assert_eq!(read(find(None)), "of-the-environment");
        assert!(!format!("{:?}", find(None)).contains("of-the-environment"));
        std::fs::write(&credential, "of-systemd\n").unwrap();
        assert_eq!(read(find(None)), "of-systemd");
        // A configured file that is not there is an error, not somebody else's token.
        assert!(matches!(find(Some(&file)).read(), Err(ConsulError::Token { .. })));
        std::fs::write(&file, " of-the-file\n").unwrap();
        assert_eq!(read(find(Some(&file))), "of-the-file");
        std::fs::write(&file, "renewed").unwrap();
        assert_eq!(read(find(Some(&file))), "renewed");
        for bad in ["", "\n", "two words", "a\nb", "tök"] {
            std::fs::write(&file, bad).unwrap();
            let error = find(Some(&file)).read().unwrap_err().to_string();
            assert!(!error.contains("words") || bad.is_empty() || !error.contains("two words"), "{error}");
        }
        assert_eq!(TokenSource::find(None, &|_| None).read().unwrap(), None);
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
