//! A service's file turns bad, or a newcomer does not fit: nobody else notices.

use std::net::TcpListener;
use std::os::unix::fs::symlink;

use crate::host_bed::{API, API_FILE, Bed, SOON, WEB, WEB_FILE};

/// A host on which both services are in the mesh.
fn settled() -> Bed {
    let mut bed = Bed::new();
    bed.start().await_ready();
    bed
}

/// Puts `contents` in the place of the file of `web` and wants `code`, with `api` and the last good
/// `web` as they were; then puts the good file back.
fn turns_bad(bed: &mut Bed, code: &str, contents: &[u8]) {
    turns_bad_by(bed, code, |bed| bed.write(WEB_FILE, contents));
}

fn turns_bad_by(bed: &mut Bed, code: &str, spoil: impl FnOnce(&Bed)) {
    let held = bed.held();
    assert_eq!(held.pids.len(), 2, "{held:?}");
    spoil(bed);
    let fault = bed.await_fault(code);
    assert_eq!(fault["place"]["file"], bed.path(WEB_FILE).to_str().unwrap(), "{fault}");
    let status = bed.status();
    assert_eq!(status["ready"], false, "{status:#}");
    let kept = status["warnings"].as_array().unwrap().iter().any(|w| w["code"] == "ENM-P011");
    assert!(kept, "that the last good is kept is said: {status:#}");
    bed.assert_holds(&held);
    assert!(bed.alive());
    bed.remove(WEB_FILE);
    bed.write(WEB_FILE, WEB);
    bed.await_ready();
    bed.assert_holds(&held);
}

#[test]
fn a_file_that_turns_bad_leaves_its_last_good_in_force() {
    let mut bed = settled();
    let deep = format!("{}{}", "[".repeat(200_000), "]".repeat(200_000));
    let cases: [(&str, Vec<u8>); 10] = [
        ("ENM-C003", vec![b'#'; 10 << 20]),
        ("ENM-C004", b"name = \"web\xff\xfe\"\n".to_vec()),
        ("ENM-C004", b"name = \"web\"\n\0".to_vec()),
        ("ENM-C005", b"name = \"web\nport = 80".to_vec()),
        ("ENM-C005", format!("name = \"web\"\nx = {deep}\n").into_bytes()),
        ("ENM-C010", b"name = \"web\"\nprot = 8081\n".to_vec()),
        ("ENM-C011", b"name = \"web\"\nport = 99999\n".to_vec()),
        ("ENM-C012", b"".to_vec()),
        ("ENM-C012", b"port = 8081\n".to_vec()),
        ("ENM-C005", b"name = \"web\"\nname = \"web\"\n".to_vec()),
    ];
    for (code, contents) in cases {
        turns_bad(&mut bed, code, &contents);
    }
    turns_bad_by(&mut bed, "ENM-C002", |bed| {
        bed.remove(WEB_FILE);
        std::fs::create_dir(bed.path(WEB_FILE)).unwrap();
    });
    turns_bad_by(&mut bed, "ENM-C001", |bed| {
        bed.remove(WEB_FILE);
        symlink("/no/such/file", bed.path(WEB_FILE)).unwrap();
    });
}

#[test]
fn hostile_names_come_to_nothing() {
    let bed = settled();
    let names = [
        "a\\\"; drop",
        "a\\nb",
        "a; rm -rf /",
        "$(touch x)",
        "`id`",
        "../../etc/passwd",
        "a b",
        "a/b",
        "%n%s",
        "-rf",
        "",
        "\\u0000",
        "a\\u001b[31m",
        "a' or '1'='1",
        "} flush ruleset {",
    ];
    for name in names {
        let before = bed.files().len();
        let held = bed.held();
        bed.write(WEB_FILE, format!("name = \"{name}\"\nport = 8081\n"));
        bed.await_status(name, SOON, |status| {
            let faults = status["faults"].as_array()?;
            let coded =
                |fault: &serde_json::Value| fault["code"].as_str().is_some_and(|c| c.starts_with("ENM-C"));
            faults.iter().any(coded).then_some(())
        });
        bed.assert_holds(&held);
        assert_eq!(bed.files().len(), before, "no file came of it");
        let text = bed.status().to_string();
        assert!(!text.contains('\u{1b}') && !text.contains("\\u001b"), "{text}");
        bed.write(WEB_FILE, WEB);
        bed.await_ready();
        bed.assert_holds(&held);
    }
}

