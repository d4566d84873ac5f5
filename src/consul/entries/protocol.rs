//! Whether the protocols of an entry and of the services that it names fit, before it is written:
//! Consul's own refusal names neither the file nor what to do.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use super::entry::{get, list, text};
use super::{ConfigEntry, EntryError};
use crate::consul::{Client, ConsulError, Query, segment};

/// The protocol where none is said.
const TCP: &str = "tcp";

/// Whether requests can be told apart in `protocol`.
fn is_http(protocol: &str) -> bool {
    matches!(protocol, "http" | "http2" | "grpc")
}

/// The protocols of services, as they are once the folder is written.
pub(super) struct Protocols<'a> {
    client: &'a Client,
    /// What the folder says, by kind and name; an entry without a protocol says none.
    said: BTreeMap<(&'a str, &'a str), Option<&'a str>>,
    /// What Consul was asked.
    known: RefCell<BTreeMap<(String, String), Option<String>>>,
}

impl<'a> Protocols<'a> {
    pub fn new(client: &'a Client, entries: &'a [ConfigEntry]) -> Self {
        let said = entries
            .iter()
            .filter(|entry| ["service-defaults", "proxy-defaults"].contains(&entry.kind.as_str()))
            .map(|entry| ((entry.kind.as_str(), entry.name.as_str()), protocol_in(&entry.body)))
            .collect();
        Protocols { client, said, known: RefCell::default() }
    }

    /// Fails when `entry` does not fit.
    pub async fn check(&self, entry: &ConfigEntry) -> Result<Result<(), EntryError>, ConsulError> {
        let why = match entry.kind.as_str() {
            "service-router" | "service-splitter" => self.chain(entry).await?,
            "ingress-gateway" => self.ingress(entry).await?,
            "service-intentions" => self.intentions(entry).await?,
            _ => None,
        };
        let error = |why| EntryError::Protocol { place: entry.place(), label: entry.label(), why };
        Ok(why.map_or(Ok(()), |why| Err(error(why))))
    }

    /// Requests are told apart only in protocols that have some, and all that one goes to speak the
    /// same.
    async fn chain(&self, entry: &ConfigEntry) -> Result<Option<String>, ConsulError> {
        let own = self.of(&entry.name).await?;
        if !is_http(&own) {
            return Ok(Some(format!("{:?} speaks {own}, and it takes http, http2 or grpc", entry.name)));
        }
        for other in destinations(entry) {
            let protocol = self.of(other).await?;
            if protocol != own {
                return Ok(Some(format!("{:?} speaks {own}, and {other:?} speaks {protocol}", entry.name)));
            }
        }
        Ok(None)
    }

    /// A listener speaks what the services behind it speak.
    async fn ingress(&self, entry: &ConfigEntry) -> Result<Option<String>, ConsulError> {
        for listener in list(&entry.body, "Listeners") {
            let speaks = text(listener, "Protocol").unwrap_or(TCP).to_lowercase();
            for service in list(listener, "Services") {
                let Some(name) = text(service, "Name") else { continue };
                if name == "*" {
                    if !is_http(&speaks) {
                        let why =
                            format!("a listener of all services (`*`) speaks {speaks}, and it takes http");
                        return Ok(Some(why));
                    }
                    continue;
                }
                let protocol = self.of(name).await?;
                if protocol != speaks {
                    let why = format!("a listener speaks {speaks}, and {name:?} behind it speaks {protocol}");
                    return Ok(Some(why));
                }
            }
        }
        Ok(None)
    }

    async fn intentions(&self, entry: &ConfigEntry) -> Result<Option<String>, ConsulError> {
        let some = list(&entry.body, "Sources").iter().any(|source| !list(source, "Permissions").is_empty());
        if !some {
            return Ok(None);
        }
        if entry.name == "*" {
            return Ok(Some("permissions are for one service, not for all (`*`)".to_owned()));
        }
        let own = self.of(&entry.name).await?;
        let why = format!("{:?} speaks {own}, and permissions take http, http2 or grpc", entry.name);
        Ok((!is_http(&own)).then_some(why))
    }

    /// The protocol of `service`: its own defaults, else everybody's, else tcp. An entry of the folder
    /// replaces Consul's whole.
    async fn of(&self, service: &str) -> Result<String, ConsulError> {
        let places = [("service-defaults", service), ("proxy-defaults", "global")];
        for (kind, name) in places {
            let protocol = match self.said.get(&(kind, name)) {
                Some(said) => said.map(str::to_owned),
                None => self.asked(kind, name).await?,
            };
            if let Some(protocol) = protocol {
                return Ok(protocol.to_lowercase());
            }
        }
        Ok(TCP.to_owned())
    }

    async fn asked(&self, kind: &str, name: &str) -> Result<Option<String>, ConsulError> {
        let key = (kind.to_owned(), name.to_owned());
        if let Some(known) = self.known.borrow().get(&key) {
            return Ok(known.clone());
        }
        let found = match self.client.get(&Query::new(format!("/v1/config/{kind}/{}", segment(name)))).await {
            Ok(answer) => protocol_in(&answer.body).map(str::to_owned),
            Err(ConsulError::Missing { .. }) => None,
            Err(error) => return Err(error),
        };
        self.known.borrow_mut().insert(key, found.clone());
        Ok(found)
    }
}

/// The protocol in service-defaults or proxy-defaults.
fn protocol_in(body: &serde_json::Value) -> Option<&str> {
    text(body, "Protocol").or_else(|| text(get(body, "Config")?, "protocol"))
}

/// The services that a router or splitter sends to, beside its own.
fn destinations(entry: &ConfigEntry) -> BTreeSet<&str> {
    let routes = list(&entry.body, "Routes").iter().filter_map(|route| get(route, "Destination"));
    let splits = list(&entry.body, "Splits").iter();
    routes.chain(splits).filter_map(|to| text(to, "Service")).filter(|name| *name != entry.name).collect()
}
