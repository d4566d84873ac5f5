//! Hearing of changes in the network namespaces of services, at the border to them, and of their names.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::future::select_all;

use super::log;
use super::watch::Watcher;
use crate::base::{Fault, LocalFuture};
use crate::converge::Engine;
use crate::netns::{FOLDER, Identity, LinkWatch};
use crate::redirect::{Drift, DriftEvent};

/// What listens. Nothing, where there is no namespace.
#[derive(Default)]
pub(super) struct Namespaces {
    inside: BTreeMap<String, (Identity, Ears)>,
    border: Option<Ears>,
    names: Option<Watcher>,
}

/// Ears in one namespace.
struct Ears {
    rules: Drift,
    links: LinkWatch,
}

impl Ears {
    async fn next(&mut self) -> Result<DriftEvent, Fault> {
        tokio::select! {
            event = self.rules.next() => event,
            changed = self.links.changed() => changed.map(|()| DriftEvent::default()),
        }
    }
}

impl Namespaces {
    /// Listens where `engine` has something to keep. Where that cannot be, it is said.
    pub fn follow(&mut self, engine: &Engine) {
        let there = engine.namespaces();
        self.inside.retain(|name, (identity, _)| there.get(name.as_str()) == Some(identity));
        for (name, identity) in &there {
            if self.inside.contains_key(*name) {
                continue;
            }
            match engine.watch_namespace(name) {
                Ok(Some((rules, links))) => {
                    self.inside.insert((*name).to_owned(), (*identity, Ears { rules, links }));
                }
                Ok(None) => {}
                Err(fault) => log::fault(&fault),
            }
        }
        if there.is_empty() {
            (self.border, self.names) = (None, None);
            return;
        }
        if self.border.is_none() {
            match engine.watch_border() {
                Ok((rules, links)) => self.border = Some(Ears { rules, links }),
                Err(fault) => log::fault(&fault),
            }
        }
        if self.names.is_none() {
            self.names =
                Watcher::new(BTreeSet::from([FOLDER.into()])).map_err(|fault| log::fault(&fault)).ok();
        }
    }

    /// The next change that is worth a look. Safe to interrupt.
    pub async fn next(&mut self) -> DriftEvent {
        loop {
            let Namespaces { inside, border, names } = self;
            let ears = inside.values_mut().map(|(_, ears)| ears).chain(border.as_mut());
            let mut heard: Vec<LocalFuture<'_, Result<DriftEvent, Fault>>> = Vec::new();
            for ears in ears {
                heard.push(Box::pin(ears.next()));
            }
            if let Some(names) = names {
                heard.push(Box::pin(async { names.changed().await.map(|()| DriftEvent::default()) }));
            }
            if heard.is_empty() {
                std::future::pending::<()>().await;
            }
            let (first, ..) = select_all(heard).await;
            match first {
                Ok(event) => return event,
                Err(fault) => {
                    // Whatever broke, the next converging listens anew.
                    log::fault(&fault);
                    *self = Namespaces::default();
                }
            }
        }
    }
}
