//! A container group of real containers: how long it takes into Consul and out of it, and what the sidecar costs.

use std::error::Error;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use crate::Answer;
use crate::beds::field::Field;
use crate::size::binary;
use crate::stats::Sample;
use crate::table::{Table, time};

/// How often a group is started and ended.
const ROUNDS: usize = 11;
/// Nothing takes as long.
const LIMIT: Duration = Duration::from_secs(30);
/// How often Consul is asked.
const LOOK: Duration = Duration::from_millis(2);
const SERVICE: (&str, &str) = ("api1", "api");
const SIDECAR: &str = "api1-sidecar";
const ENVIRONMENT: [(&str, &str); 2] =
    [("ENMESH_SERVICE_PORT", "8080"), ("ENMESH_SERVICE_CHECK", "tcp://127.0.0.1:8080")];

/// From the start of the sidecar's container to passing in Consul, and from SIGTERM to its end.
pub fn measure() -> Answer {
    // The containers take the binary that is measured, not the one that this was built with.
    let binary = binary();
    let field = Field::with(&["api"], binary.clone());
    field.app("api1", "api");
    let mut samples = [
        "an empty container runs (docker run)",
        "sidecar started to passing in Consul",
        "SIGTERM to the end",
    ]
    .map(|name| Sample { name: name.to_owned(), times: Vec::new() });
    let mut memory = (0, 0);
    for _ in 0..ROUNDS {
        let started = Instant::now();
        field.enmesh(SERVICE, &["--detach", "--name", "idle"], &[], &["enmesh", "--version"])?;
        samples[0].times.push(started.elapsed());
        field.docker.run(&["rm", "--force", "idle"]);

        let started = Instant::now();
        field.sidecar(SERVICE, &["--cap-add", "NET_ADMIN"], &ENVIRONMENT);
        await_passing(&field, started)?;
        samples[1].times.push(started.elapsed());
        thread::sleep(Duration::from_secs(1));
        memory = resident(&field)?;

        let started = Instant::now();
        field.docker.run(&["kill", "--signal", "TERM", SIDECAR]);
        let status = field.docker.exit_status(SIDECAR);
        if status != 0 {
            return Err(format!("the sidecar ended with {status}: {}", field.docker.log(SIDECAR)).into());
        }
        samples[2].times.push(started.elapsed());
        field.docker.run(&["rm", SIDECAR]);
    }
    let mut table = Table::new(
        "A container group (real Docker Engine, Consul with ACLs and a login)",
        &["", "median", "10 % - 90 %"],
    );
    for sample in &samples {
        table.row([
            sample.name.clone(),
            time(sample.median()),
            format!("{} - {}", time(sample.quantile(0.1)), time(sample.quantile(0.9))),
        ]);
    }
    let (enmesh, envoy) = memory;
    let megabytes = |kilobytes: u64| format!("{:.1} MB", kilobytes as f64 / 1e3);
    table.row(["memory: enmesh".to_owned(), megabytes(enmesh), String::new()]);
    table.row(["memory: Envoy".to_owned(), megabytes(envoy), String::new()]);
    table
        .note(format!("{ROUNDS} rounds; an end has 2 s of grace in it (`stop.grace`); {}", binary.display()));
    Ok(table)
}

fn await_passing(field: &Field, since: Instant) -> Result<(), Box<dyn Error>> {
    while field.instances("api") != [("api1-enmesh".to_owned(), true)] {
        if since.elapsed() > LIMIT {
            return Err(format!("not passing: {}", field.docker.log(SIDECAR)).into());
        }
        thread::sleep(LOOK);
    }
    Ok(())
}

/// Kilobytes that enmesh and its Envoy have in memory.
fn resident(field: &Field) -> Result<(u64, u64), Box<dyn Error>> {
    let enmesh = field.docker.pid(SIDECAR);
    let children = fs::read_to_string(format!("/proc/{enmesh}/task/{enmesh}/children"))?;
    let of = |pid: &str, key: &str| -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        status.lines().find_map(|line| line.strip_prefix(key)?.split_whitespace().next()?.parse().ok())
    };
    let user = Some(field.docker.envoy_uid().into());
    let envoy = children.split_whitespace().find(|pid| of(pid, "Uid:") == user);
    let own = of(&enmesh.to_string(), "VmRSS:").ok_or("no memory of enmesh")?;
    Ok((own, envoy.and_then(|pid| of(pid, "VmRSS:")).ok_or("no Envoy")?))
}
