//! Nobody is locked out: the port over which somebody is logged in is not captured unasked. The server is a
//! fake: Python under the name `sshd`, run by root, with a connection that it holds.

use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::os::unix::fs::symlink;
use std::process::{Child, Command, Stdio};

use enmesh::base::exec;

use crate::host_bed::{API, API_FILE, Said};
use crate::site::Site;

const PORT: u16 = 2222;

/// What the fake does.
const FAKE_SSHD: &str = "import socket, sys
listener = socket.create_server(('0.0.0.0', 2222))
print('listens', flush=True)
session, _ = listener.accept()
print('accepted', flush=True)
sys.stdin.read(1)
";

/// Somebody is logged in from the peer.
struct Session {
    server: Child,
    _client: TcpStream,
}

impl Session {
    #[expect(clippy::disallowed_methods, reason = "the server is the test's own")]
    fn open(site: &Site) -> Session {
        let program = site.bed.path("/sshd");
        // The kernel calls a process as the file that it is started from.
        symlink(exec::find("python3").unwrap(), &program).unwrap();
        let mut command = Command::new(&program);
        command.args(["-I", "-c", FAKE_SSHD]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut server = site.bed.namespace.run(|| command.spawn().unwrap()).unwrap();
        let mut lines = BufReader::new(server.stdout.take().unwrap()).lines().map(Result::unwrap);
        lines.find(|line| line == "listens").expect("it listens");
        let client = site.peer.run(|| TcpStream::connect(("10.9.0.2", PORT)).unwrap());
        lines.find(|line| line == "accepted").expect("it accepts");
        Session { server, _client: client }
    }

    fn peer(&self) -> String {
        self._client.local_addr().unwrap().to_string()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// `api` with a capture that would take the port.
fn captures() -> [String; 2] {
    [API.replace("port = 8080", "port = 2222"), API.replace("[capture]\n", "[capture]\ninbound = \"all\"\n")]
}

fn codes(said: &Said) -> Vec<String> {
    let faults = said.json()["faults"].as_array().unwrap().clone();
    faults.iter().map(|fault| fault["code"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_capture_of_a_live_sessions_port_is_refused_unless_forced() {
    let site = Site::new();
    let session = Session::open(&site);
    for service in captures() {
        site.bed.write(API_FILE, &service);
        let said = site.bed.run(&["apply", "--json"]);
        assert_eq!((said.code, codes(&said)), (Some(65), vec!["ENM-P030".to_owned()]), "{said:?}");
        let message = said.json()["faults"][0]["message"].as_str().unwrap().to_owned();
        let process = format!("sshd (process {})", session.server.id());
        for part in [session.peer().as_str(), "2222", &process] {
            assert!(message.contains(part), "{part}: {message}");
        }
        assert_eq!(site.bed.rules(), "-");
    }
    // What leaves the port alone is fine.
    let [_, all] = captures();
    site.bed.write(API_FILE, format!("{all}\n[capture.bypass]\ninbound_ports = [22, 2222]\n"));
    assert_eq!(site.bed.run(&["apply"]).code, Some(0));
    site.bed.write(API_FILE, &all);
    assert_eq!(codes(&site.bed.run(&["apply", "--json"])), ["ENM-P030"], "the last good one stays");
    assert!(site.bed.rules().contains("2222"), "{}", site.bed.rules());
    let said = site.bed.run(&["apply", "--force", "--json"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    let warnings = said.json()["status"]["warnings"].to_string();
    assert!(warnings.contains("ENM-P031"), "{warnings}");
    // What is in force as it is goes on.
    assert_eq!(site.bed.run(&["apply"]).code, Some(0));
    drop(session);
}

/// The daemon says it and goes on with the others; that the session ends is no permission.
#[test]
fn the_daemon_refuses_that_service_and_waits_for_a_word() {
    let mut site = Site::new();
    let session = Session::open(&site);
    let [one, _] = captures();
    site.bed.write(API_FILE, &one);
    site.bed.write(crate::host_bed::WEB_FILE, crate::host_bed::WEB);
    site.bed.start();
    let fault = site.bed.await_fault("ENM-P030");
    assert_eq!(fault["service"], "api");
    let live = |status: &serde_json::Value| (status["services"]["web"]["phase"] == "live").then_some(());
    site.bed.await_status("the other service", crate::site::LONG, live);
    drop(session);
    site.bed.signal(nix::sys::signal::Signal::SIGHUP);
    site.bed.await_fault("ENM-P030");
    site.bed.kill_daemon();
    site.bed.start();
    site.bed.await_fault("ENM-P030");
    assert_eq!(site.bed.run(&["apply"]).code, Some(0), "nobody is logged in there any more");
    site.bed.await_ready();
}
