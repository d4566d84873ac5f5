//! Changing the rules under load: how often a second, and what becomes of connections meanwhile.

use std::error::Error;
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use enmesh::redirect::{self, Firewall, Nftables};

use crate::Answer;
use crate::lane::{FROM_SIDECAR, Lane, call, listen};
use crate::table::Table;
use crate::{apply, program, today};

/// How long each way changes rules.
const SPAN: Duration = Duration::from_secs(5);
const CALLERS: usize = 2;
/// Somebody on the network, who is to be reached through the sidecar only, and what is heard from there otherwise.
const OTHER: ([u8; 4], u16) = ([10, 99, 0, 1], 80);
const IN_THE_CLEAR: u8 = b'c';

/// Changes the rules once; the number is another one each time.
type Change = Box<dyn FnMut(u16) -> Result<(), Box<dyn Error>>>;

/// Makes the way in its namespace.
type Way = fn() -> Change;

/// What became of connections.
#[derive(Default)]
struct Seen {
    connections: u32,
    leaked: u32,
    failed: u32,
}

/// A namespace with a cable to another one, in which [`OTHER`] listens.
fn laid() -> Result<(Lane, Lane), String> {
    let (host, other) = (Lane::new()?, Lane::new()?);
    let tid = other.run(|| Ok(nix::unistd::gettid()))?.to_string();
    let ip = |words: String| -> Result<(), String> {
        let words: Vec<&str> = words.split(' ').collect();
        program::run("ip", &words, "").map_err(|error| error.to_string())
    };
    host.run(move || {
        ip(format!("link add eth0 type veth peer name eth0 netns {tid}"))?;
        ip("address add 10.99.0.2/24 dev eth0".to_owned())?;
        ip("link set eth0 up".to_owned())
    })?;
    other.run(move || {
        ip("address add 10.99.0.1/24 dev eth0".to_owned())?;
        ip("link set eth0 up".to_owned())?;
        listen(OTHER.into(), IN_THE_CLEAR)
    })?;
    Ok((host, other))
}

/// Calls until told to stop.
fn calling(stop: &AtomicBool) -> Seen {
    let mut seen = Seen::default();
    while !stop.load(Ordering::Acquire) {
        let mut word = [0];
        seen.connections += 1;
        let heard = call(OTHER.into()).and_then(|mut stream| {
            stream.set_read_timeout(Some(Duration::from_secs(2)))?;
            stream.read_exact(&mut word)
        });
        match (heard, word) {
            (Ok(()), [FROM_SIDECAR]) => {}
            (Ok(()), _) => seen.leaked += 1,
            (Err(_), _) => seen.failed += 1,
        }
    }
    seen
}

/// Sets the rules, has callers call, and changes the rules for a while; in the namespace of this thread.
fn under_load(mut change: Change) -> Result<(u16, Duration, Seen), Box<dyn Error>> {
    change(1)?;
    let stop = Arc::new(AtomicBool::new(false));
    let callers = (0..CALLERS).map(|_| {
        let stop = Arc::clone(&stop);
        thread::spawn(move || calling(&stop))
    });
    let callers: Vec<_> = callers.collect();
    let (started, mut changes, mut last) = (Instant::now(), 0_u16, Ok(()));
    while started.elapsed() < SPAN && last.is_ok() {
        changes += 1;
        last = change(changes + 1);
    }
    let took = started.elapsed();
    stop.store(true, Ordering::Release);
    let mut all = Seen::default();
    for caller in callers {
        let seen = caller.join().map_err(|_| "a caller panicked")?;
        all.connections += seen.connections;
        all.leaked += seen.leaked;
        all.failed += seen.failed;
    }
    last.map(|()| (changes, took, all))
}

fn measured(name: &str, way: Way) -> Result<Vec<String>, Box<dyn Error>> {
    let (host, _other) = laid()?;
    let (changes, took, all) = host.run(move || under_load(way()).map_err(|error| error.to_string()))?;
    Ok(vec![
        name.to_owned(),
        format!("{:.1}", f64::from(changes) / took.as_secs_f64()),
        changes.to_string(),
        all.connections.to_string(),
        all.leaked.to_string(),
        all.failed.to_string(),
    ])
}

fn ours() -> Change {
    let driver = Nftables::new();
    Box::new(move |number| driver.apply(&apply::desired(number)?).map_err(|fault| fault.to_string().into()))
}

/// The same table, replaced whole in one transaction, as `nft -f` of a file does it.
fn whole() -> Change {
    Box::new(|number| {
        let desired = apply::desired(number)?;
        let text = redirect::render_text(&desired.policy, &desired.live);
        program::run("nft", &["-f", "-"], &format!("table inet enmesh\n{text}"))
    })
}

fn restore() -> Change {
    Box::new(|_| today::with_iptables_restore(&today::iptables_calls()))
}

fn calls() -> Change {
    Box::new(|number| {
        if number > 1 {
            today::with_iptables(&today::iptables_undo_calls())?;
        }
        today::with_iptables(&today::iptables_calls())
    })
}

/// All ways, one after the other: they would disturb each other.
pub fn measure() -> Answer {
    let title = "Changing the rules of one service under load";
    let mut table = Table::new(title, &["", "changes/s", "changes", "connections", "leaked", "failed"]);
    let ways: [(&str, Way); 4] = [
        ("enmesh: what differs", ours),
        ("nft -f, the table whole", whole),
        ("one iptables-restore", restore),
        ("iptables calls, undo and do", calls),
    ];
    for (name, way) in ways {
        table.row(measured(name, way)?);
    }
    table.note(format!(
        "{CALLERS} callers without a pause, {SPAN:?} each; leaked: passed the sidecar by; enmesh reads every change back"
    ));
    Ok(table)
}
