//! The record that a sidecar's process leaves on disk, and what an earlier enmesh left running.

use std::path::PathBuf;

use super::process::Process;
use crate::base::files::{self, Access};
use crate::base::process::{Identity, name_of};
use crate::base::{Fault, Root};

/// Records are two numbers.
const LIMIT: u64 = 64;
/// Where each service has its folder.
const FOLDER: &str = "/run/enmesh";

/// A process that an earlier enmesh started and that still runs.
#[derive(Debug)]
pub(super) struct Leftover {
    pub(super) process: Process,
    /// The name that its specification asked for.
    pub(super) name: String,
}

fn path(root: &Root, instance: &str) -> PathBuf {
    root.join(FOLDER).join(instance).join("pid")
}

/// Writes down which process runs as `instance`.
pub(super) fn record(root: &Root, instance: &str, process: &Process) -> Result<(), Fault> {
    // One that has ended already needs no record.
    let Some(identity) = Identity::of(process.pid()) else { return Ok(()) };
    let path = path(root, instance);
    if let Some(folder) = path.parent().filter(|folder| !folder.is_dir()) {
        files::folder(folder, Access::mode(0o755))?;
    }
    let text = format!("{} {}\n", identity.pid, identity.started);
    files::write(&path, text.as_bytes(), Access::mode(0o644))?;
    Ok(())
}

/// Removes the record.
pub(super) fn forget(root: &Root, instance: &str) -> Result<(), Fault> {
    files::remove(&path(root, instance))?;
    Ok(())
}

/// The process that is recorded for `instance`, if it is still that very process. A later one with
/// the same number has another start time; should even that agree (a container that starts from the
/// same image, say), it does not have the sidecar's name.
pub(super) fn find(root: &Root, instance: &str) -> Result<Option<Leftover>, Fault> {
    let Some(bytes) = files::read(&path(root, instance), LIMIT)? else { return Ok(None) };
    let Some(identity) = parse(&String::from_utf8_lossy(&bytes)) else { return Ok(None) };
    let Some(process) = Process::adopt(identity)? else { return Ok(None) };
    let ours = |name: &String| name.starts_with(&format!("envoy:{instance}:"));
    Ok(name_of(identity.pid).filter(ours).map(|name| Leftover { process, name }))
}

fn parse(text: &str) -> Option<Identity> {
    let (pid, started) = text.trim_end().split_once(' ')?;
    Some(Identity { pid: pid.parse().ok()?, started: started.parse().ok()? })
}

/// The instances that have a record.
pub(super) fn recorded(root: &Root) -> Vec<String> {
    let Ok(folders) = std::fs::read_dir(root.join(FOLDER)) else { return Vec::new() };
    folders
        .flatten()
        .filter(|folder| folder.path().join("pid").is_file())
        .filter_map(|folder| folder.file_name().into_string().ok())
        .collect()
}
