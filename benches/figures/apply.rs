//! Setting up the redirection of one service: from nothing, and over what is there. The two differ:
//! a commit that only adds is quick, one that deletes anything waits for the kernel.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;

use enmesh::base::Fault;
use enmesh::config::value::ServiceId;
use enmesh::config::{Ipv6Policy, OnProxyFailure};
use enmesh::plan::{
    Bypasses, Generation, InboundCapture, InboundPorts, OutboundCapture, RedirectPolicy, Who,
};
use enmesh::redirect::{self, Desired, Firewall, Nftables};
use ipnet::IpNet;

use crate::Answer;
use crate::stats::{self, Way};
use crate::table::Table;
use crate::{program, today};

const ROUNDS: usize = 31;

/// What the rendered rules begin with, so that they replace a table that is there; it costs some ten
/// milliseconds of its own and is of no use on a host that has none.
const REPLACED: &str = "delete table inet enmesh\n";

const REMOVE: &str = "table inet by_hand\ndelete table inet by_hand\n";

/// The same policy in nft's own language, sets and maps and all, as somebody who knows nftables well
/// would write it by hand: the least that any way through `nft` costs.
fn table_by_hand() -> String {
    let example = &today::EXAMPLE;
    let list = |words: &[String]| words.join(", ");
    let numbers = |ports: &[u16]| list(&ports.iter().map(u16::to_string).collect::<Vec<_>>());
    let uids: Vec<String> =
        std::iter::once(&example.proxy_uid).chain(&example.other_uids).map(u32::to_string).collect();
    format!(
        "table inet by_hand {{
  set uids {{ typeof meta skuid; elements = {{ {uids} }}; }}
  set skip4 {{ type ipv4_addr; flags interval; elements = {{ {networks} }}; }}
  set out_skip {{ type inet_service; elements = {{ {out_skip} }}; }}
  set in_skip {{ type inet_service; elements = {{ {in_skip} }}; }}
  map in_port {{ type inet_service : inet_service; elements = {{ {service} : {inbound} }}; }}
  chain out {{ type nat hook output priority -99; policy accept;
    meta skuid @uids return
    meta l4proto != tcp return
    tcp flags & (fin|syn|rst|ack) != syn return
    ip daddr 127.0.0.0/8 return
    ip6 daddr ::1 return
    fib daddr type local return
    ip daddr @skip4 return
    tcp dport @out_skip return
    meta l4proto tcp redirect to :{outbound}
  }}
  chain in {{ type nat hook prerouting priority -99; policy accept;
    iif lo return
    meta l4proto != tcp return
    tcp flags & (fin|syn|rst|ack) != syn return
    fib daddr type != local return
    tcp dport @in_skip return
    meta l4proto tcp redirect to :tcp dport map @in_port
  }}
}}
",
        uids = list(&uids),
        networks = example.networks.join(", "),
        out_skip = numbers(&example.outbound_skip),
        in_skip = numbers(&example.inbound_skip),
        service = example.service,
        inbound = example.inbound,
        outbound = example.outbound,
    )
}

/// The same policy as enmesh's own driver gets it, with one bypassed port that every generation has for
/// itself.
pub fn desired(number: u16) -> Result<Desired, Box<dyn Error>> {
    let example = &today::EXAMPLE;
    let id: ServiceId = "api".parse().map_err(|_| "an id")?;
    let proxy_uids = BTreeSet::from([example.proxy_uid]);
    let ports =
        |ports: &[u16]| ports.iter().map(|port| port.to_string().parse()).collect::<Result<Vec<_>, _>>();
    let skip: Vec<u16> = example.outbound_skip.iter().copied().chain([20000 + number]).collect();
    let networks: Result<Vec<IpNet>, _> = example.networks.iter().map(|net| net.parse()).collect();
    let outbound = OutboundCapture {
        who: Who::Everyone,
        port: example.outbound,
        ipv6: Ipv6Policy::Redirect,
        on_failure: OnProxyFailure::Closed,
        bypass: Bypasses { ports: ports(&skip).map_err(|_| "ports")?, cidrs: networks? },
    };
    let inbound = InboundCapture {
        ports: InboundPorts::One(example.service),
        to: example.inbound,
        ipv6: Ipv6Policy::Redirect,
        on_failure: OnProxyFailure::Closed,
        bypass_ports: ports(&example.inbound_skip).map_err(|_| "ports")?,
        bypass_interfaces: BTreeSet::new(),
    };
    let policy = RedirectPolicy {
        own_calls: false,
        generation: Generation { number: number.into(), hash: "000000000000".to_owned() },
        bypass_uids: proxy_uids.iter().chain(&example.other_uids).copied().collect(),
        proxy_uids,
        bypass_cidrs: BTreeSet::from(["127.0.0.0/8".parse()?, "::1/128".parse()?]),
        virtual_nets: BTreeSet::from(["240.0.0.0/4".parse()?]),
        mesh_instances: BTreeSet::new(),
        outbound: BTreeMap::from([(id.clone(), outbound)]),
        inbound: BTreeMap::from([(id.clone(), inbound)]),
        dns: None,
        agent_ports: BTreeSet::new(),
        virtual_route: None,
        host_end: None,
    };
    Ok(Desired { policy, live: BTreeSet::from([id]) })
}

