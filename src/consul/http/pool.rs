//! Connections, and those that wait to be used again.
//!
//! A new connection costs a fraction of a millisecond on loopback and a few on TLS; a daemon that
//! reports health and looks after its registrations makes a call every few seconds. Nothing runs
//! while a connection rests: whether the other side has closed it is looked at when it is taken.

use std::cell::RefCell;
use std::fmt;
use std::future::poll_fn;
use std::net::{IpAddr, UdpSocket};
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::tls::Ready;

/// How many connections rest at most; more calls at a time than this are rare.
const RESTING: usize = 8;
/// How long a connection rests: below what firewalls and proxies in between forget connections after.
const REST: Duration = Duration::from_secs(60);

/// A connection that speaks HTTP.
pub(super) struct Connection {
    pub sender: SendRequest<Full<Bytes>>,
    /// Reads and writes the stream; it never completes, so that it may always be polled.
    driver: Pin<Box<dyn Future<Output = ()>>>,
    /// What it was made with, if it has TLS.
    pub tls: Option<Ready>,
    /// From which address of this host, if it goes over IP.
    from: Option<IpAddr>,
    since: Instant,
}

impl Connection {
    pub async fn new<S>(stream: S, tls: Option<Ready>) -> hyper::Result<Self>
    where
        S: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        let driver = Box::pin(async {
            let _ = connection.await;
            std::future::pending().await
        });
        Ok(Connection { sender, driver, tls, from: None, since: Instant::now() })
    }

    /// The same, from that address of this host.
    pub fn from(self, address: Option<IpAddr>) -> Self {
        Connection { from: address, ..self }
    }

    /// Does `work` with the sender. The stream moves in the same future, so that nothing outlives a
    /// timeout.
    pub async fn drive<T>(&mut self, work: impl AsyncFnOnce(&mut SendRequest<Full<Bytes>>) -> T) -> T {
        let (sender, driver) = (&mut self.sender, &mut self.driver);
        tokio::select! {
            done = work(sender) => done,
            () = driver => std::future::pending().await,
        }
    }

    /// Whether it still leads somewhere, as far as the kernel knows by now. When the host has lost the address that it
    /// goes out from, answers find the way back no more, and nobody says so.
    async fn is_alive(&mut self) -> bool {
        if self.from.is_some_and(|address| UdpSocket::bind((address, 0)).is_err()) {
            return false;
        }
        // Lets the runtime hear from the kernel first.
        tokio::task::yield_now().await;
        let driver = &mut self.driver;
        poll_fn(|context| {
            let _ = driver.as_mut().poll(context);
            Poll::Ready(())
        })
        .await;
        self.sender.is_ready()
    }
}

/// Connections at rest.
#[derive(Default)]
pub(super) struct Pool(RefCell<Vec<Connection>>);

impl Pool {
    /// The one that rested last and still lives. Those that were made with other certificates than
    /// `tls` are dropped.
    pub async fn take(&self, tls: Option<&Ready>) -> Option<Connection> {
        loop {
            let mut connection = {
                let mut resting = self.0.borrow_mut();
                resting.retain(|it| it.since.elapsed() < REST && Ready::same(it.tls.as_ref(), tls));
                resting.pop()?
            };
            if connection.is_alive().await {
                return Some(connection);
            }
        }
    }

    /// Keeps `connection`, if it can be used again; the one that rests longest makes room.
    pub async fn keep(&self, mut connection: Connection) {
        if connection.drive(async |sender| sender.ready().await).await.is_err() {
            return;
        }
        connection.since = Instant::now();
        let mut resting = self.0.borrow_mut();
        if resting.len() >= RESTING {
            resting.remove(0);
        }
        resting.push(connection);
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pool({})", self.0.borrow().len())
    }
}
