//! Looking at processes that somebody else started: who is behind a process number, and is it still
//! the same one as before.

use std::fs;

/// A process, told apart from a later one that got the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The process number.
    pub pid: u32,
    /// When it started, in clock ticks since boot (`starttime` of proc_pid_stat(5)).
    pub started: u64,
}

impl Identity {
    /// The process that has the number `pid` now; `None` when there is none or it has ended and
    /// only waits to be reaped.
    pub fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The program's name, in brackets, may hold anything; the numbers start after the last one.
        let (_, numbers) = stat.rsplit_once(") ")?;
        let mut fields = numbers.split(' ');
        let state = fields.next()?;
        // The state is field 3 of the line, the start time field 22.
        let started = fields.nth(18)?.parse().ok()?;
        (!matches!(state, "Z" | "X")).then_some(Identity { pid, started })
    }

    /// Whether this very process still runs.
    pub fn is_alive(self) -> bool {
        Identity::of(self.pid) == Some(self)
    }
}

/// The name that the process was started under (its `argv[0]`).
pub fn name_of(pid: u32) -> Option<String> {
    arguments_of(pid).into_iter().next().filter(|name| !name.is_empty())
}

/// What the process was started with, its name first; nothing for one that has ended, and for the
/// kernel's own.
pub fn arguments_of(pid: u32) -> Vec<String> {
    let mut line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    if line.pop().is_none() {
        return Vec::new();
    }
    line.split(|&byte| byte == 0).map(|argument| String::from_utf8_lossy(argument).into_owned()).collect()
}

/// The user that the process runs as (its real uid, proc_pid_status(5)).
pub fn user_of(pid: u32) -> Option<u32> {
    users_of(pid)?.first().copied()
}

/// The user that the process's new sockets belong to (its filesystem uid), by which packet filters
/// know them.
pub fn socket_user_of(pid: u32) -> Option<u32> {
    users_of(pid)?.get(3).copied()
}

/// Real, effective, saved and filesystem uid.
fn users_of(pid: u32) -> Option<Vec<u32>> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_whitespace().map(|uid| uid.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_itself_and_nobody_else() {
        let me = Identity::of(std::process::id()).unwrap();
        assert!(me.is_alive());
        assert!(!Identity { started: me.started + 1, ..me }.is_alive());
        assert!(Identity::of(u32::MAX).is_none());
        let name = name_of(me.pid).unwrap();
        assert_eq!(Some(name), std::env::args().next());
        assert_eq!(arguments_of(me.pid), std::env::args().collect::<Vec<_>>());
        assert_eq!(user_of(me.pid), Some(nix::unistd::getuid().as_raw()));
        assert_eq!(socket_user_of(me.pid), Some(nix::unistd::geteuid().as_raw()));
    }
}
