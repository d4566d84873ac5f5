//! The record that a sidecar's process leaves on disk, and what an earlier enmesh left running.

use std::path::PathBuf;

use super::error::SuperviseError;
use super::process::Process;
use crate::base::files::{self, Access};
use crate::base::process::{Identity, arguments_of, user_of};
use crate::base::units::UnitSpec;
use crate::base::{Fault, Root};

/// Records are two numbers, or an announcement.
const LIMIT: u64 = 64;
/// What stands before the user in an announcement.
const ANNOUNCED: &str = "about to start as ";
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

/// Writes down that `spec` is about to be started. Whoever dies between the start and the record
/// leaves a process that its successor finds only because of this.
pub(super) fn announce(root: &Root, spec: &UnitSpec) -> Result<(), Fault> {
    write(root, &spec.instance, &format!("{ANNOUNCED}{}\n", spec.uid))
}

/// Writes down which process runs as `instance`.
pub(super) fn record(root: &Root, instance: &str, process: &Process) -> Result<(), Fault> {
    // One that has ended already needs no record.
    let Some(identity) = Identity::of(process.pid()) else { return Ok(()) };
    write(root, instance, &format!("{} {}\n", identity.pid, identity.started))
}

fn write(root: &Root, instance: &str, text: &str) -> Result<(), Fault> {
    let path = path(root, instance);
    if let Some(folder) = path.parent().filter(|folder| !folder.is_dir()) {
        files::folder(folder, Access::mode(0o755))?;
    }
    files::write_volatile(&path, text.as_bytes(), Access::mode(0o644))?;
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
    let text = String::from_utf8_lossy(&bytes);
    if let Some(uid) = text.trim_end().strip_prefix(ANNOUNCED).and_then(|uid| uid.parse().ok()) {
        return Ok(search(root, instance, uid)?);
    }
    let Some(identity) = parse(&text) else { return Ok(None) };
    let Some(process) = Process::adopt(identity)? else { return Ok(None) };
    let name = arguments_of(identity.pid).into_iter().next();
    let ours = |name: &String| name.starts_with(&format!("envoy:{instance}:"));
    Ok(name.filter(ours).map(|name| Leftover { process, name }))
}

/// The process that was started and not recorded: by the sidecar's name, the user that it was to run
/// as, and this tree's folder among its arguments. Nobody but that user and root can look like it.
fn search(root: &Root, instance: &str, uid: u32) -> Result<Option<Leftover>, SuperviseError> {
    let prefix = format!("envoy:{instance}:");
    let folder = root.join(FOLDER).join(instance);
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let arguments = arguments_of(pid);
        let Some(name) = arguments.first().filter(|name| name.starts_with(&prefix)) else { continue };
        let here = arguments.iter().any(|argument| std::path::Path::new(argument).starts_with(&folder));
        let Some(identity) = Identity::of(pid).filter(|_| here && user_of(pid) == Some(uid)) else {
            continue;
        };
        if let Some(process) = Process::adopt(identity)? {
            return Ok(Some(Leftover { process, name: name.clone() }));
        }
    }
    Ok(None)
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
