//! The demo's own parts, each tried alone: a demo that proves something with a blind meter proves
//! nothing. Needs root; every test builds a stage of its own and takes it down again.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "in a test a failure is a panic")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use enmesh::base::exec;
use enmesh::demo::app::{self, Outcome};
use enmesh::demo::process::{Process, Spawn};
use enmesh::demo::snapshot::Snapshot;
use enmesh::demo::stage::{self, APP_PORT, Host, INTERFACE, Stage};
use enmesh::demo::wire::{Tally, Tap};
use enmesh::netns::{self, Namespace};

const SECRET: &str = "the-secret-of-this-test";

fn tag() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("enmesh-stage-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

fn build() -> Stage {
    build_as(&tag())
}

fn build_as(tag: &str) -> Stage {
    Stage::build(tag, Path::new(env!("CARGO_BIN_EXE_enmesh"))).expect("these tests need root and nft")
}

/// What passes the cable while `work` is done.
fn metered(stage: &Stage, work: impl FnOnce()) -> Tally {
    let secrets = vec![SECRET.as_bytes().to_vec()];
    let tap = Tap::start(&stage.web.namespace, INTERFACE, secrets).unwrap();
    work();
    tap.tally()
}

/// Sends `bytes` from web to a listener on api, which sends them back.
fn echo(stage: &Stage, bytes: &[u8]) {
    let address = SocketAddr::from((stage.api.address, APP_PORT));
    let listener = stage.api.namespace.run(|| TcpListener::bind(address).unwrap()).unwrap();
    let length = bytes.len();
    let server = thread::spawn(move || {
        let mut received = vec![0; length];
        let (mut connection, _) = listener.accept().unwrap();
        connection.read_exact(&mut received).unwrap();
        connection.write_all(&received).unwrap();
    });
    let mut client = stage.web.namespace.run(|| TcpStream::connect(address).unwrap()).unwrap();
    let mut writer = client.try_clone().unwrap();
    let sent = bytes.to_vec();
    let sender = thread::spawn(move || writer.write_all(&sent).unwrap());
    let mut back = vec![0; length];
    client.read_exact(&mut back).unwrap();
    assert_eq!(back, bytes);
    sender.join().unwrap();
    server.join().unwrap();
}

fn record(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len()).unwrap().to_be_bytes();
    [&[kind, 3, 3, length[0], length[1]], body].concat()
}

/// Runs a program on `host` the way its application runs, and returns what it says.
fn as_app(host: &Host, program: &str, arguments: &[&str], mounts: Vec<(PathBuf, PathBuf)>) -> String {
    let program = exec::find(program).unwrap();
    let child = Process::start(&Spawn {
        namespace: &host.namespace,
        program: &program,
        arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(),
        user: Some(host.app_user),
        mounts,
        log: host.folder.join("test.log"),
        collect: true,
    });
    child.unwrap().output(Duration::from_secs(10)).unwrap()
}

#[test]
fn the_stage_comes_and_goes_without_a_trace() {
    let tag = tag();
    let stage = build_as(&tag);
    let ours = |name: &String| name.starts_with(&tag);
    assert_eq!(Namespace::names().unwrap().iter().filter(|name| ours(name)).count(), 2);
    assert!(stage.folder().is_dir());
    drop(stage);
    assert_eq!(Namespace::names().unwrap().iter().filter(|name| ours(name)).count(), 0);
    for left in [tag.clone(), format!("{tag}.lock")] {
        assert!(!Path::new("/run").join(&left).exists(), "/run/{left}");
    }
    assert!(!stage::clean(&tag).unwrap(), "nothing is left to clean");
}

#[test]
fn a_second_demo_does_not_tread_on_the_first() {
    let tag = tag();
    let first = build_as(&tag);
    let fault = Stage::build(&tag, Path::new("/bin/true")).unwrap_err();
    assert_eq!(fault.code, "ENM-T007");
    assert_eq!(stage::clean(&tag).unwrap_err().code, "ENM-T007");
    assert!(first.web.namespace.run(|| netns::block_on(netns::link(INTERFACE))).unwrap().unwrap().is_ok());
}

