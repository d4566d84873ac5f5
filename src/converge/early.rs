//! Before the network is up: the rules that were set last, with no sidecar live.
//!
//! There is no system bus yet, no Consul and perhaps no writable /var, so nothing is asked and nothing is
//! written. The daemon finds the very rules that it would set itself and keeps them.
//!
//! Where the state cannot be read the host is closed by its configuration alone: that has every user, port and
//! virtual IP, and lacks only what the mesh tells (instances that are dialled by their own address, virtual IPs
//! from outside the host's range). Where not even that yields rules, nobody reaches a virtual IP.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde_json::Value;

use super::engine::load;
use super::facts;
use super::state::{Guard, LIMIT, STATE_FILE, State};
use crate::base::{Class, Explain, Fault, Root, files};
use crate::config::value::ServiceId;
use crate::config::{Driver, HostConfig, Ipv6Policy, OnProxyFailure};
use crate::netns;
use crate::plan::{self, Bypasses, MeshView, OutboundCapture, Plan, RedirectPolicy, Who};
use crate::redirect::{self, Desired, Firewall, Iptables, Nftables};

/// How often the rules are tried, within what the unit's `TimeoutStartSec=` leaves.
const TRIES: u32 = 3;

/// What the rules at boot can run into.
#[derive(Debug, thiserror::Error)]
pub enum EarlyError {
    /// What was recorded is of no use.
    #[error(
        "the rules of the last generation cannot be read from {path}: {why}; the host is closed by its configuration"
    )]
    NoRecord {
        /// The state.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// And the configuration yields none.
    #[error("there is no configuration to close the host by, so only virtual IPs are")]
    NoConfiguration,
}

impl Explain for EarlyError {
    fn code(&self) -> &'static str {
        match self {
            EarlyError::NoRecord { .. } => "ENM-D054",
            EarlyError::NoConfiguration => "ENM-D055",
        }
    }

    fn hint(&self) -> String {
        match self {
            EarlyError::NoRecord { .. } => {
                "the daemon writes it anew when it converges; until then instances of the mesh that are dialled by \
                 their own address are reached in the clear"
            }
            EarlyError::NoConfiguration => "`enmesh check` says what is wrong with it",
        }
        .to_owned()
    }

    fn class(&self) -> Class {
        Class::Failed
    }
}

/// What was done at boot.
#[derive(Debug, Default)]
pub struct Early {
    /// The rules that are in force now; `None` where there is nothing to close.
    pub rules: Option<RedirectPolicy>,
    /// What went wrong on the way.
    pub faults: Vec<Fault>,
}

/// What of the state is needed here. The rest may be as it likes.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Record {
    generation: Value,
    guard: Option<Guard>,
    trial: Option<Trial>,
}

