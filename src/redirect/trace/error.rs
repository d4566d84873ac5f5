//! What watching one flow in the kernel can run into.

use std::io;
use std::time::Duration;

use crate::base::{Class, Explain};

/// An error of [`super::watch`] and [`super::send`].
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// Nothing came.
    #[error("no such packet came within {waited:?}")]
    Nothing {
        /// How long was waited.
        waited: Duration,
    },
    /// The kernel does not tell.
    #[error("cannot hear what the kernel tells of traced packets")]
    Deaf {
        /// The system's answer.
        source: io::Error,
    },
    /// The driver's rules are in a part of the kernel that traces elsewhere.
    #[error(
        "where the packet went was seen, and not by which rule: `iptables-legacy` traces into the kernel's log only"
    )]
    NoRules,
    /// A packet could not be sent.
    #[error("cannot send a packet as uid {uid}")]
    NotSent {
        /// The user.
        uid: u32,
        /// The system's answer.
        source: io::Error,
    },
}

impl Explain for TraceError {
    fn code(&self) -> &'static str {
        match self {
            TraceError::Nothing { .. } => "ENM-R070",
            TraceError::Deaf { .. } => "ENM-R071",
            TraceError::NoRules => "ENM-R072",
            TraceError::NotSent { .. } => "ENM-R073",
        }
    }

    fn hint(&self) -> String {
        match self {
            TraceError::Nothing { .. } => {
                "only the packet that opens a connection counts; let the application connect anew, wait longer with \
                 --wait 60s, or have one sent with --send"
            }
            TraceError::Deaf { .. } => {
                "run as root in the network namespace of the application; AF_NETLINK sockets must be let through"
            }
            TraceError::NoRules => {
                "the rule is the one that the plan names where the destinations agree; `driver = \"nftables\"` and \
                 `iptables-nft` tell it themselves"
            }
            TraceError::NotSent { .. } => "run as root (it takes CAP_SETUID), or let the application itself connect",
        }
        .to_owned()
    }

    fn class(&self) -> Class {
        match self {
            TraceError::Nothing { .. } | TraceError::NoRules => Class::Failed,
            TraceError::Deaf { .. } | TraceError::NotSent { .. } => Class::Privilege,
        }
    }
}
