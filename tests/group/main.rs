//! Container groups without systemd: real containers of a real Docker Engine that share a network namespace, a real
//! Envoy, and a real Consul 1.8.7 outside of the group that denies everything to whoever is not logged in. Needs root.
//! `cargo test --features group-tests --test group -- --test-threads=1`
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "in a test a failure is a panic"
)]
#![allow(clippy::disallowed_methods, reason = "Docker runs beside the test, and is no child of enmesh")]

#[path = "../support/acl_bed.rs"]
mod acl_bed;
#[path = "../support/consul_bed.rs"]
mod bed;
mod docker;
mod dockerfile;
#[path = "../support/fake_azure.rs"]
mod fake_azure;
mod field;
mod image;
mod life;
mod reduced;
mod rolling;
#[allow(dead_code, reason = "of the trees of machines, only where packages come from")]
#[path = "../host/tree.rs"]
mod tree;
mod whole;
