//! What this kernel and its tools can do, found out by trying; and what is lost without it.
//!
//! Each trial is a transaction that the kernel checks and throws away (`nft -c`), so nothing is ever set.

use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use nix::sys::socket::SockProtocol;
use nix::sys::utsname::uname;
use serde::Serialize;

use super::iptables::{Family, Flavour, Tool};
use super::nftables::nft;
use super::{RedirectError, best_is_iptables};
use crate::base::netlink::Announcements;
use crate::base::{Class, Explain, Fault, exec};

/// What takes longer hangs.
const LIMIT: Duration = Duration::from_secs(5);

/// `NFNLGRP_NFTABLES`, as a bit.
const CHANGES: u32 = 1 << 6;

/// Something that the kernel or a tool can do, or not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Capability {
    /// What.
    pub name: &'static str,
    /// Whether it can.
    pub found: Found,
    /// A version, or why not.
    pub detail: String,
    /// What is lost without it.
    pub lost: &'static str,
    /// Whether nothing can be redirected without it.
    pub needed: bool,
}

/// How a trial went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Found {
    /// It works.
    Yes,
    /// It does not.
    No,
    /// It could not be tried.
    Unknown,
}

/// What was found out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Capabilities {
    /// The kernel's release.
    pub kernel: String,
    /// The driver that `driver = "auto"` takes; `None` where none works.
    pub driver: Option<&'static str>,
    /// Everything that was tried, what others need first.
    pub tried: Vec<Capability>,
}

/// A guarantee that this host cannot give.
#[derive(Debug, thiserror::Error)]
pub enum CapabilityError {
    /// Nothing can be redirected.
    #[error("this host lacks {name} ({detail}): {lost}")]
    Needed {
        /// What is missing.
        name: &'static str,
        /// How that shows.
        detail: String,
        /// What is lost.
        lost: &'static str,
    },
    /// Something else is lost (a warning).
    #[error("this host lacks {name} ({detail}): {lost}")]
    Lost {
        /// What is missing.
        name: &'static str,
        /// How that shows.
        detail: String,
        /// What is lost.
        lost: &'static str,
    },
}

impl Explain for CapabilityError {
    fn code(&self) -> &'static str {
        match self {
            CapabilityError::Needed { .. } => "ENM-R074",
            CapabilityError::Lost { .. } => "ENM-R075",
        }
    }

    fn hint(&self) -> String {
        match self {
            CapabilityError::Needed { .. } => {
                "install the package `nftables` (1.0 or newer) and a distribution's full kernel from 5.6 on, or the package \
                 `iptables` instead; `enmesh probe` shows what else is missing"
            }
            CapabilityError::Lost { .. } => {
                "do without, or install what is missing: a newer kernel, its full set of modules, or a newer `nft`"
            }
        }
        .to_owned()
    }

    fn class(&self) -> Class {
        match self {
            CapabilityError::Needed { .. } => Class::Unavailable,
            CapabilityError::Lost { .. } => Class::Failed,
        }
    }
}

