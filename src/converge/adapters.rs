//! The adapters that a host's configuration asks for.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use super::drive::Drive;
use super::engine::Purpose;
use super::{facts, preflight};
use crate::base::units::Units;
use crate::base::{Fault, Root};
use crate::config::{Driver, HostConfig};
use crate::redirect::{self, Firewall, Iptables, Nftables, NoRules};
use crate::supervise::{Supervisor, Timing};
use crate::systemd::Systemd;
use crate::systemd::scope::UnitUser;

/// One of each kind.
pub(super) struct Adapters {
    pub firewall: Box<dyn Firewall>,
    pub units: Rc<dyn Units>,
    pub drive: Drive,
    /// The same systemd as `units`, where it is one.
    pub systemd: Option<Rc<Systemd>>,
    /// Whether the firewall can set anything.
    pub redirects: bool,
}

impl Adapters {
    /// What `host` asks for.
    ///
    /// # Errors
    /// Something that it asks for is not to be had.
    pub async fn choose(root: &Root, host: &HostConfig, purpose: Purpose) -> Result<Adapters, Fault> {
        let drive = Drive::new(root, host, purpose)?;
        let systemd = match facts::runs_systemd(root, host) {
            true => Some(Rc::new(Systemd::connect(root.clone()).await?)),
            false => None,
        };
        let units: Rc<dyn Units> = match &systemd {
            Some(systemd) => Rc::clone(systemd) as Rc<dyn Units>,
            None => Rc::new(Supervisor::new(root.clone(), Timing::default())),
        };
        // Without systemd this is a container, which may have been started without the capability.
        let redirects = systemd.is_some() || preflight::may_redirect();
        let firewall: Box<dyn Firewall> = if redirects { firewall(host.driver) } else { Box::new(NoRules) };
        Ok(Adapters { firewall, units, drive, systemd, redirects })
    }

    /// The users that units run as; a unit that nobody knows is left out.
    pub async fn unit_users(&self, units: BTreeSet<String>) -> BTreeMap<String, UnitUser> {
        match &self.systemd {
            Some(systemd) => unit_users(systemd, units).await,
            None => BTreeMap::new(),
        }
    }
}

/// The same, asked of `systemd`.
pub(super) async fn unit_users(systemd: &Systemd, units: BTreeSet<String>) -> BTreeMap<String, UnitUser> {
    let mut users = BTreeMap::new();
    for unit in units {
        if let Ok(Some(user)) = systemd.user_of(&unit).await {
            users.insert(unit, user);
        }
    }
    users
}

/// The driver. `auto` means nftables where it works, else iptables.
pub(super) fn firewall(driver: Driver) -> Box<dyn Firewall> {
    match driver {
        Driver::Nftables => Box::new(Nftables::new()),
        Driver::Iptables => Box::new(Iptables::new()),
        Driver::Auto => redirect::best(),
    }
}
