//! What Consul would refuse, found before it is asked; and what it takes and then chokes on: 1.8
//! answers a duplicate upstream with 200 and never gets the service to its servers.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::{Map, Value};

use crate::consul::ConsulError;

/// Consul's limits of metadata: pairs, bytes of a key, bytes of a value.
const META: (usize, usize, usize) = (64, 128, 512);

/// Everything that is wrong with `service`, which is in the form of the HTTP API.
pub(super) fn problems(id: &str, service: &Value) -> Vec<ConsulError> {
    let mut found = Found { id, problems: Vec::new() };
    let sidecar = service.pointer("/Connect/SidecarService");
    found.common(service);
    if text(service, "Name").is_empty() {
        found.say("it has no name".to_owned());
    }
    if let Some(sidecar) = sidecar {
        found.sidecar(service, sidecar);
        found.proxy(sidecar);
    }
    if text(service, "Kind") == "connect-proxy" {
        let destination = service.pointer("/Proxy/DestinationServiceName").and_then(Value::as_str);
        if matches!(destination, None | Some("" | "*")) {
            found.say("a proxy needs the name of one service that it is for".to_owned());
        }
        found.proxy(service);
    }
    found.problems
}

struct Found<'a> {
    id: &'a str,
    problems: Vec<ConsulError>,
}

impl Found<'_> {
    fn say(&mut self, why: String) {
        self.problems.push(ConsulError::Invalid { service: self.id.to_owned(), why });
    }

    /// What holds for services and sidecars alike.
    fn common(&mut self, service: &Value) {
        if text(service, "Address").parse::<IpAddr>().is_ok_and(|address| address.is_unspecified()) {
            self.say(format!("others cannot dial the address {}", text(service, "Address")));
        }
        if let Some(Value::Object(meta)) = service.get("Meta") {
            self.meta(meta);
        }
        if let Some(weights) = service.get("Weights") {
            let weight = |key| weights.get(key).map(|value| value.as_i64().unwrap_or(-1));
            if weight("Passing").is_some_and(|passing| passing < 1)
                || weight("Warning").is_some_and(|it| it < 0)
            {
                self.say("weights are 1 or more while passing, 0 or more while warning".to_owned());
            }
        }
    }

    fn meta(&mut self, meta: &Map<String, Value>) {
        let (pairs, key_length, value_length) = META;
        if meta.len() > pairs {
            self.say(format!("it has more than {pairs} pairs of metadata, with the one that enmesh adds"));
        }
        for (key, value) in meta {
            let fine = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
            if key.is_empty() || key.len() > key_length || !key.chars().all(fine) {
                self.say(format!(
                    "{key:?} is no key of metadata: 1 to {key_length} letters, digits, `-` and `_`"
                ));
            }
            if key.starts_with("consul-") {
                self.say(format!("the key {key:?} of metadata is Consul's own"));
            }
            if value.as_str().is_none_or(|text| text.len() > value_length) {
                self.say(format!("the metadata of {key:?} is not a text of at most {value_length} bytes"));
            }
        }
    }

    fn sidecar(&mut self, service: &Value, sidecar: &Value) {
        self.common(sidecar);
        if service.pointer("/Connect/Native") == Some(&Value::Bool(true)) {
            self.say("a service that speaks mutual TLS itself has no sidecar".to_owned());
        }
        if sidecar.get("ID").is_some() {
            self.say("the id of the sidecar is Consul's to choose".to_owned());
        }
        if sidecar.pointer("/Connect/SidecarService").is_some() {
            self.say("a sidecar has no sidecar".to_owned());
        }
        let port = |value: &Value| value.get("Port").and_then(Value::as_u64).filter(|port| *port != 0);
        let address = |value: &Value| text(value, "Address").to_owned();
        let same_address = address(sidecar).is_empty() || address(sidecar) == address(service);
        if same_address && port(service).is_some() && port(service) == port(sidecar) {
            self.say("the service and its sidecar have the same port".to_owned());
        }
    }

    fn proxy(&mut self, service: &Value) {
        let list = |path: &str| {
            service.pointer(path).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
        };
        let mut destinations = BTreeSet::new();
        let mut bound = BTreeSet::new();
        for upstream in list("/Proxy/Upstreams") {
            self.upstream(upstream, &mut destinations, &mut bound);
        }
        let (mut paths, mut listeners) = (BTreeSet::new(), BTreeSet::new());
        for exposed in list("/Proxy/Expose/Paths") {
            self.exposed(exposed, &mut paths, &mut listeners);
        }
    }

    fn upstream(
        &mut self,
        upstream: &Value,
        destinations: &mut BTreeSet<[String; 6]>,
        bound: &mut BTreeSet<String>,
    ) {
        let name = text(upstream, "DestinationName");
        if name.is_empty() || name == "*" {
            self.say("an upstream needs the name of one destination".to_owned());
        }
        let kind =
            Some(text(upstream, "DestinationType")).filter(|kind| !kind.is_empty()).unwrap_or("service");
        let scope = ["DestinationNamespace", "DestinationPartition", "DestinationPeer", "Datacenter"];
        let [namespace, partition, peer, datacenter] = scope.map(|key| text(upstream, key).to_owned());
        if !peer.is_empty() && !datacenter.is_empty() {
            self.say(format!("the upstream {name:?} has a peer and a datacenter; it is one of the two"));
        }
        if !destinations.insert([kind.to_owned(), name.to_owned(), namespace, partition, peer, datacenter]) {
            self.say(format!("the upstream {name:?} stands there twice"));
        }
        let port = upstream.get("LocalBindPort").and_then(Value::as_u64).unwrap_or(0);
        let socket = text(upstream, "LocalBindSocketPath");
        let place = match (port, socket) {
            (1..=65535, "") => {
                let address = Some(text(upstream, "LocalBindAddress")).filter(|it| !it.is_empty());
                format!("{}:{port}", address.unwrap_or("127.0.0.1"))
            }
            (0, path) if !path.is_empty() => path.to_owned(),
            _ => return self.say(format!("the upstream {name:?} needs either a local port or a socket")),
        };
        if !bound.insert(place.clone()) {
            self.say(format!("two upstreams listen on {place}"));
        }
    }

    fn exposed(&mut self, exposed: &Value, paths: &mut BTreeSet<String>, listeners: &mut BTreeSet<u64>) {
        let path = text(exposed, "Path");
        if !path.starts_with('/') || !paths.insert(path.to_owned()) {
            self.say(format!("the exposed path {path:?} is none, or stands there twice"));
        }
        let port = |key| exposed.get(key).and_then(Value::as_u64).filter(|port| (1..=65535).contains(port));
        match (port("LocalPathPort"), port("ListenerPort")) {
            (Some(_), Some(listener)) if listeners.insert(listener) => {}
            _ => self.say(format!("the exposed path {path:?} needs two ports, the listener's its own")),
        }
        if !["", "http", "http2"].contains(&text(exposed, "Protocol")) {
            self.say(format!("the protocol of the exposed path {path:?} is neither http nor http2"));
        }
    }
}

