//! Whether a port speaks gRPC, and whether inside TLS: found by asking.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::base::own;
use crate::plan::AdsServer;

/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(2);

/// How a client of HTTP/2 begins (RFC 9113, 3.4): the preface, and settings without any.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";
/// The type of a frame of settings (RFC 9113, 6.5): the first that a server sends.
const SETTINGS: u8 = 4;
/// The type of a record that carries an alert (RFC 8446, 5.1).
const ALERT: u8 = 21;

/// What somebody speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaks {
    /// HTTP/2, as gRPC without TLS does.
    Plaintext,
    /// TLS.
    Tls,
    /// Something else, or nothing.
    Other,
}

/// Asks `server`: begins HTTP/2 in the clear, and looks at the first bytes that come back.
///
/// # Errors
/// Nobody answers there.
pub async fn probe(server: &AdsServer) -> io::Result<Speaks> {
    let asked = timeout(LIMIT, async {
        match server {
            AdsServer::Tcp(at) => ask(own::connect(*at).await?).await,
            AdsServer::Unix(path) => ask(UnixStream::connect(path).await?).await,
        }
    });
    asked.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

async fn ask(mut stream: impl AsyncReadExt + AsyncWriteExt + Unpin) -> io::Result<Speaks> {
    stream.write_all(PREFACE).await?;
    let mut head = [0; 4];
    Ok(match stream.read_exact(&mut head).await {
        Ok(_) => match head {
            [ALERT, 3, ..] => Speaks::Tls,
            [_, _, _, SETTINGS] => Speaks::Plaintext,
            // A server of Go's answers HTTP with a sentence where it wants TLS.
            _ => Speaks::Other,
        },
        // Hung up on: not everybody sends an alert first.
        Err(_) => Speaks::Other,
    })
}
