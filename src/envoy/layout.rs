//! Where the files of one sidecar are.

use std::path::{Path, PathBuf};

use crate::base::Root;
use crate::plan::ServicePlan;

/// The longest path of a unix socket, in bytes: `sun_path` has 108 with the final zero (unix(7)).
pub const SOCKET_PATH_MAX: usize = 107;

/// File of the listeners, below the sidecar's folder.
pub const LDS: &str = "lds.json";
/// File of the clusters.
pub const CDS: &str = "cds.json";
/// Folder of the secrets.
pub const SECRETS: &str = "secrets";
/// Folder of the copy that Envoy was seen to run.
pub const LAST_GOOD: &str = "last-good";

/// The folder of one sidecar, with the `--root` prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout(PathBuf);

impl Layout {
    /// The folder of `service` below `root`.
    pub fn new(service: &ServicePlan, root: &Root) -> Self {
        Layout(root.join(&service.sidecar.folder))
    }

    /// The folder itself.
    pub fn folder(&self) -> &Path {
        &self.0
    }

    /// A path below the folder.
    pub fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.0.join(relative)
    }

    /// What Envoy is started with.
    pub fn bootstrap(&self) -> PathBuf {
        self.path("bootstrap.json")
    }

    /// The folder in which Envoy makes its admin socket.
    pub fn admin_folder(&self) -> PathBuf {
        self.path("admin")
    }

    /// The admin socket.
    pub fn admin_socket(&self) -> PathBuf {
        self.path("admin/envoy.sock")
    }
}

/// The file of a secret, below the sidecar's folder.
pub fn secret_file(name: &str) -> String {
    format!("{SECRETS}/{name}.json")
}
