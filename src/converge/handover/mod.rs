//! Hosts on which scripts have set the rules so far: doing their work by flags, and taking over from them.

mod by_hand;
mod error;
mod migrate;
mod scripts;

pub use by_hand::{Done, Hand};
pub use error::HandoverError;
pub use migrate::{Found, Migrated, find};
pub use scripts::{Fate, Script};

use std::time::Duration;

use crate::base::Fault;
use crate::config::OnProxyFailure;
use crate::plan::{InboundPorts, RedirectPolicy};
use crate::redirect::takeover::{self, Leftover};

/// Our policy for as long as theirs stand. They come first, and what they redirect arrives at a port that our guard
/// does not know; it would refuse that. Nothing goes in the clear meanwhile: theirs redirect it, or else ours do.
pub(super) fn beside_theirs(mut policy: RedirectPolicy) -> RedirectPolicy {
    let all = policy.inbound.values_mut().filter(|capture| capture.ports == InboundPorts::All);
    all.for_each(|capture| capture.on_failure = OnProxyFailure::Open);
    policy
}

/// A packet that their rules have translated may still be on its way to our guard.
const ON_THE_WAY: Duration = Duration::from_millis(200);

/// Removes the rules of others. To be called when ours are in force: a connection meets ours as soon as it
/// does not meet theirs.
///
/// # Errors
/// One of their tables cannot be changed, or `ENM-D044` they are there again.
async fn remove_theirs(found: &[Leftover]) -> Result<Vec<Leftover>, Fault> {
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
        if !found.is_empty() {
            tokio::time::sleep(ON_THE_WAY).await;
        }
        return Ok(found.to_vec());
    }
    let tables = again.into_iter().map(|leftover| leftover.table).collect();
    Err(HandoverError::BackAgain { tables }.into())
}
