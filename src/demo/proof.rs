//! The claims, and how each is tried. A claim that cannot be tried does not hold.

use std::time::{Duration, Instant};

use super::app::{Hammered, Outcome, Seen};
use super::error::DemoError;
use super::patience::until;
use super::process::signal;
use super::report::Line;
use super::scene::{Scene, end_of_log};
use super::setting::{self, PEERS, PUBLIC_PORT};
use super::stage::Host;
use super::wire::{Tally, unexpected_ports};
use crate::base::{Fault, files};
use nix::sys::signal::Signal;

/// What the application dials.
pub(super) const URL: &str = "http://api.virtual.consul/";
/// The end of the identity that the service's sidecar must have seen.
const CALLER: &str = "/ns/default/dc/dc1/svc/web";

/// How long Envoy may keep a line of its log to itself, and some.
const LOG_LIMIT: Duration = Duration::from_secs(5);
/// The longest log that is read, in bytes.
const LOG_SIZE: u64 = 16 * 1024 * 1024;
/// How long a changed intention may take to be in force.
const INTENTION_LIMIT: Duration = Duration::from_secs(5);
/// How long a killed sidecar may take to be back.
const BACK_LIMIT: Duration = Duration::from_secs(10);
/// Connections a second while a sidecar is killed, and for how long.
const RATE: u32 = 200;
const HAMMER: Duration = Duration::from_secs(2);
/// When in that time the sidecar is killed.
const KILL_AFTER: Duration = Duration::from_millis(300);

/// A claim and the way it is tried.
pub(super) struct Proof {
    /// Its stable name.
    pub name: &'static str,
    /// What is claimed.
    pub claim: &'static str,
    /// Tries it.
    pub attempt: fn(&mut Scene) -> Result<Verdict, Fault>,
}

/// What came of trying.
pub(super) struct Verdict {
    ok: bool,
    detail: String,
    command: String,
}

/// The claims, in the order in which they are tried.
pub(super) const PROOFS: [Proof; 7] = [
    Proof {
        name: "bare",
        claim: "Without enmesh the same request is readable on the wire (so the meter can see)",
        attempt: bare,
    },
    Proof {
        name: "plain-http",
        claim: "web dials http://api.virtual.consul with plain HTTP and is answered, as svc/web",
        attempt: plain_http,
    },
    Proof {
        name: "wire",
        claim: "Between the hosts there is TLS and nothing else, dialled by name or by address",
        attempt: wire,
    },
    Proof {
        name: "intention",
        claim: "An intention denies and allows again, without a restart of anything",
        attempt: intention,
    },
    Proof {
        name: "client-sidecar-killed",
        claim: "web's Envoy is killed under load: nothing in the clear, back by itself",
        attempt: |scene| killed(scene, |scene| &scene.stage.web),
    },
    Proof {
        name: "server-sidecar-killed",
        claim: "api's Envoy is killed under load: nothing in the clear, back by itself",
        attempt: |scene| killed(scene, |scene| &scene.stage.api),
    },
    Proof { name: "down", claim: "`enmesh down` leaves both hosts exactly as they were", attempt: down },
];

/// Proofs that end with the hosts out of the mesh.
pub(super) const LAST: &str = "down";

impl Proof {
    /// Tries the claim. What keeps it from being tried is what the line says then.
    ///
    /// # Errors
    /// `ENM-T006` interrupted.
    pub(super) fn line(&self, scene: &mut Scene) -> Result<Line, Fault> {
        let verdict = match (self.attempt)(scene) {
            Ok(verdict) => verdict,
            Err(fault) if fault.code == DemoError::INTERRUPTED => return Err(fault),
            Err(fault) => Verdict { ok: false, detail: fault.to_string(), command: String::new() },
        };
        let Verdict { ok, detail, command } = verdict;
        Ok(Line { name: self.name, ok, claim: self.claim.to_owned(), detail, command })
    }
}

impl Verdict {
    /// What is to be tried needs an answer to begin with, and there is none.
    fn unanswered(outcome: &Outcome) -> Verdict {
        let detail = format!("not answered to begin with: {}", outcome.describe());
        Verdict { ok: false, detail, command: String::new() }
    }
}

/// Says what is not as it should be, for each condition that does not hold.
fn all(conditions: &[(bool, &str)]) -> (bool, String) {
    let broken: Vec<&str> = conditions.iter().filter(|(holds, _)| !holds).map(|(_, what)| *what).collect();
    let words = if broken.is_empty() { String::new() } else { format!(" — but {}", broken.join("; ")) };
    (broken.is_empty(), words)
}

