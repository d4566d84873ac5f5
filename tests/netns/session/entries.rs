//! The folder of config entries while the daemon runs.

use std::fs;

use serde_json::{Value, json};

use crate::host_bed::{API, API_FILE, LIMIT, until};
use crate::{Scene, codes};

const FOLDER: &str = "/etc/enmesh/entries";

fn await_entry(scene: &Scene, path: &str, good: impl Fn(&Value) -> bool) {
    let look = || {
        let entry = scene.get(&format!("/v1/config/{path}"));
        if good(&entry) { Ok(()) } else { Err(entry.to_string()) }
    };
    until(path, LIMIT, look).unwrap_or_else(|e| panic!("{e}\n{}", scene.bed.log()));
}

#[test]
fn a_folder_that_appears_and_changes_is_kept_in_consul() {
    let mut scene = Scene::new(json!({}), &format!("config_entries = {FOLDER:?}\n"));
    let file = |name: &str| format!("{FOLDER}/{name}.json");
    scene.bed.write(API_FILE, API);
    scene.bed.start();
    scene.bed.await_fault("ENM-K100");
    let live = |status: &Value| (status["services"]["api"]["phase"] == "live").then_some(());
    scene.bed.await_status("a sidecar all the same", LIMIT, live);
    let pids = scene.bed.held().pids;

    let defaults = |protocol: &str| {
        json!([
            { "Kind": "service-defaults", "Name": "web", "Protocol": protocol },
            { "Kind": "service-router", "Name": "plain", "Routes": [] },
            { "Kind": "service-intentions", "Name": "api", "Sources": [{ "Name": "web", "Action": "allow" }] },
        ])
    };
    scene.bed.write(&file("web"), defaults("http").to_string());
    await_entry(&scene, "service-defaults/web", |entry| entry["Protocol"] == "http");
    // What does not fit is said with its file, and holds nothing else up.
    let fault = scene.bed.await_fault("ENM-K104");
    assert_eq!(fault["place"]["file"], scene.bed.path(&file("web")).to_str().unwrap());
    assert_eq!(scene.get("/v1/config/service-router/plain"), Value::Null);
    let intentions = scene.get("/v1/connect/intentions");
    let pair = (&intentions[0]["SourceName"], &intentions[0]["DestinationName"]);
    assert_eq!(pair, (&json!("web"), &json!("api")), "{intentions}");
    assert_eq!(scene.bed.held().pids, pids);
    assert_eq!(scene.bed.status()["services"]["api"]["phase"], "live");

    scene.bed.write(&file("web"), defaults("grpc").to_string());
    await_entry(&scene, "service-defaults/web", |entry| entry["Protocol"] == "grpc");

    // Changed by somebody else: the plan says so, and the next converging mends it.
    scene.put("/v1/config", &json!({ "Kind": "service-defaults", "Name": "web", "Protocol": "tcp" }));
    let said = scene.bed.run(&["plan", "--json"]).json();
    let change = said["changes"].as_array().unwrap().iter().find(|it| it["subject"] == "config-entry");
    let change = change.unwrap_or_else(|| panic!("{:#}", said["changes"]));
    assert_eq!((&change["name"], &change["kind"]), (&json!("service-defaults/web"), &json!("change")));
    assert!(codes(&said["faults"]).contains(&"ENM-K104"), "{}", said["faults"]);
    assert_eq!(scene.get("/v1/config/service-defaults/web")["Protocol"], "tcp", "a plan writes nothing");
    let text = scene.bed.run(&["plan"]).out;
    assert!(text.contains("~ entry") && text.contains("Protocol"), "{text}");
    scene.bed.run(&["apply"]);
    await_entry(&scene, "service-defaults/web", |entry| entry["Protocol"] == "grpc");

    // Offline, a broken file is named by its line.
    scene.bed.write(&file("broken"), "{\n  \"Kind\": }");
    let said = scene.bed.run(&["check", "--json"]);
    assert_eq!(said.code, Some(65), "{said:?}");
    let checked = said.json();
    assert_eq!((codes(&checked["errors"]), &checked["config_entries"]), (vec!["ENM-K101"], &json!(3)));
    assert_eq!(checked["errors"][0]["place"]["line"], 2);
    scene.bed.await_fault("ENM-K101");
    scene.bed.remove(&file("broken"));

    // Nothing is deleted because it is not in the folder any more.
    let only = json!({ "Kind": "service-defaults", "Name": "other", "Protocol": "http" });
    scene.bed.write(&file("web"), only.to_string());
    await_entry(&scene, "service-defaults/other", |entry| entry["Protocol"] == "http");
    scene.bed.await_ready();
    assert_eq!(scene.get("/v1/config/service-defaults/web")["Protocol"], "grpc");
    assert_eq!(scene.get("/v1/connect/intentions").as_array().unwrap().len(), 1);
    assert_eq!(scene.bed.held().pids, pids);
    assert!(fs::read_dir(scene.bed.path(FOLDER)).unwrap().count() == 1);
}
