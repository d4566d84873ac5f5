//! `{"annotations": {…}}`, the form that mirrors Consul on Kubernetes.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::str::FromStr;

use serde_json::Map;

use super::{Notes, as_id, leave_inbound, port, service};
use crate::config::error::{Problem, nearest};
use crate::config::node::{At, Entry, Item, Node, Step, Table};
use crate::config::value::{PortSpec, ServiceName, ValueError};
use crate::config::{Legacy, LegacyForm, Mode, ServiceConfig, Upstream};

/// What stands before most annotations.
const PREFIX: &str = "consul.hashicorp.com/";
const NAME: &str = "consul.hashicorp.com/connect-service";
const PORT: &str = "consul.hashicorp.com/connect-service-port";
const UPSTREAMS: &str = "consul.hashicorp.com/connect-service-upstreams";
const TAGS: &str = "consul.hashicorp.com/service-tags";
const META: &str = "consul.hashicorp.com/service-meta-";
const TRANSPARENT: &str = "consul.hashicorp.com/transparent-proxy";
const NOT_INBOUND_PORTS: &str = "consul.hashicorp.com/transparent-proxy-exclude-inbound-ports";
const NOT_OUTBOUND_PORTS: &str = "consul.hashicorp.com/transparent-proxy-exclude-outbound-ports";
const NOT_OUTBOUND_CIDRS: &str = "consul.hashicorp.com/transparent-proxy-exclude-outbound-cidrs";
const NOT_UIDS: &str = "consul.hashicorp.com/transparent-proxy-exclude-uids";
/// The one that is spelt with another prefix in the field.
const VIRTUAL_IP: &str = "alpha.consul.hashicorp.com/virtual-ip";
const SCRAPE_PATH: &str = "consul.hashicorp.com/prometheus-scrape-path";
const ENVOY_ARGUMENTS: &str = "consul.hashicorp.com/envoy-extra-args";

const KNOWN: [&str; 12] = [
    NAME,
    PORT,
    UPSTREAMS,
    TAGS,
    TRANSPARENT,
    NOT_INBOUND_PORTS,
    NOT_OUTBOUND_PORTS,
    NOT_OUTBOUND_CIDRS,
    NOT_UIDS,
    VIRTUAL_IP,
    SCRAPE_PATH,
    ENVOY_ARGUMENTS,
];

/// The service's name, where it can be read.
pub(super) fn owner(annotations: &Node) -> Option<String> {
    annotations.get(NAME).and_then(Node::text).and_then(as_id)
}

