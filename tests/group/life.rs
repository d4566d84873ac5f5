//! From start to end, with the capability that rules take.

use std::fs;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::docker::until;
use crate::field::{Field, SOON};

const API: (&str, &str) = ("api1", "api");
const WEB: (&str, &str) = ("web1", "web");
const RULES: [&str; 2] = ["--cap-add", "NET_ADMIN"];
/// Without what Docker gives besides: all that `docs/containers.md` asks for.
const LEAST: [&str; 16] = [
    "--cap-drop",
    "ALL",
    "--cap-add",
    "NET_ADMIN",
    "--cap-add",
    "SETUID",
    "--cap-add",
    "SETGID",
    "--cap-add",
    "KILL",
    "--cap-add",
    "CHOWN",
    "--cap-add",
    "FOWNER",
    "--cap-add",
    "DAC_OVERRIDE",
];
const SERVE: [(&str, &str); 3] = [
    // As a template says it that opens this port to others.
    ("ENMESH_PORTS_INBOUND", "15050-15099"),
    ("ENMESH_SERVICE_PORT", "8080"),
    (
        "ENMESH_SERVICE_CHECK",
        "[{\"http\": \"http://127.0.0.1:8080/\", \"interval\": \"1s\", \"timeout\": \"1s\"}]",
    ),
];

/// A line of `/proc/PID/status`.
fn proc_status(pid: u32, key: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    line.unwrap().trim().to_owned()
}

/// The numbers out here of processes below `pid`, which have it as their parent.
fn children(pid: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    text.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

/// The children of enmesh that are an Envoy, by their user.
fn envoys(field: &Field, enmesh: u32) -> Vec<u32> {
    let user = format!("{}\t", field.docker.envoy_uid());
    children(enmesh).into_iter().filter(|pid| proc_status(*pid, "Uid").starts_with(&user)).collect()
}

fn signal(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid.cast_signed()), signal).unwrap();
}

#[test]
fn a_group_is_in_the_mesh_from_its_start_to_its_end() {
    let field = Field::new(&["api", "web"]);
    field.post(
        "/v1/connect/intentions",
        &json!({ "SourceName": "web", "DestinationName": "api", "Action": "allow" }),
    );
    field.app("api1", "api");
    field.app("web1", "web");
    // What the platform keeps for itself is taken in the group as well.
    let inside = field.docker.namespace("api1-app");
    let taken =
        inside.run(|| [19000, 20000, 21000, 21001].map(|port| TcpListener::bind(("0.0.0.0", port)).unwrap()));

    closed_by_the_init_container(&field);
    let started = Instant::now();
    field.sidecar(API, &RULES, &SERVE);
    let passing = until("api to pass in Consul", SOON, || {
        let instances = field.instances("api");
        if instances == [("api1-enmesh".to_owned(), true)] {
            Ok(started.elapsed())
        } else {
            Err(format!("{instances:?}"))
        }
    });
    eprintln!("figure: from `docker run` of the sidecar to passing in Consul: {} ms", passing.as_millis());
    field.await_ready("api1");
    field.sidecar(WEB, &LEAST, &[]);
    field.await_ready("web1");

    in_reach(&field);
    as_process_number_one(&field);
    starts_envoy_again(&field);
    says_when_it_is_not_ready(&field);
    lives_through_other_signals(&field);
    drop(taken);
    gone_after_sigterm(&field);
    left_behind_by_sigkill(&field);
}

/// Before the sidecar is there, nothing of the group is in the clear, and nothing reaches the app.
fn closed_by_the_init_container(field: &Field) {
    let refused = field.enmesh(WEB, &["--rm"], &[], &["enmesh", "init", "--json"]).unwrap_err();
    assert!(refused.contains("ENM-D014"), "without the capability it is said: {refused}");
    let direct = field.get_from("web1", "http://240.0.0.1:80/");
    assert_ne!(direct["outcome"], "refused", "nothing is closed yet: {direct}");
    let done = field.enmesh(WEB, &["--rm", "--cap-add", "NET_ADMIN"], &[], &["enmesh", "init"]).unwrap();
    assert!(done.contains("closed until the sidecar is there: web"), "{done}");
    assert_eq!(field.get_from("web1", "http://240.0.0.1:80/")["outcome"], "refused");
}

