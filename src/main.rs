//! The `enmesh` binary; everything is in the library.

fn main() {}
