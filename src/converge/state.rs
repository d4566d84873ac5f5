//! What enmesh remembers between runs: `/var/lib/enmesh/state.json`, versioned, written atomically.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::error::ConvergeError;
use super::memory::Memory;
use super::namespaces::{InForce, Record};
use crate::base::files::{self, Access};
use crate::base::{Deadline, Fault, Root};
use crate::config::value::ServiceId;
use crate::config::{HostConfig, Legacy, ServiceConfig};
use crate::consul::Key;
use crate::plan::facts::SshSession;
use crate::plan::{Allocations, Generation, MeshView, RedirectPolicy};

/// Where the state is.
pub const STATE_FILE: &str = "/var/lib/enmesh/state.json";

/// The version that this program writes. What is only ever added, and may be missing, needs no other one.
const VERSION: u32 = 1;

/// A state larger than this is not ours: 100,000 services would fit.
pub(super) const LIMIT: u64 = 64 << 20;

/// What is remembered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// Format version.
    version: u32,
    /// The generation that converged last.
    pub generation: Option<Generation>,
    /// Ports and virtual IPs given out so far.
    pub allocations: Allocations,
    /// The host configuration that was good last.
    pub host: Option<HostConfig>,
    /// The mesh as it was seen last, for a start at which it cannot be seen.
    pub mesh: Option<MeshView>,
    /// What was of the mesh before.
    pub past: Memory,
    /// The service configurations that were good last.
    pub services: BTreeMap<ServiceId, Remembered>,
    /// What was registered in Consul and not taken out since.
    pub registered: BTreeSet<Key>,
    /// The accessor of the token that each service was registered with last.
    pub registered_with: BTreeMap<ServiceId, String>,
    /// Services that `enmesh down` took out; they stay out until `enmesh apply` names them.
    pub down: BTreeSet<ServiceId>,
    /// The rules that were set last.
    pub guard: Option<Guard>,
    /// The network namespaces that enmesh made, by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub namespaces: BTreeMap<String, Record>,
    /// Whether the host passed nothing on before there were any.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub forwarding_is_ours: bool,
    /// The change that waits for `enmesh confirm`.
    pub trial: Option<Pending>,
    /// The configuration that nobody confirmed: it stays out of force for as long as the files say that.
    pub refused: Option<String>,
    /// The address of this host that counted last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// SSH sessions because of which a service was refused. That one of them ends is no permission.
    pub ssh: BTreeSet<SshSession>,
}

/// Rules as they were set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guard {
    /// The driver that set them.
    pub driver: String,
    /// The policy.
    pub policy: RedirectPolicy,
    /// Whose sidecars were live.
    pub live: BTreeSet<ServiceId>,
}

/// A change that is taken back unless somebody confirms it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pending {
    /// When.
    pub until: Deadline,
    /// What it goes back to.
    pub before: Before,
}

/// What was in force before a change; nothing, where nothing was.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Before {
    /// Whether a generation had converged.
    pub generation: Option<Generation>,
    /// Its host configuration.
    pub host: Option<HostConfig>,
    /// Its services.
    pub services: BTreeMap<ServiceId, Remembered>,
    /// Services that were taken out.
    pub down: BTreeSet<ServiceId>,
    /// Its rules.
    pub guard: Option<Guard>,
    /// The namespaces of its services, with theirs.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub namespaces: BTreeMap<String, InForce>,
}

impl Default for State {
    fn default() -> Self {
        State {
            version: VERSION,
            generation: None,
            allocations: Allocations::default(),
            host: None,
            mesh: None,
            past: Memory::default(),
            services: BTreeMap::new(),
            registered: BTreeSet::new(),
            registered_with: BTreeMap::new(),
            down: BTreeSet::new(),
            guard: None,
            namespaces: BTreeMap::new(),
            forwarding_is_ours: false,
            trial: None,
            refused: None,
            address: None,
            ssh: BTreeSet::new(),
        }
    }
}

/// A service configuration with what its own serialised form leaves out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Remembered {
    config: ServiceConfig,
    legacy: Option<Legacy>,
    source: PathBuf,
}

impl From<&ServiceConfig> for Remembered {
    fn from(config: &ServiceConfig) -> Self {
        Remembered { config: config.clone(), legacy: config.legacy.clone(), source: config.source.clone() }
    }
}

