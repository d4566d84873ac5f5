//! With real processes that run for as long as a test takes.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::*;
use crate::base::process::{Identity, name_of};

const TIMING: Timing = Timing {
    first_pause: Duration::from_millis(20),
    longest_pause: Duration::from_millis(80),
    calm: Duration::from_secs(30),
    grace: Duration::from_millis(500),
    settle: Duration::from_millis(150),
};

fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let bounded =
        async { tokio::time::timeout(Duration::from_secs(30), test).await.expect("the test hangs") };
    tokio::task::LocalSet::new().block_on(&runtime, bounded)
}

fn sleeper(instance: &str, seconds: &str) -> UnitSpec {
    program(instance, "/bin/sleep", &[seconds])
}

fn program(instance: &str, program: &str, arguments: &[&str]) -> UnitSpec {
    UnitSpec {
        instance: instance.to_owned(),
        program: PathBuf::from(program),
        arguments: arguments.iter().map(|&a| a.to_owned()).collect(),
        uid: nix::unistd::geteuid().as_raw(),
        gid: nix::unistd::getegid().as_raw(),
        revision: "1".to_owned(),
        network: None,
    }
}

fn supervisor(dir: &Path) -> Supervisor {
    Supervisor::new(Root::new(dir), TIMING)
}

async fn pid(units: &Supervisor, instance: &str) -> u32 {
    units.status(instance).await.unwrap().pid.expect("it runs")
}

fn alive(pid: u32) -> bool {
    Identity::of(pid).is_some()
}

fn kill(pid: u32) {
    let number = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap());
    nix::sys::signal::kill(number, nix::sys::signal::Signal::SIGKILL).unwrap();
}

/// A process of the test's own, ended when dropped.
struct Stranger(std::process::Child);

