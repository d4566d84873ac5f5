//! Ports, and sets of them.

use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Cow, Number, NumberOrText, ValueError};

/// A TCP port, 1 to 65535.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Port(u16);

impl Port {
    /// The port, unless it is 0.
    pub fn new(number: u16) -> Option<Self> {
        (number != 0).then_some(Port(number))
    }

    /// The number.
    pub fn get(self) -> u16 {
        self.0
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Port {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let number = if digits { text.parse().ok() } else { None };
        number
            .and_then(Port::new)
            .ok_or_else(|| ValueError(format!("{text:?} is not a port: a number from 1 to 65535")))
    }
}

impl TryFrom<i64> for Port {
    type Error = ValueError;

    fn try_from(number: i64) -> Result<Self, ValueError> {
        u16::try_from(number)
            .ok()
            .and_then(Port::new)
            .ok_or_else(|| ValueError(format!("{number} is not a port: a number from 1 to 65535")))
    }
}

impl<'de> Deserialize<'de> for Port {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_i64(Number("a port: a number from 1 to 65535", Port::try_from))
    }
}

textual!(@schema Port, "Port", { "type": "integer", "minimum": 1, "maximum": 65535 });

/// Ports from `first` to `last`, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortRange {
    /// The lowest.
    pub first: Port,
    /// The highest.
    pub last: Port,
}

impl PortRange {
    /// Whether a port is in both.
    pub fn overlaps(self, other: PortRange) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// Just `port`.
    pub fn single(port: Port) -> Self {
        PortRange { first: port, last: port }
    }

    /// Whether `port` is in it.
    pub fn contains(self, port: u16) -> bool {
        (self.first.get()..=self.last.get()).contains(&port)
    }

    /// Every port in it, ascending.
    pub fn iter(self) -> impl Iterator<Item = u16> {
        self.first.get()..=self.last.get()
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last { self.first.fmt(f) } else { write!(f, "{}-{}", self.first, self.last) }
    }
}

impl FromStr for PortRange {
    type Err = ValueError;

    /// `8080`, `8080-9000`, or `8080:9000` as Consul's command writes it.
    fn from_str(text: &str) -> Result<Self, ValueError> {
        let Some((first, last)) = text.split_once(['-', ':']) else {
            return text.parse().map(PortRange::single);
        };
        let range = PortRange { first: first.parse()?, last: last.parse()? };
        if range.first > range.last {
            return Err(ValueError(format!(
                "{text:?} is not a port range: the first port is above the last"
            )));
        }
        Ok(range)
    }
}

textual!(PortRange, "PortRange", { "type": "string", "pattern": "^[0-9]{1,5}([-:][0-9]{1,5})?$" });

/// Ports as people write them: a number, a range, or a name of `/etc/services`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PortSpec {
    /// One port or a range of them.
    Range(PortRange),
    /// A name that the host resolves.
    Name(String),
}

impl fmt::Display for PortSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PortSpec::Range(range) => range.fmt(f),
            PortSpec::Name(name) => f.write_str(name),
        }
    }
}

impl FromStr for PortSpec {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        // RFC 6335, 5.1: letters, digits and hyphens, at least one letter, at most 15.
        let name = text.len() <= 15
            && text.starts_with(|c: char| c.is_ascii_alphabetic())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if name { Ok(PortSpec::Name(text.to_owned())) } else { text.parse().map(PortSpec::Range) }
    }
}

impl<'de> Deserialize<'de> for PortSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer
            .deserialize_any(NumberOrText("a port, a range such as \"8080-9000\", or a port name", |n| {
                Port::try_from(n).map(|port| PortSpec::Range(PortRange::single(port)))
            }))
    }
}

impl Serialize for PortSpec {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            PortSpec::Range(range) if range.first == range.last => {
                serializer.serialize_u16(range.first.get())
            }
            PortSpec::Range(range) => serializer.collect_str(range),
            PortSpec::Name(name) => serializer.serialize_str(name),
        }
    }
}

textual!(@schema PortSpec, "PortSpec", {
    "anyOf": [
        { "type": "integer", "minimum": 1, "maximum": 65535 },
        { "type": "string", "pattern": "^([0-9]{1,5}([-:][0-9]{1,5})?|[A-Za-z][A-Za-z0-9-]{0,14})$" }
    ]
});
