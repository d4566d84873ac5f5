//! What says in the catalog that a service is somebody's, and that he is there still. Nothing in a
//! catalog ends by itself; by this, `enmesh reap` tells what nobody keeps any more.
//!
//! It is metadata of the service, and not of its sidecar: who calls the service follows the sidecars,
//! and does not notice a renewal. Each one is a write that every server keeps, so they are minutes
//! apart. The moment in it is for people: whoever judges a lease looks whether it changes, by his own
//! clock, and compares it with no other.

use std::cell::RefCell;
use std::time::{Duration, SystemTime};

use rand::Rng;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::Instant;

/// Whose the service is: a container group's resource id, or a catalog node.
pub const OWNER: &str = "enmesh-owner";
/// Since when he has it.
pub const SINCE: &str = "enmesh-since";
/// When he said last that he is there.
pub const RENEWED: &str = "enmesh-renewed";
/// How often he says so, in seconds.
pub const EVERY: &str = "enmesh-lease";

/// The pause before a renewal is tried again that did not get through.
const RETRY: Duration = Duration::from_secs(30);

/// The lease of the services of one host.
#[derive(Debug)]
pub struct Lease {
    owner: String,
    every: Duration,
    state: RefCell<State>,
}

#[derive(Debug)]
struct State {
    renewed: SystemTime,
    due: Instant,
    /// Whether nothing was said by this process yet.
    new: bool,
}

impl Lease {
    /// For what `owner` has, who says every `every` that he is there.
    pub fn new(owner: impl Into<String>, every: Duration) -> Self {
        let state = State { renewed: SystemTime::now(), due: Instant::now() + early(every), new: true };
        Lease { owner: owner.into(), every, state: RefCell::new(state) }
    }

    /// Whose.
    pub fn owner(&self) -> &str {
        &self.owner
    }

    /// Waits until the next renewal is due, which counts from then on: who writes the service next,
    /// writes it. It may be dropped midway.
    pub async fn due(&self) {
        let due = self.state.borrow().due;
        tokio::time::sleep_until(due).await;
        *self.state.borrow_mut() =
            State { renewed: SystemTime::now(), due: Instant::now() + RETRY, new: false };
    }

    /// The catalog has it as it is.
    pub(super) fn written(&self) {
        let mut state = self.state.borrow_mut();
        let age = state.renewed.elapsed().unwrap_or_default();
        state.due = Instant::now() + early(self.every).saturating_sub(age);
        state.new = false;
    }

    /// Takes up what a former process has written, as long as that is not due again: a restart is no
    /// reason to write.
    pub(super) fn resume(&self, meta: &Value) {
        let text = |key: &str| meta.get(key).and_then(Value::as_str);
        let moment = text(RENEWED).and_then(|text| OffsetDateTime::parse(text, &Rfc3339).ok());
        let Some(moment) = moment.filter(|_| text(OWNER) == Some(&self.owner)) else { return };
        let moment = SystemTime::from(moment);
        let mut state = self.state.borrow_mut();
        if state.new && moment.elapsed().is_ok_and(|age| age < early(self.every)) {
            state.renewed = moment;
        }
    }

    /// Puts it into the metadata of `service`. `before` is what the catalog has there.
    pub(super) fn mark(&self, service: &mut Value, before: Option<&Value>) {
        let Some(fields) = service.as_object_mut() else { return };
        let meta = fields.entry("Meta").or_insert_with(|| Value::Object(Map::new()));
        let Some(meta) = meta.as_object_mut() else { return };
        let text = |key: &str| before?.get(key)?.as_str();
        let renewed = moment(self.state.borrow().renewed);
        let since = text(SINCE).filter(|_| text(OWNER) == Some(&self.owner)).unwrap_or(&renewed);
        meta.insert(SINCE.to_owned(), json!(since));
        meta.insert(OWNER.to_owned(), json!(self.owner));
        meta.insert(EVERY.to_owned(), json!(self.every.as_secs().to_string()));
        meta.insert(RENEWED.to_owned(), json!(renewed));
        fields.sort_keys();
    }
}

/// What is left of a service as the catalog tells of it when renewals do not count.
pub(super) fn without_renewal(service: &mut Value) {
    if let Some(fields) = service.as_object_mut() {
        fields.remove("ModifyIndex");
        if let Some(meta) = fields.get_mut("Meta").and_then(Value::as_object_mut) {
            meta.remove(RENEWED);
        }
    }
}

/// Somewhat before the time is over, and at different times on hosts that started together.
fn early(every: Duration) -> Duration {
    every.mul_f64(rand::rng().random_range(0.9..1.0))
}

fn moment(at: SystemTime) -> String {
    let at = OffsetDateTime::from(at);
    at.replace_nanosecond(0).unwrap_or(at).format(&Rfc3339).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEN_MINUTES: Duration = Duration::from_secs(600);

    fn meta(lease: &Lease, before: Option<&Value>) -> Value {
        let mut service = json!({ "ID": "api", "Meta": { "team": "core" } });
        lease.mark(&mut service, before);
        service["Meta"].clone()
    }

    #[test]
    fn whose_it_is_stays_and_since_when() {
        let lease = Lease::new("vm", TEN_MINUTES);
        let first = meta(&lease, None);
        assert_eq!(
            (&first[OWNER], &first[EVERY], &first["team"]),
            (&json!("vm"), &json!("600"), &json!("core"))
        );
        assert_eq!(first[SINCE], first[RENEWED]);
        let mut before = first.clone();
        before[SINCE] = json!("2020-01-01T00:00:00Z");
        assert_eq!(meta(&lease, Some(&before))[SINCE], before[SINCE]);
        before[OWNER] = json!("another");
        assert_eq!(meta(&lease, Some(&before))[SINCE], first[SINCE]);
    }

    #[test]
    fn a_restart_writes_nothing_that_is_not_due() {
        let ago = |seconds: u64| moment(SystemTime::now() - Duration::from_secs(seconds));
        for (renewed, owner, taken) in [
            (ago(100), "vm", true),
            (ago(700), "vm", false),
            (ago(100), "other", false),
            (moment(SystemTime::now() + Duration::from_secs(3600)), "vm", false),
            ("yesterday".to_owned(), "vm", false),
        ] {
            let lease = Lease::new("vm", TEN_MINUTES);
            lease.resume(&json!({ OWNER: owner, RENEWED: renewed }));
            assert_eq!(meta(&lease, None)[RENEWED] == json!(renewed), taken, "{renewed} {owner}");
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn it_is_due_before_its_time_and_again_soon_when_that_failed() {
        let lease = Lease::new("vm", Duration::from_millis(50));
        let due_in = |lease: &Lease| lease.state.borrow().due.saturating_duration_since(Instant::now());
        assert!(due_in(&lease) <= Duration::from_millis(50));
        let before = meta(&lease, None);
        lease.due().await;
        assert!(due_in(&lease) > Duration::from_secs(29), "nobody has written it yet");
        // What is in the catalog is what is to be renewed.
        lease.resume(&before);
        assert!(lease.state.borrow().renewed.elapsed().unwrap() < Duration::from_millis(40));
        lease.written();
        assert!(due_in(&lease) <= Duration::from_millis(50));
    }

    #[test]
    fn a_renewal_is_no_news() {
        let mut one =
            json!({ "ID": "api", "CreateIndex": 1, "ModifyIndex": 7, "Meta": { RENEWED: "a", "k": "v" } });
        without_renewal(&mut one);
        assert_eq!(one, json!({ "ID": "api", "CreateIndex": 1, "Meta": { "k": "v" } }));
    }
}
