//! What keeps the redirection in force, with real daemons and real sidecars: drift under the driver iptables, what
//! lives on across everything that may happen to a daemon, and a meter on the wire all the while. Needs root:
//! `cargo test --features netns-tests --test netns_keep`.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "in a test a failure is a panic")]
#![allow(clippy::indexing_slicing, clippy::print_stderr, reason = "in a test a failure is a panic")]

#[path = "../../support/host_bed.rs"]
mod host_bed;
#[path = "../../support/scene.rs"]
mod scene;

#[cfg(test)]
mod drift;
#[cfg(test)]
mod held;
#[cfg(test)]
mod hitless;
#[cfg(test)]
mod leaks;
