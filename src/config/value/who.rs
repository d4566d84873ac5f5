//! Whose traffic: users and scopes.

use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Cow, NumberOrText, ValueError};

/// A user, by number or by name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum UserSpec {
    /// A numeric uid.
    Uid(u32),
    /// A name that the host resolves.
    Name(String),
}

impl fmt::Display for UserSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            UserSpec::Uid(uid) => uid.fmt(f),
            UserSpec::Name(name) => f.write_str(name),
        }
    }
}

impl FromStr for UserSpec {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
            // The last uid is the kernel's "no user" (setreuid(2)).
            return text
                .parse()
                .ok()
                .filter(|uid| *uid != u32::MAX)
                .map(UserSpec::Uid)
                .ok_or_else(|| ValueError(format!("{text:?} is not a uid: a number from 0 to 4294967294")));
        }
        let first = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        let rest = text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b'$'));
        if text.len() > 31 || !first || !rest {
            return Err(ValueError(format!("{text:?} is neither a user name (useradd(8)) nor a uid")));
        }
        Ok(UserSpec::Name(text.to_owned()))
    }
}

impl<'de> Deserialize<'de> for UserSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NumberOrText("a user name or a uid", |n| n.to_string().parse()))
    }
}

impl Serialize for UserSpec {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            UserSpec::Uid(uid) => serializer.serialize_u32(*uid),
            UserSpec::Name(name) => serializer.serialize_str(name),
        }
    }
}

textual!(@schema UserSpec, "UserSpec", {
    "anyOf": [
        { "type": "integer", "minimum": 0, "maximum": 4294967294u32 },
        { "type": "string", "pattern": "^([0-9]{1,10}|[A-Za-z_][A-Za-z0-9_.$-]{0,30})$" }
    ]
});

/// Whose outbound traffic is captured.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// Everybody's on the host that no other service claims.
    #[default]
    Host,
    /// One user's.
    User(UserSpec),
    /// That of the user a unit runs as.
    Unit(String),
    /// Everybody's in a network namespace of its own.
    Netns(String),
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Scope::Host => f.write_str("host"),
            Scope::User(user) => write!(f, "user:{user}"),
            Scope::Unit(unit) => write!(f, "unit:{unit}"),
            Scope::Netns(name) => write!(f, "netns:{name}"),
        }
    }
}

impl FromStr for Scope {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let wrong = |why: &str| {
            Err(ValueError(format!(
                "{text:?} is not a scope ({why}): host, user:NAME, user:UID, unit:NAME.service or netns:NAME"
            )))
        };
        match text.split_once(':') {
            None if text == "host" => Ok(Scope::Host),
            Some(("user", user)) => user.parse().map(Scope::User),
            Some(("unit", unit)) => {
                if !is_service_unit(unit) {
                    return wrong("the unit must be a service unit, with its ending");
                }
                Ok(Scope::Unit(unit.to_owned()))
            }
            Some(("netns", name)) => {
                let fine = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
                if name.is_empty() || name.len() > 64 || name.starts_with('.') || !name.bytes().all(fine) {
                    return wrong("a namespace name has 1 to 64 letters, digits, `-`, `_` and `.`");
                }
                Ok(Scope::Netns(name.to_owned()))
            }
            _ => wrong("no such kind"),
        }
    }
}

/// Whether `unit` is the name of a service unit (systemd.unit(5)).
fn is_service_unit(unit: &str) -> bool {
    let fine = |b: u8| b.is_ascii_alphanumeric() || b":-_.\\@".contains(&b);
    let stem = unit.strip_suffix(".service");
    unit.len() <= 255 && stem.is_some_and(|stem| !stem.is_empty()) && unit.bytes().all(fine)
}

/// A service unit of systemd.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct UnitName(String);

impl fmt::Display for UnitName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for UnitName {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        match is_service_unit(text) {
            true => Ok(UnitName(text.to_owned())),
            false => {
                Err(ValueError(format!("{text:?} is not the name of a service unit, such as app.service")))
            }
        }
    }
}

textual!(UnitName, "UnitName", { "type": "string", "pattern": "^.+\\.service$" });
textual!(Scope, "Scope", { "type": "string", "pattern": "^(host|user:.+|unit:.+\\.service|netns:.+)$", "default": "host" });