fn ok(result: Result<(), Fault>) -> Result<(), Box<dyn Error>> {
    result.map_err(|fault| fault.to_string().into())
}

/// Times from an empty namespace to rules in force.
pub fn from_nothing() -> Answer {
    let calls = today::iptables_calls();
    let by_hand = table_by_hand();
    let (driver, desired) = (Nftables::new(), desired(1)?);
    let same = redirect::render_text(&desired.policy, &desired.live).replacen(REPLACED, "", 1);
    let nothing = || ok(driver.remove()).and_then(|()| program::run("nft", &["flush", "ruleset"], ""));
    let mut ways = [
        Way {
            name: "enmesh: set, read back, compared".to_owned(),
            before: Box::new(nothing),
            deed: Box::new(|| ok(driver.apply(&desired))),
        },
        Way {
            name: "nft -f, the same table".to_owned(),
            before: Box::new(nothing),
            deed: Box::new(|| program::run("nft", &["-f", "-"], &same)),
        },
        Way {
            name: "nft -f, table written by hand".to_owned(),
            before: Box::new(nothing),
            deed: Box::new(|| program::run("nft", &["-f", "-"], &by_hand)),
        },
        Way {
            name: format!("{} iptables calls", calls.len()),
            before: Box::new(nothing),
            deed: Box::new(|| today::with_iptables(&calls)),
        },
        Way {
            name: "one iptables-restore".to_owned(),
            before: Box::new(nothing),
            deed: Box::new(|| today::with_iptables_restore(&calls)),
        },
    ];
    let samples = stats::in_turns(ROUNDS, &mut ways)?;
    // Whichever way came last.
    program::run("nft", &["flush", "ruleset"], "")?;
    today::with_iptables(&calls)?;
    in_force(&calls)?;
    let mut table = Table::of_samples("Redirection of one service, from nothing", &samples);
    table.note(versions()?);
    Ok(table)
}

/// Times to put rules in force over those of before, as after a change of the configuration.
pub fn again() -> Answer {
    let mut calls = today::iptables_calls();
    let by_hand = format!("{REMOVE}{}", table_by_hand());
    today::clear_iptables()?;
    today::with_iptables_restore(&calls)?;
    let set_up = calls.clone();
    let mut over = today::iptables_undo_calls();
    over.append(&mut calls);
    // Another generation each time, as a change of the configuration makes one.
    let (driver, last) = (Nftables::new(), Cell::new(1));
    let next = || {
        last.set(last.get() + 1);
        desired(last.get())
    };
    let same = redirect::render_text(&next()?.policy, &next()?.live);
    let mut ways = [
        Way {
            name: "enmesh: changed, read back, compared".to_owned(),
            before: Box::new(|| ok(driver.apply(&next()?))),
            deed: Box::new(|| ok(driver.apply(&next()?))),
        },
        Way {
            name: "nft -f, the same table".to_owned(),
            before: Box::new(|| Ok(())),
            deed: Box::new(|| program::run("nft", &["-f", "-"], &same)),
        },
        Way {
            name: "nft -f, table written by hand".to_owned(),
            before: Box::new(|| Ok(())),
            deed: Box::new(|| program::run("nft", &["-f", "-"], &by_hand)),
        },
        Way {
            name: format!("{} iptables calls", over.len()),
            before: Box::new(|| Ok(())),
            deed: Box::new(|| today::with_iptables(&over)),
        },
        Way {
            name: "one iptables-restore".to_owned(),
            before: Box::new(|| Ok(())),
            deed: Box::new(|| today::with_iptables_restore(&set_up)),
        },
    ];
    let samples = stats::in_turns(ROUNDS, &mut ways)?;
    in_force(&set_up)?;
    let mut table = Table::of_samples("Redirection of one service, over the rules of before", &samples);
    table.note("the calls leave the host without redirection in between; the others are one transaction");
    Ok(table)
}

/// A time is worth nothing if the rules are not there.
fn in_force(calls: &[String]) -> Result<(), Box<dyn Error>> {
    let expected = calls.iter().filter(|call| !call.starts_with("-N")).count();
    let found = today::rules_in_force()?;
    if found == expected {
        Ok(())
    } else {
        Err(format!("{found} iptables rules instead of {expected}").into())
    }
}

fn versions() -> Result<String, Box<dyn Error>> {
    let answers = [program::answer("nft", &["--version"])?, program::answer("iptables", &["--version"])?];
    Ok(answers.join("; "))
}
