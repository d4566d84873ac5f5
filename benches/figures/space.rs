//! Network namespaces for what is measured.

use std::error::Error;
use std::fs;

use nix::sched::{CloneFlags, unshare};

use crate::program;

/// Takes this thread into a new network namespace with loopback up. Threads and programs that it starts
/// later are in it, too.
pub fn enter_own_namespace() -> Result<(), Box<dyn Error>> {
    let before = fs::read_link("/proc/thread-self/ns/net")?;
    unshare(CloneFlags::CLONE_NEWNET)
        .map_err(|error| format!("cannot make a network namespace ({error}); run as root: make bench"))?;
    if fs::read_link("/proc/thread-self/ns/net")? == before {
        return Err("still in the host's network namespace; nothing is measured there".into());
    }
    program::run("ip", &["link", "set", "lo", "up"], "")
}
