//! One call at a time over one connection: TCP, TLS or a unix socket.
//!
//! Writes have a connection of their own, so that there is none that has gone stale when a call is
//! made that must not be sent twice. Reads use one that another read has left, and are sent again
//! over a new one when that has been closed meanwhile.

use std::convert::Infallible;
use std::io;
use std::time::Duration;

use futures_util::FutureExt;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body, Bytes};
use hyper::header::{HeaderMap, HeaderValue};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use nix::sys::socket::{setsockopt, sockopt};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use super::pool::{Line, Pool};
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

impl Ask {
    /// Whether it does no harm to send it twice.
    fn may_repeat(&self) -> bool {
        self.method == Method::GET
    }
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
    pool: Pool,
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
        Ok(Transport { endpoint, tls, pool: Pool::default() })
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
        if ask.may_repeat()
            && let Some(line) = self.pool.take()
        {
            match self.talk(line, &ask, None).await {
                // It was closed since, or has just been.
                Err(ConsulError::Broken { .. }) => {}
                done => return done,
            }
        }
        let (line, tls) = self.connect(&ask).await?;
        self.talk(line, &ask, tls.as_ref()).await
    }

    async fn connect(&self, ask: &Ask) -> Result<(Line, Option<Ready>), ConsulError> {
        let server = self.endpoint.to_string();
        let unconnected = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ConsulError::Refused { server: server.clone() }
            }
            _ => ConsulError::Unreachable { server: server.clone(), source },
        };
        let (host, port) = match &self.endpoint {
            Endpoint::Unix(path) => {
                let stream = UnixStream::connect(path).await.map_err(unconnected)?;
                return Ok((self.line(stream, ask, None).await?, None));
            }
            Endpoint::Tcp { host, port, .. } => (host, *port),
        };
        let stream = dial(host, port).await?.map_err(unconnected)?;
        let _ = stream.set_nodelay(true);
        let _ = notice_death(&stream);
        let Some(tls) = &self.tls else { return Ok((self.line(stream, ask, None).await?, None)) };
        let ready = tls.ready()?;
        let name =
            ServerName::try_from(host.clone()).map_err(|_| ConsulError::Address { text: host.clone() })?;
        let stream = ready.connector.connect(name, stream).await.map_err(|error| {
            ready
                .cause(&server, &error, false)
                .unwrap_or_else(|| ConsulError::Tls { server: server.clone(), why: error.to_string() })
        })?;
        Ok((self.line(stream, ask, Some(&ready)).await?, Some(ready)))
    }

    async fn line<S: AsyncRead + AsyncWrite + Unpin + 'static>(
        &self,
        stream: S,
        ask: &Ask,
        tls: Option<&Ready>,
    ) -> Result<Line, ConsulError> {
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.broken(&error, ask, tls))?;
        Ok(Line { sender, driver: Box::pin(connection.map(drop).fuse()) })
    }

    /// Makes one call, and keeps the line for the next if the other side does, too.
    async fn talk(&self, line: Line, ask: &Ask, tls: Option<&Ready>) -> Result<Reply, ConsulError> {
        let Line { mut sender, mut driver } = line;
        let broken = |error: &(dyn std::error::Error + 'static)| self.broken(error, ask, tls);
        let request = self.request(ask)?;
        let exchange = async {
            let response = sender.send_request(request).await.map_err(|error| broken(&error))?;
            let (parts, body) = response.into_parts();
            let too_large = || ConsulError::TooLarge { what: ask.what.clone(), limit: BODY_LIMIT };
            if body.size_hint().lower() > BODY_LIMIT as u64 {
                return Err(too_large());
            }
            let body = Limited::new(body, BODY_LIMIT).collect().await.map_err(|error| {
                if error.is::<LengthLimitError>() { too_large() } else { broken(error.as_ref()) }
            })?;
            let again = ask.may_repeat() && sender.ready().await.is_ok();
            let (status, headers) = (parts.status.as_u16(), parts.headers);
            Ok((Reply { status, headers, body: body.to_bytes().to_vec() }, again))
        };
        // The connection is driven by the same future, so that nothing outlives a timeout.
        let drive = async {
            driver.as_mut().await;
            std::future::pending::<Infallible>().await
        };
        let (reply, again) = tokio::select! {
            done = exchange => done?,
            never = drive => match never {},
        };
        if again {
            self.pool.give(Line { sender, driver });
        }
        Ok(reply)
    }

    fn broken(
        &self,
        error: &(dyn std::error::Error + 'static),
        ask: &Ask,
        tls: Option<&Ready>,
    ) -> ConsulError {
        tls.and_then(|tls| tls.cause(&self.endpoint.to_string(), error, true))
            .unwrap_or_else(|| ConsulError::Broken { what: ask.what.clone(), why: chain(error) })
    }

    fn request(&self, ask: &Ask) -> Result<Request<Full<Bytes>>, ConsulError> {
        let broken = |why: String| ConsulError::Broken { what: ask.what.clone(), why };
        let mut request = Request::builder()
            .method(ask.method.clone())
            .uri(format!("{}{}", self.endpoint.prefix(), ask.target))
            .header("host", self.endpoint.authority())
            .header("user-agent", concat!("enmesh/", env!("CARGO_PKG_VERSION")))
            .header("accept", "application/json")
            .header("connection", if ask.may_repeat() { "keep-alive" } else { "close" })
            .body(Full::new(Bytes::from(ask.body.clone())))
            .map_err(|error| broken(error.to_string()))?;
        if let Some(token) = &ask.token {
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

/// A call may wait for minutes, and a host that lost its power does not say so: after half a minute of
/// silence the kernel asks, and a minute after that the connection is broken.
fn notice_death(stream: &TcpStream) -> nix::Result<()> {
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &30)?;
    setsockopt(stream, sockopt::TcpKeepInterval, &15)?;
    setsockopt(stream, sockopt::TcpKeepCount, &4)
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
