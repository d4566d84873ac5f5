//! The parts in `cloud-init/`: a machine that has them in its user-data installs the package, from a repository or from an
//! address, and is in the mesh after its first boot, or says that it is not.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;

use super::page::Page;
use super::seed::{lay, lay_user_data, many, part, repository, setting};
use super::site::{self, Site, package, run, sum};
use crate::cable::Outlet;
use crate::machine::{Machine, Setting, envoy, put};
use crate::switch::Switch;

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
/// Where the parts have addresses.
const EXAMPLE: &str = "https://packages.example.com/";
/// Where machines of the tests have everybody else.
const HERE: &str = "http://10.77.0.1/";
const SCRIPT: &str = "/var/lib/cloud/scripts/per-instance/50-enmesh";
const PAGE: &str = "docs/cloud-init.md";

/// `cloud-init status --long`, which ends with 1 where something failed.
fn status(machine: &Machine) -> String {
    String::from_utf8_lossy(&machine.run(&["cloud-init", "status", "--long"]).stdout).into_owned()
}

fn log(machine: &Machine) -> String {
    fs::read_to_string(machine.path("/var/log/cloud-init-output.log")).unwrap_or_default()
}

/// Replaces what is in a part, as its first lines ask for.
fn change(part: &str, changes: &[(&str, &str)]) -> String {
    let mut text = part.to_owned();
    for (from, to) in changes {
        assert!(text.contains(from), "the part has no {from:?}");
        text = text.replace(from, to);
    }
    text
}

/// The part that names addresses, with these checksums.
fn from_url(of_enmesh: &str, of_envoy: &str) -> String {
    let zeros = "0".repeat(64);
    let name = package().file_name().and_then(|name| name.to_str()).expect("text").to_owned();
    let text = part("cloud-init/from-url.yaml");
    assert!(text.contains(&name), "the package is called {name}");
    let [enmesh, envoy] = [("ENMESH_SHA256=", of_enmesh), ("ENVOY_SHA256=", of_envoy)]
        .map(|(key, sum)| (format!("{key}{zeros}"), format!("{key}{sum}")));
    let changes = [
        (EXAMPLE, HERE),
        (&enmesh.0, &enmesh.1),
        (&envoy.0, &envoy.1),
        ("JOIN_TIMEOUT=180s", "JOIN_TIMEOUT=3s"),
    ];
    change(&text, &changes)
}

/// The package and Envoy, at the addresses of that part.
fn site() -> Site {
    let mut site = Site::default();
    let name = package().file_name().and_then(|name| name.to_str()).expect("text").to_owned();
    site.put(&name, fs::read(package()).expect("a package"));
    site.put("envoy-1.40.0-linux-x86_64", fs::read(envoy()).expect("Envoy"));
    site
}

/// Boots a machine without enmesh, to which everybody else serves these files.
fn boot(name: &str, setting: Setting, site: Site, prepare: impl FnOnce(&Path)) -> (Switch, Machine) {
    let switch = Switch::make();
    site.serve(&switch.namespace);
    let outlet = Outlet::Switch(switch.port("machine", Ipv4Addr::new(10, 77, 0, 2)));
    let setting = Setting { without_enmesh: true, outlet, ..setting };
    let machine = Machine::boot_in(name, setting, prepare);
    (switch, machine)
}

fn assert_the_package_is_installed(machine: &Machine) {
    let version = machine.must(&["dpkg-query", "--show", "--showformat=${Version} ${Status}", "enmesh"]);
    assert_eq!(version, format!("{}-1 install ok installed", env!("CARGO_PKG_VERSION")));
}

#[test]
fn a_first_boot_ends_in_the_mesh_and_loses_nothing_of_others() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let mut site = Site::default();
    let key = site::repository(&mut site, folder.path());
    let key: String = key.lines().map(|line| format!("        {line}\n")).collect();
    let text = part("cloud-init/from-repository.yaml");
    let (begin, end) =
        ("        -----BEGIN PGP PUBLIC KEY BLOCK-----\n", "-----END PGP PUBLIC KEY BLOCK-----\n");
    let example = &text[text.find(begin).expect("a key")..text.find(end).expect("its end") + end.len()];
    let repository =
        change(&text, &[(example, &key), ("https://packages.example.com/debian", "http://10.77.0.1/debian")]);
    let [ours, service] = ["enmesh", "service"].map(|name| part(&format!("cloud-init/{name}.yaml")));
    let parts = [OWN, &repository, &ours, &service, CONSUL, OWN_LATER].map(str::to_owned);
    let nothing = Setting { programs: Vec::new(), ..setting() };
    let (_switch, machine) =
        boot("first-boot", nothing, site, |tree| lay_user_data(tree, "first-boot", &many(&parts)));
    println!("{}{}", status(&machine), log(&machine));
    assert!(status(&machine).contains("status: done"), "{}", status(&machine));
    assert_the_package_is_installed(&machine);
    machine.must(&["enmesh", "wait", "--timeout", "0s"]);
    assert_eq!(machine.status()["services"]["api"]["phase"], "live");
    for unit in ["enmesh.service", "enmesh-early.service", "consul.service"] {
        assert_eq!(machine.property(unit, "UnitFileState"), "enabled", "{unit}");
    }
    for path in ["/etc/own", "/etc/own-later", "/run/own-command-ran", "/run/own-later-command-ran"] {
        assert!(machine.path(path).exists(), "{path}");
    }
    assert_eq!(machine.must(&["hostname"]).trim(), "own");
    let mut page = Page::read(PAGE);
    page.leave_out("cloud-init devel", "the test below boots what it makes");
    page.next("cloud-init status").run(&machine, "root");
    page.leave_out("cloud-init status", "the test below has a machine that failed");
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

