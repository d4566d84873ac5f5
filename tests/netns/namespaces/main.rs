//! Services in network namespaces for themselves: real kernel, real daemons, real Envoys.
//! `cargo test --features netns-tests --test netns_namespaces`; needs root, `nft` and Envoy.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test fails by panicking, also in its helpers"
)]

mod agent;
mod bed;
mod calls;
mod driven;
#[path = "../../support/envoy_bed.rs"]
mod envoy_bed;
#[path = "../../support/fake_consul/mod.rs"]
mod fake_consul;
#[path = "../../support/host_bed.rs"]
mod host_bed;
mod keep;
mod trial;
