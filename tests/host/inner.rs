//! What runs inside a machine: this same program, started there by `Machine::run_inner`. Ignored
//! elsewhere, and refused should somebody run it anyway: these tests act on the host they are on.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use enmesh::base::units::{UnitEvent, UnitSpec, UnitState, Units};
use enmesh::base::{Root, exec, process};
use enmesh::supervise::{Supervisor, Timing};
use enmesh::systemd::{Systemd, escape, resolved};
use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt};
use tokio::sync::broadcast::Receiver;

/// Set inside machines only.
pub const INSIDE: &str = "ENMESH_INSIDE_A_TEST_MACHINE";

fn run<T>(test: impl Future<Output = T>) -> T {
    assert!(std::env::var_os(INSIDE).is_some(), "this test runs inside a machine only");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let bounded =
        async { tokio::time::timeout(Duration::from_secs(90), test).await.expect("the test hangs") };
    tokio::task::LocalSet::new().block_on(&runtime, bounded)
}

async fn connect() -> Systemd {
    Systemd::connect(Root::default()).await.unwrap()
}

/// A sidecar with the smallest bootstrap there is.
fn sidecar(instance: &str) -> UnitSpec {
    let (uid, gid) = envoy();
    let folder = PathBuf::from("/run/enmesh").join(instance);
    fs::create_dir_all(&folder).unwrap();
    chown(&folder, Some(0), Some(gid)).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o770)).unwrap();
    let socket = folder.join("admin.sock");
    let bootstrap = format!(r#"{{"admin":{{"address":{{"pipe":{{"path":"{}"}}}}}}}}"#, socket.display());
    let path = folder.join("bootstrap.json");
    fs::write(&path, bootstrap).unwrap();
    let arguments = ["-c", path.to_str().unwrap(), "--disable-hot-restart"];
    UnitSpec {
        instance: instance.to_owned(),
        program: PathBuf::from("/usr/bin/envoy"),
        arguments: arguments.map(str::to_owned).to_vec(),
        uid,
        gid,
        revision: "1".to_owned(),
        network: None,
    }
}

fn envoy() -> (u32, u32) {
    let user = nix::unistd::User::from_name("envoy").unwrap().expect("sysusers made the user");
    (user.uid.as_raw(), user.gid.as_raw())
}

fn kill(pid: u32) {
    let number = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap());
    nix::sys::signal::kill(number, nix::sys::signal::Signal::SIGKILL).unwrap();
}

/// A line of /proc/PID/status.
fn status_line(pid: u32, key: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(key)).expect("a line");
    line.trim_start_matches(':').split_whitespace().collect::<Vec<_>>().join(" ")
}

async fn next(events: &mut Receiver<UnitEvent>, state: UnitState) -> UnitEvent {
    loop {
        let event = events.recv().await.unwrap();
        println!("  {event:?}");
        if event.state == state {
            return event;
        }
    }
}

async fn pid(units: &Systemd, instance: &str) -> u32 {
    units.status(instance).await.unwrap().pid.expect("it runs")
}

fn enabled(instance: &str) -> bool {
    let wants = Path::new("/etc/systemd/system/multi-user.target.wants");
    fs::symlink_metadata(wants.join(escape::unit(instance))).is_ok()
}

/// Programs that only sleep in the place of Envoys: so many of those, a small machine does not bear.
#[test]
#[ignore = "runs inside a machine"]
fn a_hundred_sidecars_come_and_go() {
    run(async {
        let spec = |n: u32| UnitSpec {
            program: PathBuf::from("/bin/sleep"),
            arguments: vec!["infinity".to_owned()],
            ..sidecar(&format!("s{n}"))
        };
        let specs: Vec<UnitSpec> = (0..100).map(spec).collect();
        let units = connect().await;
        let before = Instant::now();
        // As many side by side as the engine brings up.
        let starts = specs.iter().map(|spec| units.start_until(spec, Box::pin(std::future::ready(()))));
        let started: Vec<_> = stream::iter(starts).buffered(8).collect().await;
        started.into_iter().for_each(|start| start.unwrap());
        println!("a hundred started: {:?}", before.elapsed());
        assert_eq!(units.list().await.unwrap().len(), 100);
        let before = Instant::now();
        for spec in &specs {
            units.start(spec).await.unwrap();
        }
        println!("a hundred that run: {:?}", before.elapsed());
        let before = Instant::now();
        let stops = join_all(specs.iter().map(|spec| units.stop(&spec.instance))).await;
        stops.into_iter().for_each(|stop| stop.unwrap());
        println!("a hundred stopped: {:?}", before.elapsed());
    });
}

