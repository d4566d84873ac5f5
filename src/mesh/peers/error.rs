//! What can be wrong with a peers file.

use std::io;
use std::net::IpAddr;

use crate::base::{Class, Explain, Place};

/// One fault of a peers file, with its place.
#[derive(Debug, thiserror::Error)]
#[error("{problem}")]
pub struct PeersError {
    /// Where.
    pub place: Place,
    /// What.
    pub problem: PeersProblem,
}

/// What is wrong.
#[derive(Debug, thiserror::Error)]
pub enum PeersProblem {
    /// The file is there and cannot be read.
    #[error("cannot read the peers file: {0}")]
    Unreadable(io::Error),
    /// It is larger than a peers file may be.
    #[error("the peers file is larger than {0} bytes")]
    TooLarge(u64),
    /// It is not TOML.
    #[error("not valid TOML: {0}")]
    Syntax(String),
    /// A key that means nothing.
    #[error("unknown key `{key}`")]
    UnknownKey {
        /// The key.
        key: String,
        /// The keys that are known there.
        known: Vec<String>,
    },
    /// A value that is missing or does not fit its key.
    #[error("{0}")]
    Value(String),
    /// A service that is there already.
    #[error("service `{name}` is there already, in line {first}")]
    DuplicateService {
        /// Its name.
        name: String,
        /// Line of the first.
        first: usize,
    },
    /// An instance that is there already.
    #[error("an instance at {address} port {port} is there already, in line {first}")]
    DuplicateInstance {
        /// Its address.
        address: IpAddr,
        /// Its port.
        port: u16,
        /// Line of the first.
        first: usize,
    },
    /// A virtual IP that is given already.
    #[error("the virtual IP {address} is given already, in line {first}")]
    DuplicateVirtualIp {
        /// The address.
        address: IpAddr,
        /// Line of the first.
        first: usize,
    },
    /// An address that cannot be used for what it stands for.
    #[error("{address} cannot be {what}: {why}")]
    Address {
        /// The address.
        address: IpAddr,
        /// What it should be.
        what: &'static str,
        /// Why not.
        why: String,
    },
}

impl Explain for PeersError {
    fn code(&self) -> &'static str {
        match self.problem {
            PeersProblem::Unreadable(_) => "ENM-M001",
            PeersProblem::TooLarge(_) => "ENM-M002",
            PeersProblem::Syntax(_) => "ENM-M003",
            PeersProblem::UnknownKey { .. } => "ENM-M004",
            PeersProblem::Value(_) => "ENM-M005",
            PeersProblem::DuplicateService { .. } => "ENM-M006",
            PeersProblem::DuplicateInstance { .. } => "ENM-M007",
            PeersProblem::DuplicateVirtualIp { .. } => "ENM-M008",
            PeersProblem::Address { .. } => "ENM-M009",
        }
    }

    fn hint(&self) -> String {
        match &self.problem {
            PeersProblem::Unreadable(_) => {
                "it must be a regular file that this user may read, in UTF-8".to_owned()
            }
            PeersProblem::TooLarge(_) => {
                "a mesh of this size needs a Consul server; check that `[static] peers` names the right file"
                    .to_owned()
            }
            PeersProblem::Syntax(_) => "correct the line; strings stand in double quotes".to_owned(),
            PeersProblem::UnknownKey { key, known } => match nearest(key, known) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("the keys here are {}", known.join(", ")),
            },
            PeersProblem::Value(_) => {
                "see the example peers.toml; every service has a name, every instance an address and a port"
                    .to_owned()
            }
            PeersProblem::DuplicateService { .. } => {
                "put the instances of both under one [[service]]; upper and lower case are one name in DNS"
                    .to_owned()
            }
            PeersProblem::DuplicateInstance { .. } => {
                "remove one of the two: a sidecar's port belongs to one service".to_owned()
            }
            PeersProblem::DuplicateVirtualIp { .. } => {
                "give each service addresses of its own, or leave virtual_ips out to have one allocated"
                    .to_owned()
            }
            PeersProblem::Address { .. } => "use a unicast address that nothing else has".to_owned(),
        }
    }

    fn class(&self) -> Class {
        Class::Config
    }

    fn place(&self) -> Option<Place> {
        Some(self.place.clone())
    }
}

/// The known key that `key` was probably meant to be.
fn nearest<'a>(key: &str, known: &'a [String]) -> Option<&'a String> {
    known
        .iter()
        .map(|candidate| (strsim::damerau_levenshtein(key, candidate), candidate))
        // More than a third wrong is another word, not a slip.
        .filter(|(distance, candidate)| distance * 3 <= candidate.len().max(key.len()))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}
