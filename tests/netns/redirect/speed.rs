//! What setting the rules costs beside `nft -f` alone.

use std::cell::Cell;
use std::time::{Duration, Instant};

use enmesh::base::exec;
use enmesh::redirect::{Firewall, Nftables, render_json, render_text};

use crate::drivers::{Driver, iptables_legacy, iptables_nft};
use crate::lab::Space;
use crate::worlds::{down, live, two_users};

const ROUNDS: usize = 20;

fn median(mut before: impl FnMut(), mut work: impl FnMut()) -> Duration {
    let mut times: Vec<Duration> = (0..ROUNDS)
        .map(|_| {
            before();
            let started = Instant::now();
            work();
            started.elapsed()
        })
        .collect();
    times.sort();
    times[ROUNDS / 2]
}

/// Printed with `--nocapture`; fails only when something is badly off, since machines are noisy.
/// Row 85.
#[test]
fn applying_costs_little_more_than_loading() {
    Space::new().run(|| {
        let desired = live(two_users());
        let text = render_text(&desired.policy, &desired.live);
        let json = render_json(&desired.policy, &desired.live);
        let nft = exec::find("nft").unwrap();
        let run = |arguments: &[&str], stdin: &[u8]| {
            assert!(exec::run(&nft, arguments, stdin, Duration::from_secs(5)).unwrap().status.success());
        };
        let flush = || run(&["add", "table", "inet", "enmesh", ";", "flush", "table", "inet", "enmesh"], b"");
        let bare = median(flush, || run(&["-f", "-"], text.as_bytes()));
        let as_json = median(flush, || run(&["-j", "-f", "-"], json.as_bytes()));
        let whole = median(flush, || Nftables::new().apply(&desired).unwrap());
        let firewall = Nftables::new();
        let next = Cell::new(0);
        let other = median(
            || (),
            || {
                let mut policy = two_users();
                policy.generation.number = next.replace(next.get() + 1);
                firewall.apply(&live(policy)).unwrap();
            },
        );
        let gone =
            median(|| firewall.apply(&desired).unwrap(), || firewall.apply(&down(two_users())).unwrap());
        let back =
            median(|| firewall.apply(&down(two_users())).unwrap(), || firewall.apply(&desired).unwrap());
        let observe = median(|| (), || drop(firewall.observe(&desired).unwrap()));
        println!(
            "nft -f {bare:?}, the same as JSON {as_json:?}; all with read-back: whole table {whole:?}, \
             next generation {other:?}, sidecars down {gone:?}, sidecars up {back:?}; observe {observe:?}"
        );
        assert!(whole < bare * 3 + Duration::from_millis(20), "nft -f {bare:?}, apply {whole:?}");
    });
}

/// The same for iptables, beside the program alone; and what a long list of networks takes.
/// Row 85.
#[test]
fn applying_with_iptables_is_bounded() {
    for (driver, name) in [(iptables_nft as Driver, "nft"), (iptables_legacy, "legacy")] {
        Space::new().run(move || {
            let firewall = driver();
            let whole = median(|| firewall.remove().unwrap(), || firewall.apply(&live(two_users())).unwrap());
            let back = median(
                || firewall.apply(&down(two_users())).unwrap(),
                || firewall.apply(&live(two_users())).unwrap(),
            );
            let observe = median(|| (), || drop(firewall.observe(&live(two_users())).unwrap()));
            let mut policy = two_users();
            policy.bypass_cidrs.extend((0..10_000_u32).map(|n| -> ipnet::IpNet {
                format!("10.{}.{}.0/25", n / 256, n % 256).parse().unwrap()
            }));
            let started = Instant::now();
            firewall.apply(&live(policy)).unwrap();
            let many = started.elapsed();
            println!(
                "iptables-{name}, all with read-back: all chains {whole:?}, sidecars up {back:?}; observe {observe:?}; \
                 10 000 networks {many:?}"
            );
            assert!(many < Duration::from_secs(15), "{many:?}");
        });
    }
}