#[test]
fn deeply_nested_json_is_refused_not_followed() {
    let mut bed = settled();
    let held = bed.held();
    let path = "/etc/enmesh/services/deep.json";
    for deep in [
        format!("{}{}", "{\"a\":".repeat(100_000), "}".repeat(100_000)),
        format!("{{\"name\":\"deep\",\"meta\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000)),
    ] {
        bed.write(path, deep);
        bed.await_fault("ENM-C005");
        bed.assert_holds(&held);
    }
    bed.remove(path);
    bed.await_ready();
    assert!(bed.alive());
}

/// A newcomer that is refused with `code`; those that were there first stay.
fn newcomer(bed: &mut Bed, code: &str, contents: &str) {
    let held = bed.held();
    let path = "/etc/enmesh/services/aaa.toml";
    bed.write(path, contents);
    let fault = bed.await_fault(code);
    assert_eq!(fault["service"], "aaa", "{fault}");
    bed.assert_holds(&held);
    assert!(!bed.path("/run/enmesh/aaa").exists());
    bed.remove(path);
    bed.await_ready();
    bed.assert_holds(&held);
}

#[test]
fn a_newcomer_that_does_not_fit_is_refused_and_those_in_force_stay() {
    let mut bed = settled();
    let aaa = |scope: &str| format!("name = \"aaa\"\nport = 9000\n\n[capture]\nscope = \"{scope}\"\n");
    newcomer(&mut bed, "ENM-P002", &aaa("user:nobody-here"));
    newcomer(&mut bed, "ENM-P006", &aaa("user:envoy"));
    newcomer(&mut bed, "ENM-P005", &aaa("user:10002"));
    newcomer(&mut bed, "ENM-P003", &aaa("unit:no-such.service"));
    newcomer(&mut bed, "ENM-P005", &aaa("user:new-app").replace("9000", "8081"));
}

/// The same scope in the same words: the file that sorts first must not win over who is in force.
#[test]
fn a_newcomer_with_the_very_scope_of_another_is_refused() {
    let mut bed = settled();
    newcomer(&mut bed, "ENM-C041", "name = \"aaa\"\nport = 9000\n\n[capture]\nscope = \"user:web-app\"\n");
}

#[test]
fn a_newcomer_with_the_id_of_another_is_refused() {
    let bed = settled();
    let held = bed.held();
    bed.write("/etc/enmesh/services/aaa.toml", "name = \"other\"\nid = \"web\"\nport = 9000\n");
    bed.await_fault("ENM-C040");
    bed.assert_holds(&held);
    bed.remove("/etc/enmesh/services/aaa.toml");
    bed.await_ready();
    bed.assert_holds(&held);
}

/// On a fresh host a port that somebody has is passed by.
#[test]
fn a_stranger_on_the_first_ports_is_passed_by() {
    let mut bed = Bed::new();
    let bind = |port: u16| bed.namespace.run(|| TcpListener::bind(("0.0.0.0", port)).unwrap()).unwrap();
    let strangers = [bind(15001), bind(21000)];
    let status = bed.start().await_ready();
    for (id, service) in status["services"].as_object().unwrap() {
        assert_ne!(service["outbound_port"], 15001, "{id}");
        assert_ne!(service["inbound_port"], 21000, "{id}");
    }
    drop(strangers);
}

/// A port that is known to others does not move: whoever took it is named, and the other lives.
#[test]
fn a_stranger_on_a_port_that_was_given_out_is_told() {
    let bed = settled();
    let status = bed.status();
    let port = u16::try_from(status["services"]["web"]["inbound_port"].as_u64().unwrap()).unwrap();
    let pid = status["services"]["api"]["pid"].clone();
    bed.write(WEB_FILE, format!("enabled = false\n{WEB}"));
    bed.await_status("the end of web", SOON, |status| status["services"]["web"].is_null().then_some(()));
    let stranger = bed.namespace.run(|| TcpListener::bind(("0.0.0.0", port)).unwrap()).unwrap();
    bed.write(WEB_FILE, WEB);
    let fault = bed.await_fault("ENM-P007");
    assert!(fault["message"].as_str().unwrap().contains(&port.to_string()), "{fault}");
    assert_eq!(bed.status()["services"]["api"]["pid"], pid);
    drop(stranger);
    let said = bed.run(&["apply", "--json"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    let status = bed.await_ready();
    assert_eq!(status["services"]["web"]["inbound_port"], port);
    assert_eq!(status["services"]["api"]["pid"], pid);
}

/// What is bad from the start never was in force; its neighbour comes up all the same, and `apply`
/// says so with its exit status.
#[test]
fn a_bad_file_at_the_start_keeps_only_its_own_service_out() {
    let mut bed = Bed::bare();
    bed.write(API_FILE, API);
    bed.write(WEB_FILE, "name = \"web\"\nprot = 1\n");
    let said = bed.run(&["apply", "--json"]);
    assert_eq!(said.code, Some(65), "{said:?}");
    assert!(said.err.is_empty() || said.err.contains("ENM-C010"), "{said:?}");
    assert_eq!(said.json()["status"]["services"]["api"]["phase"], "live", "{said:?}");
    bed.start().await_fault("ENM-C010");
    assert_eq!(bed.status()["services"]["api"]["phase"], "live");
    assert!(bed.status()["services"]["web"].is_null());
    bed.write(WEB_FILE, WEB);
    bed.await_ready();
}
