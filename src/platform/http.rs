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
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::error::PlatformError;
use crate::base::bearer::Secret;
use crate::base::{ca, files, own};

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
        let stream = own::dial(host, port).await.and_then(|dialled| dialled).map_err(unreachable)?;
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

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;
    use tokio_rustls::rustls::ServerConfig;

    use super::*;
    use crate::base::Explain;

    /// A CA in a PEM file, and a server with a certificate of it for `localhost`, that answers every
    /// question with what it heard of it.
    async fn server(folder: &Path, name: &str) -> (PathBuf, u16) {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_key = KeyPair::generate().unwrap();
        let ca = params.self_signed(&ca_key).unwrap();
        let file = folder.join(name);
        std::fs::write(&file, ca.pem()).unwrap();
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let leaf = leaf.signed_by(&key, &Issuer::new(params, ca_key)).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let config = config.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
        let config = config.with_single_cert(vec![leaf.der().clone()], key).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::task::spawn_local(async move {
            let acceptor = TlsAcceptor::from(Arc::new(config));
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(mut stream) = acceptor.accept(stream).await else { continue };
                let mut heard = vec![0; 4096];
                let count = stream.read(&mut heard).await.unwrap();
                let body = serde_json::to_string(&String::from_utf8_lossy(&heard[..count])).unwrap();
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
                stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
                let _ = stream.shutdown().await;
            }
        });
        (file, port)
    }

    fn http(ca_file: PathBuf) -> Http {
        Http { limit: Duration::from_secs(5), body_limit: 1 << 16, ca_file: Some(ca_file) }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_token_goes_to_who_has_the_right_certificate_and_to_nobody_else() {
        let work = async {
            let folder = tempfile::tempdir().unwrap();
            let (ca, port) = server(folder.path(), "ca.pem").await;
            let (stranger, _) = server(folder.path(), "stranger.pem").await;
            let header = [("authorization", Secret::new("Bearer secret"))];
            let url = format!("https://localhost:{port}/a?b=c");
            let reply = http(ca.clone()).get(&url, "it", &header).await.unwrap();
            let heard = reply.json("it").unwrap();
            let heard = heard.as_str().unwrap();
            assert!(heard.starts_with("GET /a?b=c HTTP/1.1") && heard.contains("Bearer secret"), "{heard}");
            let code = async |http: Http, url: &str| http.get(url, "it", &header).await.unwrap_err().code();
            assert_eq!(code(http(stranger), &url).await, "ENM-A006", "of another CA");
            assert_eq!(
                code(http(ca.clone()), &format!("https://127.0.0.1:{port}/")).await,
                "ENM-A006",
                "another name"
            );
            assert_eq!(code(http(folder.path().join("none")), &url).await, "ENM-A007");
            assert_eq!(code(http(ca), "ftp://localhost/").await, "ENM-A001");
        };
        tokio::task::LocalSet::new().run_until(work).await;
    }

    #[test]
    fn a_refusal_is_told_in_one_line() {
        let said = |body: &str| Reply { status: 400, retry_after: None, body: body.into() }.sentence();
        assert_eq!(said(r#"{"error":{"code":"X","message":"no\nsuch group"}}"#), "no such group");
        assert_eq!(
            said(r#"{"error":"invalid_request","error_description":"Identity not found"}"#),
            "Identity not found"
        );
        assert_eq!(said("<html>"), "<html>");
        assert!(said(&"x".repeat(10_000)).chars().count() < 310);
    }
}
