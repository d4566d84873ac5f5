//! What the catalog can run into, and what it warns of.

use std::time::Duration;

use crate::base::{Class, Explain};
use crate::mesh::ca::Unfit;

/// An error of the control plane `catalog`.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// Consul answers, but not everything has been answered yet.
    #[error("Consul has not told the whole mesh within {limit:?}")]
    Unfinished {
        /// How long was waited.
        limit: Duration,
    },
    /// Nobody tells the datacenter.
    #[error("the datacenter is not known: Consul does not tell it to this token")]
    NoDatacenter,
    /// No certificate came.
    #[error("Consul has issued no certificate for {identity} within {limit:?}")]
    NoLeaf {
        /// Whose.
        identity: String,
        /// How long was waited.
        limit: Duration,
    },
    /// The certificate that came cannot be used.
    #[error("the certificate that Consul issued for {identity} cannot be used")]
    Leaf {
        /// Whose.
        identity: String,
        /// Why not.
        source: Unfit,
    },
    /// The right to something is missing.
    #[error("the ACL token lacks {right}: {why}")]
    Right {
        /// Which, in the words of a policy.
        right: String,
        /// What was refused.
        why: String,
    },
}

impl Explain for CatalogError {
    fn code(&self) -> &'static str {
        match self {
            CatalogError::Unfinished { .. } => "ENM-M044",
            CatalogError::NoDatacenter => "ENM-M045",
            CatalogError::NoLeaf { .. } => "ENM-M046",
            CatalogError::Leaf { .. } => "ENM-M047",
            CatalogError::Right { .. } => "ENM-M048",
        }
    }

    fn hint(&self) -> String {
        let text = match self {
            CatalogError::Unfinished { .. } => "the servers may be overloaded; it goes on by itself",
            CatalogError::NoDatacenter => "set `[consul] datacenter`, or give the token `agent:read`",
            CatalogError::NoLeaf { .. } => {
                "is Connect enabled (`connect { enabled = true }`), and does its CA work? The agent's log says more"
            }
            CatalogError::Leaf { .. } => "check this host's clock; is it the agent of the mesh's datacenter?",
            CatalogError::Right { .. } => {
                "a service identity of each service of this host covers all that is needed"
            }
        };
        text.to_owned()
    }

    fn class(&self) -> Class {
        match self {
            CatalogError::NoDatacenter => Class::Config,
            CatalogError::Right { .. } => Class::Privilege,
            _ => Class::Unavailable,
        }
    }
}

/// Something in Consul that is not carried out, and that a person should know.
#[derive(Debug, thiserror::Error)]
pub enum CatalogWarning {
    /// An instance with a name where an address should be.
    #[error("the instance {id} of {service} is left out: {address:?} is no IP address")]
    Address {
        /// The mesh's service.
        service: String,
        /// The instance's sidecar.
        id: String,
        /// What it has.
        address: String,
    },
    /// A discovery chain that is more than a plain resolver.
    #[error("the {kind} of {service} is not carried out: its instances are called directly")]
    Chain {
        /// The mesh's service.
        service: String,
        /// The kind of the config entry.
        kind: &'static str,
    },
}

impl Explain for CatalogWarning {
    fn code(&self) -> &'static str {
        match self {
            CatalogWarning::Address { .. } => "ENM-M050",
            CatalogWarning::Chain { .. } => "ENM-M051",
        }
    }

    fn hint(&self) -> String {
        let text = match self {
            CatalogWarning::Address { .. } => "register the instance with its IP address",
            CatalogWarning::Chain { .. } => {
                "use `control_plane = \"consul\"`, or take the config entry out where it is not meant"
            }
        };
        text.to_owned()
    }
}
