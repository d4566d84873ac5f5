//! Without an agent: enmesh runs the checks, and brings what they say into the catalog.

use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::host_bed::{API_FILE, API_USER, WEB, WEB_FILE};
use crate::scene::Scene;

/// The app with a check that enmesh runs and one that it reports.
const CHECKED: &str =
    "name = \"api\"\nport = 8080\naddress = \"127.0.0.1\"\n\n[capture]\nscope = \"user:api-app\"\n
[[check]]\nid = \"http\"\nhttp = \"http://127.0.0.1:8080/\"\ninterval = \"200ms\"\n";
const TTL: &str = "\n[[check]]\nid = \"self\"\nttl = \"1h\"\n";
const CALLER: &str = "\n[[upstream]]\nname = \"api\"\nlocal_port = 9191\n";

const HTTP: &str = "enmesh:api:http";
const SELF: &str = "enmesh:api:self";
const LIVE: &str = "enmesh:api";
const SIDECAR: &str = "enmesh:api-sidecar-proxy";

/// A host in the mesh whose `api` has both checks.
fn running() -> Scene {
    let mut scene = Scene::new("catalog");
    scene.bed.write(API_FILE, format!("{CHECKED}{TTL}"));
    scene.bed.start().await_ready();
    scene
}

#[test]
fn what_checks_find_is_in_consul_and_only_changes_are_written() {
    let scene = running();
    // Critical until heard of; the sidecar lives, and must not be used all the same.
    scene.await_check(LIVE, Some("passing"));
    assert_eq!(scene.check(SELF).unwrap(), ("critical".to_owned(), "nothing was reported yet".to_owned()));
    assert_eq!(scene.check(HTTP).unwrap().0, "critical");
    assert_eq!(scene.check(SIDECAR).unwrap().0, "critical");

    let app = scene.app(8080);
    scene.await_check(HTTP, Some("passing"));
    scene.report(&["api", "self", "pass", "--output", "42 jobs"]);
    scene.await_check(SIDECAR, Some("passing"));
    assert_eq!(scene.check(SELF).unwrap(), ("passing".to_owned(), "42 jobs".to_owned()));

    // Run ten times, and nothing is written.
    let before = scene.index();
    thread::sleep(Duration::from_secs(2));
    assert_eq!(scene.index(), before);
    // Nor by a report of the same.
    scene.report(&["api", "self", "pass", "--output", "42 jobs"]);
    thread::sleep(Duration::from_millis(300));
    assert_eq!(scene.index(), before);

    // The app and its sidecar fail in one write.
    drop(app);
    scene.await_check(HTTP, Some("critical"));
    assert_eq!(scene.check(SIDECAR).unwrap().0, "critical");
    let checks = scene.get("/v1/health/node/bed-enmesh");
    let of = |id: &str| {
        checks.as_array().unwrap().iter().find(|it| it["CheckID"] == id).unwrap()["ModifyIndex"].clone()
    };
    assert_eq!(of(HTTP), of(SIDECAR));
    assert!(of(LIVE).as_u64().unwrap() <= before && of(SELF).as_u64().unwrap() <= before);

    // It is to be seen here too, and is no fault of this host.
    let status = scene.bed.status();
    assert_eq!((&status["ready"], &status["faults"]), (&json!(true), &json!([])), "{status:#}");
    let check = &status["services"]["api"]["checks"]["http"];
    assert_eq!(check["status"], "critical");
    assert!(check["output"].as_str().unwrap().contains("refused") && check["since"].as_u64().unwrap() > 0);
    let said = scene.bed.run(&["status"]);
    assert_eq!(said.code, Some(0));
    assert!(
        said.out.contains("check http critical for") && said.out.contains("check self passing"),
        "{}",
        said.out
    );
    let metrics = scene.bed.say(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    assert!(metrics.contains("enmesh_check_status{service=\"api\",check=\"http\"} 2"), "{metrics}");
    assert!(metrics.contains("enmesh_check_status{service=\"api\",check=\"self\"} 0"), "{metrics}");
}

#[test]
fn who_calls_goes_by_what_checks_say() {
    let scene = running();
    let _app = scene.app(8080);
    scene.report(&["api", "self", "pass"]);
    scene.bed.write(WEB_FILE, format!("{WEB}{CALLER}"));
    let answered = |wanted: bool| {
        scene.wait(&format!("api is reached: {wanted}"), || {
            if scene.answers(9191) == wanted { Ok(()) } else { Err("it is not so".to_owned()) }
        });
    };
    answered(true);
    // The app and its sidecar take connections as before, and are not used.
    scene.report(&["api", "self", "fail", "--output", "no database"]);
    answered(false);
    assert!(scene.answers(8080));
    scene.report(&["api", "self", "warn"]);
    scene.await_check(SIDECAR, Some("warning"));
    answered(true);
}

#[test]
fn a_report_lapses_and_a_wrong_one_is_refused() {
    let scene = running();
    let _app = scene.app(8080);
    scene.bed.write(API_FILE, format!("{CHECKED}{}", TTL.replace("1h", "2s")));
    scene.wait("the check with the new time", || {
        scene.report(&["api", "self", "pass"]);
        match scene.check(SELF) {
            Some((status, _)) if status == "passing" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    scene.wait("its end", || match scene.check(SELF) {
        Some((status, output)) if status == "critical" && output == "nothing was reported for 2s" => Ok(()),
        other => Err(format!("{other:?}")),
    });

    for (arguments, code, exit) in [
        (["nobody", "self", "pass"], "ENM-D007", 65),
        (["api", "nothing", "pass"], "ENM-H001", 65),
        (["api", "http", "pass"], "ENM-H002", 65),
    ] {
        let said = scene.bed.run(&[&["report", "--json"], &arguments[..]].concat());
        assert_eq!((said.code, &said.json()["error"]["code"]), (Some(exit), &json!(code)), "{said:?}");
        assert!(!said.json()["error"]["hint"].as_str().unwrap().is_empty());
    }
    assert_eq!(scene.bed.run(&["report", "api", "self", "well"]).code, Some(64));
    let said = scene.bed.run(&["report", "api", "self", "warn", "--output", "so so", "--json"]);
    let wanted = json!({ "service": "api", "check": "self", "status": "warning", "output": "so so" });
    assert_eq!(said.json(), wanted, "{said:?}");
}

#[test]
fn a_restart_of_the_daemon_changes_nothing_and_a_consul_without_data_is_told_all() {
    let mut scene = running();
    let _app = scene.app(8080);
    scene.report(&["api", "self", "pass"]);
    scene.await_check(SIDECAR, Some("passing"));

    // Nobody sees that the daemon was away: what was known goes on from there.
    let before = scene.get("/v1/health/node/bed-enmesh");
    scene.bed.kill_daemon();
    scene.bed.start().await_ready();
    scene.wait("the first run", || {
        let check = scene.bed.status()["services"]["api"]["checks"]["http"].clone();
        if check["output"] == "it was not run yet" || check.is_null() {
            Err(check.to_string())
        } else {
            Ok(())
        }
    });
    let now = scene.get("/v1/health/node/bed-enmesh");
    for id in [HTTP, SELF] {
        let of = |checks: &Value| {
            checks.as_array().unwrap().iter().find(|it| it["CheckID"] == id).unwrap().clone()
        };
        assert_eq!(of(&now), of(&before));
    }
    // The sidecar ended with the daemon that kept it, and lives again.
    scene.await_check(SIDECAR, Some("passing"));

    scene.agent.kill();
    thread::sleep(Duration::from_millis(500));
    scene.report(&["api", "self", "warn", "--output", "said meanwhile"]);
    scene.start_consul();
    scene.await_check(HTTP, Some("passing"));
    scene.await_check(LIVE, Some("passing"));
    scene.await_check(SIDECAR, Some("warning"));
    assert_eq!(scene.check(SELF).unwrap(), ("warning".to_owned(), "said meanwhile".to_owned()));
}

#[test]
fn a_check_goes_with_its_lines_and_all_of_it_with_down() {
    let scene = running();
    let _app = scene.app(8080);
    scene.await_check(SELF, Some("critical"));
    scene.bed.write(API_FILE, CHECKED);
    scene.await_check(SELF, None);
    scene.await_check(SIDECAR, Some("passing"));
    assert_eq!(scene.bed.status()["services"]["api"]["checks"].as_object().unwrap().len(), 1);
    // A file in error leaves the checks as they were.
    scene.bed.write(API_FILE, "name = ");
    scene.bed.await_fault("ENM-C005");
    assert_eq!(scene.check(HTTP).unwrap().0, "passing");

    let said = scene.bed.run(&["down"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert_eq!(scene.get("/v1/catalog/node/bed-enmesh"), Value::Null);
    assert_eq!(scene.get("/v1/health/node/bed-enmesh"), json!([]));
}

#[test]
fn what_is_not_run_is_said_and_programs_are_nobody_special() {
    let mut scene = Scene::new("catalog");
    let who = "[[check]]\nid = \"who\"\nexec = [\"/usr/bin/id\", \"-u\"]\ninterval = \"1h\"\n\
        [[check]]\nid = \"udp\"\nudp = \"127.0.0.1:53\"\ninterval = \"10s\"\n\
        [[check]]\nid = \"slow\"\nexec = [\"/bin/sleep\", \"20\"]\ntimeout = \"25s\"\ninterval = \"1h\"\n";
    scene.bed.write(API_FILE, format!("{}\n{who}", crate::host_bed::API));
    scene.bed.write(WEB_FILE, format!("name = \"web\"\nport = 8081\n{who}"));
    let status = scene.bed.start().await_ready();
    let warnings = status["warnings"].as_array().unwrap();
    let of: Vec<&Value> =
        warnings.iter().filter(|it| it["code"] == "ENM-H010").map(|it| &it["service"]).collect();
    assert_eq!(of, ["api", "web"], "{status:#}");
    // The one that takes its time holds nobody up.
    for (service, user) in [("api", API_USER), ("web", 65534)] {
        scene.await_check(&format!("enmesh:{service}:who"), Some("passing"));
        assert_eq!(scene.check(&format!("enmesh:{service}:who")).unwrap().1, user.to_string());
    }
    assert_eq!(scene.check("enmesh:api:slow").unwrap().1, "it was not run yet");
}
