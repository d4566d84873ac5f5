//! The services that have no waiting call of their own: many together, read when something says that
//! they may have changed.
//!
//! Three calls wait for all of them: one for registrations, two for checks that are not passing. A
//! check says whose it is, and that service is read at once; so a flapping instance costs one small
//! call, and is heard of as fast as with a call of its own. A registration does not say whose it is:
//! then all are read, but never for more than a tenth of the time, or once in two seconds when there
//! are thousands. What is registered with a check that is critical first, as agents and enmesh do,
//! is heard of by that.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use tokio::time::Instant;

use super::answers::{HealthEntry, StateCheck};
use super::follow::{Pace, endpoints, explain, health_path};
use super::instances::of_sidecar;
use super::shared::{Shared, Topic};
use crate::config::value::ServiceName;
use crate::consul::{ConsulError, Query};

/// How many are read at a time.
const AT_ONCE: usize = 8;
/// How many times longer than reading everybody the pause after it is.
const REST: u32 = 9;
/// The longest of these pauses.
const LONGEST_REST: Duration = Duration::from_secs(2);

/// Says who is in the crowd. Newcomers are read.
pub(super) fn set(shared: &Shared, crowd: &BTreeSet<ServiceName>) {
    let mut before = shared.crowd.borrow_mut();
    let mut due = shared.due.borrow_mut();
    due.names.retain(|name| crowd.contains(name));
    due.names.extend(crowd.difference(&before).cloned());
    if !due.names.is_empty() {
        shared.due_bell.notify_one();
    }
    before.clone_from(crowd);
}

/// Says that anybody may have changed.
pub(super) fn look(shared: &Shared) {
    shared.due.borrow_mut().all = true;
    shared.due_bell.notify_one();
}

/// Finds out whom the checks are about that are no more, or not yet, in a state.
pub(super) fn hear(shared: &Shared, before: &mut Option<BTreeSet<StateCheck>>, now: Vec<StateCheck>) {
    let now: BTreeSet<StateCheck> = now.into_iter().collect();
    match before.replace(now) {
        // What was missed before the call could wait.
        None => look(shared),
        Some(before_now) => {
            let Some(now) = before.as_ref() else { return };
            for check in now.symmetric_difference(&before_now) {
                name(shared, check);
            }
        }
    }
}

fn name(shared: &Shared, check: &StateCheck) {
    let sidecar = check.service_name.as_str();
    // A node's check is about everything on it.
    if sidecar.is_empty() {
        return look(shared);
    }
    let crowd = shared.crowd.borrow();
    let state = shared.state.borrow();
    let of_name = of_sidecar(sidecar).unwrap_or(sidecar).parse::<ServiceName>().ok();
    let of_alias =
        state.endpoints.iter().filter(|(_, it)| it.aliases.contains(sidecar)).map(|(name, _)| name);
    let found: BTreeSet<ServiceName> =
        of_name.iter().chain(of_alias).filter(|name| crowd.contains(*name)).cloned().collect();
    if !found.is_empty() {
        shared.due.borrow_mut().names.extend(found);
        shared.due_bell.notify_one();
    }
}

/// Reads who is due.
pub(super) async fn read(shared: Rc<Shared>, topic: Topic) {
    let mut pace = Pace::default();
    let mut rested = Instant::now();
    loop {
        wait(&shared, rested).await;
        let all = shared.due.borrow().all && Instant::now() >= rested;
        let mut names = std::mem::take(&mut shared.due.borrow_mut().names);
        if all {
            shared.due.borrow_mut().all = false;
            names = shared.crowd.borrow().clone();
        }
        if names.is_empty() {
            continue;
        }
        let begun = Instant::now();
        match read_these(&shared, names.clone()).await {
            Ok(()) => {
                shared.well(&topic);
                pace = Pace::default();
            }
            Err(error) => {
                // Whoever was read already is read again, which is rare and does no harm.
                shared.due.borrow_mut().names.extend(names);
                shared.due_bell.notify_one();
                shared.ill(&topic, explain(&topic, error));
                pace.wait(&shared).await;
            }
        }
        if all {
            rested = Instant::now() + (begun.elapsed() * REST).min(LONGEST_REST);
        }
    }
}

/// Until somebody is due.
async fn wait(shared: &Shared, rested: Instant) {
    let all = shared.due.borrow().all;
    let rest = async {
        match all {
            true => tokio::time::sleep_until(rested).await,
            false => std::future::pending().await,
        }
    };
    tokio::select! {
        () = shared.due_bell.notified() => {}
        () = rest => {}
    }
}

async fn read_these(shared: &Shared, names: BTreeSet<ServiceName>) -> Result<(), ConsulError> {
    let calls = names.into_iter().map(|name| async move {
        let query = Query::new(health_path(&name));
        let (body, _): (Vec<HealthEntry>, _) = shared.client.get_as(&query).await?;
        endpoints(shared, &name, body);
        Ok(())
    });
    let mut calls = stream::iter(calls).buffer_unordered(AT_ONCE);
    while let Some(done) = calls.next().await {
        done?;
    }
    Ok(())
}
