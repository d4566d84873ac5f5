//! With an agent: it runs the checks; what enmesh has to say about a service goes there.

use serde_json::{Value, json};

use crate::host_bed::{API_FILE, HOST_FILE};
use crate::scene::Scene;

const CHECKED: &str =
    "name = \"api\"\nport = 8080\naddress = \"127.0.0.1\"\n\n[capture]\nscope = \"user:api-app\"\n
[[check]]\nudp = \"127.0.0.1:53\"\ninterval = \"10s\"\n
[[check]]\ntcp = \"127.0.0.1:8080\"\ninterval = \"1h\"\n
[[check]]\nttl = \"1h\"\n";

#[test]
fn a_report_reaches_the_check_that_the_agent_has() {
    let mut scene = Scene::new("agent");
    scene.bed.write(API_FILE, CHECKED);
    scene.bed.start().await_ready();
    // This release has no `udp`, so the agent counts two.
    let check = || scene.get("/v1/agent/checks")["service:api:2"].clone();
    assert_eq!((&check()["Status"], &check()["Type"]), (&json!("critical"), &json!("ttl")));
    scene.report(&["api", "check-3", "pass", "--output", "well"]);
    assert_eq!((&check()["Status"], &check()["Output"]), (&json!("passing"), &json!("well")));
    scene.report(&["api", "check-3", "fail", "--output", "no database"]);
    assert_eq!((&check()["Status"], &check()["Output"]), (&json!("critical"), &json!("no database")));
    for (check, code) in [("check-1", "ENM-H002"), ("check-2", "ENM-H002"), ("check-4", "ENM-H001")] {
        let said = scene.bed.run(&["report", "api", check, "pass", "--json"]);
        assert_eq!((said.code, &said.json()["error"]["code"]), (Some(65), &json!(code)), "{said:?}");
    }
    // The agent's checks are the agent's.
    assert_eq!(scene.bed.status()["services"]["api"]["checks"], json!({}));
    // What it says is passed on with a code.
    scene.agent.kill();
    let said = scene.bed.run(&["report", "api", "check-3", "pass", "--json"]);
    assert_eq!((said.code, &said.json()["error"]["code"]), (Some(69), &json!("ENM-K002")), "{said:?}");
}

#[test]
fn a_service_is_in_maintenance_while_its_sidecar_is_not_live() {
    let mut scene = Scene::new("agent");
    let good = std::fs::read_to_string(scene.bed.path(HOST_FILE)).unwrap();
    let envoy = scene.bed.envoy();
    scene.bed.write(HOST_FILE, good.replace(envoy.to_str().unwrap(), "/no/such/envoy"));
    scene.bed.write(API_FILE, "name = \"api\"\nport = 8080\naddress = \"127.0.0.1\"\n");
    scene.bed.start();
    let reason = |scene: &Scene| {
        let checks = scene.get("/v1/agent/checks");
        checks["_service_maintenance:api"]["Notes"].clone()
    };
    let held = |scene: &Scene| {
        scene.wait("maintenance", || {
            let reason = reason(scene);
            if reason == "enmesh: its sidecar is not live" { Ok(()) } else { Err(reason.to_string()) }
        });
    };
    held(&scene);
    // Also after the agent lost all that it was told.
    scene.agent.kill();
    scene.start_consul();
    held(&scene);
    scene.bed.write(HOST_FILE, &good);
    scene.bed.await_ready();
    scene.wait("its end", || {
        let reason = reason(&scene);
        if reason == Value::Null { Ok(()) } else { Err(reason.to_string()) }
    });
    let said = scene.bed.run(&["down"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert_eq!(scene.get("/v1/agent/services"), json!({}));
    assert_eq!(scene.get("/v1/agent/checks"), json!({}));
}

#[test]
fn a_report_that_nobody_takes_is_refused() {
    let mut scene = Scene::new("none");
    scene.bed.write(API_FILE, CHECKED);
    scene.bed.start().await_ready();
    let said = scene.bed.run(&["report", "api", "check-3", "pass", "--json"]);
    assert_eq!((said.code, &said.json()["error"]["code"]), (Some(65), &json!("ENM-D035")), "{said:?}");
}
