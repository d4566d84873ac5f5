//! The applications of the demo's hosts: a service that answers and a client that asks. They know
//! HTTP and names, and nothing of a mesh.
//!
//! They are started as `enmesh demo-app …`, under users of their own. The client resolves names as
//! every program does, by the system's resolver, so the whole way is tried.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::error::DemoError;
use crate::base::Fault;

/// How long a client waits for a connection, and for each answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// The longest request head and the longest answer that are read, in bytes.
const LONGEST: u64 = 64 * 1024;
/// The header in which the demo's requests carry their secret.
pub const SECRET_HEADER: &str = "x-demo-secret";

/// What the service answers: how it saw the request.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Who answers.
    pub service: String,
    /// The request line.
    pub request: String,
    /// Where the connection came from.
    pub from: String,
    /// The request's headers, names in lower case.
    pub headers: BTreeMap<String, String>,
}

/// How a request went, for the client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "outcome")]
pub enum Outcome {
    /// There was an answer.
    Answered {
        /// HTTP status.
        status: u16,
        /// The answer.
        body: String,
        /// The address that the name stood for.
        address: SocketAddr,
        /// From the beginning of name resolution to the end of the answer.
        microseconds: u64,
    },
    /// The name could not be resolved.
    Unknown {
        /// The resolver's words.
        error: String,
    },
    /// The connection was refused at once.
    Refused {
        /// The address that the name stood for.
        address: SocketAddr,
    },
    /// Anything else: closed without an answer, no answer in time.
    Failed {
        /// The system's words.
        error: String,
    },
}

impl Outcome {
    /// Whether the service itself answered with success.
    pub fn is_success(&self) -> bool {
        matches!(self, Outcome::Answered { status: 200..=299, .. })
    }

    /// In one line, for a person.
    pub fn describe(&self) -> String {
        match self {
            Outcome::Answered { status, address, microseconds, .. } => {
                format!(
                    "{status} from {address} after {}.{} ms",
                    microseconds / 1000,
                    microseconds % 1000 / 100
                )
            }
            Outcome::Unknown { error } => format!("the name is not known: {error}"),
            Outcome::Refused { address } => format!("connection to {address} refused"),
            Outcome::Failed { error } => error.clone(),
        }
    }
}

/// What many requests came to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hammered {
    /// Requests that were tried.
    pub tried: u64,
    /// Answered by the service.
    pub answered: u64,
    /// Refused: at the connection, or by a status that is not success.
    pub refused: u64,
    /// Ended in another way.
    pub failed: u64,
    /// From the first request that was not answered to the next that was, in milliseconds; `None`
    /// when all were answered, or none was again.
    pub outage: Option<u64>,
    /// Whether the last request was answered.
    pub back: bool,
}

/// An HTTP URL of the demo: `http://HOST[:PORT][/PATH]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    host: String,
    port: u16,
    path: String,
}

impl std::str::FromStr for Url {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("`{text}` is not of the form http://HOST[:PORT][/PATH]");
        let rest = text.strip_prefix("http://").ok_or_else(bad)?;
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) => (host, port.parse().map_err(|_| bad())?),
            None => (authority, 80),
        };
        if host.is_empty() || text.contains(char::is_whitespace) {
            return Err(bad());
        }
        Ok(Url { host: host.to_owned(), port, path: format!("/{path}") })
    }
}

/// Answers every request on `listen` with how it was seen, for ever.
///
/// # Errors
/// `ENM-T004` the address cannot be listened on.
pub fn serve(name: &str, listen: SocketAddr) -> Result<(), Fault> {
    let listener =
        TcpListener::bind(listen).map_err(|e| DemoError::system(format!("listen on {listen}"), e))?;
    loop {
        // A connection that ends before it is accepted is its client's matter.
        let Ok((connection, from)) = listener.accept() else { continue };
        let name = name.to_owned();
        thread::spawn(move || drop(answer_all(&name, connection, from)));
    }
}

/// Asks once.
pub fn get(url: &Url, secret: &str) -> Outcome {
    let started = Instant::now();
    let mut addresses = match (url.host.as_str(), url.port).to_socket_addrs() {
        Ok(addresses) => addresses,
        Err(error) => return Outcome::Unknown { error: error.to_string() },
    };
    let Some(address) = addresses.next() else {
        return Outcome::Unknown { error: "it has no address".to_owned() };
    };
    match ask(url, address, secret) {
        Ok((status, body)) => {
            let microseconds = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
            Outcome::Answered { status, body, address, microseconds }
        }
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Outcome::Refused { address },
        Err(error) => Outcome::Failed { error: error.to_string() },
    }
}

/// Asks `urls` in turn, `rate` times a second for `length`, each time over a connection of its own,
/// without waiting for one answer before the next question.
pub fn hammer(urls: &[Url], secret: &str, rate: u32, length: Duration) -> Hammered {
    let pause = Duration::from_secs(1) / rate.max(1);
    let started = Instant::now();
    let mut asked = Vec::new();
    for url in urls.iter().cycle() {
        if started.elapsed() >= length {
            break;
        }
        let (url, secret, at) = (url.clone(), secret.to_owned(), started.elapsed());
        asked.push(thread::spawn(move || (at, get(&url, &secret), started.elapsed())));
        let next = pause * u32::try_from(asked.len()).unwrap_or(u32::MAX);
        thread::sleep(next.saturating_sub(started.elapsed()));
    }
    let answers: Vec<_> = asked.into_iter().filter_map(|thread| thread.join().ok()).collect();
    sum_up(&answers)
}

