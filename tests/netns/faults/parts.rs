//! What enmesh needs around it is missing or broken: nft, Envoy, privilege, space, its rules.

use std::fs;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use enmesh::base::exec;
use nix::mount::{MsFlags, mount};
use nix::sys::signal::Signal;

use crate::host_bed::{API, API_FILE, Bed, HOST_FILE, LIMIT, SOON, until};

/// Puts an empty folder in the place of those in which `nft` may lie. For a thread with its own mounts.
fn hide_nft(empty: &Path) {
    for folder in ["/usr/sbin", "/sbin", "/usr/local/sbin"] {
        if Path::new(folder).join("nft").exists() {
            let nothing = None::<&str>;
            mount(Some(empty), Path::new(folder), nothing, MsFlags::MS_BIND, nothing).unwrap();
        }
    }
}

#[test]
fn without_nft_nothing_starts_and_the_package_is_named() {
    let mut bed = Bed::new();
    let empty = tempfile::tempdir().unwrap();
    for arguments in [&["apply", "--json"][..], &["plan", "--json"]] {
        let said = bed.run_where(arguments, 0, || hide_nft(empty.path()));
        assert_eq!(said.code, Some(69), "{said:?}");
        let text = said.out.clone() + &said.err;
        assert!(text.contains("ENM-R001") && text.contains("nftables"), "{said:?}");
    }
    // The daemon stays, tries again by itself, and does not call it good.
    bed.start_where(|| hide_nft(empty.path()));
    bed.await_fault("ENM-R001");
    assert_eq!((bed.rules().as_str(), bed.alive()), ("-", true));
    assert_eq!(bed.status()["ready"], false);
}

