//! What must be so before anything is touched: the capabilities are there, no second redirector is on
//! the host, and nobody but sidecars runs as the sidecars' user, whose traffic would pass the mesh by
//! unseen.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use super::error::ConvergeError;
use caps::{CapSet, Capability};

use crate::base::{Fault, process};
use crate::plan::Plan;
use crate::{envoy, redirect};

/// Whether this process may set rules and routes. Where the kernel does not tell, trying will.
pub(super) fn may_redirect() -> bool {
    !matches!(caps::has_cap(None, CapSet::Effective, Capability::CAP_NET_ADMIN), Ok(false))
}

/// Whether this process may do what converging takes: rules and routes where anything is `redirected`, files that
/// belong to the sidecars' group, and, where enmesh runs the sidecars itself, children under another user.
///
/// # Errors
/// `ENM-D014` names the capabilities that are missing.
pub(super) fn capabilities(supervises: bool, redirected: bool) -> Result<(), ConvergeError> {
    let children = [Capability::CAP_SETUID, Capability::CAP_SETGID, Capability::CAP_KILL];
    let rules = [Capability::CAP_NET_ADMIN];
    let needed = rules.iter().filter(|_| redirected).chain(&[Capability::CAP_CHOWN]);
    let needed = needed.chain(children.iter().filter(|_| supervises));
    // Where the kernel does not tell, trying will.
    let lacks =
        |capability: &&Capability| matches!(caps::has_cap(None, CapSet::Effective, **capability), Ok(false));
    let missing: Vec<String> = needed.filter(lacks).map(ToString::to_string).collect();
    if missing.is_empty() { Ok(()) } else { Err(ConvergeError::Capabilities { missing: missing.join(", ") }) }
}

/// Whether the kernel lets as many sidecars watch their files as `plan` has. They share a user, and
/// Envoy aborts when that user's inotify instances are used up.
pub(super) fn watches(plan: &Plan) -> Option<ConvergeError> {
    let limit = fs::read_to_string("/proc/sys/fs/inotify/max_user_instances").ok()?.trim().parse().ok()?;
    let needed = plan.services.len() * envoy::INOTIFY_INSTANCES;
    (needed > limit).then_some(ConvergeError::Watches { sidecars: plan.services.len(), needed, limit })
}

/// Every reason not to converge on `plan`; another redirector is none where it is `tolerated`. `inodes` are those of
/// the services' network namespaces that are there.
///
/// # Errors
/// The kernel's rules cannot be read.
pub(super) fn check(plan: &Plan, tolerated: bool, inodes: &[u64]) -> Result<Vec<Fault>, Fault> {
    let inside = inodes.iter().map(|inode| PathBuf::from(format!("net:[{inode}]")));
    if plan.redirect.is_empty() {
        return Ok(strangers(plan, &inside.collect()).into_iter().map(Fault::from).collect());
    }
    let foreign = if tolerated { Vec::new() } else { redirect::foreign()? };
    let foreign = foreign.into_iter().map(|foreign| {
        let redirect::Foreign { owner, place, removal } = foreign;
        ConvergeError::ForeignRedirector { owner, place, removal }
    });
    let strangers = strangers(plan, &inside.chain(namespace_of("thread-self")).collect()).into_iter();
    Ok(foreign.chain(strangers).map(Fault::from).collect())
}

/// Processes of these network namespaces that run as a sidecar's user and are none.
fn strangers(plan: &Plan, here: &BTreeSet<PathBuf>) -> Vec<ConvergeError> {
    if here.is_empty() {
        return Vec::new();
    }
    let mut pids: Vec<u32> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    pids.sort_unstable();
    let stranger = |pid: u32| {
        let uid = fs::metadata(format!("/proc/{pid}")).ok()?.uid();
        let owner = plan.services.values().find(|service| service.sidecar.uid == uid)?;
        let name = process::name_of(pid)?;
        let fine = is_sidecar(&name) || is_elsewhere(pid, here);
        (!fine).then_some(ConvergeError::Stranger { pid, name, uid: owner.sidecar.uid })
    };
    pids.into_iter().filter_map(stranger).collect()
}

/// Sidecars run under the name that their unit gives them; `(envoy)` is systemd on its way to
/// becoming one.
fn is_sidecar(name: &str) -> bool {
    name.starts_with("envoy:") || name == "(envoy)"
}

/// Whether the process is in another network namespace than those of `here`. The sandbox of `enmesh.service`
/// does not let us look (that takes CAP_SYS_PTRACE, and with it every secret of the host); there a
/// process with a PID namespace of its own counts as one of a container, which everybody may see.
fn is_elsewhere(pid: u32, here: &BTreeSet<PathBuf>) -> bool {
    if let Some(namespace) = namespace_of(&pid.to_string()) {
        return !here.contains(&namespace);
    }
    // One that has ended meanwhile is nowhere.
    let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else { return true };
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    numbers.is_some_and(|numbers| numbers.split_whitespace().count() > 1)
}

fn namespace_of(process: &str) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{process}/ns/net")).ok()
}
