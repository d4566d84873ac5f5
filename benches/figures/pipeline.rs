//! From a service file to the first request through the mesh, against the steps by which scripts get
//! there today. Both beside the same Consul agent, in turns, in one run.
//!
//! What cannot be compared is left out to the favour of today's way: it is not waited until its proxy
//! has been told anything by Consul, and no unit is started. Envoy's own start is in enmesh's figure, as
//! it is on a host; it is measured beside it and taken off.

use std::error::Error;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::unistd::{Uid, setfsuid};
use serde_json::Value;

use crate::agent::{Agent, consul};
use crate::daemon::Bare;
use crate::host::{FIRST_PORT, FIRST_UID, Host};
use crate::stats::{self, Sample, Way};
use crate::table::{Table, time};
use crate::{Answer, program, today};

const ROUNDS: usize = 15;
/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(20);
/// How often the first request is tried.
const TRY: Duration = Duration::from_millis(1);
/// What the application at the other end answers.
const HELLO: &[u8] = b"hello";
/// The service file of today's way.
const ANNOTATIONS: &str =
    include_str!("../../tests/vectors/legacy-annotations/01-server/service-config.json");
/// Its service.
const SERVICE: &str = "counting";
/// Aimed at: so many times less than today's way.
const AIM: f64 = 5.0;

/// The figure.
pub fn measure() -> Answer {
    let agent = Agent::start()?;
    let script = Script::new(agent.folder())?;
    let mut host = Host::with(2, "control_plane = \"catalog\"\nregistration = \"agent\"\n")?;
    host.start()?;
    // Number 1 is there all the time; number 0 comes and goes, and calls it.
    host.write_service(1)?;
    let status = host.wait_for_live(1, LIMIT)?;
    let other = status.pointer("/services/s1").ok_or("no service s1")?;
    let port = FIRST_PORT + 1;
    let virtual_ip = other.pointer("/virtual_ips/0").and_then(Value::as_str).ok_or("no virtual IP")?;
    let target = SocketAddr::new(virtual_ip.parse()?, port);
    say_hello(port)?;
    let mut ways = [
        Way {
            name: "today: generate, register, bootstrap, iptables".to_owned(),
            before: Box::new(|| script.clean()),
            deed: Box::new(|| script.run()),
        },
        Way {
            name: "Envoy alone, until it says it is ready".to_owned(),
            before: Box::new(today::clear_iptables),
            deed: Box::new(|| Bare::start()?.wait_until_ready()),
        },
        Way {
            name: "enmesh: service file written, until the first answer".to_owned(),
            before: Box::new(|| {
                today::clear_iptables()?;
                if host.path("etc/enmesh/services/s0.toml").exists() {
                    host.remove_service(0)?;
                }
                host.wait_for_live(1, LIMIT).map(drop)
            }),
            deed: Box::new(|| {
                host.write_service(0)?;
                first_answer(target)
            }),
        },
    ];
    let samples = stats::in_turns(ROUNDS, &mut ways)?;
    let mut table = Table::of_samples("From a service file to the first request through the mesh", &samples);
    if let [today, envoy, enmesh] = samples.as_slice() {
        let own = own_share(envoy, enmesh);
        let times = today.ratio(&own);
        table.note(format!(
            "without Envoy's start: {} against {}, {times:.1} times less (aim: {AIM} times)",
            time(own.median()),
            time(today.median())
        ));
    }
    table.note("today's way ends when its commands have; nobody waits for its proxy or a request");
    Ok(table)
}

/// What of enmesh's times is not Envoy's start, round by round.
fn own_share(envoy: &Sample, enmesh: &Sample) -> Sample {
    let times = enmesh.times.iter().zip(&envoy.times).map(|(all, start)| all.saturating_sub(*start));
    Sample { name: "enmesh without Envoy's start".to_owned(), times: times.collect() }
}

/// Answers on `port` as an application does, to the end of the program.
fn say_hello(port: u16) -> Result<(), Box<dyn Error>> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
    thread::spawn(move || {
        for mut connection in listener.incoming().flatten() {
            let _ = connection.write_all(HELLO);
        }
    });
    Ok(())
}

/// Tries as the service's user until somebody answers.
fn first_answer(target: SocketAddr) -> Result<(), Box<dyn Error>> {
    let started = Instant::now();
    // A socket belongs to whom its thread is; the thread ends with this.
    let client = thread::spawn(move || {
        setfsuid(Uid::from_raw(FIRST_UID));
        let mut heard = answered(target);
        while !heard && started.elapsed() < LIMIT {
            thread::sleep(TRY);
            heard = answered(target);
        }
        heard
    });
    if client.join().is_ok_and(|heard| heard) { Ok(()) } else { Err("nobody answered".into()) }
}

fn answered(target: SocketAddr) -> bool {
    let Ok(mut connection) = TcpStream::connect_timeout(&target, LIMIT) else { return false };
    let mut heard = [0; HELLO.len()];
    connection.set_read_timeout(Some(LIMIT)).is_ok()
        && connection.read_exact(&mut heard).is_ok()
        && heard == HELLO
}

/// Today's way, step by step, with the files it leaves.
struct Script {
    generator: String,
    annotations: String,
    registration: String,
    flags: String,
    calls: Vec<String>,
}

impl Script {
    fn new(folder: &Path) -> Result<Script, Box<dyn Error>> {
        let generator = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/figures/generate.py");
        let path = |name: &str| folder.join(name).display().to_string();
        let script = Script {
            generator: generator.display().to_string(),
            annotations: path("service-config.json"),
            registration: path("service-registration.json"),
            flags: path("extra-args.json"),
            calls: today::iptables_calls(),
        };
        fs::write(&script.annotations, ANNOTATIONS)?;
        Ok(script)
    }

    fn run(&self) -> Result<(), Box<dyn Error>> {
        let generate = [&self.generator, &self.annotations, &self.registration, &self.flags];
        program::run("python3", &generate.map(String::as_str), "")?;
        program::at(&consul(), &["services", "register", &self.registration])?;
        program::at(&consul(), &["connect", "envoy", &format!("-sidecar-for={SERVICE}"), "-bootstrap"])?;
        today::with_iptables(&self.calls)
    }

    /// As before the first run.
    fn clean(&self) -> Result<(), Box<dyn Error>> {
        today::clear_iptables()?;
        if fs::exists(&self.registration)? {
            program::at(&consul(), &["services", "deregister", &self.registration])?;
            fs::remove_file(&self.registration)?;
        }
        Ok(())
    }
}
