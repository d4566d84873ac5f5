//! The resolver for the mesh's names (`api.virtual.consul`), on loopback, UDP and TCP.
//!
//! It knows its names and asks nobody else: no recursion, no cache, no state but the zone.

mod error;
#[cfg(test)]
mod tests;
mod zone;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::{JoinHandle, JoinSet, spawn_local};
use tokio::time::{sleep, timeout};

pub use error::DnsError;
use zone::{Transport, Zone};

use crate::base::Fault;

/// More connections than this wait in the kernel's queue until one ends.
const CONNECTIONS_MAX: usize = 64;

/// A connection on which nothing is asked ends after this (RFC 7766, 6.2.3: some seconds).
const IDLE: Duration = Duration::from_secs(10);

/// A connection ends after this in any case, so that nobody keeps the others out for good.
const LIFE: Duration = Duration::from_secs(60);

/// The largest query over UDP, in bytes. A query is a name of at most 255 and a few options.
const QUERY_MAX: usize = 4096;

/// How long to pause when the system has no more file descriptors or memory.
const BREATH: Duration = Duration::from_millis(100);

/// How often a port that was free for TCP may be taken for UDP before we give up; only for port 0.
const PORT_TRIES: usize = 16;

/// The zone that is in force; replaced as a whole.
type Current = Rc<RefCell<Rc<Zone>>>;

/// A running resolver. It ends when it is stopped or dropped.
#[derive(Debug)]
pub struct Resolver {
    current: Current,
    address: SocketAddr,
    tasks: Vec<JoinHandle<()>>,
}

impl Resolver {
    /// Listens on `listen`, which must be loopback; port 0 takes any free one. No names are known
    /// until [`Resolver::update`].
    ///
    /// Must be called on a `LocalSet`, as everything in the daemon is.
    ///
    /// # Errors
    /// `ENM-M040` not loopback, `ENM-M041` the port is in use, `ENM-M042` not permitted, `ENM-M043`
    /// anything else.
    pub fn start(listen: SocketAddr) -> Result<Resolver, Fault> {
        if !listen.ip().is_loopback() {
            return Err(DnsError::NotLoopback(listen).into());
        }
        let (udp, tcp) = bind(listen)?;
        let address = udp.local_addr().map_err(|e| DnsError::new(listen, "UDP", e))?;
        let current: Current = Rc::new(RefCell::new(Rc::new(Zone::new(BTreeMap::new(), 1))));
        let tasks = vec![
            spawn_local(serve_datagrams(udp, Rc::clone(&current))),
            spawn_local(serve_connections(tcp, Rc::clone(&current))),
        ];
        Ok(Resolver { current, address, tasks })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on these names are answered and no others. Names are in lower case and without the
    /// final dot; every query sees the old names or the new ones.
    pub fn update(&self, names: BTreeMap<String, Vec<IpAddr>>) {
        let serial = self.current.borrow().next_serial();
        *self.current.borrow_mut() = Rc::new(Zone::new(names, serial));
    }

    /// Ends; when it returns, the port is free.
    pub async fn stop(mut self) {
        for task in std::mem::take(&mut self.tasks) {
            task.abort();
            // An error is the abort that we asked for.
            let _ = task.await;
        }
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

fn bind(listen: SocketAddr) -> Result<(UdpSocket, TcpListener), DnsError> {
    let tries = if listen.port() == 0 { PORT_TRIES } else { 1 };
    let mut tried = 0;
    loop {
        tried += 1;
        let tcp = bind_tcp(listen).map_err(|e| DnsError::new(listen, "TCP", e))?;
        let same = tcp.local_addr().map_err(|e| DnsError::new(listen, "TCP", e))?;
        match bind_udp(same) {
            Ok(udp) => return Ok((udp, tcp)),
            Err(e) if e.kind() == io::ErrorKind::AddrInUse && tried < tries => {}
            Err(e) => return Err(DnsError::new(listen, "UDP", e)),
        }
    }
}

fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = std::net::TcpListener::bind(address)?;
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket)
}

fn bind_udp(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = std::net::UdpSocket::bind(address)?;
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket)
}

fn answer(current: &Current, query: &[u8], transport: Transport) -> Option<Vec<u8>> {
    let zone = Rc::clone(&current.borrow());
    zone.answer(query, transport)
}

async fn serve_datagrams(socket: UdpSocket, current: Current) {
    let mut buffer = vec![0; QUERY_MAX];
    loop {
        match socket.recv_from(&mut buffer).await {
            Ok((length, client)) => {
                let query = buffer.get(..length).unwrap_or_default();
                if let Some(answer) = answer(&current, query, Transport::Udp) {
                    // A client that is gone, or too slow to take its answer, asks again if it cares.
                    let _ = socket.try_send_to(&answer, client);
                }
            }
            Err(error) => {
                tracing::debug!(%error, "cannot receive a DNS query");
                sleep(BREATH).await;
            }
        }
    }
}

async fn serve_connections(listener: TcpListener, current: Current) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => match accepted {
                Ok((stream, _)) => {
                    let current = Rc::clone(&current);
                    connections.spawn_local(async move {
                        // Either way the connection is over, and the client knows how to open another.
                        let _ = timeout(LIFE, serve_connection(stream, current)).await;
                    });
                }
                Err(error) => {
                    tracing::debug!(%error, "cannot accept a DNS connection");
                    sleep(BREATH).await;
                }
            },
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

/// Answers one query after the other (RFC 7766): each message has its length in front.
async fn serve_connection(mut stream: TcpStream, current: Current) -> io::Result<()> {
    loop {
        let length = timeout(IDLE, stream.read_u16()).await??;
        let mut query = vec![0; usize::from(length)];
        timeout(IDLE, stream.read_exact(&mut query)).await??;
        let Some(answer) = answer(&current, &query, Transport::Tcp) else { return Ok(()) };
        let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
        let framed = [&length.to_be_bytes(), answer.as_slice()].concat();
        timeout(IDLE, stream.write_all(&framed)).await??;
    }
}
