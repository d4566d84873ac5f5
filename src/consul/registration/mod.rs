//! Getting a service registered: in what form, what of it the server takes, and three ways there.

mod agent;
mod catalog;
mod checks;
mod compare;
mod definition;
mod departure;
mod file;
mod gate;
pub mod lease;
mod presence;
mod recorded;
mod registry;
mod report;
mod validate;

pub use agent::AgentRegistry;
pub use catalog::{CatalogRegistry, NODE_MARK, Node};
pub use checks::{CheckReport, KnownChecks, Pushed, Vitals};
pub use departure::Departure;
pub use file::FileRegistry;
pub use gate::{Feature, Gate};
pub use lease::Lease;
pub use presence::{Contact, Presence, Topic};
pub use recorded::{Call, Recorded};
pub(super) use registry::digest;
pub use registry::{Entry, Health, Key, Outcome, Registry};
pub use report::{AgentCheck, AgentChecks};
