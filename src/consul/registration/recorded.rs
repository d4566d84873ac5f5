//! A registry that remembers instead of doing, for the tests of the rooms above.

use std::cell::RefCell;
use std::collections::BTreeMap;

use super::registry::Key;
use crate::base::{Fault, LocalFuture};
use crate::consul::{ConsulError, Entry, Health, Outcome, Registry};

/// One call, as it was made.
#[derive(Debug, Clone, PartialEq)]
pub enum Call {
    /// [`Registry::observe`].
    Observe(Key),
    /// [`Registry::register`].
    Register(Box<Entry>),
    /// [`Registry::deregister`].
    Deregister(Key),
    /// [`Registry::set_health`].
    SetHealth(Key, Health),
    /// [`Registry::list`].
    List,
}

/// Keeps registrations in memory and a list of what was asked of it.
#[derive(Debug, Default)]
pub struct Recorded {
    calls: RefCell<Vec<Call>>,
    entries: RefCell<BTreeMap<Key, Entry>>,
    failure: RefCell<Option<String>>,
}

impl Recorded {
    /// Without registrations.
    pub fn new() -> Self {
        Self::default()
    }

    /// Every call until now, in order, failed ones included.
    pub fn calls(&self) -> Vec<Call> {
        self.calls.borrow().clone()
    }

    /// What is registered.
    pub fn entries(&self) -> BTreeMap<Key, Entry> {
        self.entries.borrow().clone()
    }

    /// As if the agent had lost its data.
    pub fn forget(&self) {
        self.entries.borrow_mut().clear();
    }

    /// Lets every further call fail with `message` (code `ENM-K042`), until told otherwise with
    /// `None`.
    pub fn fail(&self, message: Option<&str>) {
        self.failure.replace(message.map(str::to_owned));
    }

    fn record(&self, call: Call) -> Result<(), Fault> {
        self.calls.borrow_mut().push(call);
        match &*self.failure.borrow() {
            Some(message) => Err(ConsulError::Told(message.clone()).into()),
            None => Ok(()),
        }
    }

    fn differences(&self, entry: &Entry) -> Vec<String> {
        match self.entries.borrow().get(&entry.key) {
            Some(is) if is == entry => Vec::new(),
            Some(_) => vec![format!("~ {}", entry.key.id)],
            None => vec![format!("+ service {}", entry.key.id)],
        }
    }
}

impl Registry for Recorded {
    fn name(&self) -> &'static str {
        "recorded"
    }

    fn observe<'a>(&'a self, entry: &'a Entry) -> LocalFuture<'a, Result<Vec<String>, Fault>> {
        let answer = self.record(Call::Observe(entry.key.clone())).map(|()| self.differences(entry));
        Box::pin(std::future::ready(answer))
    }

    fn register<'a>(&'a self, entry: &'a Entry) -> LocalFuture<'a, Result<Outcome, Fault>> {
        let answer = self.record(Call::Register(Box::new(entry.clone()))).map(|()| {
            let differences = self.differences(entry);
            self.entries.borrow_mut().insert(entry.key.clone(), entry.clone());
            Outcome { differences, warnings: Vec::new() }
        });
        Box::pin(std::future::ready(answer))
    }

    fn deregister<'a>(&'a self, key: &'a Key) -> LocalFuture<'a, Result<bool, Fault>> {
        let answer = self
            .record(Call::Deregister(key.clone()))
            .map(|()| self.entries.borrow_mut().remove(key).is_some());
        Box::pin(std::future::ready(answer))
    }

    fn set_health<'a>(&'a self, key: &'a Key, health: &'a Health) -> LocalFuture<'a, Result<(), Fault>> {
        Box::pin(std::future::ready(self.record(Call::SetHealth(key.clone(), health.clone()))))
    }

    fn list(&self) -> LocalFuture<'_, Result<Vec<Key>, Fault>> {
        let answer = self.record(Call::List).map(|()| self.entries.borrow().keys().cloned().collect());
        Box::pin(std::future::ready(answer))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn it_behaves_as_a_registry() {
        let registry = Recorded::new();
        let entry = Entry::new("api".parse().unwrap(), json!({ "name": "api" }));
        assert_eq!(registry.observe(&entry).await.unwrap(), ["+ service api"]);
        assert_eq!(registry.register(&entry).await.unwrap().differences, ["+ service api"]);
        assert_eq!(registry.register(&entry).await.unwrap().differences, Vec::<String>::new());
        registry.forget();
        assert_eq!(registry.list().await.unwrap(), []);
        registry.register(&entry).await.unwrap();
        assert!(
            registry.deregister(&entry.key).await.unwrap() && !registry.deregister(&entry.key).await.unwrap()
        );
        registry.fail(Some("no"));
        let health = Health::Critical("x".to_owned());
        assert_eq!(registry.set_health(&entry.key, &health).await.unwrap_err().code, "ENM-K042");
        assert_eq!(registry.calls().last(), Some(&Call::SetHealth(entry.key, health)));
    }
}
