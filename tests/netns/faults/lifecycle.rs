//! Services go, come, change; the daemon ends. Only what changed is touched.

use nix::sys::signal::Signal;

use crate::host_bed::{Bed, HOST_FILE, LIMIT, WEB, WEB_FILE};

/// Waits until `id` is gone with everything that was its own; `api` is untouched.
fn assert_gone(bed: &Bed, id: &str, api: &serde_json::Value, port: u64) {
    let looked = crate::host_bed::until("the end of it", LIMIT, || {
        let status = bed.status();
        let envoys = bed.envoys();
        let running = envoys.values().any(|name| name.starts_with(&format!("envoy:{id}:")));
        let folder = bed.path(&format!("/run/enmesh/{id}")).exists();
        let ruled = bed.rules().contains(&format!(":{port}")) || bed.rules().contains(&port.to_string());
        let listed = !status["services"][id].is_null();
        if running || folder || ruled || listed {
            return Err(format!(
                "runs {running} folder {folder} rules {ruled} status {listed}\n{}",
                bed.rules()
            ));
        }
        Ok(status)
    });
    let status = looked.unwrap_or_else(|e| panic!("{e}\n{}", bed.log()));
    assert_eq!(&status["services"]["api"]["pid"], api);
    assert_eq!(status["services"]["api"]["phase"], "live");
}

/// A host with both services, the process of `api` and a port that only `web` has.
fn settled() -> (Bed, serde_json::Value, u64) {
    let mut bed = Bed::new();
    let status = bed.start().await_ready();
    let port = status["services"]["web"]["outbound_port"].as_u64().unwrap();
    (bed, status["services"]["api"]["pid"].clone(), port)
}

#[test]
fn a_removed_service_goes_and_comes_back_with_what_it_had() {
    let (bed, api, port) = settled();
    bed.remove(WEB_FILE);
    assert_gone(&bed, "web", &api, port);
    bed.write(WEB_FILE, WEB);
    let status = bed.await_status("its return", LIMIT, |status| {
        (status["services"]["web"]["phase"] == "live").then(|| status.clone())
    });
    assert_eq!(status["services"]["web"]["outbound_port"], port);
    assert_eq!(status["services"]["api"]["pid"], api);
}

#[test]
fn a_disabled_service_goes() {
    let (bed, api, port) = settled();
    bed.write(WEB_FILE, format!("enabled = false\n{WEB}"));
    assert_gone(&bed, "web", &api, port);
    assert_eq!(bed.status()["ready"], true);
}

#[test]
fn a_renamed_service_is_another_one() {
    let (bed, api, port) = settled();
    bed.write(WEB_FILE, WEB.replace("\"web\"", "\"shop\""));
    assert_gone(&bed, "web", &api, port);
    let status = bed.await_status("the other one", LIMIT, |status| {
        (status["services"]["shop"]["phase"] == "live").then(|| status.clone())
    });
    assert!(status["services"]["shop"]["identity"].as_str().unwrap().ends_with("/svc/shop"));
}

#[test]
fn down_takes_one_service_out_until_apply_brings_it_back() {
    let (mut bed, api, port) = settled();
    let said = bed.run(&["down", "web", "--json"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert_gone(&bed, "web", &api, port);
    // It stays out, whatever else happens.
    bed.signal(Signal::SIGHUP);
    bed.kill_daemon();
    bed.start().await_ready();
    assert_gone(&bed, "web", &api, port);
    let said = bed.run(&["apply", "web"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    let status = bed.await_ready();
    assert_eq!(status["services"]["web"]["phase"], "live");
    assert_eq!(status["services"]["api"]["pid"], api);
}

#[test]
fn down_takes_one_service_out_also_without_a_daemon() {
    let (mut bed, api, port) = settled();
    bed.kill_daemon();
    let said = bed.run(&["down", "web", "--json"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(!bed.rules().contains(&port.to_string()), "{}", bed.rules());
    bed.start().await_ready();
    assert_gone(&bed, "web", &api, port);
}

#[test]
fn down_leaves_nothing() {
    let (mut bed, ..) = settled();
    let said = bed.run(&["down", "--json"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(bed.end(LIMIT).success());
    assert_eq!((bed.rules().as_str(), bed.envoys().len()), ("-", 0));
    assert_eq!(bed.nft(&["list", "ruleset"], "").unwrap(), "");
    let routes = bed.namespace.run_async(|| async { enmesh::netns::our_virtual_routes().await.unwrap() });
    assert_eq!(routes.unwrap().len(), 0);
}

/// Drain time is an argument of Envoy, but no reason to cut its connections.
#[test]
fn a_change_of_the_host_file_restarts_nothing_that_did_not_change() {
    let (mut bed, ..) = settled();
    let held = bed.held();
    for more in ["\n[dns]\nlisten = \"127.0.0.1:8654\"\n", "\n[ports]\noutbound = \"15001-15050\"\n"] {
        let count = bed.status()["converged_count"].as_u64().unwrap();
        bed.write(HOST_FILE, bed.host_file(more));
        bed.await_status("another round", LIMIT, |status| {
            (status["converged_count"].as_u64()? > count && status["ready"] == true).then_some(())
        });
        assert_eq!(bed.held().pids, held.pids, "{more}");
    }
    assert!(bed.alive());
}

/// SIGTERM: supervised sidecars end with the daemon, and the rules close rather than open.
#[test]
fn the_end_of_the_daemon_closes_rather_than_opens() {
    let (mut bed, ..) = settled();
    bed.signal(Signal::SIGTERM);
    assert!(bed.end(LIMIT).success(), "{}", bed.log());
    assert_eq!(bed.envoys().len(), 0);
    assert!(bed.rules().contains("reject"), "{}", bed.rules());
    bed.start().await_ready();
}

/// A container's first process inherits what nobody waits for.
#[test]
#[expect(clippy::disallowed_methods, reason = "the orphan is the test's own")]
fn as_process_number_1_it_runs_sidecars_and_reaps_orphans() {
    let mut bed = Bed::new();
    let init = bed.start_as_init();
    bed.await_ready();
    let enter =
        ["-t", &init.to_string(), "-p", "-m", "/bin/sh", "-c", "sleep 1 >/dev/null 2>&1 & echo started"];
    let output = std::process::Command::new("/usr/bin/nsenter").args(enter).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let orphans = || {
        let children = std::fs::read_to_string(format!("/proc/{init}/task/{init}/children")).unwrap();
        let name = |pid: &str| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        children.split_whitespace().filter(|pid| name(pid).trim() == "sleep").count()
    };
    assert_eq!(orphans(), 1, "the orphan has come to us");
    let gone = || if orphans() == 0 { Ok(()) } else { Err("it is still there, a zombie by now") };
    crate::host_bed::until("the orphan's end", LIMIT, gone).unwrap();
    bed.await_ready();
}
