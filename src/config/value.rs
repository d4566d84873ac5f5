//! Values that are right once they exist: each is parsed from text by rules of its own, serialises
//! back to the same text, and carries the JSON Schema that says so.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;
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
        Port::try_from(i64::deserialize(deserializer)?).map_err(de::Error::custom)
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

textual!(PortRange, "PortRange", { "type": "string", "pattern": "^[0-9]{1,5}(-[0-9]{1,5})?$" });

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

/// A network, normalised: host bits are cleared, a bare address is a /32 or /128, and an
/// IPv4-mapped IPv6 network is the IPv4 network that it means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr(pub IpNet);

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Cidr {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let wrong = || {
            ValueError(format!("{text:?} is not a network: ADDRESS or ADDRESS/PREFIX, such as 10.0.0.0/8"))
        };
        let net = match text.parse::<IpAddr>() {
            Ok(address) => IpNet::from(address),
            Err(_) => text.parse::<IpNet>().map_err(|_| wrong())?,
        };
        Ok(Cidr(unmapped(net).unwrap_or(net).trunc()))
    }
}

/// `::ffff:a.b.c.d/N` with N of 96 or more, as IPv4.
fn unmapped(net: IpNet) -> Option<IpNet> {
    let IpNet::V6(v6) = net else { return None };
    let v4 = v6.addr().to_ipv4_mapped()?;
    let prefix = v6.prefix_len().checked_sub(96)?;
    IpNet::new(IpAddr::V4(v4), prefix).ok()
}

textual!(Cidr, "Cidr", { "type": "string", "examples": ["10.0.0.0/8", "192.0.2.7", "fd00::/8"] });

/// A network interface name (IFNAMSIZ: at most 15 bytes).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InterfaceName(String);

impl InterfaceName {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for InterfaceName {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let fine = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b'@');
        if text.is_empty() || text.len() > 15 || text == "." || text == ".." || !text.bytes().all(fine) {
            return Err(ValueError(format!(
                "{text:?} is not an interface name: 1 to 15 letters, digits, `-`, `_`, `.` and `@`"
            )));
        }
        Ok(InterfaceName(text.to_owned()))
    }
}

textual!(InterfaceName, "InterfaceName", { "type": "string", "pattern": "^[A-Za-z0-9_.@-]{1,15}$" });

/// The address that is advertised to the mesh.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum AddressSpec {
    /// Found by enmesh: the source address of the default route, or the first global one.
    #[default]
    Auto,
    /// Given.
    Ip(IpAddr),
    /// The first address of an interface.
    Interface(InterfaceName),
}

impl fmt::Display for AddressSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AddressSpec::Auto => f.write_str("auto"),
            AddressSpec::Ip(ip) => ip.fmt(f),
            AddressSpec::Interface(name) => name.fmt(f),
        }
    }
}

impl FromStr for AddressSpec {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        if text == "auto" {
            return Ok(AddressSpec::Auto);
        }
        if let Ok(ip) = text.parse::<IpAddr>() {
            if ip.to_canonical().is_unspecified() || ip.is_multicast() {
                return Err(ValueError(format!(
                    "{text} cannot be advertised: Consul refuses it as a service address"
                )));
            }
            return Ok(AddressSpec::Ip(ip));
        }
        let wrong =
            || ValueError(format!("{text:?} is not an address: `auto`, an IP address, or an interface name"));
        if text.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
            // An interface could have such a name; a slip in an IP address is what it is.
            return Err(wrong());
        }
        text.parse().map(AddressSpec::Interface).map_err(|_| wrong())
    }
}

textual!(AddressSpec, "AddressSpec", { "type": "string", "examples": ["auto", "10.0.0.2", "eth0"], "default": "auto" });

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
                let fine = |b: u8| b.is_ascii_alphanumeric() || b":-_.\\@".contains(&b);
                let stem = unit.strip_suffix(".service");
                if unit.len() > 255 || stem.is_none_or(str::is_empty) || !unit.bytes().all(fine) {
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

textual!(Scope, "Scope", { "type": "string", "pattern": "^(host|user:.+|unit:.+\\.service|netns:.+)$", "default": "host" });

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
