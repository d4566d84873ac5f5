//! What the tests of the control plane `catalog` share: Consul's own calls, and waiting for a picture.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use enmesh::base::Root;
use enmesh::config::value::ServiceName;
use enmesh::mesh::{CatalogMesh, Local, MeshSource};
use enmesh::plan::MeshView;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::consul::Agent;

/// How long anything may take. What it does take is printed.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub fn name(text: &str) -> ServiceName {
    text.parse().unwrap()
}

/// A service of this host.
pub fn local(text: &str, upstreams: &[&str], transparent: bool) -> Local {
    Local {
        id: text.parse().unwrap(),
        name: name(text),
        upstreams: upstreams.iter().map(|text| name(text)).collect(),
        transparent,
    }
}

/// A mesh that follows `locals`, and the tree that it keeps its leaves in.
pub fn mesh_of(agent: &Agent, locals: &[Local]) -> (CatalogMesh, tempfile::TempDir) {
    let tree = tempfile::tempdir().unwrap();
    let mesh = CatalogMesh::start(agent.client(), &Root::new(tree.path()));
    mesh.follow(locals);
    (mesh, tree)
}

/// Asks Consul by hand, in the version of HTTP that has bodies in one piece; what it answers, null if
/// that is no JSON.
pub async fn consul(method: &str, path: &str, body: Value) -> Value {
    let mut stream = TcpStream::connect("127.0.0.1:8500").await.unwrap();
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let head = format!("{method} {path} HTTP/1.0\r\nhost: consul\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all((head + &body).as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.0 200"), "{method} {path}: {answer}");
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    serde_json::from_str(body).unwrap_or_default()
}

/// One instance in the catalog: the app, its sidecar, and the sidecar's check.
pub async fn register(service: &str, number: u8, port: u16, status: &str) {
    let (node, address) = (format!("n{number}"), format!("10.9.0.{number}"));
    register_at(service, &node, &address, port, status).await;
}

pub async fn register_at(service: &str, node: &str, address: &str, port: u16, status: &str) {
    let sidecar = format!("{service}-sidecar-proxy");
    let app = json!({
        "Node": node, "Address": address, "SkipNodeUpdate": false,
        "Service": { "ID": service, "Service": service, "Port": 8080 },
    });
    consul("PUT", "/v1/catalog/register", app).await;
    let proxy = json!({
        "Node": node, "Address": address,
        "Service": {
            "Kind": "connect-proxy", "ID": sidecar, "Service": sidecar, "Port": port,
            "Weights": { "Passing": 3, "Warning": 2 },
            "Proxy": { "DestinationServiceName": service, "LocalServicePort": 8080 },
        },
        "Check": { "CheckID": sidecar, "Name": "sidecar", "ServiceID": sidecar, "Status": status },
    });
    consul("PUT", "/v1/catalog/register", proxy).await;
}

/// The health of one sidecar.
pub async fn health(service: &str, number: u8, status: &str) {
    let (node, address) = (format!("n{number}"), format!("10.9.0.{number}"));
    let sidecar = format!("{service}-sidecar-proxy");
    let check = json!({
        "Node": node, "Address": address, "SkipNodeUpdate": true,
        "Check": { "CheckID": sidecar, "Name": "sidecar", "ServiceID": sidecar, "Status": status },
    });
    consul("PUT", "/v1/catalog/register", check).await;
}

pub async fn deregister(service: &str, number: u8) {
    for id in [format!("{service}-sidecar-proxy"), service.to_owned()] {
        consul("PUT", "/v1/catalog/deregister", json!({ "Node": format!("n{number}"), "ServiceID": id }))
            .await;
    }
}

/// Makes an intention; its id.
pub async fn intend(source: &str, destination: &str, action: &str) -> String {
    let body = json!({
        "SourceName": source, "DestinationName": destination, "SourceType": "consul", "Action": action,
    });
    consul("POST", "/v1/connect/intentions", body).await["ID"].as_str().unwrap().to_owned()
}

pub async fn forget_intention(id: &str) {
    consul("DELETE", &format!("/v1/connect/intentions/{id}"), Value::Null).await;
}

/// Waits for a picture that is `good`; how long that took.
pub async fn until(mesh: &CatalogMesh, what: &str, good: impl Fn(&MeshView) -> bool) -> Duration {
    let begun = Instant::now();
    loop {
        let changed = mesh.changed();
        let view = mesh.view().await.unwrap();
        if good(&view) {
            return begun.elapsed();
        }
        let left = PATIENCE.saturating_sub(begun.elapsed());
        assert!(tokio::time::timeout(left, changed).await.is_ok(), "{what}: {view:#?}, {:?}", mesh.link());
    }
}

/// The instances of `service` that may be used. Those that are not well are known too, without a share.
pub fn instances(view: &MeshView, service: &str) -> Vec<String> {
    let service = view.services.get(&name(service));
    let instances = service.iter().flat_map(|it| &it.instances).filter(|it| it.weight > 0);
    instances.map(|it| format!("{}:{}*{}", it.address, it.port, it.weight)).collect()
}

/// The services that `local` reaches.
pub fn reach(view: &MeshView, local: &str) -> Vec<String> {
    view.reach.get(&name(local)).into_iter().flatten().map(ToString::to_string).collect()
}

/// A program of the tools folder.
pub fn tool(text: &str) -> PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools").join(text)
}
