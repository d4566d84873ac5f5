//! Consul with ACLs that deny by default. What a host may not, it says, with a code; meanwhile nothing is
//! in the clear. With the right token, put where it is looked for, everything goes on by itself.

use std::time::Duration;

use serde_json::{Value, json};

use super::bare::load;
use super::cluster::{Lab, PATIENCE, Recipe, eventually};
use super::load::Load;
use crate::machine::Machine;

/// Whoever has it may do anything.
const MANAGEMENT: &str = "6d1b9f4e-0c52-4ad3-9a51-2f7a6a1e0001";
/// The agents': they keep their own node in the catalog.
const AGENT: &str = "6d1b9f4e-0c52-4ad3-9a51-2f7a6a1e0002";
/// The services'.
const COUNTING: &str = "6d1b9f4e-0c52-4ad3-9a51-2f7a6a1e0003";
const DASHBOARD: &str = "6d1b9f4e-0c52-4ad3-9a51-2f7a6a1e0004";
/// Of a service that is on none of the hosts.
const SOMEBODY: &str = "6d1b9f4e-0c52-4ad3-9a51-2f7a6a1e0005";
/// Of nobody.
const UNKNOWN: &str = "6d1b9f4e-0c52-4ad3-9a51-2f7a6a1e0006";

/// Where the hosts have their token.
const TOKEN_FILE: &str = "/etc/enmesh/consul.token";
/// The whole host file.
const HOST_FILE: &[u8] = b"[consul]\ntoken_file = \"/etc/enmesh/consul.token\"\n";
const HOST_FILE_PATH: &str = "/etc/enmesh/enmesh.toml";
/// What the agents may.
const AGENT_RULES: &str = "node_prefix \"\" { policy = \"write\" } service_prefix \"\" { policy = \"read\" }";
/// How long somebody tries who must not get through.
const TRIES: Duration = Duration::from_secs(2);

#[test]
fn a_host_does_what_its_token_may_and_says_what_it_may_not() {
    let lab = boot();
    set_up_acls(&lab);
    let start = lab.watch.seen();
    let load = load(&lab);
    lab.start_enmesh();
    for (token, code) in [(None, "ENM-K020"), (Some(UNKNOWN), "ENM-K022"), (Some(SOMEBODY), "ENM-K021")] {
        for machine in lab.hosts() {
            if let Some(token) = token {
                give(machine, token);
            }
            await_fault(&lab, machine, code);
            assert_ne!(machine.status()["ready"], Value::Bool(true));
        }
        assert_nobody_through(&load, code);
        assert_nothing_said(&lab, &start, code);
    }

    give(&lab.counting, COUNTING);
    give(&lab.dashboard, DASHBOARD);
    lab.until_ready();
    assert_nobody_through(&load, "nobody has allowed it");
    let allowed = load.now();
    consul(&lab, &["intention", "create", "-allow", "dashboard", "counting"]);
    await_through(&lab, &load, allowed, "allowed");
    println!("{}", lab.counting.must(&["enmesh", "status"]));

    a_token_that_is_gone_stops_nobody(&lab, &load);

    consul(&lab, &["intention", "create", "-replace", "-deny", "dashboard", "counting"]);
    eventually("the denial", PATIENCE, || {
        let gap = load.gap_since(load.now().saturating_sub(TRIES));
        if gap.failed == gap.tried { Ok(()) } else { Err(format!("{gap:?}")) }
    });
    assert_nothing_said(&lab, &start, "the end");
}

fn boot() -> Lab {
    let tokens = json!({ "master": MANAGEMENT, "agent": AGENT });
    let name = "acl";
    let native =
        |path, text: &str| vec![(HOST_FILE_PATH, HOST_FILE.to_vec()), (path, text.as_bytes().to_vec())];
    Lab::boot(&Recipe {
        name,
        // An agent believes in a token for half a minute unless told otherwise.
        consul: json!({ "acl": {
            "enabled": true, "default_policy": "deny", "tokens": tokens, "token_ttl": "1s",
        } }),
        counting: native("/etc/enmesh/services/counting.toml", "name = \"counting\"\nport = 80\n"),
        dashboard: native("/etc/enmesh/services/dashboard.toml", "name = \"dashboard\"\n"),
    })
}

