//! An application's own unit, placed in the network namespace of its service by a drop-in.
//!
//! It lies below `/etc`, unlike a sidecar's: at a boot systemd reads it before enmesh runs, so the application waits
//! for enmesh, and where the namespace is not there it does not start rather than start in the host's.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{Systemd, call_failed, manager};
use crate::base::files::{self, Access};
use crate::base::{Fault, Root};

/// The drop-in's name; an administrator's own that sorts behind it has the last word.
const FILE: &str = "50-enmesh-namespace.conf";

/// Where an application's unit runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// The unit.
    pub unit: String,
    /// The namespace's file.
    pub namespace: PathBuf,
    /// What it shall see as `/etc/resolv.conf`.
    pub resolv_conf: PathBuf,
}

impl Placement {
    /// The drop-in's text.
    pub fn render(&self) -> String {
        format!(
            "# Written by enmesh; `enmesh down` removes it.\n\
             [Unit]\n\
             # Once enmesh is ready, the namespace is there and nothing leaves it but through the mesh's rules.\n\
             Wants=enmesh.service\nAfter=enmesh.service\n\n\
             [Service]\n\
             # Without it the unit does not start: it never runs in the host's network instead.\n\
             NetworkNamespacePath={}\n\
             BindReadOnlyPaths={}:/etc/resolv.conf\n",
            self.namespace.display(),
            self.resolv_conf.display()
        )
    }
}

fn file(root: &Root, unit: &str) -> PathBuf {
    root.join(format!("/etc/systemd/system/{unit}.d")).join(FILE)
}

impl Systemd {
    /// Has the unit run where `placement` says from its next start on.
    ///
    /// Returns since when it runs, where that is before it was told so: then it is not there yet.
    ///
    /// # Errors
    /// `ENM-X…` the drop-in cannot be written; `ENM-S…` systemd does not take it up.
    pub async fn place(&self, placement: &Placement) -> Result<Option<SystemTime>, Fault> {
        let Placement { unit, .. } = placement;
        let file = file(&self.shared.root, unit);
        if let Some(folder) = file.parent().filter(|folder| !folder.is_dir()) {
            files::folder(folder, Access::mode(0o755))?;
        }
        if files::write(&file, placement.render().as_bytes(), Access::mode(0o644))? {
            self.reload_units(unit).await?;
        }
        let told = std::fs::metadata(&file).and_then(|meta| meta.modified()).unwrap_or(UNIX_EPOCH);
        Ok(self.runs_since(unit).await?.filter(|since| *since < told))
    }

    /// Takes [`Systemd::place`] back, for the unit's next start; whether there was anything to take back.
    ///
    /// # Errors
    /// As [`Systemd::place`].
    pub async fn unplace(&self, unit: &str) -> Result<bool, Fault> {
        let file = file(&self.shared.root, unit);
        let there = files::remove(&file)?;
        if there {
            // Others' drop-ins keep the folder.
            let _ = std::fs::remove_dir(file.parent().unwrap_or(Path::new("/")));
            self.reload_units(unit).await?;
        }
        Ok(there)
    }

    async fn reload_units(&self, unit: &str) -> Result<(), Fault> {
        let manager = self.shared.manager().await?;
        Ok(manager.reload().await.map_err(|e| call_failed("Reload", unit, e))?)
    }

    /// Since when a unit runs; `None` for one that does not, or that nobody knows.
    ///
    /// # Errors
    /// `ENM-S…` the bus does not answer.
    pub async fn runs_since(&self, unit: &str) -> Result<Option<SystemTime>, Fault> {
        let connection = self.shared.connection();
        let path = self.shared.manager().await?.load_unit(unit).await;
        let path = path.map_err(|e| call_failed("LoadUnit", unit, e))?;
        let read = async {
            let (of_unit, _) = manager::faces(&connection, &path).await?;
            if matches!(of_unit.active_state().await?.as_str(), "inactive" | "failed") {
                return zbus::Result::Ok(None);
            }
            let since = of_unit.inactive_exit_timestamp().await?;
            Ok(Some(UNIX_EPOCH + Duration::from_micros(since)))
        };
        Ok(read.await.map_err(|e| call_failed("Get", unit, e))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_waits_for_enmesh_and_never_runs_elsewhere() {
        let placement = Placement {
            unit: "app.service".to_owned(),
            namespace: "/run/netns/api".into(),
            resolv_conf: "/run/enmesh/.namespaces/api/resolv.conf".into(),
        };
        let text = placement.render();
        for line in [
            "After=enmesh.service",
            "NetworkNamespacePath=/run/netns/api",
            "BindReadOnlyPaths=/run/enmesh/.namespaces/api/resolv.conf:/etc/resolv.conf",
        ] {
            assert!(text.lines().any(|other| other == line), "{text}");
        }
        assert!(!text.contains("Requires="), "a restart of enmesh must not restart applications");
    }
}
