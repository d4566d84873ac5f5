//! Config entries and intentions from a folder, kept in Consul.
//!
//! Each entry is looked at first and written only where Consul has it otherwise, with check-and-set,
//! so that what somebody else writes meanwhile is seen and not lost. Entries are written in the order
//! in which they build on each other, after a look at whether their protocols fit. What Consul adds
//! to an entry is no difference.
//!
//! An entry that is not in the folder any more is left in Consul: other hosts may have it in theirs,
//! and deleting one that is used cuts services off. `consul config delete` is how a person does it.

mod compare;
mod entry;
mod error;
mod intentions;
mod load;
mod protocol;
mod write;

pub use entry::ConfigEntry;
pub use error::EntryError;
pub use load::load;
pub use write::{Difference, EntriesOutcome, apply, plan};
