//! HTTP/1.1 over a unix socket, both ways: Envoy's admin interface and our own control socket. Questions come over TCP
//! as well.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The largest body that is read, in bytes: Envoy's dump of a thousand listeners has about 3 MiB.
pub const BODY_LIMIT: usize = 32 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// Nobody listens: the socket is not there, or refuses.
    #[error("nobody listens")]
    Refused,
    /// No answer in time.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The connection or the protocol broke.
    #[error("the connection broke: {0}")]
    Broken(String),
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Body.
    pub body: Vec<u8>,
}

/// Sends one request and waits for the whole answer, at most `limit`.
///
/// # Errors
/// See [`HttpError`]; an answer with an error status is an answer.
pub async fn request(
    socket: &Path,
    method: Method,
    target: &str,
    body: Vec<u8>,
    limit: Duration,
) -> Result<Answer, HttpError> {
    tokio::time::timeout(limit, exchange(socket, method, target, body))
        .await
        .unwrap_or(Err(HttpError::Timeout(limit)))
}

async fn exchange(socket: &Path, method: Method, target: &str, body: Vec<u8>) -> Result<Answer, HttpError> {
    let broken = |error: &dyn std::error::Error| HttpError::Broken(error.to_string());
    let stream = UnixStream::connect(socket).await.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => HttpError::Refused,
        _ => broken(&error),
    })?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| broken(&e))?;
    let request = Request::builder()
        .method(method)
        .uri(target)
        .header("host", "localhost")
        .header("connection", "close")
        .body(Full::new(Bytes::from(body)))
        .map_err(|e| broken(&e))?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(|e| broken(&e))?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), BODY_LIMIT).collect().await;
        let body = body.map_err(|e| HttpError::Broken(e.to_string()))?.to_bytes().to_vec();
        Ok(Answer { status, body })
    };
    // The connection is driven by the same future, so that nothing outlives a timeout.
    let drive = async {
        let _ = connection.await;
        std::future::pending::<Infallible>().await
    };
    tokio::select! {
        answer = exchange => answer,
        never = drive => match never {},
    }
}

/// A request that came in.
#[derive(Debug)]
pub struct Question {
    /// Method.
    pub method: Method,
    /// Path, without the query.
    pub path: String,
    /// Query, empty where there is none.
    pub query: String,
    /// Body.
    pub body: Vec<u8>,
}

/// Where connections come in.
pub trait Listener {
    /// A connection.
    type Stream: AsyncRead + AsyncWrite + Unpin + 'static;

    /// How long one may last; `None` where only those who are trusted have any.
    fn limit(&self) -> Option<Duration>;

    /// The next one, and what it holds for as long as it lasts.
    fn next(&self) -> impl Future<Output = io::Result<(Self::Stream, Option<OwnedSemaphorePermit>)>>;
}

impl Listener for UnixListener {
    type Stream = UnixStream;

    fn limit(&self) -> Option<Duration> {
        None
    }

    async fn next(&self) -> io::Result<(UnixStream, Option<OwnedSemaphorePermit>)> {
        self.accept().await.map(|(stream, _)| (stream, None))
    }
}

/// A port that anybody may reach. Nobody keeps a connection for long, and those of all together never use up what the
/// process has of file numbers.
pub struct Public {
    listener: TcpListener,
    slots: Arc<Semaphore>,
    limit: Duration,
}

impl Public {
    /// At `address`.
    ///
    /// # Errors
    /// The address is not to be had.
    pub async fn bind(address: SocketAddr) -> io::Result<Public> {
        Public::with(address, 64, Duration::from_secs(5)).await
    }

    /// For so many `connections` at a time; more wait in the kernel's queue.
    async fn with(address: SocketAddr, connections: usize, limit: Duration) -> io::Result<Public> {
        let listener = TcpListener::bind(address).await?;
        Ok(Public { listener, slots: Arc::new(Semaphore::new(connections)), limit })
    }
}

impl Listener for Public {
    type Stream = TcpStream;

    fn limit(&self) -> Option<Duration> {
        Some(self.limit)
    }

