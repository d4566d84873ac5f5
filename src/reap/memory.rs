//! What passes have seen, kept in Consul from one to the next.
//!
//! The clocks of hosts differ, and nobody's is believed here. Times are sums of what passed between one
//! look and the next, measured by the looker's own clock that no one sets (it counts from the machine's
//! start). Between two machines there is no such clock; then the step is what their clocks say and
//! small at most. So a clock that is wrong makes somebody's end come later, and never much sooner.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::Asked;
use super::error::ReapError;
use super::holdings::Holdings;
use super::lock::Lock;
use crate::base::{Fault, files};
use crate::consul::{ConsulError, Query};

/// Where it is kept.
const KEY: &str = "enmesh/reap/state";
/// The longest step between passes of two machines.
const LONGEST_STEP: Duration = Duration::from_secs(300);

/// What was seen. Owners are told by a hash, since a value in Consul has 512 kB at most and ids of
/// container groups are long: this has room for ten thousand.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Memory {
    #[serde(default)]
    clock: Clock,
    #[serde(default)]
    owners: BTreeMap<String, Kept>,
}

/// The mark, seconds without a change of it, and for how long the owner is gone.
type Kept = (String, f64, Option<f64>);

/// When something was looked at.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Clock {
    /// Which start of which machine.
    boot: String,
    /// Seconds since then.
    up: f64,
    /// Seconds since 1970.
    wall: f64,
}

/// What is known of an owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    pub mark: String,
    /// How long nothing was heard.
    pub silent: Duration,
    /// How long it has been known that he is gone.
    pub gone: Option<Duration>,
}

impl Clock {
    pub fn now() -> Self {
        let boot = files::read(std::path::Path::new("/proc/sys/kernel/random/boot_id"), 100);
        let boot = boot.ok().flatten().map(|it| String::from_utf8_lossy(&it).trim().to_owned());
        let up = clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(0.0, |at| Duration::from(at).as_secs_f64());
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |it| it.as_secs_f64());
        Clock { boot: boot.unwrap_or_default(), up, wall }
    }

    /// How much time has passed since `memory` was kept, and surely not more.
    pub fn passed_since(&self, memory: &Memory) -> Duration {
        let before = &memory.clock;
        let same = !self.boot.is_empty() && self.boot == before.boot;
        let (step, longest) = match same {
            true => (self.up - before.up, Duration::MAX),
            false => (self.wall - before.wall, LONGEST_STEP),
        };
        Duration::try_from_secs_f64(step.max(0.0)).unwrap_or_default().min(longest)
    }
}

impl Memory {
    /// What was kept last. What cannot be understood counts as nothing, with a warning.
    ///
    /// # Errors
    /// Consul does not answer.
    pub async fn load(consul: &Asked) -> Result<(Self, Option<Fault>), ConsulError> {
        let nothing = |why: String| (Memory::default(), Some(Fault::from(ReapError::Memory { why })));
        match consul.get(&Query::new(format!("/v1/kv/{KEY}")).with("raw", "true")).await {
            Ok(body) => Ok(match serde_json::from_value(body) {
                Ok(memory) => (memory, None),
                Err(error) => nothing(error.to_string()),
            }),
            Err(ConsulError::Missing { .. }) => Ok((Memory::default(), None)),
            Err(ConsulError::Answer { why, .. }) => Ok(nothing(why)),
            Err(error) => Err(error),
        }
    }

