//! A driver that remembers instead of doing, for the tests of the rooms above. It is not a kernel:
//! whether rules do what they say is tested in network namespaces.

use std::cell::RefCell;

use super::{Desired, Firewall, Observed, RedirectError};
use crate::base::Fault;

/// One call, as it was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// [`Firewall::observe`].
    Observe,
    /// [`Firewall::apply`], with what was asked for.
    Apply(Box<Desired>),
    /// [`Firewall::drain`].
    Drain,
    /// [`Firewall::remove`].
    Remove,
}

/// Keeps the rules in memory and a list of what was asked of it.
#[derive(Debug, Default)]
pub struct Recorded {
    calls: RefCell<Vec<Call>>,
    state: RefCell<Option<Desired>>,
    failure: RefCell<Option<String>>,
}

impl Recorded {
    /// Without rules.
    pub fn new() -> Self {
        Self::default()
    }

    /// Every call until now, in order, failed ones included.
    pub fn calls(&self) -> Vec<Call> {
        self.calls.borrow().clone()
    }

    /// The rules "in the kernel".
    pub fn state(&self) -> Option<Desired> {
        self.state.borrow().clone()
    }

    /// As if somebody else had flushed the rules.
    pub fn flush(&self) {
        self.state.replace(None);
    }

    /// Lets every further call fail with `message` (code `ENM-R009`), until told otherwise with
    /// `None`.
    pub fn fail(&self, message: Option<&str>) {
        self.failure.replace(message.map(str::to_owned));
    }

    fn record(&self, call: Call) -> Result<(), Fault> {
        self.calls.borrow_mut().push(call);
        match &*self.failure.borrow() {
            Some(message) => Err(RedirectError::Told(message.clone()).into()),
            None => Ok(()),
        }
    }
}

impl Firewall for Recorded {
    fn name(&self) -> &'static str {
        "recorded"
    }

    fn observe(&self, desired: &Desired) -> Result<Observed, Fault> {
        self.record(Call::Observe)?;
        let state = self.state.borrow();
        let wanted = (!desired.policy.is_empty()).then_some(desired);
        let differences = match (wanted, state.as_ref()) {
            (None, None) => Vec::new(),
            (Some(wanted), Some(is)) if wanted == is => Vec::new(),
            (Some(_), Some(_)) => vec!["~ the rules are other rules".to_owned()],
            (Some(_), None) => vec!["+ the rules".to_owned()],
            (None, Some(_)) => vec!["- the rules".to_owned()],
        };
        Ok(Observed { generation: state.as_ref().map(|is| is.policy.generation.clone()), differences })
    }

    fn apply(&self, desired: &Desired) -> Result<(), Fault> {
        self.record(Call::Apply(Box::new(desired.clone())))?;
        self.state.replace((!desired.policy.is_empty()).then(|| desired.clone()));
        Ok(())
    }

    fn drain(&self) -> Result<(), Fault> {
        self.record(Call::Drain)?;
        self.state.replace(None);
        Ok(())
    }

    fn remove(&self) -> Result<(), Fault> {
        self.record(Call::Remove)?;
        self.state.replace(None);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::plan::{DnsCapture, Generation, RedirectPolicy};

    fn desired(number: u64) -> Desired {
        let dns = DnsCapture {
            to: "127.0.0.1:8600".parse().unwrap(),
            uids: BTreeSet::new(),
            except: BTreeSet::new(),
            server: crate::plan::DnsServer::Ours,
        };
        let policy = RedirectPolicy {
            own_calls: false,
            generation: Generation { number, hash: "a".to_owned() },
            bypass_uids: BTreeSet::new(),
            proxy_uids: BTreeSet::new(),
            bypass_cidrs: BTreeSet::new(),
            virtual_nets: BTreeSet::new(),
            mesh_instances: BTreeSet::new(),
            outbound: BTreeMap::new(),
            inbound: BTreeMap::new(),
            dns: Some(dns),
            agent_ports: BTreeSet::new(),
            virtual_route: None,
            host_end: None,
        };
        Desired { policy, live: BTreeSet::new() }
    }

    #[test]
    fn it_remembers_and_fails_when_told() {
        let firewall = Recorded::new();
        assert_eq!(firewall.observe(&desired(1)).unwrap().differences.len(), 1);
        firewall.apply(&desired(1)).unwrap();
        let observed = firewall.observe(&desired(1)).unwrap();
        assert_eq!((observed.generation.map(|g| g.number), observed.differences.len()), (Some(1), 0));
        firewall.fail(Some("no"));
        assert_eq!(firewall.apply(&desired(2)).unwrap_err().code, "ENM-R009");
        assert_eq!(firewall.state(), Some(desired(1)));
        firewall.fail(None);
        firewall.remove().unwrap();
        assert_eq!(firewall.state(), None);
        assert_eq!(firewall.calls().len(), 5);
        assert_eq!(firewall.calls().last(), Some(&Call::Remove));
    }
}