    /// A connection that broke before it was taken is none.
    async fn next(&self) -> io::Result<(TcpStream, Option<OwnedSemaphorePermit>)> {
        let slot = Arc::clone(&self.slots).acquire_owned().await.map_err(io::Error::other)?;
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => return Ok((stream, Some(slot))),
                Err(error) => tracing::debug!(%error, "a connection was not taken"),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Serves one connection after the other on `listener` with `handle`, until dropped. Connections
/// run side by side as local tasks.
///
/// # Errors
/// The listener broke.
pub async fn serve<L, H, F>(listener: L, handle: H) -> io::Result<Infallible>
where
    L: Listener,
    H: Fn(Question) -> F + Clone + 'static,
    F: Future<Output = (StatusCode, &'static str, Vec<u8>)> + 'static,
{
    /// A question of ours is a few names.
    const QUESTION_LIMIT: usize = 1 << 20;
    loop {
        let (stream, slot) = listener.next().await?;
        let limit = listener.limit();
        let handle = handle.clone();
        let service = hyper::service::service_fn(move |request: Request<Incoming>| {
            let handle = handle.clone();
            async move {
                let (parts, body) = request.into_parts();
                let body = Limited::new(body, QUESTION_LIMIT).collect().await;
                let (status, kind, body) = match body {
                    Ok(body) => {
                        let question = Question {
                            method: parts.method,
                            path: parts.uri.path().to_owned(),
                            query: parts.uri.query().unwrap_or_default().to_owned(),
                            body: body.to_bytes().to_vec(),
                        };
                        handle(question).await
                    }
                    Err(error) => (StatusCode::BAD_REQUEST, "text/plain", error.to_string().into_bytes()),
                };
                let mut response = Response::new(Full::new(Bytes::from(body)));
                *response.status_mut() = status;
                response.headers_mut().insert("content-type", hyper::header::HeaderValue::from_static(kind));
                Ok::<_, Infallible>(response)
            }
        });
        tokio::task::spawn_local(async move {
            let connection =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            // A peer that hangs up is no matter of ours, and neither is one that takes too long.
            match limit {
                Some(limit) => drop(tokio::time::timeout(limit, connection).await),
                None => drop(connection.await),
            }
            drop(slot);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn nobody_holds_a_public_port_for_long() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let local = tokio::task::LocalSet::new();
        local
            .run_until(async {
                let any = SocketAddr::from(([127, 0, 0, 1], 0));
                let public = Public::with(any, 2, Duration::from_millis(200)).await.unwrap();
                let address = public.listener.local_addr().unwrap();
                let answer = |_| async { (StatusCode::OK, "text/plain", b"here".to_vec()) };
                tokio::task::spawn_local(serve(public, answer));
                let mut idle = Vec::new();
                for _ in 0..6 {
                    idle.push(TcpStream::connect(address).await.unwrap());
                }
                let mut stream = TcpStream::connect(address).await.unwrap();
                stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
                let mut text = String::new();
                let read = stream.read_to_string(&mut text);
                tokio::time::timeout(Duration::from_secs(5), read).await.unwrap().unwrap();
                assert!(text.ends_with("here"), "{text}");
            })
            .await;
    }

    #[tokio::test(flavor = "current_thread")]
    async fn question_and_answer_over_a_socket() {
        let local = tokio::task::LocalSet::new();
        local
            .run_until(async {
                let dir = tempfile::tempdir().unwrap();
                let socket = dir.path().join("s");
                let long = Duration::from_secs(5);
                let refused = request(&socket, Method::GET, "/", vec![], long).await;
                assert!(matches!(refused, Err(HttpError::Refused)));
                let listener = UnixListener::bind(&socket).unwrap();
                tokio::task::spawn_local(serve(listener, |question| async move {
                    if question.path == "/slow" {
                        tokio::time::sleep(Duration::from_secs(60)).await;
                    }
                    let text = format!("{} {} {}", question.method, question.path, question.query);
                    (StatusCode::OK, "text/plain", text.into_bytes())
                }));
                let answer = request(&socket, Method::POST, "/a?b=c", vec![1], long).await.unwrap();
                assert_eq!((answer.status, answer.body), (200, b"POST /a b=c".to_vec()));
                let slow = request(&socket, Method::GET, "/slow", vec![], Duration::from_millis(20)).await;
                assert!(matches!(slow, Err(HttpError::Timeout(_))));
            })
            .await;
    }
}
