//! The pages that lead somebody into the mesh: every command that they have is run, in their order, on a machine as they
//! presuppose it.

use std::fs;
use std::path::Path;

use super::page::{Page, Step};
use super::seed::{lay, repository, setting};
use super::site::{package, run};
use crate::lab::cluster::{PATIENCE, eventually};
use crate::machine::{Machine, Setting, envoy, put};
use crate::tree::Kind;

/// Whoever has it may do anything in the Consul of the tests.
const MANAGEMENT: &str = "6d1b9f4e-0c52-4ad3-9a51-2f7a6a1e0001";
/// Who reads a page answers yes.
const YES: (&str, &str) = ("/etc/apt/apt.conf.d/90yes", "APT::Get::Assume-Yes \"true\";\n");

/// A server of the machine's own.
fn consul(machine: &Machine, more: &str) {
    let agent = format!(
        "{{\"server\": true, \"bootstrap_expect\": 1, \"bind_addr\": \"10.77.0.2\", \"data_dir\": \"/var/lib/consul\", \
         \"ports\": {{\"grpc\": 8502}}, \"connect\": {{\"enabled\": true}}, \"performance\": {{\"raft_multiplier\": 1}}{more}}}"
    );
    machine.write_file("/etc/consul.d/agent.json", agent.as_bytes(), 0o644);
    machine.must(&["systemctl", "enable", "--now", "consul.service"]);
    eventually("a leader", PATIENCE, || {
        let said = machine.run(&["curl", "--silent", "http://127.0.0.1:8500/v1/status/leader"]);
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        if said.contains(':') { Ok(()) } else { Err(said) }
    });
}

/// Runs a step until it says what its page shows.
fn until_shown(machine: &Machine, step: &Step, user: &str, command: &str) {
    eventually(command, PATIENCE, || {
        let said = machine.run(&["runuser", "-u", user, "--", "sh", "-c", command]);
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        if step.shows(&said) { Ok(()) } else { Err(said) }
    });
}

#[test]
fn a_package_leads_to_the_first_request_and_goes_again() {
    let without = Setting { without_enmesh: true, without_envoy: true, ..setting() };
    let package = package();
    let name = package.file_name().expect("a name").to_str().expect("text").to_owned();
    let machine = Machine::boot_in("install", without, |tree| {
        lay(tree, "install", &[]);
        // Its packages bring what people read.
        let _ = fs::remove_dir_all(tree.join("etc/dpkg/dpkg.cfg.d"));
        put(tree, YES.0, YES.1);
        put(tree, &format!("/root/{name}"), fs::read(&package).expect("a package"));
    });
    fs::copy(envoy(), machine.path("/root/envoy-1.40.0-linux-x86_64")).expect("room for Envoy");

    let mut page = Page::read("docs/install.md");
    page.next("install -m 755").run(&machine, "root");
    let install = page.next("apt install").steps().remove(0);
    install.run(&machine, "root");
    assert!(machine.rules().is_none(), "a host without services is left as it is");
    page.leave_out("dnf install", "the next test has a machine with it");
    for first in ["printf", "printf", "enmesh doctor"] {
        page.next(first).run(&machine, "root");
    }
    let mut steps = page.next("mkdir").steps();
    let request = steps.pop().expect("a request");
    steps.iter().for_each(|step| drop(step.run(&machine, "root")));
    // The application has just been started.
    until_shown(&machine, &request, "root", &request.command);
    page.next("enmesh explain").run(&machine, "root");
    page.next("apt remove").run(&machine, "root");
    assert!(machine.rules().is_none());
    assert!(!machine.path("/var/lib/enmesh").exists());

    // The other mesh, of which the README tells: with Consul.
    for gone in ["enmesh.toml", "peers.toml"] {
        machine.must(&["rm", &format!("/etc/enmesh/{gone}")]);
    }
    install.run(&machine, "root");
    with_consul(&machine);
}

fn with_consul(machine: &Machine) {
    let acl = format!(
        ", \"primary_datacenter\": \"dc1\", \"acl\": {{\"enabled\": true, \"default_policy\": \"deny\", \
         \"tokens\": {{\"master\": \"{MANAGEMENT}\", \"agent\": \"{MANAGEMENT}\"}}}}"
    );
    consul(machine, &acl);
    let mut readme = Page::read("README.md");
    let with_right = |step: &Step, command: &str| {
        step.run_as(machine, "root", &format!("export CONSUL_HTTP_TOKEN={MANAGEMENT}\n{command}"))
    };
    for step in readme.next("consul acl token create").steps() {
        // Both services are on this host.
        let both = "-service-identity api -service-identity web";
        with_right(&step, &step.command.replace("-service-identity api", both));
    }
    let mut steps = readme.next("consul intention create").steps();
    let request = steps.pop().expect("a request");
    for step in steps {
        with_right(&step, &step.command);
    }
    until_shown(machine, &request, "web", &request.command);
    readme.leave_out("enmesh status", "a lab has the host that it is about");
    Page::read("docs/namespaces.md").next("install -D").run(machine, "root");
    machine.until_ready();
}

