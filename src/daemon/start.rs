//! What comes before everything else of a daemon's life.

use super::log;
use crate::base::{Fault, Root};
use crate::config::value::Scope;
use crate::config::{self, Profile};
use crate::converge::facts;
use crate::supervise::error::SuperviseError;
use crate::supervise::{privilege, reap};

/// A bad value in the environment: nothing but another start mends that, so this one ends. Files may be mended while
/// the daemon runs.
///
/// # Errors
/// The first such value.
pub(super) fn check_environment(root: &Root) -> Result<(), Fault> {
    let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    config::unknown_variables(names).iter().for_each(log::fault);
    let config = config::load(root, &|name| std::env::var(name).ok());
    config.errors.into_iter().find(config::is_of_environment).map_or(Ok(()), Err)
}

/// In a container, gives up what is not needed. A machine's unit has a bound of its own; and elsewhere a root's shell
/// may have reasons for what it has.
pub(super) fn shed_privileges(root: &Root) {
    let env = |name: &str| std::env::var(name).ok();
    let mut config = config::load(root, &env);
    facts::settle(root, &mut config, &env);
    if !reap::is_init() && config.host.profile != Profile::Aci {
        return;
    }
    let apart = config.services.iter().any(|service| matches!(service.capture.scope, Scope::Netns(_)));
    match privilege::drop_needless(apart) {
        Ok(kept) => {
            let (kept, dropped) = (kept.kept.join(" "), kept.dropped.join(" "));
            tracing::info!(kept, dropped, "gave up the privileges that are not needed");
        }
        Err(error) => log::fault(&SuperviseError::Privileges { why: error.to_string() }.into()),
    }
}
