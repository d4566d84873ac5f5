//! Against the fake; what a real systemd does is tested on one, in `tests/host`.

use std::future::Future;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;

use zbus::fdo;

use super::fake::{FakeJob, FakeSystemd, FakeUnit};
use super::*;

const UNIT: &str = r"envoy@my\x2dapi.service";
const LIMITS: Limits = Limits {
    call: Duration::from_secs(5),
    job: Duration::from_millis(300),
    settle: Duration::from_millis(100),
};

/// A test's surroundings: the fake, the real thing connected to it, and a root of its own.
struct Bench {
    fake: FakeSystemd,
    units: Systemd,
    root: tempfile::TempDir,
}

fn bench<T, F: Future<Output = T>>(test: impl FnOnce(Bench) -> F) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let (fake, connection) = FakeSystemd::start().await;
        let root = tempfile::tempdir().unwrap();
        let units = Systemd::connect_to(connection, Root::new(root.path()), LIMITS).await.unwrap();
        let test = test(Bench { fake, units, root });
        tokio::time::timeout(Duration::from_secs(20), test).await.expect("the test hangs")
    })
}

fn spec() -> UnitSpec {
    UnitSpec {
        instance: "my-api".to_owned(),
        program: PathBuf::from("/usr/bin/envoy"),
        arguments: vec!["-c".to_owned(), "/run/enmesh/my-api/bootstrap.json".to_owned()],
        uid: 995,
        gid: 995,
        revision: "1".to_owned(),
        network: None,
    }
}

/// A real process with the name that a sidecar's would have; ended when dropped.
struct Named(std::process::Child);

