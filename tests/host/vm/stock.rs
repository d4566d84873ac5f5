//! A stock Debian with only a seed: it installs the package, joins, serves; and whatever comes after that.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::guest::{Guest, Recipe, writes};
use super::peer::{API_PORT, APPS, DB_PORT, MARK, Peer};
use crate::deploy::seed::part;

const HOST_FILE: &str = "control_plane = \"catalog\"\nregistration = \"catalog\"\n\n[consul]\n\
    address = \"http://10.77.0.10:8500\"\n\n[envoy]\ndrain = \"1s\"\n";
/// As whoever works on the machine would.
const RUN: &str = "#cloud-config\nmerge_how: 'list(append)+dict(no_replace,recurse_list)+str()'\n\
    runcmd:\n  - systemctl enable --now app.service eager.service\n";
/// A line that is no YAML.
const BROKEN: &str = "#cloud-config\nwrite_files: [ { path: /etc/never\n";

#[test]
fn a_stock_debian_joins_by_its_seed_alone_and_lives() {
    let peer = Peer::boot();
    let from = peer.serve();
    let [ours, service] = ["enmesh", "service"].map(|name| part(&format!("cloud-init/{name}.yaml")));
    let host = writes(&[("/etc/enmesh/enmesh.toml", HOST_FILE)]);
    let parts = vec![from, host, ours, service, writes(&APPS), RUN.to_owned(), BROKEN.to_owned()];
    let address = Ipv4Addr::new(10, 77, 0, 20);
    let recipe = Recipe { name: "stock", disk: "stock", firmware: false, address, parts };
    let mut guest = Guest::start(&peer.switch, recipe);
    guest.until_up();
    println!("stock: first word after {:?}", guest.uptime());
    broken_user_data_is_told(&mut guest);
    joins(&mut guest, &peer);
    is_closed_through_a_reboot(&mut guest, &peer);
    figures(&mut guest);
    faults(&mut guest, &peer);
    upgrade(&mut guest, &peer);
    removal(&mut guest, &peer);
}

/// A part that cannot be read is said, and costs nothing but itself.
fn broken_user_data_is_told(guest: &mut Guest) {
    guest.until("the end of the first boot", "cloud-init status | grep -qE 'done|error'");
    let told =
        guest.must("grep -hm1 -iE 'failed (loading|at merging)|malformed|part-0' /var/log/cloud-init.log");
    println!("broken user-data: {}", told.trim());
}

fn joins(guest: &mut Guest, peer: &Peer) {
    guest.until("in the mesh", "enmesh wait --timeout 60s");
    peer.until_asked();
    println!("stock: first request through the mesh after {:?}", guest.uptime());
    let db = guest.must("exec 3<>/dev/tcp/db.virtual.consul/5432; head -c 18 <&3");
    assert_eq!(db, "hello in the clear", "the database, over the mesh");
    assert_eq!(guest.must("dpkg-query --show --showformat='${Version}' enmesh"), "0.0.1-1");
}

/// From the order to boot again until the mesh answers: not one connection of the captured in the clear.
fn is_closed_through_a_reboot(guest: &mut Guest, peer: &Peer) {
    let tap = peer.listen("stock");
    let dialler = Dialler::start(peer);
    guest.reboot();
    guest.until("in the mesh again", "enmesh wait --timeout 60s");
    peer.until_asked();
    println!("stock: in the mesh {:?} after the order to boot again", guest.uptime());
    let (tries, heard) = dialler.stop();
    let tally = tap.tally();
    let said = guest.must(
        "journalctl -b --no-pager -o short-monotonic | grep -iE 'enmesh|cycle|network-pre|nft|app.service|eager' | cut -c1-200 | head -n 40",
    );
    println!("{said}");
    println!("{tries} dialled in from outside, {heard} were heard; on the wire: {tally:?}");
    assert!(tries > 50, "somebody tried");
    assert_eq!(heard, 0);
    assert_eq!(tally.by_port.get(&DB_PORT), None, "a connection to the database in the clear");
    assert_eq!(tally.secrets_seen, 0);
    assert!(tally.encrypted_bytes > 0, "the mesh was on that wire");
    let eager = guest.must("systemctl show --value --property NRestarts eager; stat -c %s /run/eager");
    println!("the eager one: {}", eager.trim());
    // That the tap would have seen it: Envoy's own user is not captured.
    guest.run(
        "setpriv --reuid envoy --clear-groups bash -c 'exec 3<>/dev/tcp/10.77.0.10/5432; head -c 18 <&3'",
    );
    assert!(tap.tally().by_port.contains_key(&DB_PORT), "what is in the clear is seen");
}

