//! What asking a platform can run into.

use std::path::PathBuf;
use std::time::Duration;

use crate::base::{Class, Explain};

/// An error of the room `platform`.
#[derive(Debug, thiserror::Error)]
pub enum PlatformError {
    /// An address that is none.
    #[error("{url:?} is not an address that can be asked")]
    Url {
        /// The text.
        url: String,
    },
    /// Nobody is there.
    #[error("cannot connect to {server}: {why}")]
    Unreachable {
        /// Whom.
        server: String,
        /// Why.
        why: String,
    },
    /// No answer in time.
    #[error("{what} was not answered within {limit:?}")]
    Timeout {
        /// What was asked.
        what: String,
        /// How long was waited.
        limit: Duration,
    },
    /// The answer broke off, or is no HTTP.
    #[error("the answer to {what} broke off: {why}")]
    Broken {
        /// What was asked.
        what: String,
        /// Where.
        why: String,
    },
    /// An answer that makes no sense.
    #[error("the answer to {what} cannot be used: {why}")]
    Answer {
        /// What was asked.
        what: String,
        /// Why not.
        why: String,
    },
    /// TLS failed.
    #[error("no TLS with {server}: {why}")]
    Tls {
        /// With whom.
        server: String,
        /// Why not.
        why: String,
    },
    /// A file with CAs cannot be used.
    #[error("{} cannot be used: {why}", path.display())]
    CaFile {
        /// The file.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// The platform does not give this identity a token.
    #[error("the platform gives no token for {resource:?} (status {status}): {why}")]
    NoIdentity {
        /// Whom the token was to be for.
        resource: String,
        /// The status of the answer.
        status: u16,
        /// What it says.
        why: String,
    },
    /// The metadata endpoint cannot answer now.
    #[error(
        "the platform's metadata endpoint cannot answer now (status {status}); it is asked again in {pause:?}"
    )]
    IdentityBusy {
        /// The status of the answer.
        status: u16,
        /// When it may be asked again.
        pause: Duration,
    },
    /// The identity may not read what it asked for.
    #[error("the identity may not do {what} (status {status}): {why}")]
    Forbidden {
        /// What was asked.
        what: String,
        /// The status of the answer.
        status: u16,
        /// What it says.
        why: String,
    },
    /// The management API wants to be asked less.
    #[error("the management API is asked too much: {what} may be asked again in {after:?}")]
    Throttled {
        /// What was asked.
        what: String,
        /// When it may be asked again.
        after: Duration,
    },
    /// The management API fails.
    #[error("{what} failed with status {status}: {why}")]
    Failed {
        /// What was asked.
        what: String,
        /// The status of the answer.
        status: u16,
        /// What it says.
        why: String,
    },
    /// A list that leads elsewhere, or in circles.
    #[error("the list of {scope} goes on at {link:?}, which is not followed: {why}")]
    Page {
        /// Of what.
        scope: String,
        /// Where it is said to go on.
        link: String,
        /// Why not.
        why: &'static str,
    },
}

impl Explain for PlatformError {
    fn code(&self) -> &'static str {
        match self {
            PlatformError::Url { .. } => "ENM-A001",
            PlatformError::Unreachable { .. } => "ENM-A002",
            PlatformError::Timeout { .. } => "ENM-A003",
            PlatformError::Broken { .. } => "ENM-A004",
            PlatformError::Answer { .. } => "ENM-A005",
            PlatformError::Tls { .. } => "ENM-A006",
            PlatformError::CaFile { .. } => "ENM-A007",
            PlatformError::NoIdentity { .. } => "ENM-A010",
            PlatformError::IdentityBusy { .. } => "ENM-A011",
            PlatformError::Forbidden { .. } => "ENM-A020",
            PlatformError::Throttled { .. } => "ENM-A021",
            PlatformError::Failed { .. } => "ENM-A022",
            PlatformError::Page { .. } => "ENM-A023",
        }
    }

    fn hint(&self) -> String {
        let text = match self {
            PlatformError::Url { .. } => {
                "http://HOST[:PORT] or https://HOST[:PORT], in `[platform]` or IDENTITY_ENDPOINT"
            }
            PlatformError::Unreachable { .. } => {
                "look at the name, the route and the firewall; a metadata endpoint is there only on the platform itself"
            }
            PlatformError::Timeout { .. } | PlatformError::Broken { .. } => {
                "it is asked again by itself; if that goes on, look at who is between here and there"
            }
            PlatformError::Answer { .. } => {
                "is it the right address? see `[platform]` metadata_url and management_url"
            }
            PlatformError::Tls { .. } => {
                "name the CA of a private cloud in `[platform] ca_file`; look at both clocks"
            }
            PlatformError::CaFile { .. } => {
                "install ca-certificates, or name a PEM file in `[platform] ca_file`"
            }
            PlatformError::NoIdentity { .. } => {
                "does the group have an identity? of several, name one by `client_id`; `resource` is an application of the tenant"
            }
            PlatformError::IdentityBusy { .. } => {
                "nothing; 410 means an update of the endpoint, which takes 70 s at most"
            }
            PlatformError::Forbidden { .. } => {
                "give the identity the role Reader on the scope: Microsoft.ContainerInstance/containerGroups/read is what counts"
            }
            PlatformError::Throttled { .. } => {
                "ask less often (`--interval`), or see who else uses this identity"
            }
            PlatformError::Failed { .. } => "it is asked again with the next pass",
            PlatformError::Page { .. } => {
                "the token is shown to the management API alone; see `[platform] management_url`"
            }
        };
        text.to_owned()
    }

    fn class(&self) -> Class {
        match self {
            PlatformError::Url { .. } | PlatformError::CaFile { .. } | PlatformError::NoIdentity { .. } => {
                Class::Config
            }
            PlatformError::Forbidden { .. } => Class::Privilege,
            PlatformError::Unreachable { .. }
            | PlatformError::Timeout { .. }
            | PlatformError::Broken { .. }
            | PlatformError::IdentityBusy { .. }
            | PlatformError::Throttled { .. }
            | PlatformError::Failed { .. } => Class::Unavailable,
            PlatformError::Answer { .. } | PlatformError::Tls { .. } | PlatformError::Page { .. } => {
                Class::Failed
            }
        }
    }
}
