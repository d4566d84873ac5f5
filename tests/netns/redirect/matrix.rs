//! Traffic cases, one a row, for every driver. The numbers are those of the project's acceptance list; a letter makes
//! a case of our own next to it.

use enmesh::config::{Ipv6Policy, OnProxyFailure};
use enmesh::redirect::Desired;

use crate::drivers::{Driver, cases};
use crate::lab::{Lab, Outcome};
use crate::worlds::{
    APP, CONSUL, NOBODY, OTHER, PROXY, RESOLVER, down, ipv6, legacy, live, on_failure, only, two_users,
    whole_host, with, with_dns,
};

/// Who starts it.
#[derive(Debug, Clone, Copy)]
pub enum Source {
    /// A user of the host, over TCP.
    Host(u32),
    /// A user of the host, over UDP.
    HostUdp(u32),
    /// Somebody outside, over TCP.
    Peer,
    /// Somebody outside, over UDP.
    PeerUdp,
}

/// What comes of it.
#[derive(Debug, Clone, Copy)]
pub enum Expect {
    /// This listener answers and sees the destination that was dialled.
    At(&'static str),
    /// An error at once.
    Refused,
}

use Expect::{At, Refused};
use Source::{Host, HostUdp, Peer, PeerUdp};

pub type Row = (&'static str, Source, &'static str, Expect);

/// Puts a driver through rows, with `desired` in force, and reports all that fail.
pub fn check(driver: Driver, desired: Desired, rows: &[Row]) {
    let lab = Lab::new();
    lab.host.run(move || driver().apply(&desired)).unwrap_or_else(|fault| panic!("{fault}"));
    lab.host.beat();
    let mut wrong = Vec::new();
    for (id, from, to, expect) in rows {
        let address = to.parse().unwrap_or_else(|_| panic!("row {id}: {to}"));
        let got = match *from {
            Host(uid) => lab.host.dial(uid, address),
            HostUdp(uid) => lab.host.ask(uid, address),
            Peer => lab.peer.dial(0, address),
            PeerUdp => lab.peer.ask(0, address),
        };
        let fine = match (expect, &got) {
            (At(name), Outcome::Reached { who, original, .. }) => {
                // What was not tracked has no original destination; then it went there directly.
                who == name && (original == &without_scope(to) || original.starts_with("ENOENT"))
            }
            (Refused, Outcome::Refused) => true,
            _ => false,
        };
        if !fine {
            wrong.push(format!("row {id}: {from:?} to {to} should be {expect:?}, is {got:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}\n{}", wrong.join("\n"), lab.host.rules());
}

/// The kernel's answer about the original destination names no interface.
fn without_scope(address: &str) -> String {
    match address.split_once('%') {
        Some((address, rest)) => {
            format!("{address}{}", rest.trim_start_matches(|c: char| c.is_ascii_digit()))
        }
        None => address.to_owned(),
    }
}

/// Row 82 is this and everything below with iptables.
fn users_with_live_sidecars(driver: Driver) {
    let rows: &[Row] = &[
        ("1", Host(APP), "240.0.0.1:80", At("out")),
        ("1b", Host(OTHER), "240.0.0.1:80", At("out2")),
        ("2", Host(APP), "10.9.0.1:80", At("out")),
        ("2b", Host(OTHER), "10.9.0.1:80", At("out2")),
        ("3b root is not this service", Host(0), "10.9.0.1:80", At("peer")),
        ("3c nor is anybody else", Host(NOBODY), "10.9.0.1:80", At("peer")),
        ("4", Host(PROXY), "10.9.0.1:80", At("peer")),
        ("5", Host(CONSUL), "10.9.0.1:8300", At("peer")),
        ("6", Host(APP), "10.9.0.1:3306", At("peer")),
        ("6b another's bypass", Host(OTHER), "10.9.0.1:3306", At("out2")),
        ("7", Host(APP), "10.50.0.1:80", At("peer")),
        ("7b another's bypass", Host(OTHER), "10.50.0.1:80", At("out2")),
        ("8", Host(APP), "169.254.169.254:80", At("peer")),
        ("8b", Host(APP), "168.63.129.16:80", At("peer")),
        ("9", Host(APP), "127.0.0.1:8080", At("app")),
        ("10", Host(APP), "127.0.0.53:5353", At("app")),
        ("11", Host(APP), "[::1]:8080", At("app")),
        ("12", Host(APP), "10.9.0.2:8080", At("app")),
        ("12b", Host(APP), "[fd09::2]:8080", At("app")),
        ("12c", Host(APP), "10.9.0.22:8080", At("app")),
        ("13", Host(PROXY), "10.9.0.2:8080", At("app")),
        // What the sidecar does then: it dials the public port of its own host, or the app.
        ("14 the service's own virtual IP", Host(APP), "240.0.0.1:80", At("out")),
        ("14b its sidecar dials its own host", Host(PROXY), "10.9.0.2:21000", At("in")),
        ("14c or the app", Host(PROXY), "127.0.0.1:8080", At("app")),
        ("15", Host(APP), "[fd00:240::1]:80", At("out")),
        ("15b", Host(APP), "[fd09::1]:80", At("out")),
        ("23", Host(OTHER), "10.9.0.1:5432", At("peer")),
        ("23b", Host(APP), "10.9.0.1:5432", At("out")),
        ("mesh instance", Host(APP), "10.9.0.1:9000", At("out")),
        ("mesh instance of others", Host(NOBODY), "10.9.0.1:9000", At("peer")),
        ("virtual IP, others", Host(NOBODY), "240.0.0.1:80", Refused),
        ("38", Peer, "10.9.0.2:8080", At("in")),
        ("38b", Peer, "10.9.0.2:8081", At("in2")),
        ("39", Peer, "10.9.0.22:8080", At("in")),
        ("40", Peer, "[fd09::2]:8080", At("in")),
        ("41", Peer, "10.9.0.2:21000", At("in")),
        ("42", Peer, "10.9.0.2:22", At("ssh")),
        ("42b", Peer, "10.9.0.2:9105", At("metrics")),
        ("43", Peer, "10.9.0.2:9100", At("metrics")),
        ("44", Peer, "10.9.0.2:8301", At("agent")),
        ("44b", Peer, "10.9.0.2:8502", At("agent")),
        ("62 TCP", Host(APP), "10.9.0.1:53", At("peer")),
        ("62 UDP", HostUdp(APP), "10.9.0.1:53", At("peer")),
        ("64", HostUdp(APP), "10.9.0.1:9999", At("peer")),
        ("64b", PeerUdp, "10.9.0.2:9999", At("host")),
        ("65 QUIC is UDP as any other", HostUdp(APP), "10.9.0.1:443", At("peer")),
        ("86b virtual IP over UDP", HostUdp(APP), "240.0.0.1:9999", Refused),
    ];
    check(driver, live(two_users()), rows);
}

fn link_local(driver: Driver) {
    let lab = Lab::new();
    lab.host.run(move || driver().apply(&live(whole_host()))).unwrap();
    let index = lab.host.run(|| nix::net::if_::if_nametoindex("eth0")).unwrap();
    let to = std::net::SocketAddrV6::new("fe80::1".parse().unwrap(), 80, 0, index);
    let got = lab.host.dial(APP, to.into());
    assert!(matches!(&got, Outcome::Reached { who, .. } if who == "peer"), "row 18: {got:?}");
}

fn the_whole_host(driver: Driver) {
    let rows: &[Row] = &[
        ("1", Host(APP), "240.0.0.1:80", At("out")),
        ("2", Host(APP), "10.9.0.1:80", At("out")),
        ("3", Host(0), "10.9.0.1:80", At("out")),
        ("4", Host(PROXY), "10.9.0.1:80", At("peer")),
        ("5", Host(CONSUL), "10.9.0.1:8300", At("peer")),
        ("6", Host(NOBODY), "10.9.0.1:3306", At("peer")),
        ("7", Host(NOBODY), "10.50.0.1:80", At("peer")),
        ("8", Host(0), "169.254.169.254:80", At("peer")),
        ("9", Host(0), "127.0.0.1:8080", At("app")),
        ("12", Host(0), "10.9.0.2:8080", At("app")),
        ("15", Host(0), "[fd00:240::1]:80", At("out")),
        ("42c every port but the service's", Peer, "10.9.0.2:9100", At("metrics")),
        ("64", HostUdp(0), "10.9.0.1:9999", At("peer")),
    ];
    check(driver, live(whole_host()), rows);
}

fn every_port_as_in_legacy_files(driver: Driver) {
    let rows: &[Row] = &[
        ("38", Peer, "10.9.0.2:8080", At("in")),
        ("38c any port", Peer, "10.9.0.2:5353", At("in")),
        ("38d but another service's", Peer, "10.9.0.2:8081", At("in2")),
        ("40", Peer, "[fd09::2]:8080", At("in")),
        ("41", Peer, "10.9.0.2:21000", At("in")),
        ("41b", Peer, "10.9.0.2:21001", At("in2")),
        ("42", Peer, "10.9.0.2:22", At("ssh")),
        ("42a range, first", Peer, "10.9.0.2:9100", At("metrics")),
        ("42b range", Peer, "10.9.0.2:9105", At("metrics")),
        ("42c range, last", Peer, "10.9.0.2:9110", At("metrics")),
        ("1c", Host(OTHER), "240.0.0.1:80", At("out2")),
        ("1d", Host(NOBODY), "240.0.0.1:80", At("out")),
    ];
    check(driver, live(legacy()), rows);
    let rows: &[Row] = &[
        ("44c every port, but where others call Consul's agent", Peer, "10.9.0.2:8301", At("agent")),
        ("44d its API, which nobody said is for others", Peer, "10.9.0.2:8502", At("in")),
    ];
    let mut policy = legacy();
    policy.agent_ports = [8300, 8301, 8302].into();
    check(driver, live(policy.clone()), rows);
    let rows: &[Row] = &[
        ("44e and while no sidecar is live", Peer, "10.9.0.2:8301", At("agent")),
        ("44f", Peer, "10.9.0.2:8502", Refused),
    ];
    check(driver, down(policy), rows);
}

fn bypassed_interfaces(driver: Driver) {
    let policy = with(
        two_users(),
        |_| (),
        |capture| {
            if capture.to == 21000 {
                capture.bypass_interfaces.insert("eth0".to_owned());
            }
        },
    );
    let rows: &[Row] = &[
        ("51", Peer, "10.9.0.2:8080", At("app")),
        ("51b only for that service", Peer, "10.9.0.2:8081", At("in2")),
    ];
    check(driver, live(policy), rows);
}

fn every_port_with_a_bypassed_interface(driver: Driver) {
    let policy = with(
        legacy(),
        |_| (),
        |capture| {
            if capture.to == 21000 {
                capture.bypass_interfaces.insert("eth0".to_owned());
            }
        },
    );
    let rows: &[Row] =
        &[("51c", Peer, "10.9.0.2:8080", At("app")), ("51d", Peer, "10.9.0.2:8081", At("in2"))];
    check(driver, live(policy), rows);
}

fn ipv6_refused(driver: Driver) {
    let rows: &[Row] = &[
        ("16", Host(APP), "[fd00:240::1]:80", Refused),
        ("16b", Host(APP), "[fd09::1]:80", Refused),
        ("16c others", Host(NOBODY), "[fd09::1]:80", At("peer")),
        ("16d loopback", Host(APP), "[::1]:8080", At("app")),
        ("16e IPv4", Host(APP), "10.9.0.1:80", At("out")),
        ("16f inbound", Peer, "[fd09::2]:8080", Refused),
        ("16g inbound, IPv4", Peer, "10.9.0.2:8080", At("in")),
        ("16h a bypass", Host(APP), "[fd09::1]:3306", At("peer")),
    ];
    check(driver, live(ipv6(two_users(), Ipv6Policy::Refuse)), rows);
    let rows: &[Row] = &[
        ("16i everybody", Host(NOBODY), "[fd09::1]:80", Refused),
        ("16j everybody, IPv4", Host(NOBODY), "10.9.0.1:80", At("out")),
        ("16k every port", Peer, "[fd09::2]:8080", Refused),
        ("16l every port, bypassed", Peer, "[fd09::2]:22", At("ssh")),
    ];
    check(driver, live(ipv6(legacy(), Ipv6Policy::Refuse)), rows);
}

fn ipv6_allowed(driver: Driver) {
    let rows: &[Row] = &[
        ("17", Host(APP), "[fd09::1]:80", At("peer")),
        ("17b a virtual IP all the same", Host(APP), "[fd00:240::1]:80", Refused),
        ("17c IPv4", Host(APP), "10.9.0.1:80", At("out")),
        ("17d inbound", Peer, "[fd09::2]:8080", At("app")),
    ];
    check(driver, live(ipv6(two_users(), Ipv6Policy::Allow)), rows);
    let rows: &[Row] = &[
        ("17e everybody", Host(NOBODY), "[fd09::1]:80", At("peer")),
        ("17f every port", Peer, "[fd09::2]:8080", At("app")),
    ];
    check(driver, live(ipv6(legacy(), Ipv6Policy::Allow)), rows);
}

fn closed_while_sidecars_are_down(driver: Driver) {
    let rows: &[Row] = &[
        ("21", Host(APP), "240.0.0.1:80", Refused),
        ("21b", Host(APP), "[fd00:240::1]:80", Refused),
        ("21c", Host(APP), "10.9.0.1:9000", Refused),
        ("21d", Host(APP), "[fd09::1]:9000", Refused),
        ("21e not the mesh", Host(APP), "10.9.0.1:80", At("peer")),
        ("21f another port of an instance", Host(APP), "10.9.0.1:443", At("peer")),
        ("21g not captured", Host(NOBODY), "10.9.0.1:9000", At("peer")),
        ("21h the sidecar itself", Host(PROXY), "10.9.0.1:9000", At("peer")),
        ("21i loopback", Host(APP), "127.0.0.1:8080", At("app")),
        ("21j own address", Host(APP), "10.9.0.2:8080", At("app")),
        ("45", Peer, "10.9.0.2:8080", Refused),
        ("45b IPv6", Peer, "[fd09::2]:8080", Refused),
        ("45c SSH", Peer, "10.9.0.2:22", At("ssh")),
        ("45d others' ports", Peer, "10.9.0.2:9100", At("metrics")),
        ("45e the sidecar's port is the sidecar's matter", Peer, "10.9.0.2:21000", At("in")),
    ];
    check(driver, down(two_users()), rows);
    let rows: &[Row] = &[
        ("21k everybody", Host(NOBODY), "10.9.0.1:9000", Refused),
        ("21l everybody, not the mesh", Host(NOBODY), "10.9.0.1:80", At("peer")),
        ("21m Consul", Host(CONSUL), "10.9.0.1:9000", At("peer")),
        ("45f every port", Peer, "10.9.0.2:8080", Refused),
        ("45g every port, bypassed", Peer, "10.9.0.2:22", At("ssh")),
    ];
    check(driver, down(legacy()), rows);
}

fn one_down_does_not_fall_into_another(driver: Driver) {
    let rows: &[Row] = &[
        ("20b", Host(OTHER), "240.0.0.1:80", Refused),
        ("20c", Host(OTHER), "10.9.0.1:80", At("peer")),
        ("20d", Host(NOBODY), "10.9.0.1:80", At("out")),
        ("20e", Peer, "10.9.0.2:8081", Refused),
        ("20f", Peer, "10.9.0.2:8080", At("in")),
    ];
    check(driver, only(legacy(), &["api"]), rows);
    let rows: &[Row] = &[
        ("20g", Host(OTHER), "10.9.0.1:80", At("out2")),
        ("20h", Host(NOBODY), "10.9.0.1:80", At("peer")),
        ("20i", Host(NOBODY), "240.0.0.1:80", Refused),
        ("20j", Peer, "10.9.0.2:8081", At("in2")),
        ("20k", Peer, "10.9.0.2:8080", Refused),
    ];
    check(driver, only(legacy(), &["web"]), rows);
}

fn sealed_while_sidecars_are_down(driver: Driver) {
    let rows: &[Row] = &[
        ("sealed", Host(APP), "10.9.0.1:80", Refused),
        ("sealed, IPv6", Host(APP), "[fd09::1]:80", Refused),
        ("sealed, virtual IP", Host(APP), "240.0.0.1:80", Refused),
        ("sealed, loopback", Host(APP), "127.0.0.1:8080", At("app")),
        ("sealed, bypassed port", Host(APP), "10.9.0.1:3306", At("peer")),
        ("sealed, bypassed network", Host(APP), "10.50.0.1:80", At("peer")),
        ("sealed, metadata", Host(APP), "169.254.169.254:80", At("peer")),
        ("sealed, DNS", HostUdp(APP), "10.9.0.1:53", At("peer")),
        ("sealed, others", Host(NOBODY), "10.9.0.1:80", At("peer")),
        ("sealed, inbound", Peer, "10.9.0.2:8080", Refused),
    ];
    check(driver, down(on_failure(two_users(), OnProxyFailure::Sealed)), rows);
    let rows: &[Row] = &[
        ("sealed host", Host(NOBODY), "10.9.0.1:80", Refused),
        ("sealed host, sidecar", Host(PROXY), "10.9.0.1:80", At("peer")),
        ("sealed host, SSH", Peer, "10.9.0.2:22", At("ssh")),
    ];
    check(driver, down(on_failure(legacy(), OnProxyFailure::Sealed)), rows);
}

fn open_while_sidecars_are_down(driver: Driver) {
    let rows: &[Row] = &[
        ("open", Host(APP), "10.9.0.1:80", At("peer")),
        ("open, instance", Host(APP), "10.9.0.1:9000", At("peer")),
        ("open, virtual IP", Host(APP), "240.0.0.1:80", Refused),
        ("open, inbound", Peer, "10.9.0.2:8080", At("app")),
    ];
    check(driver, down(on_failure(two_users(), OnProxyFailure::Open)), rows);
    let rows: &[Row] = &[
        ("open host", Host(NOBODY), "10.9.0.1:9000", At("peer")),
        ("open host, inbound", Peer, "10.9.0.2:8080", At("app")),
    ];
    check(driver, down(on_failure(legacy(), OnProxyFailure::Open)), rows);
}

fn dns_of_everybody(driver: Driver) {
    let rows: &[Row] = &[
        ("53", HostUdp(APP), "10.9.0.1:53", At("resolver")),
        ("54", Host(APP), "10.9.0.1:53", At("resolver")),
        ("55", HostUdp(APP), "[fd09::1]:53", At("resolver")),
        ("55b", Host(APP), "[fd09::1]:53", At("resolver")),
        ("56", HostUdp(APP), "127.0.0.1:53", At("resolver")),
        ("57", HostUdp(APP), "127.0.0.53:53", At("resolver")),
        ("57b", Host(APP), "127.0.0.53:53", At("resolver")),
        ("63 an app asks Azure's resolver", HostUdp(APP), "168.63.129.16:53", At("resolver")),
        ("63b Azure's agent, whose user is exempt", Host(RESOLVER), "168.63.129.16:53", At("peer")),
        ("59", HostUdp(RESOLVER), "10.9.0.1:53", At("peer")),
        ("59b", Host(RESOLVER), "10.9.0.1:53", At("peer")),
        ("58", HostUdp(CONSUL), "10.9.0.1:53", At("peer")),
        ("58b", Host(CONSUL), "10.9.0.1:53", At("peer")),
        ("64", HostUdp(APP), "10.9.0.1:9999", At("peer")),
    ];
    check(driver, live(with_dns(&[])), rows);
}

fn dns_of_some(driver: Driver) {
    let rows: &[Row] = &[
        ("53", HostUdp(APP), "10.9.0.1:53", At("resolver")),
        ("54", Host(APP), "10.9.0.1:53", At("resolver")),
        ("57c others' stub", HostUdp(NOBODY), "127.0.0.53:53", At("stub")),
        ("53b others", HostUdp(NOBODY), "10.9.0.1:53", At("peer")),
        ("53c bypassed beats captured", HostUdp(CONSUL), "10.9.0.1:53", At("peer")),
    ];
    check(driver, live(with_dns(&[APP, CONSUL])), rows);
}

cases! {
    users_with_live_sidecars,
    link_local,
    the_whole_host,
    every_port_as_in_legacy_files,
    bypassed_interfaces,
    every_port_with_a_bypassed_interface,
    ipv6_refused,
    ipv6_allowed,
    closed_while_sidecars_are_down,
    one_down_does_not_fall_into_another,
    sealed_while_sidecars_are_down,
    open_while_sidecars_are_down,
    dns_of_everybody,
    dns_of_some,
}
