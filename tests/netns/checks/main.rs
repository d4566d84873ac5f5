//! Checks on a whole host: the real binary as its daemon, the real Envoy as its sidecars, and a real
//! Consul 1.8.7 in the same namespace. Needs root.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "in a test a failure is a panic"
)]

#[path = "agent.rs"]
mod agent;
#[path = "catalog.rs"]
mod catalog;
#[path = "../../support/consul_bed.rs"]
mod consul_bed;
#[path = "../../support/host_bed.rs"]
mod host_bed;
#[path = "scene.rs"]
mod scene;
