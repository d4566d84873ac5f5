//! Health: runs the checks of this host's services where no agent does it, and tells when a state
//! changes.
//!
//! What is run are `http`, `tcp`, `grpc` and `exec` checks, each at its own interval and never twice
//! at a time; `ttl` checks are reported by the app itself. Nothing else wakes.

mod checker;
mod connect;
mod error;
mod exec;
mod grpc;
mod http;
mod probe;
mod state;
#[cfg(test)]
mod tests;

pub use crate::config::CheckStatus;
pub use checker::{Checker, CheckerKey, States, id_of, unheeded};
pub use error::{HealthError, HealthWarning};
pub use state::CheckState;
