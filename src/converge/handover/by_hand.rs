//! Rules by flags, in whichever network namespace: set, shown, and taken back.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::Value;

use super::super::adapters;
use super::super::error::ConvergeError;
use super::super::facts;
use super::super::state::State;
use super::{HandoverError, beside_theirs, remove_theirs};
use crate::base::{Fault, Root};
use crate::config::{self, Config, Driver};
use crate::consul::xds::merged_proxy;
use crate::consul::{Client, Settings};
use crate::netns::{self, Namespace};
use crate::plan::{self, MeshView, RedirectPolicy, RegisteredPorts};
use crate::redirect::takeover::{self, Leftover};
use crate::redirect::{self, Desired, Firewall, Flags, HandError, Names, Request};

/// What stands before the number of a process whose namespace is meant.
const OF_PROCESS: &str = "pid:";

/// How often it is looked whether the last connection has ended.
const LOOK: Duration = Duration::from_millis(100);

/// A job of `enmesh redirect-traffic`.
#[derive(Debug, Clone)]
pub struct Hand {
    /// The flags of Consul's command.
    pub flags: Flags,
    /// Who programs the rules.
    pub driver: Driver,
    /// A name below `/run/netns`, a path, or `pid:` and a process's number; the caller's own namespace for `None`.
    pub netns: Option<String>,
}

/// What was done, or would be.
#[derive(Debug, Clone, Serialize)]
pub struct Done {
    /// The driver.
    pub driver: String,
    /// The namespace, as it was given.
    pub netns: Option<String>,
    /// The policy in force now; `None` when it was taken back.
    pub policy: Option<RedirectPolicy>,
    /// Rules of others that were removed.
    pub replaced: Vec<Leftover>,
    /// The rules, where they are only shown.
    pub rules: Option<String>,
    /// Connections that were still redirected when the rules went.
    pub cut: usize,
}

impl Hand {
    /// Sets the rules and the route of virtual IPs. With `take_over` the rules of other redirectors go, once ours
    /// are in force; without it they are a reason not to begin.
    ///
    /// # Errors
    /// Flags, Consul or the kernel; `ENM-D012` there is another redirector, `ENM-D040` this host has a plan.
    pub async fn set(
        &self,
        root: &Root,
        env: &dyn Fn(&str) -> Option<String>,
        take_over: bool,
    ) -> Result<Done, Fault> {
        let request = self.request(root, env).await?;
        let (driver, netns) = (self.driver, self.netns.clone());
        self.within(move || set(request, driver, netns, take_over))
    }

    /// The rules that [`Hand::set`] would set. Touches nothing.
    ///
    /// # Errors
    /// Flags, or Consul.
    pub async fn show(&self, root: &Root, env: &dyn Fn(&str) -> Option<String>) -> Result<Done, Fault> {
        let desired = wanted(&self.request(root, env).await?)?;
        let rules = match self.driver {
            Driver::Iptables => {
                let [v4, v6] = redirect::render_iptables(&desired.policy, &desired.live);
                format!("# iptables-restore --noflush\n{v4}# ip6tables-restore --noflush\n{v6}")
            }
            Driver::Auto | Driver::Nftables => redirect::render_text(&desired.policy, &desired.live),
        };
        Ok(Done {
            driver: if self.driver == Driver::Iptables { "iptables" } else { "nftables" }.to_owned(),
            netns: self.netns.clone(),
            policy: Some(desired.policy),
            replaced: Vec::new(),
            rules: Some(rules),
            cut: 0,
        })
    }

    /// Takes rules and route back: new connections go direct at once, those that are redirected have `drain` to end.
    ///
    /// # Errors
    /// The kernel; `ENM-D040` the rules are those of a plan.
    pub fn take_back(&self, drain: Duration) -> Result<Done, Fault> {
        let (driver, netns) = (self.driver, self.netns.clone());
        self.within(move || take_back(driver, netns, drain))
    }

    async fn request(&self, root: &Root, env: &dyn Fn(&str) -> Option<String>) -> Result<Request, Fault> {
        let host = facts::offline(root, &Config::default(), &State::default(), MeshView::default())?;
        let names = Names {
            users: host.users.into_iter().map(|(name, user)| (name, user.uid)).collect(),
            ports: host.port_names,
            answers: &answers,
        };
        let mut request = self.flags.parse(&names)?;
        if let Some((id, node)) = &request.proxy {
            let ports = registered(id, node.as_deref(), env).await?;
            request.take(&ports);
        }
        Ok(request)
    }

