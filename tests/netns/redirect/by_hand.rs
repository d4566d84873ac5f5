//! `enmesh redirect-traffic`: the policy of its flags in the traffic matrix, and the program itself, with the command
//! lines that scripts in the field have.

use std::path::Path;
use std::time::Duration;

use enmesh::base::exec;
use enmesh::netns::Namespace;
use enmesh::redirect::{Desired, Flags, Names};
use serde_json::Value;

use crate::drivers::{Driver, cases};
use crate::lab::{Lab, Outcome, Space};
use crate::matrix::Expect::{At, Refused};
use crate::matrix::Source::{Host, HostUdp, Peer, PeerUdp};
use crate::matrix::{Row, check};
use crate::migrate::settled;
use crate::worlds::{APP, CONSUL, NOBODY, PROXY};

/// The policy of these flags.
fn desired(change: impl FnOnce(&mut Flags)) -> Desired {
    let mut flags = Flags {
        proxy_uid: Some(PROXY.to_string()),
        inbound_port: Some("21000".to_owned()),
        exclude_inbound_ports: vec!["9100:9110".to_owned()],
        exclude_outbound_ports: vec!["3306".to_owned()],
        exclude_outbound_cidrs: vec!["10.50.9.9/16".to_owned()],
        exclude_uids: vec![CONSUL.to_string()],
        ..Flags::default()
    };
    change(&mut flags);
    let names = Names { users: [].into(), ports: [].into(), answers: &|at| at.port() == 8600 };
    flags.parse(&names).unwrap().desired().unwrap()
}

fn as_the_flags_say(driver: Driver) {
    let rows: &[Row] = &[
        ("1", Host(APP), "240.0.0.1:80", At("out")),
        ("2", Host(APP), "10.9.0.1:80", At("out")),
        ("3", Host(0), "10.9.0.1:80", At("out")),
        ("4", Host(PROXY), "10.9.0.1:80", At("peer")),
        ("5", Host(CONSUL), "10.9.0.1:8300", At("peer")),
        ("6", Host(NOBODY), "10.9.0.1:3306", At("peer")),
        ("7", Host(APP), "10.50.0.1:80", At("peer")),
        ("7b", Host(APP), "10.60.0.1:80", At("out")),
        ("8", Host(APP), "169.254.169.254:80", At("peer")),
        ("8b", Host(APP), "168.63.129.16:80", At("peer")),
        ("9", Host(APP), "127.0.0.1:8080", At("app")),
        ("10", Host(APP), "127.0.0.53:5353", At("app")),
        ("11", Host(APP), "[::1]:8080", At("app")),
        ("12", Host(APP), "10.9.0.2:8080", At("app")),
        ("15b", Host(APP), "[fd09::1]:80", At("out")),
        ("21 virtual IP of a bypassed user", Host(CONSUL), "240.0.0.1:80", Refused),
        ("38", Peer, "10.9.0.2:8080", At("in")),
        ("38c any port", Peer, "10.9.0.2:5353", At("in")),
        ("39", Peer, "10.9.0.22:8080", At("in")),
        ("40", Peer, "[fd09::2]:8080", At("in")),
        ("41", Peer, "10.9.0.2:21000", At("in")),
        ("42 SSH, which nobody excluded", Peer, "10.9.0.2:22", At("ssh")),
        ("42a", Peer, "10.9.0.2:9100", At("metrics")),
        ("42c", Peer, "10.9.0.2:9110", At("metrics")),
        ("62", HostUdp(APP), "10.9.0.1:53", At("peer")),
        ("64", HostUdp(APP), "10.9.0.1:9999", At("peer")),
        ("64b", PeerUdp, "10.9.0.2:9999", At("host")),
    ];
    check(driver, desired(|_| ()), rows);
}

