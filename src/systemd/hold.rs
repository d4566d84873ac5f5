//! Holding a unit until its user is captured.
//!
//! The user of a unit with `DynamicUser=` is made when it starts, so its first packet could leave before
//! anybody was told. A drop-in has systemd run `enmesh hold` first: the user is there by then, no program
//! of the unit runs yet, and none will unless the command says that the user's connections are captured.

use std::collections::BTreeSet;
use std::path::Path;

use super::Systemd;
use super::error::SystemdError;
use crate::base::Fault;
use crate::base::files::{self, Access};

/// The drop-in. One of this name in `/run/systemd/system` stands before one that the generator made.
const FILE: &str = "50-enmesh-hold.conf";
/// Where the daemon writes it. `/run`, because a boot starts from the configuration again.
const FOLDER: &str = "/run/systemd/system";

/// What the drop-in of `unit` says. `ExecCondition=`, because that comes before all other programs of the
/// unit; with exit status 255 the start has failed, with a smaller one it would be skipped in silence.
fn render(unit: &str) -> String {
    let word = unit.replace('%', "%%").replace('\\', "\\\\");
    format!(
        "# Written by enmesh: nothing of this unit runs before the connections of its user are captured.\n\
         [Unit]\nAfter=enmesh.service\n[Service]\nExecCondition=+/usr/bin/enmesh hold \"{word}\"\n"
    )
}

/// Writes the drop-ins of `units` below `folder`; whether that changed anything.
///
/// # Errors
/// `ENM-X…` as [`files::write`].
pub fn write(folder: &Path, units: &BTreeSet<String>) -> Result<bool, Fault> {
    let mut changed = false;
    for unit in units {
        let folder = folder.join(format!("{unit}.d"));
        if !folder.is_dir() {
            files::folder(&folder, Access::mode(0o755))?;
        }
        changed |= files::write(&folder.join(FILE), render(unit).as_bytes(), Access::mode(0o644))?;
    }
    Ok(changed)
}

/// Removes the drop-ins of all other units; whether there was one.
fn remove_others(folder: &Path, units: &BTreeSet<String>) -> Result<bool, Fault> {
    let mut changed = false;
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.strip_suffix(".d").is_some_and(|unit| !units.contains(unit)) {
            changed |= files::remove(&entry.path().join(FILE))?;
            // Unless somebody else has something in it.
            let _ = std::fs::remove_dir(entry.path());
        }
    }
    Ok(changed)
}

impl Systemd {
    /// Holds these units from their next start on, and no others.
    ///
    /// # Errors
    /// A drop-in cannot be written, or systemd does not read its files again.
    pub async fn hold(&self, units: &BTreeSet<String>) -> Result<(), Fault> {
        let folder = self.shared.root.join(FOLDER);
        let written = write(&folder, units)?;
        if remove_others(&folder, units)? || written {
            self.shared.reload("").await?;
        }
        Ok(())
    }
}

/// Why `unit` must not start.
pub fn refusal(unit: &str, detail: Option<String>) -> Fault {
    let unit = unit.to_owned();
    match detail {
        Some(detail) => SystemdError::Unheld { unit, detail }.into(),
        None => SystemdError::NobodyHolds { unit }.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn units(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn units_are_held_and_let_go_without_a_trace() {
        let dir = tempfile::tempdir().unwrap();
        let of = |unit: &str| dir.path().join(format!("{unit}.d")).join(FILE);
        assert!(write(dir.path(), &units(&["a.service", r"b\x2dc.service"])).unwrap());
        assert!(!write(dir.path(), &units(&["a.service"])).unwrap());
        let text = std::fs::read_to_string(of(r"b\x2dc.service")).unwrap();
        assert!(text.ends_with("ExecCondition=+/usr/bin/enmesh hold \"b\\\\x2dc.service\"\n"), "{text}");
        std::fs::write(dir.path().join("a.service.d/60-mine.conf"), "").unwrap();
        assert!(remove_others(dir.path(), &units(&[r"b\x2dc.service"])).unwrap());
        assert!(!of("a.service").exists() && dir.path().join("a.service.d/60-mine.conf").exists());
        assert!(remove_others(dir.path(), &units(&[])).unwrap());
        assert!(!dir.path().join(r"b\x2dc.service.d").exists());
        assert!(!remove_others(dir.path(), &units(&[])).unwrap());
    }
}
