//! Whatever somebody does to a namespace: nothing of it ever lands in the host's, and it comes back.

use std::fs;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use enmesh::demo::snapshot::Snapshot;
use enmesh::netns::{self, Namespace};

use crate::bed::{APP_USER, Bed, LIMIT, ask, nft};
use crate::host_bed::until;

/// The host's end of the cable of the first namespace.
const LINK: &str = "enm-c6120000";

fn ready(tag: &str) -> (Bed, SocketAddr) {
    let mut bed = Bed::build(tag, &["api"], "");
    for host in ["near", "far"] {
        bed.start(host);
        bed.await_ready(host);
    }
    bed.app("api");
    bed.app("far");
    let far = SocketAddr::new(bed.virtual_ip("far"), 80);
    assert_eq!(bed.call_soon("api", far), "far");
    (bed, far)
}

/// From nothing to live and back, with the daemon killed and the namespace's name taken away at every moment of it.
#[test]
fn killed_at_every_step_nothing_lands_in_the_host() {
    let mut bed = Bed::build("ns-steps", &["api"], "");
    let before = Snapshot::take(&bed.near().namespace, &[]).unwrap();
    bed.start("near");
    let started = Instant::now();
    bed.await_ready("near");
    let whole = started.elapsed();
    bed.kill("near");
    let rounds = 24;
    for round in 0..rounds {
        // Now and then from the very start.
        if round % 3 == 0 {
            bed.down("near");
            bed.assert_host_is_clean();
        }
        bed.start("near");
        thread::sleep(whole * round / rounds);
        if round % 2 == 0 {
            bed.delete("api");
            bed.assert_host_is_clean();
            thread::sleep(Duration::from_millis(5));
        }
        bed.kill("near");
        if round % 4 == 1 {
            bed.delete("api");
        }
        bed.assert_host_is_clean();
    }
    bed.start("near");
    bed.start("far");
    bed.await_ready("near");
    bed.await_ready("far");
    bed.app("far");
    assert_eq!(bed.call_soon("api", SocketAddr::new(bed.virtual_ip("far"), 80)), "far");
    bed.assert_host_is_clean();
    bed.down("near");
    let after = Snapshot::take(&bed.near().namespace, &[]).unwrap();
    assert_eq!(before.difference(&after), [""; 0]);
}

#[test]
fn what_somebody_breaks_is_mended() {
    let (bed, far) = ready("ns-mend");
    let place = bed.place("api");
    let host = Namespace::open(bed.near().namespace.path()).unwrap();
    let rules = bed.rules(&place);
    let sidecar = bed.status("near")["services"]["api"]["pid"].clone();
    let breaks: [(&str, &dyn Fn()); 6] = [
        ("the rules", &|| drop(nft(&place, &["flush", "ruleset"], "").unwrap())),
        ("a rule", &|| drop(nft(&place, &["flush", "chain", "inet", "enmesh", "guard_in"], "").unwrap())),
        ("the border", &|| drop(nft(&host, &["delete", "table", "inet", "enmesh_border"], "").unwrap())),
        ("the cable", &|| assert!(host.run_async(|| netns::remove_link(LINK)).unwrap().unwrap())),
        ("the cable, inside", &|| assert!(place.run_async(|| netns::remove_link("eth0")).unwrap().unwrap())),
        ("the name", &|| bed.delete("api")),
    ];
    for (what, deed) in breaks {
        let repaired = bed.status("near")["rules_repaired"].as_u64().unwrap();
        let started = Instant::now();
        deed();
        bed.await_status("near", what, |status| status["rules_repaired"].as_u64().unwrap() > repaired);
        let named =
            until(what, LIMIT, || Namespace::by_name(&bed.names["api"]).map_err(|e| e.message)).unwrap();
        assert_eq!(named.identity(), place.identity(), "{what}: what runs in it goes on");
        assert_eq!(bed.rules(&place), rules, "{what}");
        assert_eq!(bed.call_soon("api", far), "far", "{what}");
        bed.assert_host_is_clean();
        eprintln!("{what}: mended and used again within {:?}", started.elapsed());
    }
    let repaired = || bed.status("near")["rules_repaired"].clone();
    let before = repaired();
    thread::sleep(Duration::from_secs(1));
    assert_eq!(repaired(), before, "nobody changes anything, so nothing is mended");
    // The host's setting, which nobody announces: the next change of anything mends it.
    host.run(|| fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap()).unwrap();
    let (_, said) = bed.enmesh("near", &["apply"]);
    assert_eq!(bed.call_soon("api", far), "far", "{said}");
    assert_eq!(bed.status("near")["services"]["api"]["pid"], sidecar, "the same Envoy all along");
}