/// Each request: when it was tried, what came of it, when that was known.
fn sum_up(answers: &[(Duration, Outcome, Duration)]) -> Hammered {
    let mut sum = Hammered::default();
    let (mut down_since, mut up_again) = (None, None);
    for (at, outcome, known) in answers {
        sum.tried += 1;
        match outcome {
            _ if outcome.is_success() => sum.answered += 1,
            Outcome::Refused { .. } | Outcome::Answered { .. } => sum.refused += 1,
            Outcome::Unknown { .. } | Outcome::Failed { .. } => sum.failed += 1,
        }
        match (outcome.is_success(), down_since) {
            (false, None) => down_since = Some(*known),
            (false, Some(_)) => up_again = None,
            (true, Some(_)) if up_again.is_none() => up_again = Some(*at),
            (true, _) => {}
        }
    }
    sum.back = answers.last().is_some_and(|(_, outcome, _)| outcome.is_success());
    sum.outage = down_since
        .zip(up_again)
        .map(|(down, up)| u64::try_from(up.saturating_sub(down).as_millis()).unwrap_or(u64::MAX));
    sum
}

fn ask(url: &Url, address: SocketAddr, secret: &str) -> io::Result<(u16, String)> {
    let mut connection = TcpStream::connect_timeout(&address, PATIENCE)?;
    connection.set_read_timeout(Some(PATIENCE))?;
    let request = format!(
        "GET {} HTTP/1.1\r\nhost: {}\r\n{SECRET_HEADER}: {secret}\r\nconnection: close\r\n\r\n",
        url.path, url.host
    );
    connection.write_all(request.as_bytes())?;
    let mut reader = BufReader::new(connection.take(LONGEST));
    let (first, headers) = read_head(&mut reader)?;
    let status = first.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.ok_or_else(|| io::Error::other("closed without an answer"))?;
    let mut body = Vec::new();
    match headers.get("content-length").and_then(|length| length.parse().ok()) {
        Some(length) => {
            reader.take(length).read_to_end(&mut body)?;
        }
        None => {
            reader.read_to_end(&mut body)?;
        }
    }
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

fn answer_all(name: &str, mut connection: TcpStream, from: SocketAddr) -> io::Result<()> {
    let mut reader = BufReader::new(connection.try_clone()?);
    loop {
        let (request, headers) = read_head(&mut reader.by_ref().take(LONGEST))?;
        if request.is_empty() {
            return Ok(());
        }
        let close = headers.get("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
        let seen = Seen { service: name.to_owned(), request, from: from.to_string(), headers };
        let body = serde_json::to_string(&seen)?;
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n",
            body.len()
        );
        let end = if close { "connection: close\r\n\r\n" } else { "\r\n" };
        connection.write_all(format!("{head}{end}{body}").as_bytes())?;
        if close {
            return Ok(());
        }
    }
}

/// The first line and the headers, names in lower case; an empty first line at the end of the stream.
fn read_head(reader: &mut impl BufRead) -> io::Result<(String, BTreeMap<String, String>)> {
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let line = line.trim_end();
        if line.is_empty() {
            return Ok((first.trim_end().to_owned(), headers));
        }
        if let Some((name, value)) = line.split_once(':') {
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_strictly() {
        let url: Url = "http://api.virtual.consul".parse().unwrap();
        assert_eq!((url.host.as_str(), url.port, url.path.as_str()), ("api.virtual.consul", 80, "/"));
        let url: Url = "http://10.99.0.2:8080/a/b".parse().unwrap();
        assert_eq!((url.host.as_str(), url.port, url.path.as_str()), ("10.99.0.2", 8080, "/a/b"));
        for bad in ["https://x", "http://", "http://x:no", "http://x y"] {
            assert!(bad.parse::<Url>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_service_tells_the_client_how_it_saw_the_request() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        thread::spawn(move || serve("api", address));
        let url: Url = format!("http://localhost:{}/hello", address.port()).parse().unwrap();
        let outcome = (0..100)
            .map(|_| {
                thread::sleep(Duration::from_millis(5));
                get(&url, "token")
            })
            .find(Outcome::is_success)
            .unwrap();
        let Outcome::Answered { status: 200, body, .. } = outcome else { panic!("{outcome:?}") };
        let seen: Seen = serde_json::from_str(&body).unwrap();
        assert_eq!((seen.service.as_str(), seen.request.as_str()), ("api", "GET /hello HTTP/1.1"));
        assert_eq!(seen.headers[SECRET_HEADER], "token");
    }

    #[test]
    fn refusals_and_unknown_names_are_told_apart() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let url: Url = format!("http://127.0.0.1:{port}").parse().unwrap();
        assert!(matches!(get(&url, ""), Outcome::Refused { .. }));
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let url: Url = format!("http://{}", silent.local_addr().unwrap()).parse().unwrap();
        thread::spawn(move || drop(silent.accept()));
        assert!(matches!(get(&url, ""), Outcome::Failed { .. }));
    }

    #[test]
    fn an_outage_is_measured_from_the_first_refusal_to_the_next_answer() {
        let address = ([127, 0, 0, 1], 1).into();
        let good = Outcome::Answered { status: 200, body: String::new(), address, microseconds: 1 };
        let bad = Outcome::Refused { address };
        let at = |milliseconds, outcome: &Outcome| {
            let time = Duration::from_millis(milliseconds);
            (time, outcome.clone(), time)
        };
        let sum =
            sum_up(&[at(0, &good), at(10, &bad), at(20, &good), at(30, &bad), at(95, &good), at(99, &good)]);
        assert_eq!((sum.tried, sum.answered, sum.refused, sum.outage, sum.back), (6, 4, 2, Some(85), true));
        let sum = sum_up(&[at(0, &good), at(10, &bad)]);
        assert_eq!((sum.outage, sum.back), (None, false));
        assert_eq!(sum_up(&[at(0, &good)]).outage, None);
    }
}