#[test]
fn what_a_killed_demo_left_is_cleaned_up() {
    let tag = tag();
    let mut first = build_as(&tag);
    let sleeper = exec::find("sleep").unwrap();
    let mut child = Process::start(&Spawn {
        namespace: &first.api.namespace,
        program: &sleeper,
        arguments: vec!["600".to_owned()],
        user: None,
        mounts: Vec::new(),
        log: first.api.folder.join("test.log"),
        collect: false,
    })
    .unwrap();
    first.keep();
    drop(first);
    assert!(Namespace::by_name(&format!("{tag}-api")).is_ok(), "kept");
    assert!(child.ended().is_none(), "and its processes live");

    assert!(stage::clean(&tag).unwrap());
    assert!(child.ended().is_some(), "the process in the namespace is gone");
    assert!(Namespace::by_name(&format!("{tag}-api")).is_err());
}

#[test]
fn clear_text_is_seen_to_the_byte_and_so_is_the_secret() {
    let stage = build();
    let tally = metered(&stage, || echo(&stage, format!("GET / HTTP/1.1\r\nx: {SECRET}\r\n\r\n").as_bytes()));
    let length = ("GET / HTTP/1.1\r\nx: \r\n\r\n".len() + SECRET.len()) as u64;
    assert_eq!((tally.clear_bytes, tally.tls_bytes), (2 * length, 0), "there and back: {tally:?}");
    assert_eq!((tally.connections, tally.clear_connections, tally.secrets_seen), (1, 1, 2));
    assert_eq!(tally.by_port.keys().collect::<Vec<_>>(), [&APP_PORT]);
}

#[test]
fn records_are_counted_to_the_byte_also_when_there_are_many() {
    let stage = build();
    let mut stream = record(22, &[1; 300]);
    while stream.len() < 8 * 1024 * 1024 {
        stream.extend(record(23, &[0xa5; 16_000]));
    }
    let length = stream.len() as u64;
    let tally = metered(&stage, || echo(&stage, &stream));
    assert_eq!((tally.tls_bytes, tally.clear_bytes, tally.unseen_bytes), (2 * length, 0, 0), "{tally:?}");
    assert_eq!(tally.encrypted_bytes, 2 * (length - 305));
    assert_eq!((tally.clear_connections, tally.secrets_seen), (0, 0));
}

#[test]
fn one_clear_byte_behind_megabytes_of_records_is_seen() {
    let stage = build();
    let mut stream = record(22, &[1; 300]);
    while stream.len() < 1024 * 1024 {
        stream.extend(record(23, &[0xa5; 16_000]));
    }
    stream.push(b'!');
    let tally = metered(&stage, || echo(&stage, &stream));
    assert_eq!((tally.clear_bytes, tally.clear_connections, tally.unseen_bytes), (2, 1, 0), "{tally:?}");
}

#[test]
fn loopback_is_not_the_wire() {
    let stage = build();
    let tally = metered(&stage, || {
        stage
            .web
            .namespace
            .run(|| {
                let listener = TcpListener::bind("127.0.0.1:0").unwrap();
                let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
                client.write_all(SECRET.as_bytes()).unwrap();
                listener.accept().unwrap();
            })
            .unwrap();
    });
    assert_eq!(tally, Tally::default());
}

#[test]
fn the_apps_talk_over_the_bare_cable() {
    let stage = build();
    let listen = SocketAddr::from((stage.api.address, APP_PORT));
    // It serves until the test's process ends; its namespace goes with it.
    drop(stage.api.namespace.spawn(move || app::serve("api", listen)).unwrap());
    let url: app::Url = format!("http://{listen}/hello").parse().unwrap();
    stage::await_listener(&stage.api, listen).unwrap();
    let outcome = stage.web.namespace.run(|| app::get(&url, SECRET)).unwrap();
    let Outcome::Answered { status: 200, body, .. } = outcome else { panic!("{outcome:?}") };
    let seen: app::Seen = serde_json::from_str(&body).unwrap();
    assert_eq!(seen.headers[app::SECRET_HEADER], SECRET);
    assert!(seen.from.starts_with("10.99.0.1:"), "{}", seen.from);

    let hammered = stage
        .web
        .namespace
        .run(|| app::hammer(std::slice::from_ref(&url), SECRET, 100, Duration::from_millis(500)))
        .unwrap();
    assert!((45..=51).contains(&hammered.tried), "{hammered:?}");
    assert_eq!((hammered.answered, hammered.outage, hammered.back), (hammered.tried, None, true));
}

