//! The peers file: who is out there, for hosts that have no Consul server.
//!
//! Strict, as all configuration of the house: an unknown key, a service or an address that is there
//! twice, is an error with its line, and then nothing of the file is used; the mesh as it was last
//! read stays in force.

mod error;
mod file;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::ops::Range;
use std::path::Path;

use serde::Deserialize;
use toml::Spanned;

pub use error::{PeersError, PeersProblem};
pub use file::{CallerName, PeerInstance, PeerService, PeersFile, TrustDomain};

use super::input;
use crate::base::{Fault, Place, Root};
use crate::config::value::ServiceName;
use crate::plan::{Access, Callers, Instance, MeshService, MeshView};

/// The largest peers file that is read, in bytes. A service with one instance takes about 120, so
/// this is well above what one file can be kept by hand for.
pub const SIZE_LIMIT: u64 = 4 * 1024 * 1024;

/// A peers file that is in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peers {
    /// The trust domain, if the file names one.
    pub trust_domain: Option<TrustDomain>,
    /// The datacenter.
    pub datacenter: String,
    /// The services.
    pub services: BTreeMap<ServiceName, MeshService>,
}

impl Default for Peers {
    fn default() -> Self {
        let MeshView { datacenter, services, .. } = MeshView::default();
        Peers { trust_domain: None, datacenter, services }
    }
}

impl Peers {
    /// The mesh, in the trust domain `trust_domain`.
    pub fn into_view(self, trust_domain: &str) -> MeshView {
        MeshView {
            trust_domain: trust_domain.to_owned(),
            datacenter: self.datacenter,
            services: self.services,
            ..MeshView::default()
        }
    }
}

/// Reads the peers file; one that is not there is a mesh without services.
///
/// # Errors
/// `ENM-M001` to `ENM-M009`, each with file, line and column.
pub fn load(root: &Root, path: &Path) -> Result<Peers, Fault> {
    let path = root.join(path);
    let unreadable = |e: io::Error| {
        let problem = if e.kind() == io::ErrorKind::FileTooLarge {
            PeersProblem::TooLarge(SIZE_LIMIT)
        } else {
            PeersProblem::Unreadable(e)
        };
        PeersError { place: Place::whole(&path), problem }
    };
    match input::read(&path, SIZE_LIMIT).map_err(unreadable)? {
        Some(input) => Ok(parse(&path, &input.text)?),
        None => Ok(Peers::default()),
    }
}

/// Reads the text of a peers file; `path` is only named in errors.
///
/// # Errors
/// `ENM-M003` to `ENM-M009`.
pub fn parse(path: &Path, text: &str) -> Result<Peers, PeersError> {
    let source = Source { path, text };
    let document = toml::Deserializer::parse(text)
        .map_err(|e| source.wrong(&e, |m| PeersProblem::Syntax(m.to_owned())))?;
    let file = PeersFile::deserialize(document).map_err(|e| source.wrong(&e, problem_of))?;
    let services = Checker::new(&source).check(file.services)?;
    let datacenter = file.datacenter.map_or_else(|| Peers::default().datacenter, |name| name.to_string());
    Ok(Peers { trust_domain: file.trust_domain, datacenter, services })
}

/// The text that offsets are offsets into.
struct Source<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Source<'_> {
    fn place(&self, offset: usize) -> Place {
        let before = self.text.get(..offset).unwrap_or(self.text);
        let start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let column = before.get(start..).map_or(0, |line| line.chars().count()) + 1;
        Place { file: self.path.to_owned(), line: self.line(offset), column }
    }

    fn line(&self, offset: usize) -> usize {
        self.text.get(..offset).unwrap_or(self.text).matches('\n').count() + 1
    }

    fn wrong(&self, error: &toml::de::Error, problem: impl Fn(&str) -> PeersProblem) -> PeersError {
        let place = match error.span() {
            Some(span) => self.place(span.start),
            None => Place::whole(self.path),
        };
        PeersError { place, problem: problem(error.message().trim()) }
    }
}

/// serde tells an unknown field only in words: the field, then the ones it knows, in backticks.
fn problem_of(message: &str) -> PeersProblem {
    if message.starts_with("unknown field") {
        let mut quoted = message.split('`').skip(1).step_by(2).map(str::to_owned);
        if let Some(key) = quoted.next() {
            return PeersProblem::UnknownKey { key, known: quoted.collect() };
        }
    }
    PeersProblem::Value(message.to_owned())
}

fn callers(allow: Vec<CallerName>) -> Callers {
    let mut callers = Callers::default();
    for caller in allow {
        match caller {
            CallerName::Any => callers.others = Access::Allow,
            CallerName::Service(name) => drop(callers.named.insert(name, Access::Allow)),
        }
    }
    callers
}

