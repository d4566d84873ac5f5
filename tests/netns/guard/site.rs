//! A host with a cable to a peer. The peer says hello in the clear on two ports: that of the only instance of
//! `db`, and one that is in no mesh.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use enmesh::base::exec;
use nix::unistd::{Uid, setfsuid};

use crate::host_bed::{API_USER, Bed, PEERS_FILE, until};
use crate::lab::Space;

/// Where `db` is dialled directly.
pub const DB: &str = "10.9.0.1:5432";
/// Who is in no mesh.
pub const OTHER: &str = "10.9.0.1:9000";
/// What the peer says first.
const HELLO: &[u8] = b"hello in the clear";
/// More than any wait here takes; a trial lasts a part of it.
pub const LONG: Duration = Duration::from_secs(60);

const PEERS: &str = "[[service]]\nname = \"db\"\n\n[[service.instance]]\naddress = \"10.9.0.1\"\nport = 21000\n\
    service_port = 5432\n";

/// What becomes of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// The peer was heard in the clear.
    Direct,
    /// Somebody else took it.
    Captured,
    /// Nobody.
    Refused,
}

pub struct Site {
    pub bed: Bed,
    pub peer: Space,
}

impl Site {
    /// Without services.
    pub fn new() -> Site {
        let site = Site { bed: Bed::bare(), peer: Space::new() };
        site.ip(&format!("link add eth0 type veth peer name eth0 netns {}", site.peer.tid()));
        site.ip("addr add 10.9.0.2/24 dev eth0");
        site.ip("link set eth0 up");
        site.peer.ip("addr add 10.9.0.1/24 dev eth0");
        site.peer.ip("link set eth0 up");
        site.bed.write(PEERS_FILE, PEERS);
        for at in [DB, OTHER] {
            let listener = site.peer.run(move || TcpListener::bind(at).unwrap());
            thread::spawn(move || serve(&listener));
        }
        site
    }

    pub fn ip(&self, arguments: &str) {
        let words: Vec<&str> = arguments.split(' ').collect();
        let run = || exec::run(&exec::find("ip").unwrap(), &words, b"", LONG).unwrap();
        let output = self.bed.namespace.run(run).unwrap();
        assert!(output.status.success(), "ip {arguments}: {}", output.stderr);
    }

    /// A connection of the application's user, and what it was.
    pub fn dial(&self, at: &str) -> (Fate, Option<TcpStream>) {
        let at: SocketAddr = at.parse().unwrap();
        let dial = || {
            // The thread ends with this work.
            setfsuid(Uid::from_raw(API_USER));
            let limit = Duration::from_secs(5);
            let mut stream = match TcpStream::connect_timeout(&at, limit) {
                Ok(stream) => stream,
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => return (Fate::Refused, None),
                Err(error) => panic!("{at}: {error}"),
            };
            stream.set_read_timeout(Some(limit)).unwrap();
            let mut heard = [0; HELLO.len()];
            match stream.read_exact(&mut heard) {
                Ok(()) if heard == HELLO => (Fate::Direct, Some(stream)),
                _ => (Fate::Captured, None),
            }
        };
        self.bed.namespace.run(dial).unwrap()
    }

    pub fn fate(&self, at: &str) -> Fate {
        self.dial(at).0
    }

    /// Waits until a connection fares like that.
    pub fn await_fate(&self, at: &str, fate: Fate) {
        let look = || match self.fate(at) {
            other if other == fate => Ok(()),
            other => Err(format!("{other:?}")),
        };
        until(&format!("{at} {fate:?}"), LONG, look).unwrap_or_else(|e| panic!("{e}\n{}", self.bed.log()));
    }

    /// Waits until `api`'s sidecar is live.
    pub fn await_live(&self) {
        let live = |status: &serde_json::Value| (status["services"]["api"]["phase"] == "live").then_some(());
        self.bed.await_status("a live sidecar", LONG, live);
    }
}

/// Whether what is said comes back.
pub fn answers(stream: &mut TcpStream) -> bool {
    let mut back = [0; 4];
    stream.write_all(b"ping").is_ok() && stream.read_exact(&mut back).is_ok() && &back == b"ping"
}

fn serve(listener: &TcpListener) {
    for mut stream in listener.incoming().flatten() {
        thread::spawn(move || {
            let mut reader = stream.try_clone().unwrap();
            if stream.write_all(HELLO).is_ok() {
                let _ = std::io::copy(&mut reader, &mut stream);
            }
        });
    }
}
