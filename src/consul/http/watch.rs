//! Waiting for a change: Consul holds the call until there is one, or until the time is over.

use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::Instant;

use crate::consul::{Client, ConsulError, Query};

/// Consul adds up to a sixteenth of the wait by chance; the rest is for a server that is slow.
const SLACK: Duration = Duration::from_secs(10);
/// The pause after an answer that came early and brought nothing new, so that a server that does not
/// wait is not asked thousands of times a second.
const EARLY_PAUSE: Duration = Duration::from_secs(1);

/// What is remembered from one answer to the next.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Cursor {
    Index(u64),
    Hash(String),
}

/// A call that is made over and over, and answers when what it asks for has changed.
#[derive(Debug)]
pub struct Watch {
    query: Query,
    wait: Duration,
    cursor: Cursor,
    last: Option<Value>,
}

impl Watch {
    /// For calls that answer with an index: catalog, health, intentions, certificates. One call
    /// waits for `wait` at most (Consul allows ten minutes).
    pub fn by_index(query: Query, wait: Duration) -> Self {
        Watch { query, wait, cursor: Cursor::Index(0), last: None }
    }

    /// For calls that answer with a hash of their content: `/v1/agent/service/:id`.
    pub fn by_hash(query: Query, wait: Duration) -> Self {
        Watch { query, wait, cursor: Cursor::Hash(String::new()), last: None }
    }

    /// What there is: at once the first time, from then on when it differs from the last time. It
    /// may be dropped midway; the next call goes on from the same place.
    ///
    /// # Errors
    /// See [`ConsulError`]. Nothing is tried again here; the place is kept, so that what changes
    /// meanwhile is answered by the next call.
    pub async fn next(&mut self, client: &Client) -> Result<Value, ConsulError> {
        loop {
            let asked = Instant::now();
            let answer = client.get_within(&self.question(), self.wait + self.wait / 16 + SLACK).await?;
            let (cursor, moved) = self.follow(answer.index, answer.hash)?;
            self.cursor = cursor;
            // An index moves with every change of its kind, also one that this call does not show.
            if self.last.as_ref() != Some(&answer.body) {
                self.last = Some(answer.body.clone());
                return Ok(answer.body);
            }
            if !moved && asked.elapsed() < self.wait / 2 {
                tokio::time::sleep(EARLY_PAUSE).await;
            }
        }
    }

    /// As [`Watch::next`], whenever the index moved, also when that does not show: for answers that
    /// tell that something changed without saying what. Nothing is remembered but the index.
    ///
    /// # Errors
    /// See [`ConsulError`].
    pub async fn moved<T: DeserializeOwned>(&mut self, client: &Client) -> Result<T, ConsulError> {
        loop {
            let asked = Instant::now();
            let limit = self.wait + self.wait / 16 + SLACK;
            let (body, index) = client.get_as(&self.question(), limit).await?;
            let (cursor, moved) = self.follow(index, None)?;
            self.cursor = cursor;
            if moved {
                return Ok(body);
            }
            if asked.elapsed() < self.wait / 2 {
                tokio::time::sleep(EARLY_PAUSE).await;
            }
        }
    }

    fn question(&self) -> Query {
        let query = self.query.clone();
        let wait = format!("{}ms", self.wait.as_millis());
        match &self.cursor {
            Cursor::Index(0) => query,
            Cursor::Index(index) => query.with("index", index.to_string()).with("wait", wait),
            Cursor::Hash(hash) if hash.is_empty() => query,
            Cursor::Hash(hash) => query.with("hash", hash.as_str()).with("wait", wait),
        }
    }

    /// The next cursor, and whether it is another one.
    fn follow(&self, index: Option<u64>, hash: Option<String>) -> Result<(Cursor, bool), ConsulError> {
        let missing = |name: &str| ConsulError::Answer {
            what: "a call that waits for a change".to_owned(),
            why: format!("it has no {name} to wait on"),
        };
        let next = match &self.cursor {
            // An index that went back is a server that was restored or replaced: from the start.
            Cursor::Index(before) => match index.ok_or_else(|| missing("index"))? {
                index if index < *before => Cursor::Index(0),
                // Waiting on 0 is not waiting.
                index => Cursor::Index(index.max(1)),
            },
            Cursor::Hash(_) => Cursor::Hash(hash.ok_or_else(|| missing("hash"))?),
        };
        let moved = next != self.cursor;
        Ok((next, moved))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_goes_on_starts_anew_when_it_went_back_and_is_never_zero() {
        let mut watch = Watch::by_index(Query::new("/v1/x"), Duration::from_secs(60));
        assert_eq!(watch.question(), Query::new("/v1/x"));
        for (index, next) in [(0, 1), (7, 7), (7, 7), (9, 9), (3, 0), (3, 3)] {
            let (cursor, moved) = watch.follow(Some(index), None).unwrap();
            assert_eq!((cursor == Cursor::Index(next), moved), (true, watch.cursor != cursor), "{index}");
            watch.cursor = cursor;
        }
        assert_eq!(watch.question(), Query::new("/v1/x").with("index", "3").with("wait", "60000ms"));
        assert!(watch.follow(None, None).is_err());
    }

    #[test]
    fn a_hash_is_passed_on_as_it_came() {
        let mut watch = Watch::by_hash(Query::new("/v1/x"), Duration::from_secs(1));
        assert_eq!(watch.question(), Query::new("/v1/x"));
        watch.cursor = watch.follow(None, Some("ab".to_owned())).unwrap().0;
        assert_eq!(watch.question(), Query::new("/v1/x").with("hash", "ab").with("wait", "1000ms"));
        assert!(watch.follow(Some(1), None).is_err());
    }
}