#[test]
fn a_connection_outlives_the_name_and_the_daemon() {
    let (mut bed, far) = ready("ns-outlive");
    let mut stream = bed.open("api", far).unwrap();
    assert_eq!(ask(&mut stream).unwrap(), "far");
    let identity = bed.place("api").identity();
    bed.delete("api");
    until("its name", LIMIT, || Namespace::by_name(&bed.names["api"]).map_err(|e| e.message)).unwrap();
    assert_eq!(ask(&mut stream).unwrap(), "far");
    let sidecar = bed.status("near")["services"]["api"]["pid"].clone();
    bed.kill("near");
    assert_eq!(ask(&mut stream).unwrap(), "far", "without a daemon");
    bed.start("near");
    let status = bed.await_ready("near");
    assert_eq!((bed.place("api").identity(), &status["services"]["api"]["pid"]), (identity, &sidecar));
    assert_eq!(ask(&mut stream).unwrap(), "far", "with the next one");
}

#[test]
fn another_namespace_of_the_name_is_left_alone() {
    let (bed, far) = ready("ns-other");
    let name = bed.names["api"].clone();
    let own = bed.place("api");
    let theirs = bed.while_stopped("near", || {
        bed.delete("api");
        Namespace::create(&name).unwrap()
    });
    assert_ne!(theirs.identity(), own.identity());
    bed.await_status("near", "the fault", |status| status["faults"].to_string().contains("ENM-N031"));
    assert_eq!(bed.rules(&theirs), "", "nothing is set in it");
    let links = theirs.run_async(netns::links).unwrap().unwrap();
    assert_eq!(links.len(), 1, "and no cable leads to it: {links:?}");
    bed.assert_host_is_clean();
    Namespace::delete(&name).unwrap();
    bed.await_ready("near");
    assert_eq!(bed.place("api").identity(), own.identity());
    assert_eq!(bed.call_soon("api", far), "far");
}

#[test]
fn a_strangers_namespace_is_never_taken() {
    let mut bed = Bed::build("ns-stranger", &["api", "billing"], "");
    let theirs = Namespace::create(&bed.names["api"]).unwrap();
    bed.start("near");
    bed.await_status("near", "the fault", |status| status["faults"].to_string().contains("ENM-N030"));
    let status =
        bed.await_status("near", "the other", |status| status["services"]["billing"]["phase"] == "live");
    assert_eq!(status["services"]["api"]["phase"], "failed", "{status:#}");
    assert_eq!(bed.rules(&theirs), "");
    bed.assert_host_is_clean();
    bed.down("near");
    assert!(Namespace::by_name(&bed.names["api"]).is_ok(), "not even `down` takes it away");
}

/// What is closed stays closed: without a sidecar an app reaches nobody of the mesh, and nobody reaches it.
#[test]
fn without_its_sidecar_a_service_is_closed() {
    let (mut bed, far) = ready("ns-closed");
    bed.kill("near");
    let place = bed.place("api");
    for pid in crate::host_bed::envoys(&place).keys() {
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(pid.cast_signed()),
            nix::sys::signal::Signal::SIGKILL,
        )
        .unwrap();
    }
    // Redirected to where nobody listens, as the rules of the dead daemon say.
    bed.call("api", far).expect_err("out");
    fs::remove_file(bed.near().envoy()).unwrap();
    bed.start("near");
    bed.await_status("near", "no sidecar", |status| status["services"]["api"]["phase"] == "failed");
    bed.call("api", far).expect_err("out, closed");
    assert!(!bed.connects_as(APP_USER, "198.18.0.2:8080"), "in, closed");
    bed.assert_host_is_clean();
}