impl From<&Remembered> for ServiceConfig {
    fn from(remembered: &Remembered) -> Self {
        ServiceConfig {
            legacy: remembered.legacy.clone(),
            source: remembered.source.clone(),
            ..remembered.config.clone()
        }
    }
}

impl State {
    /// Reads the state; a host without one starts with an empty one.
    ///
    /// A file that cannot be understood is moved aside, never overwritten, and said: allocations
    /// start anew then, the mesh's own files do not.
    ///
    /// # Errors
    /// The file cannot be read, or a newer enmesh wrote it (`ENM-D001`).
    pub fn load(root: &Root) -> Result<(State, Option<Fault>), Fault> {
        State::read(root, |path| {
            let aside = path.with_extension("json.unreadable");
            let moved = fs::rename(&path, &aside).is_ok();
            if moved { aside } else { path }
        })
    }

    /// The same for a look: nothing is moved.
    ///
    /// # Errors
    /// As [`State::load`].
    pub fn look(root: &Root) -> Result<(State, Option<Fault>), Fault> {
        State::read(root, |path| path)
    }

    fn read(root: &Root, keep: impl FnOnce(PathBuf) -> PathBuf) -> Result<(State, Option<Fault>), Fault> {
        let path = root.join(STATE_FILE);
        let Some(bytes) = files::read(&path, LIMIT)? else { return Ok((State::default(), None)) };
        match serde_json::from_slice::<State>(&bytes) {
            Ok(state) if state.version > VERSION => {
                Err(ConvergeError::NewerState { path, version: state.version }.into())
            }
            Ok(state) => Ok((state, None)),
            Err(source) => {
                let aside = keep(path);
                Ok((State::default(), Some(ConvergeError::UnreadableState { aside, source }.into())))
            }
        }
    }

    /// The namespaces of services, as they were set last.
    pub fn in_force(&self) -> BTreeMap<String, InForce> {
        let set = |(name, record): (&String, &Record)| Some((name.clone(), record.in_force.clone()?));
        self.namespaces.iter().filter_map(set).collect()
    }

    /// Writes the state if it changed.
    ///
    /// # Errors
    /// As [`files::write`].
    pub fn save(&self, root: &Root) -> Result<(), Fault> {
        let path = root.join(STATE_FILE);
        if let Some(folder) = path.parent().filter(|folder| !folder.is_dir()) {
            files::folder(folder, Access::mode(0o755))?;
        }
        // Plain data with string keys always serialises.
        let bytes = serde_json::to_vec_pretty(self).unwrap_or_default();
        files::write(&path, &bytes, Access::mode(0o600))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path());
        (dir, root)
    }

    #[test]
    fn what_was_saved_is_loaded() {
        let (_dir, root) = tree();
        let mut state = State::default();
        state.allocations.inbound.insert("api".parse().unwrap(), 21000);
        state.generation = Some(Generation { number: 7, hash: "abc".to_owned() });
        state.save(&root).unwrap();
        assert_eq!(State::load(&root).unwrap(), (state, None));
    }

    /// A file of the first version, as it lies on hosts: it must load for ever.
    #[test]
    fn a_file_of_version_1_loads() {
        let (_dir, root) = tree();
        let text = include_str!("../../tests/state/v1.json");
        std::fs::create_dir_all(root.join("/var/lib/enmesh")).unwrap();
        std::fs::write(root.join(STATE_FILE), text).unwrap();
        let (state, fault) = State::load(&root).unwrap();
        assert_eq!(fault, None);
        assert_eq!(state.allocations.outbound.get(&"api".parse().unwrap()), Some(&15001));
        assert_eq!(ServiceConfig::from(&state.services[&"api".parse().unwrap()]).name.as_str(), "api");
    }

    #[test]
    fn an_unreadable_state_is_moved_aside_and_a_newer_one_refused() {
        let (_dir, root) = tree();
        let path = root.join(STATE_FILE);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, "{ torn").unwrap();
        let (state, fault) = State::load(&root).unwrap();
        assert_eq!(state, State::default());
        assert_eq!(fault.unwrap().code, "ENM-D002");
        assert!(path.with_extension("json.unreadable").exists());
        std::fs::write(&path, r#"{"version": 99}"#).unwrap();
        assert_eq!(State::load(&root).unwrap_err().code, "ENM-D001");
    }
}
