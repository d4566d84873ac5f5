//! The control plane `catalog` against a real Consul 1.8.7, with real Envoys and Consul's own proxy.
//! Each test is in a network namespace of its own. Needs root.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "in a test a failure is a panic, and what was measured is printed"
)]

mod bed;
#[path = "../../support/consul_bed.rs"]
mod consul;
#[path = "../../support/envoy_bed.rs"]
mod envoy;
mod many;
mod picture;
mod proof;
#[path = "../../support/envoy_scenarios.rs"]
mod scenarios;
