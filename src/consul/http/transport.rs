//! One request, one answer: over TCP, TLS or a unix socket.

use std::io;
use std::time::Duration;

use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{HeaderMap, HeaderValue};
use hyper::{Method, Request, Response};
use nix::sys::socket::{setsockopt, sockopt};
use rustls_pki_types::ServerName;
use tokio::net::{TcpStream, UnixStream};

use super::pool::{Connection, Pool};
use super::settings::Endpoint;
use super::tls::{Ready, Tls};
use super::token::{BasicAuth, Token};
use crate::base::own;
use crate::consul::{ConsulError, Settings};

/// The largest body that is read, in bytes: a catalog of ten thousand instances has about 10 MB.
const BODY_LIMIT: usize = 32 << 20;

/// Something to ask.
pub(super) struct Ask {
    pub method: Method,
    /// Path and query.
    pub target: String,
    pub body: Bytes,
    pub token: Option<Token>,
    /// How long everything may take, connecting included.
    pub limit: Duration,
    /// What it is called in errors.
    pub what: String,
    /// Whether Consul is meant to hold it: then it has a connection of its own, which ends with it.
    pub held: bool,
}

/// What was answered.
#[derive(Debug)]
pub(super) struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

/// Why there is no reply.
struct Failure {
    error: ConsulError,
    /// Whether a new connection may do better, and nothing is done twice by that: the connection had
    /// been closed unseen, and the request was not sent or only reads.
    stale: bool,
}

impl From<ConsulError> for Failure {
    fn from(error: ConsulError) -> Self {
        Failure { error, stale: false }
    }
}

