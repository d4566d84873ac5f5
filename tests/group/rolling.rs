//! Two groups of one service, replaced one after the other under steady load.

use std::time::Duration;

use serde_json::{Value, json};

use crate::docker::until;
use crate::field::{Field, SOON};

const SERVE: [(&str, &str); 2] = [
    ("ENMESH_SERVICE_PORT", "8080"),
    ("ENMESH_SERVICE_CHECK", "[{\"tcp\": \"127.0.0.1:8080\", \"interval\": \"1s\"}]"),
];
const RULES: [&str; 2] = ["--cap-add", "NET_ADMIN"];
/// Requests a second, each on a connection of its own.
const RATE: &str = "100";

fn start(field: &Field, group: &str) {
    field.app(group, "api");
    field.sidecar((group, "api"), &RULES, &SERVE);
    field.await_ready(group);
}

/// As platforms do it: the signal, and the app only when the sidecar has ended.
fn stop(field: &Field, group: &str) {
    field.docker.run(&["kill", "--signal", "TERM", &format!("{group}-sidecar")]);
    assert_eq!(field.docker.exit_status(&format!("{group}-sidecar")), 0);
    field.docker.run(&["rm", "--force", &format!("{group}-app")]);
}

#[test]
fn no_request_is_lost_while_groups_are_replaced() {
    let field = Field::new(&["api", "web"]);
    field.post(
        "/v1/connect/intentions",
        &json!({ "SourceName": "web", "DestinationName": "api", "Action": "allow" }),
    );
    start(&field, "api1");
    start(&field, "api2");
    field.app("web1", "web");
    // Any container host, not only the one whose profile is found.
    let container = [("ENMESH_PROFILE", "container"), ("ENMESH_READINESS_LISTEN", "0.0.0.0:15000")];
    field.sidecar(("web1", "web"), &RULES, &container);
    field.await_ready("web1");
    until("an answer", SOON, || {
        let answer = field.get_from("web1", "http://api.virtual.consul/");
        if answer["status"] == 200 { Ok(()) } else { Err(answer.to_string()) }
    });

    let hammered = std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            let url = "http://api.virtual.consul/";
            let hammer = ["enmesh", "demo-app", "hammer", "--rate", RATE, "--milliseconds", "30000", url];
            field.docker.json("web1-app", &hammer)
        });
        std::thread::sleep(Duration::from_secs(1));
        start(&field, "api3");
        stop(&field, "api1");
        start(&field, "api4");
        stop(&field, "api2");
        assert!(!load.is_finished(), "the load ended before the last group was replaced");
        load.join().unwrap()
    });
    eprintln!("figure: rolling replacement of two groups: {hammered}");
    let number = |key: &str| hammered[key].as_u64().unwrap();
    assert!(number("tried") > 1000, "{hammered}");
    assert_eq!(number("answered"), number("tried"), "{hammered}");
    assert_eq!(field.status("web1")["profile"], "container");
    let mut left: Vec<String> = field.instances("api").into_iter().map(|(node, _)| node).collect();
    left.sort();
    assert_eq!(left, ["api3-enmesh", "api4-enmesh"]);
    assert_eq!(hammered["outage"], Value::Null);
}