/// Runs Consul's own command with the token that may do anything.
fn consul(lab: &Lab, arguments: &[&str]) -> String {
    let token = format!("CONSUL_HTTP_TOKEN={MANAGEMENT}");
    lab.server.must(&[&["env", &token, "consul"], arguments].concat())
}

fn set_up_acls(lab: &Lab) {
    let token = format!("CONSUL_HTTP_TOKEN={MANAGEMENT}");
    eventually("ACLs", PATIENCE, || {
        let output = lab.server.run(&["env", &token, "consul", "acl", "token", "list"]);
        if output.status.success() { Ok(()) } else { Err(output.stderr) }
    });
    consul(lab, &["acl", "policy", "create", "-name=agents", &format!("-rules={AGENT_RULES}")]);
    consul(lab, &["acl", "token", "create", &format!("-secret={AGENT}"), "-policy-name=agents"]);
    for (secret, service) in [(COUNTING, "counting"), (DASHBOARD, "dashboard"), (SOMEBODY, "somebody")] {
        let (secret, identity) = (format!("-secret={secret}"), format!("-service-identity={service}"));
        consul(lab, &["acl", "token", "create", &secret, &identity]);
    }
    eventually("three nodes", PATIENCE, || {
        let nodes = consul(lab, &["catalog", "nodes"]);
        if nodes.lines().count() == 4 { Ok(()) } else { Err(nodes) }
    });
}

fn give(machine: &Machine, token: &str) {
    machine.write_file(TOKEN_FILE, format!("{token}\n").as_bytes(), 0o600);
}

fn await_fault(lab: &Lab, machine: &Machine, code: &str) {
    let fault = eventually(code, PATIENCE, || {
        let status = machine.status();
        let mut faults = status["faults"].as_array().cloned().unwrap_or_default();
        faults.push(status["consul"]["fault"].clone());
        faults.into_iter().find(|fault| fault["code"] == code).ok_or_else(|| lab.journals())
    });
    let said = |field: &str| fault[field].as_str().map(str::to_owned).unwrap_or_default();
    println!("{code}: {} ({})", said("message"), said("hint"));
    assert!(!said("message").is_empty() && !said("hint").is_empty(), "{fault:#}");
}

/// That not one request gets through for a while.
fn assert_nobody_through(load: &Load, when: &str) {
    let from = load.now();
    std::thread::sleep(TRIES);
    let gap = load.gap_since(from);
    assert!(gap.tried > 0 && gap.failed == gap.tried, "{when}: {gap:?}");
}

/// That nobody has said anything in the clear; who only knocks says nothing.
fn assert_nothing_said(lab: &Lab, start: &super::watch::Seen, when: &str) {
    let seen = lab.watch.since(start);
    assert!(seen.clear.is_empty() && seen.marks == 0 && seen.unseen == 0, "{when}: {seen:?}");
}

fn await_through(lab: &Lab, load: &Load, from: Duration, what: &str) {
    let gap = eventually(what, PATIENCE, || {
        load.through_since(from).ok_or_else(|| format!("{:?}\n{}", load.gap_since(from), lab.journals()))
    });
    println!("{what}: through after {} ms", gap.length.as_millis());
}

/// What is in force stays in force; the fault is told.
fn a_token_that_is_gone_stops_nobody(lab: &Lab, load: &Load) {
    let accessor = |secret: &str| {
        let token = format!("CONSUL_HTTP_TOKEN={secret}");
        let said = lab.server.must(&["env", &token, "consul", "acl", "token", "read", "-self"]);
        let line = said.lines().find_map(|line| line.strip_prefix("AccessorID:"));
        line.expect("a token has an accessor").trim().to_owned()
    };
    let from = load.now();
    consul(lab, &["acl", "token", "delete", &format!("-id={}", accessor(DASHBOARD))]);
    // Consul looks at the token of a call that it holds when it has something to tell.
    std::thread::sleep(TRIES);
    consul(lab, &["intention", "create", "-deny", "stranger", "dashboard"]);
    await_fault(lab, &lab.dashboard, "ENM-K022");
    std::thread::sleep(TRIES);
    let gap = load.gap_since(from);
    assert_eq!(gap.failed, 0, "without its token: {gap:?}");
    consul(lab, &["acl", "token", "create", &format!("-secret={DASHBOARD}"), "-service-identity=dashboard"]);
    lab.until_ready();
    assert_eq!(load.gap_since(from).failed, 0);
}
