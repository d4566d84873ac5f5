//! The gRPC health protocol: `grpc.health.v1.Health/Check` over HTTP/2. Its two messages have one
//! field each, so they are written and read by hand.

use std::convert::Infallible;

use h2::client::SendRequest;
use hyper::body::Bytes;
use hyper::{HeaderMap, Request};
use tokio::io::{AsyncRead, AsyncWrite};

use super::CheckStatus;
use super::connect::{Target, Tls};
use super::state::Finding;

/// How much of an answer is read, in bytes; a good one has seven.
const BODY_LIMIT: usize = 4096;
/// Each message is preceded by whether it is compressed (1 byte) and its length (4 bytes).
const PREFIX: usize = 5;

/// Asks HOST:PORT[/SERVICE], over TLS where `tls` is given: `SERVING` passes.
pub(super) async fn ask(target: &str, tls: Option<&Tls>) -> Finding {
    match serving(target, tls).await {
        Ok(1) => Finding::new(CheckStatus::Passing, &format!("gRPC {target}: SERVING")),
        Ok(status) => {
            let word = match status {
                2 => "NOT_SERVING",
                3 => "SERVICE_UNKNOWN",
                _ => "UNKNOWN",
            };
            Finding::critical(format!("gRPC {target}: {word}"))
        }
        Err(why) => Finding::critical(format!("gRPC {target}: {why}")),
    }
}

async fn serving(target: &str, tls: Option<&Tls>) -> Result<u64, String> {
    let (authority, service) = target.split_once('/').unwrap_or((target, ""));
    let to = Target::parse(authority)?;
    let stream = to.dial().await?;
    match tls {
        None => talk(stream, "http", authority, service).await,
        Some(tls) => {
            let stream = tls.wrap(stream, &to.host, &["h2"]).await?;
            talk(stream, "https", authority, service).await
        }
    }
}

async fn talk<S>(stream: S, scheme: &str, authority: &str, service: &str) -> Result<u64, String>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (sender, connection) = h2::client::handshake(stream).await.map_err(broken)?;
    // The connection is driven by the same future, so that nothing outlives a timeout.
    let drive = async {
        let _ = connection.await;
        std::future::pending::<Infallible>().await
    };
    tokio::select! {
        answer = call(sender, scheme, authority, service) => answer,
        never = drive => match never {},
    }
}

fn broken(error: h2::Error) -> String {
    format!("the connection broke: {error}")
}

async fn call(
    sender: SendRequest<Bytes>,
    scheme: &str,
    authority: &str,
    service: &str,
) -> Result<u64, String> {
    let request = Request::builder()
        .method("POST")
        .uri(format!("{scheme}://{authority}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", concat!("enmesh/", env!("CARGO_PKG_VERSION")))
        .body(())
        .map_err(|error| error.to_string())?;
    let mut sender = sender.ready().await.map_err(broken)?;
    let (response, mut stream) = sender.send_request(request, false).map_err(broken)?;
    stream.send_data(question(service), true).map_err(broken)?;
    let (head, mut body) = response.await.map_err(broken)?.into_parts();
    if !head.status.is_success() {
        return Err(format!("it answers with {}", head.status));
    }
    let mut bytes = Vec::new();
    while let Some(part) = body.data().await {
        let part = part.map_err(broken)?;
        let _ = body.flow_control().release_capacity(part.len());
        bytes.extend_from_slice(&part);
        if bytes.len() > BODY_LIMIT {
            return Err("the answer is too long".to_owned());
        }
    }
    // An answer without a body has its trailers in the head.
    let trailers = body.trailers().await.map_err(broken)?;
    refusal(trailers.as_ref().unwrap_or(&head.headers))?;
    answer(&bytes).ok_or_else(|| "the answer is not of the health protocol".to_owned())
}

fn refusal(trailers: &HeaderMap) -> Result<(), String> {
    let text = |name: &str| trailers.get(name).and_then(|value| value.to_str().ok());
    match text("grpc-status") {
        Some("0") => Ok(()),
        Some("5") => Err("the service is unknown there".to_owned()),
        Some("12") => Err("the server does not have the health protocol".to_owned()),
        Some(status) => {
            let message = text("grpc-message").unwrap_or_default();
            Err(format!("refused with status {status} {message}"))
        }
        None => Err("it is not gRPC that answers".to_owned()),
    }
}

/// `HealthCheckRequest{service = 1}`, framed.
fn question(service: &str) -> Bytes {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a);
        varint(service.len(), &mut message);
        message.extend_from_slice(service.as_bytes());
    }
    let length = u32::try_from(message.len()).unwrap_or_default();
    let mut frame = vec![0];
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(&message);
    Bytes::from(frame)
}

fn varint(mut number: usize, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push(u8::try_from(number & 0x7f).unwrap_or_default() | 0x80);
        number >>= 7;
    }
    out.push(u8::try_from(number).unwrap_or_default());
}

/// The status of a framed `HealthCheckResponse{status = 1}`; 0, the default, is not sent.
fn answer(frame: &[u8]) -> Option<u64> {
    let (prefix, rest) = frame.split_at_checked(PREFIX)?;
    let (compressed, length) = prefix.split_first()?;
    let length = u32::from_be_bytes(length.try_into().ok()?);
    let message = rest.get(..usize::try_from(length).ok()?)?;
    match message {
        _ if *compressed != 0 => None,
        [] => Some(0),
        [0x08, status @ 0..0x80, ..] => Some(u64::from(*status)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_as_the_protocol_has_them() {
        assert_eq!(&question("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(&question("ab")[..], [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        assert_eq!(&question(&"x".repeat(200))[..8], [0, 0, 0, 0, 203, 0x0a, 0xc8, 1]);
        assert_eq!(answer(&[0, 0, 0, 0, 0]), Some(0));
        assert_eq!(answer(&[0, 0, 0, 0, 2, 8, 1]), Some(1));
        for bad in [&[][..], &[0, 0, 0, 0, 9, 8, 1], &[1, 0, 0, 0, 2, 8, 1], &[0, 0, 0, 0, 1, 7]] {
            assert_eq!(answer(bad), None, "{bad:?}");
        }
    }
}