#[test]
#[ignore = "runs inside a machine"]
fn a_sidecar_from_start_to_stop() {
    run(async {
        let spec = sidecar("my-api");
        let units = connect().await;
        let mut events = units.events();
        let before = Instant::now();
        units.start(&spec).await.unwrap();
        println!("start: {:?}", before.elapsed());
        let first = pid(&units, "my-api").await;
        assert_eq!(next(&mut events, UnitState::Active).await.pid, Some(first));
        // Its own user, and no power whatever.
        let (uid, gid) = envoy();
        assert_eq!(status_line(first, "Uid"), [uid; 4].map(|id| id.to_string()).join(" "));
        assert_eq!(status_line(first, "Gid"), [gid; 4].map(|id| id.to_string()).join(" "));
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(status_line(first, set), "0000000000000000", "{set}");
        }
        assert_eq!(status_line(first, "NoNewPrivs"), "1");
        assert_eq!(process::name_of(first), Some(spec.process_name()));
        assert!(enabled("my-api"));

        // The same again changes nothing, whoever asks.
        let before = Instant::now();
        units.start(&spec).await.unwrap();
        println!("start of what runs: {:?}", before.elapsed());
        connect().await.start(&spec).await.unwrap();
        assert_eq!(pid(&units, "my-api").await, first);

        // Killed, it is back by itself, and we hear of it at once.
        kill(first);
        let killed = Instant::now();
        assert_eq!(next(&mut events, UnitState::Failed).await.instance, "my-api");
        println!("heard of the kill after {:?}", killed.elapsed());
        let back = next(&mut events, UnitState::Active).await;
        println!("back after {:?}", killed.elapsed());
        assert_ne!(back.pid, Some(first));
        assert_eq!(units.status("my-api").await.unwrap().restarts, 1);

        // Another revision is another process.
        let changed = UnitSpec { revision: "2".to_owned(), ..spec };
        units.start(&changed).await.unwrap();
        let second = pid(&units, "my-api").await;
        assert_ne!(Some(second), back.pid);
        assert_eq!(process::name_of(second), Some(changed.process_name()));
        assert_eq!(units.list().await.unwrap(), ["my-api"]);

        let before = Instant::now();
        units.stop("my-api").await.unwrap();
        println!("stop: {:?}", before.elapsed());
        assert_eq!(process::Identity::of(second), None);
        assert!(!enabled("my-api"));
        assert!(!Path::new(r"/run/systemd/system/envoy@my\x2dapi.service.d").exists());
        assert_eq!(units.status("my-api").await.unwrap().state, UnitState::Inactive);
        assert!(units.list().await.unwrap().is_empty());
        units.stop("my-api").await.unwrap();
    });
}

#[test]
#[ignore = "runs inside a machine"]
fn faults_have_codes() {
    run(async {
        let units = connect().await;
        let good = sidecar("api");

        // A bootstrap that Envoy does not like.
        fs::write("/run/enmesh/api/bootstrap.json", "{\"admin\":").unwrap();
        let before = Instant::now();
        let fault = units.start(&good).await.unwrap_err();
        println!("{fault} ({:?})", before.elapsed());
        assert_eq!(fault.code, "ENM-S007");
        assert!(fault.message.contains("exit status 1"), "{fault}");
        assert!(before.elapsed() < Duration::from_secs(5));
        // Mended, it comes up without a new revision.
        let good = sidecar("api");
        units.start(&good).await.unwrap();

        // No bootstrap at all: systemd skips the start.
        let absent = UnitSpec { instance: "absent".to_owned(), ..good.clone() };
        let fault = units.start(&absent).await.unwrap_err();
        println!("{fault}");
        assert_eq!(fault.code, "ENM-S006");

        // A program that cannot be executed is the job's failure.
        let spec = UnitSpec { program: PathBuf::from("/usr/bin/no-such-envoy"), ..sidecar("none") };
        let fault = units.start(&spec).await.unwrap_err();
        println!("{fault}\n{}", fault.hint);
        assert_eq!(fault.code, "ENM-S004");
        assert!(fault.message.contains("exit status 203"), "{fault}");

        // An ordinary user may look, but not touch.
        let before = units.status("api").await.unwrap();
        nix::unistd::seteuid(nix::unistd::Uid::from_raw(65534)).unwrap();
        let other = connect().await;
        assert_eq!(other.status("api").await.unwrap(), before);
        let fault = other.stop("api").await.unwrap_err();
        println!("{fault}");
        assert_eq!((fault.code, fault.class.exit_code()), ("ENM-S002", 77));
        drop(other);
        nix::unistd::seteuid(nix::unistd::Uid::from_raw(0)).unwrap();
        assert_eq!(units.status("api").await.unwrap(), before);

        assert_eq!(units.list().await.unwrap(), ["absent", "api", "none"]);
        for instance in ["absent", "api", "none", "never-was"] {
            units.stop(instance).await.unwrap();
        }
        assert!(units.list().await.unwrap().is_empty());

        // No unit file.
        fs::remove_file("/usr/lib/systemd/system/envoy@.service").unwrap();
        let fault = units.start(&good).await.unwrap_err();
        println!("{fault}\n{}", fault.hint);
        assert_eq!((fault.code, fault.class.exit_code()), ("ENM-S003", 69));
        units.stop("api").await.unwrap();
    });
}

