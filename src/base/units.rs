//! Starting and stopping sidecars, whoever does it: systemd (room `systemd`) or enmesh itself
//! (room `supervise`). Both rooms stand on this trait and do not know each other.

use serde::Serialize;

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
}

/// The unit operations that sidecars need. `instance` is a service id, unescaped; implementations
/// escape it.
pub trait Units {
    /// Which implementation this is: `systemd`, `supervise`, or `recorded`.
    fn name(&self) -> &'static str;

    /// Makes the unit run as `spec` says, restarting it only when it runs as something else, and
    /// waits for the job's result.
    fn start<'a>(&'a self, spec: &'a UnitSpec) -> LocalFuture<'a, Result<(), Fault>>;

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
