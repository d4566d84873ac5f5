//! Consul's HTTP API: a client whose every failure has a cause, what the other side is, and three
//! ways of getting a service registered there.
//!
//! A registration comes from the plan in the form of Consul's definition files. The [`Gate`] takes
//! out what the server's release does not know, and says what that costs; a [`Registry`] brings it
//! in and keeps it there: it looks first and writes only when something differs.

mod agent;
mod answer;
mod catalog;
mod client;
mod compare;
mod definition;
mod error;
mod file;
mod gate;
mod recorded;
mod registry;
mod server;
mod settings;
#[cfg(test)]
mod tests;
mod tls;
mod transport;
mod validate;
mod watch;
pub mod xds;

pub use agent::AgentRegistry;
pub use catalog::{CatalogRegistry, Node};
pub use client::{Answer, Client, Query, segment};
pub use error::{ConsulError, ConsulWarning};
pub use file::FileRegistry;
pub use gate::{Feature, Gate};
pub use recorded::{Call, Recorded};
pub use registry::{Entry, Health, Key, Outcome, Registry};
pub use server::{ServerFacts, Source, Version};
pub use settings::{Endpoint, Settings, Token, TokenSource};
pub use watch::Watch;
pub use xds::stream_cause;
