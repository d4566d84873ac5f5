//! What the tests of container groups have around them; it serves here as well.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "of the tests"
)]

#[path = "../../tests/support/acl_bed.rs"]
mod acl_bed;
#[path = "../../tests/support/consul_bed.rs"]
mod bed;
#[path = "../../tests/group/docker.rs"]
mod docker;
#[path = "../../tests/group/field.rs"]
pub mod field;
#[path = "../../tests/group/image.rs"]
mod image;