/// Where what stands at `steps` in the native form stands among the annotations.
pub(super) fn spot(annotations: &Node, steps: &[Step<'_>]) -> At {
    let meta;
    let key = match steps {
        [Step::Key("name" | "id"), ..] => NAME,
        [Step::Key("port"), ..] => PORT,
        [Step::Key("tags"), ..] => TAGS,
        [Step::Key("upstream"), ..] => UPSTREAMS,
        [Step::Key("meta"), Step::Key(key), ..] => {
            meta = format!("{META}{key}");
            &meta
        }
        _ => NAME,
    };
    annotations.spot(&[Step::Key(key)])
}

/// Reads the service, as far as it can be; what cannot goes into `notes`.
pub(super) fn read(root: &Node, annotations: &Node, notes: &mut Notes) -> Option<ServiceConfig> {
    let Some(table) = annotations.table() else {
        notes.error(Problem::LegacyForm { why: "`annotations` is not an object" }, &annotations.at);
        return None;
    };
    for (key, entry) in root.table().into_iter().flatten().filter(|(key, _)| *key != "annotations") {
        notes.warn(Problem::Ignored { key: key.clone(), nearest: None }, &entry.key);
    }
    unknown(table, notes);

    let mut annotations = Annotations { table, notes };
    let name = annotations.name();
    let port = annotations.one(PORT, port);
    let tags = annotations.csv(TAGS, |text| Ok::<_, ValueError>(text.to_owned()));
    let meta = annotations.meta();
    let upstreams = annotations.upstreams();
    let mode = annotations.mode();
    let inbound_ports = annotations.ports(NOT_INBOUND_PORTS);
    let outbound_ports = annotations.ports(NOT_OUTBOUND_PORTS);
    let outbound_cidrs = annotations.csv(NOT_OUTBOUND_CIDRS, str::parse);
    let uids = annotations.csv(NOT_UIDS, str::parse);
    let virtual_ip = annotations.virtual_ip(mode, port.is_some());

    let legacy = Legacy { form: LegacyForm::Annotations, virtual_ip, fields: Map::new() };
    let mut service = ServiceConfig { port, tags, meta, upstreams, ..service(name?, legacy) };
    service.capture.mode = mode;
    service.capture.bypass.uids = uids;
    service.capture.bypass.outbound_ports = outbound_ports;
    service.capture.bypass.outbound_cidrs = outbound_cidrs;
    leave_inbound(&mut service.capture.bypass, inbound_ports);
    Some(service)
}

/// Says which annotations nobody reads.
fn unknown(table: &Table, notes: &mut Notes) {
    for (key, Entry { key: at, .. }) in table {
        let is_meta = key.strip_prefix(META).is_some_and(|rest| !rest.is_empty());
        if key == SCRAPE_PATH || key == ENVOY_ARGUMENTS {
            let why = "the scripts that this form comes from did not use it either";
            notes.warn(Problem::NoEffect { key: key.clone(), why }, at);
        } else if !is_meta && !KNOWN.contains(&key.as_str()) {
            // Compared without the prefix, which every candidate shares and most slips do, too.
            let bare = key.rsplit_once('/').map_or(key.as_str(), |(_, bare)| bare);
            let known = KNOWN.iter().filter_map(|known| known.split_once('/'));
            let nearest = nearest(bare, known.map(|(_, bare)| bare))
                .and_then(|near| KNOWN.into_iter().find(|known| known.ends_with(&format!("/{near}"))));
            notes.warn(Problem::Ignored { key: shown(key), nearest: nearest.map(str::to_owned) }, at);
        }
    }
}

/// A key as a sentence can bear it.
fn shown(key: &str) -> String {
    key.chars().take(100).collect()
}

struct Annotations<'a> {
    table: &'a Table,
    notes: &'a mut Notes,
}