/// The way to the server.
#[derive(Debug)]
pub(super) struct Transport {
    endpoint: Endpoint,
    /// The name that the server's certificate is to be for.
    server_name: Option<String>,
    auth: Option<BasicAuth>,
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
        let (server_name, auth) = (settings.tls_server_name.clone(), settings.auth.clone());
        Ok(Transport { endpoint, server_name, auth, tls, pool: Pool::default() })
    }

    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    pub async fn send(&self, ask: Ask) -> Result<Reply, ConsulError> {
        let exchange = tokio::time::timeout(ask.limit, self.exchange(&ask));
        exchange
            .await
            .unwrap_or_else(|_| Err(ConsulError::Timeout { what: ask.what.clone(), limit: ask.limit }.into()))
            .map_err(|failure| failure.error)
    }

    async fn exchange(&self, ask: &Ask) -> Result<Reply, Failure> {
        let tls = self.tls.as_ref().map(Tls::ready).transpose()?;
        if !ask.held
            && let Some(rested) = self.pool.take(tls.as_ref()).await
        {
            match self.talk(rested, ask).await {
                Err(failure) if failure.stale => {}
                done => return done,
            }
        }
        self.talk(self.connect(tls, ask).await?, ask).await
    }

    async fn connect(&self, tls: Option<Ready>, ask: &Ask) -> Result<Connection, ConsulError> {
        let server = self.endpoint.to_string();
        let unconnected = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ConsulError::Refused { server: server.clone() }
            }
            io::ErrorKind::PermissionDenied if is_unmarked(&source) => {
                ConsulError::Unmarked { server: server.clone() }
            }
            _ => ConsulError::Unreachable { server: server.clone(), source },
        };
        let connection = match &self.endpoint {
            Endpoint::Unix(path) => {
                Connection::new(UnixStream::connect(path).await.map_err(unconnected)?, None).await
            }
            Endpoint::Tcp { host, port, .. } => {
                let name = |source| ConsulError::Name { host: host.clone(), source };
                let stream = own::dial(host, *port).await.map_err(name)?.map_err(unconnected)?;
                let _ = stream.set_nodelay(true);
                let _ = notice_death(&stream);
                let from = stream.local_addr().ok().map(|local| local.ip());
                let connection = match tls {
                    None => Connection::new(stream, None).await,
                    Some(tls) => {
                        let stream = self.shake_hands(&tls, stream, host).await?;
                        Connection::new(stream, Some(tls)).await
                    }
                };
                connection.map(|connection| connection.from(from))
            }
        };
        connection.map_err(|error| ConsulError::Broken { what: ask.what.clone(), why: chain(&error) })
    }

    async fn shake_hands(
        &self,
        tls: &Ready,
        stream: TcpStream,
        host: &str,
    ) -> Result<tokio_rustls::client::TlsStream<TcpStream>, ConsulError> {
        let server = self.endpoint.to_string();
        let name = self.server_name.as_deref().unwrap_or(host);
        let name = ServerName::try_from(name.to_owned())
            .map_err(|_| ConsulError::Address { text: name.to_owned() })?;
        tls.connector.connect(name, stream).await.map_err(|error| {
            tls.cause(&server, &error, false)
                .unwrap_or_else(|| ConsulError::Tls { server: server.clone(), why: error.to_string() })
        })
    }

    async fn talk(&self, mut connection: Connection, ask: &Ask) -> Result<Reply, Failure> {
        let tls = connection.tls.clone();
        let server = self.endpoint.to_string();
        let broken = |error: &(dyn std::error::Error + 'static)| {
            tls.as_ref()
                .and_then(|tls| tls.cause(&server, error, true))
                .unwrap_or_else(|| ConsulError::Broken { what: ask.what.clone(), why: chain(error) })
        };
        let request = self.request(ask)?;
        let exchange = async |sender: &mut hyper::client::conn::http1::SendRequest<_>| {
            let response = sender.try_send_request(request).await.map_err(|mut error| {
                let unsent = error.take_message().is_some();
                Failure { error: broken(error.error()), stale: unsent || ask.method == Method::GET }
            })?;
            read(response, ask, &broken).await
        };
        let reply = connection.drive(exchange).await?;
        if !ask.held {
            self.pool.keep(connection).await;
        }
        Ok(reply)
    }

    fn request(&self, ask: &Ask) -> Result<Request<Full<Bytes>>, ConsulError> {
        let broken = |why: String| ConsulError::Broken { what: ask.what.clone(), why };
        let mut request = Request::builder()
            .method(ask.method.clone())
            .uri(format!("{}{}", self.endpoint.prefix(), ask.target))
            .header("host", self.endpoint.authority())
            .header("user-agent", concat!("enmesh/", env!("CARGO_PKG_VERSION")))
            .header("accept", "application/json")
            .body(Full::new(ask.body.clone()))
            .map_err(|error| broken(error.to_string()))?;
        let headers = request.headers_mut();
        if ask.held {
            headers.insert("connection", HeaderValue::from_static("close"));
        }
        let mut secret = |name, text: &str| {
            let mut value =
                HeaderValue::from_str(text).map_err(|_| broken(format!("the {name} is no header")))?;
            value.set_sensitive(true);
            headers.insert(name, value);
            Ok::<_, ConsulError>(())
        };
        if let Some(token) = &ask.token {
            secret("x-consul-token", token.secret())?;
        }
        if let Some(auth) = &self.auth {
            secret("authorization", auth.header())?;
        }
        Ok(request)
    }
}

/// The whole of an answer.
async fn read(
    response: Response<Incoming>,
    ask: &Ask,
    broken: &impl Fn(&(dyn std::error::Error + 'static)) -> ConsulError,
) -> Result<Reply, Failure> {
    let (parts, body) = response.into_parts();
    let too_large = || ConsulError::TooLarge { what: ask.what.clone(), limit: BODY_LIMIT };
    if body.size_hint().lower() > BODY_LIMIT as u64 {
        return Err(too_large().into());
    }
    let body = Limited::new(body, BODY_LIMIT)
        .collect()
        .await
        .map_err(|error| if error.is::<LengthLimitError>() { too_large() } else { broken(error.as_ref()) })?;
    Ok(Reply { status: parts.status.as_u16(), headers: parts.headers, body: body.to_bytes().to_vec() })
}

fn is_unmarked(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<own::Unmarked>())
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
