//! What stands in the two hosts' files: as little as a person would have to write.

use std::time::SystemTime;

use super::stage::{APP_PORT, ENVOY_USER, Host, RESOLVER, Stage};
use crate::base::files::{self, Access};
use crate::base::{Fault, Root};
use crate::config::StaticConfig;
use crate::mesh;

/// The peers file, below a host's root.
pub const PEERS: &str = "/etc/enmesh/peers.toml";
/// The public port of `api`'s sidecar: the first of the range.
pub const PUBLIC_PORT: u16 = 21_000;
/// Files of the CA, and their modes.
const CA_FILES: [(&str, u32); 2] = [("root.pem", 0o644), ("root.key", 0o600)];
/// The largest of them that is read, in bytes.
const CA_LIMIT: u64 = 64 * 1024;

/// Writes both hosts' configuration (with more lines for `[capture]`, if any), and gives them the
/// same CA.
///
/// # Errors
/// Files cannot be written, or the CA cannot be made.
pub(super) fn write(stage: &Stage, capture: &str) -> Result<(), Fault> {
    for host in [&stage.web, &stage.api] {
        host.write("/etc/passwd", &passwd(stage))?;
        host.write("/etc/hostname", &format!("{}\n", host.name))?;
        host.write("/etc/enmesh/enmesh.toml", &host_file(host))?;
        host.write(PEERS, &peers(stage, &["web"]))?;
    }
    stage.web.write(
        "/etc/enmesh/services/web.toml",
        &format!(
            "name = \"web\"

[capture]
scope = \"user:web-app\"
{capture}"
        ),
    )?;
    stage.api.write(
        "/etc/enmesh/services/api.toml",
        &format!("name = \"api\"\nport = {APP_PORT}\n\n[capture]\nscope = \"user:api-app\"\n{capture}"),
    )?;
    share_ca(&stage.web.root(), &stage.api.root())
}

/// The peers file, with `callers` as those who may call `api`.
pub(super) fn peers(stage: &Stage, callers: &[&str]) -> String {
    let address = stage.api.address;
    format!(
        "[[service]]\nname = \"api\"\nallow = {callers:?}\n\n\
         [[service.instance]]\naddress = \"{address}\"\nport = {PUBLIC_PORT}\nservice_port = {APP_PORT}\n\n\
         [[service]]\nname = \"web\"\n"
    )
}

fn host_file(host: &Host) -> String {
    format!(
        "control_plane = \"static\"\nprofile = \"container\"\nstop.registration = \"keep\"\n\n\
         [envoy]\npath = {:?}\ndrain = \"1s\"\n\n[dns]\nlisten = \"{RESOLVER}\"\n",
        host.envoy()
    )
}

fn passwd(stage: &Stage) -> String {
    let mut lines =
        format!("root:x:0:0::/root:/bin/false\nenvoy:x:{ENVOY_USER}:{ENVOY_USER}::/:/bin/false\n");
    for Host { name, app_user, .. } in [&stage.web, &stage.api] {
        lines.push_str(&format!("{name}-app:x:{app_user}:{app_user}::/:/bin/false\n"));
    }
    lines
}

fn share_ca(from: &Root, to: &Root) -> Result<(), Fault> {
    let config = StaticConfig::default();
    mesh::ca_init(from, &config, &mesh::InitRequest::default(), SystemTime::now())?;
    let folder = to.join(&config.ca);
    files::folder(&folder, Access::mode(0o700))?;
    for (name, mode) in CA_FILES {
        if let Some(bytes) = files::read(&from.join(&config.ca).join(name), CA_LIMIT)? {
            files::write(&folder.join(name), &bytes, Access::mode(mode))?;
        }
    }
    Ok(())
}
