//! Around the labs: what serves the package and Envoy to their machines, the box of the prebuilt one, and Vagrant itself,
//! as far as it goes without a provider.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::page::Page;
use super::seed::repository;
use super::site::run;
use crate::lab::cluster::eventually;
use crate::machine::tool;
use crate::switch::Switch;

const LIMIT: Duration = Duration::from_secs(30);
const PORT: u16 = 8137;

fn settings() -> PathBuf {
    repository().join("vagrant/packages.env")
}

/// `vagrant/serve`, in a network namespace; ends with the value, which puts back the settings that were there before.
pub struct Served {
    child: Child,
    before: Option<Vec<u8>>,
    _alone: MutexGuard<'static, ()>,
}

/// There is one file of settings, so one serves at a time.
static ALONE: Mutex<()> = Mutex::new(());

impl Served {
    #[expect(clippy::disallowed_methods, reason = "it serves beside the test until its end")]
    pub fn start(namespace: &str, address: &str) -> Served {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let before = fs::read(settings()).ok();
        let _ = fs::remove_file(settings());
        let mut command = Command::new(tool("nsenter"));
        command.arg(format!("--net=/run/netns/{namespace}")).arg(repository().join("vagrant/serve"));
        if !address.is_empty() {
            command.arg(address);
        }
        let said = fs::File::create(repository().join("target/serve.log")).expect("target can be written");
        let child = command.stdin(Stdio::null()).stdout(said).spawn().expect("nsenter runs");
        let served = Served { child, before, _alone: alone };
        let namespace = enmesh::netns::Namespace::by_name(namespace).expect("it is there");
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, PORT));
        eventually("somebody who serves", LIMIT, || {
            let dialled = namespace.run(|| TcpStream::connect_timeout(&to, Duration::from_secs(1)));
            dialled.expect("the namespace is there").map(drop).map_err(|e| e.to_string())
        });
        served
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = match &self.before {
            Some(before) => fs::write(settings(), before),
            None => fs::remove_file(settings()),
        };
    }
}

/// What the Vagrantfiles make of what is served.
pub fn first_boot() -> String {
    let lab = repository().join("vagrant/lab.rb");
    let script = "require ARGV[0]; print Lab.first_boot(File.read(Lab::PACKAGES))";
    run("ruby", &["-e", script, lab.to_str().expect("text")], b"")
}

/// Vagrant in a folder of this repository, with a home of its own.
fn vagrant(folder: &str, experimental: &str, arguments: &[&str]) -> (bool, String) {
    let env = |key: &str, value: &str| format!("{key}={value}");
    let home = repository().join("target/vagrant-home");
    let folder = repository().join(folder);
    let settings = [
        format!("--chdir={}", folder.display()),
        env("VAGRANT_HOME", home.to_str().expect("text")),
        env("HOME", home.to_str().expect("text")),
        env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
        env("LC_ALL", "C.UTF-8"),
        env("VAGRANT_EXPERIMENTAL", experimental),
        env("VAGRANT_CHECKPOINT_DISABLE", "1"),
        env("VAGRANT_NO_COLOR", "1"),
    ];
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let all = [&settings[..], &["vagrant"], arguments].concat();
    let output = enmesh::base::exec::run(&tool("env"), &all, b"", LIMIT * 4).expect("it runs");
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), output.stderr);
    // As a terminal shows a line that was begun anew.
    let shown = said.lines().map(|line| line.rsplit("\u{1b}[K").next().unwrap_or_default());
    (output.status.success(), shown.collect::<Vec<_>>().join("\n"))
}

#[test]
fn what_is_served_has_the_checksums_that_are_said() {
    let switch = Switch::make();
    let mut readme = Page::read("vagrant/README.md");
    let steps = readme.next("make packages").steps();
    let served = Served::start(&switch.name, "");
    let log = repository().join("target/serve.log");
    eventually("its word", LIMIT, || {
        let said = fs::read_to_string(&log).unwrap_or_default();
        let first = said.lines().next().unwrap_or_default();
        if steps[1].shows(first) { Ok(()) } else { Err(said) }
    });
    let text = fs::read_to_string(settings()).expect("settings");
    let value = |key: &str| {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(key))
            .unwrap_or_else(|| panic!("no {key}: {text}"));
        line.to_owned()
    };
    for name in ["ENMESH", "ENVOY"] {
        let (url, sum) = (value(&format!("{name}_URL=")), value(&format!("{name}_SHA256=")));
        let here = url.replace("http://10.0.2.2:", "http://127.0.0.1:");
        assert_ne!(here, url, "machines of VirtualBox reach it there");
        let fetch = "import hashlib, sys, urllib.request as r; print(hashlib.sha256(r.urlopen(sys.argv[1]).read()).hexdigest())";
        let net = format!("--net=/run/netns/{}", switch.name);
        assert_eq!(run("nsenter", &[&net, "python3", "-c", fetch, &here], b"").trim(), sum, "{url}");
    }
    drop(served);
    // A box of a small disk that stands in for the one of `make image`.
    let folder = tempfile::tempdir().expect("a folder can be made");
    let path = |name: &str| folder.path().join(name).to_str().expect("text").to_owned();
    let (raw, disk, file) = (path("disk.raw"), path("disk.qcow2"), path("enmesh.box"));
    fs::write(&raw, (0..8 << 20).map(|at: u32| (at >> 9) as u8).collect::<Vec<u8>>()).expect("room");
    run("qemu-img", &["convert", "-O", "qcow2", &raw, &disk], b"");
    let script = repository().join("vagrant/box");
    run(script.to_str().expect("text"), &[&disk, &file], b"");
    let steps = readme.next("make image").steps();
    let _ = fs::remove_dir_all(repository().join("target/vagrant-home/boxes"));
    let (added, said) = vagrant("vagrant", "", &["box", "add", "--name", "enmesh/prebuilt", &file]);
    assert!(added && steps[2].shows(&said), "{said}");
    let boxes = repository().join("target/vagrant-home/boxes/enmesh-VAGRANTSLASH-prebuilt/0/virtualbox");
    let inside = |name: &str| boxes.join(name).to_str().expect("text").to_owned();
    run("qemu-img", &["compare", &disk, &inside("disk.vmdk")], b"");
    let read = "import sys, xml.dom.minidom as x; d = x.parse(sys.argv[1]); print(d.getElementsByTagName('File')[0].getAttribute('ovf:href'), d.getElementsByTagName('Disk')[0].getAttribute('ovf:capacity'))";
    assert_eq!(
        run("python3", &["-c", read, &inside("box.ovf")], b"").trim(),
        format!("disk.vmdk {}", 8 << 20)
    );
}

/// By Vagrant itself, without a provider.
#[test]
fn vagrant_takes_every_lab() {
    for lab in ["cloud-init-injection", "prebuilt-image", "multi-service", "multi-datacenter"] {
        let folder = format!("vagrant/{lab}");
        let (valid, said) = vagrant(&folder, "cloud_init,disks", &["validate", "--ignore-provider"]);
        assert!(valid && said.contains("validated successfully"), "{lab}: {said}");
    }
}
