//! A moment that every process of this boot agrees on, whatever happens to the wall clock.

use std::fs;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// Which boot this is.
const BOOT: &str = "/proc/sys/kernel/random/boot_id";

/// A moment of one boot. After a reboot it is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deadline {
    boot: String,
    /// Milliseconds since that boot.
    at: u64,
}

impl Deadline {
    /// `time` from now.
    pub fn after(time: Duration) -> Self {
        Deadline { boot: boot(), at: millis(since_boot() + time) }
    }

    /// How long it is until then; nothing once it is over.
    pub fn left(&self) -> Duration {
        if self.boot != boot() {
            return Duration::ZERO;
        }
        Duration::from_millis(self.at.saturating_sub(millis(since_boot())))
    }

    /// Whether it is over.
    pub fn is_over(&self) -> bool {
        self.left().is_zero()
    }
}

fn boot() -> String {
    fs::read_to_string(BOOT).unwrap_or_default().trim().to_owned()
}

/// With the time that the host slept. The call cannot fail on Linux.
fn since_boot() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default()
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_comes_nearer_and_does_not_outlive_the_boot() {
        let soon = Deadline::after(Duration::from_secs(60));
        assert!(!soon.is_over() && soon.left() <= Duration::from_secs(60));
        assert!(Deadline::after(Duration::ZERO).is_over());
        assert!(Deadline { boot: "another".to_owned(), ..soon }.is_over());
    }
}
