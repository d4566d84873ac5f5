//! Figures, side by side with how the same is done today. `make bench` runs all of them,
//! `cargo bench --bench figures -- apply` those whose name has `apply` in it.
//!
//! It needs root and takes itself into a network namespace of its own before each figure, so that
//! nothing here can reach the host's rules. Everything compared is run in turns (one round: each
//! way once, the order rotating), so that a slow moment of the machine hits all ways alike; ratios
//! are medians of the rounds' own ratios.

#![allow(missing_docs, reason = "a program, not a library")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "figures are its output")]

mod agent;
mod apply;
mod beds;
mod catalog;
mod connect;
mod daemon;
mod group;
mod host;
mod lane;
mod pipeline;
mod planning;
mod program;
mod repair;
mod size;
mod space;
mod stats;
mod swap;
mod table;
mod today;

use std::error::Error;
use std::process::ExitCode;

use table::Table;

/// What every figure returns.
type Answer = Result<Table, Box<dyn Error>>;

/// A name to choose it by, and what measures it.
type Figure = (&'static str, fn() -> Answer);

/// The figures, in the order they are printed.
const FIGURES: [Figure; 12] = [
    ("apply", apply::from_nothing),
    ("apply-again", apply::again),
    ("connect", connect::measure),
    ("swap", swap::measure),
    ("repair", repair::measure),
    ("plan", planning::measure),
    ("live", daemon::file_to_live),
    ("pipeline", pipeline::measure),
    ("catalog", catalog::measure),
    ("rest", daemon::at_rest),
    ("size", size::measure),
    ("group", group::measure),
];

fn main() -> ExitCode {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let mut code = ExitCode::SUCCESS;
    for (name, measure) in FIGURES {
        if !wanted.is_empty() && !wanted.iter().any(|word| name.contains(word.as_str())) {
            continue;
        }
        // One of its own each: what one figure leaves behind is foreign to the next.
        if let Err(error) = space::enter_own_namespace() {
            eprintln!("error: {error}");
            return ExitCode::from(77);
        }
        match measure() {
            Ok(table) => println!("{table}"),
            Err(error) => {
                eprintln!("error: {name}: {error}");
                code = ExitCode::FAILURE;
            }
        }
    }
    code
}
