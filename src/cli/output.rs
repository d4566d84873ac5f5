//! Standard output is the answer, as text or as one JSON document; standard error is for people.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use serde::Serialize;
use serde_json::{Value, json};

use crate::base::{Class, Fault};

/// What a verb answers.
pub struct Answer {
    /// For people.
    pub text: String,
    /// For programs.
    pub json: Value,
    /// The exit status.
    pub exit: u8,
    /// Faults that are worth saying although there is an answer.
    pub faults: Vec<Fault>,
    /// Worth knowing.
    pub warnings: Vec<Fault>,
}

impl Answer {
    /// An answer with exit status 0.
    pub fn new(text: impl Into<String>, json: &impl Serialize) -> Self {
        let json = serde_json::to_value(json).unwrap_or_default();
        Answer { text: text.into(), json, exit: 0, faults: Vec::new(), warnings: Vec::new() }
    }

    /// The same answer with faults beside it, which decide the exit status.
    #[must_use]
    pub fn with_faults(mut self, faults: Vec<Fault>, warnings: Vec<Fault>) -> Self {
        // The worst class speaks for all: a bad file outweighs what follows from it.
        let worst = faults.iter().map(|fault| fault.class).min_by_key(|class| match class {
            Class::Privilege => 0,
            Class::Config => 1,
            Class::Unavailable => 2,
            Class::Usage | Class::Failed => 3,
        });
        self.exit = worst.map_or(self.exit, Class::exit_code);
        self.faults = faults;
        self.warnings = warnings;
        self
    }

    /// Prints it and returns the exit status.
    pub fn print(self, json: bool) -> ExitCode {
        if json {
            write_out(&document(self.json));
        } else {
            if !self.text.is_empty() {
                write_out(&self.text);
            }
            self.warnings.iter().for_each(|fault| say("warning", fault));
            self.faults.iter().for_each(|fault| say("error", fault));
        }
        ExitCode::from(self.exit)
    }
}

/// Prints a fault that left no answer.
pub fn print_fault(fault: &Fault, json: bool) -> ExitCode {
    if json {
        write_out(&document(json!({ "error": fault })));
    } else {
        say("error", fault);
    }
    ExitCode::from(fault.class.exit_code())
}

fn document(value: Value) -> String {
    serde_json::to_string_pretty(&value).unwrap_or_default()
}

/// A reader that went away (`| head`) is no failure.
fn write_out(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes());
    if !text.ends_with('\n') {
        let _ = out.write_all(b"\n");
    }
    let _ = out.flush();
}

fn say(kind: &str, fault: &Fault) {
    let mut err = std::io::stderr().lock();
    let colour = err.is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let paint = if kind == "error" { "\x1b[1;31m" } else { "\x1b[1;33m" };
    let (on, off) = if colour { (paint, "\x1b[0m") } else { ("", "") };
    let _ = writeln!(err, "{on}{kind}{off}: {fault}");
    if !fault.hint.is_empty() {
        let _ = writeln!(err, "  hint: {}", fault.hint);
    }
}
