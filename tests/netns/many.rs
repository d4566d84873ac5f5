//! Many services on one host with the real binary and as many real Envoys as a small machine bears: a ring
//! in which each service may be called by its neighbour alone, so that an answer proves whose identity a
//! connection had and where it ended. What happens to one is not seen by the others.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "in a test a failure is a panic")]
#![allow(
    clippy::indexing_slicing,
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "in a test a failure is a panic"
)]

#[path = "../support/host_bed.rs"]
mod host_bed;

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use enmesh::base::exec;
use host_bed::{Bed, HOST_FILE, LIMIT, PEERS_FILE, SOON};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid, setfsuid};
use serde_json::Value;

/// An Envoy takes about four of the 128 inotify instances that a user has by default.
const SERVICES: u16 = 28;
/// The one that something happens to.
const VICTIM: u16 = 5;
const ADDRESS: [&str; 5] = ["address", "add", "10.9.0.2/32", "dev", "lo"];
/// So many Envoys start for a while on a small machine.
const START: Duration = Duration::from_secs(180);

fn uid(n: u16) -> u32 {
    20_000 + u32::from(n)
}

fn app(n: u16) -> u16 {
    30_000 + n
}

fn next(n: u16, steps: u16) -> u16 {
    (n + steps) % SERVICES
}

fn virtual_ip(n: u16) -> SocketAddr {
    SocketAddr::from(([240, 0, 2, n as u8 + 1], 80))
}

fn file(n: u16) -> String {
    format!("/etc/enmesh/services/s{n}.toml")
}

fn service(n: u16) -> String {
    format!(
        "name = \"s{n}\"\nport = {}\naddress = \"127.0.0.1\"\n\n[capture]\nscope = \"user:app{n}\"\n",
        app(n)
    )
}

/// The ring: each may be called by the one before it.
fn peers(port: impl Fn(u16) -> Option<u64>) -> String {
    let mut text = String::new();
    for n in 0..SERVICES {
        let caller = next(n, SERVICES - 1);
        let ip = virtual_ip(n).ip();
        let _ =
            writeln!(text, "[[service]]\nname = \"s{n}\"\nvirtual_ips = [\"{ip}\"]\nallow = [\"s{caller}\"]");
        if let Some(port) = port(n) {
            let _ = writeln!(text, "[[service.instance]]\naddress = \"127.0.0.1\"\nport = {port}\n");
        }
    }
    text
}

/// A host with all of them, their apps and sidecars. Each app says its number.
fn host() -> Bed {
    let mut bed = Bed::bare();
    // Who has no address but loopback calls virtual IPs from 0.0.0.0, and hears nothing.
    let ip = || exec::run(&exec::find("ip").unwrap(), &ADDRESS, b"", SOON).unwrap();
    assert!(bed.namespace.run(ip).unwrap().status.success());
    let mut passwd = "root:x:0:0::/root:/bin/false\nenvoy:x:5996:5996::/:/bin/false\n".to_owned();
    for n in 0..SERVICES {
        let _ = writeln!(passwd, "app{n}:x:{0}:{0}::/:/bin/false", uid(n));
        bed.write(&file(n), service(n));
        let listener = bed.namespace.run(|| TcpListener::bind(("127.0.0.1", app(n))).unwrap()).unwrap();
        // Ends with the process: a thread that waits in accept() cannot be told otherwise.
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                thread::spawn(move || {
                    let mut stream = BufReader::new(stream);
                    let _ = stream.read_line(&mut String::new());
                    let _ = writeln!(stream.get_mut(), "app{n}");
                });
            }
        });
    }
    bed.write("/etc/passwd", passwd);
    bed.write(HOST_FILE, bed.host_file(""));
    bed.write(PEERS_FILE, peers(|_| None));
    bed.start();
    let status = ready(&bed);
    bed.write(PEERS_FILE, peers(|n| status["services"][format!("s{n}")]["inbound_port"].as_u64()));
    bed
}

fn ready(bed: &Bed) -> Value {
    bed.await_status("all of them", START, |status| {
        let services = status["services"].as_object()?;
        let all = services.len() == usize::from(SERVICES) && status["ready"] == true;
        all.then(|| status.clone())
    })
}

/// What the service `of` hears when it calls the virtual IP of `to`.
fn call(of: u16, to: u16) -> Result<String, String> {
    setfsuid(Uid::from_raw(uid(of)));
    let mut stream = TcpStream::connect_timeout(&virtual_ip(to), SOON).map_err(|error| error.to_string())?;
    stream.set_read_timeout(Some(SOON)).unwrap();
    // The other sidecar decides whether it takes the caller when that has said something.
    stream.write_all(b"hello\n").map_err(|error| error.to_string())?;
    let mut said = String::new();
    BufReader::new(stream).read_line(&mut said).map_err(|error| error.to_string())?;
    Ok(said.trim().to_owned())
}

fn from(bed: &Bed, of: u16, to: u16) -> Result<String, String> {
    bed.namespace.run(move || thread::spawn(move || call(of, to)).join().unwrap()).unwrap()
}

