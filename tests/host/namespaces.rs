//! Services in network namespaces for themselves, under systemd: units are placed, wait, and never run elsewhere; a
//! boot makes everything again, and the end takes all of it away.

use std::path::Path;

use serde_json::Value;

use crate::far::Far;
use crate::machine::{Machine, enable, put};
use crate::takeover::assert_nothing_left;

const HOST_FILE: &str = "control_plane = \"static\"\n\n[envoy]\ndrain = \"1s\"\n";
/// All may call all.
const PEERS: &str = "[[service]]\nname = \"api\"\nallow = [\"billing\", \"far\"]\n\n[[service]]\nname = \"billing\"\nallow = [\"api\", \"far\"]\n";
const SERVICES: [&str; 2] = ["api", "billing"];
/// The border's table.
const BORDER: [&str; 5] = ["nft", "list", "table", "inet", "enmesh_border"];

/// Two applications under one user and on one port.
fn lay_out(tree: &Path) {
    put(tree, "/etc/enmesh/enmesh.toml", HOST_FILE);
    put(tree, "/etc/enmesh/peers.toml", PEERS.to_owned() + &Far::as_peer("\"api\", \"billing\""));
    let drop_in = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd/enmesh-namespaces.conf");
    let drop_in = std::fs::read(drop_in).unwrap();
    put(tree, "/etc/systemd/system/enmesh.service.d/namespaces.conf", drop_in);
    // A container's settings cannot be written; a machine's can.
    let as_a_machine = "[Service]\nExecStartPre=+/bin/mount -o remount,bind,rw /proc/sys\n";
    put(tree, "/etc/systemd/system/enmesh.service.d/test.conf", as_a_machine);
    for name in SERVICES {
        let service = format!(
            "name = \"{name}\"\nport = 8080\n\n[capture]\nscope = \"netns:{name}\"\nunit = \"{name}-app.service\"\n"
        );
        put(tree, &format!("/etc/enmesh/services/{name}.toml"), service);
        let unit = format!(
            "[Service]\nUser=daemon\nExecStart=/usr/bin/enmesh demo-app serve --name {name} --listen 0.0.0.0:8080\n\n\
             [Install]\nWantedBy=multi-user.target\n"
        );
        put(tree, &format!("/etc/systemd/system/{name}-app.service"), unit);
    }
    enable(tree);
}

fn app(name: &str) -> String {
    format!("{name}-app.service")
}

/// The network namespace of a unit's process.
fn network_of(machine: &Machine, unit: &str) -> String {
    let pid = machine.property(unit, "MainPID");
    assert_ne!(pid, "0", "{unit} does not run\n{}", machine.journal());
    machine.must(&["stat", "--dereference", "--format=%i", &format!("/proc/{pid}/ns/net")]).trim().to_owned()
}

fn network_named(machine: &Machine, name: &str) -> String {
    machine.must(&["stat", "--format=%i", &format!("/run/netns/{name}")]).trim().to_owned()
}

/// What an application like that of `caller` hears from `callee`, by its name.
fn call(machine: &Machine, caller: &str, callee: &str) -> Option<String> {
    let namespace = format!("--property=NetworkNamespacePath=/run/netns/{caller}");
    let names =
        format!("--property=BindReadOnlyPaths=/run/enmesh/.namespaces/{caller}/resolv.conf:/etc/resolv.conf");
    let url = format!("http://{callee}.virtual.consul/");
    let command =
        ["systemd-run", "--quiet", "--wait", "--pipe", "--property=User=daemon", &namespace, &names];
    let output = machine.run(&[&command[..], &["/usr/bin/enmesh", "demo-app", "get", &url]].concat());
    let outcome: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let body: Value = serde_json::from_str(outcome["body"].as_str().unwrap_or_default()).unwrap_or_default();
    let heard = body["service"].as_str().map(str::to_owned);
    if heard.is_none() {
        println!("{caller} asked {callee}: {outcome:#} {}", output.stderr);
    }
    heard
}

fn all_in_place(machine: &Machine) {
    machine.until_ready();
    let own = network_of(machine, "enmesh.service");
    for name in SERVICES {
        let there = network_named(machine, name);
        assert_ne!(there, own);
        for unit in [app(name), format!("envoy@{name}.service")] {
            assert_eq!(network_of(machine, &unit), there, "{unit}");
        }
    }
    for (caller, callee) in [("api", "billing"), ("billing", "api")] {
        machine.until("a call through the mesh", || {
            call(machine, caller, callee).filter(|heard| heard == callee).map(drop)
        });
    }
    assert_eq!(machine.rules(), None, "nothing is captured in the host's own network");
}

/// Each calls a third host, which calls each.
fn with_a_third_host(machine: &Machine) {
    let far = Far::start(machine, &[("api", 21_000), ("billing", 21_001)]);
    for (number, name) in (0..).zip(SERVICES) {
        let outwards = || call(machine, name, "far").filter(|heard| heard == "far").map(drop);
        machine.until(&format!("{name} hears from the third host"), outwards);
        let inwards = || far.hears(number).filter(|heard| heard == name).map(drop);
        machine.until(&format!("the third host hears from {name}"), || {
            inwards().or_else(|| {
                println!("{}", far.log());
                None
            })
        });
    }
}

