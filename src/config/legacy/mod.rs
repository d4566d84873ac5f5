//! `/srv/consul/service-config.json`: two forms under one path, told apart by the key `annotations`.
//!
//! Both are read with the meaning they have in the field, with three corrections: port 22 and the
//! clouds' metadata are never captured, mode and rules cannot disagree, and text that says `false`
//! is false. A value that cannot be read is an error and never dropped.

mod annotations;
mod checks;
mod plain;

pub(super) use annotations::upstream;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::error::{ConfigError, Findings, Problem};
use super::node::{At, Item, Node, Step};
use super::value::{AddressSpec, Port, PortSpec, ServiceId, ServiceName, ValueError};
use super::{Bypass, Capture, Inbound, Legacy, Mode, ProxyConfig, ServiceConfig};

/// What came of a legacy file.
pub(super) struct Reading {
    /// The service, unless there are errors.
    pub service: Option<ServiceConfig>,
    /// Whose file it is, as far as that can be read.
    pub owner: Option<String>,
    pub errors: Vec<ConfigError>,
    pub warnings: Vec<ConfigError>,
}

/// Reads a legacy file of either form.
pub(super) fn read(root: &Node, path: &Path) -> Reading {
    let mut notes = Notes::default();
    let (service, owner) = match root.get("annotations") {
        Some(annotations) => {
            (annotations::read(root, annotations, &mut notes), annotations::owner(annotations))
        }
        None => (plain::read(root, &mut notes), super::parse::service_of(root)),
    };
    let service = service.filter(|_| notes.errors.is_empty());
    let file = root.at.file();
    let mut errors = notes.errors.into_errors(file.clone());
    if let Some(key) = notes.missing_name {
        let problem = Problem::Missing { key: key.to_owned() };
        errors.insert(0, ConfigError { problem, place: file.clone() });
    }
    Reading {
        service: service.map(|service| ServiceConfig { source: path.to_owned(), ..service }),
        owner,
        errors,
        warnings: notes.warnings.into_errors(file),
    }
}

/// Where what stands at `steps` in the native form stands in this file.
pub(super) fn spot(root: &Node, steps: &[Step<'_>]) -> At {
    match root.get("annotations") {
        Some(annotations) => annotations::spot(annotations, steps),
        None => root.spot(steps),
    }
}

/// What is said about the file.
#[derive(Default)]
struct Notes {
    errors: Findings,
    warnings: Findings,
    /// The key of the service's name is missing, and no other key is near its place.
    missing_name: Option<&'static str>,
}

impl Notes {
    fn error(&mut self, problem: Problem, at: &At) {
        self.errors.add(problem, at);
    }

    fn warn(&mut self, problem: Problem, at: &At) {
        self.warnings.add(problem, at);
    }
}

/// A service as every legacy file means it: everybody's outbound, every inbound port but 22.
fn service(name: ServiceName, legacy: Legacy) -> ServiceConfig {
    ServiceConfig {
        name,
        id: None,
        port: None,
        address: AddressSpec::Auto,
        tags: Vec::new(),
        meta: BTreeMap::new(),
        weights: None,
        locality: None,
        namespace: None,
        partition: None,
        datacenter: None,
        enabled: true,
        capture: Capture { inbound: Inbound::All, mode: Mode::Transparent, ..Capture::default() },
        checks: Vec::new(),
        upstreams: Vec::new(),
        proxy: ProxyConfig::default(),
        legacy: Some(legacy),
        source: PathBuf::new(),
    }
}

/// Adds to the inbound ports that are left alone; the default, 22, stays among them.
fn leave_inbound(bypass: &mut Bypass, ports: Vec<PortSpec>) {
    for port in ports {
        if !bypass.inbound_ports.contains(&port) {
            bypass.inbound_ports.push(port);
        }
    }
}

/// A number, or text that holds one, as a port.
fn port(node: &Node) -> Result<Port, String> {
    match &node.item {
        Item::Number(number) => match number.as_i64() {
            Some(number) => Port::try_from(number).map_err(|e| e.to_string()),
            None => Err(format!("{number} is not a port: a number from 1 to 65535")),
        },
        Item::Text(text) => text.trim().parse().map_err(|e: ValueError| e.to_string()),
        _ => Err(format!("expected a port, found {}", node.kind())),
    }
}

/// An id, where `text` can be one.
fn as_id(text: &str) -> Option<String> {
    text.trim().parse::<ServiceId>().ok().map(|id| id.to_string())
}
