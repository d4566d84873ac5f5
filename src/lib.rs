//! enmesh puts the services of a Linux host into a Consul service mesh with transparent proxy.
//!
//! The rooms, from the floor up; a room imports only rooms that stand above it in this list. The
//! adapters (`consul` to `systemd`) know the plan's types and never each other.

pub mod base;
pub mod config;
pub mod plan;

pub mod consul;
pub mod envoy;
pub mod health;
pub mod netns;
pub mod platform;
pub mod redirect;
pub mod supervise;
pub mod systemd;

pub mod mesh;
pub mod reap;

pub mod converge;
pub mod daemon;
pub mod demo;

pub mod cli;
