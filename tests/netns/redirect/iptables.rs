//! What only the driver for iptables has to prove: it lives among the chains of others, in two families and several
//! tables, and puts back what it could not set.

use enmesh::base::exec;
use enmesh::config::OnProxyFailure;
use enmesh::redirect::{Desired, Firewall, Flavour, Iptables, Nftables, best, foreign, render_iptables};

use crate::drivers::{Driver, iptables_legacy, iptables_nft, nftables};
use crate::kernel::random;
use crate::lab::{Lab, Outcome, Space};
use crate::worlds::{APP, bare, down, legacy, live, on_failure, two_users, with_dns};

const FLAVOURS: [(Driver, &str); 2] = [(iptables_nft, "nft"), (iptables_legacy, "legacy")];

/// Docker's rules, with a published port: 8088 goes to 172.17.0.5:80.
const DOCKER: &str = "*nat\n:DOCKER - [0:0]\n-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER\n\
    -A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER\n\
    -A DOCKER -p tcp --dport 8088 -j DNAT --to-destination 172.17.0.5:80\nCOMMIT\n";

fn tool(space: &Space, program: &'static str, flavour: &str, arguments: &str, stdin: &str) -> String {
    let name = match (program, flavour) {
        ("restore", "nft") => "iptables-nft-restore",
        ("restore", _) => "iptables-legacy-restore",
        ("save", "nft") => "iptables-nft-save",
        ("save", _) => "iptables-legacy-save",
        ("iptables", "nft") => "iptables-nft",
        ("ip6tables", "nft") => "ip6tables-nft",
        ("ip6tables", _) => "ip6tables-legacy",
        _ => "iptables-legacy",
    };
    space.tool(name, arguments, stdin)
}

fn apply(space: &Space, driver: Driver, desired: Desired) {
    space.run(move || driver().apply(&desired)).unwrap_or_else(|fault| panic!("{fault}: {}", fault.hint));
}

fn observe(space: &Space, driver: Driver, desired: Desired) -> Vec<String> {
    space.run(move || driver().observe(&desired)).unwrap().differences
}

/// The rules, whatever the order of chains.
fn sorted(rules: &str) -> Vec<String> {
    let mut chains: Vec<String> = Vec::new();
    let mut place = String::new();
    for line in rules.lines() {
        match line.trim() {
            table if table.starts_with("table ") || table.starts_with('*') => place = table.to_owned(),
            chain if chain.starts_with("chain ") => chains.push(format!("{place} {chain}")),
            rule if !rule.is_empty() && rule != "}" => {
                if let (true, Some(last)) = (line.starts_with('\t'), chains.last_mut()) {
                    last.push_str(&format!("\n{rule}"));
                } else {
                    chains.push(format!("{place} {rule}"));
                }
            }
            _ => {}
        }
    }
    chains.sort();
    chains
}

fn who(outcome: &Outcome) -> &str {
    match outcome {
        Outcome::Reached { who, .. } => who,
        Outcome::Refused => "refused",
        Outcome::Silence => "silence",
    }
}

/// Read back by a driver that has learnt nothing; one that goes from each policy to the next.
#[test]
fn whatever_is_applied_is_observed() {
    for (driver, flavour) in FLAVOURS {
        Space::new().run(move || {
            let one_for_all = driver();
            for seed in 0..25 {
                let desired = random(seed);
                one_for_all.apply(&desired).unwrap_or_else(|fault| panic!("{flavour} {seed}: {fault}"));
                let observed = driver().observe(&desired).unwrap();
                assert_eq!(observed.differences, Vec::<String>::new(), "{flavour} {seed}");
                let expected = (!desired.policy.is_empty()).then(|| desired.policy.generation.clone());
                assert_eq!(observed.generation, expected, "{flavour} {seed}");
            }
        });
    }
}

/// Row 69; and what a person would load from `enmesh render iptables` is what the driver sets.
#[test]
fn applying_three_times_changes_nothing() {
    for (driver, flavour) in FLAVOURS {
        let space = Space::new();
        let Desired { policy, live: ids } = live(with_dns(&[1000]));
        let [v4, v6] = render_iptables(&policy, &ids);
        tool(&space, "restore", flavour, "--noflush", &v4);
        let program = if flavour == "nft" { "ip6tables-nft-restore" } else { "ip6tables-legacy-restore" };
        space.tool(program, "--noflush", &v6);
        let rendered = sorted(&space.rules());
        assert_eq!(observe(&space, driver, live(with_dns(&[1000]))), Vec::<String>::new());
        for _ in 0..3 {
            apply(&space, driver, live(with_dns(&[1000])));
            assert_eq!(rendered, sorted(&space.rules()), "{flavour}");
        }
        // Another policy and back: nothing is left of it, and no jump is there twice.
        apply(&space, driver, live(legacy()));
        apply(&space, driver, live(with_dns(&[1000])));
        assert_eq!(rendered, sorted(&space.rules()), "{flavour}");
    }
}

