//! One GET, one answer. A connection each: a pass asks a handful of times, minutes apart. A redirection
//! is an answer and not followed, since the token would go with it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::Request;
use hyper::Uri;
use hyper::body::Bytes;
use hyper::header::HeaderValue;
use hyper_util::rt::TokioIo;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::error::PlatformError;
use crate::base::bearer::Secret;
use crate::base::{ca, files};

/// Largest file with CAs, in bytes.
const CA_LIMIT: u64 = 4 << 20;
/// Longest sentence of a platform's that goes into an error, in characters.
const SENTENCE: usize = 300;

/// A header of a request: its name and what it says, which may be a secret.
pub(super) type Header = (&'static str, Secret);

/// A way to ask.
#[derive(Debug)]
pub(super) struct Http {
    /// How long one question may take, connecting included.
    pub limit: Duration,
    /// Largest body that is read, in bytes.
    pub body_limit: usize,
    /// Which CAs are trusted; the system's own unless set.
    pub ca_file: Option<PathBuf>,
}

/// An answer.
#[derive(Debug)]
pub(super) struct Reply {
    pub status: u16,
    /// How long to wait before the next question, where it says so in seconds.
    pub retry_after: Option<Duration>,
    body: Vec<u8>,
}

impl Reply {
    /// The body of an answer to `what`. What does not parse is not repeated: it may hold a token.
    pub fn json(&self, what: &str) -> Result<Value, PlatformError> {
        serde_json::from_slice(&self.body).map_err(|error| PlatformError::Answer {
            what: what.to_owned(),
            why: format!("it is not JSON (line {}, column {})", error.line(), error.column()),
        })
    }

    /// What a refusal says, in one line: `error.message`, `error_description`, or a part of the text.
    pub fn sentence(&self) -> String {
        let json: Value = serde_json::from_slice(&self.body).unwrap_or_default();
        let said = ["/error/message", "/error_description", "/error/code", "/message", "/error"];
        let found = said.iter().find_map(|pointer| json.pointer(pointer)?.as_str());
        let text = found.map_or_else(|| String::from_utf8_lossy(&self.body).into_owned(), str::to_owned);
        let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let line = line.trim();
        match line.char_indices().nth(SENTENCE) {
            Some((end, _)) => format!("{}…", line.get(..end).unwrap_or_default()),
            None => line.to_owned(),
        }
    }
}

impl Http {
    /// Asks `url`, which is called `what` in errors.
    ///
    /// # Errors
    /// `ENM-A001` to `ENM-A007`.
    pub async fn get(&self, url: &str, what: &str, headers: &[Header]) -> Result<Reply, PlatformError> {
        let late = |_| PlatformError::Timeout { what: what.to_owned(), limit: self.limit };
        tokio::time::timeout(self.limit, self.exchange(url, what, headers)).await.map_err(late)?
    }

    async fn exchange(&self, url: &str, what: &str, headers: &[Header]) -> Result<Reply, PlatformError> {
        let wrong = || PlatformError::Url { url: url.to_owned() };
        let uri: Uri = url.parse().map_err(|_| wrong())?;
        let host = uri.host().map(|host| host.trim_matches(['[', ']'])).ok_or_else(wrong)?;
        let tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(wrong()),
        };
        let server = origin(&uri).ok_or_else(wrong)?;
        let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let unreachable = |error: std::io::Error| PlatformError::Unreachable {
            server: server.clone(),
            why: error.to_string(),
        };
        let stream = TcpStream::connect((host, port)).await.map_err(unreachable)?;
        let _ = stream.set_nodelay(true);
        let request = request(&uri, headers).ok_or_else(wrong)?;
        if !tls {
            return self.talk(stream, request, what).await;
        }
        let refused = |why: String| PlatformError::Tls { server: server.clone(), why };
        let name = ServerName::try_from(host.to_owned()).map_err(|_| wrong())?;
        let connector = TlsConnector::from(Arc::new(self.tls()?));
        let stream = connector.connect(name, stream).await.map_err(|error| refused(error.to_string()))?;
        self.talk(stream, request, what).await
    }

    async fn talk<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
        request: Request<Empty<Bytes>>,
        what: &str,
    ) -> Result<Reply, PlatformError> {
        let broken = |why: String| PlatformError::Broken { what: what.to_owned(), why };
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|error| broken(error.to_string()))?;
        let exchange = async {
            let response = sender.send_request(request).await.map_err(|error| broken(error.to_string()))?;
            let (parts, body) = response.into_parts();
            let body = Limited::new(body, self.body_limit).collect().await.map_err(|error| {
                if error.is::<LengthLimitError>() {
                    let why = format!("it is larger than {} bytes", self.body_limit);
                    return PlatformError::Answer { what: what.to_owned(), why };
                }
                broken(error.to_string())
            })?;
            let after =
                parts.headers.get("retry-after").and_then(|value| value.to_str().ok()?.trim().parse().ok());
            Ok(Reply {
                status: parts.status.as_u16(),
                retry_after: after.map(Duration::from_secs),
                body: body.to_bytes().to_vec(),
            })
        };
        // The connection is driven by the same future, so that nothing outlives a timeout.
        let drive = async {
            let _ = connection.await;
            std::future::pending::<std::convert::Infallible>().await
        };
        tokio::select! {
            reply = exchange => reply,
            never = drive => match never {},
        }
    }

    fn tls(&self) -> Result<ClientConfig, PlatformError> {
        let path = self.ca_file.clone().unwrap_or_else(ca::system_bundle);
        let roots = roots(&path)?;
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions();
        let builder = builder.map_err(|error| PlatformError::CaFile { path, why: error.to_string() })?;
        Ok(builder.with_root_certificates(roots).with_no_client_auth())
    }
}

fn roots(path: &Path) -> Result<RootCertStore, PlatformError> {
    let wrong = |why: String| PlatformError::CaFile { path: path.to_owned(), why };
    let bytes = files::read(path, CA_LIMIT).map_err(|fault| wrong(fault.message))?;
    let bytes = bytes.ok_or_else(|| wrong("there is no such file".to_owned()))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&bytes).flatten() {
        // A system's bundle may hold what this library does not read; the others still count.
        let _ = roots.add(certificate);
    }
    if roots.is_empty() { Err(wrong("no certificate in it can be a CA's".to_owned())) } else { Ok(roots) }
}

/// Scheme, host and port of an address.
pub(super) fn origin(uri: &Uri) -> Option<String> {
    Some(format!("{}://{}", uri.scheme_str()?, uri.authority()?))
}

fn request(uri: &Uri, headers: &[Header]) -> Option<Request<Empty<Bytes>>> {
    let target = uri.path_and_query().map_or("/", |target| target.as_str());
    let mut request = Request::builder()
        .uri(target)
        .header("host", uri.authority()?.as_str())
        .header("user-agent", concat!("enmesh/", env!("CARGO_PKG_VERSION")))
        .header("accept", "application/json")
        .header("connection", "close");
    for (name, secret) in headers {
        let mut value = HeaderValue::from_str(secret.expose()).ok()?;
        value.set_sensitive(true);
        request = request.header(*name, value);
    }
    request.body(Empty::new()).ok()
}

/// `text` as one value of a query (RFC 3986, 2.1 and 2.3).
pub(super) fn escaped(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}
