//! What this room warns of.

use std::path::PathBuf;

use crate::base::Explain;

/// Something that is accepted, and that a person should know.
#[derive(Debug, thiserror::Error)]
pub enum ConsulWarning {
    /// A field was left out because the server is too old for it.
    #[error("Consul {version} does not know `{field}` (it came with {since}), so it is left out: {cost}")]
    LeftOut {
        /// The field, in the file form.
        field: String,
        /// What the server is.
        version: String,
        /// Where the field came in.
        since: String,
        /// What that costs.
        cost: String,
    },
    /// A field was left out because the server is not Consul Enterprise.
    #[error("`{field}` is left out, since the server is not Consul Enterprise: {cost}")]
    Enterprise {
        /// The field, in the file form.
        field: String,
        /// What that costs.
        cost: String,
    },
    /// Without a port there is no proxy in the catalog.
    #[error("{service:?} is a client only, so its sidecar is not put into the catalog")]
    NoProxy {
        /// The service's id.
        service: String,
    },
    /// What is registered is not what was sent, also right after it was sent.
    #[error("Consul keeps {service:?} otherwise than it was sent: {}", differences.join("; "))]
    Kept {
        /// The service's id.
        service: String,
        /// What differs.
        differences: Vec<String>,
    },
    /// The definition file is written and the agent was not told.
    #[error("{} is written, and the agent was not told to read it: {why}", path.display())]
    NotReloaded {
        /// The file.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// Nobody tells which version Consul is.
    #[error("Consul does not tell its version: {why}")]
    VersionUnknown {
        /// Why not.
        why: String,
    },
}

impl Explain for ConsulWarning {
    fn code(&self) -> &'static str {
        match self {
            ConsulWarning::LeftOut { .. } => "ENM-K050",
            ConsulWarning::Enterprise { .. } => "ENM-K051",
            ConsulWarning::NoProxy { .. } => "ENM-K052",
            ConsulWarning::Kept { .. } => "ENM-K053",
            ConsulWarning::NotReloaded { .. } => "ENM-K054",
            ConsulWarning::VersionUnknown { .. } => "ENM-K055",
        }
    }

    fn hint(&self) -> String {
        let text = match self {
            ConsulWarning::LeftOut { .. } => "take the field out of the service file, or use a newer Consul",
            ConsulWarning::Enterprise { .. } => {
                "take the field out of the service file, or use Consul Enterprise"
            }
            ConsulWarning::NoProxy { .. } => "nothing; give the service a `port` if others shall reach it",
            ConsulWarning::Kept { .. } => {
                "Consul changes what it is sent, or somebody else registers the same id; it is not sent again and again"
            }
            ConsulWarning::NotReloaded { .. } => {
                "the agent reads it at its next start; `consul reload` makes it read now (it takes `agent:write`)"
            }
            ConsulWarning::VersionUnknown { .. } => {
                "give the token `agent:read`; without it a field that Consul refuses is found out by trying"
            }
        };
        text.to_owned()
    }
}
