//! Beside the real ufw of Debian, and what the real unit `nftables.service` runs. As in `neighbours`, the packages are
//! unpacked below `target/tools/neighbours`; ufw gets a copy of its tree to write in.
#![allow(
    clippy::disallowed_methods,
    reason = "neighbours run beside the test, and are no children of enmesh"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use enmesh::base::exec;

use crate::containers::{address, who};
use crate::drivers::{Driver, cases};
use crate::lab::Lab;
use crate::neighbours::{LIMIT, holds, neighbours, repaired, said};
use crate::worlds::{legacy, live};

/// A file or folder of the packages; newer ones have below `/usr` what older ones have in `/lib`.
fn part_of(path: &str) -> PathBuf {
    let places = [neighbours().join(path), neighbours().join("usr").join(path)];
    places.iter().find(|place| place.exists()).unwrap_or_else(|| panic!("no {path}")).clone()
}

/// A tree of ufw's own, as its package's script sets it up.
struct Ufw(tempfile::TempDir);

impl Ufw {
    fn new() -> Ufw {
        let folder = tempfile::Builder::new().prefix("enmesh-ufw-").tempdir_in("/tmp").unwrap();
        let root = folder.path().to_owned();
        for part in ["etc/ufw", "etc/default", "lib/ufw", "usr/share/ufw"] {
            let (from, to) = (part_of(part), root.join(part));
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            let words = ["-a", from.to_str().unwrap(), to.to_str().unwrap()];
            let copied = exec::run(&exec::find("cp").unwrap(), &words, b"", LIMIT).unwrap();
            assert!(copied.status.success(), "{}", copied.stderr);
        }
        let (share, etc) = (root.join("usr/share/ufw"), root.join("etc/ufw"));
        for name in ["before", "after", "user"] {
            for version in ["", "6"] {
                let file = format!("{name}{version}.rules");
                fs::copy(share.join("iptables").join(&file), etc.join(&file)).unwrap();
            }
        }
        for file in ["before.init", "after.init", "ufw.conf"] {
            fs::copy(share.join(file), etc.join(file)).unwrap();
        }
        // Those of the machine stay as they are.
        let settings = root.join("etc/default/ufw");
        let text = fs::read_to_string(&settings).unwrap();
        fs::write(&settings, text.replace("\nIPT_SYSCTL=", "\nIPT_SYSCTL=\n#")).unwrap();
        fs::create_dir(root.join("run")).unwrap();
        Ufw(folder)
    }

    fn say(&self, lab: &Lab, arguments: &[&str]) -> String {
        let root = self.0.path().display();
        let mut command = Command::new("/usr/bin/python3");
        command.arg(neighbours().join("usr/sbin/ufw"));
        command.args([format!("--rootdir={root}"), format!("--datadir={root}")]).args(arguments);
        said(&lab.host, command, Vec::new()).unwrap_or_else(|e| panic!("ufw {arguments:?}: {e}"))
    }
}

/// Rows 1, 38 and 73 beside ufw, which comes first or second, is reloaded and switched off and on. It drops what it was
/// not told to let in, also what we leave alone.
fn beside_ufw(driver: Driver) {
    for ufw_first in [true, false] {
        let lab = Lab::new();
        let ufw = Ufw::new();
        let apply = || lab.host.run(move || driver().apply(&live(legacy()))).unwrap();
        let differences = || lab.host.run(move || driver().observe(&live(legacy()))).unwrap().differences;
        // SSH, and the sidecars, where other hosts call.
        for port in ["22/tcp", "21000:21001/tcp"] {
            ufw.say(&lab, &["allow", port]);
        }
        if !ufw_first {
            apply();
        }
        ufw.say(&lab, &["--force", "enable"]);
        assert!(ufw.say(&lab, &["status"]).contains("Status: active"));
        if ufw_first {
            apply();
        }
        let check = |when: &str| {
            let when = format!("ufw first: {ufw_first}, {when}");
            assert_eq!(differences(), [""; 0], "{when}");
            holds(&lab, &when);
            assert_eq!(who(&lab.peer.dial(0, address("10.9.0.2:22"))), "ssh", "{when}");
            assert_eq!(who(&lab.peer.dial(0, address("10.9.0.2:9100"))), "silence", "{when}: ufw drops it");
        };
        check("both on");
        ufw.say(&lab, &["reload"]);
        check("after a reload");
        ufw.say(&lab, &["disable"]);
        holds(&lab, "without ufw");
        assert_eq!(who(&lab.peer.dial(0, address("10.9.0.2:9100"))), "metrics");
        ufw.say(&lab, &["--force", "enable"]);
        check("on again");
    }
}

/// The commands of a unit, by the key before them.
fn commands(unit: &Path, key: &str) -> Vec<Vec<String>> {
    let text = fs::read_to_string(unit).unwrap_or_else(|e| panic!("{}: {e}", unit.display()));
    let lines = text.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    lines.map(|line| line.split_whitespace().map(str::to_owned).collect()).collect()
}

/// Row 73: what the unit `nftables.service` of Debian runs when it starts, reloads and stops, with the file that it
/// comes with, which flushes everything. Before our rules it changes nothing; after them they are set again.
fn beside_the_service_of_nftables(driver: Driver) {
    let unit = part_of("lib/systemd/system/nftables.service");
    let file = neighbours().join("etc/nftables.conf");
    let lab = Lab::new();
    let run = |key: &str| {
        let all = commands(&unit, key);
        assert!(!all.is_empty(), "{key}");
        for words in all {
            let mut command = Command::new(&words[0]);
            for word in &words[1..] {
                command.arg(if word == "/etc/nftables.conf" { file.as_os_str() } else { word.as_ref() });
            }
            said(&lab.host, command, Vec::new()).unwrap_or_else(|e| panic!("{key}: {e}"));
        }
    };
    run("ExecStart");
    lab.host.run(move || driver().apply(&live(legacy()))).unwrap();
    holds(&lab, "after its start");
    for key in ["ExecReload", "ExecStop", "ExecStart"] {
        run(key);
        repaired(&lab, driver);
        holds(&lab, key);
        let differences = lab.host.run(move || driver().observe(&live(legacy()))).unwrap().differences;
        assert_eq!(differences, [""; 0], "{key}");
    }
}

cases! {
    beside_ufw,
    beside_the_service_of_nftables,
}
