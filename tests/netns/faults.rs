//! What goes wrong on real hosts, done to the real binary, kernel and Envoy: every case starts from a
//! host on which `api` is in the mesh, breaks one thing, and wants to see a coded fault with a hint
//! soon, `api` untouched (same process, same rules), and recovery once the cause is gone.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "in a test a failure is a panic")]
#![allow(clippy::indexing_slicing, clippy::print_stderr, reason = "in a test a failure is a panic")]

#[path = "faults/commands.rs"]
mod commands;
#[path = "../support/host_bed.rs"]
mod host_bed;
#[path = "faults/lifecycle.rs"]
mod lifecycle;
#[path = "faults/parts.rs"]
mod parts;
#[path = "faults/remembered.rs"]
mod remembered;
#[path = "faults/service_files.rs"]
mod service_files;