fn text<'v>(value: &'v Value, key: &str) -> &'v str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn good() -> Value {
        json!({
            "Name": "api", "ID": "api", "Port": 80, "Address": "10.0.0.1", "Meta": { "team": "core" },
            "Weights": { "Passing": 1, "Warning": 0 },
            "Connect": { "SidecarService": { "Port": 21000, "Proxy": {
                "Upstreams": [
                    { "DestinationName": "db", "LocalBindPort": 5432 },
                    { "DestinationName": "db", "Datacenter": "dc2", "LocalBindPort": 5433 },
                    { "DestinationName": "web", "LocalBindSocketPath": "/run/web.sock" },
                ],
                "Expose": { "Paths": [{ "Path": "/health", "LocalPathPort": 80, "ListenerPort": 21500 }] },
            } } },
        })
    }

    #[test]
    fn a_good_one_has_no_problems() {
        assert!(problems("api", &good()).is_empty());
    }

    #[test]
    fn each_rule_bites() {
        let long = "x".repeat(513);
        let many: Map<String, Value> = (0..65).map(|n| (format!("k{n}"), json!("v"))).collect();
        let proxy = "/Connect/SidecarService/Proxy";
        let cases = [
            ("", "Name", json!("")),
            ("", "Address", json!("0.0.0.0")),
            ("", "Address", json!("::")),
            ("", "Meta", json!({ "a b": "v" })),
            ("", "Meta", json!({ "consul-x": "v" })),
            ("", "Meta", json!({ "k": long })),
            ("", "Meta", json!({ "k": 1 })),
            ("", "Meta", Value::Object(many)),
            ("", "Weights", json!({ "Passing": 0 })),
            ("", "Port", json!(21000)),
            ("/Connect", "Native", json!(true)),
            ("/Connect/SidecarService", "ID", json!("x")),
            ("/Connect/SidecarService", "Connect", json!({ "SidecarService": {} })),
            ("/Connect/SidecarService", "Address", json!("0.0.0.0")),
            (proxy, "Upstreams", json!([{ "DestinationName": "*", "LocalBindPort": 1 }])),
            (proxy, "Upstreams", json!([{ "DestinationName": "a" }])),
            (
                proxy,
                "Upstreams",
                json!([{ "DestinationName": "a", "LocalBindPort": 1, "LocalBindSocketPath": "/s" }]),
            ),
            (
                proxy,
                "Upstreams",
                json!([{ "DestinationName": "a", "LocalBindPort": 1 }, { "DestinationName": "a", "LocalBindPort": 2 }]),
            ),
            (
                proxy,
                "Upstreams",
                json!([
                    { "DestinationName": "a", "LocalBindPort": 1 },
                    { "DestinationName": "b", "LocalBindPort": 1, "LocalBindAddress": "127.0.0.1" },
                ]),
            ),
            (
                proxy,
                "Upstreams",
                json!([{ "DestinationName": "a", "LocalBindPort": 1, "DestinationPeer": "p", "Datacenter": "d" }]),
            ),
            (proxy, "Expose", json!({ "Paths": [{ "Path": "h", "LocalPathPort": 1, "ListenerPort": 2 }] })),
            (proxy, "Expose", json!({ "Paths": [{ "Path": "/h", "LocalPathPort": 1 }] })),
            (
                proxy,
                "Expose",
                json!({ "Paths": [{ "Path": "/h", "LocalPathPort": 1, "ListenerPort": 2, "Protocol": "tcp" }] }),
            ),
        ];
        for (path, key, value) in cases {
            let mut service = good();
            service.pointer_mut(path).unwrap()[key] = value.clone();
            assert_eq!(problems("api", &service).len(), 1, "{path}/{key} = {value}");
        }
    }

    #[test]
    fn an_explicit_proxy_names_its_service() {
        let proxy =
            json!({ "Name": "p", "Kind": "connect-proxy", "Proxy": { "DestinationServiceName": "*" } });
        assert_eq!(problems("p", &proxy).len(), 1);
    }
}
