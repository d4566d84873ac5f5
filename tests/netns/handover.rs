//! `-proxy-id` against a real Consul, and `enmesh migrate` with real Envoys. Needs root: `cargo test --features
//! netns-tests --test netns_handover`.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "in a test a failure is a panic")]
#![allow(
    clippy::indexing_slicing,
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "in a test a failure is a panic"
)]

#[path = "../support/consul_bed.rs"]
mod consul_bed;
#[path = "../support/host_bed.rs"]
mod host_bed;

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use consul_bed::{Agent, scene};
use enmesh::base::exec::{self, Output};
use enmesh::consul::Query;
use host_bed::Bed;
use nix::sys::signal::Signal;
use nix::unistd::{Uid, setfsuid};
use serde_json::{Value, json};

fn enmesh(words: &[&str]) -> Output {
    let program = Path::new(env!("CARGO_BIN_EXE_enmesh"));
    exec::run(program, words, b"", Duration::from_secs(60)).unwrap()
}

fn done(words: &[&str]) -> Value {
    let out = enmesh(&[&["redirect-traffic", "--json"], words].concat());
    assert!(out.status.success(), "{} {}", String::from_utf8_lossy(&out.stdout), out.stderr);
    serde_json::from_slice(&out.stdout).unwrap()
}

#[test]
fn ports_are_read_from_the_registration() {
    scene(json!({}), async |agent: &mut Agent| {
        let client = agent.client();
        let service = json!({
            "ID": "web", "Name": "web", "Port": 8080,
            "Connect": {"SidecarService": {"Port": 21005, "Proxy": {
                "Config": {"bind_port": 21500, "envoy_prometheus_bind_addr": "0.0.0.0:9102", "envoy_stats_bind_addr": "127.0.0.1:9103"},
                "Expose": {"Paths": [{"Path": "/health", "LocalPathPort": 8080, "ListenerPort": 21501}]},
            }}},
        });
        client.put(&Query::new("/v1/agent/service/register"), Some(&service)).await.unwrap();
        let policy = |words: &[&str]| done(words)["policy"].clone();
        // The address as Consul's own flag takes it, without a scheme.
        let words = ["-proxy-uid=5995", "-proxy-id=web-sidecar-proxy", "-http-addr=127.0.0.1:8500"];
        let found = policy(&words);
        assert_eq!(found["inbound"]["redirect-traffic"]["to"], 21500);
        assert_eq!(
            found["inbound"]["redirect-traffic"]["bypass_ports"],
            json!(["22", "9102", "9103", "21501"])
        );
        assert_eq!(found["outbound"]["redirect-traffic"]["port"], 15001);
        let rules =
            exec::run(&exec::find("nft").unwrap(), &["list", "ruleset"], b"", Duration::from_secs(20));
        assert!(String::from_utf8(rules.unwrap().stdout).unwrap().contains("tcp : 21500"));
        // From the catalog, where it comes when the agent has synced.
        let mut from_catalog = Value::Null;
        for _ in 0..200 {
            let out = enmesh(
                &[&["redirect-traffic", "--json", "-dry-run", "-node-name", "vm"], &words[..]].concat(),
            );
            if out.status.success() {
                from_catalog = serde_json::from_slice::<Value>(&out.stdout).unwrap()["policy"].clone();
                break;
            }
            assert!(String::from_utf8_lossy(&out.stdout).contains("ENM-R035"), "{out:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(from_catalog["inbound"], found["inbound"]);

        let fails = |words: &[&str]| {
            let out = enmesh(&[&["redirect-traffic", "-proxy-uid=5995"], words].concat());
            (out.status.code().unwrap(), out.stderr)
        };
        let (status, text) = fails(&["-proxy-id=no-such"]);
        assert!(status == 69 && text.contains("ENM-R035"), "{text}");
        let (status, text) = fails(&["-proxy-id=web"]);
        assert!(status == 69 && text.contains("ENM-R036"), "{text}");
        let (status, text) = fails(&["-proxy-id=\" or ID == \"web-sidecar-proxy", "-node-name=vm"]);
        assert!(status == 64 && text.contains("ENM-R032"), "{text}");
        let (status, text) = fails(&["-proxy-id=web-sidecar-proxy", "-http-addr=127.0.0.1:1"]);
        assert!(status == 69 && text.contains("ENM-K"), "{text}");
        // A token on the command line is taken, and said not to be a good idea.
        let out = enmesh(&[&["redirect-traffic", "-token=0123-secret"], &words[..]].concat());
        assert!(out.status.success() && out.stderr.contains("ENM-R037"), "{}", out.stderr);
        assert!(
            !out.stderr.contains("0123-secret")
                && !String::from_utf8_lossy(&out.stdout).contains("0123-secret")
        );
        done(&["-remove"]);
    });
}

const OLD: &str = "*nat\n:CONSUL_PROXY_OUTPUT - [0:0]\n:CONSUL_PROXY_REDIRECT - [0:0]\n:DOCKER - [0:0]\n\
    -A OUTPUT -m addrtype --dst-type LOCAL -j DOCKER\n-A OUTPUT -p tcp -j CONSUL_PROXY_OUTPUT\n\
    -A CONSUL_PROXY_OUTPUT -m owner --uid-owner 5995 -j RETURN\n-A CONSUL_PROXY_OUTPUT -d 127.0.0.1/32 -j RETURN\n\
    -A CONSUL_PROXY_OUTPUT -j CONSUL_PROXY_REDIRECT\n-A CONSUL_PROXY_REDIRECT -p tcp -j REDIRECT --to-ports 15090\nCOMMIT\n";

fn program(bed: &Bed, name: &str, words: &'static [&'static str], stdin: &'static str) -> String {
    let path = exec::find(name).unwrap();
    let out =
        bed.namespace.run(|| exec::run(&path, words, stdin.as_bytes(), Duration::from_secs(20))).unwrap();
    let out = out.unwrap();
    assert!(out.status.success(), "{}", out.stderr);
    String::from_utf8(out.stdout).unwrap()
}

#[test]
fn a_host_with_services_takes_over_and_its_daemon_goes_on() {
    for flavour in ["nft", "legacy"] {
        let mut bed = Bed::new();
        program(&bed, &format!("iptables-{flavour}-restore"), &["--noflush"], OLD);
        bed.write(
            "/etc/systemd/system/envoy@.service",
            "[Service]\nExecStopPost=+/usr/local/bin/consul-cleanup-iptables\n",
        );
        bed.write("/usr/local/bin/consul-cleanup-iptables", "#!/bin/sh\n");
        let said = bed.run(&["migrate"]);
        assert!(
            said.code == Some(0)
                && said.out.contains("move aside")
                && said.out.contains("CONSUL_PROXY_OUTPUT"),
            "{said:?}"
        );
        assert!(said.out.contains("what stays"), "{said:?}");
        assert!(!bed.rules().contains("inet enmesh"), "showing touches nothing");

        // The daemon does not come up beside the other one, and says how to go on; nor does it let it be taken over.
        bed.start();
        bed.await_fault("ENM-D012");
        let said = bed.run(&["migrate", "--yes"]);
        assert!(said.err.contains("ENM-D041"), "{said:?}");
        assert!(bed.path("/etc/systemd/system/envoy@.service").exists());
        bed.signal(Signal::SIGTERM);
        bed.end(host_bed::LIMIT);

        let said = bed.run(&["migrate", "--yes", "--json"]);
        assert_eq!(said.code, Some(0), "{said:?}");
        let json = said.json();
        assert_eq!(json["faults"], json!([]), "{json}");
        assert_eq!(json["removed"][0]["chains"], json!(["CONSUL_PROXY_OUTPUT", "CONSUL_PROXY_REDIRECT"]));
        assert!(bed.path("/etc/systemd/system/envoy@.service.before-enmesh").exists());
        let saved = program(&bed, &format!("iptables-{flavour}-save"), &[], "");
        assert!(
            !saved.contains("CONSUL_") && saved.contains("-A OUTPUT -m addrtype --dst-type LOCAL -j DOCKER"),
            "{saved}"
        );
        assert!(bed.rules().contains("guard_out"), "{}", bed.rules());
        assert!(bed.run(&["migrate"]).out.contains("nothing to take over"));
        // The daemon finds all as it shall be.
        bed.start().await_ready();
    }
}

/// Everybody's old sidecar, and the app of `api`: each says who it is.
fn say(bed: &Bed, port: u16, word: &'static str) {
    let listener = bed.namespace.run(|| TcpListener::bind(("127.0.0.1", port)).unwrap()).unwrap();
    // Ends with the process: a thread that waits in accept() cannot be told otherwise.
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let mut stream = BufReader::new(stream);
                let _ = stream.read_line(&mut String::new());
                let _ = writeln!(stream.get_mut(), "{word}");
            });
        }
    });
}

