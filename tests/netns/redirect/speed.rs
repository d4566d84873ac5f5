//! What setting the rules costs beside `nft -f` alone.

use std::time::{Duration, Instant};

use enmesh::base::exec;
use enmesh::redirect::{Firewall, Nftables, render_text};

use crate::lab::Space;
use crate::worlds::{live, two_users};

const ROUNDS: usize = 20;

fn median(mut work: impl FnMut()) -> Duration {
    let mut times: Vec<Duration> = (0..ROUNDS)
        .map(|_| {
            let started = Instant::now();
            work();
            started.elapsed()
        })
        .collect();
    times.sort();
    times[ROUNDS / 2]
}

/// Printed with `--nocapture`; fails only when something is badly off, since machines are noisy.
#[test]
fn applying_costs_little_more_than_loading() {
    Space::new().run(|| {
        let desired = live(two_users());
        let text = render_text(&desired.policy, &desired.live);
        let nft = exec::find("nft").unwrap();
        let run = |arguments: &[&str], stdin: &[u8]| {
            assert!(exec::run(&nft, arguments, stdin, Duration::from_secs(5)).unwrap().status.success());
        };
        let bare = median(|| run(&["-f", "-"], text.as_bytes()));
        let firewall = Nftables::new();
        let apply = median(|| firewall.apply(&desired).unwrap());
        let observe = median(|| drop(firewall.observe(&desired).unwrap()));
        println!("nft -f {bare:?}, apply with read-back {apply:?}, observe {observe:?}");
        assert!(apply < bare * 3 + Duration::from_millis(20), "nft -f {bare:?}, apply {apply:?}");
    });
}
