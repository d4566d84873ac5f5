//! What is kept on disk is torn, foreign or broken: state, CA, peers; and who may ask.

use std::fs;

use nix::sys::signal::Signal;

use crate::host_bed::{Bed, HOST_FILE, LIMIT, PEERS, PEERS_FILE, SOON, STATE_FILE};

const CA: &str = "/var/lib/enmesh/ca";

#[test]
fn a_broken_peers_file_leaves_the_last_good_mesh_in_force() {
    let mut bed = Bed::new();
    bed.start().await_ready();
    let held = bed.held();
    let clusters = fs::read(bed.path("/run/enmesh/api/cds.json")).unwrap();
    for (code, contents) in [
        ("ENM-M003", "[[service"),
        ("ENM-M004", "[[service]]\nnmae = \"db\"\n"),
        ("ENM-M005", "[[service]]\nallow = []\n"),
        ("ENM-M006", "[[service]]\nname = \"db\"\n[[service]]\nname = \"db\"\n"),
    ] {
        bed.write(PEERS_FILE, contents);
        let fault = bed.await_fault(code);
        assert_eq!(fault["place"]["file"], bed.path(PEERS_FILE).to_str().unwrap());
        bed.assert_holds(&held);
        assert_eq!(fs::read(bed.path("/run/enmesh/api/cds.json")).unwrap(), clusters);
    }
    // A daemon that starts while the file is broken leaves everything as its predecessor made it.
    bed.kill_daemon();
    bed.start().await_fault("ENM-M006");
    assert_eq!(bed.rules().lines().count(), held.rules.len() + 1);
    assert_eq!(bed.envoys().len(), 2);
    bed.write(PEERS_FILE, PEERS);
    bed.await_ready();
    bed.assert_holds(&held);
}

#[test]
fn a_torn_ca_leaves_what_is_in_force() {
    let mut bed = Bed::new();
    bed.start().await_ready();
    let held = bed.held();
    let (certificate, key) = (bed.path(CA).join("root.pem"), bed.path(CA).join("root.key"));
    let (good_certificate, good_key) = (fs::read(&certificate).unwrap(), fs::read(&key).unwrap());
    for (path, good) in [(&certificate, &good_certificate), (&key, &good_key)] {
        for torn in [&good[..good.len() / 2], b"", b"\xff\xfe nonsense"] {
            fs::write(path, torn).unwrap();
            bed.await_status("a fault of the CA", SOON, |status| {
                let faults = status["faults"].as_array()?;
                faults
                    .iter()
                    .any(|f| f["code"].as_str().is_some_and(|c| c.starts_with("ENM-M02")))
                    .then_some(())
            });
            bed.assert_holds(&held);
            fs::write(path, good).unwrap();
            bed.await_ready();
            bed.assert_holds(&held);
        }
    }
    // Gone altogether: no other CA is made in its place, or this host would leave its mesh unasked.
    let aside = bed.path("/var/lib/enmesh/aside");
    fs::rename(bed.path(CA), &aside).unwrap();
    fs::write(bed.path(CA), "not a folder").unwrap();
    bed.signal(Signal::SIGHUP);
    bed.await_status("a fault", SOON, |status| status["faults"][0]["code"].as_str().map(|_| ()));
    bed.assert_holds(&held);
    fs::remove_file(bed.path(CA)).unwrap();
    fs::rename(&aside, bed.path(CA)).unwrap();
    bed.await_ready();
    bed.assert_holds(&held);
}

#[test]
fn a_torn_state_is_kept_aside_and_the_host_converges() {
    let mut bed = Bed::new();
    bed.start().await_ready();
    let held = bed.held();
    bed.kill_daemon();
    let whole = fs::read(bed.path(STATE_FILE)).unwrap();
    let half = &whole[..whole.len() / 2];
    fs::write(bed.path(STATE_FILE), half).unwrap();
    bed.start().await_ready();
    assert_eq!(bed.held().pids, held.pids, "what was given out anew is the same here");
    let told = || if bed.log().contains("ENM-D002") { Ok(()) } else { Err(bed.log()) };
    crate::host_bed::until("the torn state in the log", SOON, told).unwrap();
    assert_eq!(fs::read(bed.path("/var/lib/enmesh/state.json.unreadable")).unwrap(), half);
}

