//! A small server that says what a test wants it to: for what Consul itself cannot be made to do.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::consul::{Endpoint, Settings, TokenSource};

/// A good answer.
pub const GOOD: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Consul-Index: 7\r\n\r\n42";

/// Answers each connection with the next of `answers`, the last one over and over, and remembers
/// what it was asked.
pub struct FakeConsul {
    pub answers: Vec<Vec<u8>>,
    /// Keeps the connection open after the answer instead of closing it.
    pub hangs: bool,
}

impl FakeConsul {
    pub fn says(answer: impl AsRef<[u8]>) -> Self {
        FakeConsul { answers: vec![answer.as_ref().to_vec()], hangs: false }
    }

    fn turn(&mut self) -> Vec<u8> {
        if self.answers.len() > 1 { self.answers.remove(0) } else { self.answers[0].clone() }
    }

    pub async fn listen(mut self, tls: Option<TlsAcceptor>) -> (SocketAddr, Asked) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Asked::default();
        let told = asked.clone();
        tokio::task::spawn_local(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (answer, hangs, told) = (self.turn(), self.hangs, told.clone());
                match &tls {
                    None => drop(tokio::task::spawn_local(answer_one(stream, answer, hangs, told))),
                    Some(tls) => {
                        let accepted = tls.accept(stream);
                        tokio::task::spawn_local(async move {
                            if let Ok(stream) = accepted.await {
                                answer_one(stream, answer, hangs, told).await;
                            }
                        });
                    }
                }
            }
        });
        (address, asked)
    }
}

/// What was asked, heads only.
pub type Asked = std::rc::Rc<std::cell::RefCell<Vec<String>>>;

pub async fn answer_one<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    answer: Vec<u8>,
    hangs: bool,
    asked: Asked,
) {
    let mut request = Vec::new();
    let mut buffer = [0; 4096];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(count) => request.extend_from_slice(&buffer[..count]),
        }
    }
    asked.borrow_mut().push(String::from_utf8_lossy(&request).into_owned());
    let _ = stream.write_all(&answer).await;
    let _ = stream.flush().await;
    if hangs {
        std::future::pending::<()>().await;
    }
    let _ = stream.shutdown().await;
}

/// Settings for a server of a test.
pub fn settings(address: &str) -> Settings {
    Settings {
        endpoint: Endpoint::parse(address).unwrap(),
        ca_file: None,
        ca_path: None,
        tls_server_name: None,
        client: None,
        auth: None,
        token: TokenSource::Anonymous,
        datacenter: None,
        partition: None,
        namespace: None,
        limit: Duration::from_secs(5),
    }
}
