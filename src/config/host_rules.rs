//! Rules of the host file.

use std::path::Path;

use super::error::{ConfigError, Problem};
use super::node::{Node, Step};
use super::value::UserSpec;
use super::{HostConfig, address, consul_rules, platform};

/// Everything that is wrong with `host` beyond its single values.
pub(super) fn host(host: &HostConfig, root: &Node) -> Vec<ConfigError> {
    let mut errors = Vec::new();
    let mut wrong = |why: String, path: &[&str]| {
        let steps: Vec<Step<'_>> = path.iter().map(|key| Step::Key(key)).collect();
        errors.push(ConfigError::at(Problem::Host { why }, &root.spot(&steps)));
    };
    if host.virtual_ips.trunc() != host.virtual_ips {
        let why =
            format!("the network {} has host bits; it is {}", host.virtual_ips, host.virtual_ips.trunc());
        wrong(why, &["virtual_ips"]);
    }
    let (outbound, inbound) = (host.ports.outbound, host.ports.inbound);
    if outbound.first <= inbound.last && inbound.first <= outbound.last {
        wrong(format!("the port ranges {outbound} and {inbound} overlap"), &["ports", "inbound"]);
    }
    if !host.dns.listen.ip().to_canonical().is_loopback() || host.dns.listen.port() == 0 {
        wrong(
            format!(
                "the resolver cannot listen on {}: it takes an address of loopback and a port",
                host.dns.listen
            ),
            &["dns", "listen"],
        );
    }
    if let Some(why) = pool(host) {
        wrong(why, &["namespaces", "pool"]);
    }
    if matches!(&host.envoy.user, UserSpec::Uid(0)) || host.envoy.user == UserSpec::Name("root".to_owned()) {
        // Sidecars' users are never captured, so all of root's programs would leave the mesh.
        wrong("sidecars do not run as root".to_owned(), &["envoy", "user"]);
    }
    if !is_program(&host.envoy.path) {
        let why = format!("{:?} is neither the name nor the absolute path of a program", host.envoy.path);
        wrong(why, &["envoy", "path"]);
    }
    if host.readiness.listen.is_some_and(|listen| listen.port() == 0) {
        wrong("readiness takes an address and a port".to_owned(), &["readiness", "listen"]);
    }
    if let Some(path) = host.upstreams_file.as_ref().filter(|path| !path.is_absolute()) {
        wrong(format!("{path:?} is not an absolute path"), &["upstreams_file"]);
    }
    for (key, path) in [("peers", &host.static_mesh.peers), ("ca", &host.static_mesh.ca)] {
        if !path.is_absolute() {
            wrong(format!("{path:?} is not an absolute path"), &["static", key]);
        }
    }
    if host.static_mesh.leaf_ttl.0.as_secs() < 60 {
        wrong("a leaf certificate is valid for a minute at least".to_owned(), &["static", "leaf_ttl"]);
    }
    let of_platform = platform::platform(&host.platform).into_iter().chain(platform::reap(&host.reap));
    let of_platform = of_platform.chain(address::address(&host.address));
    for (path, why) in consul_rules::consul(&host.consul).into_iter().chain(of_platform) {
        wrong(why, path);
    }
    errors
}

/// What is wrong with the network from which namespaces get their addresses.
fn pool(host: &HostConfig) -> Option<String> {
    let (pool, virtual_ips) = (host.namespaces.pool, host.virtual_ips);
    if pool.trunc() != pool {
        return Some(format!("the network {pool} has host bits; it is {}", pool.trunc()));
    }
    if pool.prefix_len() > 30 {
        return Some(format!("the network {pool} has no room: each namespace takes four addresses"));
    }
    let overlaps = pool.contains(&virtual_ips) || virtual_ips.contains(&pool);
    overlaps.then(|| format!("the networks {pool} and {virtual_ips} (`virtual_ips`) overlap"))
}

fn is_program(path: &Path) -> bool {
    path.is_absolute() || (path.components().count() == 1 && path.file_name().is_some())
}