/// A change that a reboot has overtaken: nobody confirmed it.
#[derive(Deserialize)]
struct Trial {
    before: Before,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Before {
    generation: Value,
    guard: Option<Guard>,
}

/// Closes the host.
pub async fn early(root: &Root) -> Early {
    let mut done = Early::default();
    let (policy, driver) = match record(root) {
        Ok(Record { trial: Some(Trial { before: Before { generation, guard } }), .. })
        | Ok(Record { generation, guard, trial: None }) => match guard {
            Some(guard) => (Some(guard.policy), Some(guard.driver)),
            // An enmesh that did not record its rules was here last.
            None if !generation.is_null() => (Some(by_configuration(root, &mut done.faults)), None),
            None => (None, None),
        },
        Err(fault) => {
            done.faults.push(fault);
            (Some(by_configuration(root, &mut done.faults)), None)
        }
    };
    let Some(policy) = policy.filter(|policy| !policy.is_empty()) else { return done };
    let firewall = firewall(root, driver.as_deref());
    let desired = Desired { policy, live: BTreeSet::new() };
    match tried(|| firewall.apply(&desired)) {
        Ok(()) => done.rules = Some(desired.policy.clone()),
        Err(fault) => done.faults.push(fault),
    }
    // Also without rules: a virtual IP must not leave by a default route.
    if let Some(net) = desired.policy.virtual_route {
        done.faults.extend(netns::ensure_virtual_route(net).await.err());
    }
    done
}

/// Once more where it failed: nobody repairs rules before the daemon runs, and the network comes up in either case. What
/// was in the way at a boot (a processor that is busy, modules that are being loaded) is often over by then.
fn tried(mut apply: impl FnMut() -> Result<(), Fault>) -> Result<(), Fault> {
    (1..TRIES).find_map(|_| apply().ok()).map_or_else(apply, Ok)
}

fn record(root: &Root) -> Result<Record, Fault> {
    let path = root.join(STATE_FILE);
    let bad = |why: String| EarlyError::NoRecord { path: path.display().to_string(), why };
    match files::read(&path, LIMIT) {
        Ok(None) => Ok(Record::default()),
        Ok(Some(bytes)) => serde_json::from_slice(&bytes).map_err(|error| bad(error.to_string()).into()),
        Err(fault) => Err(bad(fault.message).into()),
    }
}

/// The rules that follow from the files alone, as far as they do.
fn by_configuration(root: &Root, faults: &mut Vec<Fault>) -> RedirectPolicy {
    let state = State::default();
    let config = load(root, &state);
    let plan = facts::offline(root, &config, &state, MeshView::default());
    let plan = plan.map(|facts| plan::plan(&config, &facts));
    match plan {
        Ok(Plan { redirect, .. }) if !redirect.is_empty() => redirect,
        Ok(Plan { errors, .. }) if config.errors.is_empty() && errors.is_empty() => {
            // Nothing is captured on this host, and that is how it is meant.
            plan_of_nobody(&config.host, false)
        }
        _ => {
            faults.push(EarlyError::NoConfiguration.into());
            plan_of_nobody(&config.host, true)
        }
    }
}

/// Rules for a host of which nothing is known: virtual IPs stand for services of the mesh and for nothing
/// else, so whoever dials one is refused.
fn plan_of_nobody(host: &HostConfig, closed: bool) -> RedirectPolicy {
    let capture = OutboundCapture {
        who: Who::Everyone,
        port: host.ports.outbound.first.get(),
        ipv6: Ipv6Policy::Redirect,
        on_failure: OnProxyFailure::Closed,
        bypass: Bypasses::default(),
    };
    let id = "enmesh".parse::<ServiceId>().ok().filter(|_| closed);
    RedirectPolicy {
        own_calls: false,
        generation: plan::Generation::default(),
        bypass_uids: BTreeSet::new(),
        proxy_uids: BTreeSet::new(),
        bypass_cidrs: BTreeSet::new(),
        virtual_nets: BTreeSet::from([host.virtual_ips.into()]),
        mesh_instances: BTreeSet::new(),
        outbound: id.into_iter().map(|id| (id, capture.clone())).collect(),
        inbound: BTreeMap::new(),
        dns: None,
        agent_ports: BTreeSet::new(),
        virtual_route: Some(host.virtual_ips),
        host_end: None,
    }
}

/// The driver that set them last, so that the daemon finds them; else the one that is configured.
fn firewall(root: &Root, last: Option<&str>) -> Box<dyn Firewall> {
    match last {
        Some("nftables") => Box::new(Nftables::new()),
        Some("iptables") => Box::new(Iptables::new()),
        _ => match load(root, &State::default()).host.driver {
            Driver::Nftables => Box::new(Nftables::new()),
            Driver::Iptables => Box::new(Iptables::new()),
            Driver::Auto => redirect::best(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_at_boot_is_tried_again_and_told_in_the_end() {
        let mut calls = 0;
        let late = tried(|| {
            calls += 1;
            if calls < TRIES { Err(EarlyError::NoConfiguration.into()) } else { Ok(()) }
        });
        assert!(late.is_ok());
        assert_eq!(calls, TRIES);
        calls = 0;
        let never = tried(|| {
            calls += 1;
            Err(EarlyError::NoConfiguration.into())
        });
        assert_eq!((never.unwrap_err().code, calls), ("ENM-D055", TRIES));
    }

    fn tree(state: Option<&str>, service: Option<&str>) -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path());
        let put = |path: &str, text: &str| {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        put("/etc/passwd", "root:x:0:0::/:/\nenvoy:x:5995:5995::/:/\napi:x:1000:1000::/:/\n");
        state.into_iter().for_each(|text| put(STATE_FILE, text));
        service.into_iter().for_each(|text| put("/etc/enmesh/services/api.toml", text));
        (dir, root)
    }

    #[test]
    fn what_is_recorded_is_what_was_confirmed() {
        let (_dir, root) = tree(None, None);
        assert!(record(&root).unwrap().guard.is_none(), "a host on which enmesh never converged");
        let mut state = State::default();
        let rules = |port: u16| Guard {
            driver: "nftables".to_owned(),
            policy: RedirectPolicy {
                agent_ports: BTreeSet::new(),
                virtual_route: None,
                ..plan_of_nobody(&HostConfig::default(), port > 0)
            },
            live: BTreeSet::new(),
        };
        state.generation = Some(plan::Generation { number: 3, hash: "abc".to_owned() });
        state.guard = Some(rules(1));
        state.save(&root).unwrap();
        assert_eq!(record(&root).unwrap().guard, Some(rules(1)));
        let before = super::super::state::Before { guard: Some(rules(0)), ..Default::default() };
        let until = crate::base::Deadline::after(std::time::Duration::from_secs(60));
        state.trial = Some(super::super::state::Pending { until, before });
        state.save(&root).unwrap();
        assert_eq!(record(&root).unwrap().trial.unwrap().before.guard, Some(rules(0)));
    }

    #[test]
    fn without_a_record_the_configuration_closes_the_host() {
        let service = "name = \"api\"\nport = 8080\n[capture]\nscope = \"user:api\"\n";
        let (_dir, root) = tree(Some("{ torn"), Some(service));
        assert_eq!(record(&root).err().unwrap().code, "ENM-D054");
        let mut faults = Vec::new();
        let policy = by_configuration(&root, &mut faults);
        assert!(faults.is_empty());
        assert_eq!((policy.outbound.len(), policy.inbound.len(), policy.virtual_nets.len()), (1, 1, 1));
        // Not even a configuration.
        let (_dir, root) = tree(Some("{ torn"), Some("name = 3"));
        let policy = by_configuration(&root, &mut faults);
        assert_eq!(faults[0].code, "ENM-D055");
        assert!(!policy.is_empty() && policy.inbound.is_empty());
        // Nothing is configured, so nothing is closed.
        let (_dir, root) = tree(Some("{ torn"), None);
        assert!(by_configuration(&root, &mut faults).is_empty());
        assert_eq!(faults.len(), 1);
    }
}
