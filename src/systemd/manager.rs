//! The few calls of `org.freedesktop.systemd1` that enmesh makes (org.freedesktop.systemd1(5)).

use zbus::proxy::CacheProperties;
use zbus::{Connection, OwnedObjectPath, proxy};

/// A file that systemd made or removed: kind (`symlink`, `unlink`), path, target.
pub type FileChange = (String, String, String);

/// One line of `ListUnitsByPatterns`: name, description, load state, active state, sub state,
/// followed unit, object, job number, job type, job object.
pub type ListedUnit =
    (String, String, String, String, String, String, OwnedObjectPath, u32, String, OwnedObjectPath);

/// `org.freedesktop.systemd1.Manager`.
#[proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1"
)]
pub trait Manager {
    /// Asks for signals; without it systemd sends none.
    async fn subscribe(&self) -> zbus::Result<()>;
    /// Reads all unit files again (`systemctl daemon-reload`).
    async fn reload(&self) -> zbus::Result<()>;
    /// `systemctl enable`.
    async fn enable_unit_files(
        &self,
        files: &[&str],
        runtime: bool,
        force: bool,
    ) -> zbus::Result<(bool, Vec<FileChange>)>;
    /// `systemctl disable`.
    async fn disable_unit_files(&self, files: &[&str], runtime: bool) -> zbus::Result<Vec<FileChange>>;
    /// Queues a start (of what does not run) or restart (of what does); the answer is the job.
    async fn restart_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    /// Queues a stop.
    async fn stop_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    /// Queues a reload, or a restart where the unit cannot reload.
    async fn reload_or_restart_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    /// Forgets a failure and the start counter.
    async fn reset_failed_unit(&self, name: &str) -> zbus::Result<()>;
    /// The unit's object; loads it if need be.
    async fn load_unit(&self, name: &str) -> zbus::Result<OwnedObjectPath>;
    /// The loaded units that match.
    async fn list_units_by_patterns(
        &self,
        states: &[&str],
        patterns: &[&str],
    ) -> zbus::Result<Vec<ListedUnit>>;
    /// The unit files that match: path and enablement.
    async fn list_unit_files_by_patterns(
        &self,
        states: &[&str],
        patterns: &[&str],
    ) -> zbus::Result<Vec<(String, String)>>;
    /// systemd's version, such as `252.39-1~deb12u2`.
    #[zbus(property(emits_changed_signal = "const"))]
    fn version(&self) -> zbus::Result<String>;
    /// A job left the queue; `result` is `done` when it went well.
    #[zbus(signal)]
    fn job_removed(&self, id: u32, job: OwnedObjectPath, unit: String, result: String) -> zbus::Result<()>;
}

/// `org.freedesktop.systemd1.Unit`.
#[proxy(interface = "org.freedesktop.systemd1.Unit", default_service = "org.freedesktop.systemd1")]
pub trait Unit {
    /// `active`, `activating`, …
    #[zbus(property)]
    fn active_state(&self) -> zbus::Result<String>;
    /// `running`, `auto-restart`, …
    #[zbus(property)]
    fn sub_state(&self) -> zbus::Result<String>;
    /// `loaded`, `not-found`, …
    #[zbus(property)]
    fn load_state(&self) -> zbus::Result<String>;
    /// When it last left the state `inactive`, in microseconds since 1970.
    #[zbus(property)]
    fn inactive_exit_timestamp(&self) -> zbus::Result<u64>;
    /// Whether the last start's conditions held.
    #[zbus(property)]
    fn condition_result(&self) -> zbus::Result<bool>;
    /// Whether its files changed since systemd read them.
    #[zbus(property)]
    fn need_daemon_reload(&self) -> zbus::Result<bool>;
}

/// `org.freedesktop.systemd1.Service`.
#[proxy(interface = "org.freedesktop.systemd1.Service", default_service = "org.freedesktop.systemd1")]
pub trait Service {
    /// The main process, or 0.
    #[zbus(property, name = "MainPID")]
    fn main_pid(&self) -> zbus::Result<u32>;
    /// The user it runs as, also a dynamic one, while it runs; `u32::MAX` where there is none.
    #[zbus(property, name = "UID")]
    fn uid(&self) -> zbus::Result<u32>;
    /// The user that its file names; empty for root.
    #[zbus(property)]
    fn user(&self) -> zbus::Result<String>;
    /// Whether that user is made when it starts.
    #[zbus(property)]
    fn dynamic_user(&self) -> zbus::Result<bool>;
    /// Restarts that systemd made by itself.
    #[zbus(property, name = "NRestarts")]
    fn n_restarts(&self) -> zbus::Result<u32>;
    /// `success`, `exit-code`, `signal`, …
    #[zbus(property)]
    fn result(&self) -> zbus::Result<String>;
    /// How the main process ended: 1 exited, 2 killed, 3 dumped core (sigaction(2), `CLD_…`).
    #[zbus(property)]
    fn exec_main_code(&self) -> zbus::Result<i32>;
    /// Its exit status or signal number.
    #[zbus(property)]
    fn exec_main_status(&self) -> zbus::Result<i32>;
}

/// Both faces of a loaded service unit, uncached: what is read is what is true now.
///
/// # Errors
/// The bus does not answer.
pub async fn faces<'a>(
    connection: &Connection,
    path: &'a OwnedObjectPath,
) -> zbus::Result<(UnitProxy<'a>, ServiceProxy<'a>)> {
    let unit =
        UnitProxy::builder(connection).path(path).cache_properties(CacheProperties::No).build().await?;
    let service =
        ServiceProxy::builder(connection).path(path).cache_properties(CacheProperties::No).build().await?;
    Ok((unit, service))
}
