//! The Vagrant labs, from the same `lab.json` that their Vagrantfiles read: each machine boots with its parts, and the
//! page of the lab comes out of the mesh. What a part installs from elsewhere is there from the start, but for the lab of
//! machines that install everything: these fetch the package and Envoy from `vagrant/serve`. What a lab's README shows is
//! what its machines say.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use super::page::{Page, Step};
use super::seed::{lay, repository, setting};
use super::serve::{self, Served};
use crate::cable::Outlet;
use crate::lab::cluster::eventually;
use crate::machine::{Machine, Setting};
use crate::switch::Switch;

/// Who sits at the machine that Vagrant runs on.
const READER: Ipv4Addr = Ipv4Addr::new(192, 168, 56, 1);
/// How long what happens by itself may take.
const PATIENCE: Duration = Duration::from_secs(40);

#[derive(Deserialize)]
struct Spec {
    machines: Vec<MachineSpec>,
    page: String,
}

#[derive(Deserialize)]
struct MachineSpec {
    name: String,
    address: Ipv4Addr,
    parts: Vec<String>,
    #[serde(default)]
    fetches: bool,
}

/// A lab that is up. What ends first stands first.
struct Lab {
    machines: Vec<(String, Machine)>,
    page: SocketAddr,
    _served: Option<Served>,
    switch: Switch,
}

impl Lab {
    fn boot(name: &str) -> Lab {
        Lab::boot_from(name, false)
    }

    /// The same; with `fetches`, machines have of enmesh and Envoy only what they fetch.
    fn boot_from(name: &str, fetches: bool) -> Lab {
        let folder = repository().join("vagrant").join(name);
        let text = fs::read_to_string(folder.join("lab.json")).expect("a lab has a list of its machines");
        let spec: Spec = serde_json::from_str(&text).expect("it is one");
        assert_eq!(spec.machines.len(), 3);
        let switch = Switch::make_at(READER.into());
        let served = fetches.then(|| Served::start(&switch.name, &READER.to_string()));
        let settings = served.as_ref().map(|_| serve::first_boot());
        let boot = |machine: &MachineSpec| {
            let read = |part: &String| {
                fs::read_to_string(folder.join(part)).unwrap_or_else(|e| panic!("{part}: {e}"))
            };
            let mut parts: Vec<String> = machine.parts.iter().map(read).collect();
            let without = fetches && machine.fetches;
            parts.extend(settings.clone().filter(|_| without));
            let outlet = Outlet::Switch(switch.port(&machine.name, machine.address));
            let setting = Setting { outlet, without_enmesh: without, without_envoy: without, ..setting() };
            Machine::boot_in(&format!("{name}-{}", machine.name), setting, |tree| {
                lay(tree, &machine.name, &parts)
            })
        };
        let machines = thread::scope(|scope| {
            let booting: Vec<_> = spec.machines.iter().map(|machine| scope.spawn(|| boot(machine))).collect();
            let booted = booting
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|e| std::panic::resume_unwind(e)));
            spec.machines.iter().map(|machine| machine.name.clone()).zip(booted).collect()
        });
        let page = spec
            .page
            .trim_start_matches("http://")
            .trim_end_matches('/')
            .parse()
            .expect("an address and a port");
        let lab = Lab { machines, page, _served: served, switch };
        for (name, machine) in &lab.machines {
            let said = String::from_utf8_lossy(&machine.run(&["cloud-init", "status", "--long"]).stdout)
                .into_owned();
            assert!(said.contains("status: done"), "{name}: {said}");
        }
        lab
    }

    fn machine(&self, name: &str) -> &Machine {
        &self.machines.iter().find(|(machine, _)| machine == name).expect("the lab has it").1
    }

    /// The page, as the reader's browser gets it.
    fn body(&self) -> Result<String, String> {
        let ask = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect_timeout(&self.page, Duration::from_secs(2))?;
            stream.set_read_timeout(Some(Duration::from_secs(8)))?;
            stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        let answer =
            self.switch.namespace.run(ask).expect("the namespace is there").map_err(|e| e.to_string())?;
        Ok(answer.split_once("\r\n\r\n").map_or("", |(_, body)| body).to_owned())
    }

    fn page(&self) -> Result<Value, String> {
        let body = self.body()?;
        serde_json::from_str(&body).map_err(|_| format!("no page: {body}"))
    }

    /// What the lab's README has its reader type, and what it says comes out.
    fn read_along(&self, page: &str) {
        let mut readme = Page::read(page);
        readme.leave_out("export VAGRANT_EXPERIMENTAL", "there is no VirtualBox here");
        while let Some(block) = readme.next_if_any() {
            block.steps().iter().for_each(|step| self.type_in(step));
        }
    }

    fn type_in(&self, step: &Step) {
        if step.command.starts_with("curl ") {
            let shown = || self.body().and_then(|body| if step.shows(&body) { Ok(()) } else { Err(body) });
            return eventually(&step.command, PATIENCE, shown);
        }
        let typed = step.command.strip_prefix("vagrant ssh ").and_then(|rest| rest.split_once(" -c '"));
        let (machine, command) = typed.unwrap_or_else(|| panic!("who types {}?", step.command));
        // Whoever comes in from outside is root.
        let command = command.trim_end_matches('\'').replace("sudo ", "");
        step.run_as(self.machine(machine), "root", &command);
    }

    /// The page once it shows this chain of services.
    fn until_page(&self, chain: &[&str]) -> Value {
        eventually("the page", PATIENCE, || {
            let page = self.page()?;
            let mut at = &page;
            for service in chain {
                if at["service"] != *service {
                    return Err(page.to_string());
                }
                at = &at["upstream"];
            }
            Ok(page)
        })
    }
}

