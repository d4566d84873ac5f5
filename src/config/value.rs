//! Values that are right once they exist: each is parsed from text by rules of its own, serialises
//! back to the same text, and carries the JSON Schema that says so.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Why a text is not a value of its type: a sentence that goes into the error as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ValueError(pub String);

/// A value that is written as a string.
macro_rules! textual {
    ($type:ty, $name:literal, $schema:tt) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(de::Error::custom)
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        textual!(@schema $type, $name, $schema);
    };
    (@schema $type:ty, $name:literal, $schema:tt) => {
        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                $name.into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        }
    };
}

mod network;
mod port;
mod span;
mod who;

pub use network::{AddressSpec, Cidr, InterfaceName};
pub use port::{Port, PortRange, PortSpec};
pub use span::Span;
pub use who::{Scope, UnitName, UserSpec};

/// The longest service name that is still a DNS label (RFC 1035, 2.3.4), in bytes.
const LABEL_MAX: usize = 63;

/// The name of a service in Consul.
///
/// One DNS label of letters, digits, `-` and `_`, because `NAME.virtual.consul` must resolve, and
/// because the name stands in SNI, SPIFFE ids and policies.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceName(String);

impl ServiceName {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ServiceName {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let fine = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        if text.len() > LABEL_MAX
            || !text.chars().all(fine)
            || !edge(text.chars().next())
            || !edge(text.chars().last())
        {
            return Err(ValueError(format!(
                "{text:?} is not a service name: 1 to {LABEL_MAX} letters, digits, `-` and `_`, with a letter or digit at both ends"
            )));
        }
        Ok(ServiceName(text.to_owned()))
    }
}

textual!(ServiceName, "ServiceName", {
    "type": "string", "minLength": 1, "maxLength": 63, "pattern": "^[A-Za-z0-9]([A-Za-z0-9_-]*[A-Za-z0-9])?$"
});

/// The id of a service: unique on the host, and part of file and unit names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceId(String);

/// Leaves room for `envoy@`, escapes and `.service` in the 255 bytes of a unit name.
const ID_MAX: usize = 100;

impl ServiceId {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&ServiceName> for ServiceId {
    fn from(name: &ServiceName) -> Self {
        ServiceId(name.0.clone())
    }
}

impl fmt::Display for ServiceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ServiceId {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let first = text.chars().next().is_some_and(|c| c.is_ascii_alphanumeric());
        if text.len() > ID_MAX || !first || !text.chars().all(fine) {
            return Err(ValueError(format!(
                "{text:?} is not a service id: 1 to {ID_MAX} letters, digits, `-`, `_` and `.`, with a letter or digit first"
            )));
        }
        Ok(ServiceId(text.to_owned()))
    }
}

textual!(ServiceId, "ServiceId", {
    "type": "string", "minLength": 1, "maxLength": 100, "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]*$"
});

/// Deserialises from a number through the type's own rules.
struct Number<T>(&'static str, fn(i64) -> Result<T, ValueError>);

impl<T> Visitor<'_> for Number<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        (self.1)(number).map_err(E::custom)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<T, E> {
        self.visit_i64(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

/// Deserialises from a number or a string through the type's own rules.
struct NumberOrText<T>(&'static str, fn(i64) -> Result<T, ValueError>);

impl<T: FromStr<Err = ValueError>> Visitor<'_> for NumberOrText<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        (self.1)(number).map_err(E::custom)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<T, E> {
        self.visit_i64(i64::try_from(number).unwrap_or(i64::MAX))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }
}