/// The ports are those that the platform lets through, and a request goes all the way by the name.
fn in_reach(field: &Field) {
    let status = field.status("api1");
    let service = &status["services"]["api"];
    for port in ["inbound_port", "outbound_port"] {
        let port = service[port].as_u64().unwrap();
        assert!((15000..=15099).contains(&port), "{service}");
    }
    assert_eq!(service["inbound_port"], 15050);
    let answer = until("an answer", SOON, || {
        let answer = field.get_from("web1", "http://api.virtual.consul/hello");
        if answer["status"] == 200 { Ok(answer) } else { Err(answer.to_string()) }
    });
    let seen: Value = serde_json::from_str(answer["body"].as_str().unwrap()).unwrap();
    assert_eq!((&seen["service"], &seen["request"]), (&json!("api"), &json!("GET /hello HTTP/1.1")));
    // Somebody outside of the mesh has no certificate, and so no answer.
    let straight = field.http_from_outside("api1", 8080, "/");
    assert!(!straight.as_ref().is_ok_and(|answer| answer.starts_with("HTTP")), "{straight:?}");
}

/// enmesh is process 1, with no more privileges than it needs; Envoy has a user of its own and none; orphans go.
fn as_process_number_one(field: &Field) {
    let first = field.docker.pid("api1-sidecar");
    assert_eq!(proc_status(first, "NSpid").split_whitespace().last(), Some("1"));
    // Nobody said what to run but the image.
    assert_eq!(fs::read_to_string(format!("/proc/{first}/cmdline")).unwrap(), "enmesh\0run\0");
    assert_eq!(proc_status(first, "NoNewPrivs"), "1");
    // CHOWN, DAC_OVERRIDE, FOWNER, KILL, SETGID, SETUID, NET_BIND_SERVICE, NET_ADMIN, NET_RAW: bits 0, 1, 3, 5, 6, 7, 10, 12, 13.
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        assert_eq!(proc_status(first, set), "00000000000034eb", "{set}");
    }
    let kept = field.status("api1")["privileges"].as_array().unwrap().len();
    assert_eq!(kept, 9, "what is kept is said, and why");
    let envoy = field.status("api1")["services"]["api"]["pid"].as_u64().unwrap();
    assert!(envoy > 1);
    let envoys = envoys(field, first);
    let [envoy] = envoys.as_slice() else { panic!("{envoys:?}") };
    assert_eq!(proc_status(*envoy, "CapEff"), "0000000000000000");
    let memory = |pid: u32| proc_status(pid, "VmRSS");
    eprintln!("figure: memory: enmesh {}, Envoy {}", memory(first), memory(*envoy));

    // `sh` ends at once and leaves `sleep` to process 1, which has to take its end.
    field.docker.run(&["exec", "api1-sidecar", "/bin/sh", "-c", "sleep 1 >/dev/null 2>&1 &"]);
    let orphans = || {
        let names = children(first).into_iter().map(|pid| proc_status(pid, "Name"));
        names.filter(|name| name == "sleep").count()
    };
    until("an orphan", SOON, || if orphans() == 1 { Ok(()) } else { Err("none".to_owned()) });
    until("the orphan's end", SOON, || if orphans() == 0 { Ok(()) } else { Err("a zombie".to_owned()) });
    // The log is JSON lines, since nobody reads it at a terminal.
    let log = field.docker.run(&["logs", "api1-sidecar"]);
    let lines: Vec<Value> = log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let said = |words: &str| {
        lines.iter().any(|line| line["message"].as_str().is_some_and(|text| text.contains(words)))
    };
    assert!(said("gave up the privileges") && said("ready: 1 of 1"), "{log}");
}

