//! `enmesh explain` on a tree that is no host: what it says, and how it says no.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that panics has failed")]
#![allow(clippy::disallowed_methods, reason = "a person types these commands")]

use std::fs;
use std::process::{Command, Output};

use serde_json::Value;

const PEERS: &str = r#"
trust_domain = "11111111-2222-3333-4444-555555555555.consul"
[[service]]
name = "db"
virtual_ips = ["240.0.0.9"]
[[service.instance]]
address = "10.99.0.7"
port = 21000
service_port = 5432
[[service.instance]]
address = "10.99.0.8"
port = 21000
service_port = 5432
"#;

struct Tree(tempfile::TempDir);

impl Tree {
    fn new() -> Tree {
        let tree = Tree(tempfile::tempdir().unwrap());
        let users = "root:x:0:0::/:/x\nenvoy:x:5995:5995::/:/x\napp:x:10001:10001::/:/x\n";
        tree.write("etc/passwd", users);
        tree.write("etc/enmesh/peers.toml", PEERS);
        tree.write(
            "etc/enmesh/services/api.toml",
            "name = \"api\"\nport = 8080\naddress = \"10.9.0.2\"\n[capture]\nscope = \"user:app\"\n\
             bypass.outbound_ports = [3306]\nbypass.interfaces = [\"br0\"]\n",
        );
        tree
    }

