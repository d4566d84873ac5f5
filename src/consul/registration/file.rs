//! Registration by a definition file that the agent reads: what the scripts did before.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::agent::{Seen, marked, set_maintenance};
use super::registry::{Key, Prepared, mark};
use crate::base::files::{self, Access};
use crate::base::{Fault, LocalFuture, Root};
use crate::consul::{Client, ConsulError, ConsulWarning, Entry, Gate, Health, Outcome, Query, Registry};

/// Where the agent looks for it.
const PATH: &str = "/etc/consul.d/service-registration.json";
/// Largest file that is read back, in bytes.
const LIMIT: u64 = 4 << 20;

/// A definition file beside the agent's own configuration.
#[derive(Debug)]
pub struct FileRegistry {
    client: Client,
    gate: Gate,
    path: PathBuf,
    access: Access,
}

impl FileRegistry {
    /// For the agent that `client` reaches. `group` is that of the user the agent runs as: the file
    /// may hold a token, so nobody else reads it.
    pub fn new(client: Client, gate: Gate, root: &Root, group: Option<u32>) -> Self {
        let access = Access { mode: 0o640, uid: None, gid: group };
        FileRegistry { client, gate, path: root.join(PATH), access }
    }

    /// The definitions in the file. One that is damaged counts as empty: it is enmesh's to write.
    fn definitions(&self) -> Result<Vec<Value>, Fault> {
        let bytes = files::read(&self.path, LIMIT)?.unwrap_or_default();
        let file: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let one = file.get("service").cloned();
        let many = file.get("services").and_then(Value::as_array).cloned();
        Ok(one.into_iter().chain(many.into_iter().flatten()).collect())
    }

    fn write(&self, mut definitions: Vec<Value>) -> Result<bool, Fault> {
        definitions.sort_by_key(id_of);
        let file = match definitions.as_slice() {
            [] => return files::remove(&self.path),
            [one] => json!({ "service": one }),
            many => json!({ "services": many }),
        };
        let mut text = serde_json::to_vec_pretty(&file).unwrap_or_default();
        text.push(b'\n');
        if let Some(folder) = self.path.parent().filter(|folder| !folder.exists()) {
            files::folder(folder, Access::mode(0o755))?;
        }
        files::write(&self.path, &text, self.access)
    }

    /// The definition as it stands in the file: with the mark, and with the token, since an agent
    /// has no request to take one from.
    fn definition(&self, prepared: &Prepared) -> Result<Value, ConsulError> {
        let mut definition = prepared.file.clone();
        mark(&mut definition, "meta", &prepared.hash);
        if let Some(token) = self.client.settings().token.read()?
            && let Some(fields) = definition.as_object_mut()
        {
            fields.insert("token".to_owned(), json!(token.secret()));
        }
        definition.sort_all_objects();
        Ok(definition)
    }

    /// What differs in the file, and the definitions with `entry` as it should be.
    fn compared(&self, entry: &Entry, prepared: &Prepared) -> Result<(Vec<String>, Vec<Value>), Fault> {
        let wanted = self.definition(prepared)?;
        let mut definitions = self.definitions()?;
        let before = definitions.iter().position(|it| id_of(it) == entry.key.id.as_str());
        let label = format!("{} in {}", entry.key.id, self.path.display());
        let line = match before.and_then(|place| definitions.get_mut(place)) {
            Some(is) if *is == wanted => None,
            Some(is) => {
                *is = wanted;
                Some(format!("~ service {label}"))
            }
            None => {
                definitions.push(wanted);
                Some(format!("+ service {label}"))
            }
        };
        Ok((line.into_iter().collect(), definitions))
    }