/// The daemon's own sandbox is not for it: that is said, and neither application nor sidecar runs elsewhere instead.
fn without_the_drop_in_it_is_said(machine: &Machine) {
    let kept = "/etc/systemd/system/enmesh.service.d/namespaces.conf";
    machine.must(&["mv", kept, "/root/"]);
    machine.must(&["systemctl", "daemon-reload"]);
    machine.must(&["systemctl", "restart", "enmesh"]);
    let status = machine.until("the faults", || {
        Some(machine.status()).filter(|status| status["faults"].as_array().is_some_and(|all| !all.is_empty()))
    });
    let fault = &status["services"]["api"]["fault"];
    assert_eq!(fault["code"], "ENM-N001", "{status:#}");
    assert!(fault["hint"].as_str().unwrap().contains("docs/namespaces.md"), "{fault:#}");
    machine.must(&["mv", "/root/namespaces.conf", kept]);
    machine.must(&["systemctl", "daemon-reload"]);
    machine.must(&["systemctl", "restart", "enmesh"]);
}

#[test]
fn two_services_under_one_user() {
    let mut machine = Machine::boot_with("namespaces", lay_out);
    without_the_drop_in_it_is_said(&machine);
    // Applications that ran before are told of, and are where they belong when they start again.
    machine.must(&["systemctl", "start", "api-app", "billing-app"]);
    machine.until("both sidecars", || {
        let status = machine.status();
        SERVICES.iter().all(|name| status["services"][name]["phase"] == "live").then_some(())
    });
    machine.must(&["systemctl", "restart", "api-app", "billing-app"]);
    machine.must(&["systemctl", "enable", "--quiet", "api-app", "billing-app"]);
    machine.run(&["enmesh", "apply"]);
    all_in_place(&machine);
    with_a_third_host(&machine);

    a_running_application_is_told_of(&machine);
    enmesh_comes_and_goes(&machine);
    without_its_namespace_an_application_does_not_start(&machine);
    machine.reboot();
    all_in_place(&machine);
    with_a_third_host(&machine);
    the_end(&machine);
}

/// One that runs in the host's network, as before enmesh came.
fn a_running_application_is_told_of(machine: &Machine) {
    let drop_in = "/etc/systemd/system/api-app.service.d/50-enmesh-namespace.conf";
    machine.must(&["rm", drop_in]);
    machine.must(&["systemctl", "daemon-reload"]);
    machine.must(&["systemctl", "restart", "api-app"]);
    assert_eq!(network_of(machine, "api-app.service"), network_of(machine, "enmesh.service"));
    machine.run(&["enmesh", "apply"]);
    let status = machine.status();
    assert_eq!(status["faults"][0]["code"], "ENM-S030", "{status:#}");
    machine.must(&["systemctl", "restart", "api-app"]);
    machine.run(&["enmesh", "apply"]);
    all_in_place(machine);
}

/// Neither the namespaces nor what runs in them notice.
fn enmesh_comes_and_goes(machine: &Machine) {
    let units: Vec<String> =
        SERVICES.iter().flat_map(|name| [app(name), format!("envoy@{name}.service")]).collect();
    let lasting = || -> Vec<String> {
        let pids = units.iter().map(|unit| machine.property(unit, "MainPID"));
        pids.chain(SERVICES.iter().map(|name| network_named(machine, name))).collect()
    };
    let before = lasting();
    machine.must(&["systemctl", "restart", "enmesh"]);
    all_in_place(machine);
    assert_eq!(lasting(), before, "restart");
    machine.signal("KILL", &machine.property("enmesh.service", "MainPID"));
    all_in_place(machine);
    assert_eq!(lasting(), before, "kill");
}

fn without_its_namespace_an_application_does_not_start(machine: &Machine) {
    machine.must(&["systemctl", "stop", "enmesh"]);
    machine.must(&["systemctl", "mask", "--runtime", "--quiet", "enmesh"]);
    machine.must(&["ip", "netns", "delete", "api"]);
    // For a unit of this type, systemd's word comes before its program is run.
    machine.run(&["systemctl", "restart", "api-app"]);
    machine.until("the end of a start without a namespace", || {
        (machine.property("api-app.service", "ActiveState") == "failed").then_some(())
    });
    // EXIT_NETWORK of systemd.exec(5).
    assert_eq!(machine.property("api-app.service", "ExecMainStatus"), "225");
    machine.must(&["systemctl", "unmask", "--runtime", "--quiet", "enmesh"]);
    machine.must(&["systemctl", "start", "enmesh"]);
    machine.must(&["systemctl", "restart", "api-app"]);
    machine.run(&["enmesh", "apply"]);
    all_in_place(machine);
}

fn the_end(machine: &Machine) {
    assert_eq!(machine.must(&["cat", "/proc/sys/net/ipv4/ip_forward"]).trim(), "1");
    machine.must(&["systemctl", "stop", "api-app", "billing-app"]);
    let down = machine.run(&["enmesh", "down"]);
    assert!(down.status.success(), "{}\n{}", down.stderr, machine.journal());
    assert_nothing_left(machine);
    assert_eq!(machine.must(&["find", "/run/netns", "-mindepth", "1"]), "");
    let links = machine.must(&["ip", "-o", "link"]);
    assert!(!links.contains("enm-"), "{links}");
    assert!(!machine.run(&BORDER).status.success(), "the border is still there");
    assert_eq!(machine.must(&["cat", "/proc/sys/net/ipv4/ip_forward"]).trim(), "0");
    let drop_ins = machine.must(&["find", "/etc/systemd/system", "-name", "50-enmesh*"]);
    assert_eq!(drop_ins, "");
}
