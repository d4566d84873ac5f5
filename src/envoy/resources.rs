//! Everything Envoy reads while it runs, as documents and as files.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::layout::{CDS, LDS, Layout, endpoints_file, secret_file};
use super::options::ProxyOptions;
use super::{clusters, listeners, secrets};
use crate::base::{Fault, Root};
use crate::config::value::ServiceName;
use crate::plan::{Credentials, MeshView, ServicePlan};

/// Listeners, clusters and endpoints of one sidecar.
#[derive(Debug, Clone, PartialEq)]
pub struct Resources {
    /// Listeners.
    pub listeners: Vec<Value>,
    /// Clusters.
    pub clusters: Vec<Value>,
    /// Endpoints of each cluster of a service.
    pub endpoints: BTreeMap<ServiceName, Value>,
}

/// Renders what the sidecar of `service` shall do, as it would run below `root`.
///
/// Listeners do not change when certificates rotate or endpoints move, but for the chains of
/// instances that can be dialled directly: those match the instances' own addresses.
///
/// # Errors
/// `ENM-E010`: a value in `proxy.config` does not fit.
pub fn resources(service: &ServicePlan, mesh: &MeshView, root: &Root) -> Result<Resources, Fault> {
    let layout = Layout::new(service, root);
    let options = ProxyOptions::read(&service.sidecar.config)?;
    Ok(Resources {
        listeners: listeners::listeners(service, mesh, &layout, &options),
        clusters: clusters::clusters(service, mesh, &layout, &options),
        endpoints: clusters::endpoints(service, mesh),
    })
}

/// The files that a sidecar reads while it runs, by their path below its folder.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct FileSet {
    files: BTreeMap<String, Vec<u8>>,
}

impl std::fmt::Debug for FileSet {
    /// Without the contents: there are keys among them, and debug output ends up in logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.files.keys()).finish()
    }
}

impl FileSet {
    /// The files of `resources`; with the certificates, if given.
    pub fn new(resources: &Resources, credentials: Option<&Credentials>) -> Self {
        let mut set = FileSet::default();
        set.insert(LDS, &resources.listeners);
        set.insert(CDS, &resources.clusters);
        for (name, assignment) in &resources.endpoints {
            set.insert(&endpoints_file(name), std::slice::from_ref(assignment));
        }
        for (name, secret) in credentials.map(secrets::secrets).unwrap_or_default() {
            set.insert(&secret_file(name), &[secret]);
        }
        set
    }

    /// Contents by path.
    pub fn files(&self) -> &BTreeMap<String, Vec<u8>> {
        &self.files
    }

    /// One file.
    pub fn get(&self, path: &str) -> Option<&[u8]> {
        self.files.get(path).map(Vec::as_slice)
    }

    pub(super) fn insert(&mut self, path: &str, resources: &[Value]) {
        self.insert_bytes(path, document(resources));
    }

    pub(super) fn insert_bytes(&mut self, path: &str, bytes: Vec<u8>) {
        self.files.insert(path.to_owned(), bytes);
    }
}

/// A list of resources as Envoy reads it from a file. The version is a hash of the resources, so
/// that Envoy's own metrics (`…version_text`) tell which bytes it runs.
fn document(resources: &[Value]) -> Vec<u8> {
    let version: String =
        Sha256::digest(text(&json!(resources))).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let mut text = text(&json!({"version_info": version, "resources": resources}));
    text.push('\n');
    text.into_bytes()
}

/// The version that a document carries.
pub(super) fn version_of(document: &[u8]) -> Option<String> {
    let document: Value = serde_json::from_slice(document).ok()?;
    document.get("version_info")?.as_str().map(str::to_owned)
}

/// The resources that a document carries.
pub(super) fn resources_of(document: &[u8]) -> Vec<Value> {
    let document: Option<Value> = serde_json::from_slice(document).ok();
    document.as_ref().and_then(|d| d.get("resources")?.as_array().cloned()).unwrap_or_default()
}

fn text(value: &Value) -> String {
    // Every `Value` has a text, and the alternate form is the indented one.
    format!("{value:#}")
}

/// One document without subscriptions that means the same as `bootstrap` and `set` together.
/// `envoy --mode validate` does not look into subscribed files, so this is what it is shown.
pub fn validate_document(bootstrap: &Value, set: &FileSet) -> Value {
    let mut document = bootstrap.clone();
    let mut clusters = Vec::new();
    let mut assignments = BTreeMap::new();
    let mut listeners = Vec::new();
    let mut secrets = Vec::new();
    for (path, bytes) in set.files() {
        let resources = resources_of(bytes).into_iter().map(without_type);
        match path.split('/').next() {
            Some(LDS) => listeners.extend(resources),
            Some(CDS) => clusters.extend(resources),
            Some(super::layout::EDS) => assignments
                .extend(resources.filter_map(|r| Some((r.get("cluster_name")?.as_str()?.to_owned(), r)))),
            _ => secrets.extend(resources),
        }
    }
    for cluster in &mut clusters {
        make_static(cluster, &mut assignments);
    }
    let mut fixed = json!({"listeners": listeners, "clusters": clusters});
    without_key(&mut fixed, "sds_config");
    if let (Some(document), Some(fixed)) = (document.as_object_mut(), fixed.as_object_mut()) {
        fixed.insert("secrets".to_owned(), secrets.into());
        document.remove("dynamic_resources");
        document.insert("static_resources".to_owned(), Value::Object(fixed.clone()));
    }
    document
}

/// Outside of a list of resources, the type of a message is known from where it stands.
fn without_type(mut resource: Value) -> Value {
    if let Some(fields) = resource.as_object_mut() {
        fields.remove("@type");
    }
    resource
}

/// Gives a cluster with subscribed endpoints those endpoints.
fn make_static(cluster: &mut Value, assignments: &mut BTreeMap<String, Value>) {
    let Some(fields) = cluster.as_object_mut() else { return };
    if fields.remove("eds_cluster_config").is_none() {
        return;
    }
    let name = fields.get("name").and_then(Value::as_str).unwrap_or_default();
    let assignment = assignments.remove(name).unwrap_or_else(|| json!({"cluster_name": name}));
    fields.insert("type".to_owned(), json!("STATIC"));
    fields.insert("load_assignment".to_owned(), assignment);
}

fn without_key(value: &mut Value, key: &str) {
    match value {
        Value::Object(fields) => {
            fields.remove(key);
            fields.values_mut().for_each(|field| without_key(field, key));
        }
        Value::Array(items) => items.iter_mut().for_each(|item| without_key(item, key)),
        _ => {}
    }
}
