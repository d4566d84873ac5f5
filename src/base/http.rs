//! HTTP/1.1 over a unix socket, both ways: Envoy's admin interface and our own control socket. Questions come over TCP
//! as well.

use std::convert::Infallible;
use std::io;
use std::path::Path;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

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

    /// The next one.
    fn next(&self) -> impl Future<Output = io::Result<Self::Stream>>;
}

impl Listener for UnixListener {
    type Stream = UnixStream;

    async fn next(&self) -> io::Result<UnixStream> {
        self.accept().await.map(|(stream, _)| stream)
    }
}

impl Listener for TcpListener {
    type Stream = TcpStream;

    /// A connection that broke before it was taken is none, and running out of file numbers passes.
    async fn next(&self) -> io::Result<TcpStream> {
        loop {
            match self.accept().await {
                Ok((stream, _)) => return Ok(stream),
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
        let stream = listener.next().await?;
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
            // A peer that hangs up is no matter of ours.
            let _ = connection.await;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
