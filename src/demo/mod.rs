//! Two hosts on one machine, with proof line by line.

pub mod app;
mod control;
mod error;
mod packet;
pub mod patience;
pub mod process;
pub mod report;
pub mod snapshot;
pub mod stage;
mod tls;
pub mod wire;
