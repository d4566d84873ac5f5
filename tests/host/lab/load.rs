//! A steady load of requests, each noted with its time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use enmesh::base::Fault;
use enmesh::demo::app::{self, Outcome, Url};
use enmesh::netns::Namespace;
use serde_json::Value;

/// From one request to the next.
const PAUSE: Duration = Duration::from_millis(50);
/// So many answered in a row mean that the load is through again: one second of it.
const STREAK: usize = 20;
/// An answer that is not there after this is not there yet; before, nothing is made of it.
const PATIENCE: Duration = Duration::from_millis(500);

/// Asks again and again until its end, and waits for nobody. Ends with the value.
pub struct Load {
    started: Instant,
    notes: Arc<Mutex<Vec<Note>>>,
    end: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<Result<(), Fault>>>,
}

/// One request.
#[derive(Debug, Clone)]
struct Note {
    /// When it was sent, from the beginning of the load.
    at: Duration,
    /// What came of it, once something has: the count, or what went wrong.
    result: Option<Result<u64, String>>,
}

/// What happened to the load from some moment until it was through again.
#[derive(Debug, Clone, Default)]
pub struct Gap {
    /// From the first request that failed to the first of the unbroken row; zero when none failed.
    pub length: Duration,
    /// Requests that failed.
    pub failed: usize,
    /// Requests in all.
    pub tried: usize,
    /// The words of the first and the last failure.
    pub words: Vec<String>,
}

impl Load {
    /// Starts asking `url` from `namespace`.
    pub fn start(namespace: &Namespace, url: &str) -> Load {
        let (notes, end): (Arc<Mutex<Vec<Note>>>, Arc<AtomicBool>) = Default::default();
        let url: Url = url.parse().expect("a URL");
        let started = Instant::now();
        let (theirs, over) = (Arc::clone(&notes), Arc::clone(&end));
        let ask = move || {
            for number in 0_u32.. {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                theirs.lock().unwrap().push(Note { at: started.elapsed(), result: None });
                let (url, notes) = (url.clone(), Arc::clone(&theirs));
                // It is in this thread's namespace, as every thread that one starts.
                thread::spawn(move || {
                    let result = read(app::get(&url, ""));
                    notes.lock().unwrap()[number as usize].result = Some(result);
                });
                thread::sleep((PAUSE * (number + 1)).saturating_sub(started.elapsed()));
            }
        };
        let thread = namespace.spawn(ask).expect("the namespace is there");
        Load { started, notes, end, thread: Some(thread) }
    }

    /// Now, in the load's time.
    pub fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// What happened since `from`, if the load is through again.
    pub fn through_since(&self, from: Duration) -> Option<Gap> {
        let notes = self.since(from);
        let streak = notes.len().checked_sub(STREAK)?;
        notes[streak..].iter().all(|note| matches!(note.result, Some(Ok(_)))).then(|| gap(&notes))
    }

    /// What happened since `from`, whether it is through or not.
    pub fn gap_since(&self, from: Duration) -> Gap {
        gap(&self.since(from))
    }

    /// The notes since `from` but for the newest of which nothing can be said yet.
    fn since(&self, from: Duration) -> Vec<Note> {
        let mut notes = self.notes.lock().unwrap().clone();
        let now = self.now();
        while notes.last().is_some_and(|note| note.result.is_none() && note.at + PATIENCE > now) {
            notes.pop();
        }
        notes.retain(|note| note.at >= from);
        notes
    }

    /// How many were answered in all, and the highest count that an answer had.
    pub fn answered(&self) -> (usize, u64) {
        let notes = self.notes.lock().unwrap();
        let counts = notes.iter().filter_map(|note| note.result.as_ref()?.as_ref().ok().copied());
        counts.fold((0, 0), |(number, highest), count| (number + 1, highest.max(count)))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(thread::JoinHandle::join);
    }
}

fn read(outcome: Outcome) -> Result<u64, String> {
    let Outcome::Answered { status, body, .. } = &outcome else { return Err(outcome.describe()) };
    let said: Value = serde_json::from_str(body).unwrap_or_default();
    let failed = || said["error"].as_str().unwrap_or("no count").to_owned();
    said["count"].as_u64().filter(|_| *status == 200).ok_or_else(failed)
}

fn gap(notes: &[Note]) -> Gap {
    let failed: Vec<usize> =
        (0..notes.len()).filter(|at| !matches!(notes[*at].result, Some(Ok(_)))).collect();
    let mut gap = Gap { tried: notes.len(), failed: failed.len(), ..Gap::default() };
    if let (Some(first), Some(last)) = (failed.first(), failed.last()) {
        let again = notes.get(last + 1).map_or(notes[*last].at + PATIENCE, |note| note.at);
        gap.length = again - notes[*first].at;
        let words = |at: &usize| match &notes[*at].result {
            Some(Err(words)) => words.clone(),
            _ => "no answer yet".to_owned(),
        };
        gap.words = vec![words(first), words(last)];
        gap.words.dedup();
    }
    gap
}
