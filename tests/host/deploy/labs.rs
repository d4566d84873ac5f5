//! The Vagrant labs, from the same `lab.json` that their Vagrantfiles read: each machine boots with its parts, and the
//! page of the lab comes out of the mesh. What a part installs from elsewhere is there from the start.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::Command;
use std::thread;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use super::seed::{lay, repository, setting};
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
}

/// A lab that is up. What ends first stands first.
struct Lab {
    machines: Vec<(String, Machine)>,
    page: SocketAddr,
    switch: Switch,
}

impl Lab {
    fn boot(name: &str) -> Lab {
        let folder = repository().join("vagrant").join(name);
        let text = fs::read_to_string(folder.join("lab.json")).expect("a lab has a list of its machines");
        let spec: Spec = serde_json::from_str(&text).expect("it is one");
        assert_eq!(spec.machines.len(), 3);
        let switch = Switch::make_at(READER.into());
        let boot = |machine: &MachineSpec| {
            let read = |part: &String| {
                fs::read_to_string(folder.join(part)).unwrap_or_else(|e| panic!("{part}: {e}"))
            };
            let parts: Vec<String> = machine.parts.iter().map(read).collect();
            let outlet = Outlet::Switch(switch.port(&machine.name, machine.address));
            let setting = Setting { outlet, ..setting() };
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
        let lab = Lab { machines, page, switch };
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
    fn page(&self) -> Result<Value, String> {
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
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        serde_json::from_str(body).map_err(|_| format!("no page: {answer}"))
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

    /// An intention that says no ends the page, so what is shown came through the mesh.
    fn until_denied(&self, from: &str, to: &str) {
        self.machine("server").must(&["consul", "intention", "create", "-deny", from, to]);
        eventually("a page that is denied", PATIENCE, || {
            let page = self.page()?;
            if page.to_string().contains("error") { Ok(()) } else { Err(page.to_string()) }
        });
    }
}

#[test]
fn the_lab_cloud_init_injection_shows_its_page() {
    let lab = Lab::boot("cloud-init-injection");
    println!("{}", lab.until_page(&["dashboard", "counting"]));
    lab.until_denied("dashboard", "counting");
}

#[test]
fn the_lab_prebuilt_image_shows_its_page() {
    let lab = Lab::boot("prebuilt-image");
    println!("{}", lab.until_page(&["dashboard", "counting"]));
}

#[test]
fn the_lab_multi_service_shows_its_page() {
    let lab = Lab::boot("multi-service");
    println!("{}", lab.until_page(&["dashboard", "front", "counting"]));
    let services = lab.machine("shop").status()["services"].as_object().expect("services").len();
    assert_eq!(services, 2);
    lab.until_denied("front", "counting");
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

/// By Vagrant itself, without a provider.
#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "a tool of the tests with a folder and an environment of its own"
)]
fn vagrant_takes_every_lab() {
    let home = repository().join("target/vagrant-home");
    let validate = |lab: &str| {
        let mut command = Command::new("vagrant");
        command.args(["validate", "--ignore-provider"]).current_dir(repository().join("vagrant").join(lab));
        command.env("VAGRANT_HOME", &home).env("VAGRANT_EXPERIMENTAL", "cloud_init,disks");
        command.env("VAGRANT_CHECKPOINT_DISABLE", "1");
        let said = command.output().expect("install the package `vagrant`");
        (
            said.status.success(),
            format!("{}{}", String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr)),
        )
    };
    for lab in ["cloud-init-injection", "prebuilt-image", "multi-service", "multi-datacenter"] {
        let (valid, said) = validate(lab);
        assert!(valid && said.contains("validated successfully"), "{lab}: {said}");
    }
}