    /// Whether the agent has read what the file says; `None` when it cannot be asked.
    async fn is_read(&self, key: &Key, hash: &str) -> Result<Option<bool>, ConsulError> {
        match Seen::ask(&self.client, key).await {
            Ok(seen) => Ok(Some(seen.mark(key) == Some(hash))),
            Err(error) if error.is_transient() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Lets the agent read its files. One that does not run reads them at its start; a token that may
    /// not say so is a warning.
    async fn reload(&self) -> Result<Vec<Fault>, ConsulError> {
        match self.client.put(&Query::new("/v1/agent/reload"), None).await {
            Ok(_) => Ok(Vec::new()),
            Err(error @ (ConsulError::Refused { .. } | ConsulError::Denied { .. })) => {
                let why = error.to_string();
                Ok(vec![ConsulWarning::NotReloaded { path: self.path.clone(), why }.into()])
            }
            Err(error) => Err(error),
        }
    }

    async fn put(&self, definitions: Vec<Value>) -> Result<Vec<Fault>, Fault> {
        let before = self.definitions()?;
        self.write(definitions)?;
        match self.reload().await {
            Ok(warnings) => Ok(warnings),
            Err(error) => {
                // An agent that cannot read a file does not start any more, either.
                if !error.is_transient() || matches!(error, ConsulError::Failed { .. }) {
                    self.write(before)?;
                }
                Err(error.into())
            }
        }
    }

    async fn make(&self, entry: &Entry) -> Result<Outcome, Fault> {
        let prepared = Prepared::new(entry, &self.gate)?;
        let (mut differences, definitions) = self.compared(entry, &prepared)?;
        let mut warnings = prepared.warnings;
        if !differences.is_empty() {
            warnings.extend(self.put(definitions).await?);
        } else if self.is_read(&entry.key, &prepared.hash).await? == Some(false) {
            differences.push(unread(&entry.key));
            warnings.extend(self.reload().await?);
        }
        Ok(Outcome { differences, warnings })
    }

    async fn take_out(&self, key: &Key) -> Result<bool, Fault> {
        let mut definitions = self.definitions()?;
        let before = definitions.len();
        definitions.retain(|definition| id_of(definition) != key.id.as_str());
        if definitions.len() == before {
            return Ok(false);
        }
        self.put(definitions).await?;
        Ok(true)
    }
}

impl Registry for FileRegistry {
    fn name(&self) -> &'static str {
        "file"
    }

    fn observe<'a>(&'a self, entry: &'a Entry) -> LocalFuture<'a, Result<Vec<String>, Fault>> {
        Box::pin(async move {
            let prepared = Prepared::new(entry, &self.gate)?;
            let (mut lines, _) = self.compared(entry, &prepared)?;
            if lines.is_empty() && self.is_read(&entry.key, &prepared.hash).await? == Some(false) {
                lines.push(unread(&entry.key));
            }
            Ok(lines)
        })
    }

    fn register<'a>(&'a self, entry: &'a Entry) -> LocalFuture<'a, Result<Outcome, Fault>> {
        Box::pin(self.make(entry))
    }

    fn deregister<'a>(&'a self, key: &'a Key) -> LocalFuture<'a, Result<bool, Fault>> {
        Box::pin(self.take_out(key))
    }

    fn set_health<'a>(&'a self, key: &'a Key, health: &'a Health) -> LocalFuture<'a, Result<(), Fault>> {
        Box::pin(async move { Ok(set_maintenance(&self.client, key, health).await?) })
    }

    fn list(&self) -> LocalFuture<'_, Result<Vec<Key>, Fault>> {
        Box::pin(async move {
            let mut keys = match marked(&self.client).await {
                Ok(keys) => keys,
                Err(error) if error.is_transient() => Vec::new(),
                Err(error) => return Err(error.into()),
            };
            let ids = self.definitions()?;
            keys.extend(ids.iter().filter_map(|definition| id_of(definition).parse().ok()).map(Key::new));
            keys.sort();
            keys.dedup();
            Ok(keys)
        })
    }
}

fn unread(key: &Key) -> String {
    format!("~ service {} at the agent", key.id)
}

/// The id of a definition; it defaults to the name.
fn id_of(definition: &Value) -> String {
    let text = |key| definition.get(key).and_then(Value::as_str);
    text("id").or_else(|| text("name")).unwrap_or_default().to_owned()
}