fn ring_is_whole(bed: &Bed) {
    for n in 0..SERVICES {
        let to = next(n, 1);
        let whole = host_bed::until("an answer", LIMIT, || {
            let said = from(bed, n, to);
            if said == Ok(format!("app{to}")) { Ok(()) } else { Err(format!("s{n} -> s{to}: {said:?}")) }
        });
        whole.unwrap_or_else(|error| panic!("{error}\n{}", bed.log()));
    }
}

/// Calls around the ring, but for those in which the victim has a part.
struct Others(Arc<AtomicBool>, Vec<JoinHandle<(u32, Vec<String>)>>);

impl Others {
    fn start(bed: &Bed) -> Others {
        let stop = Arc::new(AtomicBool::new(false));
        let callers = (0..3).map(|third| {
            let stop = Arc::clone(&stop);
            let work = move || {
                let (mut calls, mut bad) = (0, Vec::new());
                let others = |n: &u16| n % 3 == third && *n != VICTIM && next(*n, 1) != VICTIM;
                while !stop.load(Ordering::Acquire) {
                    for n in (0..SERVICES).filter(others) {
                        let (to, said) = (next(n, 1), call(n, next(n, 1)));
                        calls += 1;
                        if said != Ok(format!("app{to}")) {
                            bad.push(format!("s{n} -> s{to}: {said:?}"));
                        }
                    }
                    thread::sleep(Duration::from_millis(2));
                }
                (calls, bad)
            };
            bed.namespace.run(|| thread::spawn(work)).unwrap()
        });
        let callers = callers.collect();
        Others(stop, callers)
    }

    fn end(self, least: u32) {
        self.0.store(true, Ordering::Release);
        let mut all = 0;
        for caller in self.1 {
            let (calls, bad) = caller.join().unwrap();
            assert!(bad.is_empty(), "{} of {calls}: {:?}", bad.len(), &bad[..bad.len().min(3)]);
            all += calls;
        }
        assert!(all > least, "there was no load: {all}");
        eprintln!("{all} connections of the others, all answered");
    }
}

fn pids(status: &Value) -> Vec<u64> {
    let pid = |n| status["services"][format!("s{n}")]["pid"].as_u64().unwrap();
    (0..SERVICES).filter(|n| *n != VICTIM).map(pid).collect()
}

#[test]
fn each_has_its_own_identity_and_no_part_in_anothers_fate() {
    let bed = host();
    ring_is_whole(&bed);
    // Nobody gets by with another's identity: the one after next does not take the call.
    for n in 0..SERVICES {
        let to = next(n, 2);
        assert_ne!(from(&bed, n, to), Ok(format!("app{to}")), "s{n} may not call s{to}");
    }
    let before = ready(&bed);
    let others = Others::start(&bed);

    // Its sidecar dies, twice.
    for _ in 0..2 {
        let victim = ready(&bed)["services"][format!("s{VICTIM}")]["pid"].as_i64().unwrap();
        kill(Pid::from_raw(i32::try_from(victim).unwrap()), Signal::SIGKILL).unwrap();
        bed.await_status("another sidecar", START, |status| {
            let service = &status["services"][format!("s{VICTIM}")];
            (service["phase"] == "live" && service["pid"] != victim).then_some(())
        });
    }
    // Its file breaks, is mended with another port, goes, and comes back.
    bed.write(&file(VICTIM), "name = \"s5\"\nport = \"none\"\n");
    bed.await_status("the fault", SOON, |status| (status["faults"][0]["code"] != Value::Null).then_some(()));
    bed.write(&file(VICTIM), service(VICTIM).replace("port = 30005", "port = 31005"));
    ready(&bed);
    bed.remove(&file(VICTIM));
    bed.await_status("one less", START, |status| {
        (status["services"].as_object()?.len() == usize::from(SERVICES) - 1).then_some(())
    });
    bed.write(&file(VICTIM), service(VICTIM));
    let after = ready(&bed);
    others.end(200);
    assert_eq!(pids(&before), pids(&after), "no other sidecar was started again");
    ring_is_whole(&bed);
}

/// Whoever would capture what another has is refused, with both names; the others go on.
#[test]
fn overlapping_scopes_are_refused_with_both_names() {
    let mut bed = Bed::new();
    bed.start().await_ready();
    let held = bed.held();
    for (scope, port, code, other) in [
        ("user:api-app", 9001, "ENM-C041", "api"),
        ("user:10002", 9001, "ENM-P005", "web"),
        ("user:new-app", 8080, "ENM-P005", "api"),
        ("user:5995", 9001, "ENM-P006", "sidecars"),
    ] {
        let text = format!("name = \"zeta\"\nport = {port}\n\n[capture]\nscope = \"{scope}\"\n");
        bed.write("/etc/enmesh/services/zeta.toml", text);
        let fault = bed.await_fault(code);
        let message = fault["message"].as_str().unwrap();
        assert!(fault["service"] == "zeta" && message.contains(other), "{scope}: {fault:#}");
        bed.assert_holds(&held);
        bed.remove("/etc/enmesh/services/zeta.toml");
        bed.await_ready();
    }
}
