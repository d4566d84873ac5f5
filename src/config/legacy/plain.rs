//! Plain fields of a Consul service definition, passed on as they are.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{Notes, port, service};
use crate::config::error::{Problem, nearest};
use crate::config::node::{Item, Node};
use crate::config::value::{AddressSpec, Port, ServiceId, ServiceName, ValueError};
use crate::config::{Legacy, LegacyForm, ServiceConfig};

/// The fields of a service definition file (Consul's documentation, "services configuration
/// reference"). Others are passed on with a warning, since Consul gains some with every release.
const FIELDS: [&str; 20] = [
    "name",
    "id",
    "port",
    "ports",
    "address",
    "socket_path",
    "tags",
    "meta",
    "weights",
    "enable_tag_override",
    "token",
    "locality",
    "tagged_addresses",
    "check",
    "checks",
    "connect",
    "kind",
    "proxy",
    "namespace",
    "partition",
];

/// Reads the service, as far as it can be; what cannot goes into `notes`.
pub(super) fn read(root: &Node, notes: &mut Notes) -> Option<ServiceConfig> {
    let Some(table) = root.table() else {
        notes.error(Problem::LegacyForm { why: "the file is not an object" }, &root.at);
        return None;
    };
    if root.get("name").is_none() && root.get("service").is_some_and(|inner| inner.table().is_some()) {
        let why = "the file holds a whole definition; the fields stand here without the outer `service`";
        notes.error(Problem::LegacyForm { why }, &root.spot(&[]));
        return None;
    }
    for (key, entry) in table.iter().filter(|(key, _)| !FIELDS.contains(&key.as_str())) {
        let short = key.chars().take(100).collect();
        notes.warn(Problem::PassedOn { key: short, nearest: nearest(key, FIELDS) }, &entry.key);
    }
    if let Some(entry) = table.get("connect") {
        notes.warn(Problem::ConnectReplaced, &entry.key);
    }

    let mut plain = Plain { root, notes };
    let name: Option<ServiceName> = plain.parsed("name");
    if name.is_none() && root.get("name").is_none() {
        plain.notes.missing_name = Some("name");
    }
    let id: Option<ServiceId> = plain.parsed("id");
    let port = plain.port();
    let tags = plain.texts("tags");
    let meta = plain.meta();
    let address = plain.address();

    let legacy = Legacy { form: LegacyForm::Plain, virtual_ip: None, fields: plain.fields(port) };
    let checks = super::checks::checks(root);
    Some(ServiceConfig { id, port, tags, meta, address, checks, ..service(name?, legacy) })
}

struct Plain<'a> {
    root: &'a Node,
    notes: &'a mut Notes,
}

impl<'a> Plain<'a> {
    /// The field, unless it is absent, `null` or empty, which Consul takes for the same.
    fn field(&self, key: &str) -> Option<&'a Node> {
        let empty = |node: &Node| matches!(node.item, Item::Null) || node.text() == Some("");
        self.root.get(key).filter(|node| !empty(node) || key == "name")
    }

    fn wrong(&mut self, path: &str, why: impl ToString, node: &Node) {
        self.notes.error(Problem::Value { path: path.to_owned(), why: why.to_string() }, &node.at);
    }

    fn text(&mut self, path: &str, node: &'a Node) -> Option<&'a str> {
        let text = node.text();
        if text.is_none() {
            self.wrong(path, format!("expected text, found {}", node.kind()), node);
        }
        text
    }

    fn parsed<T: std::str::FromStr<Err = ValueError>>(&mut self, key: &str) -> Option<T> {
        let node = self.field(key)?;
        self.text(key, node)?.parse().map_err(|why| self.wrong(key, why, node)).ok()
    }

    /// Consul takes 0 for no port.
    fn port(&mut self) -> Option<Port> {
        let node = self.field("port")?;
        if matches!(&node.item, Item::Number(number) if number.as_i64() == Some(0)) {
            return None;
        }
        let port = port(node).map_err(|why| self.wrong("port", why, node)).ok()?;
        if node.text().is_some() {
            let problem = Problem::TextValue { key: "port".to_owned(), meaning: port.to_string() };
            self.notes.warn(problem, &node.at);
        }
        Some(port)
    }

    fn texts(&mut self, key: &str) -> Vec<String> {
        let Some(node) = self.field(key) else { return Vec::new() };
        let Item::List(list) = &node.item else {
            self.wrong(key, format!("expected a list, found {}", node.kind()), node);
            return Vec::new();
        };
        let texts = list.iter().enumerate().filter_map(|(i, item)| self.text(&format!("{key}[{i}]"), item));
        texts.map(str::to_owned).collect()
    }

    fn meta(&mut self) -> BTreeMap<String, String> {
        let Some(node) = self.field("meta") else { return BTreeMap::new() };
        let Some(table) = node.table() else {
            self.wrong("meta", format!("expected an object, found {}", node.kind()), node);
            return BTreeMap::new();
        };
        let pairs = table.iter().filter_map(|(key, entry)| {
            let text = self.text(&format!("meta.{key}"), &entry.node)?;
            Some((key.clone(), text.to_owned()))
        });
        pairs.collect()
    }

    /// Consul takes host names as well; those only go into the registration.
    fn address(&mut self) -> AddressSpec {
        let Some(node) = self.field("address") else { return AddressSpec::Auto };
        let Some(text) = self.text("address", node) else { return AddressSpec::Auto };
        if text.parse::<std::net::IpAddr>().is_err() {
            let why = "it is a host name, which goes to Consul and nowhere else";
            self.notes.warn(Problem::NoEffect { key: "address".to_owned(), why }, &node.at);
            return AddressSpec::Auto;
        }
        text.parse().map_err(|why| self.wrong("address", why, node)).unwrap_or_default()
    }

    /// Everything but `connect`, in Consul's own types.
    fn fields(&self, port: Option<Port>) -> Map<String, Value> {
        let Value::Object(mut fields) = self.root.to_json() else { return Map::new() };
        fields.retain(|key, value| key != "connect" && !value.is_null());
        if let Some(port) = port {
            fields.insert("port".to_owned(), port.get().into());
        }
        fields
    }
}
