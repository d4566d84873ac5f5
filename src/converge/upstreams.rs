//! The addresses of explicit upstreams, for an app that has to be told: variables that a shell can source.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::engine::Engine;
use crate::base::Fault;
use crate::base::files::{self, Access};
use crate::plan::Plan;

/// Where they are written, where nothing is redirected and nobody says otherwise.
const FILE: &str = "/run/enmesh/upstreams.env";
/// More than that is no file of ours.
const LIMIT: u64 = 1 << 20;

impl Engine {
    /// Writes the file, where one is wanted and it says something else by now.
    pub(super) fn write_upstreams(&self, plan: &Plan) -> Result<(), Fault> {
        let otherwise = || (!self.adapters.redirects).then(|| FILE.into());
        let Some(path) = self.host.upstreams_file.clone().or_else(otherwise) else { return Ok(()) };
        let (path, text) = (self.root.join(path), variables(plan));
        if files::read(&path, LIMIT)?.as_deref() == Some(text.as_bytes()) {
            return Ok(());
        }
        files::write_volatile(&path, text.as_bytes(), Access::mode(0o644))?;
        Ok(())
    }
}

/// `UPSTREAM_<NAME>_ADDR`, `_HOST` and `_PORT` of each upstream. Where two services have an upstream of one name, both
/// lead to the same service, and the first counts.
fn variables(plan: &Plan) -> String {
    let mut ports: BTreeMap<String, u16> = BTreeMap::new();
    for upstream in plan.services.values().flat_map(|service| &service.upstreams) {
        ports.entry(variable(upstream.service.as_str())).or_insert(upstream.port);
    }
    let mut text = "# Written by enmesh: where this group's explicit upstreams listen.\n".to_owned();
    for (name, port) in ports {
        let _ = writeln!(
            text,
            "UPSTREAM_{name}_ADDR=127.0.0.1:{port}\nUPSTREAM_{name}_HOST=127.0.0.1\nUPSTREAM_{name}_PORT={port}"
        );
    }
    text
}

/// A service's name as a part of a variable's.
fn variable(name: &str) -> String {
    name.chars().map(|c| if c == '-' { '_' } else { c.to_ascii_uppercase() }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::value::UserSpec;
    use crate::config::{Config, HostConfig, ServiceConfig};
    use crate::plan::{HostFacts, plan};

    #[test]
    fn each_upstream_has_its_variables() {
        let service: ServiceConfig = toml::from_str(
            "name = \"web\"\n[capture]\nmode = \"direct\"\n[[upstream]]\nname = \"user-db\"\nlocal_port = 5432\n",
        )
        .unwrap();
        let mut host = HostConfig::default();
        host.envoy.user = UserSpec::Uid(5995);
        let plan =
            plan(&Config { host, services: vec![service], ..Config::default() }, &HostFacts::default());
        assert_eq!(
            variables(&plan).lines().skip(1).collect::<Vec<_>>(),
            [
                "UPSTREAM_USER_DB_ADDR=127.0.0.1:5432",
                "UPSTREAM_USER_DB_HOST=127.0.0.1",
                "UPSTREAM_USER_DB_PORT=5432"
            ]
        );
    }
}