    fn write(&self, path: &str, contents: &str) {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, contents).unwrap();
    }

    fn explain(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_enmesh"));
        command.arg("--root").arg(self.0.path()).arg("explain").args(arguments).env_clear();
        command.output().unwrap()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let output = self.explain(&[arguments, &["--json"]].concat());
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

#[test]
fn verdict_rule_and_way() {
    let tree = Tree::new();
    let rows: [(&[&str], &str, &str, &str); 11] = [
        (&["--user", "app", "db:5432"], "redirected", "to the user's sidecar", "refused"),
        (&["--uid", "10001", "db.virtual.consul:80"], "redirected", "to the user's sidecar", "refused"),
        (&["--uid", "10001", "10.99.0.7:5432"], "redirected", "to the user's sidecar", "refused"),
        (&["--uid", "10001", "10.1.1.1:80"], "redirected", "to the user's sidecar", "direct"),
        (&["--uid", "10001", "10.1.1.1:3306"], "direct", "a user's bypassed ports", "direct"),
        (&["--uid", "10001", "10.9.0.2:80"], "direct", "own addresses", "direct"),
        (&["--uid", "10001", "[fd00::1]:80"], "redirected", "to the user's sidecar", "direct"),
        (&["--uid", "5995", "240.0.0.9:80"], "direct", "bypassed users", ""),
        (&["--uid", "10001", "--udp", "240.0.0.9:53"], "refused", "virtual IPs", "refused"),
        (&["--from", "10.9.0.1", ":8080"], "redirected", "to the port's sidecar", "refused"),
        (
            &["--from", "10.9.0.1", "--interface", "br0", ":8080"],
            "direct",
            "a port's bypassed interfaces",
            "direct",
        ),
    ];
    for (arguments, verdict, rule, meanwhile) in rows {
        let answer = tree.json(arguments);
        let found = (&answer["decision"]["verdict"]["kind"], &answer["decision"]["rule"]);
        assert_eq!(found, (&verdict.into(), &rule.into()), "{arguments:?}: {answer:#}");
        let other = answer["while_not_live"]["verdict"]["kind"].as_str().unwrap_or_default();
        assert_eq!(other, meanwhile, "{arguments:?}: {answer:#}");
    }
}

/// By the process, whoever it belongs to: here it is this test itself.
#[test]
fn a_process_is_known_by_the_user_of_its_sockets() {
    let answer = Tree::new().json(&["--pid", &std::process::id().to_string(), "db:5432"]);
    let me = nix::unistd::geteuid().as_raw();
    assert_eq!(answer["flow"]["origin"], serde_json::json!({ "user": me }), "{answer:#}");
}

#[test]
fn it_says_where_envoy_leads() {
    let tree = Tree::new();
    let by_name = tree.json(&["--user", "app", "db:5432"]);
    assert_eq!(by_name["lead"]["chain"], "db");
    assert!(
        by_name["next"][2].as_str().unwrap().ends_with("10.99.0.7:21000, 10.99.0.8:21000"),
        "{by_name:#}"
    );
    let dialled = tree.json(&["--user", "app", "10.99.0.8:5432"]);
    assert_eq!((&dialled["lead"]["chain"], &dialled["lead"]["service"]), (&"db/21000".into(), &"db".into()));
    assert!(dialled["next"][2].as_str().unwrap().ends_with("one of: 10.99.0.8:21000"), "{dialled:#}");
    let passed_on = tree.json(&["--user", "app", "10.1.1.1:80"]);
    assert_eq!(passed_on["lead"]["cluster"], "original-destination");
    // The chains and clusters are those that Envoy gets.
    let mut command = Command::new(env!("CARGO_BIN_EXE_enmesh"));
    let xds =
        command.arg("--root").arg(tree.0.path()).args(["render", "xds", "api"]).env_clear().output().unwrap();
    let xds = String::from_utf8(xds.stdout).unwrap();
    for lead in [&by_name, &dialled, &passed_on].map(|answer| &answer["lead"]) {
        assert!(xds.contains(&format!("\"name\": {}", lead["chain"])), "{lead}: {xds}");
        assert!(xds.contains(&format!("\"name\": {}", lead["cluster"])), "{lead}: {xds}");
    }
}

#[test]
fn text_for_people() {
    let output = Tree::new().explain(&["--user", "app", "db:5432"]);
    let text = String::from_utf8(output.stdout).unwrap();
    for line in [
        "uid 10001 -> 240.0.0.9:5432/tcp: redirected to port 15001 of `api`",
        "  rule   \"to the user's sidecar\" in chain out: ",
        "  then   filter chain `db` leads it to cluster `db.default.dc1.internal.",
        "while the sidecar of `api` is not live: refused",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
}

#[test]
fn what_is_no_flow_is_said() {
    let tree = Tree::new();
    let rows: [(&[&str], &str); 12] = [
        (&["--user", "ghost", "db:1"], "ENM-D016"),
        (&["--pid", "4194305", "db:1"], "ENM-D016"),
        (&["--unit", "api", "db:1"], "running host only"),
        (&["--unit", "api.service;x", "db:1"], "no name of a service unit"),
        (&["--unit", "api.socket", "db:1"], "no name of a service unit"),
        (&["--uid", "1", "db"], "ENM-D016"),
        (&["--uid", "1", "elsewhere:1"], "ENM-D016"),
        (&["--uid", "1", "::1:80"], "ENM-D016"),
        (&["--uid", "1", ":80"], "ENM-D016"),
        (&["--from", "::1", "10.0.0.1:80"], "ENM-D016"),
        (&["db:1"], "required"),
        (&["--uid", "1", "--interface", "eth0", "db:1"], "--interface"),
    ];
    for (arguments, said) in rows {
        let output = tree.explain(arguments);
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(64), "{arguments:?}: {words}");
        assert!(words.contains(said), "{arguments:?}: {words}");
    }
}

#[test]
fn in_a_network_namespace_of_a_service() {
    let tree = Tree::new();
    tree.write(
        "etc/enmesh/services/billing.toml",
        "name = \"billing\"\nport = 8080\n[capture]\nscope = \"netns:billing\"\n",
    );
    // The same user: captured within, nobody's on the host.
    let within = tree.json(&["--uid", "10009", "--in", "billing", "10.99.0.7:5432"]);
    assert_eq!(within["namespace"], "billing");
    assert_eq!(within["decision"]["verdict"]["service"], "billing", "{within:#}");
    let on_host = tree.json(&["--uid", "10009", "10.99.0.7:5432"]);
    assert!(on_host.get("namespace").is_none() && on_host["service"].is_null(), "{on_host:#}");
    // What is the host's own address outside is the mesh's in there.
    let own = tree.json(&["--uid", "10009", "--in", "billing", "10.9.0.2:8080"]);
    assert_eq!(own["decision"]["verdict"]["service"], "billing", "{own:#}");
    let text = tree.explain(&["--uid", "10009", "--in", "billing", "10.99.0.7:5432"]);
    assert!(String::from_utf8_lossy(&text.stdout).contains("in namespace billing"));
    let nobody = tree.explain(&["--uid", "10009", "--in", "api", "10.99.0.7:5432"]);
    assert!(String::from_utf8_lossy(&nobody.stderr).contains("ENM-D016"));
}
