//! A large catalog: how long until a sidecar has all of it, what following it costs while instances
//! come and go, and how soon each change is in Envoy. With a real Consul and a real Envoy.

use std::error::Error;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::Answer;
use crate::agent::Agent;
use crate::daemon::{Usage, megabytes, percent, wake_ups};
use crate::host::{self, Host};
use crate::stats::Sample;
use crate::table::{Table, time};

/// An ordinary mesh, and a large one.
const SIZES: [u16; 2] = [20, 500];
const INSTANCES: u8 = 5;
/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(60);
/// How long the daemon is watched, at rest and while instances come and go.
const WATCHED: Duration = Duration::from_secs(10);
/// What follows from starting has ended by then: an agent's first checks are up to ten seconds late.
const SETTLED: Duration = Duration::from_secs(15);
/// Instances that go and come back each second.
const FLAPS: u16 = 10;
/// A change in Consul shall be in Envoy within this.
const AIM: Duration = Duration::from_millis(200);

/// The figure.
pub fn measure() -> Answer {
    let measured: Vec<Measured> = SIZES.into_iter().map(with).collect::<Result<_, _>>()?;
    let title = format!("A catalog of services with {INSTANCES} instances each");
    let sizes = SIZES.map(|services| format!("{services} services"));
    let columns: Vec<&str> = [""].into_iter().chain(sizes.iter().map(String::as_str)).collect();
    let mut table = Table::new(&title, &columns);
    let mut row = |name: &str, value: &dyn Fn(&Measured) -> String| {
        table.row([name.to_owned()].into_iter().chain(measured.iter().map(value)));
    };
    row("daemon started, until Envoy has all of it", &|one| time(one.complete));
    row("memory of the daemon", &|one| megabytes(one.busy.resident));
    row("of it private", &|one| megabytes(one.busy.private));
    row("memory of its Envoy", &|one| megabytes(one.envoy.resident));
    row("CPU at rest", &|one| percent(&one.before, &one.idle, WATCHED));
    row("wake-ups a second at rest", &|one| wake_ups(&one.before, &one.idle, WATCHED));
    let flaps = format!("CPU while {FLAPS} instances a second go and come back");
    row(&flaps, &|one| percent(&one.idle, &one.busy, one.watched));
    row("a change written to Consul, until Envoy has it: median", &|one| time(one.changes.median()));
    row("the same: 90 %", &|one| time(one.changes.quantile(0.9)));
    row("the same: slowest", &|one| time(one.changes.quantile(1.0)));
    let changes: usize = measured.iter().map(|one| one.changes.times.len()).sum();
    table.note(format!("{changes} changes; aim for each: {}", time(AIM)));
    Ok(table)
}

struct Measured {
    complete: Duration,
    before: Usage,
    idle: Usage,
    busy: Usage,
    envoy: Usage,
    changes: Sample,
    watched: Duration,
}

fn with(services: u16) -> Result<Measured, Box<dyn Error>> {
    let _agent = Agent::start()?;
    fill(services)?;
    let mut host = Host::with(1, "control_plane = \"catalog\"\nregistration = \"agent\"\n")?;
    host.write_service(0)?;
    let started = Instant::now();
    host.start()?;
    let status = host.wait_for_live(1, LIMIT)?;
    let envoy = status.pointer("/services/s0/pid").and_then(Value::as_u64).ok_or("no sidecar")?;
    let admin = host.path("run/enmesh/s0/admin/envoy.sock");
    wait("all clusters in Envoy", || {
        Ok(stat(&admin, "cluster_manager.active_clusters")? >= u64::from(services))
    })?;
    let complete = started.elapsed();
    thread::sleep(SETTLED);
    let pid = host.pid()?;
    let before = Usage::of(pid)?;
    thread::sleep(WATCHED);
    let idle = Usage::of(pid)?;
    let (changes, watched) = flap(&admin, services)?;
    let (busy, envoy) = (Usage::of(pid)?, Usage::of(u32::try_from(envoy)?)?);
    Ok(Measured { complete, before, idle, busy, envoy, changes, watched })
}

