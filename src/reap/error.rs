//! What a reaper can run into beyond the faults of Consul and of the platform.

use crate::base::{Class, Explain};

/// An error of the room `reap`.
#[derive(Debug, thiserror::Error)]
pub enum ReapError {
    /// Nobody is to be judged.
    #[error("neither a scope of the platform is named nor are leases to be judged by")]
    Nobody,
    /// A scope that is none.
    #[error("{scope:?} is neither a subscription nor a resource group")]
    Scope {
        /// The text.
        scope: String,
    },
    /// More would go than may.
    #[error(
        "{gone} of {all} hosts are gone, and one pass takes out {share} % at most; nothing was taken out"
    )]
    TooMany {
        /// How many would go.
        gone: usize,
        /// Of how many.
        all: usize,
        /// The share, in percent.
        share: u8,
    },
    /// Tokens cannot be listed (a warning).
    #[error("the logins of the auth method {method:?} cannot be listed: {why}")]
    Tokens {
        /// The auth method.
        method: String,
        /// Why not.
        why: String,
    },
    /// What former passes have seen cannot be read (a warning).
    #[error("what former passes have seen cannot be read ({why}); all times begin anew")]
    Memory {
        /// Why not.
        why: String,
    },
    /// Something came back at the last moment (a warning).
    #[error("{owner} was not taken out: it changed meanwhile, or another reaper leads")]
    CameBack {
        /// Whose it is.
        owner: String,
    },
    /// Something could not be taken out.
    #[error("{what} of {owner} could not be taken out: {why}")]
    Left {
        /// What.
        what: String,
        /// Whose it is.
        owner: String,
        /// Why not.
        why: String,
    },
    /// The lead went to another one.
    #[error("what this pass has seen was not kept, since another reaper leads now")]
    LostLead,
}

impl Explain for ReapError {
    fn code(&self) -> &'static str {
        match self {
            ReapError::Nobody => "ENM-A040",
            ReapError::TooMany { .. } => "ENM-A041",
            ReapError::Tokens { .. } => "ENM-A042",
            ReapError::Memory { .. } => "ENM-A043",
            ReapError::CameBack { .. } => "ENM-A044",
            ReapError::Left { .. } => "ENM-A045",
            ReapError::LostLead => "ENM-A046",
            ReapError::Scope { .. } => "ENM-A047",
        }
    }

    fn hint(&self) -> String {
        let text = match self {
            ReapError::Nobody => {
                "name subscriptions or resource groups with --scope, or judge by leases with --leases"
            }
            ReapError::TooMany { .. } => {
                "`enmesh reap --dry-run` lists them; if they are really gone, run it once with a larger --max-share"
            }
            ReapError::Tokens { .. } => {
                "give the reaper's token `acl = \"write\"`, or leave --auth-method out: logins end by themselves"
            }
            ReapError::Memory { .. } => "nothing; whatever is gone is taken out one grace later",
            ReapError::CameBack { .. } => "nothing; it is judged anew with the next pass",
            ReapError::Left { .. } => {
                "the policy in docs/reap.md has the rights that it takes; it is tried again with the next pass"
            }
            ReapError::Scope { .. } => "/subscriptions/ID, or /subscriptions/ID/resourceGroups/NAME",
            ReapError::LostLead => "nothing; it goes on from what the other one has seen",
        };
        text.to_owned()
    }

    fn class(&self) -> Class {
        match self {
            ReapError::Nobody | ReapError::Scope { .. } => Class::Usage,
            _ => Class::Failed,
        }
    }
}
