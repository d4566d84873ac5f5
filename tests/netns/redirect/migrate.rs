//! Taking over from the old redirector: its chains, built by the very calls of its own command, go; what stands beside
//! them stays byte for byte; and under load no connection goes in the clear or is lost.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::by_hand::enmesh;
use crate::lab::{Call, Lab, Outcome, Space};
use crate::worlds::{APP, NOBODY};

/// Rules of a container engine, with words in them that look like theirs.
pub const DOCKER: &str = "*nat\n:DOCKER - [0:0]\n-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER\n\
    -A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER\n\
    -A OUTPUT -d 10.99.0.1/32 -m comment --comment \"not for -j CONSUL_PROXY_OUTPUT\" -j RETURN\n\
    -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE\n\
    -A DOCKER -i docker0 -j RETURN\n-A DOCKER ! -i docker0 -p tcp -m tcp --dport 8088 -j DNAT --to-destination 172.17.0.5:80\n\
    COMMIT\n*filter\n:DOCKER-USER - [0:0]\n-A FORWARD -j DOCKER-USER\n-A DOCKER-USER -j RETURN\nCOMMIT\n";

/// What `consul connect redirect-traffic` of the releases before nftables calls, one program a line.
fn old_calls(inbound: &str, outbound: &str) -> Vec<String> {
    let mut lines: Vec<String> = [
        "CONSUL_PROXY_INBOUND",
        "CONSUL_PROXY_IN_REDIRECT",
        "CONSUL_PROXY_OUTPUT",
        "CONSUL_PROXY_REDIRECT",
        "CONSUL_DNS_REDIRECT",
    ]
    .map(|chain| format!("-N {chain}"))
    .into();
    lines.extend(
        [
            &format!("-A CONSUL_PROXY_REDIRECT -p tcp -j REDIRECT --to-port {outbound}"),
            "-A CONSUL_DNS_REDIRECT -p udp -d 127.0.0.1 --dport 53 -j DNAT --to-destination 127.0.0.1:8600",
            "-A CONSUL_DNS_REDIRECT -p tcp -d 127.0.0.1 --dport 53 -j DNAT --to-destination 127.0.0.1:8600",
            "-A OUTPUT -p udp -d 127.0.0.1 --dport 53 -j CONSUL_DNS_REDIRECT",
            "-A OUTPUT -p tcp -d 127.0.0.1 --dport 53 -j CONSUL_DNS_REDIRECT",
            "-A OUTPUT -p tcp -j CONSUL_PROXY_OUTPUT",
            "-A CONSUL_PROXY_OUTPUT -m owner --uid-owner 5995 -j RETURN",
            "-A CONSUL_PROXY_OUTPUT -d 127.0.0.1/32 -j RETURN",
            "-A CONSUL_PROXY_OUTPUT -j CONSUL_PROXY_REDIRECT",
            "-I CONSUL_PROXY_OUTPUT -p tcp --dport 3306 -j RETURN",
            "-I CONSUL_PROXY_OUTPUT -d 10.50.0.0/16 -j RETURN",
            "-I CONSUL_PROXY_OUTPUT -m owner --uid-owner 102 -j RETURN",
            &format!("-A CONSUL_PROXY_IN_REDIRECT -p tcp -j REDIRECT --to-port {inbound}"),
            "-A PREROUTING -p tcp -j CONSUL_PROXY_INBOUND",
            "-A CONSUL_PROXY_INBOUND -p tcp -j CONSUL_PROXY_IN_REDIRECT",
            "-I CONSUL_PROXY_INBOUND -p tcp --dport 22 -j RETURN",
        ]
        .map(str::to_owned),
    );
    lines
}

fn old_rules(space: &Space, program: &'static str, inbound: &str, outbound: &str) {
    for line in old_calls(inbound, outbound) {
        space.tool(program, &format!("-t nat {line}"), "");
    }
}

/// The newer form: a table of its own, or chains in one that it may share.
const NEWER: &str = "table inet consul_tproxy {\n\
    chain proxy { meta l4proto tcp redirect to :15001\n }\n\
    chain out { type nat hook output priority -100; meta skuid { 5995, 102 } return\n ip daddr 127.0.0.1 return\n meta l4proto tcp jump proxy\n }\n\
    chain in { type nat hook prerouting priority -100; tcp dport 22 return\n meta l4proto tcp redirect to :21001\n }\n}\n";
const SHARED: &str = "table inet nat {\n\
    chain somebodys { type nat hook postrouting priority 100; ip saddr 172.18.0.0/16 masquerade\n }\n\
    chain CONSUL_PROXY_REDIRECT { meta l4proto tcp redirect to :15001\n }\n\
    chain CONSUL_NAT_OUTPUT { type nat hook output priority -100; meta skuid 5995 return\n ip daddr 127.0.0.1 return\n meta l4proto tcp jump CONSUL_PROXY_REDIRECT\n }\n\
    chain CONSUL_NAT_PREROUTING { type nat hook prerouting priority -100; tcp dport 22 return\n meta l4proto tcp redirect to :21001\n }\n}\n";

