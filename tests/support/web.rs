//! Apps and clients that speak just enough HTTP, byte by byte, to see what sidecars make of it.

#![allow(dead_code, reason = "each test target uses a part")]

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::bed::LIMIT;

/// Method, path, and headers as lines.
pub type Request<'a> = (&'a str, &'a str, &'a [&'a str]);

/// What came back.
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

async fn head(stream: &mut TcpStream) -> io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

/// An app that speaks HTTP/1.1 and answers with the head of the request.
pub async fn http_app(address: &str) {
    let listener = TcpListener::bind(address).await.unwrap();
    tokio::task::spawn_local(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::task::spawn_local(async move {
                while let Ok(request) = head(&mut stream).await {
                    let answer = if request.starts_with("GET /ws ") && request.contains("websocket") {
                        "HTTP/1.1 101 Go\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n".to_owned()
                    } else {
                        let length = request.len();
                        let body = if request.starts_with("HEAD") { "" } else { request.as_str() };
                        format!("HTTP/1.1 200 OK\r\nserver: an app\r\ncontent-length: {length}\r\n\r\n{body}")
                    };
                    if stream.write_all(answer.as_bytes()).await.is_err() {
                        break;
                    }
                }
            });
        }
    });
}

/// Sends one request in HTTP/1.1 over a connection of its own; method `GET-1.0` is a GET in HTTP/1.0
/// without a host.
pub async fn request(address: &str, (method, path, headers): Request<'_>) -> Answer {
    let mut text = match method {
        "GET-1.0" => format!("GET {path} HTTP/1.0\r\n"),
        _ => format!("{method} {path} HTTP/1.1\r\nhost: api.virtual.consul\r\n"),
    };
    let upgrade = headers.iter().any(|line| line.starts_with("upgrade"));
    for line in headers {
        text += &format!("{line}\r\n");
    }
    text += match method {
        _ if upgrade => "\r\n",
        "POST" | "PUT" => "connection: close\r\ncontent-length: 0\r\n\r\n",
        _ => "connection: close\r\n\r\n",
    };
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(text.as_bytes()).await?;
        let head = head(&mut stream).await?;
        let mut body = Vec::new();
        if !upgrade {
            stream.read_to_end(&mut body).await?;
        }
        io::Result::Ok((head, body))
    };
    let (head, body) = timeout(LIMIT, exchange).await.expect("an answer in time").expect("an answer");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    Answer { status, head, body: String::from_utf8_lossy(&body).into_owned() }
}

/// What every HTTP/2 connection begins with (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
/// Of HEADERS: the stream ends, and so do the headers. Of SETTINGS, 1 is the acknowledgement.
const END: u8 = 0x5;

/// A frame (RFC 9113, 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

async fn read_frame(stream: &mut TcpStream) -> io::Result<(u8, u8, u32, Vec<u8>)> {
    let mut head = [0; 9];
    stream.read_exact(&mut head).await?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    let mut payload = vec![0; length as usize];
    stream.read_exact(&mut payload).await?;
    Ok((head[3], head[4], u32::from_be_bytes([head[5], head[6], head[7], head[8]]), payload))
}

/// An app that speaks HTTP/2 with prior knowledge, nothing else, and answers 200 to everything.
pub async fn h2_app(address: &str) {
    let listener = TcpListener::bind(address).await.unwrap();
    tokio::task::spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::task::spawn_local(serve_h2(stream));
        }
    });
}

async fn serve_h2(mut stream: TcpStream) -> io::Result<()> {
    let mut preface = [0; PREFACE.len()];
    stream.read_exact(&mut preface).await?;
    if preface != PREFACE {
        return Ok(());
    }
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).await?;
    loop {
        let (kind, flags, id, _) = read_frame(&mut stream).await?;
        match kind {
            SETTINGS if flags & 1 == 0 => stream.write_all(&frame(SETTINGS, 1, 0, &[])).await?,
            // 0x88 is `:status: 200` (RFC 7541, appendix A, entry 8).
            HEADERS => stream.write_all(&frame(HEADERS, END, id, &[0x88])).await?,
            _ => {}
        }
    }
}

/// The status that a GET of `/` in HTTP/2 has; `None` for another than 200.
pub async fn h2_status(address: &str) -> Option<u16> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(PREFACE).await?;
        stream.write_all(&frame(SETTINGS, 0, 0, &[])).await?;
        // `:method: GET`, `:scheme: http`, `:path: /` of the static table, and `:authority: api`.
        let headers = [0x82, 0x86, 0x84, 0x41, 3, b'a', b'p', b'i'];
        stream.write_all(&frame(HEADERS, END, 1, &headers)).await?;
        loop {
            let (kind, _, id, payload) = read_frame(&mut stream).await?;
            if kind == HEADERS && id == 1 {
                return io::Result::Ok(payload.first().copied());
            }
        }
    };
    let first = timeout(LIMIT, exchange).await.ok()?.ok()??;
    // Its first byte, as above, or after a change of the table's size (RFC 7541, 6.3).
    (first == 0x88).then_some(200)
}
