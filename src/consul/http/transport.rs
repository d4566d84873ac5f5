//! One request, one connection, one answer: over TCP, TLS or a unix socket.
//!
//! A connection of its own costs a fraction of a millisecond on loopback and some on TLS, and there
//! is none that has gone stale when a call that must not be sent twice is made.

use std::convert::Infallible;
use std::io;
use std::time::Duration;

use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body, Bytes};
use hyper::header::{HeaderMap, HeaderValue};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use super::settings::{Endpoint, Token};
use super::tls::{Ready, Tls};
use crate::consul::{ConsulError, Settings};

/// The largest body that is read, in bytes: a catalog of ten thousand instances has about 10 MB.
const BODY_LIMIT: usize = 32 << 20;

/// Something to ask.
pub(super) struct Ask {
    pub method: Method,
    /// Path and query.
    pub target: String,
    pub body: Vec<u8>,
    pub token: Option<Token>,
    /// How long everything may take, connecting included.
    pub limit: Duration,
    /// What it is called in errors.
    pub what: String,
}

/// What was answered.
#[derive(Debug)]
pub(super) struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

/// The way to the server.
#[derive(Debug)]
pub(super) struct Transport {
    endpoint: Endpoint,
    tls: Option<Tls>,
}

impl Transport {
    /// # Errors
    /// `ENM-K010` a file for TLS cannot be used.
    pub fn new(settings: &Settings) -> Result<Self, ConsulError> {
        let endpoint = settings.endpoint.clone();
        let tls = match endpoint {
            Endpoint::Tcp { tls: true, .. } => Some(Tls::new(settings)?),
            _ => None,
        };
        Ok(Transport { endpoint, tls })
    }

    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    pub async fn send(&self, ask: Ask) -> Result<Reply, ConsulError> {
        let (what, limit) = (ask.what.clone(), ask.limit);
        tokio::time::timeout(limit, self.exchange(ask))
            .await
            .unwrap_or(Err(ConsulError::Timeout { what, limit }))
    }

    async fn exchange(&self, ask: Ask) -> Result<Reply, ConsulError> {
        let server = self.endpoint.to_string();
        let unconnected = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ConsulError::Refused { server: server.clone() }
            }
            _ => ConsulError::Unreachable { server: server.clone(), source },
        };
        match &self.endpoint {
            Endpoint::Unix(path) => {
                let stream = UnixStream::connect(path).await.map_err(unconnected)?;
                self.talk(stream, ask, None).await
            }
            Endpoint::Tcp { host, port, .. } => {
                let stream = dial(host, *port).await?.map_err(unconnected)?;
                let _ = stream.set_nodelay(true);
                let Some(tls) = &self.tls else { return self.talk(stream, ask, None).await };
                let ready = tls.ready()?;
                let name = ServerName::try_from(host.clone())
                    .map_err(|_| ConsulError::Address { text: host.clone() })?;
                let stream = ready.connector.connect(name, stream).await.map_err(|error| {
                    ready.cause(&server, &error, false).unwrap_or_else(|| ConsulError::Tls {
                        server: server.clone(),
                        why: error.to_string(),
                    })
                })?;
                self.talk(stream, ask, Some(&ready)).await
            }
        }
    }

    async fn talk<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
        ask: Ask,
        tls: Option<&Ready>,
    ) -> Result<Reply, ConsulError> {
        let what = ask.what.clone();
        let server = self.endpoint.to_string();
        let broken = |error: &(dyn std::error::Error + 'static)| {
            tls.and_then(|tls| tls.cause(&server, error, true))
                .unwrap_or_else(|| ConsulError::Broken { what: what.clone(), why: chain(error) })
        };
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake::<_, Full<Bytes>>(TokioIo::new(stream))
                .await
                .map_err(|error| broken(&error))?;
        let request = self.request(ask)?;
        let exchange = async {
            let response = sender.send_request(request).await.map_err(|error| broken(&error))?;
            let (parts, body) = response.into_parts();
            let too_large = || ConsulError::TooLarge { what: what.clone(), limit: BODY_LIMIT };
            if body.size_hint().lower() > BODY_LIMIT as u64 {
                return Err(too_large());
            }
            let body = Limited::new(body, BODY_LIMIT).collect().await.map_err(|error| {
                if error.is::<LengthLimitError>() { too_large() } else { broken(error.as_ref()) }
            })?;
            Ok(Reply {
                status: parts.status.as_u16(),
                headers: parts.headers,
                body: body.to_bytes().to_vec(),
            })
        };
        // The connection is driven by the same future, so that nothing outlives a timeout.
        let drive = async {
            let _ = connection.await;
            std::future::pending::<Infallible>().await
        };
        tokio::select! {
            reply = exchange => reply,
            never = drive => match never {},
        }
    }

    fn request(&self, ask: Ask) -> Result<Request<Full<Bytes>>, ConsulError> {
        let what = ask.what;
        let broken = |why: String| ConsulError::Broken { what: what.clone(), why };
        let mut request = Request::builder()
            .method(ask.method)
            .uri(format!("{}{}", self.endpoint.prefix(), ask.target))
            .header("host", self.endpoint.authority())
            .header("user-agent", concat!("enmesh/", env!("CARGO_PKG_VERSION")))
            .header("accept", "application/json")
            .header("connection", "close")
            .body(Full::new(Bytes::from(ask.body)))
            .map_err(|error| broken(error.to_string()))?;
        if let Some(token) = ask.token {
            let mut value = HeaderValue::from_str(token.secret())
                .map_err(|_| broken("the token is no header".to_owned()))?;
            value.set_sensitive(true);
            request.headers_mut().insert("x-consul-token", value);
        }
        Ok(request)
    }
}

/// Tries every address of the name in turn; the outer error is the name's.
async fn dial(host: &str, port: u16) -> Result<io::Result<TcpStream>, ConsulError> {
    let name = |source| ConsulError::Name { host: host.to_owned(), source };
    let mut last = Err(io::Error::from(io::ErrorKind::AddrNotAvailable));
    for address in tokio::net::lookup_host((host, port)).await.map_err(name)? {
        last = TcpStream::connect(address).await;
        if last.is_ok() {
            break;
        }
    }
    Ok(last)
}

/// The sentence of an error with those below it.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        next = error.source();
    }
    text
}