fn ipv6_as_in_consul(driver: Driver) {
    let rows: &[Row] = &[
        ("17", Host(APP), "[fd09::1]:80", At("peer")),
        ("17c", Host(APP), "10.9.0.1:80", At("out")),
        ("17d", Peer, "[fd09::2]:8080", At("app")),
    ];
    check(driver, desired(|flags| flags.ipv6 = Some("allow".to_owned())), rows);
}

/// With a port: only what is asked of that address. The server is a stranger and gives no sign of life, in the
/// next cases neither.
fn dns_of_one_address(driver: Driver) {
    let rows: &[Row] = &[
        ("56", HostUdp(APP), "127.0.0.1:53", At("resolver")),
        ("56b", Host(APP), "127.0.0.1:53", At("resolver")),
        ("56c", HostUdp(APP), "[::1]:53", At("resolver")),
        ("57", HostUdp(APP), "127.0.0.53:53", At("stub")),
        ("53", HostUdp(APP), "10.9.0.1:53", At("peer")),
        ("2", Host(APP), "10.9.0.1:80", At("out")),
    ];
    check(driver, desired(|flags| flags.dns_port = Some("8600".to_owned())), rows);
}

/// An address alone: everything asked of anybody, at its port 53.
fn dns_of_everybody(driver: Driver) {
    let rows: &[Row] = &[
        ("53", HostUdp(APP), "10.9.0.1:53", At("stub")),
        ("53b", HostUdp(NOBODY), "10.50.0.1:53", At("stub")),
        ("54", Host(APP), "10.9.0.1:53", At("stub")),
        ("57", HostUdp(APP), "127.0.0.53:53", At("stub")),
        ("58", HostUdp(CONSUL), "10.9.0.1:53", At("peer")),
        ("58b", Host(PROXY), "10.9.0.1:53", At("peer")),
        ("55", HostUdp(APP), "[fd09::1]:53", At("peer")),
    ];
    check(driver, desired(|flags| flags.dns_ip = Some("127.0.0.53".to_owned())), rows);
}

/// A server on another host: its answers come back over the wire, and find who asked.
fn dns_over_the_wire(driver: Driver) {
    let rows: &[Row] = &[
        ("53", HostUdp(APP), "10.60.0.1:53", At("peer")),
        ("53c nobody is there", HostUdp(APP), "192.0.2.9:53", At("peer")),
        ("54", Host(APP), "192.0.2.9:53", At("peer")),
        ("58", HostUdp(CONSUL), "10.9.0.1:53", At("peer")),
    ];
    check(driver, desired(|flags| flags.dns_ip = Some("10.9.0.1".to_owned())), rows);
}

cases! {
    as_the_flags_say,
    ipv6_as_in_consul,
    dns_of_one_address,
    dns_of_everybody,
    dns_over_the_wire,
}

/// The program in the namespace, with words as a shell would hand them over. Exit status and both outputs.
pub fn enmesh(space: &Space, words: &[&str]) -> (i32, String, String) {
    let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    space.run(move || {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let program = Path::new(env!("CARGO_BIN_EXE_enmesh"));
        let out = exec::run(program, &words, b"", Duration::from_secs(60)).unwrap();
        (out.status.code().unwrap(), String::from_utf8(out.stdout).unwrap(), out.stderr)
    })
}

fn fine(space: &Space, line: &str) -> String {
    let (status, out, err) = enmesh(space, &line.split_whitespace().collect::<Vec<_>>());
    assert_eq!(status, 0, "{line}: {out}{err}");
    out
}

fn who(outcome: &Outcome) -> &str {
    match outcome {
        Outcome::Reached { who, .. } => who,
        Outcome::Refused => "refused",
        Outcome::Silence => "silence",
    }
}

fn routes(space: &Space) -> String {
    // The kernel makes those of link-local addresses itself, a while after the interface is up.
    let own = |line: &&str| !["fe80:", "ff00:", "multicast"].iter().any(|word| line.contains(word));
    let both =
        space.tool("ip", "-4 route show table all", "") + &space.tool("ip", "-6 route show table all", "");
    both.lines().filter(own).collect::<Vec<_>>().join("\n")
}