impl Stranger {
    #[expect(clippy::disallowed_methods, reason = "not a sidecar, but somebody who must be left alone")]
    fn new() -> Self {
        Stranger(std::process::Command::new("/bin/sleep").arg("60").spawn().unwrap())
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn starts_once_restarts_on_change_and_stops() {
    let dir = tempfile::tempdir().unwrap();
    run(async {
        let units = supervisor(dir.path());
        let mut events = units.events();
        let spec = sleeper("my-api", "60");
        units.start(&spec).await.unwrap();
        let first = pid(&units, "my-api").await;
        assert_eq!(name_of(first), Some(spec.process_name()));
        assert_eq!(
            nix::unistd::getpgid(Some(nix::unistd::Pid::from_raw(first as i32))).unwrap().as_raw() as u32,
            first
        );
        units.start(&spec).await.unwrap();
        assert_eq!(pid(&units, "my-api").await, first, "the same specification changes nothing");

        let changed = UnitSpec { revision: "2".to_owned(), ..spec };
        units.start(&changed).await.unwrap();
        let second = pid(&units, "my-api").await;
        assert_ne!(second, first);
        assert!(!alive(first));
        assert_eq!(units.list().await.unwrap(), ["my-api"]);

        units.stop("my-api").await.unwrap();
        assert!(!alive(second));
        assert_eq!(units.status("my-api").await.unwrap().state, UnitState::Inactive);
        assert!(units.list().await.unwrap().is_empty());
        assert!(!dir.path().join("run/enmesh/my-api/pid").exists());
        units.stop("my-api").await.unwrap();

        use UnitState::{Active, Deactivating, Inactive};
        let mut states = Vec::new();
        while let Ok(event) = events.try_recv() {
            assert_eq!(event.instance, "my-api");
            states.push((event.state, event.pid));
        }
        let (first, second) = (Some(first), Some(second));
        let expected = [
            (Active, first),
            (Deactivating, first),
            (Inactive, None),
            (Active, second),
            (Deactivating, second),
            (Inactive, None),
        ];
        assert_eq!(states, expected);
    });
}

/// Converging may be faster than the pause; it is a restart all the same, and the pauses grow.
#[test]
fn a_killed_sidecar_that_is_wanted_at_once_counts_as_started_again() {
    let dir = tempfile::tempdir().unwrap();
    run(async {
        let pause = |seconds| Duration::from_secs(seconds);
        let timing = Timing { first_pause: pause(20), longest_pause: pause(70), ..TIMING };
        let units = Supervisor::new(Root::new(dir.path()), timing);
        units.start(&sleeper("api", "60")).await.unwrap();
        for (count, next) in [(1, 40), (2, 70), (3, 70)] {
            let mut events = units.events();
            kill(pid(&units, "api").await);
            assert_eq!(events.recv().await.unwrap().state, UnitState::Failed);
            units.start(&sleeper("api", "60")).await.unwrap();
            assert_eq!(units.status("api").await.unwrap().restarts, count);
            assert_eq!(units.shared.sidecars.borrow()["api"].pause, pause(next));
        }
        // Another program is not the one that ended.
        units.start(&sleeper("api", "61")).await.unwrap();
        assert_eq!(units.status("api").await.unwrap().restarts, 0);
        assert_eq!(units.shared.sidecars.borrow()["api"].pause, pause(20));
        units.stop("api").await.unwrap();
    });
}

#[test]
fn a_killed_sidecar_is_back_and_everybody_hears_of_it() {
    let dir = tempfile::tempdir().unwrap();
    run(async {
        let units = supervisor(dir.path());
        units.start(&sleeper("api", "60")).await.unwrap();
        let first = pid(&units, "api").await;
        let mut events = units.events();
        kill(first);
        assert_eq!(events.recv().await.unwrap().state, UnitState::Failed);
        let back = events.recv().await.unwrap();
        assert_eq!(back.state, UnitState::Active);
        assert_ne!(back.pid, Some(first));
        let status = units.status("api").await.unwrap();
        assert_eq!((status.restarts, status.pid), (1, back.pid));
        units.stop("api").await.unwrap();
        assert!(!alive(back.pid.unwrap()));
    });
}

#[test]
fn one_that_ends_at_once_is_an_error_and_is_tried_with_growing_pauses() {
    let dir = tempfile::tempdir().unwrap();
    run(async {
        let units = supervisor(dir.path());
        let mut events = units.events();
        let fault = units.start(&program("api", "/bin/false", &[])).await.unwrap_err();
        assert_eq!(fault.code, "ENM-V002");
        let mut failures = Vec::new();
        while failures.len() < 6 {
            if events.recv().await.unwrap().state == UnitState::Failed {
                failures.push(Instant::now());
            }
        }
        let pauses: Vec<Duration> = failures.windows(2).map(|pair| pair[1] - pair[0]).collect();
        for (pause, least) in pauses.iter().zip([20, 40, 80, 80, 80]) {
            assert!(*pause >= Duration::from_millis(least), "{pauses:?}");
        }
        units.stop("api").await.unwrap();
        assert_eq!(units.status("api").await.unwrap().state, UnitState::Inactive);
    });
}

#[test]
fn what_cannot_be_started_is_named() {
    let dir = tempfile::tempdir().unwrap();
    run(async {
        let units = supervisor(dir.path());
        let fault = units.start(&program("api", "/nowhere/envoy", &[])).await.unwrap_err();
        assert_eq!(fault.code, "ENM-V001");
        assert_eq!(fault.class.exit_code(), 69);
        assert!(fault.message.contains("/nowhere/envoy"));
        assert!(units.list().await.unwrap().is_empty());
    });
}

#[test]
fn one_that_ignores_sigterm_is_killed_after_the_grace() {
    let dir = tempfile::tempdir().unwrap();
    run(async {
        let units = supervisor(dir.path());
        let script = "trap '' TERM; while :; do sleep 1; done";
        units.start(&program("api", "/bin/sh", &["-c", script])).await.unwrap();
        let stubborn = pid(&units, "api").await;
        let before = Instant::now();
        units.stop("api").await.unwrap();
        assert!(before.elapsed() >= TIMING.grace);
        assert!(!alive(stubborn));
    });
}

#[test]
fn a_sidecar_outlives_its_supervisor_and_is_adopted() {
    let dir = tempfile::tempdir().unwrap();
    let spec = sleeper("api", "60");
    // The first runtime and all its tasks are gone before the second starts, as after a kill.
    let first = run(async {
        let units = supervisor(dir.path());
        units.start(&spec).await.unwrap();
        pid(&units, "api").await
    });
    assert!(alive(first));
    run(async {
        let units = supervisor(dir.path());
        assert_eq!(units.list().await.unwrap(), ["api"]);
        assert_eq!(units.status("api").await.unwrap().state, UnitState::Active);
        units.start(&spec).await.unwrap();
        assert_eq!(pid(&units, "api").await, first, "adopted, not restarted");

        let mut events = units.events();
        kill(first);
        assert_eq!(events.recv().await.unwrap().state, UnitState::Failed, "watched like a child");
        let back = events.recv().await.unwrap().pid.unwrap();
        assert_ne!(back, first);
        units.stop("api").await.unwrap();
        assert!(!alive(back));
    });
}

#[test]
fn a_leftover_of_another_revision_is_replaced_and_one_nobody_wants_is_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let spec = sleeper("api", "60");
    let start = || {
        run(async {
            let units = supervisor(dir.path());
            units.start(&spec).await.unwrap();
            pid(&units, "api").await
        })
    };
    let first = start();
    let second = run(async {
        let units = supervisor(dir.path());
        units.start(&UnitSpec { revision: "2".to_owned(), ..spec.clone() }).await.unwrap();
        pid(&units, "api").await
    });
    assert!(!alive(first) && alive(second));
    run(async { supervisor(dir.path()).stop("api").await.unwrap() });
    assert!(!alive(second));
}

#[test]
fn a_stranger_with_a_recorded_number_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let mut stranger = Stranger::new();
    let identity = Identity::of(stranger.0.id()).unwrap();
    let folder = dir.path().join("run/enmesh/api");
    std::fs::create_dir_all(&folder).unwrap();
    // Once with another start time (the number was used again), once with everything but the name.
    for started in [identity.started - 1, identity.started] {
        std::fs::write(folder.join("pid"), format!("{} {started}\n", identity.pid)).unwrap();
        run(async {
            let units = supervisor(dir.path());
            assert_eq!(units.status("api").await.unwrap().state, UnitState::Inactive);
            units.start(&sleeper("api", "60")).await.unwrap();
            let ours = pid(&units, "api").await;
            assert_ne!(ours, identity.pid);
            units.stop("api").await.unwrap();
            assert!(!alive(ours));
        });
        assert!(stranger.0.try_wait().unwrap().is_none(), "the stranger lives");
    }
    std::fs::write(folder.join("pid"), "not a record").unwrap();
    run(async { supervisor(dir.path()).stop("api").await.unwrap() });
}