fn figures(guest: &mut Guest) {
    guest.until_booted();
    let chain = guest
        .must("systemd-analyze critical-chain --no-pager enmesh-early.service enmesh.service 2>&1 || true");
    let blame = guest.must("systemd-analyze blame --no-pager | grep -E 'enmesh|envoy' || true");
    let security = guest.must(
        "for unit in enmesh enmesh-early envoy@api; do systemd-analyze security --no-pager $unit.service | tail -n 1; done",
    );
    println!("{chain}\n{blame}\n{security}");
    let early = between(
        guest,
        "systemctl show --value --property ExecMainStartTimestampMonotonic --property ExecMainExitTimestampMonotonic enmesh-early",
    );
    println!("enmesh early took {early} ms");
    // Others are waited for meanwhile, so only a boot without it tells what it adds.
    let with = until_network_pre(guest);
    guest.must("systemctl mask enmesh-early");
    guest.reboot();
    guest.until_booted();
    println!("network-pre.target: {with} ms with enmesh-early, {} ms without", until_network_pre(guest));
    guest.must("systemctl unmask enmesh-early");
}

/// From the start of systemd, in ms.
fn until_network_pre(guest: &mut Guest) -> u64 {
    between(
        guest,
        "systemctl show --value --property UserspaceTimestampMonotonic; \
         systemctl show --value --property ActiveEnterTimestampMonotonic network-pre.target",
    )
}

/// Between the two points in time that a script prints in microseconds, in either order; in ms.
fn between(guest: &mut Guest, script: &str) -> u64 {
    let said = guest.must(script);
    let times: Vec<u64> = said.lines().filter_map(|line| line.trim().parse().ok()).collect();
    times[1].abs_diff(times[0]) / 1000
}

/// Each ends in a coded error that is seen, and is over when its cause is.
fn faults(guest: &mut Guest, peer: &Peer) {
    // A service file is wrong, as user-data may bring it.
    guest.must("printf 'name = \"bad\"\\nport = 99999\\n' >/etc/enmesh/services/bad.toml");
    println!("a bad file: {}", guest.until_fault("ENM-C").trim());
    guest.must("rm /etc/enmesh/services/bad.toml");
    guest.until("no bad file", "enmesh status");

    // The disk is full.
    guest.must(
        "fallocate -l $(($(stat -f -c '%f * %S' /) - (50 << 20))) /full; dd if=/dev/zero of=/full2 bs=64k status=none; \
         printf 'name = \"other\"\\nport = 8090\\n[capture]\\nscope = \"user:daemon\"\\n' >/run/other.toml; ln -s /run/other.toml /etc/enmesh/services/",
    );
    println!("disk full: {}", guest.until_fault("ENM-X001").trim());
    assert!(peer.asks_api(), "what was in force stays in force");
    guest.must("rm -f /full /full2 /etc/enmesh/services/other.toml");
    guest.until("room again", "enmesh wait --timeout 20s && enmesh status");

    // The clock is a day behind.
    guest.must("timedatectl set-ntp false 2>/dev/null; date -s '-1 day'");
    let told = guest
        .until("a word about the clock", "enmesh doctor >/run/said 2>&1; grep -A1 -m1 ENM-D073 /run/said");
    println!("the clock: {}", told.trim());
    guest.must("date -s '+1 day'");
    guest.until("the right time", "enmesh wait --timeout 60s");

    // Consul is absent at boot.
    peer.machine.must(&["systemctl", "stop", "consul.service"]);
    guest.reboot();
    println!("without Consul at boot: {}", guest.until_fault("ENM-K").trim());
    peer.machine.must(&["systemctl", "start", "consul.service"]);
    guest.until("Consul again", "enmesh wait --timeout 60s");
    peer.until_asked();
}

