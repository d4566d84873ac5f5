//! One reaper at a time: a session of Consul's that holds a key. A reaper that dies loses it when the
//! session lapses, by the servers' clock.

use std::time::Duration;

use serde_json::{Value, json};

use super::Asked;
use super::holdings::text;
use crate::base::Fault;
use crate::consul::{ConsulError, Query, segment};

/// The key.
const KEY: &str = "enmesh/reap/lock";
/// How long a session outlives its last renewal; Consul may take up to twice that.
const LIFE: &str = "30s";
/// How often it is renewed.
pub(super) const RENEWED_EVERY: Duration = Duration::from_secs(10);
/// How long nobody gets the key after its holder died. What a dead one has under way does nothing
/// without it, so this need not be long.
const DELAY: &str = "1s";

/// The lead.
#[derive(Debug)]
pub(super) struct Lock {
    session: String,
}

/// Takes the lead, or says who has it.
///
/// # Errors
/// Consul does not answer, or the token lacks the right to sessions or to the key.
pub(super) async fn take(consul: &Asked, name: &str) -> Result<Result<Lock, String>, Fault> {
    let wanted = json!({ "Name": "enmesh reap", "TTL": LIFE, "Behavior": "release", "LockDelay": DELAY });
    let made = consul.put(&Query::new("/v1/session/create"), &wanted).await?;
    let session = text(&made, "ID").unwrap_or_default().to_owned();
    let lock = Lock { session };
    let query = Query::new(format!("/v1/kv/{KEY}")).with("acquire", lock.session.as_str());
    match consul.put(&query, &json!(name)).await {
        Ok(Value::Bool(true)) => Ok(Ok(lock)),
        Ok(_) => {
            lock.end(consul).await;
            let held = consul.get(&Query::new(format!("/v1/kv/{KEY}")).with("raw", "true")).await;
            let name = held.ok().and_then(|held| held.as_str().map(str::to_owned));
            Ok(Err(name.unwrap_or_else(|| "another one".to_owned())))
        }
        Err(error) => {
            lock.end(consul).await;
            Err(error.into())
        }
    }
}

impl Lock {
    /// Says that its holder is there. Returns whether it is his still, as far as anybody knows.
    pub async fn renew(&self, consul: &Asked) -> bool {
        let query = Query::new(format!("/v1/session/renew/{}", segment(&self.session)));
        !matches!(consul.put(&query, &Value::Null).await, Err(ConsulError::Missing { .. }))
    }

    /// Gives it up.
    pub async fn release(self, consul: &Asked) {
        let query = Query::new(format!("/v1/kv/{KEY}")).with("release", self.session.as_str());
        let _ = consul.put(&query, &json!("nobody")).await;
        self.end(consul).await;
    }

    /// The step of a transaction that fails unless the lock is held.
    pub fn held(&self) -> Value {
        json!({ "KV": { "Verb": "check-session", "Key": KEY, "Session": self.session } })
    }

    /// Whatever goes wrong here ends with the session's life.
    async fn end(&self, consul: &Asked) {
        let query = Query::new(format!("/v1/session/destroy/{}", segment(&self.session)));
        let _ = consul.put(&query, &Value::Null).await;
    }
}
