//! Two hosts on one machine, with proof line by line.

pub mod app;
mod error;
mod packet;
pub mod process;
pub mod report;
mod tls;
pub mod wire;
