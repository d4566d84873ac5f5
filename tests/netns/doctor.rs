//! `enmesh probe` and `enmesh doctor` on a host of their own: the real kernel, the real Envoy, the real daemon, and what can be
//! wrong with them. Needs root: `cargo test --features netns-tests --test netns_doctor`.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "in a test a failure is a panic"
)]

#[path = "../support/host_bed.rs"]
mod host_bed;

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use enmesh::base::exec;
use host_bed::{Bed, ENVOY_USER, HOST_FILE, LIMIT, STATE_FILE, Said, WEB, WEB_FILE, until};
use serde_json::Value;

const TABLES: [&str; 2] = ["list", "ruleset"];

/// A program in the place of `nft`, which says so in its name: `fake-nft`.
fn fake_nft(bed: &Bed, script: &str) -> PathBuf {
    let path = bed.path("/fake-nft");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
    path
}

/// `enmesh probe` where `nft` is another program.
fn probe_with(bed: &Bed, instead: &Path) -> (Option<i32>, Value, String) {
    let nft = exec::find("nft").unwrap();
    let swap = || {
        nix::mount::mount(Some(instead), &nft, None::<&str>, nix::mount::MsFlags::MS_BIND, None::<&str>)
            .unwrap();
    };
    let said = bed.run_where(&["probe", "--json"], 0, swap);
    let text = bed.run_where(&["probe"], 0, swap);
    assert_eq!(said.code, text.code);
    (said.code, said.json(), text.err)
}

fn found<'a>(answer: &'a Value, name: &str) -> &'a Value {
    let tried = answer["tried"].as_array().unwrap();
    &tried.iter().find(|one| one["name"] == name).unwrap_or_else(|| panic!("{name}: {answer:#}"))["found"]
}

