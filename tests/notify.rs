//! What enmesh tells the service manager, as the manager hears it. The environment of a process must
//! not change while it runs, so the telling is done by this same program, started once more.

use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::time::Duration;

use enmesh::systemd::notify;

/// Set for the one that tells.
const TELLS: &str = "ENMESH_TEST_TELLS";

/// What the one started once more does.
fn tell() {
    assert_eq!(notify::watchdog_interval(), Some(Duration::from_secs(15)));
    notify::status("two\nlines");
    notify::ready();
    notify::reloading();
    notify::watchdog();
    notify::extend_timeout(Duration::from_secs(3));
    notify::stopping();
}

#[test]
#[expect(clippy::disallowed_methods, reason = "it starts itself, with an environment")]
fn the_service_manager_hears_every_word() {
    if std::env::var_os(TELLS).is_some() {
        return tell();
    }
    // Nobody listens to this one.
    notify::ready();
    assert_eq!(notify::watchdog_interval(), None);

    let dir = tempfile::tempdir().unwrap();
    let socket = UnixDatagram::bind(dir.path().join("notify")).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_service_manager_hears_every_word"])
        .env(TELLS, "1")
        .env("NOTIFY_SOCKET", dir.path().join("notify"))
        .env("WATCHDOG_USEC", "30000000")
        .env_remove("WATCHDOG_PID")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let mut heard = Vec::new();
    for _ in 0..6 {
        let mut bytes = [0; 256];
        let length = socket.recv(&mut bytes).unwrap();
        heard.push(String::from_utf8(bytes[..length].to_vec()).unwrap());
    }
    let clock = heard[2].strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap();
    assert!(clock.trim_end().parse::<u64>().is_ok());
    heard.remove(2);
    let expected =
        ["STATUS=two lines\n", "READY=1\n", "WATCHDOG=1\n", "EXTEND_TIMEOUT_USEC=3000000\n", "STOPPING=1\n"];
    assert_eq!(heard, expected);
}