/// Killed, Envoy is back with another number; nobody is sent there meanwhile.
fn starts_envoy_again(field: &Field) {
    let first = field.docker.pid("api1-sidecar");
    let envoy = || envoys(field, first).first().copied();
    let before = envoy().unwrap();
    signal(before, Signal::SIGKILL);
    until("another Envoy", SOON, || envoy().filter(|pid| *pid != before).ok_or("none".to_owned()));
    field.await_ready("api1");
    // It may have been ready still, to whoever asked before its end was noticed.
    until("word of it", SOON, || {
        let restarts = field.status("api1")["services"]["api"]["restarts"].clone();
        if restarts == 1 { Ok(()) } else { Err(restarts.to_string()) }
    });
    until("an answer", SOON, || {
        let answer = field.get_from("web1", "http://api.virtual.consul/");
        if answer["status"] == 200 { Ok(()) } else { Err(answer.to_string()) }
    });
}

/// An app whose check fails is not ready, in the words of the check; and nobody is told to use it.
fn says_when_it_is_not_ready(field: &Field) {
    let app = field.docker.pid("api1-app");
    signal(app, Signal::SIGSTOP);
    let reason = until("the check to fail", SOON, || match field.ready("api1")? {
        (503, body) => Ok(body["reasons"][0].clone()),
        (status, body) => Err(format!("{status} {body}")),
    });
    signal(app, Signal::SIGCONT);
    assert_eq!(reason["service"], "api");
    assert!(reason["reason"].as_str().unwrap().contains("is critical"), "{reason}");
    field.await_ready("api1");
}

/// Signals that a container is sent for other reasons than its end.
fn lives_through_other_signals(field: &Field) {
    for signal in ["HUP", "USR1"] {
        field.docker.run(&["kill", "--signal", signal, "api1-sidecar"]);
    }
    let converged = || field.status("api1")["converged_count"].as_u64().unwrap();
    until("the reload", SOON, || if converged() > 1 { Ok(()) } else { Err("not yet".to_owned()) });
    assert_eq!(field.status("api1")["services"]["api"]["restarts"], 1, "Envoy lives on");
    assert_eq!(field.ready("api1").unwrap().0, 200);
}

/// An end that was asked for: nothing is left in Consul, and the exit status says so.
fn gone_after_sigterm(field: &Field) {
    assert_eq!(field.logins(), 2);
    let started = Instant::now();
    field.docker.run(&["kill", "--signal", "TERM", "api1-sidecar"]);
    until("others to hear of it", SOON, || match field.instances("api").as_slice() {
        [(_, false)] | [] => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let (status, body) = field.ready("api1").unwrap_or((503, Value::Null));
    assert_eq!(status, 503, "{body}");
    assert_eq!(field.docker.exit_status("api1-sidecar"), 0, "{}", field.docker.log("api1-sidecar"));
    let took = started.elapsed();
    eprintln!("figure: from SIGTERM to the end: {} ms", took.as_millis());
    assert!(took < Duration::from_secs(10), "{took:?}: a platform would have killed it");
    assert_eq!(field.get("/v1/catalog/service/api"), json!([]));
    assert_eq!(field.get("/v1/catalog/node/api1-enmesh"), Value::Null, "the node goes with its last service");
    assert_eq!(field.logins(), 1, "and the login with it");
    // The rules are closed and stay.
    assert_eq!(field.get_from("api1", "http://240.0.0.1:80/")["outcome"], "refused");
}

/// Nobody could be told: what it left is for somebody else to find.
fn left_behind_by_sigkill(field: &Field) {
    field.docker.run(&["kill", "web1-sidecar"]);
    assert_eq!(field.docker.exit_status("web1-sidecar"), 137);
    std::thread::sleep(Duration::from_secs(1));
    let services = field.get("/v1/catalog/node/web1-enmesh");
    assert!(!services.is_null(), "{services}");
    assert_eq!(field.logins(), 1);
}
