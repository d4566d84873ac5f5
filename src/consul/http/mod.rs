//! Calls of Consul's HTTP API: where to and with which token, over what, and what the answer means.

mod answer;
mod client;
#[cfg(test)]
pub(super) mod fake;
mod pool;
mod settings;
#[cfg(test)]
mod tests;
mod tls;
mod token;
mod transport;
mod watch;

pub use client::{Answer, Client, Query, segment};
pub use settings::{Endpoint, Settings};
pub use token::{BasicAuth, SessionToken, Token, TokenSource};
pub use watch::Watch;