fn collect(folder: &Path, parts: &mut Vec<(String, String)>) {
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
    let mut page = Page::read(PAGE);
    let together = page.next("cloud-init devel").steps().remove(0).command;
    let without = Setting { programs: Vec::new(), fails: true, without_envoy: true, ..setting() };
    let (_switch, machine) = boot("no-consul", without, site(), |tree| {
        lay(tree, "no-consul", &[]);
        put(tree, "/root/mine.yaml", OWN);
        put(tree, "/root/from-url.yaml", from_url(&sum(&package()), &sum(&envoy())));
        for name in ["consul", "service", "enmesh"] {
            put(tree, &format!("/root/{name}.yaml"), part(&format!("cloud-init/{name}.yaml")));
        }
        let script = format!("cd /root\n{together}\n");
        run("chroot", &[tree.to_str().expect("text"), "/bin/sh", "-e", "-c", &script], b"");
        let made = fs::read_to_string(tree.join("root/user-data")).expect("the page's command makes it");
        lay_user_data(tree, "no-consul", &made);
    });
    let said = log(&machine);
    println!("{}{said}", status(&machine));
    page.leave_out("cloud-init status", "the test above has a machine that joined");
    page.next("cloud-init status").run(&machine, "root");
    assert_the_package_is_installed(&machine);
    assert!(machine.path("/usr/local/bin/envoy").exists());
    // Why, and what to do; and the rest of the boot went on.
    assert!(said.contains("ENM-X030") && said.contains("ENM-K"), "{said}");
    assert!(machine.path("/run/own-command-ran").exists());
    let closed = machine.status();
    assert_ne!(closed["services"]["api"]["phase"], "live");
    assert!(machine.rules().is_some(), "what belongs into the mesh is refused meanwhile");

    give_consul(&machine);
    machine.until_ready();
    machine.must(&[SCRIPT]);
}

/// A Consul server of the machine's own.
fn give_consul(machine: &Machine) {
    fs::copy(crate::lab::cluster::consul_program(), machine.path("/usr/bin/consul"))
        .expect("room for Consul");
    let agent = CONSUL.rsplit_once("content: |\n").expect("it has a content").1.trim();
    machine.write_file("/etc/consul.d/agent.json", agent.as_bytes(), 0o644);
    machine.must(&["systemctl", "restart", "consul.service"]);
}

#[test]
fn what_has_another_checksum_is_not_installed() {
    let [ours, legacy] = ["enmesh", "legacy-service"].map(|name| part(&format!("cloud-init/{name}.yaml")));
    let other = "0123456789abcdef".repeat(4);
    let parts = [from_url(&other, &sum(&envoy())), ours, legacy, CONSUL.to_owned(), OWN_LATER.to_owned()];
    let failing = Setting { fails: true, without_envoy: true, ..setting() };
    let (_switch, machine) = boot("checksum", failing, site(), |tree| lay(tree, "checksum", &parts));
    let (said, status) = (log(&machine), status(&machine));
    println!("{status}{said}");
    assert!(status.contains("status: error") && status.contains("50-enmesh"), "{status}");
    let name = package().file_name().and_then(|name| name.to_str()).expect("text").to_owned();
    let told = format!("FAILED: {HERE}{name} has another checksum than the one given; it was not used");
    assert!(said.contains(&told), "{said}");
    assert!(!machine.run(&["dpkg-query", "--show", "enmesh"]).status.success());
    assert!(machine.path("/run/own-later-command-ran").exists(), "the rest of the boot went on");

    let settings = machine.must(&["cat", "/etc/enmesh/first-boot.env"]);
    let right = settings.replace(&other, &sum(&package())).replace("=3s", "=60s");
    machine.write_file("/etc/enmesh/first-boot.env", right.as_bytes(), 0o644);
    machine.must(&[SCRIPT]);
    assert_the_package_is_installed(&machine);
    assert_eq!(machine.status()["services"]["api"]["phase"], "live");
}
