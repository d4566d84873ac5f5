//! Networks, interfaces and addresses.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Cow, ValueError};

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
        // What begins like an option has no place in an argument list, though the kernel would take it.
        let odd = text == "." || text == ".." || text.starts_with('-');
        if text.is_empty() || text.len() > 15 || odd || !text.bytes().all(fine) {
            return Err(ValueError(format!(
                "{text:?} is not an interface name: 1 to 15 letters, digits, `-` (not first), `_`, `.` and `@`"
            )));
        }
        Ok(InterfaceName(text.to_owned()))
    }
}

textual!(InterfaceName, "InterfaceName", { "type": "string", "pattern": "^[A-Za-z0-9_.@][A-Za-z0-9_.@-]{0,14}$" });

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