#[test]
fn the_lab_cloud_init_injection_shows_its_page() {
    let lab = Lab::boot_from("cloud-init-injection", true);
    println!("{}", lab.until_page(&["dashboard", "counting"]));
    for machine in ["counting", "dashboard"] {
        let version =
            lab.machine(machine).must(&["dpkg-query", "--show", "--showformat=${Version}", "enmesh"]);
        assert_eq!(version, format!("{}-1", env!("CARGO_PKG_VERSION")), "{machine} has fetched the package");
    }
    // An intention that says no ends the page, so what was shown came through the mesh.
    lab.read_along("vagrant/cloud-init-injection/README.md");
    Page::read("README.md").run_only("enmesh status", lab.machine("counting"));
}

#[test]
fn the_lab_prebuilt_image_shows_its_page() {
    let lab = Lab::boot("prebuilt-image");
    println!("{}", lab.until_page(&["dashboard", "counting"]));
    let key = lab.machine("counting").must(&["cat", "/home/vagrant/.ssh/authorized_keys"]);
    assert!(key.contains("vagrant insecure public key"), "Vagrant gets in: {key}");
    lab.read_along("vagrant/prebuilt-image/README.md");
}

#[test]
fn the_lab_multi_service_shows_its_page() {
    let lab = Lab::boot("multi-service");
    println!("{}", lab.until_page(&["dashboard", "front", "counting"]));
    let services = lab.machine("shop").status()["services"].as_object().expect("services").len();
    assert_eq!(services, 2);
    lab.read_along("vagrant/multi-service/README.md");
}

/// The Consul of the tests has no xDS, without which nobody reaches another datacenter: its machines, the one CA and the
/// registrations are what is held here.
#[test]
fn the_lab_multi_datacenter_joins_two_datacenters() {
    let lab = Lab::boot("multi-datacenter");
    let dashboard = lab.machine("dashboard");
    eventually("dc2 seen from dc1", PATIENCE, || {
        let said = dashboard.run(&["consul", "catalog", "services", "-datacenter", "dc2"]);
        let services = String::from_utf8_lossy(&said.stdout).into_owned();
        if services.contains("counting-sidecar-proxy") { Ok(()) } else { Err(services + &said.stderr) }
    });
    assert_eq!(lab.page().expect("a page")["service"], "dashboard");
    lab.read_along("vagrant/multi-datacenter/README.md");
    let registration = dashboard.must(&["enmesh", "render", "registration", "--json"]);
    assert!(registration.contains("\"dc2\""), "{registration}");
    let roots = |name: &str| {
        let get = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:8500/v1/connect/ca/roots').read().decode())";
        let said = lab.machine(name).must(&["python3", "-c", get]);
        serde_json::from_str::<Value>(&said).expect("JSON")["TrustDomain"].clone()
    };
    assert_eq!(roots("counting"), roots("dashboard"), "one mesh");
    assert_ne!(roots("counting"), json!(""));
}