fn ask(to: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&to, host_bed::SOON)?;
    stream.set_read_timeout(Some(host_bed::SOON))?;
    stream.write_all(b"who?\n")?;
    let mut said = String::new();
    BufReader::new(stream).read_line(&mut said)?;
    Ok(said.trim().to_owned())
}

/// `web` calls `api` without a pause, first through the old sidecar, then through the new ones.
#[test]
fn under_load_every_connection_is_answered() {
    for flavour in ["nft", "legacy"] {
        let mut bed = Bed::new();
        let address = ["address", "add", "10.9.0.2/32", "dev", "lo"];
        let ip = || exec::run(&exec::find("ip").unwrap(), &address, b"", host_bed::SOON).unwrap();
        assert!(bed.namespace.run(ip).unwrap().status.success());
        bed.write(
            host_bed::PEERS_FILE,
            "[[service]]\nname = \"web\"\n\n[[service]]\nname = \"api\"\nvirtual_ips = [\"240.0.2.1\"]\n\
             allow = [\"web\"]\n\n[[service.instance]]\naddress = \"127.0.0.1\"\nport = 21000\n",
        );
        program(&bed, &format!("iptables-{flavour}-restore"), &["--noflush"], OLD);
        say(&bed, 15090, "old");
        say(&bed, 8080, "new");
        let route = ["route", "add", "240.0.0.0/4", "dev", "lo"];
        let ip = || exec::run(&exec::find("ip").unwrap(), &route, b"", host_bed::SOON).unwrap();
        assert!(bed.namespace.run(ip).unwrap().status.success());
        let stop = Arc::new(AtomicBool::new(false));
        let caller = || {
            let stop = Arc::clone(&stop);
            let work = move || {
                setfsuid(Uid::from_raw(10_002));
                let (mut old, mut new, mut bad) = (0_u32, 0_u32, Vec::new());
                while !stop.load(Ordering::Acquire) {
                    match ask("240.0.2.1:80".parse().unwrap()) {
                        Ok(said) if said == "old" => old += 1,
                        Ok(said) if said == "new" => new += 1,
                        other => bad.push(format!("after {old} and {new}: {other:?}")),
                    }
                }
                (old, new, bad)
            };
            bed.namespace.run(|| thread::spawn(work)).unwrap()
        };
        let callers = [caller(), caller()];
        thread::sleep(Duration::from_millis(300));
        let said = bed.run(&["migrate", "--yes"]);
        assert_eq!(said.code, Some(0), "{said:?}");
        bed.start().await_ready();
        thread::sleep(Duration::from_millis(300));
        stop.store(true, Ordering::Release);
        for caller in callers {
            let (old, new, bad) = caller.join().unwrap();
            println!("{flavour}: {old} through the old sidecar, {new} through the new ones");
            assert!(bad.is_empty(), "{} of {}: {:?}", bad.len(), old + new, bad.first());
            assert!(old > 50 && new > 50, "there was no load: {old}, {new}");
        }
    }
}

#[test]
fn without_a_service_nothing_is_taken_over() {
    let bed = Bed::bare();
    program(&bed, "iptables-nft-restore", &["--noflush"], OLD);
    let said = bed.run(&["migrate", "--yes"]);
    assert!(said.code == Some(65) && said.err.contains("ENM-D042"), "{said:?}");
    assert!(program(&bed, "iptables-nft-save", &[], "").contains("CONSUL_PROXY_OUTPUT"));
}

/// The daemon of a host without services leaves rules alone that a script has set.
#[test]
fn a_daemon_without_services_leaves_a_scripts_rules_alone() {
    let mut bed = Bed::bare();
    let said = bed.run(&["redirect-traffic", "-proxy-uid=envoy", "-proxy-inbound-port=20000"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    let rules = bed.rules();
    assert!(rules.contains("enmesh:gen:0:15001x20000x"), "{rules}");
    bed.start().await_ready();
    assert_eq!(bed.rules(), rules);
    // And beside it a script may go on.
    let said = bed.run(&["redirect-traffic", "-proxy-uid=envoy", "-proxy-inbound-port=20001"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(bed.rules().contains("15001x20001x"));
    bed.signal(Signal::SIGTERM);
    bed.end(host_bed::LIMIT);
}