/// A kernel that takes no rules, in the middle of the start: sidecars begin while the rules come up, and have to end again.
#[test]
fn without_rules_no_sidecar_stays() {
    let mut bed = Bed::new();
    let real = exec::find("nft").unwrap();
    let kept = bed.path("/real-nft");
    fs::create_dir_all(kept.parent().unwrap()).unwrap();
    fs::copy(&real, &kept).unwrap();
    let begun = bed.path("/begun");
    // Not before the sidecars have begun.
    let script = format!(
        "#!/bin/sh\ncase \" $* \" in *\" -c \"*) ;; *\" -f \"*) i=0\nwhile [ ! -e {0} ] && [ $i -lt 50 ]; do sleep 0.1; i=$((i + 1)); done\n\
         echo 'Error: Could not process rule: No space left on device' >&2; exit 1;; esac\nexec {1} \"$@\"\n",
        begun.display(),
        kept.display()
    );
    let fake = bed.path("/fake-nft");
    fs::write(&fake, script).unwrap();
    fs::set_permissions(&fake, Permissions::from_mode(0o755)).unwrap();
    bed.start_where(|| mount(Some(&fake), &real, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap());
    until("a sidecar", LIMIT, || if bed.envoys().is_empty() { Err(bed.log()) } else { Ok(()) }).unwrap();
    fs::write(&begun, "").unwrap();
    bed.await_fault("ENM-R006");
    until("no sidecar", LIMIT, || {
        if bed.envoys().is_empty() { Ok(()) } else { Err(format!("{:?}", bed.envoys())) }
    })
    .unwrap();
    assert_eq!((bed.rules().as_str(), bed.status()["ready"].clone()), ("-", false.into()));
}

/// The daemon was there first: it goes on with the rules that are in the kernel.
#[test]
fn nft_that_vanishes_leaves_what_is_in_force() {
    let mut bed = Bed::new();
    bed.write(HOST_FILE, bed.host_file(""));
    bed.start().await_ready();
    let held = bed.held();
    bed.kill_daemon();
    let empty = tempfile::tempdir().unwrap();
    bed.start_where(|| hide_nft(empty.path()));
    bed.await_fault("ENM-R001");
    assert_eq!(bed.held().rules, held.rules);
    assert_eq!(bed.envoys().len(), 2);
    bed.kill_daemon();
    bed.start().await_ready();
    bed.assert_holds(&held);
}

#[test]
fn without_envoy_the_rules_stay_closed_and_the_daemon_waits_for_it() {
    let mut bed = Bed::bare();
    bed.write(API_FILE, API);
    let hidden = bed.envoy().with_extension("hidden");
    fs::rename(bed.envoy(), &hidden).unwrap();
    let said = bed.run(&["apply"]);
    assert_eq!(said.code, Some(69), "{said:?}");
    assert!(said.err.contains("hint"), "{said:?}");
    bed.start();
    let coded = ["ENM-E001", "ENM-V001"];
    let fault = bed.await_status("no Envoy", SOON, |status| {
        let faults = status["faults"].as_array()?;
        faults.iter().find(|f| coded.contains(&f["code"].as_str().unwrap())).cloned()
    });
    assert!(fault["message"].as_str().unwrap().contains("envoy"), "{fault}");
    assert!(bed.rules().contains("reject"), "closed: {}", bed.rules());
    fs::rename(&hidden, bed.envoy()).unwrap();
    bed.await_ready();
}

#[test]
fn a_path_to_no_envoy_keeps_the_sidecars_that_run() {
    let mut bed = Bed::new();
    bed.start().await_ready();
    let held = bed.held();
    bed.write(HOST_FILE, bed.host_file("").replace(bed.envoy().to_str().unwrap(), "/no/such/envoy"));
    bed.await_status("a fault", SOON, |status| (status["faults"][0]["code"] == "ENM-E001").then_some(()));
    bed.assert_holds(&held);
    bed.write(HOST_FILE, bed.host_file(""));
    bed.await_ready();
    bed.assert_holds(&held);
}

#[test]
fn an_envoy_that_ends_at_once_is_told_and_stays_closed() {
    let mut bed = Bed::bare();
    bed.write(API_FILE, API);
    let hidden = bed.envoy().with_extension("hidden");
    fs::rename(bed.envoy(), &hidden).unwrap();
    fs::copy("/bin/true", bed.envoy()).unwrap();
    bed.start();
    bed.await_status("a fault", SOON, |status| {
        let code = status["faults"][0]["code"].as_str()?;
        (code.starts_with("ENM-V002") || code == "ENM-D004").then_some(())
    });
    let status = bed.status();
    assert_ne!(status["services"]["api"]["phase"], "live", "{status:#}");
    assert!(bed.alive());
    fs::rename(&hidden, bed.envoy()).unwrap();
    bed.await_ready();
}

#[test]
fn without_privilege_it_says_so_with_77() {
    let bed = Bed::new();
    for verb in ["run", "apply", "down"] {
        let said = bed.run_as(65534, &[verb]);
        assert_eq!(said.code, Some(77), "{verb}: {said:?}");
        assert!(said.err.contains("hint"), "{verb}: {said:?}");
    }
    assert!(!bed.path("/run/enmesh").exists() && bed.rules() == "-");
}

/// Root in the files' eyes, and still not allowed to change rules.
#[test]
fn without_net_admin_the_kernel_refuses_and_nothing_is_left() {
    let bed = Bed::new();
    let drop_it = || caps::drop(None, caps::CapSet::Bounding, caps::Capability::CAP_NET_ADMIN).unwrap();
    let said = bed.run_where(&["apply"], 0, drop_it);
    assert_eq!(said.code, Some(77), "{said:?}");
    assert!(said.err.contains("ENM-D014") && said.err.contains("CAP_NET_ADMIN"), "{said:?}");
    assert_eq!(bed.rules(), "-");
}

/// `/run` fills up after the start: what is in force goes on, a change waits for space.
#[test]
fn a_full_run_is_told_and_recovers() {
    let mut bed = Bed::new();
    let run = bed.path("/run");
    fs::create_dir_all(&run).unwrap();
    bed.start_where(|| {
        let options = Some("size=512k,mode=0755");
        mount(Some("none"), &run, Some("tmpfs"), MsFlags::empty(), options).unwrap();
    });
    // The mount is the daemon's alone, and so is its control socket: both are reached through it.
    let daemon = bed.daemon.as_ref().unwrap().id();
    let inside = Path::new("/proc").join(daemon.to_string()).join("root");
    let inside = inside.join(run.strip_prefix("/").unwrap());
    let socket = inside.join("enmesh/enmesh.sock");
    let status = || -> serde_json::Value {
        let ask = enmesh::base::http::request(&socket, hyper::Method::GET, "/v1/status", Vec::new(), SOON);
        let answer = enmesh::netns::block_on(ask).unwrap();
        answer.ok().and_then(|answer| serde_json::from_slice(&answer.body).ok()).unwrap_or_default()
    };
    let wait = |what: &str, look: &dyn Fn(&serde_json::Value) -> bool| {
        let seen = crate::host_bed::until(what, LIMIT, || {
            let status = status();
            if look(&status) { Ok(status) } else { Err(format!("{status:#}")) }
        });
        seen.unwrap_or_else(|e| panic!("{e}\n{}", bed.log()))
    };
    let ready = |status: &serde_json::Value| status["ready"] == true;
    let before = wait("readiness", &ready);
    let rules = bed.rules();

    let ballast = inside.join("ballast");
    let _ = fs::write(&ballast, vec![1; 1 << 20]);
    bed.write("/etc/enmesh/peers.toml", many_peers());
    let full = wait("ENM-X001", &|status| {
        status["faults"].as_array().is_some_and(|faults| faults.iter().any(|f| f["code"] == "ENM-X001"))
    });
    for id in ["api", "web"] {
        assert_eq!(full["services"][id]["pid"], before["services"][id]["pid"], "{full:#}");
        assert_eq!(full["services"][id]["phase"], "live", "{full:#}");
    }
    assert_ne!(rules, "-");
    fs::remove_file(&ballast).unwrap();
    let after = wait("recovery", &ready);
    assert_eq!(after["services"]["api"]["pid"], before["services"]["api"]["pid"]);
    assert!(fs::read_to_string(inside.join("enmesh/api/cds.json")).unwrap().contains("10.99.1.3"));
}

fn many_peers() -> String {
    let one = |n: u8| {
        format!(
            "[[service]]\nname = \"s{n}\"\n\n[[service.instance]]\naddress = \"10.99.1.{n}\"\nport = 21000\n\n"
        )
    };
    (1..=3).map(one).collect()
}

#[test]
fn rules_that_somebody_flushed_are_put_back() {
    let mut bed = Bed::new();
    bed.start().await_ready();
    let held = bed.held();
    for (spoil, by_signal) in [
        (&["delete", "table", "inet", "enmesh"][..], true),
        (&["flush", "table", "inet", "enmesh"], false),
        (&["flush", "ruleset"], false),
    ] {
        // It would repair before anybody could look.
        bed.signal(Signal::SIGSTOP);
        bed.nft(spoil, "").unwrap();
        assert!(!bed.rules().contains("redirect to"), "{}", bed.rules());
        bed.signal(Signal::SIGCONT);
        if by_signal {
            bed.signal(Signal::SIGHUP);
            let there = || if bed.held() == held { Ok(()) } else { Err(bed.rules()) };
            crate::host_bed::until("repair", SOON, there).unwrap();
        } else {
            let said = bed.run(&["apply"]);
            assert_eq!(said.code, Some(0), "{said:?}");
        }
        bed.assert_holds(&held);
    }
}

#[test]
fn a_route_that_somebody_removed_is_put_back() {
    let mut bed = Bed::new();
    bed.start().await_ready();
    let routes =
        || bed.namespace.run_async(|| async { enmesh::netns::our_virtual_routes().await.unwrap() }).unwrap();
    let before = routes();
    assert_eq!(before.len(), 4, "what lies in 240.0.0.0/4 and not in 255.0.0.0/8");
    bed.signal(Signal::SIGSTOP);
    for net in &before {
        let net = *net;
        bed.namespace
            .run_async(|| async move { enmesh::netns::remove_virtual_route(net).await.unwrap() })
            .unwrap();
    }
    assert!(routes().is_empty());
    bed.signal(Signal::SIGCONT);
    bed.signal(Signal::SIGHUP);
    let there = || if routes() == before { Ok(()) } else { Err("gone") };
    crate::host_bed::until("repair", SOON, there).unwrap();
}

#[test]
fn a_killed_sidecar_comes_back_and_the_other_does_not_notice() {
    let mut bed = Bed::new();
    bed.start().await_ready();
    let before = bed.status();
    let pid = before["services"]["web"]["pid"].as_i64().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), Signal::SIGKILL).unwrap();
    let after = bed.await_status("web's return", LIMIT, |status| {
        let web = &status["services"]["web"];
        (web["phase"] == "live" && web["pid"].as_i64().is_some_and(|now| now != pid)).then(|| status.clone())
    });
    assert_eq!(after["services"]["api"]["pid"], before["services"]["api"]["pid"]);
    assert_eq!(bed.envoys().len(), 2);
    bed.await_ready();
}

#[test]
fn a_mesh_that_cannot_be_seen_at_the_start_is_as_it_was_seen_last() {
    let mut bed = Bed::new();
    bed.write("/etc/enmesh/peers.toml", many_peers());
    bed.start().await_ready();
    let rules = bed.rules();
    bed.kill_daemon();
    bed.nft(&["flush", "ruleset"], "").unwrap();
    bed.write("/etc/enmesh/peers.toml", "[[service]]\nname = \"torn");
    bed.start();
    bed.await_fault("ENM-M003");
    assert_eq!(bed.rules(), rules, "closed and captured as before");
    bed.write("/etc/enmesh/peers.toml", many_peers());
    bed.await_ready();
}
