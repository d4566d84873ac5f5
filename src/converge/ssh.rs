//! Who is logged in over SSH, from /proc and the kernel's sockets.
//!
//! A session is an established connection that a process of sshd holds and that came in by a port on which
//! somebody listens. The sandbox of `enmesh.service` may not see what other processes hold (that takes
//! CAP_SYS_PTRACE, and with it every secret of the host); there it is root's connections to the ports that sshd
//! was told of, by its arguments or its configuration. A command that a person types is in no sandbox, looks
//! for itself, and tells the daemon; so does the environment that sshd gave to its caller.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, SocketAddr};

use crate::base::{Root, process};
use crate::netns::{self, Socket, Sockets};
use crate::plan::facts::SshSession;

/// What processes of sshd are called; since OpenSSH 9.8 a session has a program of its own.
const NAMES: [&str; 2] = ["sshd", "sshd-session"];

/// The port that sshd has unless it is told another.
const PORT: u16 = 22;

/// The sessions of the calling thread's network namespace.
pub fn sessions(root: &Root) -> BTreeSet<SshSession> {
    let servers = servers();
    let own = callers(&std::env::var("SSH_CONNECTION").unwrap_or_default());
    if servers.iter().all(|(pid, _)| only_listens(*pid)) {
        return own.into_iter().collect();
    }
    let listening = netns::sockets(Sockets::Listening).into_iter().map(|socket| socket.local.port());
    let listening: BTreeSet<u16> = listening.collect();
    let inbound: BTreeMap<u64, Socket> = netns::sockets(Sockets::Established)
        .into_iter()
        .filter(|socket| listening.contains(&socket.local.port()))
        .map(|socket| (socket.inode, socket))
        .collect();
    let mut found = BTreeSet::new();
    for (pid, name) in servers {
        let server = format!("{name} (process {pid})");
        let session = |socket: &Socket| SshSession {
            peer: canonical(socket.peer),
            local: canonical(socket.local),
            server: server.clone(),
        };
        match held(pid) {
            Some(held) => found.extend(held.iter().filter_map(|inode| inbound.get(inode)).map(session)),
            None => {
                let told = told_ports(root, pid);
                let likely = |socket: &&Socket| socket.uid == 0 && told.contains(&socket.local.port());
                found.extend(inbound.values().filter(likely).map(session));
            }
        }
    }
    found.extend(own);
    one_each(found)
}

/// Several processes may hold one connection: it is one session.
fn one_each(found: BTreeSet<SshSession>) -> BTreeSet<SshSession> {
    let by_ends: BTreeMap<_, _> =
        found.into_iter().rev().map(|session| ((session.peer, session.local), session)).collect();
    by_ends.into_values().collect()
}

/// Processes of sshd that root runs.
fn servers() -> Vec<(u32, String)> {
    let numbers = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = numbers.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let server = |pid: u32| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?.trim().to_owned();
        (NAMES.contains(&name.as_str()) && process::user_of(pid) == Some(0)).then_some((pid, name))
    };
    numbers.filter_map(server).collect()
}

/// Whether it is the process that waits for callers and starts another for each, by the title that
/// OpenSSH gives it since 8.2.
fn only_listens(pid: u32) -> bool {
    process::arguments_of(pid).iter().any(|argument| argument.contains("[listener]"))
}

/// The sockets that a process holds; `None` where we may not look.
fn held(pid: u32) -> Option<BTreeSet<u64>> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    let inode = |entry: std::io::Result<fs::DirEntry>| {
        let link = fs::read_link(entry.ok()?.path()).ok()?;
        link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
    };
    Some(entries.filter_map(inode).collect())
}

/// The ports that sshd was told of.
fn told_ports(root: &Root, pid: u32) -> BTreeSet<u16> {
    let mut ports = ports_of_arguments(&process::arguments_of(pid).join(" "));
    let mut files = vec![root.join("/etc/ssh/sshd_config")];
    let more = fs::read_dir(root.join("/etc/ssh/sshd_config.d")).into_iter().flatten().flatten();
    files.extend(more.map(|entry| entry.path()));
    for file in files {
        ports.extend(ports_of_configuration(&fs::read_to_string(file).unwrap_or_default()));
    }
    ports.insert(PORT);
    ports
}

/// `-p PORT`, also out of the title that a listening sshd gives itself.
fn ports_of_arguments(line: &str) -> BTreeSet<u16> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let pairs = words.windows(2).filter(|pair| pair.first() == Some(&"-p"));
    let apart = pairs.filter_map(|pair| pair.last()?.parse().ok());
    let together = words.iter().filter_map(|word| word.strip_prefix("-p")?.parse().ok());
    apart.chain(together).collect()
}

/// `Port` and the port of `ListenAddress` (sshd_config(5)).
fn ports_of_configuration(text: &str) -> BTreeSet<u16> {
    let port = |line: &str| {
        let line = line.replace('=', " ");
        let mut words = line.split_whitespace();
        let (key, value) = (words.next()?.to_ascii_lowercase(), words.next()?);
        match key.as_str() {
            "port" => value.parse().ok(),
            "listenaddress" => value.rsplit_once(':')?.1.parse().ok(),
            _ => None,
        }
    };
    text.lines().filter_map(port).collect()
}

/// `SSH_CONNECTION` (ssh(1)): the caller's address and port, and the server's.
fn callers(variable: &str) -> Option<SshSession> {
    let mut words = variable.split_whitespace();
    let mut end = || {
        let address: IpAddr = words.next()?.parse().ok()?;
        Some(canonical(SocketAddr::new(address, words.next()?.parse().ok()?)))
    };
    let (peer, local) = (end()?, end()?);
    Some(SshSession { peer, local, server: "the session of this command".to_owned() })
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_sshd_was_told() {
        let title = "sshd: /usr/sbin/sshd -D -p 2222 -p2223 [listener] 0 of 10-100 startups";
        assert_eq!(ports_of_arguments(title), BTreeSet::from([2222, 2223]));
        let text =
            "#Port 1\nPort 2224\n port=2225\nListenAddress 10.0.0.1:2226\nListenAddress ::\nUsePAM yes\n";
        assert_eq!(ports_of_configuration(text), BTreeSet::from([2224, 2225, 2226]));
    }

    #[test]
    fn the_callers_own_session() {
        let session = callers("10.0.0.9 5000 10.0.0.2 2222").unwrap();
        assert_eq!(session.peer, "10.0.0.9:5000".parse().unwrap());
        assert_eq!(session.local, "10.0.0.2:2222".parse().unwrap());
        assert_eq!(callers(""), None);
        assert_eq!(callers("10.0.0.9 5000"), None);
    }
}
