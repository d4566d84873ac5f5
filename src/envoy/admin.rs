//! The client of Envoy's admin interface, over its unix socket.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use hyper::body::Bytes;
use hyper::{Method, StatusCode};
use serde::Serialize;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::{Instant, sleep};

use super::bootstrap::LOCAL_AGENT;
use super::error::EnvoyError;
use crate::base::Fault;
use crate::base::http::{self, HttpError};

/// How long one answer may take.
const LIMIT: Duration = Duration::from_secs(2);
/// How long to pause between two looks at Envoy: at first, and at most.
pub(super) const PAUSES: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(20));

/// What Envoy says of itself on `/ready`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Readiness {
    /// It takes connections.
    Live,
    /// It waits for its first configuration.
    PreInitializing,
    /// It warms up clusters and listeners.
    Initializing,
    /// It was told to fail health checks, or drains.
    Draining,
    /// Nobody answers on the socket.
    Refused,
}

/// A certificate that Envoy has loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateInfo {
    /// Whether it is a CA's.
    pub ca: bool,
    /// Serial number, hexadecimal.
    pub serial: String,
    /// URIs that it is valid for: the SPIFFE id.
    pub uris: Vec<String>,
    /// When it starts to be valid.
    pub not_before: SystemTime,
    /// When it ends.
    pub not_after: SystemTime,
}

/// What Envoy is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerInfo {
    /// The version, such as `1.40.0`.
    pub version: String,
    /// How long it runs.
    pub uptime: Duration,
    /// Its node id.
    pub node_id: String,
}

/// How many inbound connections, or requests where the service speaks HTTP, were decided on, since Envoy's start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Decisions {
    /// Let in, and the caller has said something.
    pub allowed: u64,
    /// Refused: a certificate of the mesh whose owner may not call, or none at all.
    pub denied: u64,
}

/// A sidecar's stream to Consul.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Stream {
    /// Whether it is there now.
    pub connected: bool,
    /// How many connections were tried since Envoy's start.
    pub connections: u64,
    /// How many of them did not come about: nobody answered, or not in time.
    pub refused: u64,
    /// How many of them failed in TLS.
    pub tls_failures: u64,
    /// How many updates of Consul's Envoy has refused.
    pub rejected: u64,
    /// How many streams were opened since Envoy's start. Each has the token of its own beginning.
    pub opened: u64,
}

/// The admin interface of one sidecar. Each call is one connection, bounded in time and size.
#[derive(Debug, Clone)]
pub struct Admin {
    socket: PathBuf,
}

