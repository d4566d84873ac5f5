//! At which address others reach this host: who is asked, what each said and when, and which one counts.
//!
//! Each source is asked anew from time to time. One that does not answer leaves what it said last in
//! force: nobody moves because somebody is not to be heard. A name counts only where it leads here,
//! since names outlive the hosts that had them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::future::join_all;
use rand::Rng;
use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, lookup_host};
use tokio::time::{Instant, sleep_until, timeout};

use super::engine::Engine;
use crate::base::{Class, Explain, Fault};
use crate::config::{AddressConfig, AddressSource, HostConfig};
use crate::consul::Endpoint;
use crate::netns;
use crate::platform::Management;

/// How long one source may take. Nothing is registered before all have had their time.
const LIMIT: Duration = Duration::from_secs(10);
/// How soon they are asked again while nobody knows.
const SOON: Duration = Duration::from_secs(5);
/// How long this host may take to answer itself.
const SELF_LIMIT: Duration = Duration::from_secs(3);
/// Bytes of the number by which this host knows itself.
const NONCE: usize = 16;

/// What is known of this host's address. The shape is stable: fields are only ever added.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct AddressStatus {
    /// The address that counts; none where nobody knows one.
    pub address: Option<IpAddr>,
    /// Who said it: `configured`, `route`, `management`, `dns`, or `remembered` from a run before.
    pub source: Option<&'static str>,
    /// Everybody who was asked.
    pub sources: Vec<SourceStatus>,
}

/// What one source said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SourceStatus {
    /// Which: `route`, `management` or `dns`.
    pub source: &'static str,
    /// What it said last.
    pub address: Option<IpAddr>,
    /// When, in seconds since 1970; 0 where it never did.
    pub at: u64,
    /// Why it said nothing when it was asked last.
    pub fault: Option<Fault>,
}

/// Why an address is not known, or not believed.
#[derive(Debug, thiserror::Error)]
enum AddressError {
    #[error("the kernel has no route to Consul ({to})")]
    NoRoute { to: String },
    #[error("Consul's name {name:?} cannot be resolved: {why}")]
    ConsulName { name: String, why: String },
    #[error("the platform does not have {group}, or it has no address")]
    NoGroup { group: String },
    #[error("the name {name:?} cannot be resolved: {why}")]
    Name { name: String, why: String },
    #[error("the name {name:?} does not lead here: {tried}")]
    Elsewhere { name: String, tried: String },
    #[error("cannot listen on port {port} to hear myself: {why}")]
    Listen { port: u16, why: String },
    #[error("{source_name} did not answer within {limit:?}")]
    Late { source_name: &'static str, limit: Duration },
    #[error("this host's address is said to be {said}")]
    Differ { said: String },
}

impl Explain for AddressError {
    fn code(&self) -> &'static str {
        match self {
            AddressError::NoRoute { .. } => "ENM-D140",
            AddressError::ConsulName { .. } => "ENM-D141",
            AddressError::NoGroup { .. } => "ENM-D142",
            AddressError::Name { .. } => "ENM-D143",
            AddressError::Elsewhere { .. } => "ENM-D144",
            AddressError::Listen { .. } => "ENM-D145",
            AddressError::Late { .. } => "ENM-D146",
            AddressError::Differ { .. } => "ENM-D147",
        }
    }

    fn hint(&self) -> String {
        let text = match self {
            AddressError::NoRoute { .. } => "`ip route get ADDRESS` says the same; is the network up?",
            AddressError::ConsulName { .. } => "check `[consul] address` and this host's own name resolution",
            AddressError::NoGroup { .. } => "check `[platform] group`; a group gets its address when it runs",
            AddressError::Name { .. } => "check `[address] name` and this host's own name resolution",
            AddressError::Elsewhere { .. } => {
                "the name may be that of a host before; it is looked at again. Others must reach `[address] check_port` here"
            }
            AddressError::Listen { .. } => "give `[address] check_port` a port that is free",
            AddressError::Late { .. } => "it is asked again; what it said before stays in force",
            AddressError::Differ { .. } => {
                "the first counts; say which is right by the order of `[address] sources`, or by `[address] ip`"
            }
        };
        text.to_owned()
    }