/// Rows 28, 46 and 74: a published port is Docker's, whoever comes first; and a REJECT of others does not come before
/// what we refuse or after what we redirect.
#[test]
fn among_the_rules_of_others() {
    for (driver, flavour) in FLAVOURS {
        for docker_first in [true, false] {
            let lab = Lab::new();
            let container = Space::new();
            lab.host.ip(&format!("link add c0 type veth peer name eth0 netns {}", container.tid()));
            lab.host.ip("addr add 172.17.0.1/16 dev c0");
            lab.host.ip("link set c0 up");
            container.ip("addr add 172.17.0.5/16 dev eth0");
            container.ip("link set eth0 up");
            container.ip("route add default via 172.17.0.1");
            lab.host.tool("sysctl", "-qw net.ipv4.ip_forward=1", "");
            container.listen("container", "[::]:80");
            let theirs = format!(
                "{DOCKER}*filter\n-A INPUT -p tcp --dport 8080 -j ACCEPT\n-A INPUT -p tcp --dport 8081 -j REJECT\nCOMMIT\n"
            );
            if docker_first {
                tool(&lab.host, "restore", flavour, "--noflush", &theirs);
                apply(&lab.host, driver, live(legacy()));
            } else {
                apply(&lab.host, driver, live(legacy()));
                tool(&lab.host, "restore", flavour, "--noflush", &theirs);
                let amiss = observe(&lab.host, driver, live(legacy()));
                assert_eq!(amiss.len(), 2, "{amiss:?}");
                assert!(amiss.iter().all(|line| line.ends_with("should be the last rule")), "{amiss:?}");
                assert_eq!(lab.host.run(move || driver().repair(&live(legacy()))).unwrap(), amiss);
            }
            let peer = |to: &str| who(&lab.peer.dial(0, to.parse().unwrap())).to_owned();
            assert_eq!(peer("10.9.0.2:8088"), "container", "row 46, {flavour}");
            assert_eq!(who(&lab.host.dial(APP, "10.9.0.2:8088".parse().unwrap())), "container", "row 28");
            assert_eq!(peer("10.9.0.2:8080"), "in", "row 38");
            apply(&lab.host, driver, down(legacy()));
            assert_eq!(peer("10.9.0.2:8080"), "refused", "an ACCEPT of others");
            apply(&lab.host, driver, down(on_failure(legacy(), OnProxyFailure::Open)));
            assert_eq!(peer("10.9.0.2:8080"), "app");
            assert_eq!(peer("10.9.0.2:8081"), "refused", "a REJECT of others");
            lab.host.run(move || driver().remove()).unwrap();
            let left = tool(&lab.host, "save", flavour, "", "");
            assert!(
                left.contains("-A DOCKER") && left.contains("--dport 8081") && !left.contains("ENMESH"),
                "{left}"
            );
        }
    }
}

/// Row 71: others flush or edit; it is seen and put right, and theirs stays theirs.
#[test]
fn drift_is_seen_and_repaired() {
    let edits = [
        ("iptables", "-t nat -D ENMESH_OUT_REST 1", "+ rule in ENMESH_OUT_REST in table nat (IPv4): -p tcp"),
        ("iptables", "-t nat -I ENMESH_OUT -j ACCEPT", "- rule in ENMESH_OUT in table nat (IPv4): -j ACCEPT"),
        ("ip6tables", "-t nat -F ENMESH_IN", "+ rule in ENMESH_IN in table nat (IPv6)"),
        ("iptables", "-D OUTPUT -j ENMESH_GUARD_OUT", "+ jump from OUTPUT in table filter (IPv4)"),
        ("iptables", "-A OUTPUT -j ENMESH_GUARD_OUT", "- jump from OUTPUT in table filter (IPv4)"),
        ("ip6tables", "-A FORWARD -p udp -j ENMESH_REFUSE", "- jump from FORWARD in table filter (IPv6)"),
        ("iptables", "-I INPUT 1 -j ACCEPT", "~ jump from INPUT in table filter (IPv4)"),
        ("iptables", "-N ENMESH_MORE", "- chain ENMESH_MORE in table filter (IPv4)"),
        ("iptables", "-t nat -F", "+ jump from OUTPUT in table nat (IPv4)"),
    ];
    for (driver, flavour) in FLAVOURS {
        let space = Space::new();
        let desired = || live(two_users());
        apply(&space, driver, desired());
        for (program, edit, expected) in edits {
            tool(&space, program, flavour, edit, "");
            let found = observe(&space, driver, desired());
            assert!(found.iter().any(|line| line.starts_with(expected)), "{flavour} {edit}: {found:?}");
            apply(&space, driver, desired());
            assert_eq!(observe(&space, driver, desired()), Vec::<String>::new(), "{flavour} {edit}");
        }
        let rules = tool(&space, "save", flavour, "", "");
        assert!(rules.contains("-A INPUT -j ACCEPT"), "{rules}");
    }
}

