//! A name server outside: it knows one address for every name, and remembers what it was asked.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use enmesh::netns::Namespace;

/// The server; ends with the value.
pub struct NameServer {
    asked: Arc<Mutex<Vec<String>>>,
    end: Arc<AtomicBool>,
}

impl NameServer {
    /// The one address.
    pub const ANSWER: &str = "192.0.2.7";

    /// Answers on port 53 of every address in `namespace`.
    pub fn start(namespace: &Namespace) -> NameServer {
        let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 53));
        let socket = namespace.run(|| UdpSocket::bind(address)).expect("the namespace is there");
        let socket = socket.expect("a free port");
        socket.set_read_timeout(Some(Duration::from_millis(20))).expect("a socket can be told");
        let server = NameServer { asked: Arc::default(), end: Arc::default() };
        let (asked, end) = (Arc::clone(&server.asked), Arc::clone(&server.end));
        thread::spawn(move || {
            let mut query = [0; 1500];
            while !end.load(Ordering::Relaxed) {
                let Ok((length, client)) = socket.recv_from(&mut query) else { continue };
                let Some((name, answer)) = answer(&query[..length]) else { continue };
                asked.lock().expect("nobody panics with it").push(name);
                let _ = socket.send_to(&answer, client);
            }
        });
        server
    }

    /// The names that somebody wanted to know of.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("nobody panics with it").clone()
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
    }
}

/// The name asked for, and the answer (RFC 1035, 4.1): the address for type A, nothing else for others.
fn answer(query: &[u8]) -> Option<(String, Vec<u8>)> {
    let (mut at, mut labels) = (12, Vec::new());
    while *query.get(at)? != 0 {
        let end = at + 1 + usize::from(query[at]);
        labels.push(String::from_utf8_lossy(query.get(at + 1..end)?).into_owned());
        at = end;
    }
    let question = query.get(12..at + 5)?;
    let is_a = question.ends_with(&[0, 1, 0, 1]);
    // The query's number, "an answer, recursion available", one question, perhaps one answer.
    let header = [query[0], query[1], 0x81, 0x80, 0, 1, 0, u8::from(is_a), 0, 0, 0, 0];
    let mut answer = [&header, question].concat();
    if is_a {
        // The name of the question, type A, class IN, a minute, four bytes.
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        answer.extend(NameServer::ANSWER.parse::<Ipv4Addr>().expect("an address").octets());
    }
    Some((labels.join(".").to_lowercase(), answer))
}
