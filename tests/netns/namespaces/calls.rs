//! What such services say to each other and to a third host, and what of it is in the clear.

use std::fs;
use std::net::SocketAddr;

use enmesh::demo::snapshot::Snapshot;
use enmesh::demo::stage::{APP_PORT, INTERFACE};
use enmesh::demo::wire::{Tally, Tap};
use enmesh::netns::{self, Namespace};
use serde_json::Value;

use crate::bed::{APP_USER, BESIDE_PORT, Bed, SECRET};

fn tap(place: &Namespace, link: &str) -> Tap {
    Tap::start(place, link, vec![SECRET.as_bytes().to_vec()]).unwrap()
}

fn assert_encrypted(what: &str, tally: &Tally) {
    assert!(tally.encrypted_bytes > 0, "{what}: nothing passed: {tally:?}");
    let clear = (tally.clear_bytes, tally.secrets_seen, tally.unseen_bytes);
    assert_eq!(clear, (0, 0, 0), "{what}: {tally:?}");
}

#[test]
fn two_services_of_one_user_and_port_and_a_third_host() {
    let mut bed = Bed::build("ns-calls", &["api", "billing"], "");
    let before = Snapshot::take(&bed.near().namespace, &[]).unwrap();
    for host in ["near", "far"] {
        bed.start(host);
    }
    let status = bed.await_ready("near");
    bed.await_ready("far");
    for service in ["api", "billing", "far"] {
        bed.app(service);
    }
    bed.assert_host_is_clean();
    let links: Vec<String> = ["enm-c6120000", "enm-c6120004"].map(str::to_owned).into();
    let mut taps: Vec<(String, Tap)> =
        links.iter().map(|link| (link.clone(), tap(&bed.near().namespace, link))).collect();
    taps.push(("the cable between the hosts".to_owned(), tap(&bed.far().namespace, INTERFACE)));
    let services = ["api", "billing", "far"];
    for caller in services {
        for callee in services {
            // `far` calling itself would need its own app behind its own sidecar; the others do that too.
            let heard = bed.call_soon(caller, SocketAddr::new(bed.virtual_ip(callee), 80));
            assert_eq!(heard, callee, "{caller} asked for {callee}");
        }
    }
    for (what, tap) in &taps {
        assert_encrypted(what, &tap.tally());
    }
    for service in ["api", "billing"] {
        assert_eq!(status["services"][service]["namespace"]["name"], bed.names[service].as_str());
    }

    // The app itself is for nobody but its sidecar, which demands a certificate, and for who looks after it.
    let inside: SocketAddr = "198.18.0.2:8080".parse().unwrap();
    assert_eq!(bed.call("near", inside).as_deref(), Ok("api"), "from its host, as whoever checks it");
    assert!(!bed.connects_as(APP_USER, "198.18.0.2:8080"), "from its host, as anybody else");
    assert!(bed.connects_as(0, "198.18.0.2:8080"), "the way to find that out works");
    assert!(bed.call("billing", inside).is_err(), "from the namespace beside it");
    let net = "198.18.0.0/16".parse().unwrap();
    let gateway = Some(bed.near().address.into());
    bed.far().namespace.run_async(|| netns::add_route(net, gateway, None)).unwrap().unwrap();
    bed.kill("far");
    bed.enmesh("far", &["down"]);
    for port in [APP_PORT, 21_000] {
        let to = SocketAddr::new(inside.ip(), port);
        let error = bed.open("far", to).map(drop).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{port}, from who has a route");
    }
    explained_by_the_kernel(&bed);
    // Out of a namespace, to what is not of the mesh: with the host's address.
    let listener = bed.far().namespace.run(|| std::net::TcpListener::bind("0.0.0.0:9999").unwrap()).unwrap();
    let outside = SocketAddr::from((bed.far().address, 9999));
    let _stream = bed.open("api", outside).unwrap();
    listener.set_nonblocking(false).unwrap();
    let (_, from) = listener.accept().unwrap();
    assert_eq!(from.ip(), bed.near().address);

    bed.down("near");
    for name in bed.names.values() {
        assert!(Namespace::by_name(name).is_err(), "{name} is still there");
    }
    let after = Snapshot::take(&bed.near().namespace, &[]).unwrap();
    assert_eq!(before.difference(&after), [""; 0]);
}