/// Row 70, with two families and several tables: what was set before the refusal goes back. With one flavour, because
/// only nf_tables can be made to refuse one table; what puts back is the same for both.
#[test]
fn a_refusal_leaves_the_rules_of_before() {
    let space = Space::new();
    apply(&space, iptables_nft, live(two_users()));
    // What iptables does not know from itself makes it refuse this table; by then IPv4 is set, and the filter of IPv6.
    let theirs = "table ip6 raw { chain OUTPUT { type filter hook output priority 5; }\n }";
    space.tool("nft", "-f -", theirs);
    // Without the kernel's own chains of tables that appear on the way.
    let ours = |space: &Space| {
        let chains = sorted(&space.rules()).into_iter();
        chains.filter(|chain| chain.contains("ENMESH")).collect::<Vec<_>>()
    };
    let before = ours(&space);
    let mut desired = live(legacy());
    desired.policy.dns = with_dns(&[]).dns;
    let fault = space.run(move || iptables_nft().apply(&desired)).unwrap_err();
    assert_eq!(fault.code, "ENM-R015", "{fault}");
    assert_eq!(before, ours(&space));
}

/// A host that changes its driver has one redirector, before and after.
#[test]
fn the_driver_can_be_changed() {
    let lab = Lab::new();
    let drivers: [Driver; 4] = [nftables, iptables_legacy, nftables, iptables_nft];
    for driver in drivers {
        apply(&lab.host, driver, live(two_users()));
        assert_eq!(who(&lab.host.dial(APP, "10.9.0.1:80".parse().unwrap())), "out");
        let rules = lab.host.rules();
        let is_nft = driver().name() == "nftables";
        assert_eq!(
            (rules.contains("table inet enmesh"), rules.contains("ENMESH_")),
            (is_nft, !is_nft),
            "{rules}"
        );
    }
}

/// The flavour that is in use, and the better driver where both work.
#[test]
fn the_flavour_is_the_one_in_use() {
    assert_eq!(Space::new().run(|| best().name()), "nftables");
    let ours = |space: &Space, flavour: &str| tool(space, "save", flavour, "", "").contains("ENMESH_OUT");
    for (used, rules, expected) in [
        ("legacy", "", "nft"),
        ("legacy", "*filter\n-A INPUT -j ACCEPT\nCOMMIT\n", "legacy"),
        ("nft", "*filter\n-A INPUT -j ACCEPT\nCOMMIT\n", "nft"),
        ("legacy", DOCKER, "legacy"),
    ] {
        let space = Space::new();
        if !rules.is_empty() {
            tool(&space, "restore", used, "--noflush", rules);
        }
        if rules == DOCKER {
            tool(&space, "restore", "nft", "--noflush", "*filter\n-A INPUT -j ACCEPT\nCOMMIT\n");
        }
        for _ in 0..2 {
            space.run(|| Iptables::new().apply(&live(two_users()))).unwrap();
            assert_eq!(
                (ours(&space, "nft"), ours(&space, "legacy")),
                (expected == "nft", expected == "legacy")
            );
        }
        space.run(|| Iptables::new().apply(&live(bare()))).unwrap();
        assert!(!space.rules().contains("ENMESH"));
    }
}

/// Row 81: a host without `nft` gets the other driver. (What that one cannot promise is in docs/drivers.md.)
#[test]
fn without_nft_it_is_iptables() {
    let name = Space::new().run(|| {
        let hidden = || {
            let nft = exec::find("nft").unwrap();
            enmesh::netns::mount_privately(&[(std::path::Path::new("/dev/null"), &nft)]).unwrap();
            (best().name(), Nftables::new().apply(&live(two_users())).unwrap_err().code)
        };
        std::thread::spawn(hidden).join().unwrap()
    });
    assert_eq!(name, ("iptables", "ENM-R001"));
}

/// Those of iptables-legacy, which nft does not see.
#[test]
fn foreign_redirectors_are_found_and_can_be_removed() {
    let space = Space::new();
    let chains = "*nat\n:ISTIO_OUTPUT - [0:0]\n:THEIRS - [0:0]\n-A OUTPUT -p tcp -j ISTIO_OUTPUT\n-A OUTPUT -j THEIRS\n\
                  -A ISTIO_OUTPUT -p tcp -j REDIRECT --to-ports 15001\nCOMMIT\n";
    tool(&space, "restore", "legacy", "--noflush", chains);
    let found = space.run(foreign).unwrap();
    let [one] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!(one.place, "table nat of iptables-legacy: ISTIO_OUTPUT");
    let command = format!("PATH=/usr/sbin:/usr/bin:/sbin:/bin; {}", one.removal);
    space.run(move || {
        let shell = std::path::Path::new("/bin/sh");
        let out = exec::run(shell, &["-c", &command], b"", std::time::Duration::from_secs(5)).unwrap();
        assert!(out.status.success(), "{command}: {}", out.stderr);
    });
    assert_eq!(space.run(foreign).unwrap(), []);
    assert!(space.rules().contains("-A OUTPUT -j THEIRS"));
    // Ours are not foreign.
    space.run(|| Iptables::of(Flavour::Legacy).and_then(|driver| driver.apply(&live(two_users())))).unwrap();
    space.run(|| Nftables::new().apply(&live(two_users()))).unwrap();
    assert_eq!(space.run(foreign).unwrap(), []);
}
