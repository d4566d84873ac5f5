//! The nameservers that the host is configured with.

use std::cell::RefCell;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::net::if_::if_nametoindex;

/// How many servers count, as with the C library (resolv.conf(5), MAXNS).
const COUNT_MAX: usize = 3;

/// A file larger than this is none of nameservers, in bytes.
const LENGTH_MAX: u64 = 64 << 10;

/// Where systemd-resolved's stubs listen.
const STUBS: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(127, 0, 0, 53)), IpAddr::V4(Ipv4Addr::new(127, 0, 0, 54))];

/// Where it stands who the host's nameservers are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostServers {
    /// The host's `resolv.conf`.
    pub file: PathBuf,
    /// What counts instead where that names a stub of systemd-resolved: the file with those whom
    /// systemd-resolved asks. `None` lets the stub be asked, and with it whatever systemd-resolved has set
    /// up for some networks. That must not be while systemd-resolved itself asks us.
    pub behind_stub: Option<PathBuf>,
}

/// A file at one moment.
type Moment = Option<(SystemTime, u64)>;

/// The servers, read again when a file has changed.
#[derive(Debug, Default)]
pub(super) struct Servers {
    known: RefCell<Option<Known>>,
}

/// What was read, from where, and when.
#[derive(Debug)]
struct Known {
    from: HostServers,
    moments: Vec<Moment>,
    servers: Vec<SocketAddr>,
}

impl Servers {
    /// The servers to be asked, in order. Looks at a file's time only, mostly.
    pub fn get(&self, from: &HostServers) -> Vec<SocketAddr> {
        let files = std::iter::once(&from.file).chain(&from.behind_stub);
        let moments: Vec<Moment> = files.map(|file| moment(file)).collect();
        if let Some(known) = &*self.known.borrow()
            && (&known.from, &known.moments) == (from, &moments)
        {
            return known.servers.clone();
        }
        let servers = read(from);
        tracing::debug!(?servers, "the host's nameservers");
        self.known.replace(Some(Known { from: from.clone(), moments, servers: servers.clone() }));
        servers
    }
}

fn moment(file: &Path) -> Moment {
    let metadata = fs::metadata(file).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

fn read(from: &HostServers) -> Vec<SocketAddr> {
    let text = |file: &Path| {
        let short = fs::metadata(file).is_ok_and(|metadata| metadata.len() <= LENGTH_MAX);
        short.then(|| fs::read_to_string(file).ok()).flatten().unwrap_or_default()
    };
    let servers = servers(&text(&from.file));
    match &from.behind_stub {
        Some(file) if servers.iter().any(|server| STUBS.contains(&server.ip())) => {
            let behind = self::servers(&text(file));
            behind.into_iter().filter(|server| !STUBS.contains(&server.ip())).collect()
        }
        _ => servers,
    }
}

/// The servers in the text of a `resolv.conf`.
fn servers(text: &str) -> Vec<SocketAddr> {
    let addresses = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()).flatten()
    });
    addresses.filter_map(server).take(COUNT_MAX).collect()
}

/// An address, for link-local ones with `%` and the interface.
fn server(text: &str) -> Option<SocketAddr> {
    let (address, interface) = text.split_once('%').map_or((text, None), |(a, i)| (a, Some(i)));
    match (address.parse().ok()?, interface) {
        (IpAddr::V6(address), Some(interface)) => {
            let scope = interface.parse().ok().or_else(|| if_nametoindex(interface).ok())?;
            Some(SocketAddrV6::new(address, 53, 0, scope).into())
        }
        (address, _) => Some(SocketAddr::new(address, 53)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(servers: &[SocketAddr]) -> Vec<String> {
        servers.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn servers_are_read_as_the_c_library_reads_them() {
        let text = "# nameserver 192.0.2.9\nsearch example.org\nnameserver 10.0.0.1\n\tnameserver  fd00::1 # ours\nnameserver x\nnameserver fe80::1%lo\nnameserver 10.0.0.4\n";
        assert_eq!(texts(&servers(text)), ["10.0.0.1:53", "[fd00::1]:53", "[fe80::1%1]:53"]);
        assert_eq!(servers("nameserver\noptions edns0"), []);
    }

    #[test]
    fn files_are_read_again_when_they_change() {
        let folder = tempfile::tempdir().unwrap();
        let from = HostServers {
            file: folder.path().join("resolv.conf"),
            behind_stub: Some(folder.path().join("uplinks")),
        };
        let known = Servers::default();
        assert_eq!(known.get(&from), []);
        fs::write(&from.file, "nameserver 10.0.0.1\n").unwrap();
        assert_eq!(texts(&known.get(&from)), ["10.0.0.1:53"]);
        fs::write(&from.file, "nameserver 127.0.0.53\n").unwrap();
        assert_eq!(known.get(&from), [], "nobody behind the stub yet");
        fs::write(folder.path().join("uplinks"), "nameserver 10.0.0.2\nnameserver 127.0.0.53\n").unwrap();
        assert_eq!(texts(&known.get(&from)), ["10.0.0.2:53"]);
        let through = HostServers { behind_stub: None, ..from.clone() };
        assert_eq!(texts(&known.get(&through)), ["127.0.0.53:53"]);
        fs::remove_file(&from.file).unwrap();
        assert_eq!(known.get(&from), []);
    }
}