fn upgrade(guest: &mut Guest, peer: &Peer) {
    let sidecar = guest.must("systemctl show --value --property MainPID envoy@api");
    let (asked, failed) = under_load(peer, || {
        guest.must(
            "python3 -c 'import urllib.request as u; u.urlretrieve(\"http://10.77.0.1/new.deb\", \"/run/new.deb\")'",
        );
        let started = Instant::now();
        guest.must("dpkg --install /run/new.deb");
        guest.until("ready", "enmesh wait --timeout 60s");
        println!("upgrade: {:?}", started.elapsed());
        thread::sleep(Duration::from_secs(2));
    });
    println!("{asked} requests during the upgrade, {failed} failed");
    assert_eq!(failed, 0);
    assert!(asked > 5, "there was no load");
    assert_eq!(guest.must("systemctl show --value --property MainPID envoy@api"), sidecar);
}

fn removal(guest: &mut Guest, peer: &Peer) {
    println!("{}", guest.must("systemctl stop eager; dpkg --purge enmesh"));
    for (what, look) in [
        ("rules", "nft list tables | grep enmesh"),
        ("routes", "ip route show table all | grep 240.0.0.0"),
        ("names", "resolvectl status --no-pager | grep 8653"),
        ("sidecars", "systemctl list-units --all --plain --no-legend 'envoy@*' | grep ."),
        ("state", "ls -d /var/lib/enmesh /run/enmesh /usr/bin/enmesh 2>/dev/null | grep ."),
        ("files of systemd", "find /etc/systemd /run/systemd -name '*enmesh*' -o -name 'envoy@*' | grep ."),
    ] {
        let (status, left) = guest.run(look);
        assert_ne!(status, 0, "{what} are left: {left}");
    }
    let known = peer.machine.must(&["consul", "catalog", "services"]);
    let of_guest = peer.machine.must(&["consul", "catalog", "nodes", "-service=api", "-detailed"]);
    assert!(!known.contains("api"), "{known}{of_guest}");
}

/// Somebody outside who dials the service's port all the time.
struct Dialler {
    end: Arc<AtomicBool>,
    counts: Arc<[AtomicUsize; 2]>,
    thread: Option<thread::JoinHandle<Result<(), enmesh::base::Fault>>>,
}

impl Dialler {
    fn start(peer: &Peer) -> Dialler {
        use std::io::{Read, Write};
        let (end, counts): (Arc<AtomicBool>, Arc<[AtomicUsize; 2]>) = Default::default();
        let (over, seen) = (Arc::clone(&end), Arc::clone(&counts));
        let address = (Ipv4Addr::new(10, 77, 0, 20), API_PORT).into();
        let started = Instant::now();
        let dial = move || {
            while !over.load(Ordering::Relaxed) {
                let limit = Duration::from_millis(500);
                if let Ok(mut stream) = std::net::TcpStream::connect_timeout(&address, limit) {
                    let _ = stream.set_read_timeout(Some(limit));
                    let _ = stream.write_all(b"GET / HTTP/1.0\r\n\r\n");
                    let mut said = String::new();
                    let _ = stream.read_to_string(&mut said);
                    if said.contains(MARK) {
                        println!("heard in the clear {:?} after the beginning", started.elapsed());
                    }
                    seen[1].fetch_add(usize::from(said.contains(MARK)), Ordering::Relaxed);
                }
                seen[0].fetch_add(1, Ordering::Relaxed);
                thread::sleep(Duration::from_millis(20));
            }
        };
        let thread = peer.switch.namespace.spawn(dial).expect("the namespace is there");
        Dialler { end, counts, thread: Some(thread) }
    }

    /// How often it tried, and how often it got an answer in the clear.
    fn stop(mut self) -> (usize, usize) {
        self.end.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(thread::JoinHandle::join);
        (self.counts[0].load(Ordering::Relaxed), self.counts[1].load(Ordering::Relaxed))
    }
}

/// Says that it is over also when the test fails meanwhile.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The client's requests one after the other while `work` lasts: how many, and how many failed.
fn under_load(peer: &Peer, work: impl FnOnce()) -> (usize, usize) {
    let over = AtomicBool::new(false);
    let ask = || {
        let (mut asked, mut failed) = (0, 0);
        while !over.load(Ordering::Relaxed) {
            asked += 1;
            failed += usize::from(!peer.asks_api());
        }
        (asked, failed)
    };
    thread::scope(|scope| {
        let load = scope.spawn(ask);
        let end = Over(&over);
        work();
        drop(end);
        load.join().expect("nothing in there panics")
    })
}