const FLAGS: &str = "redirect-traffic -proxy-uid 5995 -proxy-inbound-port 21000 -exclude-uid 102 \
    -exclude-outbound-port 3306 -exclude-outbound-cidr 10.50.0.0/16";

/// Listings without what counts packets.
pub fn settled(rules: &str) -> String {
    let words = |line: &str| {
        let mut words: Vec<&str> = line.split(' ').collect();
        if let Some(at) = words.iter().position(|word| *word == "packets") {
            words.drain(at..(at + 4).min(words.len()));
        }
        words.join(" ")
    };
    rules.lines().map(words).collect::<Vec<_>>().join("\n")
}

/// Every rule and chain that somebody made, with its table; a table with nothing in it is none.
fn saved(space: &Space) -> String {
    let all = ["iptables-nft-save", "ip6tables-nft-save", "iptables-legacy-save", "ip6tables-legacy-save"];
    let mut lines = String::new();
    for program in all {
        let mut table = String::new();
        for line in space.tool(program, "", "").lines() {
            if line.starts_with('*') {
                line.clone_into(&mut table);
            } else if line.starts_with("-A ") || (line.starts_with(':') && line.contains(" - ")) {
                lines.push_str(&format!("{program} {table} {}\n", line.split(" [").next().unwrap()));
            }
        }
    }
    lines
}

/// Dials again and again until it is told to stop. What did not arrive where it should is kept.
struct Load(Arc<AtomicBool>, Vec<thread::JoinHandle<(u32, Vec<String>)>>);

impl Load {
    fn start(space: &Space, uid: u32, to: &str, wanted: &'static [&'static str]) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let (until, to): (_, SocketAddr) = (Arc::clone(&stop), to.parse().unwrap());
        let worker = space.run(move || {
            thread::spawn(move || {
                let (mut good, mut bad) = (0, Vec::new());
                while !until.load(Ordering::Relaxed) {
                    match Call::to_as(uid, to) {
                        Outcome::Reached { who, .. } if wanted.contains(&who.as_str()) => good += 1,
                        other => bad.push(format!("{to}: {other:?}")),
                    }
                }
                (good, bad)
            })
        });
        Load(stop, vec![worker])
    }

    /// How many arrived; none may have gone elsewhere.
    fn end(self) -> u32 {
        self.0.store(true, Ordering::Relaxed);
        let mut all = 0;
        for worker in self.1 {
            let (good, bad) = worker.join().unwrap();
            assert!(bad.is_empty(), "{} of {}: {:?}", bad.len(), good, bad.first());
            all += good;
        }
        all
    }
}

/// Builds the old rules by `old`, takes over under load, and looks at what is left.
fn takes_over(driver: &str, old: impl Fn(&Space)) {
    let lab = Lab::new();
    let host = &lab.host;
    for program in ["iptables-nft-restore", "iptables-legacy-restore"] {
        host.tool(program, "--noflush", DOCKER);
    }
    let untouched = (settled(&host.tool("nft", "list ruleset", "")), saved(host));
    old(host);
    assert_ne!(saved(host) + &host.rules(), untouched.1.clone() + &untouched.0);
    // Without being told to, nobody is driven out.
    let line = format!("{FLAGS} --driver {driver}");
    let (status, _, err) = enmesh(host, &line.split_whitespace().collect::<Vec<_>>());
    assert!(status == 1 && err.contains("ENM-D012") && err.contains("enmesh migrate"), "{status} {err}");
    let (status, plan, _) = enmesh(host, &["migrate"]);
    assert!(status == 0 && plan.contains("CONSUL_") | plan.contains("consul_tproxy"), "{plan}");
    let mut open = host.call(APP, "10.9.0.1:80".parse().unwrap()).unwrap_or_else(|_| panic!());
    let mut inbound = lab.peer.call(0, "10.9.0.2:8080".parse().unwrap()).unwrap_or_else(|_| panic!());
    let loads = [
        Load::start(host, APP, "240.0.0.1:80", &["out"]),
        Load::start(host, NOBODY, "10.9.0.1:80", &["out"]),
        // The old sidecar first, then the new one; both are in the mesh.
        Load::start(&lab.peer, 0, "10.9.0.2:8080", &["in", "in2"]),
    ];
    thread::sleep(Duration::from_millis(300));
    let line = format!("{FLAGS} --take-over --driver {driver} --json");
    let (status, out, err) = enmesh(host, &line.split_whitespace().collect::<Vec<_>>());
    assert_eq!(status, 0, "{out}{err}");
    thread::sleep(Duration::from_millis(300));
    for load in loads {
        assert!(load.end() > 20, "there was no load");
    }
    assert!(open.alive() && inbound.alive(), "connections that the old rules redirected live on");
    assert!(lab.on_the_wire().0 == 0);
    let who = |outcome| match outcome {
        Outcome::Reached { who, .. } => who,
        other => format!("{other:?}"),
    };
    assert_eq!(who(lab.peer.dial(0, "10.9.0.2:8080".parse().unwrap())), "in", "{}", host.rules());
    let (_, plan, _) = enmesh(host, &["migrate"]);
    assert!(plan.contains("nothing to take over"), "{plan}");
    let (status, _, err) = enmesh(host, &["redirect-traffic", "-remove", "--drain", "0s"]);
    assert_eq!(status, 0, "{err}");
    assert_eq!(saved(host), untouched.1);
    if driver == "nftables" {
        assert_eq!(settled(&host.tool("nft", "list ruleset", "")), untouched.0);
    }
}

