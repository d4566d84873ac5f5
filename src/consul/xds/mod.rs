//! Consul's xDS for sidecars: where it is, what a sidecar's registration says once the cluster's
//! defaults are mixed in, and why a sidecar has no stream to it.

mod cause;
mod error;
mod find;
mod merged;
mod probe;

pub use cause::stream_cause;
pub use error::{XdsError, XdsWarning, newer_than_tried};
pub use find::{Found, XdsSettings, ads, find};
pub use merged::{merged, merged_proxy};
pub use probe::{Speaks, probe};
