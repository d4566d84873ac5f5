//! The files of the scripts that are in the field.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::HandoverError;
use crate::base::{Fault, Root, files};

/// A unit or script larger than this is none.
const LIMIT: u64 = 1 << 20;
/// Where an administrator's units are; they stand before those of packages.
const UNITS: &str = "/etc/systemd/system";
/// What is added to the name of a unit that is moved aside; systemd passes over such a file.
const ASIDE: &str = "before-enmesh";

/// Words by which a unit is known as one that sets or removes rules of the scripts.
const CALLS: [&str; 4] = [
    "consul-redirect-traffic",
    "consul-cleanup-iptables",
    "consul connect redirect-traffic",
    "generate-sidecar-configs",
];
/// Files of the scripts that do nothing unless somebody calls them.
const IDLE: [&str; 5] = [
    "/usr/local/bin/consul-redirect-traffic",
    "/usr/local/bin/consul-cleanup-iptables",
    "/srv/consul/generate-sidecar-configs.py",
    "/srv/consul/extra-args.json",
    "/etc/systemd/resolved.conf.d/consul.conf",
];
/// Files from which rules are set at boot.
const AT_BOOT: [&str; 5] = [
    "/etc/iptables/rules.v4",
    "/etc/iptables/rules.v6",
    "/etc/sysconfig/iptables",
    "/etc/sysconfig/ip6tables",
    "/etc/nftables.conf",
];

/// What becomes of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fate {
    /// It gets another name, so that nothing starts it any more.
    MovedAside,
    /// It stays, and does nothing.
    LeftAlone,
    /// It stays, and brings the old rules back at the next boot.
    ToBeMended,
}

/// A file of the scripts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Script {
    /// Where it is.
    pub path: PathBuf,
    /// What becomes of it.
    pub fate: Fate,
    /// Why.
    pub because: String,
}

/// The files below `root`.
pub(super) fn scripts(root: &Root) -> Vec<Script> {
    let mut found = Vec::new();
    let mut units: Vec<PathBuf> = fs::read_dir(root.join(UNITS))
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|ending| ending == "service"))
        .collect();
    units.sort();
    for path in units {
        if let Some(call) = text(&path).and_then(|text| CALLS.into_iter().find(|call| text.contains(call))) {
            let because = format!("calls {call}");
            found.push(Script { path, fate: Fate::MovedAside, because });
        }
    }
    for path in IDLE.map(|path| root.join(path)).into_iter().filter(|path| path.exists()) {
        let because = "nothing calls it any more".to_owned();
        let because = match path.extension() {
            Some(ending) if ending == "conf" => "says where names of Consul are asked for".to_owned(),
            _ => because,
        };
        found.push(Script { path, fate: Fate::LeftAlone, because });
    }
    for path in AT_BOOT.map(|path| root.join(path)) {
        if text(&path).is_some_and(|text| text.contains("CONSUL_")) {
            let because = "has saved rules of theirs in it: take them out by hand".to_owned();
            found.push(Script { path, fate: Fate::ToBeMended, because });
        }
    }
    found
}

fn text(path: &Path) -> Option<String> {
    // A link to nothing (a masked unit) is no script.
    files::read(path, LIMIT).ok().flatten().map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// Moves the unit out of the way of ours.
pub(super) fn move_aside(script: &Script) -> Result<(), Fault> {
    let mut name = script.path.clone().into_os_string();
    name.push(format!(".{ASIDE}"));
    fs::rename(&script.path, name)
        .map_err(|source| HandoverError::Stuck { path: script.path.clone(), source }.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_are_told_from_everything_else() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path());
        let write = |path: &str, text: &str| {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write(
            "/etc/systemd/system/envoy@.service",
            "[Service]\nExecStartPre=+/usr/local/bin/consul-redirect-traffic %i\n",
        );
        write(
            "/etc/systemd/system/consul-sidecar-init.service",
            "[Service]\nExecStart=/srv/consul/generate-sidecar-configs.py\n",
        );
        write("/etc/systemd/system/app.service", "[Service]\nExecStart=/usr/bin/app\n");
        write("/usr/local/bin/consul-cleanup-iptables", "#!/bin/sh\n");
        write("/etc/iptables/rules.v4", "*nat\n:CONSUL_PROXY_OUTPUT - [0:0]\nCOMMIT\n");
        write("/etc/iptables/rules.v6", "*nat\nCOMMIT\n");
        let found = scripts(&root);
        let told: Vec<_> = found
            .iter()
            .map(|script| (script.path.file_name().unwrap().to_str().unwrap(), script.fate))
            .collect();
        assert_eq!(
            told,
            [
                ("consul-sidecar-init.service", Fate::MovedAside),
                ("envoy@.service", Fate::MovedAside),
                ("consul-cleanup-iptables", Fate::LeftAlone),
                ("rules.v4", Fate::ToBeMended),
            ]
        );
        move_aside(&found[1]).unwrap();
        assert!(root.join("/etc/systemd/system/envoy@.service.before-enmesh").exists());
        assert_eq!(scripts(&root).len(), 3);
        assert_eq!(move_aside(&found[1]).unwrap_err().code, "ENM-D045");
    }
}
