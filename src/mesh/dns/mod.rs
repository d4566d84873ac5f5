//! The resolver for the mesh's names (`api.virtual.consul`), on loopback, UDP and TCP.
//!
//! It knows its names; for others it asks whom it is told to ([`Others`]). It keeps no cache, because those
//! whom it asks have one.

mod error;
mod forward;
#[cfg(test)]
mod forward_tests;
mod life;
mod question;
mod servers;
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
pub use forward::Others;
pub use servers::HostServers;

use forward::{Forwarder, Outcome};
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

/// How many queries over UDP are worked on at once; more wait in the kernel's queue.
const DATAGRAMS_MAX: usize = 512;

/// What answers: the zone that is in force, replaced as a whole, and those who know other names.
#[derive(Debug)]
struct Answers {
    zone: RefCell<Rc<Zone>>,
    forwarder: Forwarder,
}

impl Answers {
    async fn to(&self, query: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let zone = Rc::clone(&self.zone.borrow());
        if let Some(elsewhere) = zone.elsewhere(query, transport) {
            match self.forwarder.ask(elsewhere, query, transport).await {
                Outcome::Answer(answer) => return Some(answer),
                Outcome::Failed => return Zone::failure(query),
                Outcome::Nobody => {}
            }
        }
        zone.answer(query, transport)
    }
}

/// A running resolver. It ends when it is stopped or dropped.
#[derive(Debug)]
pub struct Resolver {
    answers: Rc<Answers>,
    /// Where it listens; at least once.
    addresses: Vec<SocketAddr>,
    address: SocketAddr,
    tasks: Vec<JoinHandle<()>>,
    lives: Vec<JoinHandle<()>>,
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
        let zone = RefCell::new(Rc::new(Zone::new(BTreeMap::new(), 1)));
        let answers = Rc::new(Answers { zone, forwarder: Forwarder::default() });
        let mut resolver = Resolver {
            answers,
            addresses: Vec::new(),
            address: listen,
            tasks: Vec::new(),
            lives: Vec::new(),
        };
        resolver.address = resolver.also(listen)?;
        Ok(resolver)
    }

    /// Listens at another address, too, and returns which it is.
    ///
    /// # Errors
    /// As [`Resolver::start`].
    pub fn also(&mut self, listen: SocketAddr) -> Result<SocketAddr, Fault> {
        if !listen.ip().is_loopback() {
            return Err(DnsError::NotLoopback(listen).into());
        }
        let address = self.listen(listen)?;
        self.addresses.push(address);
        Ok(address)
    }

    /// Listens for a network namespace at the host's end of the cable to it. Nobody redirects queries to
    /// there for whom a sign of life would count.
    ///
    /// # Errors
    /// As [`Resolver::start`].
    pub fn for_namespace(&mut self, outside: SocketAddr) -> Result<(), Fault> {
        Ok(self.listen(outside).map(drop)?)
    }

    fn listen(&mut self, listen: SocketAddr) -> Result<SocketAddr, DnsError> {
        let (udp, tcp) = bind(listen)?;
        let address = udp.local_addr().map_err(|e| DnsError::new(listen, "UDP", e))?;
        self.tasks.push(spawn_local(serve_datagrams(udp, Rc::clone(&self.answers))));
        self.tasks.push(spawn_local(serve_connections(tcp, Rc::clone(&self.answers))));
        self.answers.forwarder.never_ask(address);
        Ok(address)
    }

    /// From now on these are asked for names that are not the mesh's own.
    pub fn ask(&self, others: Others) {
        self.answers.forwarder.set(others);
    }

    /// Gives the signs of life for which DNS is redirected, in the family of each address; or ends that.
    ///
    /// # Errors
    /// `ENM-M038` the system does not let us mark packets.
    pub fn live(&mut self, on: bool) -> Result<(), Fault> {
        if on && self.lives.len() == self.addresses.len() {
            return Ok(());
        }
        self.lives.drain(..).for_each(|task| task.abort());
        for &address in self.addresses.iter().filter(|_| on) {
            let socket = life::socket(address).map_err(|source| DnsError::Mute { address, source })?;
            self.lives.push(spawn_local(life::give(socket, address)));
        }
        Ok(())
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on these names are answered and no others. Names are in lower case and without the
    /// final dot; every query sees the old names or the new ones.
    pub fn update(&self, names: BTreeMap<String, Vec<IpAddr>>) {
        let serial = self.answers.zone.borrow().next_serial();
        self.answers.zone.replace(Rc::new(Zone::new(names, serial)));
    }

    /// Ends; when it returns, the port is free.
    pub async fn stop(mut self) {
        for task in self.tasks.drain(..).chain(self.lives.drain(..)) {
            task.abort();
            // An error is the abort that we asked for.
            let _ = task.await;
        }
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        for task in self.tasks.iter().chain(&self.lives) {
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

async fn serve_datagrams(socket: UdpSocket, answers: Rc<Answers>) {
    let socket = Rc::new(socket);
    let mut buffer = vec![0; QUERY_MAX];
    let mut queries = JoinSet::new();
    loop {
        tokio::select! {
            received = socket.recv_from(&mut buffer), if queries.len() < DATAGRAMS_MAX => match received {
                Ok((length, client)) => {
                    let query = buffer.get(..length).unwrap_or_default().to_vec();
                    let (socket, answers) = (Rc::clone(&socket), Rc::clone(&answers));
                    queries.spawn_local(async move {
                        if let Some(answer) = answers.to(&query, Transport::Udp).await {
                            // A client that is gone, or too slow to take its answer, asks again if it cares.
                            let _ = socket.try_send_to(&answer, client);
                        }
                    });
                }
                Err(error) => {
                    tracing::debug!(%error, "cannot receive a DNS query");
                    sleep(BREATH).await;
                }
            },
            Some(_) = queries.join_next(), if !queries.is_empty() => {}
        }
    }
}

async fn serve_connections(listener: TcpListener, answers: Rc<Answers>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => match accepted {
                Ok((stream, _)) => {
                    let answers = Rc::clone(&answers);
                    connections.spawn_local(async move {
                        // Either way the connection is over, and the client knows how to open another.
                        let _ = timeout(LIFE, serve_connection(stream, answers)).await;
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
async fn serve_connection(mut stream: TcpStream, answers: Rc<Answers>) -> io::Result<()> {
    loop {
        let length = timeout(IDLE, stream.read_u16()).await??;
        let mut query = vec![0; usize::from(length)];
        timeout(IDLE, stream.read_exact(&mut query)).await??;
        let Some(answer) = answers.to(&query, Transport::Tcp).await else { return Ok(()) };
        let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
        let framed = [&length.to_be_bytes(), answer.as_slice()].concat();
        timeout(IDLE, stream.write_all(&framed)).await??;
    }
}