#[test]
fn this_kernel_can_do_everything_and_trying_sets_nothing() {
    let bed = Bed::bare();
    let before = bed.nft(&TABLES, "").unwrap();
    let said = bed.run(&["probe", "--json"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    let answer = said.json();
    assert_eq!(answer["driver"], "nftables");
    for one in answer["tried"].as_array().unwrap() {
        assert_eq!(one["found"], "yes", "{one:#}");
        assert!(!one["lost"].as_str().unwrap().is_empty(), "{one:#}");
    }
    assert_eq!(bed.nft(&TABLES, "").unwrap(), before);
    let said = bed.run_as(65534, &["probe"]);
    assert_eq!(said.code, Some(77), "{said:?}");
    assert!(said.err.contains("ENM-R002"), "{said:?}");
}

/// Without what nftables needs there is iptables, and what that costs is said; the real `nft` works in all but one thing.
#[test]
fn what_is_missing_is_named_with_what_is_lost() {
    let bed = Bed::bare();
    let real = bed.path("/real-nft");
    fs::create_dir_all(real.parent().unwrap()).unwrap();
    fs::copy(exec::find("nft").unwrap(), &real).unwrap();
    let real = real.display();
    let but = |pattern: &str, complaint: &str| {
        let script = format!(
            "input=$(cat)\ncase \"$* $input\" in *{pattern}*) echo '{complaint}' >&2; exit 1;; esac\nprintf '%s\\n' \"$input\" | exec {real} \"$@\""
        );
        fake_nft(&bed, &script)
    };
    let old = "Error: Could not process rule: Operation not supported";
    let rows = [
        ("fib", old, "telling own addresses (fib)", "iptables"),
        ("nftrace", old, "tracing of packets", "nftables"),
        ("\"flags timeout\"", old, "elements with a time limit", "nftables"),
        ("-j", "Error: JSON support not compiled-in", "JSON of nft", "iptables"),
    ];
    for (pattern, complaint, name, driver) in rows {
        let (code, answer, err) = probe_with(&bed, &but(pattern, complaint));
        assert_eq!(code, Some(0), "{name}: {answer:#}");
        assert_eq!((found(&answer, name), &answer["driver"]), (&"no".into(), &driver.into()), "{answer:#}");
        assert!(err.contains("ENM-R075") && err.contains(name), "{err}");
    }
    // One that crashes over what a newer one wrote.
    let crashes = format!("case \"$*\" in *'list ruleset'*) kill -SEGV $$;; esac\nexec {real} \"$@\"");
    let (_, answer, err) = probe_with(&bed, &fake_nft(&bed, &crashes));
    assert_eq!(found(&answer, "an nft that reads everybody's tables"), "no", "{answer:#}");
    assert!(err.contains("crashes"), "{err}");
    // None at all.
    let (_, answer, _) = probe_with(&bed, Path::new("/dev/null"));
    assert_eq!((found(&answer, "the program nft"), &answer["driver"]), (&"no".into(), &"iptables".into()));
}

/// The codes that `doctor` finds, in its order.
fn doctor(bed: &Bed) -> (Option<i32>, Vec<(String, String)>) {
    let said = bed.run(&["doctor", "--json"]);
    let answer = said.json();
    let examined = answer["examined"].as_array().unwrap_or_else(|| panic!("{said:?}"));
    let of = |one: &Value| {
        let area = one["area"].as_str().unwrap().to_owned();
        let faults = one["faults"].as_array().unwrap().clone();
        faults.into_iter().map(move |fault| (area.clone(), fault["code"].as_str().unwrap().to_owned()))
    };
    let codes: Vec<_> = examined.iter().flat_map(of).collect();
    assert_eq!(answer["ok"], codes.is_empty());
    (said.code, codes)
}

#[test]
fn a_healthy_host_has_nothing_wrong_and_is_left_alone() {
    let mut bed = Bed::new();
    bed.start().await_ready();
    let before = (bed.files(), bed.rules());
    assert_eq!(doctor(&bed), (Some(0), vec![]));
    let said = bed.run(&["doctor"]);
    assert!(said.out.ends_with("nothing is wrong\n"), "{said:?}");
    for line in ["ok     configuration  3 file(s), 2 service(s)", "2 of 2 live", "nftables, as the plan says"]
    {
        assert!(said.out.contains(line), "{line}: {}", said.out);
    }
    assert_eq!((bed.files(), bed.rules()), before);
}

#[test]
fn what_is_wrong_is_found_each_in_its_place() {
    let mut bed = Bed::new();
    bed.start().await_ready();
    let expect = |bed: &Bed, area: &str, code: &str| {
        let look = || {
            let (exit, codes) = doctor(bed);
            let there = codes.contains(&(area.to_owned(), code.to_owned()));
            if exit == Some(2) && there { Ok(()) } else { Err(format!("{exit:?} {codes:?}")) }
        };
        until(code, LIMIT, look).unwrap();
    };
    // A file that is none.
    bed.write(WEB_FILE, "name = ");
    expect(&bed, "configuration", "ENM-C005");
    // A user that does not exist.
    bed.write(WEB_FILE, WEB.replace("web-app", "nobody-here"));
    expect(&bed, "users", "ENM-P002");
    bed.write(WEB_FILE, WEB);
    until("a healthy host", LIMIT, || {
        if doctor(&bed).0 == Some(0) { Ok(()) } else { Err(format!("{:?}", doctor(&bed))) }
    })
    .unwrap();
    // A program that passes by the mesh; what it is does not matter.
    let mut command = bed.command(&["wait", "nothing", "--timeout", "60s"]);
    command.uid(ENVOY_USER).stdout(Stdio::null()).stderr(Stdio::null());
    let mut stranger = bed.namespace.run(|| command.spawn().unwrap()).unwrap();
    expect(&bed, "users", "ENM-D013");
    stranger.kill().unwrap();
    stranger.wait().unwrap();
    // Another redirector.
    bed.nft(&["add", "table", "inet", "consul_tproxy"], "").unwrap();
    bed.nft(&["add", "chain", "inet", "consul_tproxy", "c"], "").unwrap();
    expect(&bed, "rules", "ENM-D012");
    bed.nft(&["delete", "table", "inet", "consul_tproxy"], "").unwrap();
    // A clock that is behind.
    let state = File::options().append(true).open(bed.path(STATE_FILE)).unwrap();
    state.set_modified(SystemTime::now() + Duration::from_secs(3600)).unwrap();
    expect(&bed, "time", "ENM-D073");
    state.set_modified(SystemTime::now()).unwrap();
    // A clock that is not set yet is worth a word and no more.
    let timesync = bed.path("/run/systemd/timesync");
    fs::create_dir_all(&timesync).unwrap();
    let said = bed.run(&["doctor", "--json"]);
    let warned = |said: &Said| said.json()["examined"].to_string().contains("ENM-D074");
    assert!(said.code == Some(0) && warned(&said), "{said:?}");
    File::create(timesync.join("synchronized")).unwrap();
    let said = bed.run(&["doctor", "--json"]);
    assert!(said.code == Some(0) && !warned(&said), "{said:?}");
    // Rules that somebody takes away as often as they are repaired.
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let spoil = || {
            while !stop.load(Ordering::Relaxed) {
                let _ = bed.nft(&["flush", "chain", "inet", "enmesh", "out"], "");
            }
        };
        scope.spawn(spoil);
        let seen = catch_unwind(AssertUnwindSafe(|| expect(&bed, "rules", "ENM-D071")));
        stop.store(true, Ordering::Relaxed);
        seen.unwrap_or_else(|panic| resume_unwind(panic));
    });
    until("repaired rules", LIMIT, || {
        if doctor(&bed).0 == Some(0) { Ok(()) } else { Err(format!("{:?}", doctor(&bed))) }
    })
    .unwrap();
    // Nobody who repairs.
    bed.kill_daemon();
    expect(&bed, "units", "ENM-D005");
    // No Envoy.
    let host = bed.host_file("").replace(&format!("{:?}", bed.envoy()), "\"/nowhere/envoy\"");
    bed.write(HOST_FILE, host);
    expect(&bed, "envoy", "ENM-E001");
}
