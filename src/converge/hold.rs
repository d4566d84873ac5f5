//! Units named in scopes: their users are captured before anything of theirs runs.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::engine::{Engine, load};
use super::facts;
use super::state::State;
use crate::base::{Fault, Root};
use crate::config::value::{Scope, ServiceId};
use crate::config::{Config, Mode, OnProxyFailure, ServiceConfig};
use crate::plan::{RedirectPolicy, Who};
use crate::systemd::Systemd;
use crate::systemd::scope::UnitUser;

/// How long systemd may take to say who the user is of a unit that starts; it is a matter of
/// milliseconds.
const KNOWN: Duration = Duration::from_secs(5);
/// The pause between two looks.
const LOOK: Duration = Duration::from_millis(5);

/// The unit whose user a service wants captured before it runs.
fn held(service: &ServiceConfig) -> Option<&String> {
    let wanted = service.enabled
        && service.capture.mode == Mode::Transparent
        && service.capture.on_proxy_failure != OnProxyFailure::Open;
    match &service.capture.scope {
        Scope::Unit(unit) if wanted => Some(unit),
        _ => None,
    }
}

fn held_units(config: &Config) -> BTreeSet<String> {
    config.services.iter().filter_map(held).cloned().collect()
}

/// The units that a boot holds from its beginning: those of the configuration, and of what was good last
/// where a file is in error.
pub fn held_at_boot(root: &Root) -> BTreeSet<String> {
    let state = State::look(root).map(|(state, _)| state).unwrap_or_default();
    let mut units = held_units(&load(root, &state));
    units.extend(state.services.values().filter_map(|service| held(&service.into()).cloned()));
    units
}

/// Whether `policy` captures `uid` for each of these services.
fn captures(policy: &RedirectPolicy, services: &[ServiceId], uid: u32) -> bool {
    let all_outbound = |id| policy.outbound.get(id).is_some_and(|capture| capture.who == Who::Uid(uid));
    services.iter().all(all_outbound)
}

/// Without a daemon: whether the rules that were set last capture the user of `unit`, or nobody wants it
/// captured. A state without rules is that of a host that is out of the mesh; a torn one may have had any.
///
/// # Errors
/// `ENM-S…` the bus does not answer, `ENM-D…` the state cannot be read.
pub async fn is_captured(root: &Root, unit: &str) -> Result<bool, Fault> {
    let (state, torn) = State::look(root)?;
    let services = of_unit(&load(root, &state), unit);
    if services.is_empty() {
        return Ok(true);
    }
    let Some(guard) = state.guard else { return Ok(torn.is_none()) };
    let systemd = Systemd::connect(root.clone()).await?;
    let uid = known_user(&systemd, root, unit).await?;
    Ok(uid.is_some_and(|uid| captures(&guard.policy, &services, uid)))
}

/// The services that want the user of `unit` captured.
fn of_unit(config: &Config, unit: &str) -> Vec<ServiceId> {
    let of = |service: &&ServiceConfig| held(service).is_some_and(|held| held == unit);
    config.services.iter().filter(of).map(ServiceConfig::id).collect()
}

/// The user of a unit that is about to run. systemd makes it and knows it a moment later.
async fn known_user(systemd: &Systemd, root: &Root, unit: &str) -> Result<Option<u32>, Fault> {
    let started = std::time::Instant::now();
    loop {
        let found: BTreeMap<String, UnitUser> =
            systemd.user_of(unit).await?.map(|user| (unit.to_owned(), user)).into_iter().collect();
        let known = facts::unit_uids(root, found)?.get(unit).copied().flatten();
        if known.is_some() || started.elapsed() > KNOWN {
            return Ok(known);
        }
        tokio::time::sleep(LOOK).await;
    }
}

impl Engine {
    /// Waits until a unit that a scope names may have another user.
    pub async fn units_moved(&self) {
        match &self.adapters.systemd {
            Some(systemd) => systemd.user_moved().await,
            None => std::future::pending().await,
        }
    }

    /// Whether a unit that a scope names has another user than the plan in force knows.
    pub async fn has_other_users(&self) -> bool {
        let Some((config, facts)) = &self.made_from else { return true };
        let found = self.adapters.unit_users(facts::scoped_units(config)).await;
        facts::unit_uids(&self.root, found).is_ok_and(|now| now != facts.unit_users)
    }

    /// Whether the user of `unit`, which is about to run, is captured by the rules in force, or nobody
    /// wants that.
    ///
    /// # Errors
    /// `ENM-S…` the bus does not answer.
    pub async fn captures_unit(&self, unit: &str) -> Result<bool, Fault> {
        let services = of_unit(&load(&self.root, &self.state), unit);
        let Some(systemd) = self.adapters.systemd.as_ref().filter(|_| !services.is_empty()) else {
            return Ok(true);
        };
        let uid = known_user(systemd, &self.root, unit).await?;
        let rules = self.rules.as_ref();
        Ok(uid.is_some_and(|uid| rules.is_some_and(|rules| captures(&rules.policy, &services, uid))))
    }

    /// Has systemd hold the units of `config` from their next start on.
    pub(super) async fn hold_units(&self, config: &Config) -> Result<(), Fault> {
        match &self.adapters.systemd {
            Some(systemd) => systemd.hold(&held_units(config)).await,
            None => Ok(()),
        }
    }

    /// The host is out of the mesh: every unit starts as it likes.
    pub(super) async fn let_units_go(&self) -> Result<(), Fault> {
        match &self.adapters.systemd {
            Some(systemd) => systemd.hold(&BTreeSet::new()).await,
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::converge::state::STATE_FILE;

    #[tokio::test(flavor = "current_thread")]
    async fn a_torn_state_may_have_had_rules() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path());
        let services = root.join("/etc/enmesh/services");
        std::fs::create_dir_all(&services).unwrap();
        let file = "name = \"shop\"\nport = 80\n[capture]\nscope = \"unit:shop.service\"\n";
        std::fs::write(services.join("shop.toml"), file).unwrap();
        assert!(is_captured(&root, "other.service").await.unwrap(), "nobody wants that");
        assert!(is_captured(&root, "shop.service").await.unwrap(), "the host is not in the mesh");
        let state = root.join(STATE_FILE);
        std::fs::create_dir_all(state.parent().unwrap()).unwrap();
        std::fs::write(&state, "{\"version\": 1, \"gua").unwrap();
        assert!(!is_captured(&root, "shop.service").await.unwrap(), "but it may be");
        assert!(is_captured(&root, "other.service").await.unwrap(), "which is nothing to others");
        assert!(state.exists(), "a look moves nothing");
    }
}
