//! Comparing with what Consul has, and writing what differs.

use serde_json::Value;

use super::compare::differences;
use super::intentions::Legacy;
use super::protocol::Protocols;
use super::{ConfigEntry, EntryError};
use crate::base::{Explain, Fault};
use crate::consul::{Client, ConsulError, Query, Version, segment};

/// How often an entry is written anew when somebody else was faster.
const TURNS: u32 = 5;

/// The kind that older servers have as something else.
const INTENTIONS: &str = "service-intentions";

/// What differs, or differed, in one entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The entry, as `KIND/NAME`.
    pub entry: String,
    /// What, one line each (`+` missing, `-` too much, `~` otherwise).
    pub lines: Vec<String>,
}

/// What [`plan`] found or [`apply`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EntriesOutcome {
    /// The entries that differ, in the order of writing; [`apply`] has written them.
    pub differences: Vec<Difference>,
    /// What is wrong with entries (`ENM-K104` to `ENM-K108`); those are not written.
    pub faults: Vec<Fault>,
}

/// What differs between `entries`, in the order of [`super::load`], and what Consul has. Writes nothing.
/// `version` is the server's, where it is known.
///
/// # Errors
/// Consul cannot be asked; see [`ConsulError`].
pub async fn plan(
    client: &Client,
    version: Option<Version>,
    entries: &[ConfigEntry],
) -> Result<EntriesOutcome, Fault> {
    let keeper = Keeper::new(client, version, entries, false);
    Ok(keeper.run(entries).await?)
}

/// Writes those of `entries`, in the order of [`super::load`], that Consul has otherwise. An entry that
/// is refused stops no other; it is tried once more after those that it may have waited for.
///
/// # Errors
/// Consul cannot be asked; see [`ConsulError`]. What was written stays, and the next time goes on.
pub async fn apply(
    client: &Client,
    version: Option<Version>,
    entries: &[ConfigEntry],
) -> Result<EntriesOutcome, Fault> {
    let keeper = Keeper::new(client, version, entries, true);
    Ok(keeper.run(entries).await?)
}

struct Keeper<'a> {
    client: &'a Client,
    version: Option<Version>,
    protocols: Protocols<'a>,
    writes: bool,
}

/// What became of one entry.
enum Done {
    Same,
    Differs(Vec<String>),
    /// Part of it differs, and part of it cannot be.
    InPart(Vec<String>, EntryError),
}

/// Why nothing became of one entry, or of all of them.
enum Stop {
    Entry(EntryError),
    All(ConsulError),
}

impl<'a> Keeper<'a> {
    fn new(client: &'a Client, version: Option<Version>, entries: &'a [ConfigEntry], writes: bool) -> Self {
        Keeper { client, version, protocols: Protocols::new(client, entries), writes }
    }

    async fn run(&self, entries: &[ConfigEntry]) -> Result<EntriesOutcome, ConsulError> {
        let mut outcome = EntriesOutcome::default();
        let mut left: Vec<&ConfigEntry> = entries.iter().collect();
        loop {
            let before = left.len();
            let mut refused = Vec::new();
            for entry in left {
                match self.one(entry).await {
                    Ok(Done::Same) => {}
                    Ok(Done::Differs(lines)) => outcome.add(entry, lines),
                    Ok(Done::InPart(lines, error)) => {
                        outcome.add(entry, lines);
                        outcome.faults.push(error.into());
                    }
                    Err(Stop::Entry(error @ EntryError::Refused { .. })) => refused.push((entry, error)),
                    Err(Stop::Entry(error)) => outcome.faults.push(error.into()),
                    Err(Stop::All(error)) => return Err(error),
                }
            }
            // Entries of one kind may build on each other, and those that were taken now be what the
            // others wanted.
            if refused.is_empty() || refused.len() == before {
                outcome.faults.extend(refused.into_iter().map(|(_, error)| Fault::from(error)));
                return Ok(outcome);
            }
            left = refused.into_iter().map(|(entry, _)| entry).collect();
        }
    }

