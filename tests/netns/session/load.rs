//! An application, and somebody who calls it all the time through two sidecars.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use enmesh::netns::Namespace;

use crate::host_bed::{LIMIT, until};

/// How long one call may take.
const CALL: Duration = Duration::from_secs(5);
/// The pause between two calls.
const PAUSE: Duration = Duration::from_millis(20);

/// Answers each line with its own name.
pub fn app(namespace: &Namespace, address: &'static str, name: &'static str) {
    let listener = namespace.run(|| TcpListener::bind(address).unwrap()).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut line = String::new();
            let _ = BufReader::new(&stream).read_line(&mut line);
            let _ = stream.write_all(name.as_bytes());
        }
    });
}

/// One call; what was answered.
fn call(address: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(CALL)).ok()?;
    stream.write_all(b"who\n").ok()?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).ok()?;
    (!answer.is_empty()).then_some(answer)
}

/// Calls until it is dropped.
pub struct Load {
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    ends: AtomicBool,
    tried: AtomicU32,
    failed: AtomicU32,
}

impl Load {
    /// Calls `address` in `namespace`, from the first answer `name` on.
    pub fn start(namespace: &Namespace, address: &'static str, name: &'static str) -> Load {
        let there = || namespace.run(|| call(address)).unwrap().filter(|it| it == name).ok_or("no answer");
        until("the first answer", LIMIT, there).unwrap();
        let counts = Arc::new(Counts::default());
        let shared = Arc::clone(&counts);
        let work = move || {
            while !shared.ends.load(Ordering::Relaxed) {
                let answer = call(address);
                shared.tried.fetch_add(1, Ordering::Relaxed);
                if answer.as_deref() != Some(name) {
                    shared.failed.fetch_add(1, Ordering::Relaxed);
                }
                thread::sleep(PAUSE);
            }
        };
        // A socket belongs to the namespace of the thread that makes it.
        drop(namespace.spawn(work).unwrap());
        Load { counts }
    }

    /// How many calls were made, and how many of them failed.
    pub fn so_far(&self) -> (u32, u32) {
        (self.counts.tried.load(Ordering::Relaxed), self.counts.failed.load(Ordering::Relaxed))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.counts.ends.store(true, Ordering::Relaxed);
    }
}
