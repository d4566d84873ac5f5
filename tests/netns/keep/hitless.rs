//! What lives on: connections from before the install, and those through both sidecars, across everything that may
//! happen to a daemon and to its program. With both drivers.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use enmesh::demo::stage::APP_PORT;

use crate::scene::{Scene, ask, connect};

/// How often the configuration changes while connections are used.
const CHANGES: u32 = 20;

/// Connections that are used all the time; none may ever fail.
struct Talk {
    stop: Arc<AtomicBool>,
    answers: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Result<(), String>>>,
}

impl Talk {
    fn over(streams: Vec<(String, TcpStream)>) -> Talk {
        let (stop, answers) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let talk = |(name, mut stream): (String, TcpStream)| {
            let (stop, answers) = (Arc::clone(&stop), Arc::clone(&answers));
            thread::spawn(move || {
                stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
                while !stop.load(Ordering::Acquire) {
                    let mut answer = [0; 6];
                    let said = stream.write_all(b"hello\n").and_then(|()| stream.read_exact(&mut answer));
                    said.map_err(|e| format!("{name}: {e}"))?;
                    answers.fetch_add(1, Ordering::Relaxed);
                    thread::sleep(Duration::from_millis(2));
                }
                Ok(())
            })
        };
        let threads = streams.into_iter().map(talk).collect();
        Talk { stop, answers, threads }
    }

    /// Ends the talk and returns how many answers there were.
    fn end(self) -> u64 {
        self.stop.store(true, Ordering::Release);
        for thread in self.threads {
            thread.join().unwrap().unwrap_or_else(|broken| panic!("{broken}"));
        }
        self.answers.load(Ordering::Relaxed)
    }
}

/// Rows 29, 30 and 35: connections from before, and redirected ones, live on while daemons are killed, restarted and
/// upgraded, and rules change.
fn nothing_breaks(driver: &str, name: &str) {
    let mut scene = Scene::build(name, &format!("driver = \"{driver}\"\n"));
    let direct = SocketAddr::from((scene.stage.api.address, APP_PORT));
    let mut before = connect(&scene.stage.web, direct).unwrap();
    ask(&mut before).unwrap();
    for host in ["web", "api"] {
        scene.start(host);
    }
    scene.await_ready();
    ask(&mut before).unwrap();
    let virtual_ip = SocketAddr::from((scene.virtual_ip(), 80));
    let sidecars = [scene.sidecar("web"), scene.sidecar("api")];
    let open = |what: &str, to| (what.to_owned(), connect(&scene.stage.web, to).unwrap());
    let mut streams = vec![("from before the install".to_owned(), before)];
    for number in 0..3 {
        streams.push(open(&format!("virtual IP {number}"), virtual_ip));
        streams.push(open(&format!("instance {number}"), direct));
    }
    let talk = Talk::over(streams);
    for round in 0..3 {
        // Killed, and with another file as its program, as after a package's upgrade. (Asked to end, a daemon that keeps
        // its sidecars as children ends them too; under systemd they stay, which the host level proves.)
        for host in ["web", "api"] {
            scene.replace(host);
        }
        scene.await_ready();
        scene.upgrade(round);
        scene.await_ready();
    }
    for number in 0..CHANGES {
        // Rules change: another network is left alone.
        let text =
            format!("name = \"web\"\n\n[capture.bypass]\noutbound_cidrs = [\"10.77.{number}.0/24\"]\n");
        scene.stage.web.write("/etc/enmesh/services/web.toml", &text).unwrap();
        thread::sleep(Duration::from_millis(100));
    }
    scene.await_ready();
    let answers = talk.end();
    eprintln!(
        "{driver}: {answers} answers over connections that lived through 12 daemons and {CHANGES} changes"
    );
    assert!(answers > 100, "{answers}");
    assert_eq!([scene.sidecar("web"), scene.sidecar("api")], sidecars, "no sidecar was restarted");
}

/// Rows 29, 30 and 35.
#[test]
fn with_nftables_nothing_breaks() {
    nothing_breaks("nftables", "hitless-n");
}

/// Rows 29, 30 and 35.
#[test]
fn with_iptables_nothing_breaks() {
    nothing_breaks("iptables", "hitless-i");
}