    fn class(&self) -> Class {
        Class::Unavailable
    }
}

impl AddressSource {
    fn word(self) -> &'static str {
        match self {
            AddressSource::Route => "route",
            AddressSource::Management => "management",
            AddressSource::Dns => "dns",
        }
    }
}

/// What one source said last.
#[derive(Debug, Clone, Default)]
struct Said {
    address: Option<IpAddr>,
    /// Whether the platform says that it is a public one, which no interface has.
    public: bool,
    at: u64,
    fault: Option<Fault>,
}

/// Who knows this host's address.
#[derive(Debug)]
pub(super) struct Addresses {
    config: AddressConfig,
    group: Option<String>,
    management: Option<Management>,
    consul: Option<Endpoint>,
    said: BTreeMap<AddressSource, Said>,
    /// When they are asked next; at once where they never were.
    due: Option<Instant>,
}

impl Addresses {
    /// Those that `host` names. Asks nobody yet.
    pub fn new(host: &HostConfig, consul: Option<&Endpoint>) -> Self {
        let group = host.platform.group.as_ref().filter(|_| host.address.ip.is_none()).cloned();
        let env = |name: &str| std::env::var(name).ok();
        Addresses {
            management: group.as_ref().map(|_| Management::new(&host.platform, &env)),
            group,
            config: host.address.clone(),
            consul: consul.cloned(),
            said: BTreeMap::new(),
            due: None,
        }
    }

    /// Those of the configured sources that have something to ask.
    fn sources(&self) -> Vec<AddressSource> {
        let has = |source: &AddressSource| match source {
            AddressSource::Route => true,
            AddressSource::Management => self.management.is_some(),
            AddressSource::Dns => self.config.name.is_some(),
        };
        let all = self.config.sources.iter().copied().filter(has);
        if self.config.ip.is_some() { Vec::new() } else { all.collect() }
    }

    /// Asks the kernel, which costs nothing and knows of a change at once, and all others where that is due.
    pub async fn ask_who_is_due(&mut self) {
        let all = self.due.is_none_or(|due| due <= Instant::now());
        let sources: Vec<AddressSource> =
            self.sources().into_iter().filter(|source| all || *source == AddressSource::Route).collect();
        let answers = join_all(sources.iter().map(|source| self.ask(*source))).await;
        for (source, answer) in sources.into_iter().zip(answers) {
            let said = self.said.entry(source).or_default();
            match answer {
                Ok((address, public)) => {
                    *said = Said { address: Some(address), public, at: now(), fault: None };
                }
                Err(fault) => said.fault = Some(fault),
            }
        }
        if all {
            let every = self.config.recheck.0.mul_f64(rand::rng().random_range(0.9..1.0));
            let every = if self.chosen().is_none() { every.min(SOON) } else { every };
            self.due = Some(Instant::now() + every);
        }
    }

    /// Waits until they are to be asked again. Never where there is nobody to ask, and not before they
    /// were asked a first time.
    pub async fn due(&self) {
        match self.due {
            Some(due) if !self.sources().is_empty() => sleep_until(due).await,
            _ => std::future::pending().await,
        }
    }

    /// The address that counts, and who said it.
    fn chosen(&self) -> Option<(IpAddr, &'static str)> {
        if let Some(ip) = self.config.ip {
            return Some((ip, "configured"));
        }
        let sources = self.sources();
        let said = |source: &AddressSource| {
            let said = self.said.get(source)?;
            Some((said.address?, source.word(), said.public))
        };
        // An address that the platform gives to the group and not to its network is on no interface, so
        // the kernel cannot know it.
        let public = sources.iter().filter_map(said).find(|(_, _, public)| *public);
        let first = public.or_else(|| sources.iter().find_map(said));
        first.map(|(address, source, _)| (address, source))
    }

