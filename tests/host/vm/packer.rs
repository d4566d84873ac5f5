//! The image as Packer makes it, by the template and the script that others use: in a machine that boots from a disk, is set
//! up over SSH, and is switched off. It begins with the stock disk of these tests, since Debian's own is not to be had
//! without a network; there is none for it to reach.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use enmesh::base::exec;

use crate::deploy::seed::repository;
use crate::machine::{IN_GROUP, claim, clear_away, pull_the_plug, tool, unified};
use crate::switch::Switch;

/// Without acceleration.
const LIMIT: Duration = Duration::from_secs(600);
/// Where the root file system of that disk begins, in bytes: see `image/make`.
const ROOT: u64 = 129 << 20;

/// Where it works; ends with the value, and whatever runs in it.
struct Bench {
    name: String,
    folder: PathBuf,
    group: PathBuf,
    switch: Switch,
}

impl Bench {
    fn new() -> Bench {
        let (name, folder) = claim("packer");
        let group = unified().join(&name);
        fs::create_dir(&group).expect("a control group can be made");
        Bench { name, folder, group, switch: Switch::make() }
    }

    /// Packer's own output, if it succeeds.
    fn build(&self) -> String {
        let image = repository().join("target/image/stock.qcow2");
        assert!(image.is_file(), "no {}: make images-for-tests", image.display());
        let net = format!("--net=/run/netns/{}", self.switch.name);
        let here = format!("--chdir={}", repository().display());
        let home = self.folder.display();
        let variables = [
            format!("HOME={home}"),
            format!("PACKER_CACHE_DIR={home}/cache"),
            "PATH=/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
            "CHECKPOINT_DISABLE=1".to_owned(),
            format!("PKR_VAR_image={}", image.display()),
            "PKR_VAR_checksum=none".to_owned(),
            "PKR_VAR_qemuargs=[[\"-bios\", \"/usr/share/ovmf/OVMF.fd\"]]".to_owned(),
            "PKR_VAR_accelerator=tcg".to_owned(),
        ];
        let mut arguments = vec!["-c", IN_GROUP, "sh", self.group.to_str().expect("text"), "nsenter", &net];
        arguments.extend(["env", &here]);
        arguments.extend(variables.iter().map(String::as_str));
        arguments.extend(["packer", "build", "-force", "image/enmesh.pkr.hcl"]);
        let output = exec::run(&tool("sh"), &arguments, b"", LIMIT).expect("it ends by itself");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{said}{}", output.stderr);
        said
    }

    /// A disk's root, for whoever looks into it without mounting it.
    fn raw(&self, disk: &Path) -> Tree {
        let raw = self.folder.join("raw");
        let arguments = ["convert", "-O", "raw", disk.to_str().expect("text"), raw.to_str().expect("text")];
        let output = exec::run(&tool("qemu-img"), &arguments, b"", LIMIT).expect("it ends");
        assert!(output.status.success(), "{}", output.stderr);
        Tree(format!("{}?offset={ROOT}", raw.display()))
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        pull_the_plug(&self.group);
        clear_away(&self.name, &self.folder);
    }
}

/// A file system of which nothing is mounted.
struct Tree(String);

impl Tree {
    /// What debugfs says of a file, or prints of it.
    fn ask(&self, request: &str) -> String {
        let output = exec::run(&tool("debugfs"), &["-R", request, &self.0], b"", LIMIT).expect("it ends");
        format!("{}{}", String::from_utf8_lossy(&output.stdout), output.stderr)
    }

    fn has(&self, path: &str) -> bool {
        let said = self.ask(&format!("stat {path}"));
        assert!(said.contains("Inode:") || said.contains("File not found"), "{path}: {said}");
        said.contains("Inode:")
    }
}

#[test]
fn packer_makes_the_same_of_a_disk_that_boots() {
    let bench = Bench::new();
    let started = Instant::now();
    let said = bench.build();
    println!("packer: {:?}\n{said}", started.elapsed());
    let disk = repository().join("target/image/packer/enmesh.qcow2");
    let tree = bench.raw(&disk);
    let _ = fs::remove_dir_all(disk.parent().expect("a folder"));

    for there in [
        "/usr/bin/enmesh",
        "/usr/bin/envoy",
        "/usr/bin/consul",
        "/etc/systemd/system/multi-user.target.wants/consul.service",
        "/etc/systemd/system/multi-user.target.wants/enmesh.service",
        "/home/debian",
    ] {
        assert!(tree.has(there), "no {there}");
    }
    // What is one machine's only, and by what Packer came in.
    for gone in ["/home/debian/.ssh", "/root/.ssh", "/etc/ssh/ssh_host_ed25519_key", "/tmp/image"] {
        assert!(!tree.has(gone), "there is {gone}");
    }
    assert!(tree.ask("stat /etc/machine-id").contains("Size: 0"), "{}", tree.ask("stat /etc/machine-id"));
    assert!(tree.ask("ls /var/lib/cloud").lines().all(|line| !line.contains("instance")));
}
