//! Consul's HTTP API: a client whose every failure has a cause, what the other side is, and three
//! ways of getting a service registered there.
//!
//! A registration comes from the plan in the form of Consul's definition files. The [`Gate`] takes
//! out what the server's release does not know, and says what that costs; a [`Registry`] brings it
//! in and keeps it there: it looks first and writes only when something differs.

mod acl;
pub mod entries;
mod error;
mod http;
mod registration;
mod server;
mod warning;
pub mod xds;

pub use acl::{Access, Login, Right, Session, Whoami, check_rights, missing_rights, needed_rights, whoami};
pub use error::ConsulError;
pub use http::{
    Answer, BasicAuth, Client, Endpoint, Query, SessionToken, Settings, Token, TokenSource, Watch, segment,
};
pub use registration::{
    AgentCheck, AgentChecks, AgentRegistry, Call, CatalogRegistry, CheckReport, Contact, Departure, Entry,
    Feature, FileRegistry, Gate, Health, Key, KnownChecks, Lease, NODE_MARK, Node, Outcome, Presence, Pushed,
    Recorded, Registry, Topic, Vitals, lease,
};
pub use server::{ServerFacts, Source, Version};
pub use warning::ConsulWarning;
pub use xds::stream_cause;
