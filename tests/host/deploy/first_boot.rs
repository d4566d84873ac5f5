//! The parts in `cloud-init/`: a machine that has them in its user-data is in the mesh after its first boot, or
//! says that it is not.

use std::fs;

use super::seed::{lay, part, repository, setting};
use crate::machine::{Machine, Setting};

/// What somebody has in user-data of their own; no part of it may be lost.
const OWN: &str = "#cloud-config\nfqdn: own.example.com\nwrite_files:\n  - path: /etc/own\n    content: kept\n\
    runcmd:\n  - [touch, /run/own-command-ran]\n";
/// The same, in front of which they have ours.
const OWN_LATER: &str = "#cloud-config\nmerge_how: 'list(append)+dict(no_replace,recurse_list)+str()'\n\
    write_files:\n  - path: /etc/own-later\n    content: kept\nruncmd:\n  - [touch, /run/own-later-command-ran]\n";
/// A server of its own.
const CONSUL: &str = "#cloud-config\nmerge_how: 'list(append)+dict(no_replace,recurse_list)+str()'\nwrite_files:\n  \
    - path: /etc/consul.d/agent.json\n    content: |\n      {\"server\": true, \"bootstrap_expect\": 1, \
    \"bind_addr\": \"10.77.0.2\", \"data_dir\": \"/var/lib/consul\", \"ports\": {\"grpc\": 8502}, \
    \"connect\": {\"enabled\": true}, \"performance\": {\"raft_multiplier\": 1}}\n";
/// A machine without one gives up soon.
const SOON: &str = "#cloud-config\nmerge_how: 'list(append)+dict(no_replace,recurse_list)+str()'\nwrite_files:\n  \
    - path: /etc/enmesh/first-boot.env\n    content: |\n      JOIN_TIMEOUT=3s\n";

fn boot(name: &str, setting: Setting, parts: &[&str]) -> Machine {
    let parts: Vec<String> = parts.iter().map(|part| (*part).to_owned()).collect();
    Machine::boot_in(name, setting, |tree| lay(tree, name, &parts))
}

/// `cloud-init status --long`, which ends with 1 where something failed.
fn status(machine: &Machine) -> String {
    String::from_utf8_lossy(&machine.run(&["cloud-init", "status", "--long"]).stdout).into_owned()
}

fn log(machine: &Machine) -> String {
    fs::read_to_string(machine.path("/var/log/cloud-init-output.log")).unwrap_or_default()
}

#[test]
fn a_first_boot_ends_in_the_mesh_and_loses_nothing_of_others() {
    let [ours, service] = ["enmesh", "service"].map(|name| part(&format!("cloud-init/{name}.yaml")));
    let machine = boot("first-boot", setting(), &[OWN, &ours, &service, CONSUL, OWN_LATER]);
    println!("{}{}", status(&machine), log(&machine));
    assert!(status(&machine).contains("status: done"), "{}", status(&machine));
    machine.must(&["enmesh", "wait", "--timeout", "0s"]);
    assert_eq!(machine.status()["services"]["api"]["phase"], "live");
    for unit in ["enmesh.service", "enmesh-early.service", "consul.service"] {
        assert_eq!(machine.property(unit, "UnitFileState"), "enabled", "{unit}");
    }
    for path in ["/etc/own", "/etc/own-later", "/run/own-command-ran", "/run/own-later-command-ran"] {
        assert!(machine.path(path).exists(), "{path}");
    }
    assert_eq!(machine.must(&["hostname"]).trim(), "own");
    every_part_is_valid(&machine);
}

/// By the schema of the cloud-init that is in Debian.
fn every_part_is_valid(machine: &Machine) {
    let mut parts = Vec::new();
    for folder in ["cloud-init", "vagrant"] {
        collect(&repository().join(folder), &mut parts);
    }
    assert!(parts.len() >= 6, "{parts:?}");
    for (path, text) in parts {
        machine.write_file("/root/part.yaml", text.as_bytes(), 0o600);
        let said = machine.run(&["cloud-init", "schema", "--config-file", "/root/part.yaml"]);
        let out = String::from_utf8_lossy(&said.stdout);
        assert!(said.status.success() && out.contains("Valid"), "{path}: {out}{}", said.stderr);
    }
    machine.write_file("/root/part.yaml", b"#cloud-config\nwrite_files: 1\n", 0o600);
    let refused = machine.run(&["cloud-init", "schema", "--config-file", "/root/part.yaml"]);
    assert!(!refused.status.success(), "the schema takes anything");
}

fn collect(folder: &std::path::Path, parts: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, parts);
        } else if let Ok(text) = fs::read_to_string(&path)
            && text.starts_with("#cloud-config")
        {
            parts.push((path.display().to_string(), text));
        }
    }
}

#[test]
fn a_machine_that_does_not_join_fails_its_first_boot_and_recovers() {
    let [ours, legacy] = ["enmesh", "legacy-service"].map(|name| part(&format!("cloud-init/{name}.yaml")));
    let without = Setting { programs: Vec::new(), fails: true, ..setting() };
    let machine = boot("no-consul", without, &[&ours, &legacy, SOON, OWN_LATER]);
    let said = log(&machine);
    println!("{}{said}", status(&machine));
    let status = status(&machine);
    assert!(status.contains("status: error") && status.contains("50-enmesh"), "{status}");
    // Why, and what to do; and the rest of the boot went on.
    assert!(said.contains("ENM-X030") && said.contains("ENM-K"), "{said}");
    assert!(machine.path("/run/own-later-command-ran").exists());
    let closed = machine.status();
    assert_ne!(closed["services"]["api"]["phase"], "live");
    assert!(machine.rules().is_some(), "what belongs into the mesh is refused meanwhile");

    fs::copy(crate::lab::cluster::consul_program(), machine.path("/usr/bin/consul"))
        .expect("room for Consul");
    machine.write_file("/etc/consul.d/agent.json", agent().as_bytes(), 0o644);
    machine.must(&["systemctl", "restart", "consul.service"]);
    machine.until_ready();
    machine.must(&["/var/lib/cloud/scripts/per-instance/50-enmesh"]);
}

/// The settings in [`CONSUL`].
fn agent() -> &'static str {
    CONSUL.rsplit_once("content: |\n").expect("it has a content").1.trim()
}
