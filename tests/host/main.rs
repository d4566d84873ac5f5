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
//! | `switch` | what several of them are plugged into |
//! | `cable` | its network, and who talks over it from inside and outside |
//! | `inner` | what runs inside a machine: this same program, started there |
//! | `units` | the room `systemd` and the unit files |
//! | `takeover` | the whole product: a host with a legacy service file moves over |
//! | `life` | the whole product: two services through restarts, kills, an upgrade and the end |
//! | `early` | closed from power-on to power-off |
//! | `scopes` | units named in scopes, with users that are made at their start |
//! | `install` | the .deb and the .rpm: install, upgrade under load, removal, purge |
//! | `package` | a host without Envoy, whose package manager installs it |
//! | `names` | a name server outside |
//! | `namespaces` | services in network namespaces for themselves |
//! | `deploy` | who sets machines up: cloud-init, the Vagrant labs, Ansible |
//! | `far` | a third host at the other end of the cable |
//! | `lab` | the whole product with a real Consul: three machines |
//! | `vm` | the whole product on machines that really boot, from a package and from an image |
//! | `manager` | the whole product and systemd: watchdog, reload, scopes by unit, names, journal |

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test program: a panic is how it says no"
)]

mod cable;
mod deploy;
mod early;
mod far;
mod inner;
mod install;
mod lab;
mod life;
mod machine;
mod manager;
mod names;
mod namespaces;
mod package;
mod scopes;
mod switch;
mod takeover;
mod tree;
mod units;
mod vm;
