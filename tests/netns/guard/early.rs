//! `enmesh early`, as enmesh-early.service calls it, with both drivers.

use std::fs;
use std::net::UdpSocket;
use std::thread;
use std::time::Duration;

use nix::unistd::{Uid, setfsuid};

use crate::host_bed::{API, API_FILE, API_USER, HOST_FILE, STATE_FILE};
use crate::site::{DB, Fate, OTHER, Site};

/// Handles too: a chain that was made anew has another.
fn table(site: &Site) -> String {
    site.bed.nft(&["--stateless", "--handle", "list", "table", "inet", "enmesh"], "").unwrap_or_default()
}

fn chains(site: &Site) -> Vec<String> {
    table(site).lines().filter(|line| line.contains("chain ")).map(str::to_owned).collect()
}

/// The application's user sends to everybody on the link, and the peer hears it: an address may still have to be
/// asked for.
fn broadcast_arrives(site: &Site) {
    let heard = site.peer.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:9997").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        thread::spawn(move || socket.recv(&mut [0; 16]).is_ok())
    });
    let send = || {
        setfsuid(Uid::from_raw(API_USER));
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_broadcast(true).unwrap();
        socket.send_to(b"?", "255.255.255.255:9997")
    };
    let sent = site.bed.namespace.run(send).unwrap();
    assert!(sent.is_ok() && heard.join().unwrap(), "{sent:?}");
}

/// As if the host was switched off: nobody and nothing of enmesh is left but its files.
fn power_off(site: &mut Site) {
    site.bed.kill_daemon();
    for pid in site.bed.envoys().into_keys() {
        let pid = nix::unistd::Pid::from_raw(pid.cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    }
    site.bed.nft(&["flush", "ruleset"], "").unwrap();
    site.ip("route flush table main proto 240");
    site.bed.remove("/run");
}

fn boots_closed(driver: &str) {
    let mut site = Site::new();
    let host = site.bed.host_file("");
    site.bed.write(HOST_FILE, format!("driver = {driver:?}\n{host}"));
    let said = site.bed.run(&["early", "--json"]);
    assert!(said.code == Some(0) && said.json()["rules"].is_null(), "nothing is recorded: {said:?}");
    site.bed.write(API_FILE, API);
    site.bed.start().await_ready();
    site.await_fate(DB, Fate::Captured);
    power_off(&mut site);
    assert_eq!(site.fate(DB), Fate::Direct, "without rules it would be in the clear");

    let said = site.bed.run(&["early"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert_eq!((site.fate(DB), site.fate("240.1.2.3:80")), (Fate::Refused, Fate::Refused));
    assert_eq!(site.fate(OTHER), Fate::Direct, "the rest of the world is there");
    site.ip("route add default via 10.9.0.1");
    broadcast_arrives(&site);
    assert!(!site.bed.path("/run").exists(), "it writes nothing");
    // Twice is once.
    assert_eq!(site.bed.run(&["early"]).code, Some(0));
    let before = chains(&site);

    site.bed.start().await_ready();
    site.await_fate(DB, Fate::Captured);
    if driver == "nftables" {
        assert_eq!(chains(&site), before, "the daemon takes the table over");
    }
    assert_eq!(site.bed.run(&["down"]).code, Some(0));
    let said = site.bed.run(&["early", "--json"]);
    assert!(said.code == Some(0) && said.json()["rules"].is_null(), "{said:?}");
    assert_eq!(site.fate(DB), Fate::Direct);
}

#[test]
fn a_host_boots_closed_with_nftables() {
    boots_closed("nftables");
}

/// Row 84, as far as namespaces go.
#[test]
fn a_host_boots_closed_with_iptables() {
    boots_closed("iptables");
}

/// A state that is torn is said loudly, and the host is closed by its configuration.
#[test]
fn a_torn_state_closes_the_host_all_the_same() {
    let mut site = Site::new();
    site.bed.write(API_FILE, API);
    site.bed.start().await_ready();
    power_off(&mut site);
    let state = fs::read(site.bed.path(STATE_FILE)).unwrap();
    for (torn, codes) in [(&state[..state.len() / 2], vec!["ENM-D054"]), (&b""[..], vec!["ENM-D054"])] {
        site.bed.write(STATE_FILE, torn);
        let said = site.bed.run(&["early", "--json"]);
        let said_codes: Vec<_> =
            said.json()["faults"].as_array().unwrap().iter().map(|fault| fault["code"].clone()).collect();
        assert_eq!(
            (said.code, &said_codes),
            (Some(1), &codes.into_iter().map(Into::into).collect()),
            "{said:?}"
        );
        assert_eq!(site.fate("240.1.2.3:80"), Fate::Refused);
        assert_eq!(fs::read(site.bed.path(STATE_FILE)).unwrap(), torn, "it is left for the daemon");
        site.bed.nft(&["flush", "ruleset"], "").unwrap();
    }
    // Not even a configuration: virtual IPs are closed for everybody.
    site.bed.write(API_FILE, "name = 3\n");
    let said = site.bed.run(&["early", "--json"]);
    assert_eq!(said.json()["faults"][1]["code"], "ENM-D055", "{said:?}");
    site.ip("route add default via 10.9.0.1");
    broadcast_arrives(&site);
    assert_eq!(site.fate("240.1.2.3:80"), Fate::Refused);
    assert_eq!(site.fate(OTHER), Fate::Direct);
}

/// A state that an enmesh wrote which recorded no rules yet.
#[test]
fn a_state_of_version_1_closes_the_host_by_its_configuration() {
    let site = Site::new();
    site.bed.write(API_FILE, API);
    site.bed.write(STATE_FILE, include_str!("../../state/v1.json"));
    let said = site.bed.run(&["early"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert_eq!(site.fate("240.1.2.3:80"), Fate::Refused);
}