    /// The sources that say something else than the address that counts, as a warning.
    pub fn warning(&self) -> Option<Fault> {
        let (address, source) = self.chosen()?;
        let public = self.said.values().any(|said| said.public);
        let others = self.said.iter().filter(|(it, said)| {
            // Next to a public address, that of the interface is no contradiction.
            said.address.is_some_and(|other| other != address) && !(public && **it == AddressSource::Route)
        });
        let others: Vec<String> = others
            .filter_map(|(source, said)| Some(format!("{} by {}", said.address?, source.word())))
            .collect();
        let said = format!("{address} by {source}, {}", others.join(", "));
        (!others.is_empty()).then(|| AddressError::Differ { said }.into())
    }

    /// How it is; `remembered` is what counted last in a run before.
    pub fn status(&self, remembered: Option<IpAddr>) -> AddressStatus {
        let chosen = self.chosen().or_else(|| Some((remembered?, "remembered")));
        let source = |source: AddressSource| {
            let said = self.said.get(&source).cloned().unwrap_or_default();
            SourceStatus { source: source.word(), address: said.address, at: said.at, fault: said.fault }
        };
        AddressStatus {
            address: chosen.map(|(address, _)| address),
            source: chosen.map(|(_, source)| source),
            sources: self.sources().into_iter().map(source).collect(),
        }
    }

    async fn ask(&self, source: AddressSource) -> Result<(IpAddr, bool), Fault> {
        let late = |_| Fault::from(AddressError::Late { source_name: source.word(), limit: LIMIT });
        let answer = async {
            match source {
                AddressSource::Route => self.route().await.map(|address| (address, false)),
                AddressSource::Management => self.managed().await,
                AddressSource::Dns => self.named().await.map(|address| (address, false)),
            }
        };
        timeout(LIMIT, answer).await.map_err(late)?
    }

    /// From where the kernel would speak to Consul; to anywhere, where Consul is on this host.
    async fn route(&self) -> Result<IpAddr, Fault> {
        let anywhere = || {
            let to = "anywhere: there is no default route".to_owned();
            netns::default_source().ok_or_else(|| AddressError::NoRoute { to }.into())
        };
        let Some(Endpoint::Tcp { host, port, .. }) = &self.consul else { return anywhere() };
        let resolved = lookup_host((host.as_str(), *port)).await;
        let resolved = resolved
            .map_err(|error| AddressError::ConsulName { name: host.clone(), why: error.to_string() })?;
        let mut last = None;
        for to in resolved.map(|to| to.ip()) {
            if to.is_loopback() {
                return anywhere();
            }
            last = Some(to);
            if let Some(source) = netns::source_towards(to).await? {
                return Ok(source);
            }
        }
        let to = last.map_or_else(|| host.clone(), |to| to.to_string());
        Err(AddressError::NoRoute { to }.into())
    }

    /// What the platform says of the group.
    async fn managed(&self) -> Result<(IpAddr, bool), Fault> {
        let group = self.group.clone().unwrap_or_default();
        let found = match &self.management {
            Some(management) => management.look(&group).await?,
            None => None,
        };
        found.and_then(|found| found.address).ok_or_else(|| AddressError::NoGroup { group }.into())
    }

    /// The address of the configured name at which this host hears itself.
    async fn named(&self) -> Result<IpAddr, Fault> {
        let name = self.config.name.clone().unwrap_or_default();
        let port = self.config.check_port.get();
        let resolved = lookup_host((name.as_str(), port)).await;
        let resolved =
            resolved.map_err(|error| AddressError::Name { name: name.clone(), why: error.to_string() })?;
        let nonce: [u8; NONCE] = rand::random();
        // The one of IPv6 hears both, where the kernel has it.
        let listener = match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await {
            Err(error) if error.kind() != std::io::ErrorKind::AddrInUse => {
                TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await
            }
            bound => bound,
        };
        let listener = listener.map_err(|error| AddressError::Listen { port, why: error.to_string() })?;
        let mut tried = Vec::new();
        for to in resolved {
            let heard = tokio::select! {
                heard = timeout(SELF_LIMIT, hear(to)) => heard,
                never = answer(&listener, nonce) => match never {},
            };
            match heard {
                Ok(Ok(heard)) if heard == nonce => return Ok(to.ip()),
                Ok(Ok(_)) => tried.push(format!("somebody else answers at {to}")),
                Ok(Err(error)) => tried.push(format!("{to}: {error}")),
                Err(_) => tried.push(format!("nobody answers at {to}")),
            }
        }
        Err(AddressError::Elsewhere { name, tried: tried.join(", ") }.into())
    }
}

