//! Closed from power-on, and nobody is locked out: the real binary as daemon and as commands, real Envoys,
//! real traffic to a peer. Needs root: `cargo test --features netns-tests --test netns_guard`.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "in a test a failure is a panic")]
#![allow(clippy::indexing_slicing, clippy::print_stderr, reason = "in a test a failure is a panic")]

#[path = "../support/host_bed.rs"]
mod host_bed;
#[expect(dead_code, reason = "shared with the tests of the rules, which use all of it")]
#[path = "redirect/lab.rs"]
mod lab;

#[path = "guard/early.rs"]
mod early;
#[path = "guard/killed.rs"]
mod killed;
#[path = "guard/site.rs"]
mod site;
#[path = "guard/ssh.rs"]
mod ssh;
#[path = "guard/trial.rs"]
mod trial;
