//! Everything about a host's network that enmesh could have changed, for comparing before and after.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::base::{Fault, exec};
use crate::demo::error::DemoError;
use crate::netns::{self, Namespace};

/// Where the kernel shows the network's settings; each thread sees those of its namespace.
const SYSCTLS: &str = "/proc/sys/net";
/// Settings that are really counters, and change with the traffic.
const COUNTERS: [&str; 1] = ["netfilter/nf_conntrack_count"];
/// The longest setting that is read, in bytes.
const LONGEST: u64 = 64 * 1024;
/// How long `nft` may take.
const NFT_LIMIT: Duration = Duration::from_secs(10);

/// A table that uses what enmesh's rules use: connection tracking, NAT, refusal, sets.
const WARM_UP: &str = "\
table inet enmesh_demo_warm_up {
  set s { type ipv4_addr; flags interval, timeout; }
  chain n { type nat hook output priority 0; meta l4proto tcp redirect to :1; }
  chain p { type nat hook prerouting priority 0; tcp flags & (fin|syn|rst|ack) == syn fib daddr type local accept; }
  chain f { type filter hook output priority 0; ct state new ip daddr @s meta skuid 4294967294 reject with tcp reset; }
  chain r { type filter hook output priority -300; udp dport 1 ct zone set 1; }
}
delete table inet enmesh_demo_warm_up
";

/// A firewall of the host's own, as an administrator may have one: it has to be the same afterwards.
const OWN_RULES: &str = "\
table inet own_firewall {
  set friends { type ipv4_addr; elements = { 10.99.0.1, 10.99.0.2 } }
  chain input {
    type filter hook input priority 0; policy accept;
    tcp dport 22 ip saddr != @friends counter drop
  }
}
";

/// What there is, section by section, as sorted lines.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    sections: BTreeMap<&'static str, Vec<String>>,
}

impl Snapshot {
    /// Looks at `namespace`, and at the files below `folders` (names, modes and sizes).
    ///
    /// # Errors
    /// `ENM-X010` there is no `nft`; what netlink says; `ENM-T009` `nft` failed.
    pub fn take(namespace: &Namespace, folders: &[&Path]) -> Result<Snapshot, Fault> {
        let mut sections = namespace.run(|| -> Result<_, Fault> {
            let (routes, rules, addresses) = netns::block_on(async {
                let addresses = netns::link_addresses().await?;
                let links = netns::links().await?;
                let mut lines: Vec<String> =
                    addresses.iter().map(|(link, address)| format!("{} {address}", link.name)).collect();
                lines.extend(links.iter().map(|link| format!("{} up={}", link.name, link.up)));
                lines.sort();
                Ok::<_, Fault>((netns::describe_routes().await?, netns::describe_rules().await?, lines))
            })??;
            Ok(BTreeMap::from([
                ("rules", ruleset()?),
                ("routes", routes),
                ("routing rules", rules),
                ("addresses", addresses),
                ("sysctls", sysctls()),
            ]))
        })??;
        sections.insert("processes", processes(namespace)?);
        sections.insert("files", folders.iter().flat_map(|folder| files(folder)).collect());
        Ok(Snapshot { sections })
    }

    /// What is different in `later`: `-` was there and is gone, `+` is new. Empty when nothing is.
    pub fn difference(&self, later: &Snapshot) -> Vec<String> {
        let names: BTreeSet<_> = self.sections.keys().chain(later.sections.keys()).collect();
        let lines = |snapshot: &Snapshot, name| -> BTreeSet<String> {
            snapshot.sections.get(name).into_iter().flatten().cloned().collect()
        };
        let mut differences = Vec::new();
        for name in names {
            let (before, after) = (lines(self, name), lines(later, name));
            differences.extend(before.difference(&after).map(|line| format!("{name}: - {line}")));
            differences.extend(after.difference(&before).map(|line| format!("{name}: + {line}")));
        }
        differences
    }

    /// How many lines a section has.
    pub fn count(&self, section: &str) -> usize {
        self.sections.get(section).map_or(0, Vec::len)
    }
}

/// Gives the host in `namespace` rules of its own.
///
/// # Errors
/// As [`warm_up`].
pub(super) fn own_rules(namespace: &Namespace) -> Result<(), Fault> {
    namespace.run(|| nft(&["-f", "-"], OWN_RULES).map(drop))?
}

/// Makes the kernel load what rules need, by a table that is gone in the same transaction. Otherwise
/// the first rules on a machine would bring new sysctls along, which nobody can take away again.
///
/// # Errors
/// `ENM-X010` there is no `nft`, `ENM-T009` it failed.
pub(super) fn warm_up(namespace: &Namespace) -> Result<(), Fault> {
    namespace.run(|| nft(&["-f", "-"], WARM_UP).map(drop))?
}

fn ruleset() -> Result<Vec<String>, Fault> {
    let text = nft(&["--stateless", "list", "ruleset"], "")?;
    // Numbered, because in rules the order matters.
    Ok(text.lines().enumerate().map(|(number, line)| format!("{number} {line}")).collect())
}

fn nft(arguments: &[&str], stdin: &str) -> Result<String, Fault> {
    let output = exec::run(&exec::find("nft")?, arguments, stdin.as_bytes(), NFT_LIMIT)?;
    if !output.status.success() {
        let (program, status) = (format!("nft {}", arguments.join(" ")), output.status.to_string());
        return Err(DemoError::Ended { program, status, last: output.stderr.trim().to_owned() }.into());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn sysctls() -> Vec<String> {
    let root = Path::new(SYSCTLS);
    let mut lines = Vec::new();
    for path in walk(root) {
        let name = path.strip_prefix(root).unwrap_or(&path).display().to_string();
        if COUNTERS.contains(&name.as_str()) {
            continue;
        }
        // Some can only be written, some have no value yet.
        if let Ok(Some(value)) = crate::base::files::read(&path, LONGEST) {
            lines.push(format!("{name} = {}", String::from_utf8_lossy(&value).trim_end()));
        }
    }
    lines
}

fn processes(namespace: &Namespace) -> Result<Vec<String>, Fault> {
    let name = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    Ok(namespace.processes()?.iter().map(|pid| format!("{} ({pid})", name(pid).trim_end())).collect())
}

fn files(folder: &Path) -> Vec<String> {
    walk(folder).iter().map(|path| path.display().to_string()).collect()
}

/// The files below `folder`, sorted; links are not followed.
fn walk(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                _ => found.push(entry.path()),
            }
        }
    }
    found.sort();
    found
}
