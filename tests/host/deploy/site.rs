//! Where machines fetch from at their first boot: files by HTTP, and a package repository that is signed.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use enmesh::base::exec;
use enmesh::netns::Namespace;

use crate::lab::cluster::{CONSUL_UNIT, CONSUL_USER, consul_program};
use crate::machine::{must, put, tool};
use crate::package::serve;

/// How long `gpg` may take to make a key.
const LIMIT: Duration = Duration::from_secs(60);
/// The package of Consul is by its maker, who is not here: its program, with what such a package has beside it.
const CONSUL_CONTROL: &str = "Package: consul\nVersion: 1.8.7\nArchitecture: amd64\n\
    Maintainer: test <test@localhost>\nDescription: Consul's program, a unit, a user\n";
const CONSUL_POSTINST: &str = "#!/bin/sh\nset -e\nsystemd-sysusers consul.conf\nsystemctl daemon-reload\n";

/// Files by the path that they are asked for with.
#[derive(Default)]
pub struct Site(BTreeMap<String, Vec<u8>>);

impl Site {
    pub fn put(&mut self, path: &str, contents: Vec<u8>) {
        // That is how the server knows them.
        self.0.insert(format!("/./{}", path.trim_start_matches('/')), contents);
    }

    /// From port 80 on, as long as this program lives.
    pub fn serve(self, namespace: &Namespace) {
        serve(namespace, Arc::new(self.0));
    }
}

/// The package that `make packages` has made.
pub fn package() -> PathBuf {
    crate::install::package("target/packages", "deb").0
}

/// As in `sha256sum`.
pub fn sum(file: &Path) -> String {
    let output = run("sha256sum", &[text(file)], b"");
    output.split(' ').next().expect("a checksum").to_owned()
}

/// A repository with enmesh and Consul, in the suite `stable`, at `/debian`; the key that it is signed with.
pub fn repository(site: &mut Site, folder: &Path) -> String {
    let mut index = String::new();
    for package in [package(), consul(folder)] {
        let name = package.file_name().and_then(|name| name.to_str()).expect("text").to_owned();
        let bytes = fs::read(&package).expect("a package");
        let control = run("dpkg-deb", &["--field", text(&package)], b"");
        let control = control.trim();
        let _ = write!(
            index,
            "{control}\nFilename: pool/{name}\nSize: {}\nSHA256: {}\n\n",
            bytes.len(),
            sum(&package)
        );
        site.put(&format!("debian/pool/{name}"), bytes);
    }
    let list = folder.join("Packages");
    fs::write(&list, &index).expect("room");
    let release = format!(
        "Origin: test\nSuite: stable\nCodename: stable\nArchitectures: amd64\nComponents: main\nDate: {}\n\
         SHA256:\n {} {} main/binary-amd64/Packages\n",
        run("date", &["--utc", "--rfc-email"], b"").trim().replace("+0000", "UTC"),
        sum(&list),
        index.len()
    );
    let (key, signed) = sign(folder, release.as_bytes());
    site.put("debian/dists/stable/main/binary-amd64/Packages", index.into_bytes());
    site.put("debian/dists/stable/InRelease", signed.into_bytes());
    key
}

/// With a key of its own, in a folder of its own.
fn sign(folder: &Path, release: &[u8]) -> (String, String) {
    let home = folder.join("gpg");
    fs::create_dir(&home).expect("a folder can be made");
    fs::set_permissions(&home, fs::Permissions::from_mode(0o700)).expect("a mode can be set");
    let gpg = |arguments: &[&str], input: &[u8]| {
        run("gpg", &[&["--homedir", text(&home), "--batch", "--quiet"], arguments].concat(), input)
    };
    let user = "test <test@localhost>";
    gpg(&["--passphrase", "", "--quick-generate-key", user, "ed25519", "sign", "never"], b"");
    let key = gpg(&["--armor", "--export"], b"");
    let signed = gpg(&["--clearsign"], release);
    run("gpgconf", &["--homedir", text(&home), "--kill", "gpg-agent"], b"");
    (key, signed)
}

fn consul(folder: &Path) -> PathBuf {
    let staged = folder.join("consul");
    put(&staged, "/DEBIAN/control", CONSUL_CONTROL);
    put(&staged, "/DEBIAN/postinst", CONSUL_POSTINST);
    put(&staged, "/usr/lib/sysusers.d/consul.conf", CONSUL_USER);
    put(&staged, "/usr/lib/systemd/system/consul.service", CONSUL_UNIT);
    fs::create_dir_all(staged.join("usr/bin")).expect("a folder can be made");
    fs::copy(consul_program(), staged.join("usr/bin/consul")).expect("room for Consul");
    for path in ["DEBIAN/postinst", "usr/bin/consul"] {
        fs::set_permissions(staged.join(path), fs::Permissions::from_mode(0o755)).expect("a mode can be set");
    }
    let package = folder.join("consul_1.8.7_amd64.deb");
    must(tool("dpkg-deb"), &["--root-owner-group", "-Znone", "--build", text(&staged), text(&package)]);
    package
}

/// A tool of this machine that must not fail; its output.
pub fn run(program: &str, arguments: &[&str], input: &[u8]) -> String {
    let output = exec::run(&tool(program), arguments, input, LIMIT).expect("it runs");
    assert!(output.status.success(), "{program} {arguments:?}: {}", output.stderr);
    String::from_utf8(output.stdout).expect("text")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("paths here are text")
}