    /// Keeps it, if `lock` is held still.
    ///
    /// # Errors
    /// `ENM-A046` it is not; and those of any call.
    pub async fn save(mut self, consul: &Asked, lock: &Lock, now: &Clock) -> Result<(), Fault> {
        self.clock = now.clone();
        let text = serde_json::to_string(&self).unwrap_or_default();
        let set = json!({ "KV": { "Verb": "set", "Key": KEY, "Value": BASE64_STANDARD.encode(text) } });
        match consul.put(&Query::new("/v1/txn"), &json!([lock.held(), set])).await {
            Ok(_) => Ok(()),
            Err(ConsulError::Failed { status: 409, .. }) => Err(ReapError::LostLead.into()),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes up that `owner` has `mark` now, and whether he is gone, `step` after the last look.
    ///
    /// Of a silence no more counts at once than the time between two of his renewals: when Consul was
    /// away for long, everybody was silent, and everybody has the time to be heard again.
    pub fn follow(&mut self, owner: &str, mark: &str, gone: bool, step: Duration, every: Duration) -> Seen {
        let seen = self.look(owner, mark, gone, step, every);
        let tenths = |time: Duration| (time.as_secs_f64() * 10.0).round() / 10.0;
        let kept = (seen.mark.clone(), tenths(seen.silent), seen.gone.map(tenths));
        self.owners.insert(key(owner), kept);
        seen
    }

    /// What [`Memory::follow`] would take up.
    pub fn look(&self, owner: &str, mark: &str, gone: bool, step: Duration, every: Duration) -> Seen {
        let seconds = |seconds: f64| Duration::try_from_secs_f64(seconds).unwrap_or_default();
        let before = self.owners.get(&key(owner)).filter(|(before, _, _)| before == mark);
        // Who is heard is not gone, whatever the platform says; that has to be so for a whole grace.
        let (silent, was_gone) = match before {
            Some((_, silent, was_gone)) => (seconds(*silent) + step.min(every), was_gone.map(seconds)),
            None => (Duration::ZERO, None),
        };
        let gone = gone.then(|| was_gone.map_or(Duration::ZERO, |gone| gone + step));
        Seen { mark: mark.to_owned(), silent, gone }
    }

    /// Forgets whoever has nothing any more.
    pub fn forget_others(&mut self, holdings: &Holdings) {
        let known: std::collections::BTreeSet<String> =
            holdings.owners.keys().map(|owner| key(owner)).collect();
        self.owners.retain(|key, _| known.contains(key));
    }
}

fn key(owner: &str) -> String {
    Sha256::digest(owner).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(boot: &str, up: f64, wall: f64) -> Clock {
        Clock { boot: boot.to_owned(), up, wall }
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_clock_that_is_wrong_makes_nobody_s_end_come_soon() {
        let memory = Memory { clock: at("a", 1000.0, 5000.0), ..Memory::default() };
        // On one machine, the clock on the wall does not count.
        assert_eq!(at("a", 1060.0, 900_000.0).passed_since(&memory), seconds(60));
        assert_eq!(at("a", 1060.0, 0.0).passed_since(&memory), seconds(60));
        // Between two, it does, and never for much.
        assert_eq!(at("b", 7.0, 5060.0).passed_since(&memory), seconds(60));
        assert_eq!(at("b", 7.0, 900_000.0).passed_since(&memory), LONGEST_STEP);
        assert_eq!(at("b", 7.0, 10.0).passed_since(&memory), Duration::ZERO);
        assert_eq!(at("", 7.0, 10.0).passed_since(&Memory::default()), seconds(10));
        let now = Clock::now();
        assert!(!now.boot.is_empty() && now.up > 0.0);
    }

    #[test]
    fn silence_adds_up_and_one_word_ends_it() {
        let mut memory = Memory::default();
        let mut look = |mark: &str, step: u64| {
            let seen = memory.follow("o", mark, false, seconds(step), seconds(600));
            seen.silent.as_secs()
        };
        // A first look knows of no silence, however long ago the pass before was.
        assert_eq!(look("a", 5000), 0);
        assert_eq!(look("a", 100), 100);
        assert_eq!(look("a", 100_000), 700, "Consul was away");
        assert_eq!(look("b", 60), 0);
    }

    #[test]
    fn who_is_gone_is_so_from_the_first_look_on() {
        let mut memory = Memory::default();
        let mut look = |mark: &str, gone, step: u64| {
            let seen = memory.follow("o", mark, gone, seconds(step), seconds(600));
            seen.gone.map(|gone| gone.as_secs())
        };
        assert_eq!(look("a", true, 5000), Some(0));
        assert_eq!(look("a", true, 60), Some(60));
        assert_eq!(look("a", false, 60), None, "he is back");
        assert_eq!(look("a", true, 60), Some(0));
        assert_eq!(look("a", true, 60), Some(60));
        assert_eq!(look("b", true, 60), Some(0), "he was heard");
    }

    #[test]
    fn what_is_kept_has_room_for_ten_thousand() {
        let mut memory = Memory::default();
        for number in 0..10_000 {
            let owner = format!("/subscriptions/{number}");
            memory.follow(&owner, "0123456789ab", true, seconds(60), seconds(600));
        }
        let text = serde_json::to_string(&memory).unwrap();
        assert!(text.len() < 512 << 10, "{} bytes", text.len());
        let again: Memory = serde_json::from_str(&text).unwrap();
        assert_eq!(again.owners.len(), 10_000);
    }
}
