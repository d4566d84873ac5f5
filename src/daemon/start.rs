//! What comes before everything else of a daemon's life.

use super::log;
use crate::base::{Fault, Root};
use crate::config::value::Scope;
use crate::config::{self, Config, Profile};
use crate::converge::facts;
use crate::supervise::error::SuperviseError;
use crate::supervise::privilege::{self, Privilege, Shed};
use crate::supervise::reap;

/// A bad value in the environment: nothing but another start mends that, so this one ends. Files may be mended while
/// the daemon runs.
///
/// Returns what was read.
///
/// # Errors
/// The first such value.
pub(super) fn check_environment(root: &Root) -> Result<Config, Fault> {
    let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    config::unknown_variables(names).iter().for_each(log::fault);
    let config = config::load(root, &|name| std::env::var(name).ok());
    match config.errors.iter().find(|fault| config::is_of_environment(fault)) {
        Some(fault) => Err(fault.clone()),
        None => Ok(config),
    }
}

/// In a container, gives up what is not needed. A machine's unit has a bound of its own; and elsewhere a root's shell
/// may have reasons for what it has.
///
/// Returns what is kept; nothing where nothing was given up on purpose.
pub(super) fn shed_privileges(root: &Root, mut config: Config) -> Vec<Privilege> {
    facts::settle(root, &mut config, &|name| std::env::var(name).ok());
    if !reap::is_init() && config.host.profile != Profile::Aci {
        return Vec::new();
    }
    let apart = config.services.iter().any(|service| matches!(service.capture.scope, Scope::Netns(_)));
    match privilege::drop_needless(apart) {
        Ok(Shed { kept, dropped }) => {
            let names: Vec<&str> = kept.iter().map(|privilege| privilege.name.as_str()).collect();
            let (names, dropped) = (names.join(" "), dropped.join(" "));
            tracing::info!(kept = names, dropped, "gave up the privileges that are not needed");
            kept
        }
        Err(error) => {
            log::fault(&SuperviseError::Privileges { why: error.to_string() }.into());
            Vec::new()
        }
    }
}
