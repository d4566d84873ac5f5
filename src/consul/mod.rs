//! Consul's HTTP API: a client whose every failure has a cause, what the other side is, and three
//! ways of getting a service registered there.
//!
//! A registration comes from the plan in the form of Consul's definition files. The [`Gate`] takes
//! out what the server's release does not know, and says what that costs; a [`Registry`] brings it
//! in and keeps it there: it looks first and writes only when something differs.

mod error;
mod http;
mod registration;
mod server;

pub use error::{ConsulError, ConsulWarning};
pub use http::{Answer, Client, Endpoint, Query, Settings, Token, TokenSource, Watch, segment};
pub use registration::{
    AgentRegistry, Call, CatalogRegistry, Contact, Entry, Feature, FileRegistry, Gate, Health, Key, Node,
    Outcome, Presence, Recorded, Registry, Topic,
};
pub use server::{ServerFacts, Source, Version};