/// Nothing of what passed was outside mutual TLS between sidecars.
fn nothing_clear(tally: &Tally) -> [(bool, &'static str); 5] {
    [
        (tally.clear_bytes == 0 && tally.clear_connections == 0, "bytes passed in the clear"),
        (tally.secrets_seen == 0, "the secret was readable"),
        (unexpected_ports(tally, &[PUBLIC_PORT]).is_empty(), "something else than a sidecar was dialled"),
        (tally.other_packets == 0, "there was something else than TCP"),
        (tally.unseen_bytes == 0, "the meter missed bytes"),
    ]
}

pub(super) fn in_web(scene: &Scene, command: &str) -> String {
    let Host { namespace_name, app_user, .. } = &scene.stage.web;
    format!(
        "ip netns exec {namespace_name} setpriv --reuid={app_user} --regid={app_user} --clear-groups {command}"
    )
}

fn bare(scene: &mut Scene) -> Result<Verdict, Fault> {
    let tally = &scene.bare;
    let (ok, but) = all(&[
        (tally.clear_bytes > 0, "the meter saw nothing"),
        (tally.secrets_seen == 2, "the secret did not pass twice"),
        (tally.unseen_bytes == 0, "the meter missed bytes"),
    ]);
    let detail = format!(
        "{} bytes in the clear, {} in TLS; the secret header was readable {} times{but}",
        tally.clear_bytes, tally.tls_bytes, tally.secrets_seen
    );
    let name = &scene.stage.web.namespace_name;
    Ok(Verdict { ok, detail, command: format!("ip netns exec {name} tcpdump -lnAi eth0 tcp") })
}

fn plain_http(scene: &mut Scene) -> Result<Verdict, Fault> {
    let outcome = scene.get(URL)?;
    let seen: Option<Seen> = match &outcome {
        Outcome::Answered { status: 200, body, .. } => serde_json::from_str(body).ok(),
        _ => None,
    };
    let answered = seen.is_some_and(|seen| seen.service == "api");
    if !answered {
        return Ok(Verdict::unanswered(&outcome));
    }
    let log = scene.stage.api.log();
    let identity = until("a line with the caller in the log of api's Envoy", LOG_LIMIT, || {
        let text = files::read(&log, LOG_SIZE).ok().flatten().unwrap_or_default();
        caller_in(&String::from_utf8_lossy(&text)).ok_or_else(|| end_of_log(&scene.stage.api))
    })?;
    let virtual_ip = matches!(&outcome, Outcome::Answered { address, .. } if is_virtual(address.ip()));
    let (ok, but) = all(&[(virtual_ip, "the name did not stand for a virtual IP")]);
    let detail = format!("{}; api's Envoy saw {identity}{but}", outcome.describe());
    Ok(Verdict { ok, detail, command: in_web(scene, &format!("curl -s {URL}")) })
}

fn is_virtual(address: std::net::IpAddr) -> bool {
    matches!(address, std::net::IpAddr::V4(v4) if v4.octets()[0] >= 240)
}

/// The caller's identity in a line of Envoy's log of inbound connections.
fn caller_in(log: &str) -> Option<String> {
    log.lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line.get(line.find('{')?..)?).ok())
        .find_map(|line| {
            let caller = line.get("caller")?.as_str()?;
            (caller.starts_with("spiffe://") && caller.ends_with(CALLER)).then(|| caller.to_owned())
        })
}

fn wire(scene: &mut Scene) -> Result<Verdict, Fault> {
    let load = Scene::hammered(scene.hammer(URL, RATE, Duration::from_millis(250))?)?;
    let tally = scene.tap.tally().since(&scene.with_bare);
    let mut conditions = nothing_clear(&tally).to_vec();
    conditions.push((tally.encrypted_bytes > 0, "no application data passed"));
    conditions.push((load.answered == load.tried, "not every request was answered"));
    let (ok, but) = all(&conditions);
    let detail = format!(
        "{} connections, {} bytes TLS ({} of them application data), {} in the clear; \
         the secret header was readable {} times{but}",
        tally.connections, tally.tls_bytes, tally.encrypted_bytes, tally.clear_bytes, tally.secrets_seen
    );
    let name = &scene.stage.web.namespace_name;
    Ok(Verdict { ok, detail, command: format!("ip netns exec {name} tcpdump -lnAi eth0 tcp") })
}

fn intention(scene: &mut Scene) -> Result<Verdict, Fault> {
    let outcome = scene.get(URL)?;
    if !outcome.is_success() {
        return Ok(Verdict::unanswered(&outcome));
    }
    let hosts = |scene: &Scene| [&scene.stage.web, &scene.stage.api].map(Scene::sidecar);
    let before = hosts(scene);
    let turn = |callers: &[&str], wanted: bool| -> Result<(Duration, Outcome), Fault> {
        scene.stage.api.write(PEERS, &setting::peers(&scene.stage, callers))?;
        let started = Instant::now();
        until("the changed intention", INTENTION_LIMIT, || {
            let outcome = scene.get(URL).map_err(|fault| fault.to_string())?;
            if outcome.is_success() == wanted {
                Ok((started.elapsed(), outcome))
            } else {
                Err(outcome.describe())
            }
        })
    };
    let (denied_after, denied) = turn(&[], false)?;
    let (allowed_after, allowed) = turn(&["web"], true)?;
    let same = before == hosts(scene) && before.iter().all(Option::is_some);
    let (ok, but) = all(&[(same, "an Envoy is not the same process as before")]);
    let detail = format!(
        "denied after {} ms ({}), allowed after {} ms ({}); Envoys {} as before{but}",
        denied_after.as_millis(),
        denied.describe(),
        allowed_after.as_millis(),
        allowed.describe(),
        before.map(|pid| pid.map_or("?".to_owned(), |pid| pid.to_string())).join(" and "),
    );
    let path = scene.stage.api.root().join(PEERS);
    Ok(Verdict { ok, detail, command: format!("sed -i 's/allow = .*/allow = []/' {}", path.display()) })
}