#[test]
fn an_app_sees_its_hosts_resolver_and_has_its_own_user() {
    let stage = build();
    let before = std::fs::read_to_string("/etc/resolv.conf").unwrap();
    let mounts = stage.web.resolver_mounts().unwrap();
    let seen = as_app(&stage.web, "cat", &["/etc/resolv.conf", "/etc/nsswitch.conf"], mounts);
    assert!(seen.contains("nameserver 127.0.0.1") && seen.contains("hosts: files dns"), "{seen}");
    assert_eq!(std::fs::read_to_string("/etc/resolv.conf").unwrap(), before, "ours is as it was");
    assert_eq!(as_app(&stage.web, "id", &["-u"], Vec::new()), "10001\n");
    assert_eq!(as_app(&stage.api, "id", &["-G"], Vec::new()), "10002\n", "no groups of root's");
}

#[test]
fn a_snapshot_sees_each_kind_of_change_and_that_it_was_taken_back() {
    let stage = build();
    let host = &stage.web;
    let folder = stage.folder().join("web/root");
    let take = || Snapshot::take(&host.namespace, &[&folder]).unwrap();
    let before = take();
    assert_eq!(before.difference(&take()), Vec::<String>::new(), "looking changes nothing");
    for section in ["routes", "routing rules", "addresses", "sysctls"] {
        assert!(before.count(section) > 1, "{section} is not empty");
    }

    let run = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        let program = exec::find(words[0]).unwrap();
        let output = host.namespace.run(|| exec::run(&program, &words[1..], b"", Duration::from_secs(10)));
        let output = output.unwrap().unwrap();
        assert!(output.status.success(), "{line}: {}", output.stderr);
    };
    let sysctl = |value: &str| {
        host.namespace.run(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", value).unwrap()).unwrap();
    };
    // Section, what changes it, what takes that back.
    type Step<'a> = (&'a str, &'a dyn Fn(), &'a dyn Fn());
    let steps: [Step<'_>; 6] = [
        ("rules", &|| run("nft add table inet enmesh"), &|| run("nft delete table inet enmesh")),
        ("routes", &|| run("ip route add 240.0.0.0/4 dev lo"), &|| run("ip route del 240.0.0.0/4 dev lo")),
        ("routing rules", &|| run("ip rule add fwmark 7 table 7"), &|| run("ip rule del fwmark 7 table 7")),
        ("addresses", &|| run("ip address add 10.0.0.9/32 dev lo"), &|| {
            run("ip address del 10.0.0.9/32 dev lo")
        }),
        ("sysctls", &|| sysctl("1"), &|| sysctl("0")),
        ("files", &|| std::fs::write(folder.join("new"), b"").unwrap(), &|| {
            std::fs::remove_file(folder.join("new")).unwrap()
        }),
    ];
    for (section, change, take_back) in steps {
        change();
        let differences = before.difference(&take());
        assert!(
            differences.iter().any(|line| line.starts_with(&format!("{section}: +"))),
            "{section}: {differences:?}"
        );
        take_back();
        assert_eq!(before.difference(&take()), Vec::<String>::new(), "{section}");
    }

    let mut sleeper = host.namespace.run(|| {
        Process::start(&Spawn {
            namespace: &host.namespace,
            program: &exec::find("sleep").unwrap(),
            arguments: vec!["600".to_owned()],
            user: None,
            mounts: Vec::new(),
            log: stage.folder().join("test.log"),
            collect: false,
        })
    });
    let differences = before.difference(&take());
    assert!(differences.iter().any(|line| line.starts_with("processes: + sleep")), "{differences:?}");
    assert!(sleeper.as_mut().unwrap().as_mut().unwrap().stop(Duration::from_secs(5)));
    assert_eq!(before.difference(&take()), Vec::<String>::new());
}
