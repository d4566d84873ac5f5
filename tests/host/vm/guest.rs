//! One machine in QEMU, on a switch.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use crate::cable::{BRIDGE, OUTSIDE, ip};
use crate::deploy::seed::many;
use crate::machine::{IN_GROUP, claim, clear_away, must, pull_the_plug, put, tool, unified};
use crate::switch::Switch;

/// What a boot may take, with half a core and no acceleration.
const BOOT: Duration = Duration::from_secs(240);
/// What a command inside, or what happens by itself, may take.
const PATIENCE: Duration = Duration::from_secs(240);
/// What one end of the serial line says first, at each boot.
const READY: &str = "ready";
/// The other end: runs what comes as a line, and sends back the exit status and what was printed.
const CHANNEL: &str = r#"#!/usr/bin/python3
import base64, subprocess, tty
port = open("/dev/ttyS1", "r+b", buffering=0)
tty.setraw(port)
port.write(b"ready\n")
for line in iter(port.readline, b""):
    done = subprocess.run(["/bin/bash", "-c", base64.b64decode(line)], stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    port.write(b"%d %s\n" % (done.returncode, base64.b64encode(done.stdout)))
"#;
/// It is there before enmesh has begun, and not for the sake of what is tested.
const CHANNEL_UNIT: &str = "[Unit]\nDefaultDependencies=no\nAfter=local-fs.target\n\n[Service]\n\
    ExecStart=/usr/bin/python3 /etc/test-channel\nKillMode=process\n\n[Install]\nWantedBy=sysinit.target\n";

/// How a machine is to be started.
pub struct Recipe<'a> {
    pub name: &'a str,
    /// `stock` or `enmesh`: the disk in `target/image`, of which nothing is changed.
    pub disk: &'a str,
    /// Whether the firmware finds the kernel on the disk, rather than QEMU beside it.
    pub firmware: bool,
    pub address: Ipv4Addr,
    /// Parts of user-data.
    pub parts: Vec<String>,
}

/// A running machine. Ends with the value, as if the plug was pulled.
pub struct Guest {
    name: String,
    folder: PathBuf,
    group: PathBuf,
    process: Child,
    line: Option<BufReader<UnixStream>>,
    started: Instant,
}

impl Guest {
    #[expect(clippy::disallowed_methods, reason = "the machine runs beside the test until its end")]
    pub fn start(switch: &Switch, recipe: Recipe<'_>) -> Guest {
        let (name, folder) = claim(recipe.name);
        let group = unified().join(&name);
        fs::create_dir(&group).expect("a control group can be made");
        let tap = recipe.name;
        ip(&format!("-n {} tuntap add dev {tap} mode tap", switch.name));
        ip(&format!("-n {} link set {tap} master {BRIDGE} up", switch.name));
        let image = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/image").join(recipe.disk);
        let (disk, seed) = (folder.join("disk.qcow2"), folder.join("seed.iso"));
        let backing = image.with_extension("qcow2");
        assert!(backing.is_file(), "no {}: make images-for-tests", backing.display());
        must(
            tool("qemu-img"),
            &["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", text(&backing), text(&disk)],
        );
        lay_seed(&folder, &seed, &recipe);

        let mut command = Command::new("/bin/sh");
        command.args(["-c", IN_GROUP, "sh", text(&group)]).arg(tool("nsenter"));
        command.arg(format!("--net=/run/netns/{}", switch.name)).arg(tool("qemu-system-x86_64"));
        command.args([
            "-machine",
            "q35",
            "-accel",
            "tcg,thread=multi",
            "-cpu",
            "max",
            "-m",
            "1024",
            "-smp",
            "2",
        ]);
        command.args(["-display", "none", "-monitor", "none"]);
        command.arg("-drive").arg(format!("file={},if=virtio,format=qcow2,cache=unsafe", disk.display()));
        command.arg("-drive").arg(format!("file={},if=virtio,format=raw,readonly=on", seed.display()));
        command.arg("-netdev").arg(format!("tap,id=cable,ifname={tap},script=no,downscript=no"));
        command.arg("-device").arg(format!("virtio-net-pci,netdev=cable,mac={}", mac(recipe.address)));
        command.arg("-serial").arg(format!("file:{}", folder.join("console").display()));
        command.arg("-serial").arg(format!("unix:{},server=on,wait=off", folder.join("line").display()));
        if recipe.firmware {
            command.args(["-bios", "/usr/share/ovmf/OVMF.fd"]);
        } else {
            command.arg("-kernel").arg(image.with_extension("vmlinuz"));
            command.arg("-initrd").arg(image.with_extension("initrd"));
            command.args(["-append", "root=LABEL=root rw console=ttyS0"]);
        }
        let said = File::create(folder.join("qemu")).expect("target can be written");
        command
            .stdin(Stdio::null())
            .stdout(said.try_clone().expect("a descriptor can be doubled"))
            .stderr(said);
        let process = command.spawn().expect("a shell starts");
        Guest { name, folder, group, process, line: None, started: Instant::now() }
    }

    /// Since it was switched on, or told to boot again.
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// Waits for the other end of the line.
    pub fn until_up(&mut self) {
        let deadline = Instant::now() + BOOT;
        loop {
            let ended = self.process.try_wait().expect("a child can be waited for");
            assert!(ended.is_none(), "QEMU ended: {ended:?}\n{}", self.said());
            assert!(Instant::now() < deadline, "no word within {BOOT:?}\n{}", self.said());
            if self.line.is_none() {
                self.line = UnixStream::connect(self.folder.join("line")).ok().map(BufReader::new);
            }
            if self.hear(Duration::from_secs(1)).is_some_and(|line| line.ends_with(READY)) {
                return;
            }
        }
    }

