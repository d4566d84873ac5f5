//! What keeping entries can run into.

use std::path::PathBuf;

use crate::base::{Class, Explain, Place};

/// An error about config entries. One of an entry never stops the others.
#[derive(Debug, thiserror::Error)]
pub enum EntryError {
    /// The folder or a file of it cannot be read.
    #[error("{} cannot be read: {why}", path.display())]
    Unreadable {
        /// The folder or file.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// A file is no JSON.
    #[error("not valid JSON: {why}")]
    Syntax {
        /// Where.
        place: Place,
        /// What the parser says.
        why: String,
    },
    /// What a file holds is no config entry.
    #[error("entry {number} of the file is no config entry: {why}")]
    NoEntry {
        /// The file.
        place: Place,
        /// Which of its entries, from 1.
        number: usize,
        /// What is wrong.
        why: String,
    },
    /// Two files, or one twice, have the same entry.
    #[error("{label} is also in {}", other.display())]
    Twice {
        /// The file of the second.
        place: Place,
        /// The entry.
        label: String,
        /// The file of the first.
        other: PathBuf,
    },
    /// The protocols of an entry and of what it names do not fit.
    #[error("{label} does not fit: {why}")]
    Protocol {
        /// The file.
        place: Place,
        /// The entry.
        label: String,
        /// What does not fit.
        why: String,
    },
    /// The server is too old for the kind.
    #[error("{label} is of a kind that this Consul does not know")]
    Kind {
        /// The file.
        place: Place,
        /// The entry.
        label: String,
    },
    /// Intentions with permissions, for a server that has none.
    #[error("{label}: this Consul has intentions without permissions only, so those of {} are left out", sources.join(", "))]
    Permissions {
        /// The file.
        place: Place,
        /// The entry.
        label: String,
        /// The sources that have some.
        sources: Vec<String>,
    },
    /// Somebody else writes the same entry again and again.
    #[error("{label} was changed by somebody else each of the {turns} times that it was to be written")]
    Race {
        /// The file.
        place: Place,
        /// The entry.
        label: String,
        /// How often it was tried.
        turns: u32,
    },
    /// Consul does not take the entry.
    #[error("{label} was not written: {why}")]
    Refused {
        /// The file.
        place: Place,
        /// The entry.
        label: String,
        /// Why not.
        why: String,
        /// What to do about it.
        hint: String,
        /// What kind of failure.
        class: Class,
    },
}

impl Explain for EntryError {
    fn code(&self) -> &'static str {
        match self {
            EntryError::Unreadable { .. } => "ENM-K100",
            EntryError::Syntax { .. } => "ENM-K101",
            EntryError::NoEntry { .. } => "ENM-K102",
            EntryError::Twice { .. } => "ENM-K103",
            EntryError::Protocol { .. } => "ENM-K104",
            EntryError::Kind { .. } => "ENM-K105",
            EntryError::Permissions { .. } => "ENM-K106",
            EntryError::Race { .. } => "ENM-K107",
            EntryError::Refused { .. } => "ENM-K108",
        }
    }

    fn hint(&self) -> String {
        let text = match self {
            EntryError::Unreadable { .. } => {
                "`[consul] config_entries` names a folder that this user may read"
            }
            EntryError::Syntax { .. } => "mend the file at this position",
            EntryError::NoEntry { .. } => {
                "an entry is an object with `Kind` and `Name`; a file has one, or a list of them"
            }
            EntryError::Twice { .. } => "keep one of the two",
            EntryError::Protocol { .. } => {
                "set `Protocol` in the service-defaults of the services, or `Config.protocol` in the proxy-defaults"
            }
            EntryError::Kind { .. } => "take it out of the folder, or use a newer Consul",
            EntryError::Permissions { .. } => {
                "give the source an `Action` instead of `Permissions`, or use Consul 1.9 or newer"
            }
            EntryError::Race { .. } => "let one of the two keep it: this folder, or whoever else writes it",
            EntryError::Refused { hint, .. } => hint,
        };
        text.to_owned()
    }

    fn class(&self) -> Class {
        match self {
            EntryError::Race { .. } => Class::Failed,
            EntryError::Kind { .. } | EntryError::Permissions { .. } => Class::Unavailable,
            EntryError::Refused { class, .. } => *class,
            _ => Class::Config,
        }
    }

    fn place(&self) -> Option<Place> {
        match self {
            EntryError::Unreadable { path, .. } => Some(Place::whole(path)),
            EntryError::Syntax { place, .. }
            | EntryError::NoEntry { place, .. }
            | EntryError::Twice { place, .. }
            | EntryError::Protocol { place, .. }
            | EntryError::Kind { place, .. }
            | EntryError::Permissions { place, .. }
            | EntryError::Race { place, .. }
            | EntryError::Refused { place, .. } => Some(place.clone()),
        }
    }
}
