//! Starting and stopping sidecars, whoever does it: systemd (room `systemd`) or enmesh itself
//! (room `supervise`). Both rooms stand on this trait and do not know each other.

use std::fmt::Write as _;

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::{Fault, LocalFuture};

/// How a unit is doing, in systemd's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum UnitState {
    /// Running.
    Active,
    /// On its way up.
    Activating,
    /// On its way down.
    Deactivating,
    /// Not running, and nobody wants it to.
    Inactive,
    /// Ended with an error, or waiting for its next try.
    Failed,
}

/// A unit changed its state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitEvent {
    /// The instance: a service id, unescaped.
    pub instance: String,
    /// What it is now.
    pub state: UnitState,
    /// The main process, when there is one.
    pub pid: Option<u32>,
}

/// What is known of a unit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UnitStatus {
    /// Its state.
    pub state: UnitState,
    /// The main process.
    pub pid: Option<u32>,
    /// How often it was started again by itself.
    pub restarts: u32,
}

/// What must be known to run a sidecar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitSpec {
    /// The instance: a service id, unescaped.
    pub instance: String,
    /// Absolute path of Envoy.
    pub program: std::path::PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// The user it runs as.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Changes when a running sidecar must be restarted to take up what changed (its program, its
    /// bootstrap); a reload of listeners and clusters does not change it.
    pub revision: String,
    /// The network namespace that it runs in; the host's unless given.
    pub network: Option<Network>,
}

/// A network namespace to run something in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// Its file.
    pub path: std::path::PathBuf,
    /// Device and inode of that: which namespace it is. Another one that comes by the same path is not meant.
    pub identity: (u64, u64),
}

impl UnitSpec {
    /// The name under which the process runs (its `argv[0]`): the instance and a digest of
    /// everything here. It is the one mark of a running process that survives whoever started it,
    /// so it tells whether what runs is what is wanted, also after enmesh was killed midway.
    pub fn process_name(&self) -> String {
        let mut hash = Sha256::new();
        let mut field = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_be_bytes());
            hash.update(bytes);
        };
        field(self.program.as_os_str().as_encoded_bytes());
        for argument in &self.arguments {
            field(argument.as_bytes());
        }
        field(&self.uid.to_be_bytes());
        field(&self.gid.to_be_bytes());
        field(self.revision.as_bytes());
        if let Some(Network { path, identity: (device, inode) }) = &self.network {
            field(path.as_os_str().as_encoded_bytes());
            field(&device.to_be_bytes());
            field(&inode.to_be_bytes());
        }
        let mut name = format!("envoy:{}:", self.instance);
        for byte in hash.finalize().iter().take(6) {
            let _ = write!(name, "{byte:02x}");
        }
        name
    }
}

/// The unit operations that sidecars need. `instance` is a service id, unescaped; implementations
/// escape it.
pub trait Units {
    /// Which implementation this is: `systemd`, `supervise`, or `recorded`.
    fn name(&self) -> &'static str;

    /// Makes the unit run as `spec` says, restarting it only when it runs as something else, and
    /// waits for the job's result. What was just started is watched for a moment longer, because a
    /// program that does not like its configuration starts well and ends right after; `live` ends
    /// that moment early, and is first asked once the job is done.
    fn start_until<'a>(
        &'a self,
        spec: &'a UnitSpec,
        live: LocalFuture<'a, ()>,
    ) -> LocalFuture<'a, Result<(), Fault>>;

    /// [`Units::start_until`] for a unit that does not tell when it is live.
    fn start<'a>(&'a self, spec: &'a UnitSpec) -> LocalFuture<'a, Result<(), Fault>> {
        self.start_until(spec, Box::pin(std::future::pending()))
    }

    /// Stops the unit, waits for the job's result, and takes back what [`Units::start`] left behind
    /// (enablement, drop-ins). One that does not run is fine.
    fn stop<'a>(&'a self, instance: &'a str) -> LocalFuture<'a, Result<(), Fault>>;

    /// How the unit is doing.
    fn status<'a>(&'a self, instance: &'a str) -> LocalFuture<'a, Result<UnitStatus, Fault>>;

    /// The instances that exist, running or not.
    fn list(&self) -> LocalFuture<'_, Result<Vec<String>, Fault>>;

    /// State changes of every instance, from now on. The receiver lags rather than blocks.
    fn events(&self) -> tokio::sync::broadcast::Receiver<UnitEvent>;
}