    fn within<W>(&self, work: impl FnOnce() -> W + Send) -> Result<Done, Fault>
    where
        W: Future<Output = Result<Done, Fault>>,
    {
        let namespace = match &self.netns {
            // A path is what Consul's flag takes.
            Some(path) if path.contains('/') => Namespace::open(Path::new(path))?,
            // No name has a colon in it.
            Some(process) if process.starts_with(OF_PROCESS) => {
                let pid = process.trim_start_matches(OF_PROCESS);
                Namespace::open(&Path::new("/proc").join(number(pid)).join("ns/net"))?
            }
            Some(name) => Namespace::by_name(name)?,
            None => Namespace::own()?,
        };
        namespace.run_async(work)?
    }
}

/// `pid` if it is a number, and what no process has otherwise.
fn number(pid: &str) -> &str {
    if pid.bytes().all(|byte| byte.is_ascii_digit()) && !pid.is_empty() { pid } else { "0" }
}

/// The ports that the proxy's registration says.
async fn registered(
    id: &str,
    node: Option<&str>,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<RegisteredPorts, Fault> {
    let (consul, errors) = config::consul_from_environment(env);
    if let Some(fault) = errors.into_iter().next() {
        return Err(fault);
    }
    let client = Client::new(Settings::new(&consul, &Root::default(), env)?)?;
    let server = client.settings().endpoint.to_string();
    let missing = || HandError::NotRegistered { server, id: id.to_owned() };
    let registration = merged_proxy(&client, id, node).await?.ok_or_else(missing)?;
    let lacks = |without| HandError::NoProxy { id: id.to_owned(), without };
    if registration.get("Kind").and_then(Value::as_str).is_none_or(str::is_empty) {
        return Err(lacks("as a service, not as a proxy").into());
    }
    let ports = RegisteredPorts::of(&registration);
    if ports.inbound.is_none() {
        return Err(lacks("without a port").into());
    }
    Ok(ports)
}

fn wanted(request: &Request) -> Result<Desired, Fault> {
    let desired = request.desired();
    desired.ok_or_else(|| HandError::Missing { what: "-proxy-id or -proxy-inbound-port" }.into())
}

async fn set(
    request: Request,
    driver: Driver,
    netns: Option<String>,
    take_over: bool,
) -> Result<Done, Fault> {
    refuse_planned()?;
    let theirs = match take_over {
        true => takeover::leftovers()?,
        false => refuse_others().map(|()| Vec::new())?,
    };
    let firewall = adapters::firewall(driver);
    let desired = wanted(&request)?;
    let mut new_route = None;
    if let Some(net) = desired.policy.virtual_route
        && netns::ensure_virtual_route(net).await?
    {
        new_route = Some(net);
    }
    let mut first = desired.clone();
    if !theirs.is_empty() {
        first.policy = beside_theirs(first.policy);
    }
    if let Err(fault) = firewall.apply(&first) {
        for net in new_route.map(plan::routed).unwrap_or_default() {
            netns::remove_virtual_route(net).await?;
        }
        return Err(fault);
    }
    let replaced = remove_theirs(&theirs).await?;
    if first != desired {
        firewall.apply(&desired)?;
    }
    Ok(Done {
        driver: firewall.name().to_owned(),
        netns,
        policy: Some(desired.policy),
        replaced,
        rules: None,
        cut: 0,
    })
}

async fn take_back(driver: Driver, netns: Option<String>, drain: Duration) -> Result<Done, Fault> {
    let marks = refuse_planned()?;
    let firewalls: Vec<Box<dyn Firewall>> = match driver {
        // Whichever it was that set them.
        Driver::Auto if !redirect::best_is_iptables() => {
            vec![adapters::firewall(Driver::Nftables), adapters::firewall(Driver::Iptables)]
        }
        driver => vec![adapters::firewall(driver)],
    };
    let mut cut = 0;
    if !marks.is_empty() {
        for firewall in &firewalls {
            if marks.iter().any(|(name, _)| *name == firewall.name()) {
                firewall.drain()?;
            }
        }
        let ports: BTreeSet<u16> = marks
            .iter()
            .filter_map(|(_, mark)| redirect::ports_of(mark))
            .flat_map(|(outbound, inbound)| [outbound, inbound])
            .collect();
        cut = wait(&ports, drain).await;
    }
    for firewall in &firewalls {
        match firewall.remove() {
            // Of what is not installed there are no rules.
            Err(fault) if firewalls.len() > 1 && fault.code == "ENM-R014" => {}
            result => result?,
        }
    }
    for net in netns::our_virtual_routes().await? {
        netns::remove_virtual_route(net).await?;
    }
    let driver = marks.first().map_or("none", |(name, _)| name).to_owned();
    Ok(Done { driver, netns, policy: None, replaced: Vec::new(), rules: None, cut })
}

/// The marks of rules that were set by hand.
fn refuse_planned() -> Result<Vec<(&'static str, crate::plan::Generation)>, Fault> {
    let marks = redirect::in_force()?;
    match marks.iter().find(|(_, mark)| !redirect::is_by_hand(mark)) {
        Some((driver, mark)) => Err(HandoverError::Planned { generation: mark.clone(), driver }.into()),
        None => Ok(marks),
    }
}

fn refuse_others() -> Result<(), Fault> {
    match redirect::foreign()?.into_iter().next() {
        Some(redirect::Foreign { owner, place, removal }) => {
            Err(ConvergeError::ForeignRedirector { owner, place, removal }.into())
        }
        None => Ok(()),
    }
}

/// Waits until no connection of the sidecar's listeners is left, or the time is over. Returns how many are.
async fn wait(ports: &BTreeSet<u16>, limit: Duration) -> usize {
    let started = Instant::now();
    loop {
        let left = sockets(&["tcp", "tcp6"], |local, state| state == "01" && ports.contains(&local.port()));
        if left == 0 || started.elapsed() >= limit {
            return left;
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Whether a UDP socket listens at this address of loopback, or at all addresses of its family.
fn answers(at: SocketAddr) -> bool {
    let fits = |local: SocketAddr, _: &str| {
        local.port() == at.port() && (local.ip() == at.ip() || local.ip().is_unspecified())
    };
    sockets(&[if at.is_ipv4() { "udp" } else { "udp6" }], fits) > 0
}

/// How many sockets of these tables of `/proc/net` there are whose local address and state are as asked for.
fn sockets(tables: &[&str], is_one: impl Fn(SocketAddr, &str) -> bool) -> usize {
    let count = |table: &&str| {
        let text = fs::read_to_string(format!("/proc/thread-self/net/{table}")).unwrap_or_default();
        let one = |line: &str| -> Option<bool> {
            let mut fields = line.split_whitespace().skip(1);
            let (address, port) = fields.next()?.split_once(':')?;
            let local = SocketAddr::new(hexadecimal(address)?, u16::from_str_radix(port, 16).ok()?);
            Some(is_one(local, fields.nth(1)?))
        };
        text.lines().skip(1).filter_map(one).filter(|is| *is).count()
    };
    tables.iter().map(count).sum()
}

/// An address as the kernel prints it: words of four bytes, each in the machine's own order.
fn hexadecimal(text: &str) -> Option<IpAddr> {
    let words: Option<Vec<u8>> = (0..text.len())
        .step_by(8)
        .map(|at| u32::from_str_radix(text.get(at..at + 8)?, 16).ok().map(u32::to_ne_bytes))
        .collect::<Option<Vec<_>>>()
        .map(|words| words.concat());
    let bytes = words?;
    match bytes.len() {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        16 => Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn addresses_as_the_kernel_prints_them() {
        assert_eq!(hexadecimal("0100007F"), Some("127.0.0.1".parse().unwrap()));
        assert_eq!(hexadecimal("00000000000000000000000001000000"), Some("::1".parse().unwrap()));
        assert_eq!(hexadecimal("01"), None);
        assert_eq!(hexadecimal("zz00007F"), None);
    }

    #[test]
    fn who_answers_is_seen() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let at = socket.local_addr().unwrap();
        assert!(answers(at));
        drop(socket);
        assert!(!answers(at));
    }
}
