//! Spans of time.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Cow, ValueError};

/// A span of time, written as in systemd and Consul: `10s`, `1m30s`, `72h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

impl Span {
    /// A span of whole seconds.
    pub const fn seconds(seconds: u64) -> Self {
        Span(Duration::from_secs(seconds))
    }
}

impl fmt::Display for Span {
    /// In the units that Go, systemd and this type itself all read: no days, no months.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, nanos) = (self.0.as_secs(), self.0.subsec_nanos());
        let parts = [
            (seconds / 3600, "h"),
            (seconds / 60 % 60, "m"),
            (seconds % 60, "s"),
            (u64::from(nanos / 1_000_000), "ms"),
            (u64::from(nanos / 1_000 % 1_000), "us"),
            (u64::from(nanos % 1_000), "ns"),
        ];
        if self.0.is_zero() {
            return f.write_str("0s");
        }
        parts.iter().filter(|(count, _)| *count > 0).try_for_each(|(count, unit)| write!(f, "{count}{unit}"))
    }
}

impl FromStr for Span {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let wrong = || ValueError(format!("{text:?} is not a time span: such as 500ms, 10s, 1m30s or 72h"));
        let span = humantime::parse_duration(text).map_err(|_| wrong())?;
        if span > SPAN_MAX {
            return Err(ValueError(format!("{text:?} is longer than a hundred years")));
        }
        Ok(Span(span))
    }
}

/// Far above what anybody waits for, and far below what overflows a clock or Go's 63 bits of
/// nanoseconds.
const SPAN_MAX: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

textual!(Span, "Span", { "type": "string", "examples": ["500ms", "10s", "1m30s", "72h"] });