    async fn one(&self, entry: &ConfigEntry) -> Result<Done, Stop> {
        self.protocols.check(entry).await.map_err(Stop::All)?.map_err(Stop::Entry)?;
        let old = self.version.is_some_and(|version| version < Version::minor(1, 9));
        if entry.kind() == INTENTIONS && old {
            return self.legacy(entry).await;
        }
        match self.entry(entry).await {
            // It has no such kind, and did not tell its version.
            Err(Stop::Entry(EntryError::Kind { .. })) if entry.kind() == INTENTIONS => {
                self.legacy(entry).await
            }
            done => done,
        }
    }

    /// Reads, compares, writes if nobody else did meanwhile, and reads again otherwise.
    async fn entry(&self, entry: &ConfigEntry) -> Result<Done, Stop> {
        for _ in 0..TURNS {
            let (is, index) = self.current(entry).await?;
            let lines = match &is {
                None => vec![format!("+ {}", entry.label())],
                Some(is) => differences(&entry.body, is).iter().map(|path| format!("~ {path}")).collect(),
            };
            if lines.is_empty() {
                return Ok(Done::Same);
            }
            if !self.writes {
                return Ok(Done::Differs(lines));
            }
            let query = scoped(Query::new("/v1/config").with("cas", index.to_string()), entry);
            let answer = self.client.put(&query, Some(&entry.body)).await;
            match answer.map_err(|error| stop(entry, error))?.body {
                Value::Bool(false) => {}
                _ => return Ok(Done::Differs(lines)),
            }
        }
        let (place, label) = (entry.place(), entry.label());
        Err(Stop::Entry(EntryError::Race { place, label, turns: TURNS }))
    }

    /// What Consul has, and the index to write over; 0 writes only where there is nothing.
    async fn current(&self, entry: &ConfigEntry) -> Result<(Option<Value>, u64), Stop> {
        let path = format!("/v1/config/{}/{}", segment(entry.kind()), segment(entry.name()));
        match self.client.get(&scoped(Query::new(path), entry)).await {
            Ok(answer) => {
                let index = answer.body.get("ModifyIndex").and_then(Value::as_u64).unwrap_or_default();
                Ok((Some(answer.body), index))
            }
            Err(ConsulError::Missing { .. }) => Ok((None, 0)),
            Err(ConsulError::BadRequest { why, .. }) if why.contains("config entry kind") => {
                Err(Stop::Entry(EntryError::Kind { place: entry.place(), label: entry.label() }))
            }
            Err(error) => Err(stop(entry, error)),
        }
    }

    async fn legacy(&self, entry: &ConfigEntry) -> Result<Done, Stop> {
        let mut looked = Legacy::look(self.client, entry).await.map_err(|error| stop(entry, error))?;
        let (lines, error) = (std::mem::take(&mut looked.lines), looked.error.take());
        if self.writes {
            looked.write(self.client).await.map_err(|error| stop(entry, error))?;
        }
        Ok(match error {
            Some(error) => Done::InPart(lines, error),
            None if lines.is_empty() => Done::Same,
            None => Done::Differs(lines),
        })
    }
}

impl EntriesOutcome {
    fn add(&mut self, entry: &ConfigEntry, lines: Vec<String>) {
        if !lines.is_empty() {
            self.differences.push(Difference { entry: entry.label(), lines });
        }
    }
}

fn scoped(query: Query, entry: &ConfigEntry) -> Query {
    query.with_some("ns", entry.scope("Namespace")).with_some("partition", entry.scope("Partition"))
}

/// Whether `error` is about this entry, or about all of them.
fn stop(entry: &ConfigEntry, error: ConsulError) -> Stop {
    match error {
        ConsulError::BadRequest { .. }
        | ConsulError::UnknownField { .. }
        | ConsulError::Denied { .. }
        | ConsulError::Missing { .. }
        | ConsulError::Failed { .. } => Stop::Entry(EntryError::Refused {
            place: entry.place(),
            label: entry.label(),
            why: error.to_string(),
            hint: hint(&error),
            class: error.class(),
        }),
        error => Stop::All(error),
    }
}

fn hint(error: &ConsulError) -> String {
    match error {
        ConsulError::Denied { .. } => {
            "it takes `service:write` of the entry's name, `intentions:write` for intentions, `operator:write` or `mesh:write` for what is everybody's".to_owned()
        }
        ConsulError::UnknownField { .. } => "take the field out of the entry, or use a newer Consul".to_owned(),
        _ => "correct the entry as Consul's words say".to_owned(),
    }
}
