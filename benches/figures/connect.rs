//! What a new connection costs: with more and more bypasses, with one service and with a hundred, beside one rule
//! a bypass as scripts and Consul's own command write them.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::io::Read;
use std::time::{Duration, Instant};

use enmesh::config::value::ServiceId;
use enmesh::config::{Ipv6Policy, OnProxyFailure};
use enmesh::plan::{Bypasses, OutboundCapture, Who};
use enmesh::redirect::{Desired, Firewall, Nftables};
use ipnet::IpNet;
use nix::unistd::{Uid, setfsuid};

use crate::Answer;
use crate::lane::{Lane, SIDECAR, VIRTUAL, call};
use crate::stats::Sample;
use crate::table::{Table, time};
use crate::{apply, program};

const ROUNDS: usize = 40;
const CALLS: usize = 100;
/// The first service's user; the last one's connections are timed.
const FIRST_UID: u32 = 61_000;

/// Networks that do not touch each other, so that nobody can merge them.
fn networks(count: u32) -> impl Iterator<Item = String> {
    (0..count).map(|n| format!("11.{}.{}.{}/27", n >> 10, (n >> 2) & 255, (n & 3) * 64))
}

/// `services` services of a user each, with `bypasses` networks between them.
fn policy(bypasses: u32, services: u32) -> Result<Desired, Box<dyn Error>> {
    let mut desired = apply::desired(1)?;
    let all: Vec<IpNet> = networks(bypasses).map(|net| net.parse()).collect::<Result<_, _>>()?;
    let mut outbound = BTreeMap::new();
    for number in 0..services {
        let id: ServiceId = format!("s{number}").parse().map_err(|_| "an id")?;
        let mine = all.iter().skip(usize::try_from(number)?).step_by(usize::try_from(services)?);
        let capture = OutboundCapture {
            who: Who::Uid(FIRST_UID + number),
            port: SIDECAR.1,
            ipv6: Ipv6Policy::Redirect,
            on_failure: OnProxyFailure::Closed,
            bypass: Bypasses { ports: Vec::new(), cidrs: mine.copied().collect() },
        };
        outbound.insert(id, capture);
    }
    desired.live = outbound.keys().cloned().collect::<BTreeSet<_>>();
    desired.policy.outbound = outbound;
    desired.policy.inbound = BTreeMap::new();
    Ok(desired)
}

/// The old way for one service: a rule a bypass.
fn rules_of_today(bypasses: u32) -> String {
    let mut text = "*nat\n:CONSUL_PROXY_OUTPUT - [0:0]\n-A OUTPUT -p tcp -j CONSUL_PROXY_OUTPUT\n".to_owned();
    for net in networks(bypasses) {
        text += &format!("-A CONSUL_PROXY_OUTPUT -d {net} -j RETURN\n");
    }
    text + "-A CONSUL_PROXY_OUTPUT -m owner --uid-owner 5995 -j RETURN\n\
        -A CONSUL_PROXY_OUTPUT -d 127.0.0.1/32 -j RETURN\n\
        -A CONSUL_PROXY_OUTPUT -p tcp -j REDIRECT --to-ports 15001\nCOMMIT\n"
}

/// Connections of the last service's user, timed one by one.
fn timed(services: u32, to: ([u8; 4], u16)) -> Result<Vec<Duration>, String> {
    setfsuid(Uid::from_raw(FIRST_UID + services - 1));
    let mut times = Vec::with_capacity(CALLS);
    for _ in 0..CALLS {
        let started = Instant::now();
        let failed = |error| format!("a connection failed: {error}");
        let mut stream = call(to.into()).map_err(failed)?;
        times.push(started.elapsed());
        // Who listens keeps up: a queue that is full would be what is timed next.
        stream.read_exact(&mut [0]).map_err(failed)?;
    }
    setfsuid(Uid::from_raw(0));
    Ok(times)
}

struct Way {
    name: String,
    lane: Lane,
    services: u32,
    to: ([u8; 4], u16),
    /// All times, and the median of each round.
    all: Vec<Duration>,
    medians: Vec<Duration>,
}

fn ways() -> Result<Vec<Way>, Box<dyn Error>> {
    let way = |name: String, services, to| -> Result<Way, Box<dyn Error>> {
        Ok(Way { name, lane: Lane::new()?, services, to, all: Vec::new(), medians: Vec::new() })
    };
    let mut ways = Vec::new();
    for (bypasses, services) in
        [(1, 1), (0, 1), (2_000, 1), (10_000, 1), (1, 100), (2_000, 100), (10_000, 100)]
    {
        let of = if services == 1 { "1 service" } else { "100 services" };
        let way = way(format!("enmesh, {of}, {bypasses} bypasses"), services, VIRTUAL)?;
        let desired = policy(bypasses, services)?;
        way.lane.run(move || Nftables::new().apply(&desired).map_err(|fault| fault.to_string()))?;
        ways.push(way);
    }
    for bypasses in [1, 2_000, 10_000] {
        let way = way(format!("iptables, 1 service, {bypasses} bypasses"), 1, VIRTUAL)?;
        let text = rules_of_today(bypasses);
        way.lane
            .run(move || program::run("iptables-restore", &[], &text).map_err(|error| error.to_string()))?;
        ways.push(way);
    }
    ways.push(way("no rules, straight to the sidecar".to_owned(), 1, SIDECAR)?);
    Ok(ways)
}

/// Times of new connections.
pub fn measure() -> Answer {
    let mut ways = ways()?;
    let count = ways.len();
    for round in 0..=ROUNDS {
        for turn in 0..count {
            let Some(way) = ways.get_mut((round + turn) % count) else { continue };
            let (services, to) = (way.services, way.to);
            let mut times = way.lane.run(move || timed(services, to))?;
            if round > 0 {
                way.all.extend(&times);
                times.sort();
                way.medians.extend(times.get(CALLS / 2));
            }
        }
    }
    let title = "A new connection to a virtual IP, until it is open";
    let mut table = Table::new(title, &["", "p50", "p99", "p50 to one bypass"]);
    let sample = |way: &Way, times: &[Duration]| Sample { name: way.name.clone(), times: times.to_vec() };
    let first = ways.first().map(|way| sample(way, &way.medians)).ok_or("no way")?;
    for way in &ways {
        let (all, medians) = (sample(way, &way.all), sample(way, &way.medians));
        table.row([
            way.name.clone(),
            time(all.median()),
            time(all.quantile(0.99)),
            format!("{:.2}", medians.ratio(&first)),
        ]);
    }
    table.note(format!(
        "{ROUNDS} rounds of {CALLS} connections in turns, all over loopback; ratio to the first line, median of the rounds"
    ));
    Ok(table)
}
