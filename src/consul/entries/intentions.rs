//! Intentions for a server that does not have them as config entries (before 1.9).
//!
//! There each pair of services is an intention of its own. Those of a destination that the folder
//! names are made as the entry says; ones that enmesh made for it before and that it does not say any
//! more go. Everybody else's stay.

use serde_json::{Map, Value, json};

use super::entry::{MARK, get, list, text};
use super::{ConfigEntry, EntryError};
use crate::consul::{Client, ConsulError, Query, segment};

/// One write.
enum Deed {
    Make(Value),
    Change(String, Value),
    Remove(String),
}

/// What has to be done for one entry.
pub(super) struct Legacy {
    deeds: Vec<Deed>,
    /// What differs, one line each.
    pub lines: Vec<String>,
    /// What cannot be said to this server.
    pub error: Option<EntryError>,
}

impl Legacy {
    /// Compares; writes nothing.
    pub async fn look(client: &Client, entry: &ConfigEntry) -> Result<Self, ConsulError> {
        let all = client.get(&Query::new("/v1/connect/intentions")).await?.body;
        let there: Vec<&Value> = all
            .as_array()
            .into_iter()
            .flatten()
            .filter(|intention| text(intention, "DestinationName") == Some(entry.name.as_str()))
            .collect();
        let mut looked = Legacy { deeds: Vec::new(), lines: Vec::new(), error: None };
        let mut with_permissions = Vec::new();
        let mut named = Vec::new();
        for source in list(&entry.body, "Sources") {
            let name = text(source, "Name").unwrap_or("*");
            named.push(name);
            if list(source, "Permissions").is_empty() {
                let is = there.iter().find(|it| text(it, "SourceName") == Some(name));
                looked.one(intention(entry, source, name), is.copied(), name);
            } else {
                with_permissions.push(name.to_owned());
            }
        }
        for intention in there {
            let ours = get(intention, "Meta").is_some_and(|meta| meta.get(MARK).is_some());
            let name = text(intention, "SourceName").unwrap_or_default();
            if let Some(id) = text(intention, "ID").filter(|_| ours && !named.contains(&name)) {
                looked.deeds.push(Deed::Remove(id.to_owned()));
                looked.lines.push(format!("- source {name}"));
            }
        }
        if !with_permissions.is_empty() {
            let (place, label) = (entry.place(), entry.label());
            looked.error = Some(EntryError::Permissions { place, label, sources: with_permissions });
        }
        Ok(looked)
    }

    fn one(&mut self, wanted: Value, is: Option<&Value>, source: &str) {
        let Some(is) = is else {
            self.deeds.push(Deed::Make(wanted));
            return self.lines.push(format!("+ source {source}"));
        };
        let differs: Vec<String> = ["Action", "Description"]
            .into_iter()
            .filter(|key| text(&wanted, key) != text(is, key))
            .map(|key| format!("~ source {source}: {key}"))
            .collect();
        if let Some(id) = text(is, "ID").filter(|_| !differs.is_empty()) {
            self.deeds.push(Deed::Change(id.to_owned(), wanted));
            self.lines.extend(differs);
        }
    }

    /// Does what [`Legacy::look`] found.
    pub async fn write(self, client: &Client) -> Result<(), ConsulError> {
        for deed in self.deeds {
            match deed {
                Deed::Make(body) => {
                    client.post(&Query::new("/v1/connect/intentions"), Some(&body)).await?;
                }
                Deed::Change(id, body) => {
                    client.put(&path(&id), Some(&body)).await?;
                }
                Deed::Remove(id) => {
                    client.delete(&path(&id)).await?;
                }
            }
        }
        Ok(())
    }
}

fn path(id: &str) -> Query {
    Query::new(format!("/v1/connect/intentions/{}", segment(id)))
}

/// One source of the entry as an intention.
fn intention(entry: &ConfigEntry, source: &Value, name: &str) -> Value {
    let mark = entry.body.pointer(&format!("/Meta/{MARK}")).cloned().unwrap_or_default();
    let mut fields = Map::new();
    fields.insert("SourceName".to_owned(), json!(name));
    fields.insert("DestinationName".to_owned(), json!(entry.name));
    fields.insert("SourceType".to_owned(), json!("consul"));
    fields.insert("Action".to_owned(), json!(text(source, "Action").unwrap_or_default()));
    fields.insert("Description".to_owned(), json!(text(source, "Description").unwrap_or_default()));
    fields.insert("Meta".to_owned(), json!({ MARK: mark }));
    Value::Object(fields)
}
