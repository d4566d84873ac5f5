//! What this room can run into, and what it warns of.

use crate::base::{Class, Explain};

/// An error of this room; codes `ENM-H…`.
#[derive(Debug, thiserror::Error)]
pub enum HealthError {
    /// A report about a check that is not there.
    #[error("the service {service:?} has no check {check:?}{}", others(known))]
    Unknown {
        /// The service's id.
        service: String,
        /// The check's id.
        check: String,
        /// The ids of the checks that it has.
        known: Vec<String>,
    },
    /// A report about a check that is run, by enmesh or by an agent.
    #[error("the check {check:?} of {service:?} is not a `ttl` check: it is run, and not reported")]
    NotReported {
        /// The service's id.
        service: String,
        /// The check's id.
        check: String,
    },
}

fn others(known: &[String]) -> String {
    if known.is_empty() { String::new() } else { format!("; it has {}", known.join(", ")) }
}

impl Explain for HealthError {
    fn code(&self) -> &'static str {
        match self {
            HealthError::Unknown { .. } => "ENM-H001",
            HealthError::NotReported { .. } => "ENM-H002",
        }
    }

    fn hint(&self) -> String {
        let text = match self {
            HealthError::Unknown { .. } => {
                "a check has the `id` of its [[check]] table, else `check-N` with its place in the file, from 1"
            }
            HealthError::NotReported { .. } => "report to a check that has a `ttl`",
        };
        text.to_owned()
    }

    fn class(&self) -> Class {
        Class::Config
    }
}

/// Something that a person should know.
#[derive(Debug, thiserror::Error)]
pub enum HealthWarning {
    /// A kind of check that only an agent runs.
    #[error(
        "the check {check:?} of {service:?} is of the kind `{kind}`, which only an agent runs: it is left out"
    )]
    AgentOnly {
        /// The service's id.
        service: String,
        /// The check's id.
        check: String,
        /// The kind.
        kind: &'static str,
    },
    /// A setting of a check that only an agent carries out.
    #[error(
        "`{field}` of the check {check:?} of {service:?} is an agent's to carry out, and has no effect here"
    )]
    NoEffect {
        /// The service's id.
        service: String,
        /// The check's id.
        check: String,
        /// The key.
        field: &'static str,
    },
    /// Two checks of one service have the same id.
    #[error("two checks of {service:?} have the id {check:?}: only the first is run")]
    Twice {
        /// The service's id.
        service: String,
        /// The id.
        check: String,
    },
}

impl Explain for HealthWarning {
    fn code(&self) -> &'static str {
        match self {
            HealthWarning::AgentOnly { .. } => "ENM-H010",
            HealthWarning::NoEffect { .. } => "ENM-H011",
            HealthWarning::Twice { .. } => "ENM-H012",
        }
    }

    fn hint(&self) -> String {
        let text = match self {
            HealthWarning::AgentOnly { .. } => {
                "use http, tcp, grpc, exec or ttl, or `registration = \"agent\"`"
            }
            HealthWarning::NoEffect { .. } => "take it out, or use `registration = \"agent\"`",
            HealthWarning::Twice { .. } => "give each check an `id` of its own",
        };
        text.to_owned()
    }
}
