//! The daemon: how long from a service file to a sidecar that takes connections, and what it costs
//! while nothing happens.

use std::error::Error;
use std::fs;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::host::{self, Host};
use crate::stats::{self, Way};
use crate::table::{Table, time};
use crate::{Answer, size};

const ROUNDS: usize = 15;

/// How long the daemon is watched while nothing happens.
const AT_REST: Duration = Duration::from_secs(10);

/// "Many" services.
const MANY: u32 = 100;

/// What one sidecar takes, roughly (64 MB was seen), so that a small machine is not run into the
/// ground.
const SIDECAR_KB: u64 = 80 * 1024;

/// inotify instances that are left to others of the sidecars' user, who has none usually.
const SPARE_WATCHES: u64 = 4;

/// From the service file's rename to a sidecar that is live, against Envoy's own start.
pub fn file_to_live() -> Answer {
    let mut host = Host::new(1)?;
    host.start()?;
    let limit = Duration::from_secs(20);
    let mut ways = [
        Way {
            name: "Envoy alone, until it says it is ready".to_owned(),
            before: Box::new(|| Ok(())),
            deed: Box::new(|| Bare::start()?.wait_until_ready()),
        },
        Way {
            name: "enmesh: service file written, until live".to_owned(),
            before: Box::new(|| {
                if host.path("etc/enmesh/services/s0.toml").exists() {
                    host.remove_service(0)?;
                }
                host.wait_for_live(0, limit).map(drop)
            }),
            deed: Box::new(|| {
                host.write_service(0)?;
                host.wait_for_live(1, limit).map(drop)
            }),
        },
    ];
    let samples = stats::in_turns(ROUNDS, &mut ways)?;
    let mut table = Table::of_samples("From a service file to a live sidecar", &samples);
    if let [envoy, enmesh] = samples.as_slice() {
        let own = enmesh.median().saturating_sub(envoy.median());
        table.note(format!("enmesh's own share, difference of the medians: {}", time(own)));
    }
    Ok(table)
}

/// An Envoy that does nothing, and its admin socket.
pub struct Bare {
    folder: tempfile::TempDir,
    envoy: Child,
}