impl Admin {
    /// The interface behind `socket`.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Admin { socket: socket.into() }
    }

    /// The socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// What Envoy says of itself. Never fails: an answer that cannot be had is
    /// [`Readiness::Refused`].
    pub async fn ready(&self) -> Readiness {
        match self.request(Method::GET, "/ready").await {
            Ok((_, body)) => match String::from_utf8_lossy(&body).trim() {
                "LIVE" => Readiness::Live,
                "INITIALIZING" => Readiness::Initializing,
                "DRAINING" => Readiness::Draining,
                _ => Readiness::PreInitializing,
            },
            Err(_) => Readiness::Refused,
        }
    }

    /// Waits until Envoy takes connections. Looks often at first: a start takes about 0.1 s.
    ///
    /// # Errors
    /// `ENM-E032` when it does not within `limit`.
    pub async fn wait_live(&self, limit: Duration) -> Result<(), Fault> {
        let started = Instant::now();
        let mut pause = PAUSES.0;
        loop {
            let state = self.ready().await;
            if state == Readiness::Live {
                return Ok(());
            }
            if started.elapsed() + pause > limit {
                return Err(EnvoyError::NotLive { state, waited: started.elapsed() }.into());
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    /// The counters and gauges whose name matches the regular expression `filter`.
    ///
    /// # Errors
    /// `ENM-E020`, `ENM-E021`, `ENM-E022`: Envoy cannot be asked.
    pub async fn stats(&self, filter: &str) -> Result<BTreeMap<String, u64>, Fault> {
        let raw = self.raw_stats(filter).await?;
        Ok(raw.into_iter().filter_map(|(name, value)| Some((name, value.parse().ok()?))).collect())
    }

    /// What the public listener decided: the intentions' effect.
    ///
    /// # Errors
    /// `ENM-E020`, `ENM-E021`, `ENM-E022`: Envoy cannot be asked.
    pub async fn decisions(&self) -> Result<Decisions, Fault> {
        let filter = r"^(connect_authz\.rbac|http\.public_listener\.rbac|listener\.public_listener\.ssl)\.";
        let stats = self.stats(filter).await?;
        let of = |name: &str| stats.get(name).copied().unwrap_or(0);
        // Of the two filters a listener has one.
        let rbac = |name: &str| {
            of(&format!("connect_authz.rbac.{name}")) + of(&format!("http.public_listener.rbac.{name}"))
        };
        let tls = |name: &str| of(&format!("listener.public_listener.ssl.{name}"));
        Ok(Decisions {
            allowed: rbac("allowed"),
            denied: rbac("denied") + tls("fail_verify_san") + tls("fail_verify_no_cert"),
        })
    }

    /// How the stream to Consul is. Why there is none, Envoy only logs.
    ///
    /// # Errors
    /// `ENM-E020`, `ENM-E021`, `ENM-E022`: Envoy cannot be asked.
    pub async fn stream(&self) -> Result<Stream, Fault> {
        let filter = format!(
            r"^(control_plane\.connected_state|cluster\.{LOCAL_AGENT}\.(upstream_(cx|rq)_.*|ssl\..*)|[a-z_.]+\.update_rejected)$"
        );
        let stats = self.stats(&filter).await?;
        let of = |name: &str| stats.get(name).copied().unwrap_or(0);
        let cluster = |name: &str| of(&format!("cluster.{LOCAL_AGENT}.{name}"));
        let rejected = stats.iter().filter(|(name, _)| name.ends_with(".update_rejected"));
        Ok(Stream {
            connected: of("control_plane.connected_state") == 1,
            connections: cluster("upstream_cx_total"),
            refused: cluster("upstream_cx_connect_fail"),
            tls_failures: cluster("ssl.connection_error") + cluster("ssl.fail_verify_error"),
            rejected: rejected.map(|(_, value)| value).sum(),
            opened: cluster("upstream_rq_total"),
        })
    }

    /// All metrics that match, as text; texts without their quotes.
    pub(super) async fn raw_stats(&self, filter: &str) -> Result<BTreeMap<String, String>, Fault> {
        let body = self.get(&format!("/stats?filter={}", escaped(filter))).await?;
        Ok(String::from_utf8_lossy(&body)
            .lines()
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_owned(), value.trim_matches('"').to_owned()))
            .collect())
    }

    /// The certificates that Envoy has loaded, CAs' and leaves.
    ///
    /// # Errors
    /// `ENM-E020`, `ENM-E021`, `ENM-E022`: Envoy cannot be asked.
    pub async fn certs(&self) -> Result<Vec<CertificateInfo>, Fault> {
        let dump = self.json("/certs").await?;
        let groups = dump.get("certificates").and_then(Value::as_array).into_iter().flatten();
        let listed = groups.flat_map(|group| {
            [("ca_cert", true), ("cert_chain", false)].into_iter().flat_map(move |(key, ca)| {
                group.get(key).and_then(Value::as_array).into_iter().flatten().map(move |entry| (ca, entry))
            })
        });
        Ok(listed.filter_map(|(ca, entry)| certificate(ca, entry)).collect())
    }

    /// Version, uptime and node.
    ///
    /// # Errors
    /// `ENM-E020`, `ENM-E021`, `ENM-E022`: Envoy cannot be asked.
    pub async fn server_info(&self) -> Result<ServerInfo, Fault> {
        let info = self.json("/server_info").await?;
        let text = |pointer: &str| info.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        // `version` is "<commit>/<version>/<state>/<build>/<library>".
        let version = text("/version").split('/').nth(1).unwrap_or_default().to_owned();
        let seconds = text("/uptime_current_epoch").trim_end_matches('s').parse().unwrap_or(0);
        Ok(ServerInfo { version, uptime: Duration::from_secs(seconds), node_id: text("/node/id").to_owned() })
    }

    /// Lets inbound connections end: new ones are refused, open ones live on, outbound goes on.
    /// `skip_exit`, because Envoy from 1.37 on otherwise ends itself afterwards.
    ///
    /// # Errors
    /// `ENM-E020`, `ENM-E021`, `ENM-E022`: Envoy cannot be told.
    pub async fn drain_inbound(&self) -> Result<(), Fault> {
        self.post("/drain_listeners?inboundonly&graceful&skip_exit").await
    }

    /// Makes `/ready` say that Envoy drains.
    ///
    /// # Errors
    /// `ENM-E020`, `ENM-E021`, `ENM-E022`: Envoy cannot be told.
    pub async fn healthcheck_fail(&self) -> Result<(), Fault> {
        self.post("/healthcheck/fail").await
    }

    /// Ends Envoy.
    ///
    /// # Errors
    /// `ENM-E020`, `ENM-E021`, `ENM-E022`: Envoy cannot be told.
    pub async fn quit(&self) -> Result<(), Fault> {
        self.post("/quitquitquit").await
    }

    pub(super) async fn json(&self, path: &str) -> Result<Value, Fault> {
        let body = self.get(path).await?;
        serde_json::from_slice(&body)
            .map_err(|e| EnvoyError::Answer { path: path.to_owned(), answer: e.to_string() }.into())
    }

    async fn get(&self, path: &str) -> Result<Bytes, Fault> {
        self.expect_ok(Method::GET, path).await
    }

    async fn post(&self, path: &str) -> Result<(), Fault> {
        self.expect_ok(Method::POST, path).await.map(drop)
    }

    async fn expect_ok(&self, method: Method, path: &str) -> Result<Bytes, Fault> {
        let (status, body) = self.request(method, path).await?;
        if status.is_success() {
            return Ok(body);
        }
        let text: String = String::from_utf8_lossy(&body).chars().take(200).collect();
        Err(EnvoyError::Answer { path: path.to_owned(), answer: format!("{status}: {}", text.trim()) }.into())
    }

    async fn request(&self, method: Method, path: &str) -> Result<(StatusCode, Bytes), Fault> {
        let unreachable = |source| EnvoyError::Unreachable { socket: self.socket.clone(), source };
        match http::request(&self.socket, method, path, Vec::new(), LIMIT).await {
            Ok(answer) => {
                let status =
                    StatusCode::from_u16(answer.status).map_err(|e| unreachable(io::Error::other(e)))?;
                Ok((status, answer.body.into()))
            }
            Err(HttpError::Timeout(_)) => {
                Err(EnvoyError::Slow { path: path.to_owned(), limit: LIMIT }.into())
            }
            Err(HttpError::Refused) => Err(unreachable(io::ErrorKind::ConnectionRefused.into()).into()),
            Err(HttpError::Broken(why)) => Err(unreachable(io::Error::other(why)).into()),
        }
    }
}