/// Puts the services together and remembers where each thing was first said.
struct Checker<'a> {
    source: &'a Source<'a>,
    names: BTreeMap<String, usize>,
    virtual_ips: BTreeMap<IpAddr, usize>,
    instances: BTreeMap<(IpAddr, u16), usize>,
}

impl<'a> Checker<'a> {
    fn new(source: &'a Source<'a>) -> Self {
        Checker { source, names: BTreeMap::new(), virtual_ips: BTreeMap::new(), instances: BTreeMap::new() }
    }

    fn check(mut self, services: Vec<PeerService>) -> Result<BTreeMap<ServiceName, MeshService>, PeersError> {
        let mut checked = BTreeMap::new();
        for service in services {
            let (name, service) = self.service(service)?;
            checked.insert(name, service);
        }
        self.disjoint()?;
        Ok(checked)
    }

    fn service(&mut self, service: PeerService) -> Result<(ServiceName, MeshService), PeersError> {
        let PeerService { name, virtual_ips, allow, instances } = service;
        let at = name.span();
        let name = name.into_inner();
        // DNS does not tell upper from lower case, so two such services would share one name there.
        let folded = name.as_str().to_ascii_lowercase();
        if let Some(first) = remember(&mut self.names, folded, &at) {
            let first = self.source.line(first);
            return Err(self.wrong(&at, PeersProblem::DuplicateService { name: name.to_string(), first }));
        }
        let mut checked = MeshService { callers: callers(allow), ..Default::default() };
        for address in virtual_ips {
            checked.virtual_ips.insert(self.virtual_ip(&address)?);
        }
        for instance in instances {
            checked.instances.insert(self.instance(&instance)?);
        }
        Ok((name, checked))
    }

    fn virtual_ip(&mut self, address: &Spanned<IpAddr>) -> Result<IpAddr, PeersError> {
        let at = address.span();
        let address = address.get_ref().to_canonical();
        let why =
            if address.is_loopback() { Some("loopback is never captured") } else { not_unicast(address) };
        if let Some(why) = why {
            return Err(self.unusable(&at, address, "a virtual IP", why.to_owned()));
        }
        match remember(&mut self.virtual_ips, address, &at) {
            Some(first) => {
                let first = self.source.line(first);
                Err(self.wrong(&at, PeersProblem::DuplicateVirtualIp { address, first }))
            }
            None => Ok(address),
        }
    }

    fn instance(&mut self, instance: &Spanned<PeerInstance>) -> Result<Instance, PeersError> {
        let at = instance.span();
        let PeerInstance { address, port, service_port } = instance.get_ref();
        let (address, port) = (address.to_canonical(), port.get());
        if let Some(why) = not_unicast(address) {
            return Err(self.unusable(&at, address, "an instance's address", why.to_owned()));
        }
        match remember(&mut self.instances, (address, port), &at) {
            Some(first) => {
                let first = self.source.line(first);
                Err(self.wrong(&at, PeersProblem::DuplicateInstance { address, port, first }))
            }
            None => {
                Ok(Instance { address, port, service_port: service_port.map(|port| port.get()), weight: 1 })
            }
        }
    }

    /// A virtual IP that is also an instance's address would mean two things to a sidecar.
    fn disjoint(&self) -> Result<(), PeersError> {
        for (&(address, _), &at) in &self.instances {
            if let Some(&virtual_ip) = self.virtual_ips.get(&address) {
                let why = format!("an instance has this address, in line {}", self.source.line(at));
                return Err(self.unusable(&(virtual_ip..virtual_ip), address, "a virtual IP", why));
            }
        }
        Ok(())
    }

    fn unusable(&self, at: &Range<usize>, address: IpAddr, what: &'static str, why: String) -> PeersError {
        self.wrong(at, PeersProblem::Address { address, what, why })
    }

    fn wrong(&self, at: &Range<usize>, problem: PeersProblem) -> PeersError {
        PeersError { place: self.source.place(at.start), problem }
    }
}

/// Notes where `thing` is; where it was already, if it was.
fn remember<K: Ord>(seen: &mut BTreeMap<K, usize>, thing: K, at: &Range<usize>) -> Option<usize> {
    let first = seen.get(&thing).copied();
    if first.is_none() {
        seen.insert(thing, at.start);
    }
    first
}

fn not_unicast(address: IpAddr) -> Option<&'static str> {
    let broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    if address.is_unspecified() {
        Some("it stands for every address")
    } else if address.is_multicast() || broadcast {
        Some("it is not the address of one host")
    } else {
        None
    }
}
