//! Everything that the mesh is made of is restarted and killed, in every order and all at once, under a
//! steady load. The load is through again by itself each time, and nothing of it is ever in the clear.

use std::thread;
use std::time::{Duration, Instant};

use super::cluster::{Lab, eventually};
use super::load::Load;
use crate::machine::Machine;

/// How long it may take until the load is through again.
const BOUND: Duration = Duration::from_secs(30);
/// From one deed to the next where nobody waits until the load is through again. Some of what one deed
/// brings about is under way by then and some is not.
const HASTE: Duration = Duration::from_millis(250);
/// Nobody hears of a unit's end in less.
const MOMENT: Duration = Duration::from_millis(20);

/// What can be restarted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    /// The agents beside the applications.
    Agents,
    /// Consul's server.
    Server,
    /// The sidecars.
    Envoy,
    /// The daemons.
    Enmesh,
}

use Part::{Agents, Enmesh, Envoy, Server};

/// Each part before and after each other one, next to it, once: the fewest orders that do.
const NEXT_TO_EACH_OTHER: [[Part; 4]; 4] = [
    [Agents, Server, Enmesh, Envoy],
    [Server, Envoy, Agents, Enmesh],
    [Envoy, Enmesh, Server, Agents],
    [Enmesh, Agents, Envoy, Server],
];

/// How something is restarted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    /// By its unit, the orderly way.
    Restart,
    /// By SIGKILL; the unit restarts it.
    Kill,
}

/// A unit on a machine.
struct Victim<'a> {
    host: &'static str,
    machine: &'a Machine,
    unit: &'static str,
}

impl Victim<'_> {
    /// Ends it and does not wait. Returns the process that it was.
    fn end(&self, how: How) -> String {
        let before = self.machine.property(self.unit, "MainPID");
        assert_ne!(before, "0", "{} does not run", self.unit);
        match how {
            How::Restart => self.machine.must(&["systemctl", "restart", "--no-block", self.unit]),
            How::Kill => self.machine.must(&["systemctl", "kill", "--signal=KILL", self.unit]),
        };
        before
    }

    /// Whether another process runs in its place.
    fn is_back(&self, before: &str) -> Result<(), String> {
        let pid = self.machine.property(self.unit, "MainPID");
        let state = self.machine.property(self.unit, "ActiveState");
        // `enmesh.service` is `reloading` while a change is under way.
        let up = ["active", "reloading"].contains(&state.as_str()) && pid != "0" && pid != before;
        if up { Ok(()) } else { Err(format!("{} is {state}", self.unit)) }
    }
}

/// What a part is on each of the machines.
fn victims(lab: &Lab, part: Part) -> Vec<Victim<'_>> {
    let both = |[one, other]: [&'static str; 2]| {
        let counting = Victim { host: "counting", machine: &lab.counting, unit: one };
        vec![counting, Victim { host: "dashboard", machine: &lab.dashboard, unit: other }]
    };
    match part {
        Agents => both(["consul.service"; 2]),
        Server => vec![Victim { host: "server", machine: &lab.server, unit: "consul.service" }],
        Envoy => both(["envoy@counting.service", "envoy@dashboard.service"]),
        Enmesh => both(["enmesh.service"; 2]),
    }
}

/// A lab under load, and what must not have happened but did: it is told at the end, with the table of
/// everything whole.
pub struct Chaos<'a> {
    lab: &'a Lab,
    load: &'a Load,
    faults: Vec<String>,
}

impl<'a> Chaos<'a> {
    /// Everything there is to do.
    pub fn all(lab: &'a Lab, load: &'a Load) {
        let mut chaos = Chaos { lab, load, faults: Vec::new() };
        chaos.one_by_one();
        chaos.in_every_order();
        chaos.all_at_once();
        assert!(chaos.faults.is_empty(), "{}", chaos.faults.join("\n"));
    }

    /// One at a time, on one host after the other; each is waited for.
    fn one_by_one(&mut self) {
        for how in [How::Restart, How::Kill] {
            for part in [Agents, Server, Envoy, Enmesh] {
                for victim in victims(self.lab, part) {
                    let what = format!("{part:?} of {}", victim.host);
                    self.end_and_recover(&what, how, &[victim], MOMENT);
                }
            }
        }
    }

    /// All of them, each order in haste.
    fn in_every_order(&mut self) {
        for (number, order) in NEXT_TO_EACH_OTHER.iter().enumerate() {
            let how = if number % 2 == 0 { How::Kill } else { How::Restart };
            let all: Vec<Victim<'_>> = order.iter().flat_map(|part| victims(self.lab, *part)).collect();
            self.end_and_recover(&format!("{order:?}"), how, &all, HASTE);
        }
    }

    /// All of them, without a breath between.
    fn all_at_once(&mut self) {
        for how in [How::Restart, How::Kill] {
            let parts = [Server, Agents, Envoy, Enmesh];
            let all: Vec<Victim<'_>> = parts.iter().flat_map(|part| victims(self.lab, *part)).collect();
            self.end_and_recover("all at once", how, &all, Duration::ZERO);
        }
    }

    /// Ends the victims one by one, and waits until all of them are back and the load is through.
    fn end_and_recover(&mut self, what: &str, how: How, victims: &[Victim<'_>], haste: Duration) {
        let (lab, load) = (self.lab, self.load);
        let before = lab.watch.seen();
        let (from, started) = (load.now(), Instant::now());
        let mut ended = Vec::new();
        for victim in victims {
            ended.push((victim, victim.end(how)));
            thread::sleep(haste);
        }
        let complain = |last: String| format!("{last}; {:?}\n{}", load.gap_since(from), lab.journals());
        eventually(&format!("{what} {how:?}: everything back"), BOUND, || {
            ended.iter().try_for_each(|(victim, pid)| victim.is_back(pid)).map_err(complain)
        });
        for machine in lab.hosts() {
            eventually(&format!("{what} {how:?}: a ready host"), BOUND, || {
                let ready = machine.status()["ready"] == true;
                if ready { Ok(()) } else { Err(complain(String::new())) }
            });
        }
        let (back, up) = (load.now(), started.elapsed());
        eventually(&format!("{what} {how:?}: the load"), BOUND, || {
            load.through_since(back).ok_or_else(|| complain(String::new()))
        });
        let gap = load.gap_since(from);
        let words = if gap.words.is_empty() { String::new() } else { format!(" ({})", gap.words.join("; ")) };
        println!(
            "{:<8}{what:<32} {:>3} of {:>3} requests lost, gap {:>5} ms, all back after {:>5} ms{words}",
            format!("{how:?}"),
            gap.failed,
            gap.tried,
            gap.length.as_millis(),
            up.as_millis(),
        );
        if gap.length >= BOUND {
            self.faults.push(format!("{how:?} {what}: {gap:?}"));
        }
        self.faults.extend(lab.watch.since(&before).leak().map(|leak| format!("{how:?} {what}: {leak}")));
    }
}

/// That each part stands next to each other one.
#[test]
fn every_pair_of_parts_is_neighbours_in_both_orders() {
    let mut pairs: Vec<_> =
        NEXT_TO_EACH_OTHER.iter().flat_map(|order| order.windows(2).map(|pair| (pair[0], pair[1]))).collect();
    pairs.sort();
    pairs.dedup();
    assert_eq!(pairs.len(), 12, "{pairs:?}");
}