/// Rules of each other redirector go, and a script's rules for DNS are told and stay.
#[test]
fn chains_of_every_redirector_go_and_nothing_else() {
    const DNS: &str = "*nat\n-A OUTPUT -d 127.0.0.1/32 -p udp -m udp --dport 53 -j REDIRECT --to-ports 8600\n\
        -A OUTPUT -d 127.0.0.1/32 -p tcp -m tcp --dport 53 -j DNAT --to-destination 127.0.0.1:8600\nCOMMIT\n";
    let chains = [
        ("ISTIO_OUTPUT", "ISTIO_REDIRECT"),
        ("KUMA_MESH_OUTBOUND", "KUMA_MESH_OUTBOUND_REDIRECT"),
        ("PROXY_INIT_OUTPUT", "PROXY_INIT_REDIRECT"),
        ("APPMESH_EGRESS", "APPMESH_INGRESS"),
        ("CONSUL_PROXY_OUTPUT", "CONSUL_PROXY_REDIRECT"),
    ];
    for (flavour, families) in [("nft", ["iptables", "ip6tables"]), ("legacy", ["iptables", "ip6tables"])] {
        let host = Space::new();
        for (first, second) in chains {
            let theirs = format!(
                "*nat\n:{first} - [0:0]\n:{second} - [0:0]\n-A OUTPUT -p tcp -j {first}\n\
                 -A {first} -m owner --uid-owner 5995 -j RETURN\n-A {first} -g {second}\n\
                 -A {second} -p tcp -j REDIRECT --to-ports 15001\nCOMMIT\n\
                 *filter\n:{first} - [0:0]\n-I INPUT -p tcp -j {first}\n-A {first} -j RETURN\nCOMMIT\n"
            );
            let restore = |text: &str, family: &str| {
                let name: &'static str = Box::leak(format!("{family}-{flavour}-restore").into_boxed_str());
                host.tool(name, "--noflush", text);
            };
            if first.starts_with("ISTIO") {
                restore(DOCKER, "iptables");
                restore(DNS, "iptables");
            }
            let untouched = saved(&host);
            families.iter().for_each(|family| restore(&theirs, family));
            assert_ne!(saved(&host), untouched);
            let (status, plan, err) = enmesh(&host, &["migrate"]);
            assert!(status == 0 && plan.contains(second), "{plan}{err}");
            assert_eq!(plan.matches(":8600").count() + plan.matches("ports 8600").count(), 2, "{plan}");
            host.run(|| {
                for leftover in enmesh::redirect::takeover::leftovers().unwrap() {
                    enmesh::redirect::takeover::remove(&leftover).unwrap();
                }
            });
            assert_eq!(saved(&host), untouched, "{flavour} {first}");
        }
    }
}

#[test]
fn from_chains_of_iptables_nft() {
    takes_over("nftables", |host| old_rules(host, "iptables-nft", "21001", "15001"));
}

#[test]
fn from_chains_of_iptables_legacy() {
    takes_over("nftables", |host| old_rules(host, "iptables-legacy", "21001", "15001"));
}

#[test]
fn from_a_table_of_its_own() {
    takes_over("nftables", |host| drop(host.tool("nft", "-f -", NEWER)));
}

#[test]
fn from_chains_in_a_shared_table() {
    let lab = Lab::new();
    lab.host.tool("nft", "-f -", SHARED);
    let line = format!("{FLAGS} --take-over");
    let (status, _, err) = enmesh(&lab.host, &line.split_whitespace().collect::<Vec<_>>());
    assert_eq!(status, 0, "{err}");
    let rules = lab.host.tool("nft", "list table inet nat", "");
    assert!(rules.contains("chain somebodys") && !rules.contains("CONSUL_"), "{rules}");
}

#[test]
fn to_the_driver_iptables() {
    takes_over("iptables", |host| old_rules(host, "iptables-nft", "21001", "15001"));
}

#[test]
fn rules_that_were_added_twice_go_all_the_same() {
    takes_over("nftables", |host| {
        old_rules(host, "iptables-nft", "21001", "15001");
        for line in ["OUTPUT -p tcp -j CONSUL_PROXY_OUTPUT", "PREROUTING -p tcp -j CONSUL_PROXY_INBOUND"] {
            host.tool("iptables-nft", &format!("-t nat -A {line}"), "");
        }
        old_rules(host, "iptables-legacy", "21001", "15001");
    });
}
