//! Gathers [`HostFacts`]: from the file tree for an offline look, from the kernel as well for a host
//! that is to be changed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::error::ConvergeError;
use super::preflight;
use super::ssh;
use super::state::State;
use crate::base::{Fault, Root, files};
use crate::config::value::{Scope, UserSpec};
use crate::config::{Config, ControlPlane, DnsMode, HostConfig, Mode, Profile};
use crate::envoy;
use crate::netns::{self, Sockets};
use crate::plan::facts::{HostFacts, User};
use crate::plan::{LINK_PREFIX, MeshView};
use crate::systemd::Systemd;
use crate::systemd::scope::UnitUser;

/// A variable that Service Fabric, which runs the container groups of Azure, sets in each container.
const AZURE: &str = "Fabric_NodeIPOrFQDN";

/// A `passwd` or `services` file larger than this is not read.
const LIMIT: u64 = 16 << 20;

/// What the file tree alone tells: users, port names, what was given out before.
///
/// # Errors
/// A file of the tree is there and cannot be read.
pub fn offline(root: &Root, config: &Config, state: &State, mesh: MeshView) -> Result<HostFacts, Fault> {
    Ok(HostFacts {
        hostname: hostname(root),
        users: users(&text(root, "/etc/passwd")?),
        port_names: port_names(&text(root, "/etc/services")?),
        ipv6: true,
        systemd: runs_systemd(root, &config.host),
        allocations: state.allocations.clone(),
        previous: state.generation.clone(),
        mesh,
        consul: !is_static(root, &config.host),
        ssh_sessions: state.ssh.clone(),
        last_good: state.services.iter().map(|(id, service)| (id.clone(), service.into())).collect(),
        ..HostFacts::default()
    })
}

/// What the tree and the running kernel tell about this host.
///
/// # Errors
/// As [`offline`], or the kernel does not answer.
pub async fn live(
    root: &Root,
    config: &Config,
    state: &State,
    mesh: MeshView,
    unit_users: BTreeMap<String, UnitUser>,
) -> Result<HostFacts, Fault> {
    let mut facts = offline(root, config, state, mesh)?;
    let envoy_uid = match &config.host.envoy.user {
        UserSpec::Uid(uid) => Some(*uid),
        UserSpec::Name(name) => facts.users.get(name).map(|user| user.uid),
    };
    facts.addresses = netns::addresses().await?;
    facts.addresses.retain(|address| !address.interface.starts_with(LINK_PREFIX));
    facts.default_source = netns::default_source();
    facts.ipv6 = netns::ipv6_available();
    facts.envoy = envoy::Programs::default().find(&config.host.envoy.path).ok();
    facts.foreign_ports = foreign_ports(envoy_uid);
    facts.ssh_sessions.extend(ssh::sessions(root));
    facts.unit_users = unit_uids(root, unit_users)?;
    Ok(facts)
}

/// A configured peers file means `static`; else Consul is asked.
pub fn is_static(root: &Root, host: &HostConfig) -> bool {
    match host.control_plane {
        ControlPlane::Static => true,
        ControlPlane::Auto => root.join(&host.static_mesh.peers).exists(),
        ControlPlane::Consul | ControlPlane::Catalog => false,
    }
}

/// Settles what the host file leaves open and only the host tells: whether it is a container group of Azure, and what
/// can be done in one. A service that cannot be captured there keeps its explicit upstreams, and a warning says so.
pub fn settle(root: &Root, config: &mut Config, env: &dyn Fn(&str) -> Option<String>) {
    if !root.is_host() && config.host.profile == Profile::Auto {
        // A tree of files does not tell what will run it; most are of machines.
        return;
    }
    let systemd = runs_systemd(root, &config.host);
    if config.host.profile == Profile::Auto {
        config.host.profile = match (systemd, env(AZURE)) {
            (true, _) => Profile::Host,
            (false, Some(_)) => Profile::Aci,
            (false, None) => Profile::Container,
        };
    }
    config.host.settle(systemd);
    if !systemd && root.is_host() {
        // There is no systemd-resolved to tell, and nobody would ask our resolver.
        let unled = config.services.iter_mut().filter(|service| service.capture.dns == DnsMode::Resolved);
        unled.for_each(|service| service.capture.dns = DnsMode::Redirect);
    }
    if !is_reduced(&config.host) {
        return;
    }
    for service in config.services.iter_mut().filter(|it| it.capture.mode == Mode::Transparent) {
        service.capture.mode = Mode::Direct;
        let id = service.id();
        config.warnings.push(Fault::from(ConvergeError::NotRedirected { id: id.clone() }).of_service(id));
    }
}

/// Whether nothing can be redirected here, which is how a container group of Azure is unless it is a confidential one.
/// Elsewhere that is an error: whoever starts a container can give it the capability.
pub fn is_reduced(host: &HostConfig) -> bool {
    host.profile == Profile::Aci && !preflight::may_redirect()
}

/// Whether systemd runs what runs here: asked of the configuration first, then of the tree.
pub fn runs_systemd(root: &Root, host: &HostConfig) -> bool {
    match host.profile {
        Profile::Host => true,
        Profile::Container | Profile::Aci => false,
        // sd_booted(3) looks at the same folder.
        Profile::Auto => root.is_host() && Path::new("/run/systemd/system").is_dir(),
    }
}

/// `None` where a user is named that is not there; `Some(None)` where one is made when the unit starts.
fn uid_of(users: &BTreeMap<String, User>, user: UnitUser) -> Option<Option<u32>> {
    let named = |name: &str| users.get(name).map(|user| user.uid).or_else(|| name.parse().ok());
    match user {
        UnitUser::Running(uid) => Some(Some(uid)),
        UnitUser::Named(name) if name.is_empty() => Some(Some(0)),
        UnitUser::Named(name) => named(&name).map(Some),
        UnitUser::Dynamic(name) => Some(named(&name)),
    }
}