#[test]
#[ignore = "runs inside a machine"]
fn a_sidecar_is_left_running() {
    run(async { connect().await.start(&sidecar("my-api")).await.unwrap() });
}

#[test]
#[ignore = "runs inside a machine"]
fn an_enabled_sidecar_was_skipped_and_can_be_started() {
    run(async {
        let units = connect().await;
        assert!(enabled("my-api"));
        assert_eq!(units.list().await.unwrap(), ["my-api"]);
        assert_eq!(units.status("my-api").await.unwrap().state, UnitState::Inactive);
        units.start(&sidecar("my-api")).await.unwrap();
        assert_eq!(units.status("my-api").await.unwrap().state, UnitState::Active);
    });
}

#[test]
#[ignore = "runs inside a machine"]
fn events_survive_a_restart_of_the_bus() {
    run(async {
        let units = connect().await;
        units.start(&sidecar("api")).await.unwrap();
        let mut events = units.events();
        let systemctl = exec::find("systemctl").unwrap();
        let restart = exec::run(&systemctl, &["restart", "dbus"], b"", Duration::from_secs(30)).unwrap();
        assert!(restart.status.success(), "{}", restart.stderr);
        // What happens while nobody is connected is told later.
        let first = units_pid_from_proc("envoy:api:");
        kill(first);
        let back = next(&mut events, UnitState::Active).await;
        assert_ne!(back.pid, Some(first));
        kill(back.pid.unwrap());
        next(&mut events, UnitState::Failed).await;
        next(&mut events, UnitState::Active).await;
        units.stop("api").await.unwrap();
    });
}

/// The process whose name starts like this.
fn units_pid_from_proc(name: &str) -> u32 {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let mut pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.find(|&pid| process::name_of(pid).is_some_and(|found| found.starts_with(name))).expect("it runs")
}

#[test]
#[ignore = "runs inside a machine"]
fn resolved_asks_whom_it_is_told() {
    run(async {
        let units = connect().await;
        let told = || {
            let resolvectl = exec::find("resolvectl").unwrap();
            let output =
                exec::run(&resolvectl, &["status", "--no-pager"], b"", Duration::from_secs(10)).unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        let server = "127.0.0.1:8653".parse().unwrap();
        assert!(units.feed_resolver(server, resolved::DOMAIN).await.unwrap());
        let status = told();
        assert!(status.contains("127.0.0.1:8653") && status.contains("~consul"), "{status}");
        assert!(!units.feed_resolver(server, resolved::DOMAIN).await.unwrap(), "nothing new to tell");
        assert!(units.unfeed_resolver().await.unwrap());
        let status = told();
        assert!(!status.contains("8653") && !status.contains("~consul"), "{status}");
        assert!(!units.unfeed_resolver().await.unwrap());
    });
}

/// Where one test tells the next which process it left.
const LEFT: &str = "/run/left-running";

#[test]
#[ignore = "runs inside a machine"]
fn a_supervisor_starts_envoy_and_is_killed() {
    run(async {
        let units = Supervisor::new(Root::default(), Timing::default());
        let before = Instant::now();
        units.start(&sidecar("my-api")).await.unwrap();
        println!("start: {:?}", before.elapsed());
        let pid = units.status("my-api").await.unwrap().pid.expect("it runs");
        let (uid, gid) = envoy();
        assert_eq!(status_line(pid, "Uid"), [uid; 4].map(|id| id.to_string()).join(" "));
        assert_eq!(status_line(pid, "Gid"), [gid; 4].map(|id| id.to_string()).join(" "));
        assert_eq!(status_line(pid, "Groups"), "");
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(status_line(pid, set), "0000000000000000", "{set}");
        }
        assert_eq!(status_line(pid, "NoNewPrivs"), "1");
        assert_eq!(fs::read(format!("/proc/{pid}/environ")).unwrap(), b"");
        fs::write(LEFT, pid.to_string()).unwrap();
        println!("now the kill");
        kill(std::process::id());
    });
}

#[test]
#[ignore = "runs inside a machine"]
fn the_next_supervisor_adopts_envoy() {
    run(async {
        let left: u32 = fs::read_to_string(LEFT).unwrap().parse().unwrap();
        let units = Supervisor::new(Root::default(), Timing::default());
        let mut events = units.events();
        let before = Instant::now();
        units.start(&sidecar("my-api")).await.unwrap();
        println!("adopted after {:?}", before.elapsed());
        assert_eq!(next(&mut events, UnitState::Active).await.pid, Some(left));
        kill(left);
        next(&mut events, UnitState::Failed).await;
        assert_ne!(next(&mut events, UnitState::Active).await.pid, Some(left));
        units.stop("my-api").await.unwrap();
        assert!(units.list().await.unwrap().is_empty());
    });
}
