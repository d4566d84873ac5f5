//! What converging would change, for `enmesh plan` and for the log.

use std::fmt;

use serde::Serialize;

use crate::config::value::ServiceId;

/// One difference between the plan and the host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Change {
    /// Of what.
    pub subject: Subject,
    /// Its name: a path, a unit, a table.
    pub name: String,
    /// What would happen to it.
    pub kind: Kind,
    /// The service it belongs to; the host where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceId>,
    /// The difference, line by line.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<String>,
}

/// What a change is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Subject {
    /// The rules in the kernel.
    Rules,
    /// The route of the virtual IPs.
    Route,
    /// A network namespace of a service.
    Namespace,
    /// A file for Envoy.
    File,
    /// A sidecar.
    Unit,
    /// What Consul has of a service.
    Registration,
    /// An entry of the folder of config entries.
    #[serde(rename = "config-entry")]
    ConfigEntry,
}

/// What happens to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// It comes into being.
    Add,
    /// It becomes different.
    Change,
    /// It goes.
    Remove,
}

impl Kind {
    /// `+`, `~` or `-`.
    pub fn sign(self) -> char {
        match self {
            Kind::Add => '+',
            Kind::Change => '~',
            Kind::Remove => '-',
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let subject = match self.subject {
            Subject::Rules => "rules",
            Subject::Route => "route",
            Subject::Namespace => "netns",
            Subject::File => "file",
            Subject::Unit => "unit",
            Subject::Registration => "consul",
            Subject::ConfigEntry => "entry",
        };
        write!(f, "{} {subject:<6} {}", self.kind.sign(), self.name)?;
        for detail in &self.details {
            write!(f, "\n      {detail}")?;
        }
        Ok(())
    }
}