/// Instances go and come back, one after the other; how soon each change was in Envoy.
fn flap(admin: &Path, services: u16) -> Result<(Sample, Duration), Box<dyn Error>> {
    let mut sample = Sample { name: "flaps".to_owned(), times: Vec::new() };
    let rounds = u16::try_from(WATCHED.as_secs())? * FLAPS;
    let started = Instant::now();
    for round in 0..rounds {
        // Far from the one before, so that each is another service.
        let service = round * 37 % services;
        for (step, (status, left)) in
            [("critical", INSTANCES - 1), ("passing", INSTANCES)].into_iter().enumerate()
        {
            let due = Duration::from_millis(u64::from(round) * 100 + u64::try_from(step)? * 50);
            thread::sleep(due.saturating_sub(started.elapsed()));
            let written = Instant::now();
            put("/v1/catalog/register", &check(service, 2, status))?;
            let there = format!("c{service}.default.dc1.internal");
            wait(&there, || Ok(endpoints(admin, &there)? == usize::from(left)))?;
            sample.times.push(written.elapsed());
        }
    }
    Ok((sample, started.elapsed()))
}

/// Registers everything, as agents of other hosts do.
fn fill(services: u16) -> Result<(), Box<dyn Error>> {
    for instance in 1..=INSTANCES {
        for service in 0..services {
            put("/v1/catalog/register", &app(service, instance))?;
            put("/v1/catalog/register", &sidecar(service, instance))?;
        }
    }
    Ok(())
}

fn node(instance: u8) -> (String, String) {
    (format!("n{instance}"), format!("10.9.0.{instance}"))
}

fn app(service: u16, instance: u8) -> Value {
    let (node, address) = node(instance);
    let name = format!("c{service}");
    json!({ "Node": node, "Address": address, "Service": { "ID": name, "Service": name, "Port": 8080 } })
}

fn sidecar(service: u16, instance: u8) -> Value {
    let (node, address) = node(instance);
    let id = format!("c{service}-sidecar-proxy");
    json!({
        "Node": node, "Address": address,
        "Service": {
            "Kind": "connect-proxy", "ID": id, "Service": id, "Port": 21000 + service,
            "Proxy": { "DestinationServiceName": format!("c{service}"), "LocalServicePort": 8080 },
        },
        "Check": { "CheckID": id, "Name": "sidecar", "ServiceID": id, "Status": "passing" },
    })
}

fn check(service: u16, instance: u8, status: &str) -> Value {
    let (node, address) = node(instance);
    let id = format!("c{service}-sidecar-proxy");
    json!({
        "Node": node, "Address": address, "SkipNodeUpdate": true,
        "Check": { "CheckID": id, "Name": "sidecar", "ServiceID": id, "Status": status },
    })
}

/// A write to Consul's API.
fn put(path: &str, body: &Value) -> Result<(), Box<dyn Error>> {
    let mut stream = TcpStream::connect("127.0.0.1:8500")?;
    let body = body.to_string();
    write!(stream, "PUT {path} HTTP/1.0\r\nhost: consul\r\ncontent-length: {}\r\n\r\n{body}", body.len())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    if answer.starts_with("HTTP/1.0 200") { Ok(()) } else { Err(answer.into()) }
}

/// The first of Envoy's figures whose name fits; 0 when none does.
fn stat(admin: &Path, filter: &str) -> Result<u64, Box<dyn Error>> {
    let text = host::get(admin, &format!("/stats?filter={filter}"))?;
    // Beside the figures stand the sizes of HTTP's chunks.
    let figure = text.lines().find_map(|line| line.split_once(": "));
    Ok(figure.and_then(|(_, figure)| figure.parse().ok()).unwrap_or(0))
}

/// How many endpoints Envoy has for the cluster whose name begins so. Its statistics would tell as well, but it
/// takes 100 ms to go through those of so many clusters, and changes wait meanwhile.
fn endpoints(admin: &Path, cluster: &str) -> Result<usize, Box<dyn Error>> {
    let name = cluster.replace('.', "[.]");
    let query = format!("/config_dump?resource=dynamic_active_clusters&name_regex={name}[.].*");
    Ok(host::get(admin, &query)?.matches("\"socket_address\"").count())
}

fn wait(what: &str, mut there: impl FnMut() -> Result<bool, Box<dyn Error>>) -> Result<(), Box<dyn Error>> {
    let started = Instant::now();
    while !there()? {
        if started.elapsed() > LIMIT {
            return Err(format!("{what}: not there after {LIMIT:?}").into());
        }
        thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}
