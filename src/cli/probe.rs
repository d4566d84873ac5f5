//! `enmesh probe`

use std::fmt::Write as _;

use clap::Args;

use super::Global;
use super::output::Answer;
use crate::base::Fault;
use crate::redirect::{Capabilities, Found, capabilities};

/// Find out what this kernel and its tools can do
#[derive(Debug, Args)]
#[command(
    after_help = "Everything is tried, and nothing is set. What is missing is named with the guarantee that is lost without it.\nExit status 0 when something can redirect, 69 when nothing can, 77 without the privilege to try.\n\nExamples:\n  enmesh probe\n  enmesh probe --json       every capability, for programs"
)]
pub struct Probe {}

impl Probe {
    #[expect(clippy::unused_async, reason = "hearing of changes is tried on the runtime")]
    pub async fn run(self, _global: &Global) -> Result<Answer, Fault> {
        let found = capabilities();
        Ok(Answer::new(text(&found), &found).with_faults(found.faults(), found.warnings()))
    }
}

fn text(found: &Capabilities) -> String {
    let mut text = format!("Linux {}, driver {}\n", found.kernel, found.driver.unwrap_or("none"));
    for one in &found.tried {
        let word = match one.found {
            Found::Yes => "yes",
            Found::No => "no",
            Found::Unknown => "?",
        };
        let detail = if one.detail.is_empty() { String::new() } else { format!(": {}", one.detail) };
        let _ = writeln!(text, "  {word:<4} {}{detail}", one.name);
        if one.found != Found::Yes {
            let _ = writeln!(text, "       without it: {}", one.lost);
        }
    }
    text
}