fn certificate(ca: bool, entry: &Value) -> Option<CertificateInfo> {
    let time =
        |key: &str| OffsetDateTime::parse(entry.get(key)?.as_str()?, &Rfc3339).ok().map(SystemTime::from);
    let names = entry.get("subject_alt_names").and_then(Value::as_array).into_iter().flatten();
    Some(CertificateInfo {
        ca,
        serial: entry.get("serial_number")?.as_str()?.to_owned(),
        uris: names.filter_map(|name| Some(name.get("uri")?.as_str()?.to_owned())).collect(),
        not_before: time("valid_from")?,
        not_after: time("expiration_time")?,
    })
}

/// `text` for the query of a URL.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    use super::*;

    /// Somebody on the socket who answers every connection with `answer` and then keeps it open.
    fn impostor(folder: &Path, answer: impl Into<Vec<u8>>) -> Admin {
        let answer: Rc<[u8]> = answer.into().into();
        let socket = folder.join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        tokio::task::spawn_local(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let answer = answer.clone();
                tokio::task::spawn_local(async move {
                    let mut request = [0; 1024];
                    let _ = stream.read(&mut request).await;
                    let _ = stream.write_all(&answer).await;
                    std::future::pending::<()>().await;
                });
            }
        });
        Admin::new(socket)
    }

    fn run(test: impl AsyncFnOnce()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, test());
    }

    #[test]
    fn nobody_is_refused() {
        run(async || {
            let admin = Admin::new("/nowhere/envoy.sock");
            assert_eq!(admin.ready().await, Readiness::Refused);
            assert_eq!(admin.stats("x").await.unwrap_err().code, "ENM-E020");
            let fault = admin.wait_live(Duration::from_millis(30)).await.unwrap_err();
            assert_eq!(fault.code, "ENM-E032");
            assert!(fault.message.contains("Refused"), "{}", fault.message);
        });
    }

    #[test]
    fn a_silent_envoy_costs_a_bounded_time() {
        run(async || {
            let dir = tempfile::tempdir().unwrap();
            let started = Instant::now();
            let fault = impostor(dir.path(), b"").stats("x").await.unwrap_err();
            assert_eq!(fault.code, "ENM-E021");
            assert!(started.elapsed() < LIMIT * 2);
        });
    }

    #[test]
    fn answers_are_bounded_and_must_be_good() {
        run(async || {
            let dir = tempfile::tempdir().unwrap();
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", http::BODY_LIMIT + 1);
            let huge = impostor(dir.path(), [head.into_bytes(), vec![b'x'; http::BODY_LIMIT + 1]].concat());
            assert_eq!(huge.stats("x").await.unwrap_err().code, "ENM-E020");

            let dir = tempfile::tempdir().unwrap();
            let bad = impostor(dir.path(), b"HTTP/1.1 400 Bad Request\r\ncontent-length: 9\r\n\r\nbad regex");
            let fault = bad.stats("(").await.unwrap_err();
            assert_eq!(fault.code, "ENM-E022");
            assert!(fault.message.contains("bad regex"), "{}", fault.message);
        });
    }

    #[test]
    fn states_and_numbers_are_read() {
        run(async || {
            let dir = tempfile::tempdir().unwrap();
            let draining = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 9\r\n\r\nDRAINING\n";
            assert_eq!(impostor(dir.path(), draining).ready().await, Readiness::Draining);

            let dir = tempfile::tempdir().unwrap();
            let text = b"HTTP/1.1 200 OK\r\ncontent-length: 41\r\n\r\na.b: 3\na.version_text: \"v1\"\nc: P0(1,1)  \n";
            let admin = impostor(dir.path(), text);
            assert_eq!(admin.stats("x").await.unwrap(), BTreeMap::from([("a.b".to_owned(), 3)]));
            assert_eq!(admin.raw_stats("x").await.unwrap()["a.version_text"], "v1");
        });
    }

    #[test]
    fn expressions_survive_the_url() {
        assert_eq!(escaped(r"^a\.b|c$"), "%5Ea%5C.b%7Cc%24");
    }
}