/// The line of the wrapper that is copied most, the program's name apart.
const WRAPPER: &str = "connect redirect-traffic -proxy-inbound-port=21000 -proxy-outbound-port=15001 \
     -proxy-uid=5995 -exclude-uid=102 -exclude-inbound-port=22";

#[test]
fn a_wrappers_own_line_works_twice_and_leaves_nothing_behind() {
    let lab = Lab::new();
    lab.virtual_routes("del");
    lab.host.tool("iptables-nft-restore", "--noflush", crate::migrate::DOCKER);
    let (rules, before) = (settled(&lab.host.rules()), routes(&lab.host));
    fine(&lab.host, WRAPPER);
    let first = settled(&lab.host.rules());
    fine(&lab.host, WRAPPER);
    assert_eq!(settled(&lab.host.rules()), first, "once more is the same bytes");
    assert_eq!(who(&lab.host.dial(APP, "240.0.0.1:80".parse().unwrap())), "out");
    assert_eq!(who(&lab.peer.dial(0, "10.9.0.2:8080".parse().unwrap())), "in");
    assert_eq!(who(&lab.peer.dial(0, "10.9.0.2:22".parse().unwrap())), "ssh");
    let mut call = lab.host.call(APP, "10.9.0.1:80".parse().unwrap()).unwrap_or_else(|_| panic!());
    let space = &lab.host;
    std::thread::scope(|scope| {
        let removal = scope.spawn(|| {
            let tid = space.tid();
            let line = format!("redirect-traffic -remove --drain 60s --netns /proc/{tid}/ns/net --json");
            let words: Vec<&str> = line.split(' ').collect();
            let program = Path::new(env!("CARGO_BIN_EXE_enmesh"));
            let out = exec::run(program, &words, b"", Duration::from_secs(90)).unwrap();
            assert!(out.status.success(), "{}", out.stderr);
            serde_json::from_slice::<Value>(&out.stdout).unwrap()
        });
        // The first of the two steps: new connections go direct, the one that is redirected lives on.
        let mut direct = false;
        for _ in 0..600 {
            direct = who(&space.dial(APP, "10.9.0.1:80".parse().unwrap())) == "peer";
            if direct {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(direct && call.alive(), "{}", space.rules());
        drop(call);
        assert_eq!(removal.join().unwrap()["cut"], 0);
    });
    assert_eq!(settled(&lab.host.rules()), rules);
    assert_eq!(routes(&lab.host), before);
    // There is nothing left to remove, and that is fine.
    fine(&lab.host, "redirect-traffic --remove");
}

/// Row 76: a namespace goes away with the rules in it. What is asked of it then is an error, and nothing happens to the
/// caller's own.
#[test]
fn a_namespace_that_went_away() {
    let name = format!("enmesh-went-{}", std::process::id());
    let outside = Space::new();
    let untouched = outside.rules();
    let namespace = Namespace::create(&name).unwrap();
    let up =
        || exec::run(&exec::find("ip").unwrap(), &["link", "set", "lo", "up"], b"", Duration::from_secs(20));
    namespace.run(up).unwrap().unwrap();
    let line = ["redirect-traffic", "-proxy-uid=5995", "-proxy-inbound-port=20000", "-netns", &name];
    let first = enmesh(&outside, &line);
    drop(namespace);
    Namespace::delete(&name).unwrap();
    assert_eq!(first.0, 0, "{}", first.2);
    let remove = ["redirect-traffic", "-remove", "-netns", &name];
    for words in [line.as_slice(), &remove] {
        let (status, _, err) = enmesh(&outside, words);
        assert!(status == 1 && err.contains("ENM-N003"), "{words:?}: {status} {err}");
    }
    assert_eq!(outside.rules(), untouched);
}

/// Row 75.
#[test]
fn another_namespace_by_name_and_by_path() {
    let name = format!("enmesh-by-hand-{}", std::process::id());
    let namespace = Namespace::create(&name).unwrap();
    let outside = Space::new();
    let list = || {
        namespace
            .run(|| {
                exec::run(&exec::find("nft").unwrap(), &["list", "ruleset"], b"", Duration::from_secs(20))
            })
            .unwrap()
            .unwrap()
            .stdout
    };
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let up = |words: &'static [&'static str]| {
            namespace.run(|| exec::run(&exec::find("ip").unwrap(), words, b"", Duration::from_secs(20)))
        };
        let (_, _, err) =
            enmesh(&outside, &["redirect-traffic", "-proxy-uid=1", "-proxy-inbound-port=2", "-netns", &name]);
        assert!(err.contains("ENM-N015"), "{err}");
        assert!(list().is_empty(), "a refused job leaves nothing");
        up(&["link", "set", "lo", "up"]).unwrap().unwrap();
        let untouched = outside.rules();
        #[expect(clippy::disallowed_methods, reason = "somebody has to be in there")]
        let stay = || std::process::Command::new("/bin/sleep").arg("60").spawn().unwrap();
        let mut process = namespace.run(stay).unwrap();
        for netns in [name.clone(), format!("/run/netns/{name}"), format!("pid:{}", process.id())] {
            fine(
                &outside,
                &format!("redirect-traffic -proxy-uid=5995 -proxy-inbound-port=20000 -netns={netns}"),
            );
            let rules = String::from_utf8(list()).unwrap();
            assert!(rules.contains("enmesh:gen:0:15001x20000x"), "{rules}");
            assert_eq!(outside.rules(), untouched);
            fine(&outside, &format!("redirect-traffic -remove -netns={netns}"));
            assert!(list().is_empty());
        }
        process.kill().unwrap();
        process.wait().unwrap();
        for nobody in ["no-such", "pid:", "pid:1x", "pid:4294967295"] {
            let line = ["redirect-traffic", "-proxy-uid=1", "-proxy-inbound-port=2", "-netns", nobody];
            let (status, _, err) = enmesh(&outside, &line);
            assert!(status == 1 && err.contains("ENM-N003"), "{nobody}: {status} {err}");
        }
    }));
    Namespace::delete(&name).unwrap();
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

