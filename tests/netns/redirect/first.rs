//! The first rules of a host arrive while connections are being opened: what they leave alone is left alone from the
//! first packet on. Everything else is refused meanwhile, so that an exception that counts a moment late shows.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use enmesh::config::OnProxyFailure;
use enmesh::plan::RedirectPolicy;
use enmesh::redirect::{Firewall, Nftables};
use nix::libc::linger;
use nix::sys::socket::{setsockopt, sockopt};
use nix::unistd::{Uid, setfsuid};

use crate::drivers::{Driver, cases};
use crate::lab::{Lab, Space};
use crate::worlds::{APP, down, legacy, on_failure, two_users, with};

/// How often the first rules come.
const INSTALLS: u32 = 150;

/// Takes connections and lets them go.
fn take(space: &Space, at: &str) {
    let at: SocketAddr = at.parse().unwrap();
    let listener = space.run(move || TcpListener::bind(at).unwrap());
    thread::spawn(move || listener.incoming().for_each(drop));
}

/// Connects without a pause until `stop`. Returns how often, and how often it was refused.
fn dial(space: &Space, uid: u32, to: &str, stop: &Arc<AtomicBool>) -> JoinHandle<(u32, u32)> {
    let (to, stop): (SocketAddr, _) = (to.parse().unwrap(), Arc::clone(stop));
    let work = move || {
        setfsuid(Uid::from_raw(uid));
        let (mut all, mut refused) = (0, 0);
        while !stop.load(Ordering::Relaxed) {
            all += 1;
            match TcpStream::connect(to) {
                // Closed by a reset, or the ports of this side would be used up.
                Ok(stream) => {
                    setsockopt(&stream, sockopt::Linger, &linger { l_onoff: 1, l_linger: 0 }).unwrap();
                }
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => refused += 1,
                Err(error) => panic!("{to}: {error}"),
            }
        }
        (all, refused)
    };
    space.run(move || thread::spawn(work))
}

/// The policies in turn are installed where there is nothing, and removed again.
fn install(driver: Driver, policies: &[RedirectPolicy], name: &str) {
    let lab = Lab::new();
    take(&lab.host, "10.9.0.2:9101");
    take(&lab.peer, "10.50.0.1:81");
    let stop = Arc::new(AtomicBool::new(false));
    let load = [
        ("a bypassed port", dial(&lab.peer, 0, "10.9.0.2:9101", &stop)),
        ("a bypassed network", dial(&lab.host, APP, "10.50.0.1:81", &stop)),
    ];
    let policies = policies.to_vec();
    lab.host.run(move || {
        for round in 0..INSTALLS {
            for policy in &policies {
                let firewall = driver();
                firewall.apply(&down(policy.clone())).unwrap_or_else(|fault| panic!("{round}: {fault}"));
                firewall.remove().unwrap();
            }
        }
    });
    stop.store(true, Ordering::Relaxed);
    for (what, load) in load {
        let (all, refused) = load.join().unwrap();
        eprintln!("{name}: {what}: {refused} of {all} refused");
        assert!(all > 200, "{what}: {all} connections are no load");
        assert_eq!(refused, 0, "{what}: of {all}");
    }
}

fn exceptions_count_from_the_first_packet_on(driver: Driver) {
    // The exceptions of everybody stand in one kind of set, those of one user in another.
    let host = on_failure(legacy(), OnProxyFailure::Sealed);
    let user = on_failure(two_users(), OnProxyFailure::Sealed);
    install(driver, &[host, user], driver().name());
}

/// The same while rules that are there change in place, which only the driver nftables does: an exception of others
/// comes and goes, in every kind of set.
#[test]
fn exceptions_count_while_others_come_and_go() {
    let lab = Lab::new();
    take(&lab.host, "10.9.0.2:9101");
    take(&lab.peer, "10.50.0.1:81");
    let policies = [legacy(), two_users()].map(|policy| {
        let policy = on_failure(policy, OnProxyFailure::Sealed);
        let more = |number: u8| {
            with(
                policy.clone(),
                |capture| capture.bypass.cidrs.push(format!("10.80.{number}.0/24").parse().unwrap()),
                |capture| capture.bypass_ports.push(format!("7{number}0-7{number}5").parse().unwrap()),
            )
        };
        [policy.clone(), more(1), more(2)]
    });
    for policies in policies {
        let stop = Arc::new(AtomicBool::new(false));
        let load = [dial(&lab.peer, 0, "10.9.0.2:9101", &stop), dial(&lab.host, APP, "10.50.0.1:81", &stop)];
        lab.host.run(move || {
            let firewall = Nftables::new();
            for round in 0..INSTALLS as usize {
                firewall.apply(&down(policies[round % 3].clone())).unwrap();
            }
            firewall.remove().unwrap();
        });
        stop.store(true, Ordering::Relaxed);
        for load in load {
            let (all, refused) = load.join().unwrap();
            eprintln!("in place: {refused} of {all} refused");
            assert!(all > 200, "{all} connections are no load");
            assert_eq!(refused, 0, "of {all}");
        }
    }
}

cases! {
    exceptions_count_from_the_first_packet_on,
}