impl Named {
    #[expect(clippy::disallowed_methods, reason = "it stands for a process that systemd started")]
    fn new(name: &str) -> Self {
        Named(std::process::Command::new("/bin/sleep").arg0(name).arg("60").spawn().unwrap())
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_start_enables_reloads_and_waits_for_the_job() {
    bench(async |Bench { fake, units, root }| {
        let process = Named::new(&spec().process_name());
        fake.next_job(FakeJob::to(FakeUnit::running(process.pid())));
        units.start(&spec()).await.unwrap();
        let enable = format!("EnableUnitFiles {UNIT} false true");
        assert_eq!(fake.take_calls(), [&enable, "Reload", &format!("RestartUnit {UNIT} replace")]);
        let dropin = root.path().join(format!("run/systemd/system/{UNIT}.d/50-enmesh.conf"));
        assert_eq!(std::fs::read_to_string(&dropin).unwrap(), dropin::render(&spec(), 252));
        assert_eq!(units.list().await.unwrap(), ["my-api"]);

        units.start(&spec()).await.unwrap();
        assert_eq!(fake.take_calls(), [enable.as_str()], "what runs as it should is left alone");

        // Killed between the drop-in and the reload: the next run reloads.
        fake.set(UNIT, FakeUnit { stale: true, ..FakeUnit::running(process.pid()) });
        units.start(&spec()).await.unwrap();
        assert_eq!(fake.take_calls(), [enable.as_str(), "Reload"]);

        // Killed between the reload and the restart: what runs has another name.
        let old = Named::new("envoy:my-api:0123456789ab");
        fake.set(UNIT, FakeUnit::running(old.pid()));
        fake.next_job(FakeJob::to(FakeUnit::running(process.pid())));
        units.start(&spec()).await.unwrap();
        assert_eq!(fake.take_calls(), [enable, format!("RestartUnit {UNIT} replace")]);
    });
}

#[test]
fn a_stop_takes_everything_back() {
    bench(async |Bench { fake, units, root }| {
        fake.next_job(FakeJob::to(FakeUnit::running(4_000_001)));
        units.start(&spec()).await.unwrap();
        fake.take_calls();
        units.stop("my-api").await.unwrap();
        let expected = [
            format!("StopUnit {UNIT} replace"),
            format!("DisableUnitFiles {UNIT} false"),
            "Reload".to_owned(),
            format!("ResetFailedUnit {UNIT}"),
        ];
        assert_eq!(fake.take_calls(), expected);
        assert_eq!(std::fs::read_dir(root.path().join("run/systemd/system")).unwrap().count(), 0);

        units.stop("my-api").await.unwrap();
        assert!(!fake.take_calls().contains(&"Reload".to_owned()), "nothing changed");
        fake.set(UNIT, FakeUnit { load: "not-found", ..FakeUnit::DEAD });
        units.stop("my-api").await.unwrap();
        assert!(!fake.take_calls().iter().any(|call| call.starts_with("StopUnit")));
    });
}

#[test]
fn every_way_a_job_can_end_but_well_is_an_error() {
    bench(async |Bench { fake, units, .. }| {
        let results = ["failed", "timeout", "dependency", "canceled", "skipped", "assert", "unsupported"];
        for result in results {
            fake.next_job(FakeJob::ends_as(result, FakeUnit { status: 203, ..FakeUnit::ENDED }));
            let fault = units.start(&spec()).await.unwrap_err();
            assert_eq!(fault.code, "ENM-S004");
            assert!(fault.message.contains(&format!("`{result}` (exit-code, exit status 203)")), "{fault}");
            assert!(fault.hint.contains(r"journalctl -u 'envoy@my\x2dapi.service'"));
        }
        fake.next_job(FakeJob { result: None, ..FakeJob::to(FakeUnit::DEAD) });
        let fault = units.start(&spec()).await.unwrap_err();
        assert_eq!(fault.code, "ENM-S005");
        fake.next_job(FakeJob::to(FakeUnit { condition: false, ..FakeUnit::DEAD }));
        assert_eq!(units.start(&spec()).await.unwrap_err().code, "ENM-S006");
    });
}

#[test]
fn one_that_ends_at_once_is_an_error_though_its_job_was_done() {
    bench(async |Bench { fake, units, .. }| {
        // Even when systemd has it running again by the time we look.
        let after = vec![FakeUnit::ENDED, FakeUnit { restarts: 1, ..FakeUnit::running(4_000_002) }];
        fake.next_job(FakeJob { after, ..FakeJob::to(FakeUnit::running(4_000_001)) });
        let fault = units.start(&spec()).await.unwrap_err();
        assert_eq!(fault.code, "ENM-S007");
        assert!(fault.message.ends_with("(exit-code, exit status 1)"), "{fault}");

        // But not when it is the one before that ended badly, on being told to end.
        let old = FakeUnit { active: "failed", sub: "failed", result: "timeout", ..FakeUnit::DEAD };
        let before = vec![old, FakeUnit::running(4_000_003)];
        fake.next_job(FakeJob { before, ..FakeJob::to(FakeUnit::DEAD) });
        units.start(&spec()).await.unwrap();
    });
}

#[test]
fn a_kill_is_told_as_it_happens() {
    bench(async |Bench { fake, units, .. }| {
        fake.set(UNIT, FakeUnit::running(78));
        let mut events = units.events();
        // Recorded from systemd 252 at `systemctl kill -s KILL`.
        let killed = FakeUnit { result: "signal", code: 2, status: 9, ..FakeUnit::DEAD };
        let again = FakeUnit { restarts: 1, ..FakeUnit::running(91) };
        for unit in [
            FakeUnit::running(78),
            FakeUnit { active: "failed", sub: "failed", ..killed.clone() },
            FakeUnit { active: "activating", sub: "auto-restart", ..killed.clone() },
            FakeUnit { active: "activating", sub: "auto-restart", restarts: 1, ..killed },
            FakeUnit { active: "inactive", sub: "dead", ..again.clone() },
            FakeUnit { active: "activating", sub: "start", ..again.clone() },
            again.clone(),
            again,
        ] {
            fake.change(UNIT, unit).await;
        }
        fake.change("dbus.service", FakeUnit::running(30)).await;
        fake.change("envoy@last.service", FakeUnit::running(5)).await;
        let mut told = Vec::new();
        loop {
            let event = events.recv().await.unwrap();
            if event.instance == "last" {
                break;
            }
            assert_eq!(event.instance, "my-api");
            told.push((event.state, event.pid));
        }
        use UnitState::{Activating, Active, Failed};
        assert_eq!(told, [(Active, Some(78)), (Failed, None), (Activating, Some(91)), (Active, Some(91))]);
    });
}

#[test]
fn refusals_say_what_to_do() {
    bench(async |Bench { fake, units, .. }| {
        fake.refuse(fdo::Error::AccessDenied("no".to_owned()));
        let fault = units.start(&spec()).await.unwrap_err();
        assert_eq!((fault.code, fault.class.exit_code()), ("ENM-S002", 77));
        fake.refuse(fdo::Error::FileNotFound("Unit file does not exist.".to_owned()));
        let fault = units.start(&spec()).await.unwrap_err();
        assert_eq!((fault.code, fault.class.exit_code()), ("ENM-S003", 69));
        assert!(fault.hint.contains("envoy@.service"));
        fake.refuse(fdo::Error::Failed("Transport endpoint is not connected".to_owned()));
        let fault = units.start(&spec()).await.unwrap_err();
        assert_eq!(fault.code, "ENM-S008");
        assert!(fault.message.contains("Transport endpoint"), "systemd's own words: {fault}");
    });
}

#[test]
fn resolved_is_reloaded_only_when_something_changed_and_it_runs() {
    bench(async |Bench { fake, units, root }| {
        let server = "127.0.0.1:8653".parse().unwrap();
        assert!(units.feed_resolver(server, resolved::DOMAIN).await.unwrap());
        assert!(fake.take_calls().is_empty(), "resolved does not run");
        let dropin = root.path().join("run/systemd/resolved.conf.d/enmesh.conf");
        let text = std::fs::read_to_string(&dropin).unwrap();
        assert!(text.ends_with("[Resolve]\nDNS=127.0.0.1:8653\nDomains=~consul\n"));

        fake.set("systemd-resolved.service", FakeUnit::running(7));
        assert!(!units.feed_resolver(server, resolved::DOMAIN).await.unwrap());
        assert!(fake.take_calls().is_empty(), "nothing changed");
        fake.next_job(FakeJob::to(FakeUnit::running(7)));
        assert!(units.feed_resolver(server, "virtual.consul").await.unwrap());
        assert_eq!(fake.take_calls(), ["ReloadOrRestartUnit systemd-resolved.service replace"]);
        fake.next_job(FakeJob::to(FakeUnit::running(7)));
        assert!(units.unfeed_resolver().await.unwrap());
        assert!(!dropin.exists());
        assert_eq!(fake.take_calls().len(), 1);
        assert!(!units.unfeed_resolver().await.unwrap());
    });
}

#[test]
fn versions_are_read() {
    assert_eq!(major("252.39-1~deb12u2"), 252);
    assert_eq!(major("v257"), 0);
    assert_eq!(major("257"), 257);
}

#[test]
fn the_user_of_a_unit_is_whose_its_sockets_are() {
    use super::scope::UnitUser::{Dynamic, Named, Running};
    bench(async |Bench { fake, units, .. }| {
        let me = nix::unistd::geteuid().as_raw();
        let process = self::Named::new("app");
        let dynamic = FakeUnit { uid: 61184, ..FakeUnit::running(process.pid()) };
        let made = FakeUnit { user: "made", dynamic: true, ..FakeUnit::DEAD };
        let ended = FakeUnit { uid: 61184, ..FakeUnit::running(u32::MAX - 1) };
        let rows = [
            ("stopped.service", FakeUnit { user: "app", ..FakeUnit::DEAD }, Some(Named("app".to_owned()))),
            ("root.service", FakeUnit::DEAD, Some(Named(String::new()))),
            ("made.service", made, Some(Dynamic("made".to_owned()))),
            ("gone.service", FakeUnit { load: "not-found", ..FakeUnit::DEAD }, None),
            // It runs as somebody else than its file says.
            ("dropped.service", dynamic, Some(Running(me))),
            // A dynamic user whose process has just ended.
            ("ended.service", ended, Some(Running(61184))),
        ];
        for (name, unit, expected) in rows {
            fake.set(name, unit);
            assert_eq!(units.socket_user_of(name).await.unwrap(), expected, "{name}");
        }
    });
}