/// Whose the sockets are that `unit` of this host opens, or will open when it runs; `.service` may be left out.
///
/// # Errors
/// `ENM-D016` there is no such unit, or no systemd to ask; `ENM-S…` the bus does not answer.
pub async fn user_of_unit(root: &Root, unit: &str) -> Result<u32, Fault> {
    let wrong = |what: String, instead| Fault::from(ConvergeError::NoFlow { what, instead });
    let name = if unit.contains('.') { unit.to_owned() } else { format!("{unit}.service") };
    let Ok(Scope::Unit(name)) = format!("unit:{name}").parse() else {
        return Err(wrong(format!("{unit:?} is no name of a service unit"), "say it as in `api.service`"));
    };
    let other = "say the user with --user or --uid";
    if !root.is_host() {
        return Err(wrong(
            format!("who runs `{name}` is known to the systemd of a running host only"),
            other,
        ));
    }
    let user = Systemd::connect(root.clone()).await?.socket_user_of(&name).await?;
    let unknown =
        || wrong(format!("systemd knows no unit `{name}`"), "`systemctl list-unit-files` has them all");
    let users = users(&text(root, "/etc/passwd")?);
    let nobody = || {
        let what = format!("`{name}` does not run, and the user that it names does not exist yet");
        wrong(
            what,
            "start it, since a dynamic user has its number only while it runs; or say a number with --uid",
        )
    };
    uid_of(&users, user.ok_or_else(unknown)?).flatten().ok_or_else(nobody)
}

/// The users of units, as the plan wants to know them.
///
/// # Errors
/// `/etc/passwd` is there and cannot be read.
pub fn unit_uids(
    root: &Root,
    found: BTreeMap<String, UnitUser>,
) -> Result<BTreeMap<String, Option<u32>>, Fault> {
    let users = users(&text(root, "/etc/passwd")?);
    Ok(found.into_iter().filter_map(|(unit, user)| Some((unit, uid_of(&users, user)?))).collect())
}

/// The units whose users the configuration asks for.
pub fn scoped_units(config: &Config) -> BTreeSet<String> {
    config
        .services
        .iter()
        .filter(|service| service.enabled)
        .filter_map(|service| match &service.capture.scope {
            Scope::Unit(unit) => Some(unit.clone()),
            Scope::Host | Scope::User(_) | Scope::Netns(_) => None,
        })
        .collect()
}

/// The host's name: the kernel's for this host, else what the tree says.
pub fn hostname(root: &Root) -> String {
    let kernel = root.is_host().then(|| nix::unistd::gethostname().ok()?.into_string().ok()).flatten();
    kernel.unwrap_or_else(|| text(root, "/etc/hostname").unwrap_or_default().trim().to_owned())
}

fn text(root: &Root, path: &str) -> Result<String, Fault> {
    let bytes = files::read(&root.join(path), LIMIT)?.unwrap_or_default();
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// `passwd(5)`: name:password:uid:gid:… A line that is none is skipped, as libc does.
fn users(passwd: &str) -> BTreeMap<String, User> {
    let line = |line: &str| -> Option<(String, User)> {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty() && !name.starts_with(['+', '-', '#']))?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        Some((name.to_owned(), User { uid, gid }))
    };
    // The first line of a name counts, as with getpwnam(3).
    let mut users = BTreeMap::new();
    for (name, user) in passwd.lines().filter_map(line) {
        users.entry(name).or_insert(user);
    }
    users
}

/// The number of a user of `/etc/passwd`.
pub fn user(root: &Root, name: &str) -> Option<u32> {
    users(&text(root, "/etc/passwd").ok()?).get(name).map(|user| user.uid)
}

/// The number of a group of `/etc/group`.
pub fn group(root: &Root, name: &str) -> Option<u32> {
    let groups = text(root, "/etc/group").ok()?;
    let line = groups.lines().find(|line| line.split(':').next() == Some(name))?;
    line.split(':').nth(2)?.parse().ok()
}

/// `services(5)`: name port/protocol aliases…
fn port_names(services: &str) -> BTreeMap<String, u16> {
    let mut names = BTreeMap::new();
    for line in services.lines() {
        let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
        let (Some(name), Some(port)) = (words.next(), words.next()) else { continue };
        let Some(port) = port.strip_suffix("/tcp").and_then(|port| port.parse().ok()) else { continue };
        for name in std::iter::once(name).chain(words) {
            names.entry(name.to_owned()).or_insert(port);
        }
    }
    names
}

/// Ports that a socket of another user than the sidecars' listens on.
fn foreign_ports(envoy_uid: Option<u32>) -> BTreeSet<u16> {
    let listening = netns::sockets(Sockets::Listening).into_iter();
    let foreign = listening.filter(|socket| Some(socket.uid) != envoy_uid);
    foreign.map(|socket| socket.local.port()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_read_as_libc_reads_them() {
        let users = users("root:x:0:0:root:/root:/bin/sh\n+nis\nbroken\napp:x:1000:100::/:\napp:x:7:7::/:\n");
        assert_eq!(users.keys().collect::<Vec<_>>(), ["app", "root"]);
        assert_eq!(users["app"], User { uid: 1000, gid: 100 });
    }

    #[test]
    fn port_names_with_aliases_and_comments() {
        let names = port_names("# x\npostgresql 5432/tcp postgres # db\nsyslog 514/udp\n\nbad\n");
        assert_eq!(
            names.into_iter().collect::<Vec<_>>(),
            [("postgres".to_owned(), 5432), ("postgresql".to_owned(), 5432)]
        );
    }
}
