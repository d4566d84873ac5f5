//! Tables as text.

use std::fmt;
use std::time::Duration;

use crate::stats::Sample;

/// A titled table: the first column left-aligned, the others right-aligned.
pub struct Table {
    title: String,
    head: Vec<String>,
    rows: Vec<Vec<String>>,
    notes: Vec<String>,
}

impl Table {
    /// An empty one.
    pub fn new(title: &str, head: &[&str]) -> Self {
        Table {
            title: title.to_owned(),
            head: head.iter().map(|&cell| cell.to_owned()).collect(),
            rows: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// Samples side by side: median, the span in which 80 % of the rounds lie, and the ratio to the
    /// first of them.
    pub fn of_samples(title: &str, samples: &[Sample]) -> Self {
        let mut table = Table::new(title, &["", "median", "10 % - 90 %", "ratio"]);
        for sample in samples {
            let ratio = samples.first().map_or(f64::NAN, |first| sample.ratio(first));
            table.row([
                sample.name.clone(),
                time(sample.median()),
                format!("{} - {}", time(sample.quantile(0.1)), time(sample.quantile(0.9))),
                format!("{ratio:.2}"),
            ]);
        }
        if let Some(sample) = samples.first() {
            table.note(format!(
                "{} rounds in turns; ratio to the first line, median of the rounds",
                sample.times.len()
            ));
        }
        table
    }

    /// One more line.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// A remark below the table.
    pub fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    fn widths(&self) -> Vec<usize> {
        let mut widths: Vec<usize> = self.head.iter().map(|cell| cell.chars().count()).collect();
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        widths
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widths = self.widths();
        writeln!(f, "{}", self.title)?;
        for row in std::iter::once(&self.head).chain(&self.rows) {
            let mut line = String::from(" ");
            for (column, (cell, &width)) in row.iter().zip(&widths).enumerate() {
                line.push(' ');
                if column == 0 {
                    line.push_str(&format!("{cell:<width$}"));
                } else {
                    line.push_str(&format!("  {cell:>width$}"));
                }
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        self.notes.iter().try_for_each(|note| writeln!(f, "  ({note})"))
    }
}

/// A time with three digits or so, in the unit that suits it.
pub fn time(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    match seconds {
        s if s < 1e-3 => format!("{:.1} us", s * 1e6),
        s if s < 1.0 => format!("{:.1} ms", s * 1e3),
        s => format!("{s:.2} s"),
    }
}
