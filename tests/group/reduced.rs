//! Without the capability that rules take, as in most groups of Azure; and what is wrong with an environment.

use std::time::{Duration, Instant};

use enmesh::netns;
use serde_json::{Value, json};

use crate::docker::until;
use crate::field::{Field, SOON};

const API: (&str, &str) = ("api1", "api");
const WEB: (&str, &str) = ("web1", "web");

/// The environment, the exit status, and what is said.
type Case = (&'static [(&'static str, &'static str)], i32, &'static str);

#[test]
fn without_the_capability_explicit_upstreams_are_in_the_mesh() {
    let mut field = Field::new(&["api", "web"]);
    field.post(
        "/v1/connect/intentions",
        &json!({ "SourceName": "web", "DestinationName": "api", "Action": "allow" }),
    );
    field.app("api1", "api");
    field.app("web1", "web");
    says_what_is_wrong_with_the_environment(&field);
    // As a container before this one has left it, which had the capability.
    let route = async || netns::ensure_virtual_route("240.0.0.0/4".parse().unwrap()).await;
    field.docker.namespace("web1-app").run_async(route).unwrap().unwrap();
    field.sidecar(API, &[], &[("ENMESH_SERVICE_PORT", "8080")]);
    field.sidecar(WEB, &[], &[("ENMESH_SERVICE_UPSTREAM", "api:9002")]);
    field.await_ready("api1");
    field.await_ready("web1");

    let variables = field.docker.run(&["exec", "web1-sidecar", "cat", "/run/enmesh/upstreams.env"]);
    assert!(variables.contains("UPSTREAM_API_ADDR=127.0.0.1:9002"), "{variables}");
    until("an answer", SOON, || {
        let answer = field.get_from("web1", "http://127.0.0.1:9002/");
        if answer["status"] == 200 { Ok(()) } else { Err(answer.to_string()) }
    });
    let status = field.status("web1");
    let lost = status["not_redirected"].as_str().unwrap();
    assert!(lost.contains("CAP_NET_ADMIN"), "{status}");
    assert_eq!(status["warnings"][0]["code"], "ENM-D110");
    assert_eq!((&status["driver"], &status["ready"]), (&json!("none"), &json!(true)));
    assert_eq!((&status["profile"], &status["faults"]), (&json!("aci"), &json!([])));
    let text = field.docker.run(&["exec", "web1-sidecar", "enmesh", "status"]);
    assert!(text.contains("nothing is redirected: this container lacks CAP_NET_ADMIN"), "{text}");
    let doctor = field.docker.run(&["exec", "web1-sidecar", "enmesh", "doctor"]);
    assert!(doctor.contains("nothing is wrong"), "{doctor}");
    // Nothing stands in the way of an end either.
    field.docker.run(&["kill", "--signal", "TERM", "web1-sidecar"]);
    assert_eq!(field.docker.exit_status("web1-sidecar"), 0, "{}", field.docker.log("web1-sidecar"));
    assert_eq!(field.logins(), 1);
    cut_off_from_consul(&mut field);
}

/// Somebody who looks at the exit status learns that something is left behind; nobody waits for long.
fn cut_off_from_consul(field: &mut Field) {
    field.cut_off();
    let started = Instant::now();
    field.docker.run(&["kill", "--signal", "TERM", "api1-sidecar"]);
    assert_eq!(field.docker.exit_status("api1-sidecar"), 1);
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    let log = field.docker.log("api1-sidecar");
    assert!(log.contains("error: ENM-D111"), "{log}");
}

/// A container that cannot be right ends with what is wrong; and where a capability could be given, it is asked for.
fn says_what_is_wrong_with_the_environment(field: &Field) {
    let cases: [Case; 4] = [
        (&[("ENMESH_SERVICE_PORT", "http")], 65, "ENMESH_SERVICE_PORT"),
        (&[("ENMESH_DRIVER", "nft")], 65, "ENMESH_DRIVER"),
        (&[("ENMESH_PROFILE", "container")], 77, "ENM-D014"),
        (&[("ENMESH_LOG", "xml")], 65, "ENMESH_LOG"),
    ];
    for (environment, status, words) in cases {
        field.sidecar(WEB, &[], environment);
        assert_eq!(field.docker.exit_status("web1-sidecar"), status, "{environment:?}");
        let output = field.docker.run(&["inspect", "--format", "{{json .State}}", "web1-sidecar"]);
        let state: Value = serde_json::from_str(&output).unwrap();
        assert_eq!(state["ExitCode"], status);
        let log = field.docker.log("web1-sidecar");
        assert!(log.contains(words), "{environment:?}: {log}");
        field.docker.run(&["rm", "web1-sidecar"]);
    }
}