fn killed(scene: &mut Scene, whose: fn(&Scene) -> &Host) -> Result<Verdict, Fault> {
    let outcome = scene.get(URL)?;
    if !outcome.is_success() {
        return Ok(Verdict::unanswered(&outcome));
    }
    let earlier = scene.tap.tally();
    let live = |scene: &Scene| {
        let name = whose(scene).name;
        until(&format!("{name}'s live sidecar"), BACK_LIMIT, || {
            Scene::sidecar(whose(scene)).ok_or_else(|| end_of_log(whose(scene)))
        })
    };
    let victim = live(scene)?;
    let load = scene.hammer(URL, RATE, HAMMER)?;
    std::thread::sleep(KILL_AFTER);
    signal(victim, Signal::SIGKILL);
    let load = Scene::hammered(load)?;
    until("an answer after the sidecar was killed", BACK_LIMIT, || match scene.get(URL) {
        Ok(outcome) if outcome.is_success() => Ok(()),
        Ok(outcome) => Err(outcome.describe()),
        Err(fault) => Err(fault.to_string()),
    })?;
    let successor = live(scene)?;
    let tally = scene.tap.tally().since(&earlier);
    let Hammered { tried, answered, refused, failed, outage, .. } = load;
    let mut conditions = nothing_clear(&tally).to_vec();
    conditions.push((successor != victim, "it is the same process"));
    conditions.push((answered > 0 && refused + failed > 0, "the kill was not felt, so nothing was tried"));
    let (ok, but) = all(&conditions);
    let outage = outage.map_or("still on at its end".to_owned(), |ms| format!("{ms} ms"));
    let detail = format!(
        "{tried} connections tried: {answered} answered, {refused} refused, {failed} cut off, \
         {} in the clear ({} bytes); outage {outage}{but}",
        tally.clear_connections, tally.clear_bytes
    );
    Ok(Verdict { ok, detail, command: format!("kill -9 {successor}") })
}

fn down(scene: &mut Scene) -> Result<Verdict, Fault> {
    scene.down()?;
    let after = scene.snapshots()?;
    let mut differences = Vec::new();
    let hosts = [scene.stage.web.name, scene.stage.api.name];
    for ((name, before), after) in hosts.iter().zip(&scene.before).zip(&after) {
        differences.extend(before.difference(after).into_iter().map(|line| format!("{name}: {line}")));
    }
    let count = |section| after.iter().map(|snapshot| snapshot.count(section)).sum::<usize>();
    let detail = if differences.is_empty() {
        format!(
            "{} rule lines, {} routes, {} addresses and {} sysctls the same; no process and no file of enmesh is left",
            count("rules"),
            count("routes") + count("routing rules"),
            count("addresses"),
            count("sysctls")
        )
    } else {
        format!("{} differences:\n    {}", differences.len(), differences.join("\n    "))
    };
    let root = scene.stage.web.root();
    let name = &scene.stage.web.namespace_name;
    let command = format!("ip netns exec {name} enmesh down --root {}", root.path().display());
    Ok(Verdict { ok: differences.is_empty(), detail, command })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_caller_is_read_from_a_line_among_others() {
        let id = "spiffe://x.consul/ns/default/dc/dc1/svc/web";
        let log = format!("warning main: hello\n{{\"caller\":null}}\nprefix {{\"caller\":\"{id}\"}}\n");
        assert_eq!(caller_in(&log).as_deref(), Some(id));
        assert_eq!(caller_in(&log.replace("svc/web", "svc/other")), None);
    }

    #[test]
    fn each_thing_that_is_not_as_it_should_be_is_named() {
        let tls =
            Tally { connections: 1, by_port: [(PUBLIC_PORT, 1)].into(), tls_bytes: 9, ..Tally::default() };
        assert_eq!(all(&nothing_clear(&tls)), (true, String::new()));
        let broken = [
            Tally { clear_bytes: 1, clear_connections: 1, ..tls.clone() },
            Tally { secrets_seen: 1, ..tls.clone() },
            Tally { by_port: [(8080, 1)].into(), ..tls.clone() },
            Tally { other_packets: 1, ..tls.clone() },
            Tally { unseen_bytes: 1, ..tls },
        ];
        for tally in broken {
            let (ok, but) = all(&nothing_clear(&tally));
            assert!(!ok && but.matches(';').count() == 0, "one thing: {but}");
        }
    }
}
