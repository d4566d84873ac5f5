//! Incremental xDS of one stream for every kind of resource, as Consul serves it: a token is asked
//! for once, and a sidecar that is not registered is told nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::AggregatedDiscoveryService;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};
use envoy_types::pb::google::protobuf::{Any, value::Kind};
use tokio::sync::{mpsc, watch};
use tonic::codegen::tokio_stream::Stream;
use tonic::codegen::tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{Record, Seen, State};

/// What Consul asks for its streams.
pub struct Streams {
    pub state: Arc<watch::Sender<State>>,
    pub record: Arc<Mutex<Record>>,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for Streams {
    type StreamAggregatedResourcesStream = Answers<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Answers<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        _: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("not implemented"))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let token = request.metadata().get("x-consul-token");
        let token = token.map(|token| token.to_str().unwrap().to_owned());
        let (sender, answers) = mpsc::channel(16);
        let one = One {
            token,
            state: self.state.clone(),
            record: self.record.clone(),
            node: None,
            wanted: BTreeMap::new(),
            told: BTreeMap::new(),
            number: 0,
        };
        tokio::spawn(async move {
            if let Err(status) = one.run(request.into_inner(), &sender).await {
                let _ = sender.send(Err(status)).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }
}

/// One stream.
struct One {
    token: Option<String>,
    state: Arc<watch::Sender<State>>,
    record: Arc<Mutex<Record>>,
    node: Option<String>,
    /// What is subscribed to of each kind; nothing by name is everything.
    wanted: BTreeMap<String, BTreeSet<String>>,
    /// What was told of each kind.
    told: BTreeMap<String, BTreeMap<String, Any>>,
    number: u64,
}

impl One {
    async fn run(
        mut self,
        mut requests: Streaming<DeltaDiscoveryRequest>,
        answers: &mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
    ) -> Result<(), Status> {
        let mut changes = self.state.subscribe();
        let closed = changes.borrow_and_update().closed;
        loop {
            tokio::select! {
                request = requests.message() => {
                    let Some(request) = request? else { return Ok(()) };
                    self.hear(request)?;
                }
                changed = changes.changed() => {
                    if changed.is_err() || changes.borrow().closed != closed {
                        return Err(Status::unavailable("the agent ends"));
                    }
                }
            }
            for answer in self.answers() {
                if answers.send(Ok(answer)).await.is_err() {
                    return Ok(());
                }
            }
        }
    }

    fn hear(&mut self, request: DeltaDiscoveryRequest) -> Result<(), Status> {
        if self.node.is_none() {
            let node = request.node.unwrap_or_default();
            let seen = seen(&node, self.token.clone());
            self.node = Some(seen.id.clone());
            self.record.lock().unwrap().streams.push(seen);
            let known = self.state.borrow().token.clone();
            if known.is_some() && known != self.token {
                return Err(Status::unauthenticated("unauthenticated: ACL not found"));
            }
        }
        if let Some(detail) = request.error_detail {
            self.record.lock().unwrap().refusals.push(detail.message);
        }
        let wanted = self.wanted.entry(request.type_url.clone()).or_default();
        wanted.extend(request.resource_names_subscribe.into_iter().filter(|name| name != "*"));
        for name in request.resource_names_unsubscribe {
            wanted.remove(&name);
            if let Some(told) = self.told.get_mut(&request.type_url) {
                told.remove(&name);
            }
        }
        Ok(())
    }

    /// Whatever is not as it was told before.
    fn answers(&mut self) -> Vec<DeltaDiscoveryResponse> {
        let node = self.node.clone().unwrap_or_default();
        let Some(proxy) = self.state.borrow().proxies.get(&node).cloned() else { return Vec::new() };
        let mut answers = Vec::new();
        for (kind, names) in &self.wanted {
            let mut now = proxy.resources(kind);
            now.retain(|name, _| names.is_empty() || names.contains(name));
            let first = !self.told.contains_key(kind);
            let told = self.told.entry(kind.clone()).or_default();
            let resources: Vec<Resource> = now
                .iter()
                .filter(|(name, any)| told.get(*name) != Some(*any))
                .map(|(name, any)| Resource {
                    name: name.clone(),
                    version: self.number.to_string(),
                    resource: Some(any.clone()),
                    ..Resource::default()
                })
                .collect();
            let removed_resources: Vec<String> =
                told.keys().filter(|name| !now.contains_key(*name)).cloned().collect();
            if first || !resources.is_empty() || !removed_resources.is_empty() {
                self.number += 1;
                let nonce = self.number.to_string();
                let type_url = kind.clone();
                answers.push(DeltaDiscoveryResponse {
                    type_url,
                    resources,
                    removed_resources,
                    nonce,
                    ..DeltaDiscoveryResponse::default()
                });
            }
            *told = now;
        }
        answers
    }
}

fn seen(node: &Node, token: Option<String>) -> Seen {
    let fields = node.metadata.iter().flat_map(|metadata| &metadata.fields);
    Seen {
        id: node.id.clone(),
        cluster: node.cluster.clone(),
        metadata: fields
            .filter_map(|(name, value)| match &value.kind {
                Some(Kind::StringValue(text)) => Some((name.clone(), text.clone())),
                _ => None,
            })
            .collect(),
        token,
    }
}