/// What whoever is at `to` says of himself.
async fn hear(to: std::net::SocketAddr) -> std::io::Result<[u8; NONCE]> {
    let mut said = [0; NONCE];
    TcpStream::connect(to).await?.read_exact(&mut said).await?;
    Ok(said)
}

/// Says the number to whoever calls.
async fn answer(listener: &TcpListener, nonce: [u8; NONCE]) -> std::convert::Infallible {
    loop {
        match listener.accept().await {
            Ok((mut stream, _)) => drop(timeout(SELF_LIMIT, stream.write_all(&nonce)).await),
            // No more files for now.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl Engine {
    /// Asks for this host's address where that is due. Returns whether it is another one.
    pub async fn ask_for_address(&mut self) -> bool {
        self.addresses.ask_who_is_due().await;
        let before = self.state.address;
        if let Some((address, source)) = self.addresses.chosen() {
            self.state.address = Some(address);
            if let Some(before) = before.filter(|before| *before != address) {
                tracing::info!("this host's address is {address} now ({source}), and was {before}");
            }
        }
        self.adapters.drive.set_address(self.state.address);
        self.state.address != before
    }

    /// Takes up what the host file says of who is asked.
    pub(super) fn follow_addresses(&mut self, host: &HostConfig) {
        let same = self.host.address == host.address
            && self.host.platform == host.platform
            && self.host.consul.address == host.consul.address;
        if !same {
            self.addresses = Addresses::new(host, self.adapters.drive.consul().as_ref());
        }
    }

    /// How this host's address is known.
    pub fn address(&self) -> AddressStatus {
        self.addresses.status(self.state.address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(said: &[(AddressSource, &str, bool)]) -> Addresses {
        let mut host = HostConfig::default();
        host.address.name = Some("api.example".to_owned());
        host.platform.group = Some("/subscriptions/1".to_owned());
        let mut addresses = Addresses::new(&host, None);
        for (source, address, public) in said {
            let said = Said { address: address.parse().ok(), public: *public, at: 1, fault: None };
            addresses.said.insert(*source, said);
        }
        addresses
    }

    #[test]
    fn the_first_who_knows_counts_and_a_public_address_before_it() {
        use AddressSource::{Dns, Management, Route};
        for (said, wanted, warns) in [
            (vec![], None, false),
            (vec![(Dns, "10.0.0.3", false)], Some(("10.0.0.3", "dns")), false),
            (
                vec![(Route, "10.0.0.1", false), (Management, "10.0.0.1", false)],
                Some(("10.0.0.1", "route")),
                false,
            ),
            (
                vec![(Route, "10.0.0.1", false), (Management, "10.0.0.2", false)],
                Some(("10.0.0.1", "route")),
                true,
            ),
            (
                vec![(Route, "10.0.0.1", false), (Management, "20.0.0.2", true)],
                Some(("20.0.0.2", "management")),
                false,
            ),
            (
                vec![(Route, "10.0.0.1", false), (Management, "20.0.0.2", true), (Dns, "20.0.0.9", false)],
                Some(("20.0.0.2", "management")),
                true,
            ),
        ] {
            let addresses = addresses(&said);
            let wanted = wanted.map(|(address, source)| (address.parse().unwrap(), source));
            assert_eq!(addresses.chosen(), wanted, "{said:?}");
            assert_eq!(addresses.warning().is_some(), warns, "{said:?}");
        }
    }

    #[test]
    fn what_is_configured_is_asked_of_nobody_and_what_counted_before_is_remembered() {
        let mut host = HostConfig::default();
        host.address.ip = Some("10.9.9.9".parse().unwrap());
        host.platform.group = Some("/subscriptions/1".to_owned());
        let status = Addresses::new(&host, None).status(None);
        assert_eq!((status.source, status.sources.len()), (Some("configured"), 0));
        let status = addresses(&[]).status(Some("10.0.0.7".parse().unwrap()));
        assert_eq!((status.source, status.sources.len()), (Some("remembered"), 3));
    }
}
