//! One group from its login to the end that nobody announced: another address meanwhile, then everything of it killed at
//! once, then a reaper's pass.

use std::fs;
use std::process::{Command, Stdio};

use enmesh::base::exec;
use serde_json::{Value, json};

use crate::docker::{BRIDGE, LIMIT, until};
use crate::fake_azure::{FakeAzure, FakeGroup, SCOPE, group_id};
use crate::field::{Field, SOON};

const API: (&str, &str) = ("api1", "api");
const WEB: (&str, &str) = ("web1", "web");
const RULES: [&str; 2] = ["--cap-add", "NET_ADMIN"];
/// Where the group is found after a while.
const ELSEWHERE: &str = "10.77.0.200";

#[test]
fn a_group_moves_is_killed_and_is_gone_after_one_pass() {
    let field = Field::new(&["api", "web"]);
    field.post(
        "/v1/connect/intentions",
        &json!({ "SourceName": "web", "DestinationName": "api", "Action": "allow" }),
    );
    let azure = field.docker.outside.run(|| FakeAzure::listen(&format!("{BRIDGE}:0"))).unwrap();
    for (group, service) in [API, WEB] {
        azure.with(|state| drop(state.groups.insert(group_id(group), FakeGroup::running())));
        field.app(group, service);
        let id = group_id(group);
        let mut environment = vec![
            ("ENMESH_PLATFORM_GROUP", id.as_str()),
            ("ENMESH_PLATFORM_MANAGEMENT_URL", &azure.url),
            ("ENMESH_PLATFORM_METADATA_URL", &azure.url),
            ("ENMESH_ADDRESS_SOURCES", "route"),
            ("ENMESH_ADDRESS_RECHECK", "1s"),
        ];
        if service == "api" {
            environment.push(("ENMESH_SERVICE_PORT", "8080"));
        }
        field.sidecar((group, service), &RULES, &environment);
        field.await_ready(group);
    }
    assert_eq!(field.logins(), 2);
    answers(&field);
    let before = field.docker.address("api1-app");
    assert_eq!(addresses(&field), [before.as_str()]);

    move_to(&field, &before, ELSEWHERE);
    until("the other address in Consul", SOON, || {
        let found = addresses(&field);
        if found == [ELSEWHERE] {
            Ok(())
        } else {
            Err(format!("{found:?}\n{}", field.docker.log("api1-sidecar")))
        }
    });
    answers(&field);
    assert_eq!(field.logins(), 2, "it is the same login");

    // Nobody has the time to say anything: neither enmesh nor Envoy nor the app.
    field.docker.run(&["kill", "api1-sidecar", "api1-app"]);
    azure.with(|state| state.groups.remove(&group_id("api1")).unwrap());
    assert_eq!(field.docker.exit_status("api1-sidecar"), 137);
    assert_eq!(field.instances("api").len(), 1, "that is what is left behind");

    let report = reap(&field, &azure);
    assert_eq!(report["removed"].as_array().map(Vec::len), Some(1), "{report:#}");
    assert_eq!(field.get("/v1/catalog/service/api"), json!([]));
    assert_eq!(field.get("/v1/catalog/node/api1-enmesh"), Value::Null);
    assert_eq!(field.logins(), 1);
    // And only it.
    assert!(!field.get("/v1/catalog/node/web1-enmesh").is_null());
    field.await_ready("web1");
}

/// Through the mesh, by the name.
fn answers(field: &Field) {
    until("an answer", SOON, || {
        let answer = field.get_from("web1", "http://api.virtual.consul/");
        if answer["status"] == 200 { Ok(()) } else { Err(answer.to_string()) }
    });
}

/// Where Consul says that `api` is: service, sidecar and node alike.
fn addresses(field: &Field) -> Vec<String> {
    let mut found = Vec::new();
    for path in ["/v1/catalog/service/api", "/v1/catalog/connect/api"] {
        for instance in field.get(path).as_array().into_iter().flatten() {
            for key in ["Address", "ServiceAddress"] {
                found.push(instance[key].as_str().unwrap().to_owned());
            }
        }
    }
    found.sort();
    found.dedup();
    found
}

/// The group's interface gets another address, as when a platform moves it.
fn move_to(field: &Field, before: &str, after: &str) {
    let ip = exec::find("ip").unwrap();
    for arguments in [
        format!("address del {before}/24 dev eth0"),
        format!("address add {after}/24 dev eth0"),
        format!("route replace default via {BRIDGE}"),
    ] {
        let words: Vec<&str> = arguments.split(' ').collect();
        let run = || exec::run(&ip, &words, b"", LIMIT).unwrap();
        let output = field.docker.namespace("api1-app").run(run).unwrap();
        assert!(output.status.success(), "ip {arguments}: {}", output.stderr);
    }
}

/// One pass, as it is typed; what it says.
fn reap(field: &Field, azure: &FakeAzure) -> Value {
    let root = field.docker.at("reaper");
    fs::create_dir_all(root.join("etc/enmesh")).unwrap();
    let file = format!("[platform]\nmanagement_url = {0:?}\nmetadata_url = {0:?}\n", azure.url);
    fs::write(root.join("etc/enmesh/enmesh.toml"), file).unwrap();
    fs::copy(field.operator(), root.join("token")).unwrap();
    let mut command = Command::new(&field.docker.enmesh);
    command.args(["reap", "--scope", SCOPE, "--grace", "0s", "--auth-method", "vm", "--json", "--root"]);
    command.arg(&root).env_clear().env("CONSUL_HTTP_TOKEN_FILE", "/token").stdin(Stdio::null());
    let output = field.docker.outside.run(|| command.output().unwrap()).unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stdout));
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {said}"))
}
