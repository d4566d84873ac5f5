//! `closed` waits for nobody: a host whose sidecar is not installed yet installs it with its own package
//! manager, over the network, while every mesh destination is refused.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use enmesh::netns::Namespace;
use sha2::{Digest, Sha256};

use crate::cable::{Listener, OUTSIDE, hears_hello};
use crate::machine::{Machine, Setting, enable, envoy, must, put, tool};

const DB_PORT: u16 = 5432;
const CONTROL: &str = "Package: envoy\nVersion: 1\nArchitecture: all\nMaintainer: test <test@localhost>\n\
    Description: the sidecar\n";
const SERVICE: &str = "name = \"web\"\nport = 8081\n\n[capture]\nscope = \"host\"\n";
const PEERS: &str = "[[service]]\nname = \"db\"\n\n[[service.instance]]\naddress = \"10.77.0.1\"\n\
    port = 21000\nservice_port = 5432\n";

pub type Files = Arc<BTreeMap<String, Vec<u8>>>;

fn lay_out(tree: &Path) {
    put(tree, "/etc/enmesh/enmesh.toml", "control_plane = \"static\"\n");
    put(tree, "/etc/enmesh/peers.toml", PEERS);
    put(tree, "/etc/enmesh/services/web.toml", SERVICE);
    let sources = tree.join("etc/apt");
    let _ = fs::remove_file(sources.join("sources.list"));
    let _ = fs::remove_dir_all(sources.join("sources.list.d"));
    put(tree, "/etc/apt/sources.list", "deb [trusted=yes] http://10.77.0.1/ ./\n");
    enable(tree);
}

/// A repository with one package: Envoy.
fn repository(folder: &Path) -> Files {
    let package = folder.join("package");
    put(&package, "/DEBIAN/control", CONTROL);
    put(&package, "/usr/bin/envoy", fs::read(envoy()).unwrap());
    fs::set_permissions(package.join("usr/bin/envoy"), fs::Permissions::from_mode(0o755)).unwrap();
    let deb = folder.join("envoy.deb");
    let [from, to] = [&package, &deb].map(|path| path.to_str().unwrap());
    must(tool("dpkg-deb"), &["--root-owner-group", "-Znone", "--build", from, to]);
    let deb = fs::read(deb).unwrap();
    let hash: String = Sha256::digest(&deb).iter().map(|byte| format!("{byte:02x}")).collect();
    let index = format!("{CONTROL}Filename: ./envoy.deb\nSize: {}\nSHA256: {hash}\n\n", deb.len());
    Arc::new([("/./Packages".to_owned(), index.into_bytes()), ("/./envoy.deb".to_owned(), deb)].into())
}

/// Serves it by HTTP, in the clear, as repositories do.
pub fn serve(namespace: &Namespace, files: Files) {
    let bind = || TcpListener::bind((Ipv4Addr::UNSPECIFIED, 80)).unwrap();
    let listener = namespace.run(bind).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let files = Arc::clone(&files);
            thread::spawn(move || drop(answer(stream, &files)));
        }
    });
}

fn answer(mut stream: TcpStream, files: &Files) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    while let Some(request) = lines.next() {
        let request = request?;
        while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
        let path = request.split(' ').nth(1).unwrap_or_default().replace("/./", "/").replacen('/', "/./", 1);
        let (status, body) = match files.get(&path) {
            Some(body) => ("200 OK", body.as_slice()),
            None => ("404 Not Found", &b""[..]),
        };
        write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", body.len())?;
        stream.write_all(body)?;
    }
    Ok(())
}

#[test]
fn a_closed_host_installs_its_sidecar() {
    let setting = Setting { without_envoy: true, ..Setting::default() };
    let machine = Machine::boot_in("package", setting, lay_out);
    let folder = machine.tree().with_file_name("repository");
    serve(&machine.cable().outside, repository(&folder));
    let db = Listener::start(&machine.cable().outside, DB_PORT);
    machine.until("closed rules", || machine.rules().filter(|rules| rules.contains("guard_out")));
    assert_ne!(machine.status()["ready"], true);
    let dialled = || hears_hello(&machine.cable().inside, 0, (OUTSIDE, DB_PORT).into());
    assert!(!dialled(), "root is captured as well");

    machine.must(&["apt-get", "update"]);
    assert!(!dialled());
    machine.must(&["apt-get", "install", "--yes", "envoy"]);
    assert!(!dialled());
    machine.must(&["enmesh", "apply"]);
    machine.until_ready();
    assert!(!dialled(), "a mesh destination is dialled through the mesh");
    assert_eq!(db.met(), 0);
}
