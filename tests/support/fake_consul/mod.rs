//! A fake of Consul 1.20, for what the Consul of the tests (1.8.7) cannot do: its xDS is older than
//! what current Envoys speak, and it knows no virtual IPs. Its shapes are those of Consul's own golden
//! files; it decides nothing by itself and shows what was asked of it.

#![allow(dead_code, reason = "each test target uses a part")]

mod http;
mod shapes;
mod stream;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

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
    tasks: Vec<JoinHandle<()>>,
}

impl FakeConsul {
    pub fn new(state: State) -> Self {
        FakeConsul { state: Arc::new(watch::Sender::new(state)), record: Arc::default(), tasks: Vec::new() }
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
        self.tasks.push(match listen {
            Listen::Plaintext(at) | Listen::Tls(at, ..) => {
                let incoming = TcpListenerStream::new(TcpListener::bind(at).await.unwrap());
                tokio::spawn(async move { router.serve_with_incoming(incoming).await.unwrap() })
            }
            Listen::Unix(path) => {
                let incoming = UnixListenerStream::new(UnixListener::bind(path).unwrap());
                tokio::spawn(async move { router.serve_with_incoming(incoming).await.unwrap() })
            }
        });
    }

    /// Serves the HTTP API: `answers` of the state, and what its token allows.
    pub async fn serve_http(&mut self, at: SocketAddr) {
        let listener = TcpListener::bind(at).await.unwrap();
        self.tasks.push(tokio::spawn(http::serve(listener, self.state.clone(), self.record.clone())));
    }

    /// Changes what it is, and tells who listens.
    pub fn change(&self, change: impl FnOnce(&mut State)) {
        self.state.send_modify(change);
    }

    /// Closes every open stream.
    pub fn close_streams(&self) {
        self.change(|state| state.closed += 1);
    }

    /// Ends: nobody listens any more.
    pub async fn stop(&mut self) {
        self.close_streams();
        for task in self.tasks.drain(..) {
            task.abort();
            let _ = task.await;
        }
    }

    /// What was seen.
    pub fn record(&self) -> std::sync::MutexGuard<'_, Record> {
        self.record.lock().unwrap()
    }
}

impl Drop for FakeConsul {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}
