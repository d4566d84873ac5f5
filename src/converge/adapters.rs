//! The adapters that a host's configuration asks for.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use super::error::ConvergeError;
use super::facts;
use crate::base::units::Units;
use crate::base::{Fault, Root};
use crate::config::{ControlPlane, Driver, HostConfig};
use crate::mesh::{MeshSource, StaticMesh};
use crate::redirect::{self, Firewall, Iptables, Nftables};
use crate::supervise::{Supervisor, Timing};
use crate::systemd::Systemd;
use crate::systemd::scope::UnitUser;

/// One of each kind.
pub(super) struct Adapters {
    pub firewall: Box<dyn Firewall>,
    pub units: Rc<dyn Units>,
    pub mesh: Box<dyn MeshSource>,
    /// The same systemd as `units`, where it is one.
    pub systemd: Option<Rc<Systemd>>,
}

impl Adapters {
    /// What `host` asks for.
    ///
    /// # Errors
    /// Something that it asks for is not to be had.
    pub async fn choose(root: &Root, host: &HostConfig) -> Result<Adapters, Fault> {
        let mesh = mesh(root, host)?;
        let systemd = match facts::runs_systemd(root, host) {
            true => Some(Rc::new(Systemd::connect(root.clone()).await?)),
            false => None,
        };
        let units: Rc<dyn Units> = match &systemd {
            Some(systemd) => Rc::clone(systemd) as Rc<dyn Units>,
            None => Rc::new(Supervisor::new(root.clone(), Timing::default())),
        };
        Ok(Adapters { firewall: firewall(host.driver), units, mesh, systemd })
    }

    /// Takes up what the host file says of the mesh now.
    pub fn use_mesh(&mut self, root: &Root, host: &HostConfig) -> Result<(), Fault> {
        self.mesh = mesh(root, host)?;
        Ok(())
    }

    /// The users that units run as; a unit that nobody knows is left out.
    pub async fn unit_users(&self, units: BTreeSet<String>) -> BTreeMap<String, UnitUser> {
        let mut users = BTreeMap::new();
        if let Some(systemd) = &self.systemd {
            for unit in units {
                if let Ok(Some(user)) = systemd.user_of(&unit).await {
                    users.insert(unit, user);
                }
            }
        }
        users
    }
}

/// The driver. `auto` means nftables where it works, else iptables.
fn firewall(driver: Driver) -> Box<dyn Firewall> {
    match driver {
        Driver::Nftables => Box::new(Nftables::new()),
        Driver::Iptables => Box::new(Iptables::new()),
        Driver::Auto => redirect::best(),
    }
}

/// The source of the mesh's view. `auto` means `static` where there is a peers file.
pub(super) fn mesh(root: &Root, host: &HostConfig) -> Result<Box<dyn MeshSource>, Fault> {
    let peers = root.join(&host.static_mesh.peers);
    match host.control_plane {
        ControlPlane::Static => {}
        ControlPlane::Auto if peers.exists() => {}
        ControlPlane::Auto => {
            return Err(not_yet(&format!("control_plane = \"auto\" without {}", peers.display())));
        }
        ControlPlane::Consul => return Err(not_yet("control_plane = \"consul\"")),
        ControlPlane::Catalog => return Err(not_yet("control_plane = \"catalog\"")),
    }
    Ok(Box::new(StaticMesh::new(root.clone(), host.static_mesh.clone())))
}

fn not_yet(setting: &str) -> Fault {
    ConvergeError::NotYet { setting: setting.to_owned() }.into()
}
