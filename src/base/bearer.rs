//! Where the proof of who this host is comes from, when it logs in somewhere: a file, or a platform. The
//! rooms that bring it and the room that shows it stand on this trait and do not know each other.

use std::fmt;

use super::{Fault, LocalFuture};

/// A text that nobody may see: it is in no log and in no error.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Hides `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Secret(text.into())
    }

    /// The text, for whoever sends it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// Brings a bearer token.
pub trait Bearer: fmt::Debug {
    /// One that is valid now. Whoever implements it sees to it that nobody is asked more often than they
    /// want to be.
    fn fetch(&self) -> LocalFuture<'_, Result<Secret, Fault>>;
}
