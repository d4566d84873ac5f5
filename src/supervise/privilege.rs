//! What enmesh keeps of the privileges that its container was started with.

use caps::errors::CapsError;
use caps::{CapSet, Capability, CapsHashSet};

/// What the work takes for as long as it lasts, and what for.
const NEEDED: [(Capability, &str); 9] = [
    (Capability::CAP_NET_ADMIN, "rules and routes, also to set them again when somebody changed them"),
    (Capability::CAP_NET_RAW, "iptables, where there is no nftables"),
    (Capability::CAP_NET_BIND_SERVICE, "a resolver or an endpoint at a port below 1024"),
    (Capability::CAP_SETUID, "starting Envoy and checks as other users, again and again"),
    (Capability::CAP_SETGID, "the same"),
    (Capability::CAP_KILL, "ending them"),
    (Capability::CAP_CHOWN, "files that belong to Envoy's group"),
    (Capability::CAP_FOWNER, "the same"),
    (Capability::CAP_DAC_OVERRIDE, "Envoy's admin socket, which is Envoy's"),
];

/// What it takes beyond that to place an app in a network namespace of its own.
const NAMESPACES: [Capability; 2] = [Capability::CAP_SYS_ADMIN, Capability::CAP_SYS_PTRACE];

/// What is left, and what went.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Kept {
    /// Names of what is kept.
    pub kept: Vec<String>,
    /// Names of what was given up.
    pub dropped: Vec<String>,
}

/// Gives up, for this thread and those that it starts from now on, every capability that is not needed, and for all of
/// their children the way to get any back. Call it before there are other threads.
///
/// # Errors
/// The kernel refused; what was held is held.
pub fn drop_needless(namespaces: bool) -> Result<Kept, CapsError> {
    let mut needed: CapsHashSet = NEEDED.iter().map(|(capability, _)| *capability).collect();
    needed.extend(NAMESPACES.iter().filter(|_| namespaces));
    let held = caps::read(None, CapSet::Permitted)?;
    let bounding = caps::read(None, CapSet::Bounding)?;
    caps::clear(None, CapSet::Ambient)?;
    // Lowering the bound takes a capability that goes with the rest, and is not always given. No new privileges
    // (which the room sets for its children) holds without it.
    if held.contains(&Capability::CAP_SETPCAP) {
        for capability in bounding.difference(&needed) {
            caps::drop(None, CapSet::Bounding, *capability)?;
        }
    }
    let keep: CapsHashSet = held.intersection(&needed).copied().collect();
    caps::set(None, CapSet::Inheritable, &CapsHashSet::new())?;
    caps::set(None, CapSet::Effective, &keep)?;
    caps::set(None, CapSet::Permitted, &keep)?;
    let names = |set: &mut dyn Iterator<Item = &Capability>| {
        let mut names: Vec<String> = set.map(ToString::to_string).collect();
        names.sort_unstable();
        names
    };
    Ok(Kept { kept: names(&mut keep.iter()), dropped: names(&mut held.difference(&needed)) })
}
