//! Asking others: Consul's DNS for the rest of `consul`, the host's nameservers for everything else.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, UdpSocket};
use tokio::time::timeout;

use super::question::{Fit, Question, is_cut, is_no_answer};
use super::servers::{HostServers, Servers};
use super::zone::{Elsewhere, Transport, Whom};
use crate::plan::{ConsulDns, RESOLVER_MARK};

/// How long a server has for its answer before the next is asked.
const PATIENCE: Duration = Duration::from_secs(2);

/// How many questions are out at once; more are answered with SERVFAIL.
const OUT_MAX: usize = 256;

/// How many times one question may be out: a server that asks us what we ask it would go on for ever.
const SAME_MAX: usize = 64;

/// The largest answer that is taken over UDP, in bytes; longer ones are asked for over TCP.
const UDP_MAX: usize = 4096;

/// Who is asked for names that are not the mesh's own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Others {
    /// For the rest of `consul`; without, it does not exist.
    pub consul: Option<ConsulDns>,
    /// For everything else; without, it is refused.
    pub host: Option<HostServers>,
    /// Whether queries carry [`RESOLVER_MARK`], without which they would be redirected to us again.
    pub marked: bool,
}

/// What came of asking.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Answer(Vec<u8>),
    /// There is nobody to ask, so the zone has the last word.
    Nobody,
    /// Those who would know do not answer.
    Failed,
}

/// Asks others on behalf of clients.
#[derive(Debug, Default)]
pub(super) struct Forwarder {
    others: RefCell<Others>,
    servers: Servers,
    /// Our own addresses, which are never asked.
    own: RefCell<Vec<SocketAddr>>,
    /// The server that answered last; whoever is silent is not waited for each time.
    answered_last: Cell<Option<SocketAddr>>,
    out: RefCell<BTreeMap<Vec<u8>, usize>>,
}

impl Forwarder {
    pub fn set(&self, others: Others) {
        self.others.replace(others);
    }

    pub fn never_ask(&self, own: SocketAddr) {
        self.own.borrow_mut().push(own);
    }

    /// Asks for the answer to `query`, which came over `transport`.
    pub async fn ask(&self, elsewhere: Elsewhere, query: &[u8], transport: Transport) -> Outcome {
        let (mut servers, marked, may_be_none) = self.whom(elsewhere.whom);
        servers.retain(|server| !self.own.borrow().contains(server));
        if servers.is_empty() {
            return Outcome::Nobody;
        }
        let Some(question) = Question::of(query) else { return Outcome::Failed };
        let Some(_out) = Out::enter(&self.out, question.key()) else { return Outcome::Failed };
        let last = self.answered_last.get();
        servers.sort_by_key(|server| Some(*server) != last);
        let mut second_best = None;
        let mut nobody_there = may_be_none;
        for server in servers {
            match timeout(PATIENCE, exchange(server, &question, transport, marked)).await {
                Ok(Ok(answer)) if is_no_answer(&answer) => second_best = second_best.or(Some(answer)),
                Ok(Ok(answer)) => {
                    if elsewhere.whom == Whom::Host {
                        self.answered_last.set(Some(server));
                    }
                    return Outcome::Answer(question.cut(question.back(answer), elsewhere.limit));
                }
                Ok(Err(error)) => {
                    nobody_there &= error.kind() == io::ErrorKind::ConnectionRefused;
                    tracing::debug!(%server, %error, "a nameserver cannot be asked");
                }
                Err(_) => {
                    nobody_there = false;
                    tracing::debug!(%server, "a nameserver does not answer");
                }
            }
        }
        match second_best {
            Some(answer) => Outcome::Answer(question.cut(question.back(answer), elsewhere.limit)),
            None if nobody_there => Outcome::Nobody,
            None => Outcome::Failed,
        }
    }

    /// The servers to ask, whether with the mark, and whether it is no failure when nobody is there.
    fn whom(&self, whom: Whom) -> (Vec<SocketAddr>, bool, bool) {
        let others = self.others.borrow();
        let servers = match whom {
            Whom::Consul => others.consul.iter().map(|consul| consul.address).collect(),
            Whom::Host => others.host.as_ref().map(|from| self.servers.get(from)).unwrap_or_default(),
        };
        let may_be_none = whom == Whom::Consul && others.consul.is_some_and(|consul| !consul.expected);
        (servers, others.marked, may_be_none)
    }
}

/// One question that is out.
struct Out<'a> {
    all: &'a RefCell<BTreeMap<Vec<u8>, usize>>,
    key: Vec<u8>,
}

impl<'a> Out<'a> {
    fn enter(all: &'a RefCell<BTreeMap<Vec<u8>, usize>>, key: Vec<u8>) -> Option<Out<'a>> {
        let mut entries = all.borrow_mut();
        if entries.values().sum::<usize>() >= OUT_MAX
            || entries.get(&key).is_some_and(|same| *same >= SAME_MAX)
        {
            tracing::debug!("too many questions are out");
            return None;
        }
        *entries.entry(key.clone()).or_default() += 1;
        Some(Out { all, key })
    }
}

impl Drop for Out<'_> {
    fn drop(&mut self) {
        let mut entries = self.all.borrow_mut();
        if let Some(same) = entries.get_mut(&self.key) {
            *same -= 1;
            if *same == 0 {
                entries.remove(&self.key);
            }
        }
    }
}

/// The answer of `server`: over UDP first. A client that asked over UDP is told that its answer was cut
/// off, and comes back over TCP.
async fn exchange(
    server: SocketAddr,
    question: &Question,
    transport: Transport,
    marked: bool,
) -> io::Result<Vec<u8>> {
    match over_udp(server, question, marked).await? {
        Some(answer) if !is_cut(&answer) || transport == Transport::Udp => Ok(answer),
        _ => over_tcp(server, question, marked).await,
    }
}

/// `None`: there is an answer, which has to be asked for over TCP.
async fn over_udp(server: SocketAddr, question: &Question, marked: bool) -> io::Result<Option<Vec<u8>>> {
    let any = match server {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    if marked {
        mark(&socket)?;
    }
    // Connected, so that the kernel takes packets of this server only and tells when nobody is there.
    socket.connect(server).await?;
    socket.send(&question.bytes).await?;
    // One more, by which an answer that is too long is known.
    let mut answer = vec![0; UDP_MAX + 1];
    loop {
        let length = socket.recv(&mut answer).await?;
        let got = answer.get(..length).unwrap_or_default();
        match question.fit(got) {
            Fit::Yes if length > UDP_MAX => return Ok(None),
            Fit::Yes => return Ok(Some(got.to_vec())),
            Fit::NotCase => return Ok(None),
            Fit::No => {}
        }
    }
}

async fn over_tcp(server: SocketAddr, question: &Question, marked: bool) -> io::Result<Vec<u8>> {
    let socket = if server.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if marked {
        mark(&socket)?;
    }
    let mut stream = socket.connect(server).await?;
    let length = u16::try_from(question.bytes.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), question.bytes.as_slice()].concat()).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await?;
    match question.fit(&answer) {
        // Nobody but the server can write into the connection.
        Fit::Yes | Fit::NotCase => Ok(answer),
        Fit::No => Err(io::Error::other("the answer is to another question")),
    }
}

/// Gives what a socket sends the mark by which the rules know it.
pub(super) fn mark(socket: &impl AsFd) -> io::Result<()> {
    Ok(setsockopt(socket, sockopt::Mark, &RESOLVER_MARK)?)
}
