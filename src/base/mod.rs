//! The floor that every room stands on: coded errors, the tree that `--root` moves, atomic file
//! writes, the one helper for child processes, and the traits through which rooms touch the world.
//!
//! Nothing in here knows what a service or a mesh is.

pub mod bearer;
pub mod ca;
pub mod deadline;
pub mod exec;
pub mod fault;
pub mod files;
pub mod http;
pub mod netlink;
pub mod own;
pub mod process;
pub mod root;
pub mod units;

use std::future::Future;
use std::pin::Pin;

pub use deadline::Deadline;
pub use fault::{Class, Explain, Fault, Place};
pub use root::Root;

/// A future that stays on its thread, as everything in the daemon does.
pub type LocalFuture<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;