impl Bare {
    /// Starts it.
    pub fn start() -> Result<Bare, Box<dyn Error>> {
        let folder = tempfile::tempdir()?;
        let bootstrap = folder.path().join("bootstrap.json");
        let admin = folder.path().join("admin.sock");
        fs::write(
            &bootstrap,
            format!(r#"{{"admin":{{"address":{{"pipe":{{"path":"{}"}}}}}}}}"#, admin.display()),
        )?;
        #[expect(clippy::disallowed_methods, reason = "what is measured against")]
        let envoy = Command::new(host::envoy())
            .arg("--config-path")
            .arg(&bootstrap)
            .args(["--disable-hot-restart", "--concurrency", "1", "--log-level", "off"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("{}: {error}; make tools", host::envoy().display()))?;
        Ok(Bare { folder, envoy })
    }

    /// Waits until it says it is ready.
    pub fn wait_until_ready(&self) -> Result<(), Box<dyn Error>> {
        let started = Instant::now();
        while host::get(&self.folder.path().join("admin.sock"), "/ready").is_err() {
            if started.elapsed() > Duration::from_secs(20) {
                return Err("Envoy did not get ready".into());
            }
            thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        let _ = self.envoy.kill();
        let _ = self.envoy.wait();
    }
}

/// Memory, threads and wake-ups of the daemon with one and with many services, while nothing
/// happens.
pub fn at_rest() -> Answer {
    let mut table = Table::new(
        "The daemon while nothing happens",
        &["services", "memory", "of it private", "threads", "wake-ups/s", "CPU", "all live after"],
    );
    let many = MANY.min(fitting()?);
    for count in [1, many] {
        table.row(measure_at_rest(count)?);
    }
    if many < MANY {
        table.note(format!(
            "not {MANY}: free memory and fs.inotify.max_user_instances of this machine carry {many} Envoys"
        ));
    }
    table.note(format!(
        "watched for {AT_REST:?}; memory is the daemon's alone, without its Envoys; {}",
        size::binary().display()
    ));
    Ok(table)
}

/// How many Envoys of one user this machine carries.
fn fitting() -> Result<u32, Box<dyn Error>> {
    let memory = line_of(&fs::read_to_string("/proc/meminfo")?, "MemAvailable:") / SIDECAR_KB;
    let watches: u64 = fs::read_to_string("/proc/sys/fs/inotify/max_user_instances")?.trim().parse()?;
    let each = u64::try_from(enmesh::envoy::INOTIFY_INSTANCES)?;
    let fit = |count: &u64| *count <= memory && count * each + SPARE_WATCHES <= watches;
    Ok(u32::try_from((1..=u64::from(MANY)).take_while(fit).last().unwrap_or(1))?)
}

fn measure_at_rest(count: u32) -> Result<Vec<String>, Box<dyn Error>> {
    let mut host = Host::new(count)?;
    (0..count).try_for_each(|number| host.write_service(number))?;
    let started = Instant::now();
    host.start()?;
    host.wait_for_live(usize::try_from(count)?, Duration::from_secs(180))?;
    let live_after = started.elapsed();
    // What followed from starting has ended by then.
    thread::sleep(Duration::from_secs(3));
    let pid = host.pid()?;
    let before = Usage::of(pid)?;
    thread::sleep(AT_REST);
    let after = Usage::of(pid)?;
    Ok(vec![
        count.to_string(),
        megabytes(after.resident),
        megabytes(after.private),
        after.threads.to_string(),
        wake_ups(&before, &after, AT_REST),
        percent(&before, &after, AT_REST),
        time(live_after),
    ])
}

/// Memory as a person reads it.
pub fn megabytes(kilobytes: u64) -> String {
    format!("{:.1} MB", kilobytes as f64 / 1024.0)
}

/// The share of one core that was used in `time`.
pub fn percent(before: &Usage, after: &Usage, time: Duration) -> String {
    format!("{:.2} %", after.cpu.saturating_sub(before.cpu).as_secs_f64() / time.as_secs_f64() * 100.0)
}

/// How often a second a process woke up by itself in `time`.
pub fn wake_ups(before: &Usage, after: &Usage, time: Duration) -> String {
    format!("{:.1}", after.wake_ups.saturating_sub(before.wake_ups) as f64 / time.as_secs_f64())
}

/// What a process uses, from proc_pid_status(5) and proc_pid_schedstat(5). Memory is in kilobytes.
pub struct Usage {
    /// Memory that it holds.
    pub resident: u64,
    /// Of that, what no other process has.
    pub private: u64,
    threads: u64,
    wake_ups: u64,
    cpu: Duration,
}

impl Usage {
    /// What the process `pid` uses.
    pub fn of(pid: u32) -> Result<Usage, Box<dyn Error>> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let mut usage = Usage {
            resident: line_of(&status, "VmRSS:"),
            private: line_of(&status, "RssAnon:"),
            threads: line_of(&status, "Threads:"),
            wake_ups: 0,
            cpu: Duration::ZERO,
        };
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            let task = task?.path();
            usage.wake_ups += line_of(&fs::read_to_string(task.join("status"))?, "voluntary_ctxt_switches:");
            let spent = fs::read_to_string(task.join("schedstat"))?;
            let nanoseconds = spent.split(' ').next().and_then(|first| first.parse().ok());
            usage.cpu += Duration::from_nanos(nanoseconds.ok_or("no time in schedstat")?);
        }
        Ok(usage)
    }
}

/// The number behind `name` in a file of `name: number` lines; 0 when there is none.
fn line_of(text: &str, name: &str) -> u64 {
    text.lines()
        .find_map(|line| line.strip_prefix(name))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|number| number.parse().ok())
        .unwrap_or(0)
}
