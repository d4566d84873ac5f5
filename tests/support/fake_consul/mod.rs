//! A fake of Consul 1.20, for what the Consul of the tests (1.8.7) cannot do: its xDS is older than
//! what current Envoys speak, and it knows no virtual IPs. Its shapes are those of Consul's own golden
//! files; it decides nothing by itself and shows what was asked of it.

#![allow(dead_code, reason = "each test target uses a part")]
#![allow(clippy::disallowed_methods, reason = "tonic calls from tasks of its own, outside any local set")]

mod http;
mod shapes;
mod stream;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer;
use serde_json::Value;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::codegen::tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tonic::transport::{Identity, Server, ServerTlsConfig};

pub use shapes::{FakeProxy, FakeUpstream};
use stream::Streams;

/// What a stream told when it began.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Seen {
    /// `node.id`.
    pub id: String,
    /// `node.cluster`.
    pub cluster: String,
    /// `node.metadata`.
    pub metadata: BTreeMap<String, String>,
    /// The header `x-consul-token`.
    pub token: Option<String>,
}

/// What the fake is told to be.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// What each registered sidecar is told, by its id.
    pub proxies: BTreeMap<String, FakeProxy>,
    /// The one token that is known; any, or none, is good without it.
    pub token: Option<String>,
    /// Answers of the HTTP API, by path.
    pub answers: BTreeMap<String, Value>,
    /// Grows when every open stream is to be closed.
    pub closed: u64,
}

/// What was seen.
#[derive(Debug, Default)]
pub struct Record {
    /// Each stream, in order, also the refused ones.
    pub streams: Vec<Seen>,
    /// What Envoy had against what it was told.
    pub refusals: Vec<String>,
    /// Tokens of HTTP calls, with their paths.
    pub calls: Vec<(String, Option<String>)>,
}

/// Where its xDS listens.
pub enum Listen {
    /// Without TLS.
    Plaintext(SocketAddr),
    /// With a certificate and its key, PEM.
    Tls(SocketAddr, String, String),
    /// A unix socket.
    Unix(PathBuf),
}

/// The fake. What it serves ends with it.
pub struct FakeConsul {
    state: Arc<watch::Sender<State>>,
    record: Arc<Mutex<Record>>,
    ends: watch::Sender<bool>,
    xds: Vec<JoinHandle<()>>,
    http: Vec<JoinHandle<()>>,
}

impl FakeConsul {
    pub fn new(state: State) -> Self {
        FakeConsul {
            state: Arc::new(watch::Sender::new(state)),
            record: Arc::default(),
            ends: watch::Sender::new(false),
            xds: Vec::new(),
            http: Vec::new(),
        }
    }

    /// Serves xDS.
    pub async fn serve(&mut self, listen: Listen) {
        let streams = Streams { state: self.state.clone(), record: self.record.clone() };
        let mut server = Server::builder();
        if let Listen::Tls(_, certificate, key) = &listen {
            let identity = Identity::from_pem(certificate, key);
            server = server.tls_config(ServerTlsConfig::new().identity(identity)).unwrap();
        }
        let router = server.add_service(AggregatedDiscoveryServiceServer::new(streams));
        let mut ends = self.ends.subscribe();
        let end = async move {
            let _ = ends.wait_for(|end| *end).await;
        };
        self.xds.push(match listen {
            Listen::Plaintext(at) | Listen::Tls(at, ..) => {
                let incoming = TcpListenerStream::new(TcpListener::bind(at).await.unwrap());
                tokio::spawn(async move { router.serve_with_incoming_shutdown(incoming, end).await.unwrap() })
            }
            Listen::Unix(path) => {
                let incoming = UnixListenerStream::new(UnixListener::bind(path).unwrap());
                tokio::spawn(async move { router.serve_with_incoming_shutdown(incoming, end).await.unwrap() })
            }
        });
    }

    /// Serves the HTTP API: `answers` of the state, and what its token allows.
    pub async fn serve_http(&mut self, at: SocketAddr) {
        let listener = TcpListener::bind(at).await.unwrap();
        self.http.push(tokio::spawn(http::serve(listener, self.state.clone(), self.record.clone())));
    }

    /// Changes what it is, and tells who listens.
    pub fn change(&self, change: impl FnOnce(&mut State)) {
        self.state.send_modify(change);
    }

    /// Closes every open stream.
    pub fn close_streams(&self) {
        self.change(|state| state.closed += 1);
    }

    /// Ends its xDS: nobody listens any more, and every connection is closed.
    pub async fn stop(&mut self) {
        self.ends.send_replace(true);
        while self.xds.iter().any(|task| !task.is_finished()) {
            self.close_streams();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.xds.clear();
        self.ends.send_replace(false);
    }

    /// What was seen.
    pub fn record(&self) -> std::sync::MutexGuard<'_, Record> {
        self.record.lock().unwrap()
    }
}

impl Drop for FakeConsul {
    fn drop(&mut self) {
        for task in self.xds.iter().chain(&self.http) {
            task.abort();
        }
    }
}
