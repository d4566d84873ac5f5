//! What the demo says: one line a claim, with a tick or a cross, the figure, and the command that
//! shows it.

use std::io::Write;

use serde::Serialize;

/// One claim, tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Line {
    /// Stable name, for programs.
    pub name: &'static str,
    /// Whether it holds.
    pub ok: bool,
    /// What is claimed.
    pub claim: String,
    /// What was seen, in figures.
    pub detail: String,
    /// The command by which one can see it oneself, while the hosts are up (`--keep`).
    #[serde(skip_serializing_if = "String::is_empty")]
    pub command: String,
}

/// Everything the demo found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Whether every claim holds.
    pub ok: bool,
    /// How long it all took, setting up and cleaning up included, in milliseconds.
    pub milliseconds: u64,
    /// The claims, in the order in which they were tried.
    pub lines: Vec<Line>,
    /// With `--keep`: what to play with, as commands.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub play: Vec<Play>,
}

/// Something to try by hand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Play {
    /// What it does.
    pub what: &'static str,
    /// The command.
    pub command: String,
}

impl Report {
    /// Adds a line; the report stays ok as long as every line is.
    pub fn add(&mut self, line: Line) {
        self.ok = line.ok && (self.ok || self.lines.is_empty());
        self.lines.push(line);
    }

    /// Whether every claim was tried and holds: the exit status is 0 or 1 accordingly.
    pub fn passed(&self) -> bool {
        self.ok
    }
}

/// Where the report goes while it comes about.
pub(super) struct Printer<'a> {
    out: &'a mut dyn Write,
    silent: bool,
    colour: bool,
}

impl<'a> Printer<'a> {
    pub(super) fn new(out: &'a mut dyn Write, silent: bool, colour: bool) -> Self {
        Printer { out, silent, colour }
    }

    /// A word on what is going on.
    pub(super) fn note(&mut self, text: &str) {
        self.flushed(&format!("{text}\n"));
    }

    /// A line, as soon as it is known.
    pub(super) fn line(&mut self, line: &Line) {
        let mark = match (line.ok, self.colour) {
            (true, false) => "✓".to_owned(),
            (false, false) => "✗".to_owned(),
            (true, true) => "\x1b[32m✓\x1b[0m".to_owned(),
            (false, true) => "\x1b[31m✗\x1b[0m".to_owned(),
        };
        let mut text = format!("{mark} {}\n    {}\n", line.claim, line.detail);
        if !line.command.is_empty() {
            text.push_str(&format!("    $ {}\n", line.command));
        }
        self.flushed(&text);
    }

    /// The end: what to play with, and a summary.
    pub(super) fn end(&mut self, report: &Report) {
        let mut text = String::new();
        for play in &report.play {
            text.push_str(&format!("\n  {}\n    {}\n", play.what, play.command));
        }
        let held = report.lines.iter().filter(|line| line.ok).count();
        let tenths = report.milliseconds.div_ceil(100);
        text.push_str(&format!(
            "\n{held} of {} hold, in {}.{} s\n",
            report.lines.len(),
            tenths / 10,
            tenths % 10
        ));
        self.flushed(&text);
    }

    /// A reader that went away is no failure: what is claimed holds or not all the same.
    fn flushed(&mut self, text: &str) {
        if !self.silent {
            let _ = self.out.write_all(text.as_bytes());
            let _ = self.out.flush();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(ok: bool) -> Line {
        Line {
            name: "plain-http",
            ok,
            claim: "plain HTTP is answered".to_owned(),
            detail: "200 after 3 ms".to_owned(),
            command: String::new(),
        }
    }

    #[test]
    fn one_claim_that_fails_fails_the_whole() {
        let mut report = Report::default();
        assert!(!report.passed(), "nothing tried is nothing proven");
        for (ok, whole) in [(true, true), (false, false), (true, false)] {
            report.add(line(ok));
            assert_eq!(report.passed(), whole);
        }
    }

    #[test]
    fn text_comes_line_by_line_unless_a_program_reads_the_report() {
        let mut report = Report { milliseconds: 9_410, ..Report::default() };
        report.add(line(true));
        report.add(line(false));
        let print = |silent| {
            let mut out = Vec::new();
            let mut printer = Printer::new(&mut out, silent, false);
            printer.note("two hosts");
            report.lines.iter().for_each(|line| printer.line(line));
            printer.end(&report);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(
            print(false),
            "two hosts\n✓ plain HTTP is answered\n    200 after 3 ms\n✗ plain HTTP is answered\n    200 after 3 ms\n\
             \n1 of 2 hold, in 9.5 s\n"
        );
        assert_eq!(print(true), "");
        let document = serde_json::to_value(&report).unwrap();
        assert_eq!((&document["ok"], &document["lines"][0]["name"]), (&false.into(), &"plain-http".into()));
    }
}
