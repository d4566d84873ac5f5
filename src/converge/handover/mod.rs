//! Hosts on which scripts have set the rules so far: doing their work by flags, and taking over from them.

mod by_hand;
mod error;
mod migrate;
mod scripts;

pub use by_hand::{Done, Hand};
pub use error::HandoverError;
pub use migrate::{Found, Migrated, find};
pub use scripts::{Fate, Script};

use std::collections::BTreeSet;

use crate::base::Fault;
use crate::redirect::takeover::{self, Leftover};

/// The ports that rules of others redirect to. While those rules stand, what they redirect arrives there.
fn ports_of(leftovers: &[Leftover]) -> BTreeSet<u16> {
    leftovers.iter().flat_map(|leftover| leftover.ports.iter().copied()).collect()
}

/// Removes the rules of others. To be called when ours are in force: a connection meets ours as soon as it
/// does not meet theirs.
///
/// # Errors
/// One of their tables cannot be changed, or `ENM-D044` they are there again.
fn remove_theirs(found: &[Leftover]) -> Result<Vec<Leftover>, Fault> {
    for leftover in found {
        if let Err(fault) = takeover::remove(leftover) {
            // Somebody changed the table since it was read, which moves what is to be removed.
            let again = takeover::leftovers()?.into_iter().find(|other| other.table == leftover.table);
            match again {
                Some(other) if other != *leftover => takeover::remove(&other)?,
                Some(_) => return Err(fault),
                None => {}
            }
        }
    }
    let again = takeover::leftovers()?;
    if again.is_empty() {
        return Ok(found.to_vec());
    }
    let tables = again.into_iter().map(|leftover| leftover.table).collect();
    Err(HandoverError::BackAgain { tables }.into())
}