#[test]
fn a_state_of_a_newer_version_is_not_touched() {
    let mut bed = Bed::new();
    bed.start().await_ready();
    let held = bed.held();
    bed.kill_daemon();
    fs::write(bed.path(STATE_FILE), r#"{"version": 99, "more": true}"#).unwrap();
    for verb in ["run", "apply", "plan", "down"] {
        let said = bed.run(&[verb]);
        assert_eq!(said.code, Some(65), "{verb}: {said:?}");
        assert!(said.err.contains("ENM-D001") && said.err.contains("hint"), "{verb}: {said:?}");
    }
    assert_eq!(fs::read_to_string(bed.path(STATE_FILE)).unwrap(), r#"{"version": 99, "more": true}"#);
    assert_eq!(bed.rules().lines().count(), held.rules.len() + 1);
    assert_eq!(bed.envoys().len(), 2);
}

#[test]
fn a_second_daemon_is_sent_away() {
    let mut bed = Bed::new();
    bed.start().await_ready();
    let held = bed.held();
    let said = bed.run(&["run"]);
    assert_eq!(said.code, Some(69), "{said:?}");
    assert!(said.err.contains("ENM-D003") && said.err.contains("hint"), "{said:?}");
    bed.assert_holds(&held);
    assert!(bed.alive());
}

#[test]
fn an_unknown_name_is_refused_and_nothing_happens() {
    let mut bed = Bed::new();
    bed.start().await_ready();
    let held = bed.held();
    for arguments in [&["down", "nobody"][..], &["down", "api", "nobody"], &["apply", "nobody"]] {
        let said = bed.run(arguments);
        assert_eq!(said.code, Some(65), "{arguments:?}: {said:?}");
        assert!(said.err.contains("ENM-D007") && said.err.contains("nobody"), "{arguments:?}: {said:?}");
        bed.assert_holds(&held);
    }
    let said = bed.run(&["wait", "nobody", "--timeout", "200ms"]);
    assert_ne!(said.code, Some(0), "{said:?}");
}

#[test]
fn nonsense_on_the_control_socket_is_answered_and_harms_nobody() {
    let mut bed = Bed::new();
    bed.start().await_ready();
    let held = bed.held();
    let post = |path: &str, body: &str| {
        format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        )
    };
    for (request, status) in [
        (post("/v1/down", "{"), " 400 "),
        (post("/v1/down", "[]"), " 400 "),
        (post("/v1/down", "{\"services\": \"api\"}"), " 400 "),
        (post("/v1/down", "{}"), " 400 "),
        (post("/v1/apply", "\u{1f980}"), " 400 "),
        (post("/v1/nonsense", ""), " 404 "),
        ("GET /v1/down HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".to_owned(), " 404 "),
        ("BREW /v1/status HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".to_owned(), " 404 "),
        ("GET /../../etc/passwd HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".to_owned(), " 404 "),
    ] {
        let answer = bed.say(request.as_bytes());
        assert!(answer.lines().next().unwrap_or_default().contains(status), "{request:?}: {answer:?}");
    }
    bed.say(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03");
    bed.say(&[0; 4096]);
    bed.say(&vec![b'A'; 4 << 20]);
    bed.say(b"POST /v1/apply HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999\r\n\r\n{");
    let huge = "x".repeat(8 << 20);
    bed.say(post("/v1/apply", &huge).as_bytes());
    // Half a request, many times, held open: others are still answered.
    let hold = || {
        let mut socket =
            std::os::unix::net::UnixStream::connect(bed.path("/run/enmesh/enmesh.sock")).unwrap();
        std::io::Write::write_all(&mut socket, b"GET /v1/sta").unwrap();
        socket
    };
    let held_open: Vec<_> = (0..200).map(|_| hold()).collect();
    bed.assert_holds(&held);
    drop(held_open);
    assert!(bed.alive());
    bed.assert_holds(&held);
}

#[test]
fn a_bad_host_file_leaves_the_last_good_host_in_force_also_after_a_restart() {
    let mut bed = Bed::new();
    bed.start().await_ready();
    let held = bed.held();
    for bad in ["driver = \"ebpf\"\n", "[envoy]\npaht = \"x\"\n", "not toml"] {
        bed.write(HOST_FILE, bad);
        bed.await_status("a fault", SOON, |status| {
            status["faults"][0]["code"].as_str()?.starts_with("ENM-C").then_some(())
        });
        bed.assert_holds(&held);
    }
    bed.kill_daemon();
    bed.start();
    bed.await_status("a fault", LIMIT, |status| {
        status["faults"][0]["code"].as_str()?.starts_with("ENM-C").then_some(())
    });
    bed.assert_holds(&held);
    bed.write(HOST_FILE, bed.host_file(""));
    bed.await_ready();
    bed.assert_holds(&held);
}

/// A fresh host has no last good to go back to, and half of a file is nobody's wish.
#[test]
fn a_bad_host_file_on_a_fresh_host_does_nothing_until_it_is_corrected() {
    let mut bed = Bed::new();
    bed.write(HOST_FILE, bed.host_file("\n[static]\nleaf_ttl = \"10s\"\n"));
    let said = bed.run(&["apply"]);
    assert_eq!(said.code, Some(65), "{said:?}");
    assert!(said.err.contains("ENM-C050") && said.err.contains("hint"), "{said:?}");
    bed.start().await_fault("ENM-C050");
    assert_eq!((bed.rules().as_str(), bed.envoys().len(), bed.alive()), ("-", 0, true));
    bed.write(HOST_FILE, bed.host_file(""));
    bed.await_ready();
}

/// Where certificates come from elsewhere and the next one is late, the daemon waits quietly.
#[test]
fn an_overdue_certificate_from_elsewhere_is_waited_for_in_peace() {
    let mut bed = Bed::bare();
    bed.write(crate::host_bed::API_FILE, crate::host_bed::API);
    assert_eq!(bed.run(&["ca", "init"]).code, Some(0));
    let out = bed.path(CA);
    // It is dated back for clocks that differ, so that most of so short a life is over already.
    let said = bed.run(&["ca", "issue", "api", "--ttl", "14s", "--out", out.to_str().unwrap()]);
    assert_eq!(said.code, Some(0), "{said:?}");
    fs::remove_file(out.join("root.key")).unwrap();
    bed.start().await_ready();
    std::thread::sleep(std::time::Duration::from_secs(8));
    let count = bed.status()["converged_count"].as_u64().unwrap();
    assert!(count < 5, "{count} rounds\n{}", bed.log());
}