#[test]
fn a_plans_rules_are_left_alone() {
    let lab = Lab::new();
    lab.host
        .run(|| crate::drivers::nftables().apply(&crate::worlds::live(crate::worlds::two_users())))
        .unwrap();
    let rules = lab.host.rules();
    for line in [WRAPPER, "redirect-traffic -remove", &format!("{WRAPPER} --take-over")] {
        let (status, _, err) = enmesh(&lab.host, &line.split_whitespace().collect::<Vec<_>>());
        assert!(status == 1 && err.contains("ENM-D040") && err.contains("enmesh down"), "{status} {err}");
    }
    assert_eq!(lab.host.rules(), rules);
}

#[test]
fn bad_words_are_errors_with_codes_and_touch_nothing() {
    let space = Space::new();
    let cases: [(&[&str], &str); 14] = [
        (&["-proxy-inbound-port=20000"], "ENM-R030"),
        (&["-proxy-uid=5995"], "ENM-R030"),
        (&["-proxy-uid=5995", "-proxy-id=web", "-proxy-inbound-port=1"], "ENM-R031"),
        (&["-proxy-uid=no-such-user", "-proxy-inbound-port=1"], "ENM-R033"),
        (&["-proxy-uid=5995", "-proxy-inbound-port=1", "-exclude-inbound-port=22;id"], "ENM-R032"),
        (&["-proxy-uid=5995", "-proxy-inbound-port=1", "-exclude-inbound-port=22\nid"], "ENM-R032"),
        (&["-proxy-uid=5995", "-proxy-inbound-port=1", "-exclude-inbound-port", "'22'"], "ENM-R032"),
        (&["-proxy-uid=5995", "-proxy-inbound-port=1", "-exclude-outbound-port", "$(id)"], "ENM-R032"),
        (&["-proxy-uid=5995", "-proxy-inbound-port=1", "-exclude-outbound-port", "no-such"], "ENM-R034"),
        (
            &["-proxy-uid=5995", "-proxy-inbound-port=1", "-exclude-outbound-cidr", "10.0.0.0/8\" drop"],
            "ENM-R032",
        ),
        (&["-proxy-uid=5995", "-proxy-inbound-port=1", "-exclude-uid", "`id`"], "ENM-R032"),
        (&["-proxy-uid=5995", "-proxy-inbound-port=70000"], "ENM-R032"),
        (&["-proxy-uid=5995", "-proxy-inbound-port=1", "-consul-dns-ip=nowhere"], "ENM-R032"),
        (&["-proxy-uid=5995", "-proxy-inbound-port=1", "-netns=../x y"], "ENM-N003"),
    ];
    for (words, code) in cases {
        let words = [&["redirect-traffic"], words].concat();
        let (status, out, err) = enmesh(&space, &words);
        assert!(status != 0 && err.contains(code) && out.is_empty(), "{words:?}: {status} {out}{err}");
        let (_, out, _) = enmesh(&space, &[&words[..], &["--json"]].concat());
        assert_eq!(serde_json::from_str::<Value>(&out).unwrap()["error"]["code"], code, "{words:?}");
    }
    assert_eq!(space.tool("nft", "list ruleset", ""), "");
}