impl Annotations<'_> {
    fn wrong(&mut self, key: &str, why: impl ToString, at: &At) {
        let short = key.strip_prefix(PREFIX).unwrap_or(key).to_owned();
        self.notes.error(Problem::Annotation { key: short, why: why.to_string() }, at);
    }

    /// The value of `key`. `null` and empty text mean what an absent annotation means.
    fn value(&self, key: &str) -> Option<Node> {
        let node = &self.table.get(key)?.node;
        let empty = matches!(node.item, Item::Null) || node.text().is_some_and(|text| text.trim().is_empty());
        (!empty).then(|| node.clone())
    }

    fn one<T>(&mut self, key: &str, read: impl Fn(&Node) -> Result<T, String>) -> Option<T> {
        let node = self.value(key)?;
        read(&node).map_err(|why| self.wrong(key, why, &node.at)).ok()
    }

    fn name(&mut self) -> Option<ServiceName> {
        let Some(node) = self.value(NAME) else {
            self.notes.missing_name = Some(NAME);
            return None;
        };
        self.one(NAME, |_| match node.text() {
            Some(text) => text.trim().parse().map_err(|e: ValueError| e.to_string()),
            None => Err(format!("expected text, found {}", node.kind())),
        })
    }

    /// The items of a list with commas: text, or one number.
    fn items(&mut self, key: &str) -> Vec<(String, At)> {
        let Some(node) = self.value(key) else { return Vec::new() };
        match &node.item {
            Item::Number(number) => vec![(number.to_string(), node.at)],
            Item::Text(text) => {
                let items: Vec<&str> = text.split(',').map(str::trim).collect();
                if items.contains(&"") {
                    self.wrong(key, "an item between two commas is empty", &node.at);
                }
                items
                    .into_iter()
                    .filter(|item| !item.is_empty())
                    .map(|item| (item.to_owned(), node.at.clone()))
                    .collect()
            }
            _ => {
                let why = format!("expected text with commas, found {}", node.kind());
                self.wrong(key, why, &node.at);
                Vec::new()
            }
        }
    }

    fn csv<T, E: ToString>(&mut self, key: &str, read: impl Fn(&str) -> Result<T, E>) -> Vec<T> {
        let mut values = Vec::new();
        for (item, at) in self.items(key) {
            match read(&item) {
                Ok(value) => values.push(value),
                Err(why) => self.wrong(key, why, &at),
            }
        }
        values
    }

    fn ports(&mut self, key: &str) -> Vec<PortSpec> {
        self.csv(key, PortSpec::from_str)
    }

    fn meta(&mut self) -> BTreeMap<String, String> {
        let mut meta = BTreeMap::new();
        let entries = self.table.iter().filter_map(|(key, entry)| Some((key.strip_prefix(META)?, entry)));
        for (name, Entry { node, .. }) in entries.filter(|(name, _)| !name.is_empty()) {
            match node.text() {
                Some(text) => drop(meta.insert(name.to_owned(), text.to_owned())),
                None => {
                    let why = format!("expected text, found {}; put it in quotes", node.kind());
                    self.wrong(&format!("{META}{}", shown(name)), why, &node.at);
                }
            }
        }
        meta
    }

    /// Absent means transparent: rules were installed then as well.
    fn mode(&mut self) -> Mode {
        let Some(Entry { node, .. }) = self.table.get(TRANSPARENT) else { return Mode::Transparent };
        let flag = match &node.item {
            Item::Bool(flag) => Some(*flag),
            Item::Text(text) => match text.trim().to_ascii_lowercase().as_str() {
                "true" => Some(true),
                "false" => Some(false),
                _ => None,
            },
            _ => None,
        };
        match (flag, node.text()) {
            (Some(flag), Some(_)) => {
                let problem = Problem::TextValue { key: TRANSPARENT.to_owned(), meaning: flag.to_string() };
                self.notes.warn(problem, &node.at);
            }
            (None, _) => self.wrong(TRANSPARENT, "it is true or false", &node.at),
            (Some(_), None) => {}
        }
        if flag == Some(false) { Mode::Direct } else { Mode::Transparent }
    }

    /// Consul knows the address only together with a port, and only transparent mode uses it.
    fn virtual_ip(&mut self, mode: Mode, has_port: bool) -> Option<IpAddr> {
        let address: IpAddr = self.one(VIRTUAL_IP, |node| {
            let text = node.text().unwrap_or_default().trim();
            text.parse::<IpAddr>()
                .ok()
                .filter(|ip| !ip.to_canonical().is_unspecified() && !ip.is_multicast() && !ip.is_loopback())
                .ok_or_else(|| format!("{text:?} is not an IP address that a service can have"))
        })?;
        if mode == Mode::Transparent && has_port {
            return Some(address);
        }
        let why = "it needs transparent mode and a connect-service-port";
        let at = self.table.get(VIRTUAL_IP).map(|entry| entry.key.clone())?;
        self.notes.warn(Problem::NoEffect { key: VIRTUAL_IP.to_owned(), why }, &at);
        None
    }

    fn upstreams(&mut self) -> Vec<Upstream> {
        let mut upstreams = Vec::new();
        for (item, at) in self.items(UPSTREAMS) {
            match upstream(&item) {
                Ok(upstream) => upstreams.push(upstream),
                Err(why) => {
                    let key = UPSTREAMS.to_owned();
                    self.notes
                        .error(Problem::AnnotationUpstream { key, why: format!("{item:?}: {why}") }, &at);
                }
            }
        }
        upstreams
    }
}

/// `NAME[.NAMESPACE]:PORT[:DATACENTER]` or `prepared_query:NAME:PORT`.
pub(in crate::config) fn upstream(item: &str) -> Result<Upstream, String> {
    let say = |error: ValueError| error.to_string();
    let parts: Vec<&str> = item.split(':').map(str::trim).collect();
    let (prepared_query, name, port, datacenter) = match parts.as_slice() {
        ["prepared_query", name, port] => (true, *name, *port, None),
        ["prepared_query", ..] => return Err("a prepared query has a name and a port".to_owned()),
        [name, port] => (false, *name, *port, None),
        [name, port, datacenter] => (false, *name, *port, Some(*datacenter)),
        [_] => return Err("the port is missing".to_owned()),
        _ => return Err("it has too many parts".to_owned()),
    };
    let (name, namespace) = match name.split_once('.') {
        Some((name, namespace)) if !prepared_query => (name, Some(namespace)),
        _ => (name, None),
    };
    Ok(Upstream {
        name: name.parse().map_err(say)?,
        local_port: port.parse().map_err(say)?,
        datacenter: datacenter.map(str::parse).transpose().map_err(say)?,
        peer: None,
        namespace: namespace.map(str::parse).transpose().map_err(say)?,
        partition: None,
        prepared_query,
    })
}