/// Name, whether all rules need it, what is lost, and what is tried.
type Trial = (&'static str, bool, &'static str, &'static str);

/// `T` stands for a table that is never made.
const TRIALS: [Trial; 9] = [
    (
        "NAT for both families in one table",
        true,
        "nftables cannot redirect; iptables is used where it is there",
        "add chain inet T c { type nat hook output priority -99 ; }\nadd rule inet T c meta l4proto tcp redirect to :1\n",
    ),
    (
        "ports out of a map by user",
        true,
        "a sidecar for each user would take a rule for each; nftables is not used",
        "add chain inet T c { type nat hook output priority -99 ; }\nadd map inet T m { type uid : inet_service ; }\n\
         add rule inet T c meta l4proto tcp redirect to :meta skuid map @m\n",
    ),
    (
        "telling own addresses (fib)",
        true,
        "forwarded traffic of containers and the host's own addresses would be captured; nftables is not used",
        "add chain inet T c { type filter hook output priority 0 ; }\nadd rule inet T c fib daddr type local accept\n",
    ),
    (
        "refusing at once (reject)",
        true,
        "what belongs into the mesh could not be refused while a sidecar is not live; nftables is not used",
        "add chain inet T c { type filter hook output priority 0 ; }\n\
         add rule inet T c meta l4proto tcp reject with tcp reset\nadd rule inet T c reject with icmpx type admin-prohibited\n",
    ),
    (
        "sets of networks, and of users with networks",
        true,
        "bypasses would be a rule each; nftables is not used",
        "add set inet T n { type ipv6_addr ; flags interval ; }\nadd set inet T s { type uid . ipv4_addr ; flags interval ; }\n",
    ),
    (
        "elements with a time limit",
        false,
        "`apply --confirm` cannot take a change back by itself, and `explain --live` would leave something behind",
        "add set inet T s { type nf_proto ; flags timeout ; }\nadd element inet T s { ipv4 timeout 10s }\n",
    ),
    (
        "sets that packets fill",
        false,
        "with `dns = \"redirect\"` the kernel cannot know that the resolver lives, so the rules for names are refused",
        "add set inet T s { type nf_proto ; size 16 ; flags dynamic,timeout ; }\n\
         add chain inet T c { type filter hook output priority 0 ; }\nadd rule inet T c update @s { meta nfproto timeout 30s }\n",
    ),
    (
        "zones of connection tracking",
        false,
        "with `dns = \"redirect\"` an application and the resolver that use one source port would get each other's answers, \
         so the rules for names are refused",
        "add chain inet T c { type filter hook output priority -300 ; }\nadd rule inet T c udp dport 53 ct zone set 53\n\
         add rule inet T c udp dport 53 ct original zone set 54\n",
    ),
    (
        "tracing of packets",
        false,
        "`explain --live` cannot show what the kernel does; the plan's answer is there all the same",
        "add chain inet T c { type filter hook output priority -350 ; }\nadd rule inet T c meta nftrace set 1\n",
    ),
];

/// Tries everything in the network namespace of the calling thread. Needs the runtime of the caller for a moment.
pub fn capabilities() -> Capabilities {
    let mut tried = vec![version(), json(), reads_all()];
    let nft_runs = tried.first().is_some_and(|nft| nft.found == Found::Yes);
    tried.extend(TRIALS.iter().map(|trial| attempt(trial, nft_runs)));
    tried.push(announcements());
    tried.extend([Flavour::Nft, Flavour::Legacy].map(iptables));
    let kernel =
        uname().map_or_else(|_| "?".to_owned(), |name| name.release().to_string_lossy().into_owned());
    let lacks = tried.iter().any(|one| one.needed && one.found == Found::No);
    let driver = match (lacks, best_is_iptables() || !Tool::installed().is_empty()) {
        (false, _) => Some("nftables"),
        (true, true) => Some("iptables"),
        (true, false) => None,
    };
    Capabilities { kernel, driver, tried }
}

impl Capabilities {
    /// What is wrong with this host: `ENM-R074` where nothing can be redirected, `ENM-R002` where that cannot be tried.
    pub fn faults(&self) -> Vec<Fault> {
        let unknown = self.tried.iter().any(|one| one.needed && one.found == Found::Unknown);
        if self.driver.is_some() && unknown {
            return vec![RedirectError::NotPermitted.into()];
        }
        let fatal = self.driver.is_none();
        self.missing().filter(|one| fatal && one.needed).map(|one| needed(one).into()).collect()
    }

    /// Guarantees that it cannot give, though it redirects.
    pub fn warnings(&self) -> Vec<Fault> {
        let fatal = self.driver.is_none();
        self.missing().filter(|one| !(fatal && one.needed)).map(|one| lost(one).into()).collect()
    }

    /// What was tried and does not work. Of the two flavours of iptables nobody needs both, or either beside nftables.
    fn missing(&self) -> impl Iterator<Item = &Capability> {
        self.tried.iter().filter(|one| one.found == Found::No && !one.name.starts_with("iptables-"))
    }
}

fn needed(one: &Capability) -> CapabilityError {
    CapabilityError::Needed { name: one.name, detail: one.detail.clone(), lost: one.lost }
}

fn lost(one: &Capability) -> CapabilityError {
    CapabilityError::Lost { name: one.name, detail: one.detail.clone(), lost: one.lost }
}

fn version() -> Capability {
    let (found, detail) = match exec::find("nft").and_then(|nft| exec::run(&nft, &["--version"], b"", LIMIT))
    {
        Ok(output) if output.status.success() => {
            (Found::Yes, String::from_utf8_lossy(&output.stdout).trim().to_owned())
        }
        Ok(output) => (Found::No, output.stderr),
        Err(fault) => (Found::No, fault.message),
    };
    let lost = "iptables is used where it is there, with what it cannot promise (`docs/drivers.md`)";
    Capability { name: "the program nft", found, detail, lost, needed: true }
}

fn json() -> Capability {
    // Says so before it asks the kernel anything.
    let found = match nft(&["-j", "-c", "-f", "-"], br#"{"nftables": []}"#) {
        Err(error @ (RedirectError::NoJson | RedirectError::NoNft | RedirectError::NotRun { .. })) => {
            (Found::No, error.to_string())
        }
        _ => (Found::Yes, String::new()),
    };
    let lost = "rules are set and read as JSON; nftables is not used";
    Capability { name: "JSON of nft", found: found.0, detail: found.1, lost, needed: true }
}

/// An older `nft` crashes over what a newer one left in a table, whoever's that is.
fn reads_all() -> Capability {
    let listed = exec::find("nft").and_then(|nft| exec::run(&nft, &["list", "ruleset"], b"", LIMIT));
    let (found, detail) = match listed {
        Ok(output) if output.status.signal().is_some() => {
            (Found::No, "it crashes over a table that a newer nft wrote".to_owned())
        }
        Ok(output) if output.status.success() => (Found::Yes, String::new()),
        Ok(output) => (Found::Unknown, first_line(&output.stderr)),
        Err(fault) => (Found::Unknown, fault.message),
    };
    let lost =
        "rules can neither be read nor set while such a table is there: update nft, or remove the table";
    Capability { name: "an nft that reads everybody's tables", found, detail, lost, needed: true }
}

fn attempt((name, needed, lost, rules): &Trial, nft_runs: bool) -> Capability {
    let table = format!("enmesh_probe_{}", std::process::id());
    let document = format!("add table inet T\n{rules}").replace(" T", &format!(" {table}"));
    let (found, detail) = match nft(&["-c", "-f", "-"], document.as_bytes()) {
        _ if !nft_runs => (Found::No, "there is no nft".to_owned()),
        Ok(_) => (Found::Yes, String::new()),
        Err(
            error @ (RedirectError::NotPermitted | RedirectError::Busy { .. } | RedirectError::NotRun { .. }),
        ) => (Found::Unknown, error.to_string()),
        Err(RedirectError::KernelLacks { missing }) => (Found::No, first_line(&missing)),
        Err(error) => (Found::No, first_line(&error.to_string())),
    };
    Capability { name, found, detail, lost, needed: *needed }
}

fn announcements() -> Capability {
    let (found, detail) = match Announcements::join(SockProtocol::NetlinkNetFilter, CHANGES) {
        Ok(_) => (Found::Yes, String::new()),
        Err(error) => (Found::No, error.to_string()),
    };
    let lost = "changes of the rules by others are repaired only when something else happens";
    Capability { name: "hearing of changes", found, detail, lost, needed: false }
}

fn iptables(flavour: Flavour) -> Capability {
    let name = match flavour {
        Flavour::Nft => "iptables-nft",
        Flavour::Legacy => "iptables-legacy",
    };
    let (found, detail) = match Tool::of(flavour) {
        Some(tool) => (Found::Yes, tool.name(Family::V4, "restore")),
        None => (Found::No, "not installed".to_owned()),
    };
    let lost = "it is of use only where nftables does not work";
    Capability { name, found, detail, lost, needed: false }
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(driver: Option<&'static str>, states: [(bool, Found); 3]) -> Capabilities {
        let one = |(needed, found)| Capability { name: "x", found, detail: String::new(), lost: "y", needed };
        Capabilities { kernel: String::new(), driver, tried: states.map(one).to_vec() }
    }

    #[test]
    fn what_is_lost_is_an_error_only_where_nothing_works() {
        use Found::{No, Unknown, Yes};
        let codes = |host: &Capabilities| {
            let codes = |faults: Vec<Fault>| faults.into_iter().map(|fault| fault.code).collect::<Vec<_>>();
            (codes(host.faults()), codes(host.warnings()))
        };
        let fine = host(Some("nftables"), [(true, Yes), (false, Yes), (false, Yes)]);
        assert_eq!(codes(&fine), (vec![], vec![]));
        let lesser = host(Some("nftables"), [(true, Yes), (false, No), (false, Yes)]);
        assert_eq!(codes(&lesser), (vec![], vec!["ENM-R075"]));
        let other = host(Some("iptables"), [(true, No), (false, No), (false, Yes)]);
        assert_eq!(codes(&other), (vec![], vec!["ENM-R075", "ENM-R075"]));
        let none = host(None, [(true, No), (false, No), (false, Yes)]);
        assert_eq!(codes(&none), (vec!["ENM-R074"], vec!["ENM-R075"]));
        let unable = host(Some("nftables"), [(true, Unknown), (false, Unknown), (false, Yes)]);
        assert_eq!(codes(&unable), (vec!["ENM-R002"], vec![]));
    }
}