#[test]
fn ten_thousand_networks_and_overlaps_are_one_job() {
    let space = Space::new();
    let mut words =
        vec!["redirect-traffic".to_owned(), "-proxy-uid=5995".to_owned(), "-proxy-inbound-port=1".to_owned()];
    for n in 0..10_000_u32 {
        words.push(format!("-exclude-outbound-cidr=10.{}.{}.{}/31", n / 4096, n / 16 % 256, n % 16 * 16 + 1));
    }
    for more in [
        "-exclude-outbound-cidr=192.168.7.9/16",
        "-exclude-outbound-cidr=192.168.0.0/24",
        "-exclude-inbound-port=80:90",
        "-exclude-inbound-port=85-95",
    ] {
        words.push(more.to_owned());
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let (status, _, err) = enmesh(&space, &words);
    assert_eq!(status, 0, "{err}");
    let rules = space.tool("nft", "list ruleset", "");
    assert!(rules.contains("192.168.0.0/16") && !rules.contains("192.168.0.0/24"));
    assert!(rules.contains("80-95"));
    assert!(rules.contains("10.2.112.240/31"), "the last of all");
    fine(&space, "redirect-traffic -remove");
    assert_eq!(space.tool("nft", "list ruleset", ""), "");
}

#[test]
fn a_dry_run_shows_what_would_be_set_and_needs_no_privilege() {
    let space = Space::new();
    let line = format!("{WRAPPER} --dry-run");
    let shown = space.run_as(65534, move || {
        let words: Vec<&str> = line.split_whitespace().collect();
        let program = Path::new(env!("CARGO_BIN_EXE_enmesh"));
        let out = exec::run(program, &words, b"", Duration::from_secs(20)).unwrap();
        assert!(out.status.success(), "{}", out.stderr);
        String::from_utf8(out.stdout).unwrap()
    });
    assert_eq!(space.tool("nft", "list ruleset", ""), "");
    space.tool("nft", "-f -", Box::leak(shown.into_boxed_str()));
    let by_text = space.tool("nft", "list ruleset", "");
    fine(&space, "redirect-traffic -remove");
    fine(&space, WRAPPER);
    assert_eq!(space.tool("nft", "list ruleset", ""), by_text, "shown and set are the same");
    let iptables = fine(&space, &format!("{WRAPPER} --dry-run --driver iptables"));
    assert!(iptables.contains("*nat") && iptables.contains("ENMESH_OUT"));
}
