//! enmesh on a whole host: a real systemd with a real system bus, booted in a container of the
//! test's own, with a network namespace of its own.
//!
//! Needs root, `mmdebstrap`, `systemd-container` and Envoy (`target/tools/envoy`, or where
//! `ENMESH_ENVOY` says). The first run makes the tree of a small Debian in `target/host-root`, which
//! takes about half a minute; a machine then boots in about three seconds.
//!
//! Run with `cargo test --features host-tests --test host`.
//!
//! | module | what |
//! |---|---|
//! | `tree` | the Debian tree, made once and kept |
//! | `machine` | one booted host: boot, run, write files, power off |
//! | `inner` | what runs inside a machine: this same program, started there |
//! | `units` | the room `systemd` and the unit files |
//!
//! Tests of the whole daemon (a legacy service file in, an active sidecar and rules in the kernel
//! out) belong in a module of their own beside `units`.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test program: a panic is how it says no"
)]

mod inner;
mod machine;
mod tree;
mod units;
