//! The redirection in a real kernel: namespaces of the tests' own, real sockets, clients under
//! other users. Needs root: `cargo test --features netns-tests --test netns_redirect`.
//!
//! `by_hand` and `migrate` are the commands for hosts with scripts, `matrix` holds the traffic cases as a table that any driver can be put through, `many` a hundred services, `scenarios` the
//! ones that take more than one connection, `kernel` what the kernel gives back, `speed` a
//! measurement.

#[cfg(test)]
mod agent;
#[cfg(test)]
mod by_hand;
#[cfg(test)]
mod containers;
#[cfg(test)]
mod drivers;
#[cfg(test)]
mod first;
#[cfg(test)]
mod iptables;
#[cfg(test)]
mod kernel;
#[cfg(test)]
mod lab;
#[cfg(test)]
mod many;
#[cfg(test)]
mod matrix;
#[cfg(test)]
mod migrate;
#[cfg(test)]
mod neighbours;
#[cfg(test)]
mod scenarios;
#[cfg(test)]
mod speed;
#[cfg(test)]
mod ufw;
#[cfg(test)]
mod worlds;
