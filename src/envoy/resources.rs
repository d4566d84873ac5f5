//! Everything Envoy reads while it runs, as documents and as files.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::layout::{CDS, LDS, Layout, secret_file};
use super::options::ProxyOptions;
use super::{Secrets, clusters, listeners};
use crate::base::{Fault, Root};
use crate::plan::{MeshView, ServicePlan};

/// Listeners and clusters of one sidecar.
#[derive(Debug, Clone, PartialEq)]
pub struct Resources {
    /// Listeners.
    pub listeners: Vec<Value>,
    /// Clusters, with their endpoints.
    pub clusters: Vec<Value>,
}

/// Renders what the sidecar of `service` shall do, as it would run below `root`.
///
/// Listeners do not change when certificates rotate or endpoints move, but for instances that can
/// be dialled directly: a listener knows those by their own addresses. Its chains stay even then,
/// and no connection is drained.
///
/// # Errors
/// `ENM-E010`: a value in `proxy.config` does not fit.
pub fn resources(service: &ServicePlan, mesh: &MeshView, root: &Root) -> Result<Resources, Fault> {
    let layout = Layout::new(service, root);
    let options = ProxyOptions::read(&service.sidecar.config)?;
    Ok(Resources {
        listeners: listeners::listeners(service, mesh, &layout, &options),
        clusters: clusters::clusters(service, mesh, &layout, &options),
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
    /// The files of `resources` and `secrets`.
    pub fn new<'a>(resources: &Resources, secrets: impl Into<Secrets<'a>>) -> Self {
        let mut set = FileSet::of_secrets(secrets.into());
        set.insert(LDS, &resources.listeners);
        set.insert(CDS, &resources.clusters);
        set
    }

    /// Those of `secrets` alone: all that there is where Consul tells the sidecar the rest.
    pub fn of_secrets(secrets: Secrets<'_>) -> Self {
        let mut set = FileSet::default();
        for (name, secret) in secrets.documents() {
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
    let already =
        |key: &str| bootstrap.pointer(&format!("/static_resources/{key}")).and_then(Value::as_array);
    let mut clusters = already("clusters").cloned().unwrap_or_default();
    let mut listeners = already("listeners").cloned().unwrap_or_default();
    let mut secrets = Vec::new();
    for (path, bytes) in set.files() {
        let kind = match path.as_str() {
            LDS => &mut listeners,
            CDS => &mut clusters,
            _ => &mut secrets,
        };
        kind.extend(resources_of(bytes).into_iter().map(without_type));
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
