//! Calls of Consul's HTTP API: where to and with which token, over what, and what the answer means.

mod answer;
mod client;
mod settings;
#[cfg(test)]
mod tests;
mod tls;
mod transport;
mod watch;

pub use client::{Answer, Client, Query, segment};
pub use settings::{Endpoint, Settings, Token, TokenSource};
pub use watch::Watch;