/// Packer is told of another disk than Debian's, which it would fetch for a look at its checksum.
#[test]
fn packer_finds_the_template_of_the_image_valid() {
    let mut page = Page::read("docs/image.md");
    page.leave_out("make image", "the level vm makes it, and boots it");
    let mut steps = page.next("make image-seat").steps().into_iter();
    let (seat, validate, build) = (steps.next(), steps.next(), steps.next());
    assert!(seat.is_some(), "this level has run it before its tests");
    assert!(build.is_some_and(|step| step.command.starts_with("packer build")), "the level vm runs it");
    let here = format!("--chdir={}", repository().display());
    let elsewhere =
        ["CHECKPOINT_DISABLE=1", "PKR_VAR_image=target/image/seat/enmesh.deb", "PKR_VAR_checksum=none"];
    let shell = ["sh", "-c", &validate.expect("a command").command];
    run("env", &[&[&here[..]], &elsewhere[..], &shell[..]].concat(), b"");
}

/// What a Fedora has in its database of packages, and this Debian in its own.
const STAND_IN: &str = "name: stand-in-of-a-fedora\narch: noarch\nversion: 1.0.0\nmaintainer: test <test@localhost>\n\
    description: what enmesh depends on\nprovides: [\"systemd = 255\", nftables, dbus, /bin/sh]\n";

#[test]
fn dnf_installs_the_package() {
    let setting = Setting { without_enmesh: true, tree: Kind::Rpm, ..Setting::default() };
    let folder = tempfile::tempdir().expect("a folder can be made");
    let path = |name: &str| folder.path().join(name).to_str().expect("text").to_owned();
    fs::write(path("nfpm.yaml"), STAND_IN).expect("room");
    let nfpm = repository().join("target/tools/nfpm");
    let make =
        ["package", "--packager", "rpm", "--config", &path("nfpm.yaml"), "--target", &path("stand-in.rpm")];
    run(nfpm.to_str().expect("text"), &make, b"");
    let (package, inside) = crate::install::package("target/packages", "rpm");
    let machine = Machine::boot_in("dnf", setting, |tree| {
        put(tree, "/root/stand-in.rpm", fs::read(path("stand-in.rpm")).expect("it was made"));
        put(tree, &inside, fs::read(package).expect("a package"));
        put(tree, "/etc/dnf/dnf.conf", "[main]\nassumeyes=True\n");
    });
    machine.must(&["rpm", "--force-debian", "--install", "/root/stand-in.rpm"]);
    Page::read("docs/install.md").run_only("dnf install", &machine);
    assert_eq!(machine.property("enmesh.service", "ActiveState"), "active");
    assert_eq!(machine.property("enmesh-early.service", "UnitFileState"), "enabled");
}

/// What scripts of the field leave behind them: the rules of `consul connect redirect-traffic` of the time of iptables,
/// and a unit with a sidecar that sets them and flushes them.
const OLD_RULES: &str = "*nat\n:CONSUL_PROXY_INBOUND - [0:0]\n:CONSUL_PROXY_IN_REDIRECT - [0:0]\n\
    :CONSUL_PROXY_OUTPUT - [0:0]\n:CONSUL_PROXY_REDIRECT - [0:0]\n\
    -A PREROUTING -p tcp -j CONSUL_PROXY_INBOUND\n-A OUTPUT -p tcp -j CONSUL_PROXY_OUTPUT\n\
    -A CONSUL_PROXY_INBOUND -p tcp --dport 22 -j RETURN\n-A CONSUL_PROXY_INBOUND -p tcp -j CONSUL_PROXY_IN_REDIRECT\n\
    -A CONSUL_PROXY_IN_REDIRECT -p tcp -j REDIRECT --to-port 20000\n\
    -A CONSUL_PROXY_OUTPUT -m owner --uid-owner envoy -j RETURN\n\
    -A CONSUL_PROXY_OUTPUT -m owner --uid-owner consul -j RETURN\n\
    -A CONSUL_PROXY_OUTPUT -d 127.0.0.1/32 -j RETURN\n-A CONSUL_PROXY_OUTPUT -j CONSUL_PROXY_REDIRECT\n\
    -A CONSUL_PROXY_REDIRECT -p tcp -j REDIRECT --to-port 15001\nCOMMIT\n";
const OLD_UNIT: &str = "[Service]\nExecStartPre=/usr/local/bin/consul-redirect-traffic %i\n\
    ExecStart=/usr/bin/sleep infinity\nExecStopPost=/usr/local/bin/consul-cleanup-iptables\n";
