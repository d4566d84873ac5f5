//! Hosts of a cloud: what is left behind when they are killed, who they are, and at which address. With a
//! real Consul 1.8.7 that denies by default, and a fake of the platform's endpoints. Needs root.
//! `cargo test --features netns-tests --test netns_cloud`
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "in a test a failure is a panic"
)]

#[path = "../../support/acl_bed.rs"]
mod acl_bed;
#[path = "../../support/consul_bed.rs"]
mod bed;
mod commands;
mod daemon;
#[path = "../../support/fake_azure.rs"]
mod fake_azure;
#[path = "../../support/host_bed.rs"]
mod host_bed;
mod identity;
mod land;
mod reap;
