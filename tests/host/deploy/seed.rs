//! A machine's user-data, in parts, where cloud-init looks for it when there is no cloud.

use std::fmt::Write as _;
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
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
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
    put(tree, "/etc/hostname", format!("{name}\n"));
    // The network is laid from outside, and there is nobody but the seed to ask.
    put(
        tree,
        "/etc/cloud/cloud.cfg.d/90-test.cfg",
        // The tree has no languages, and nobody logs in.
        "network: { config: disabled }\ndatasource_list: [ NoCloud ]\nlocale: false\nssh_genkeytypes: [ ed25519 ]\n",
    );
    put(
        tree,
        "/var/lib/cloud/seed/nocloud/meta-data",
        format!("instance-id: {name}\nlocal-hostname: {name}\n"),
    );
    put(tree, "/var/lib/cloud/seed/nocloud/user-data", many(parts));
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

/// A package of enmesh for a machine that has none: what [`crate::machine::install`] puts into a tree. It stands in for
/// the one that `make packages` makes, whose own tests are elsewhere.
pub fn stand_in_package(folder: &Path) -> std::path::PathBuf {
    use crate::machine::{install, must, tool};

    const CONTROL: &str = "Package: enmesh\nVersion: 0\nArchitecture: all\nDepends: nftables\n\
        Maintainer: test <test@localhost>\nDescription: puts services into a mesh\n";
    const POSTINST: &str =
        "#!/bin/sh\nset -e\nsystemd-sysusers\nsystemd-tmpfiles --create\nsystemctl daemon-reload\n";
    let staged = folder.join("staged");
    for below in
        ["bin", "lib/sysusers.d", "lib/tmpfiles.d", "lib/systemd/system", "lib/systemd/system-preset"]
    {
        std::fs::create_dir_all(staged.join("usr").join(below)).expect("a folder can be made");
    }
    std::fs::create_dir(staged.join("etc")).expect("a folder can be made");
    install(&staged);
    // What the users were tried on belongs to no package.
    std::fs::remove_dir_all(staged.join("etc")).expect("users were made");
    put(&staged, "/DEBIAN/control", CONTROL);
    put(&staged, "/DEBIAN/postinst", POSTINST);
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(staged.join("DEBIAN/postinst"), executable).expect("a mode can be set");
    let package = folder.join("enmesh_0_all.deb");
    let [from, to] = [&staged, &package].map(|path| path.to_str().expect("text"));
    must(tool("dpkg-deb"), &["--root-owner-group", "-Znone", "--build", from, to]);
    std::fs::remove_dir_all(&staged).expect("it can be removed");
    package
}