/// `explain --live` traces in the namespace that it is asked about, and leaves no trace there or in the host's.
fn explained_by_the_kernel(bed: &Bed) {
    let inside = bed.place("api");
    let rules = || [&inside, &bed.near().namespace].map(|place| bed.rules(place));
    let before = rules();
    let to = SocketAddr::new(bed.virtual_ip("billing"), 80).to_string();
    let uid = APP_USER.to_string();
    let asked = ["explain", "--live", "--send", "--uid", &uid, "--in", "api", &to, "--json"];
    let (well, said) = bed.enmesh("near", &asked);
    assert!(well, "{said}");
    // What it does meanwhile is said behind it, on standard error.
    let answer = serde_json::Deserializer::from_str(&said).into_iter::<Value>().next().unwrap().unwrap();
    assert_eq!(answer["namespace"], bed.names["api"].as_str(), "{answer:#}");
    let live = &answer["live"];
    assert_eq!((&live["agrees"], &live["fault"]), (&"live".into(), &Value::Null), "{answer:#}");
    assert_eq!(live["seen"]["to"], to.as_str(), "{answer:#}");
    assert_eq!(live["seen"]["rule"]["comment"], answer["decision"]["rule"], "{answer:#}");
    assert_eq!(rules(), before);
}

#[test]
fn beside_a_service_in_the_hosts_own_namespace() {
    beside("ns-beside", "nftables");
}

/// Border and namespaces are nftables' whatever the host's driver is.
#[test]
fn beside_a_service_that_iptables_captures() {
    beside("ns-iptables", "iptables");
}

/// A service as ever, and one in a namespace, on one host: each way, and each by the other's address as well.
fn beside(tag: &str, driver: &str) {
    let mut bed = Bed::build_beside(tag, &["api"], &["web"], &format!("driver = \"{driver}\"\n"));
    bed.near().namespace.run(|| fs::write("/proc/sys/net/core/somaxconn", "777").unwrap()).unwrap();
    let (_, planned) = bed.enmesh("near", &["plan"]);
    assert!(planned.contains(&format!("+ netns  {}", bed.names["api"])), "{planned}");
    assert!(planned.contains("+ rules  table inet enmesh_border"), "{planned}");
    bed.start("near");
    bed.await_ready("near");
    let (same, planned) = bed.enmesh("near", &["plan", "--exit-code"]);
    assert!(same, "{planned}");
    for service in ["api", "web"] {
        bed.app(service);
    }
    let tap = tap(&bed.near().namespace, "enm-c6120000");
    for (caller, callee) in [("api", "web"), ("web", "api"), ("api", "api"), ("web", "web")] {
        assert_eq!(bed.call_soon(caller, SocketAddr::new(bed.virtual_ip(callee), 80)), callee);
    }
    // From within, the host's address and the app's port are the mesh's.
    let direct = SocketAddr::from((bed.near().address, BESIDE_PORT));
    assert_eq!(bed.call_soon("api", direct), "web");
    assert_encrypted("between them", &tap.tally());
    let tuned = bed.place("api").run(|| fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap());
    assert_eq!(tuned.unwrap().trim(), "777", "what the host is tuned with counts in there");
    // Whoever runs as the sidecars' user in there would pass the mesh by.
    let mut stranger = bed.place("api").run(crate::bed::stranger).unwrap();
    let (_, said) = bed.enmesh("near", &["apply"]);
    stranger.kill().unwrap();
    stranger.wait().unwrap();
    assert!(said.contains("sleep"), "{said}");
    bed.down("near");
}