    fn hear(&mut self, limit: Duration) -> Option<String> {
        let Some(line) = &mut self.line else {
            thread::sleep(Duration::from_millis(100));
            return None;
        };
        line.get_ref().set_read_timeout(Some(limit)).expect("a socket can be told");
        let mut heard = Vec::new();
        line.read_until(b'\n', &mut heard).ok()?;
        Some(String::from_utf8_lossy(&heard).trim().to_owned())
    }

    fn said(&self) -> String {
        let read = |name: &str| fs::read(self.folder.join(name)).unwrap_or_default();
        let console = String::from_utf8_lossy(&read("console")).into_owned();
        let end = console.char_indices().rev().nth(6000).map_or(0, |(at, _)| at);
        format!("{}\n{}", String::from_utf8_lossy(&read("qemu")), &console[end..])
    }

    /// Runs a script inside, as root: its exit status and all that it printed.
    pub fn run(&mut self, script: &str) -> (i32, String) {
        let sent = format!("{}\n", BASE64_STANDARD.encode(script));
        let line = self.line.as_mut().expect("it is up");
        line.get_mut().write_all(sent.as_bytes()).expect("the line is open");
        let answer = self.hear(PATIENCE).unwrap_or_else(|| panic!("no answer to {script}\n{}", self.said()));
        let (status, printed) = answer.split_once(' ').unwrap_or((&answer, ""));
        let printed = BASE64_STANDARD.decode(printed).unwrap_or_default();
        (status.parse().unwrap_or(-1), String::from_utf8_lossy(&printed).into_owned())
    }

    /// The same, for what must not fail; what it printed.
    pub fn must(&mut self, script: &str) -> String {
        let (status, printed) = self.run(script);
        assert_eq!(status, 0, "{script}:\n{printed}");
        printed
    }

    /// Looks again and again until the script succeeds; what it printed then.
    pub fn until(&mut self, what: &str, script: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (status, printed) = self.run(script);
            if status == 0 {
                return printed;
            }
            if Instant::now() > deadline {
                let (_, more) = self.run(
                    "enmesh status; tail -n 30 /var/log/cloud-init-output.log; journalctl -n 60 --no-pager",
                );
                panic!("{what}: not within {PATIENCE:?}\n{printed}\n{more}");
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Waits for a fault whose code begins so in `enmesh status`, which then fails; its code and its hint.
    pub fn until_fault(&mut self, code: &str) -> String {
        let look = format!("! enmesh status >/run/said 2>&1 && grep -A1 -m1 {code} /run/said");
        self.until(code, &look)
    }

    /// Waits until systemd has nothing more to start.
    pub fn until_booted(&mut self) {
        self.until("the end of the boot", "systemctl is-system-running | grep -qE 'running|degraded'");
    }

    /// Boots it again the orderly way and waits until it is up.
    pub fn reboot(&mut self) {
        self.run("systemctl --no-block reboot");
        self.started = Instant::now();
        self.until_up();
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if thread::panicking() {
            println!("the console of {}:\n{}", self.name, self.said());
        }
        pull_the_plug(&self.group);
        let _ = self.process.wait();
        clear_away(&self.name, &self.folder);
    }
}

/// A part of user-data that writes files.
pub fn writes(files: &[(&str, &str)]) -> String {
    let mut part =
        "#cloud-config\nmerge_how: 'list(append)+dict(no_replace,recurse_list)+str()'\nwrite_files:\n"
            .to_owned();
    for (path, contents) in files {
        let encoded = BASE64_STANDARD.encode(contents);
        part.push_str(&format!("  - path: {path}\n    encoding: b64\n    content: {encoded}\n"));
    }
    part
}

/// The disk by which a machine learns who it is.
fn lay_seed(folder: &Path, seed: &Path, recipe: &Recipe<'_>) {
    let encode = |text| BASE64_STANDARD.encode(text);
    // Before anything else of cloud-init, also where one of the parts is broken.
    let channel = format!(
        "#cloud-config\nmerge_how: 'list(append)+dict(no_replace,recurse_list)+str()'\nbootcmd:\n  - echo {} | base64 -d >/etc/test-channel\n  \
         - echo {} | base64 -d >/etc/systemd/system/test-channel.service\n  - systemctl daemon-reload\n  \
         - systemctl enable --now --no-block test-channel.service\nssh_genkeytypes: [ ed25519 ]\nlocale: false\n",
        encode(CHANNEL),
        encode(CHANNEL_UNIT),
    );
    let parts: Vec<String> = [channel].into_iter().chain(recipe.parts.iter().cloned()).collect();
    let files = folder.join("seed");
    put(&files, "meta-data", format!("instance-id: {0}\nlocal-hostname: {0}\n", recipe.name));
    put(&files, "user-data", many(&parts));
    put(
        &files,
        "network-config",
        format!(
            "version: 2\nethernets:\n  nic:\n    match: {{ macaddress: \"{}\" }}\n    addresses: [ {}/24 ]\n    \
             gateway4: {OUTSIDE}\n",
            mac(recipe.address),
            recipe.address
        ),
    );
    must(tool("genisoimage"), &["-quiet", "-J", "-R", "-V", "cidata", "-o", text(seed), text(&files)]);
}

fn mac(address: Ipv4Addr) -> String {
    let [_, _, a, b] = address.octets();
    format!("52:54:00:00:{a:02x}:{b:02x}")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("paths here are text")
}
