//! The driver of a container without `CAP_NET_ADMIN`: there are no rules, and none can be set.

use super::{Desired, Firewall, Observed, RedirectError};
use crate::base::Fault;

/// Sets nothing.
#[derive(Debug, Default)]
pub struct NoRules;

impl Firewall for NoRules {
    fn name(&self) -> &'static str {
        "none"
    }

    fn observe(&self, _: &Desired) -> Result<Observed, Fault> {
        Ok(Observed { generation: None, differences: Vec::new() })
    }

    fn apply(&self, desired: &Desired) -> Result<(), Fault> {
        if desired.policy.is_empty() { Ok(()) } else { Err(RedirectError::NotPermitted.into()) }
    }

    fn drain(&self) -> Result<(), Fault> {
        Ok(())
    }

    fn remove(&self) -> Result<(), Fault> {
        Ok(())
    }
}
