//! Whose a namespace is that has a name of ours, and getting it back when its name went.

use super::error::NetnsError;
use super::namespace::{Identity, Namespace};
use crate::base::Fault;

/// What is known of the namespace that shall have a name.
#[derive(Debug, Clone, Copy)]
pub enum Known<'a> {
    /// Nothing: whoever has the name is a stranger.
    Nothing,
    /// Its making was begun, and nobody had the name then.
    Begun,
    /// It was made, and this is which.
    Made(Identity),
    /// It is open, so that it cannot have ended.
    Held(&'a Namespace),
}

/// The namespace `name`: the one that is known, or a new one where there is none any more.
///
/// One that is held and has lost its name gets it back: what runs in it goes on. Nobody else's is ever
/// entered, changed or taken away.
///
/// # Errors
/// `ENM-N030` somebody else has the name, `ENM-N031` the one that enmesh made was replaced; otherwise as
/// [`Namespace::create`].
pub fn claim(name: &str, known: Known<'_>) -> Result<Namespace, Fault> {
    let there = Namespace::find(name)?;
    let replaced = || NetnsError::Replaced { name: name.to_owned() };
    match (known, there) {
        (Known::Held(own), Some(there)) if own.identity() == there.identity() => Ok(there),
        (Known::Made(identity), Some(there)) if identity == there.identity() => Ok(there),
        (Known::Begun, Some(there)) => Ok(there),
        (Known::Held(_) | Known::Made(_), Some(_)) => Err(replaced().into()),
        (Known::Nothing, Some(_)) => Err(NetnsError::NotOurs { name: name.to_owned() }.into()),
        (Known::Held(own), None) => own.name_again(name),
        (Known::Nothing | Known::Begun | Known::Made(_), None) => Namespace::create(name),
    }
}

/// Takes the name `name` away where the namespace is the one that is known. Returns whether it was.
///
/// # Errors
/// As [`Namespace::delete`].
pub fn give_up(name: &str, known: Known<'_>) -> Result<bool, Fault> {
    let ours = match (known, Namespace::find(name)?) {
        (Known::Held(own), Some(there)) => own.identity() == there.identity(),
        (Known::Made(identity), Some(there)) => identity == there.identity(),
        (Known::Begun, _) => true,
        (Known::Nothing, _) => false,
        // At most a file on which nothing is bound.
        (Known::Held(_) | Known::Made(_), None) => true,
    };
    if ours { Namespace::delete(name) } else { Ok(false) }
}
