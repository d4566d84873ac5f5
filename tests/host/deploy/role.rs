//! The Ansible role, run by a real Ansible on a booted machine: it installs, joins, changes nothing the second time, and
//! says what is wrong.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::page::Page;
use super::seed::{lay, part, repository, setting};
use super::site::{package, sum};
use crate::machine::{Machine, Setting, envoy, put};

/// Runs the play with these variables; `changed` and `failed` of its recap, and what was said.
fn play(machine: &Machine, variables: &Value) -> (u64, u64, String) {
    machine.write_file("/root/variables.json", variables.to_string().as_bytes(), 0o600);
    let said = machine.run(&[
        // It asks where it is, which nobody knows who has come in from outside.
        "/usr/bin/env",
        "--chdir=/root",
        "HOME=/root",
        "LC_ALL=C.UTF-8",
        "ANSIBLE_ROLES_PATH=/root/ansible/roles",
        "ansible-playbook",
        "--inventory=localhost,",
        "--connection=local",
        "--extra-vars=@/root/variables.json",
        "--extra-vars=ansible_become=false ansible_python_interpreter=/usr/bin/python3",
        "/root/ansible/site.yml",
    ]);
    let out = String::from_utf8_lossy(&said.stdout).into_owned();
    let recap = out.lines().find(|line| line.starts_with("localhost ")).unwrap_or_default().to_owned();
    let count = |key: &str| -> u64 {
        let field = recap.split_whitespace().find_map(|field| field.strip_prefix(key)?.strip_prefix('='));
        field
            .and_then(|number| number.parse().ok())
            .unwrap_or_else(|| panic!("no recap: {out}\n{}", said.stderr))
    };
    (count("changed"), count("failed"), out)
}

fn copy_in(machine: &Machine, folder: &Path, to: &str) {
    for entry in fs::read_dir(folder).expect("a folder").flatten() {
        let there = format!("{to}/{}", entry.file_name().to_string_lossy());
        if entry.path().is_dir() {
            copy_in(machine, &entry.path(), &there);
        } else {
            machine.write_file(&there, &fs::read(entry.path()).expect("a file"), 0o644);
        }
    }
}

#[test]
fn the_role_joins_a_machine_and_changes_nothing_twice() {
    let server = part("cloud-init/consul.yaml").replace("\"retry_join\": [\"192.168.56.10\"],", SERVER);
    let setting = Setting { without_enmesh: true, without_envoy: true, ..setting() };
    let start = "#cloud-config\nmerge_how: 'list(append)+dict(no_replace,recurse_list)+str()'\n\
        runcmd:\n  - [systemctl, start, consul.service]\n";
    let machine = Machine::boot_in("role", setting, |tree| {
        lay(tree, "role", &[server, start.to_owned()]);
        put(tree, "/root/enmesh.deb", fs::read(package()).expect("a package"));
    });
    copy_in(&machine, &repository().join("ansible"), "/root/ansible");
    let program = fs::canonicalize(envoy()).expect("Envoy is there");
    fs::copy(&program, machine.path("/root/envoy")).expect("room for Envoy");
    let sum = machine.must(&["sha256sum", "/root/envoy"]).split(' ').next().unwrap_or_default().to_owned();
    let mut variables = json!({
        "enmesh_package": "/root/enmesh.deb",
        "enmesh_envoy_url": "file:///root/envoy",
        "enmesh_envoy_checksum": "0".repeat(64),
        "enmesh_services": [{ "name": "api", "port": 8080 }, { "name": "web", "capture": { "scope": "user:nobody" } }],
    });
    variables["enmesh_services"][0]["capture"] = json!({ "scope": "user:daemon" });

    let (_, failed, said) = play(&machine, &variables);
    assert!(failed == 1 && said.contains("checksum"), "another checksum is taken: {said}");
    assert!(!machine.path("/usr/local/bin/envoy").exists());

    variables["enmesh_envoy_checksum"] = json!(sum);
    let (changed, failed, said) = play(&machine, &variables);
    assert!(failed == 0 && changed >= 4, "{said}");
    for service in ["api", "web"] {
        assert_eq!(machine.status()["services"][service]["phase"], "live", "{said}");
    }
    for unit in ["enmesh.service", "enmesh-early.service"] {
        assert_eq!(machine.property(unit, "UnitFileState"), "enabled");
    }

    let (changed, failed, said) = play(&machine, &variables);
    assert_eq!((changed, failed), (0, 0), "{said}");
    as_its_page_says(&machine, &sum);

    variables["enmesh_services"].as_array_mut().expect("a list").remove(1);
    variables["enmesh_removed_services"] = json!(["web"]);
    let (_, failed, said) = play(&machine, &variables);
    assert_eq!(failed, 0, "{said}");
    machine.until("one service", || {
        (machine.status()["services"].as_object().map(serde_json::Map::len) == Some(1)).then_some(())
    });

    variables["enmesh_services"][0]["port"] = json!("eighty");
    let (_, failed, said) = play(&machine, &variables);
    assert!(failed == 1 && said.contains("ENM-C"), "{said}");
}

/// The page's own variables and command, for a machine that is here and fetches from itself.
fn as_its_page_says(machine: &Machine, of_envoy: &str) {
    let page = part("ansible/README.md");
    let example =
        page.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next()).expect("an example");
    let name = package().file_name().and_then(|name| name.to_str()).expect("text").to_owned();
    let mut variables = example.to_owned();
    for (from, to) in [
        (format!("https://packages.example.com/{name}"), "/root/enmesh.deb".to_owned()),
        (
            "https://packages.example.com/envoy-1.40.0-linux-x86_64".to_owned(),
            "file:///root/envoy".to_owned(),
        ),
        ("package_checksum: \"…\"".to_owned(), format!("package_checksum: \"{}\"", sum(&package()))),
        ("envoy_checksum: \"…\"".to_owned(), format!("envoy_checksum: \"{of_envoy}\"")),
    ] {
        assert!(variables.contains(&from), "the example has no {from:?}");
        variables = variables.replace(&from, &to);
    }
    machine.write_file("/root/ansible/group_vars/api.yml", variables.as_bytes(), 0o644);
    let hosts = "[api]\nlocalhost ansible_connection=local ansible_become=false ansible_python_interpreter=/usr/bin/python3\n";
    machine.write_file("/root/ansible/hosts", hosts.as_bytes(), 0o644);
    let step = Page::read("ansible/README.md").next("ansible-playbook").steps().remove(0);
    let said = step.run_as(machine, "root", &format!("cd /root/ansible\n{}", step.command));
    assert!(said.contains("failed=0"), "{said}");
    let service = machine.must(&["cat", "/etc/enmesh/services/api.json"]);
    assert!(service.contains("127.0.0.1:8080/health"), "{service}");
}

/// A server of its own instead of one elsewhere.
const SERVER: &str = "\"server\": true, \"bootstrap_expect\": 1, \"bind_addr\": \"10.77.0.2\",\n        \
    \"connect\": { \"enabled\": true },";
