//! A machine's user-data, in parts, where cloud-init looks for it when there is no cloud.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use crate::lab::cluster::{CONSUL_UNIT, CONSUL_USER, consul_program};
use crate::machine::{Setting, put};
use crate::tree::Kind;

/// Parts in this repository are named from here.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A part of this repository.
pub fn part(path: &str) -> String {
    let path = repository().join(path);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// A machine that cloud-init sets up, with a Consul.
pub fn setting() -> Setting {
    Setting {
        tree: Kind::Provisioned,
        programs: vec![(consul_program(), "/usr/bin/consul")],
        ..Setting::default()
    }
}

/// Lays the parts into a tree, and what the package of Consul has beside the program.
pub fn lay(tree: &Path, name: &str, parts: &[String]) {
    put(tree, "/usr/lib/sysusers.d/consul.conf", CONSUL_USER);
    put(tree, "/usr/lib/systemd/system/consul.service", CONSUL_UNIT);
    lay_user_data(tree, name, &many(parts));
}

/// Lays user-data into a tree, which knows no package repository beside those of the user-data.
pub fn lay_user_data(tree: &Path, name: &str, user_data: &str) {
    let _ = fs::remove_file(tree.join("etc/apt/sources.list"));
    let _ = fs::remove_dir_all(tree.join("etc/apt/sources.list.d"));
    put(tree, "/etc/hostname", format!("{name}\n"));
    // The network is laid from outside, and there is nobody but the seed to ask.
    put(
        tree,
        "/etc/cloud/cloud.cfg.d/90-test.cfg",
        // The tree has no languages, and nobody logs in.
        "network: { config: disabled }\ndatasource_list: [ NoCloud ]\nlocale: false\nssh_genkeytypes: [ ed25519 ]\n\
         apt: { preserve_sources_list: true }\n",
    );
    put(
        tree,
        "/var/lib/cloud/seed/nocloud/meta-data",
        format!("instance-id: {name}\nlocal-hostname: {name}\n"),
    );
    put(tree, "/var/lib/cloud/seed/nocloud/user-data", user_data);
}

/// The parts as one document of several.
pub fn many(parts: &[String]) -> String {
    const BOUNDARY: &str = "a-part-begins-here";
    let mut text = format!("MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=\"{BOUNDARY}\"\n\n");
    for part in parts {
        let _ = write!(text, "--{BOUNDARY}\nContent-Type: text/cloud-config; charset=\"utf-8\"\n\n{part}\n");
    }
    let _ = writeln!(text, "--{BOUNDARY}--");
    text
}
