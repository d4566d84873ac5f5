//! The applications in the namespaces: their units, and how they find names.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::base::files::{self, Access};
use crate::base::{Class, Explain, Fault};
use crate::config::value::ServiceId;
use crate::converge::engine::{Engine, keep};
use crate::netns::Namespace;
use crate::plan::{NamespacePlan, Plan};
use crate::systemd::placement::Placement;

/// Where what an application sees lies. No service's folder can have that name.
const FOLDER: &str = "/run/enmesh/.namespaces";
/// Where systemd-resolved writes whom it asks itself.
const BEHIND_STUB: &str = "/run/systemd/resolve/resolv.conf";
/// The C library takes no more.
const SERVERS: usize = 3;
const LIMIT: u64 = 64 << 10;

/// What an application can be in the way of.
#[derive(Debug, thiserror::Error)]
enum AppError {
    /// It runs since before its namespace.
    #[error(
        "service `{id}`: {unit} was started before its network namespace was there, and runs in another one"
    )]
    Elsewhere { id: ServiceId, unit: String },
}

impl Explain for AppError {
    fn code(&self) -> &'static str {
        match self {
            AppError::Elsewhere { .. } => "ENM-S030",
        }
    }

    fn hint(&self) -> String {
        match self {
            AppError::Elsewhere { unit, .. } => {
                format!("`systemctl restart {unit}` puts it in; until then it is not in the mesh")
            }
        }
    }

    fn class(&self) -> Class {
        Class::Failed
    }
}

/// The text of `resolv.conf` in a namespace: our resolver first, where there is one, then whom the host asks. Of the
/// host's own loopback nobody in there can ask anything.
fn resolv_conf(ours: Option<std::net::IpAddr>, host: &str, behind_stub: &str) -> String {
    let servers = |text: &str| -> Vec<String> {
        let lines = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
        let reachable = |server: &&str| !server.starts_with("127.") && *server != "::1";
        lines.map(str::trim).filter(reachable).map(str::to_owned).collect()
    };
    let mut others = servers(host);
    if others.is_empty() {
        others = servers(behind_stub);
    }
    let mut text = "# Written by enmesh for this network namespace.\n".to_owned();
    for server in ours.map(|ip| ip.to_string()).into_iter().chain(others).take(SERVERS) {
        text += &format!("nameserver {server}\n");
    }
    for line in host.lines().map(str::trim) {
        if ["search", "domain", "options"].iter().any(|word| line.split_whitespace().next() == Some(word)) {
            text += line;
            text.push('\n');
        }
    }
    text
}

impl Engine {
    /// What applications see in their namespaces, and that they run there.
    pub(in crate::converge) async fn place_apps(&mut self, plan: &Plan) -> Vec<Fault> {
        let mut faults = Vec::new();
        for own in plan.namespaces.values() {
            let placed = self.place_app(plan, own).await.map_err(|fault| fault.of_service(&own.service));
            keep(&mut faults, placed);
        }
        faults
    }

    async fn place_app(&mut self, plan: &Plan, own: &NamespacePlan) -> Result<(), Fault> {
        let resolv_conf = self.write_resolv_conf(plan, own)?;
        let Some(record) = self.state.namespaces.get_mut(&own.name) else { return Ok(()) };
        let Some(systemd) = &self.adapters.systemd else { return Ok(()) };
        let before = std::mem::replace(&mut record.unit, own.unit.clone());
        if let Some(before) = before.filter(|before| own.unit.as_ref() != Some(before)) {
            systemd.unplace(&before).await?;
        }
        let Some(unit) = own.unit.clone() else { return Ok(()) };
        // Known before it is done, so that `down` finds it whatever happens.
        let made = UNIX_EPOCH + Duration::from_micros(record.since);
        self.state.save(&self.root)?;
        let namespace = Namespace::path_of_name(&own.name);
        let before = systemd.place(&Placement { unit: unit.clone(), namespace, resolv_conf }).await?;
        let since = systemd.runs_since(&unit).await?;
        let elsewhere = before.is_some() || since.is_some_and(|since| since < made);
        if elsewhere { Err(AppError::Elsewhere { id: own.service.clone(), unit }.into()) } else { Ok(()) }
    }

    fn write_resolv_conf(&self, plan: &Plan, own: &NamespacePlan) -> Result<PathBuf, Fault> {
        let text = |path: &str| -> Result<String, Fault> {
            let bytes = files::read(&self.root.join(path), LIMIT)?.unwrap_or_default();
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        let ours = plan.dns.inside.iter().map(std::net::SocketAddr::ip).find(|ip| *ip == own.outside());
        let text = resolv_conf(ours, &text("/etc/resolv.conf")?, &text(BEHIND_STUB)?);
        let folder = self.root.join(FOLDER).join(&own.name);
        files::folder(&folder, Access::mode(0o755))?;
        let path = folder.join("resolv.conf");
        files::write(&path, text.as_bytes(), Access::mode(0o644))?;
        Ok(path)
    }

    /// Takes back what was done for the application of the namespace `name`.
    pub(super) async fn unplace_app(&self, name: &str) -> Result<(), Fault> {
        let unit = self.state.namespaces.get(name).and_then(|record| record.unit.clone());
        if let (Some(unit), Some(systemd)) = (unit, &self.adapters.systemd) {
            systemd.unplace(&unit).await?;
        }
        let folder = self.root.join(FOLDER);
        files::remove_folder(&folder.join(name))?;
        // With the last one everything is gone; with others it is not empty.
        let _ = std::fs::remove_dir(folder);
        Ok(())
    }
}

/// This moment, in microseconds since 1970.
pub(super) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whom_an_application_asks() {
        let stub = "nameserver 127.0.0.53\noptions edns0 trust-ad\nsearch example.org\n";
        let behind = "nameserver 10.0.0.2\nnameserver 10.0.0.3\nnameserver 10.0.0.4\n";
        let ours = Some("198.18.0.1".parse().unwrap());
        assert_eq!(
            resolv_conf(ours, stub, behind),
            "# Written by enmesh for this network namespace.\nnameserver 198.18.0.1\nnameserver 10.0.0.2\n\
             nameserver 10.0.0.3\noptions edns0 trust-ad\nsearch example.org\n"
        );
        let plain = "# by hand\nnameserver\t10.1.1.1\n";
        let expected = "# Written by enmesh for this network namespace.\nnameserver 10.1.1.1\n";
        assert_eq!(resolv_conf(None, plain, behind), expected);
    }
}