/// The same of Istio.
const ISTIO_RULES: &str = "*nat\n:ISTIO_OUTPUT - [0:0]\n:ISTIO_REDIRECT - [0:0]\n-A OUTPUT -p tcp -j ISTIO_OUTPUT\n\
    -A ISTIO_OUTPUT -m owner --uid-owner 1337 -j RETURN\n-A ISTIO_OUTPUT -d 127.0.0.1/32 -j RETURN\n\
    -A ISTIO_OUTPUT -j ISTIO_REDIRECT\n-A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001\nCOMMIT\n";
/// Rules of a container engine, which nobody may touch.
const DOCKER: &str = "*nat\n:DOCKER - [0:0]\n-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER\n\
    -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE\nCOMMIT\n";
const LEGACY: &str = "tests/vectors/legacy-annotations/01-server/service-config.json";

/// A host that scripts have set up: their service file, their unit, which runs, and their rules.
fn old_host(tree: &Path) {
    lay(tree, "old-host", &[]);
    put(tree, "/srv/consul/service-config.json", fs::read(repository().join(LEGACY)).expect("a vector"));
    put(tree, "/etc/systemd/system/envoy@.service", OLD_UNIT);
    put(tree, "/etc/systemd/system/istio.service", "[Service]\nExecStart=/usr/bin/sleep infinity\n");
    put(tree, "/root/old.rules", OLD_RULES);
    put(tree, "/root/istio.rules", ISTIO_RULES);
    put(tree, "/root/docker.rules", DOCKER);
    let set = "#!/bin/sh\nexec iptables-restore --noflush /root/old.rules\n";
    let flush = "#!/bin/sh\nexec iptables -t nat -F\n";
    for (name, script) in [("consul-redirect-traffic", set), ("consul-cleanup-iptables", flush)] {
        let path = format!("/usr/local/bin/{name}");
        put(tree, &path, script);
        let file = tree.join(path.trim_start_matches('/'));
        run("chmod", &["755", file.to_str().expect("text")], b"");
    }
}

/// Rules of iptables, without what counts packets and without chains of the kernel's own.
fn iptables(machine: &Machine) -> String {
    let saved = machine.must(&["iptables-save", "-t", "nat"]);
    let own = |line: &&str| line.starts_with("-A ") || (line.starts_with(':') && line.contains(" - "));
    saved
        .lines()
        .filter(own)
        .map(|line| line.split(" [").next().unwrap_or_default())
        .collect::<Vec<_>>()
        .join("\n")
}

/// Takes everything of enmesh away again, for the next page.
fn begin_again(machine: &Machine, service: &str) {
    machine.must(&["systemctl", "disable", "--now", "enmesh.service"]);
    machine.must(&["enmesh", "down"]);
    machine.must(&["rm", "-rf", service, "/var/lib/enmesh"]);
    assert!(machine.rules().is_none());
}

#[test]
fn whoever_comes_from_elsewhere_gets_into_the_mesh() {
    let machine = Machine::boot_in("old-host", setting(), old_host);
    consul(&machine, "");
    machine.must(&["iptables-restore", "--noflush", "/root/docker.rules"]);
    let others = iptables(&machine);

    machine.must(&["systemctl", "start", "envoy@counting.service"]);
    assert!(iptables(&machine).contains("CONSUL_PROXY_OUTPUT"));
    let mut page = Page::read("docs/coming-from-the-scripts.md");
    page.next("enmesh check").run(&machine, "root");
    assert_eq!(iptables(&machine), others, "theirs went, and nobody else's");
    assert_eq!(machine.status()["services"]["counting"]["phase"], "live");
    begin_again(&machine, "/srv/consul/service-config.json");

    machine.must(&["/usr/local/bin/consul-redirect-traffic"]);
    let mut page = Page::read("docs/coming-from-redirect-traffic.md");
    page.next("enmesh connect redirect-traffic").run(&machine, "daemon");
    page.next("enmesh connect redirect-traffic").run(&machine, "root");
    assert_eq!(iptables(&machine), others);
    assert!(machine.rules().is_some_and(|rules| rules.contains("20000")));
    page.next("enmesh redirect-traffic --remove").run(&machine, "root");
    assert!(machine.rules().is_none());
    machine.must(&["/usr/local/bin/consul-redirect-traffic"]);
    page.next("printf").run(&machine, "root");
    assert_eq!(iptables(&machine), others);
    assert_eq!(machine.status()["services"]["web"]["phase"], "live");
    begin_again(&machine, "/etc/enmesh/services/web.toml");

    machine.must(&["iptables-restore", "--noflush", "/root/istio.rules"]);
    machine.must(&["systemctl", "start", "istio.service"]);
    let api = "{\"service\": {\"name\": \"api\", \"port\": 80, \"connect\": {\"sidecar_service\": {}}}}";
    machine.write_file("/root/api.json", api.as_bytes(), 0o644);
    machine.must(&["consul", "services", "register", "/root/api.json"]);
    let mut page = Page::read("docs/coming-from-other-meshes.md");
    page.next("printf").run(&machine, "root");
    assert_eq!(iptables(&machine), others);
    assert_eq!(machine.status()["services"]["shop"]["phase"], "live");
}
