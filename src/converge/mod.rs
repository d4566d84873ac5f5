//! Plan -> the host. Idempotent, and killable at any line: the next run ends in the same state.
//!
//! The order is what keeps connections out of the clear (see [`Engine::converge`]): what was given
//! out is remembered first, the rules come up closed, then certificates, files and sidecars, and
//! only a sidecar that is live gets traffic.

mod adapters;
mod address;
pub mod between;
mod change;
mod diff;
pub mod doctor;
mod drive;
mod early;
mod engine;
mod entries;
mod error;
pub mod explain;
pub mod facts;
pub mod handover;
mod health;
mod hold;
mod init;
mod leave;
mod lock;
mod membership;
mod memory;
mod names;
mod namespaces;
mod preflight;
mod registering;
mod rules;
mod session;
mod sidecar;
pub mod ssh;
pub mod state;
mod status;
mod trial;
mod upstreams;

pub use address::{AddressStatus, SourceStatus};
pub use change::{Change, Kind, Subject};
pub use drive::News;
pub use early::{Early, early};
pub use engine::{Asked, Engine, Intent, Outcome, Purpose, look};
pub use entries::check_entries;
pub use error::ConvergeError;
pub use health::{CheckView, Report};
pub use hold::{held_at_boot, is_captured};
pub use init::init;
pub use lock::Lock;
pub use membership::{ConsulStatus, Registered};
pub use session::TokenStatus;
pub use sidecar::{Phase, SidecarStatus};
pub use state::State;
pub use status::{NamespaceStatus, PendingStatus, Repair, ServiceStatus, Status, Unready};
pub use trial::{TrialError, pending, told};
