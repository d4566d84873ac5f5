//! The token of a managed identity, from the metadata endpoint or, where the platform names another one
//! in the environment, from that.
//!
//! The endpoint keeps tokens itself and hands out the same one for hours; nothing is kept here. What is
//! kept is when it may be asked again after it could not answer, so that whoever tries more often gets
//! the last answer and the endpoint its rest.

use std::cell::RefCell;
use std::time::Duration;

use rand::Rng;
use serde_json::Value;
use tokio::time::Instant;

use super::error::PlatformError;
use super::http::{Header, Http, Reply, escaped};
use crate::base::bearer::{Bearer, Secret};
use crate::base::{Fault, LocalFuture};
use crate::config::{IdentityConfig, PlatformConfig};

/// How long the endpoint, which is on the same machine, may take.
const LIMIT: Duration = Duration::from_secs(10);
/// Largest answer, in bytes: a token has 1 to 4 kB, with many groups 16.
const BODY_LIMIT: usize = 64 << 10;
/// The pause after an answer that may be another one soon; it doubles up to the last one.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// The pause while the endpoint is updated (410), which takes 70 s at most.
const UPDATE_PAUSE: Duration = Duration::from_secs(10);
/// The longest pause that the endpoint may ask for.
const LONGEST_PAUSE: Duration = Duration::from_secs(600);

/// Where tokens come from.
#[derive(Debug)]
enum Source {
    /// The machine's metadata endpoint.
    Metadata(String),
    /// `IDENTITY_ENDPOINT`, and `IDENTITY_HEADER`, which proves that the question is from here.
    Environment(String, Secret),
}

/// A managed identity.
#[derive(Debug)]
pub struct ManagedIdentity {
    source: Source,
    identity: IdentityConfig,
    http: Http,
    rest: RefCell<Rest>,
}

/// When the endpoint may be asked again, and why not before.
#[derive(Debug, Default)]
struct Rest {
    failures: u32,
    until: Option<(Instant, Fault)>,
}

/// A token, and how long it is good for.
#[derive(Debug)]
pub(super) struct Granted {
    pub token: Secret,
    pub life: Duration,
}

impl ManagedIdentity {
    /// The identity `identity`; `env` answers for the environment. Asks nobody yet.
    pub fn new(
        platform: &PlatformConfig,
        identity: &IdentityConfig,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Self {
        let set = |name: &str| env(name).filter(|value| !value.is_empty());
        let source = match (set("IDENTITY_ENDPOINT"), set("IDENTITY_HEADER")) {
            (Some(endpoint), Some(header)) => Source::Environment(endpoint, Secret::new(header)),
            _ => Source::Metadata(platform.metadata_url.trim_end_matches('/').to_owned()),
        };
        ManagedIdentity {
            source,
            identity: identity.clone(),
            http: Http { limit: LIMIT, body_limit: BODY_LIMIT, ca_file: platform.ca_file.clone() },
            rest: RefCell::default(),
        }
    }

    /// A token that is valid now.
    ///
    /// # Errors
    /// `ENM-A010` there is no such identity, `ENM-A011` not now, and those of any question. During a
    /// pause the fault before it, without asking.
    pub(super) async fn grant(&self) -> Result<Granted, Fault> {
        if let Some((until, fault)) = &self.rest.borrow().until
            && Instant::now() < *until
        {
            return Err(fault.clone());
        }
        match self.ask().await {
            Ok(granted) => {
                *self.rest.borrow_mut() = Rest::default();
                Ok(granted)
            }
            Err((error, pause)) => Err(self.pause(error, pause)),
        }
    }

    /// Asks once. With the error comes how long to wait at least.
    async fn ask(&self) -> Result<Granted, (PlatformError, Option<Duration>)> {
        let (url, headers) = self.question();
        let what = match &self.source {
            Source::Metadata(base) => format!("the identity's token at {base}"),
            Source::Environment(endpoint, _) => format!("the identity's token at {endpoint}"),
        };
        let reply = self.http.get(&url, &what, &headers).await.map_err(|error| (error, None))?;
        match reply.status {
            200 => granted(&reply.json(&what).map_err(|error| (error, None))?, &what)
                .map_err(|error| (error, None)),
            404 | 408 | 410 | 429 | 500.. => Err(self.busy(&reply)),
            status => {
                let (resource, why) = (self.identity.resource.clone(), reply.sentence());
                Err((PlatformError::NoIdentity { resource, status, why }, None))
            }
        }
    }

    fn question(&self) -> (String, Vec<Header>) {
        let mut parameters = format!("resource={}", escaped(&self.identity.resource));
        if let Some(client) = &self.identity.client_id {
            parameters.push_str(&format!("&client_id={}", escaped(client)));
        }
        match &self.source {
            Source::Metadata(base) => {
                let url =
                    format!("{base}/metadata/identity/oauth2/token?api-version=2018-02-01&{parameters}");
                (url, vec![("metadata", Secret::new("true"))])
            }
            Source::Environment(endpoint, header) => {
                let sign = if endpoint.contains('?') { '&' } else { '?' };
                let url = format!("{endpoint}{sign}api-version=2019-08-01&{parameters}");
                (url, vec![("x-identity-header", header.clone())])
            }
        }
    }

    fn busy(&self, reply: &Reply) -> (PlatformError, Option<Duration>) {
        let asked = if reply.status == 410 { Some(UPDATE_PAUSE) } else { reply.retry_after };
        let pause = asked.unwrap_or_else(|| self.next_pause()).min(LONGEST_PAUSE);
        (PlatformError::IdentityBusy { status: reply.status, pause }, Some(pause))
    }

    fn next_pause(&self) -> Duration {
        PAUSES.0.saturating_mul(1 << self.rest.borrow().failures.min(10)).min(PAUSES.1)
    }

    /// Remembers that the endpoint is not to be asked for a while: as long as it says, else longer with
    /// each failure, and with some chance in it, as hosts that started together ask together.
    fn pause(&self, error: PlatformError, asked: Option<Duration>) -> Fault {
        let pause = asked.unwrap_or_else(|| self.next_pause());
        let fault = Fault::from(error);
        let mut rest = self.rest.borrow_mut();
        rest.failures = rest.failures.saturating_add(1);
        let until = Instant::now() + pause.mul_f64(rand::rng().random_range(1.0..1.2));
        rest.until = Some((until, fault.clone()));
        fault
    }
}

impl Bearer for ManagedIdentity {
    fn fetch(&self) -> LocalFuture<'_, Result<Secret, Fault>> {
        Box::pin(async move { Ok(self.grant().await?.token) })
    }
}

/// Reads a token. Nothing of the answer is in an error.
fn granted(answer: &Value, what: &str) -> Result<Granted, PlatformError> {
    let wrong = |why: &str| PlatformError::Answer { what: what.to_owned(), why: why.to_owned() };
    let token = answer.get("access_token").and_then(Value::as_str).unwrap_or_default();
    if token.is_empty() || token.contains(|c: char| !c.is_ascii_graphic()) {
        return Err(wrong("it has no `access_token` that is one word"));
    }
    // Numbers come as text, too.
    let number = |key: &str| {
        let value = answer.get(key)?;
        value.as_u64().or_else(|| value.as_str()?.parse().ok())
    };
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |it| it.as_secs());
    let left = number("expires_in").or_else(|| Some(number("expires_on")?.saturating_sub(now)));
    Ok(Granted { token: Secret::new(token), life: Duration::from_secs(left.unwrap_or(0)) })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn identity(env: &'static [(&'static str, &'static str)]) -> ManagedIdentity {
        let config =
            IdentityConfig { resource: "api://consul".to_owned(), client_id: Some("1-2".to_owned()) };
        let env =
            |name: &str| env.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        ManagedIdentity::new(&PlatformConfig::default(), &config, &env)
    }

    #[test]
    fn the_question_has_the_form_that_each_endpoint_wants() {
        let (url, headers) = identity(&[]).question();
        assert_eq!(
            url,
            "http://169.254.169.254/metadata/identity/oauth2/token?api-version=2018-02-01&resource=api%3A%2F%2Fconsul&client_id=1-2"
        );
        assert_eq!(headers, [("metadata", Secret::new("true"))]);
        // One of the two alone is something else's.
        let half = identity(&[("IDENTITY_ENDPOINT", "http://localhost:1/token")]);
        assert!(half.question().0.starts_with("http://169.254.169.254/"));
        let both =
            identity(&[("IDENTITY_ENDPOINT", "http://localhost:1/token"), ("IDENTITY_HEADER", "proof")]);
        let (url, headers) = both.question();
        assert_eq!(
            url,
            "http://localhost:1/token?api-version=2019-08-01&resource=api%3A%2F%2Fconsul&client_id=1-2"
        );
        assert_eq!(headers, [("x-identity-header", Secret::new("proof"))]);
        assert!(!format!("{both:?}").contains("proof"));
    }

    #[test]
    fn a_token_is_read_in_both_forms_of_numbers_and_never_repeated() {
        let life = |answer: Value| granted(&answer, "x").map(|granted| granted.life.as_secs());
        assert_eq!(life(json!({ "access_token": "a.b.c", "expires_in": "3599" })).unwrap(), 3599);
        assert_eq!(
            life(json!({ "access_token": "a.b.c", "expires_in": 60, "expires_on": "1" })).unwrap(),
            60
        );
        assert_eq!(life(json!({ "access_token": "a.b.c", "expires_on": "1" })).unwrap(), 0);
        for bad in [json!({}), json!({ "access_token": 7 }), json!({ "access_token": "secret word" })] {
            let error = granted(&bad, "x").unwrap_err();
            assert!(!format!("{error} {error:?}").contains("secret"), "{error}");
        }
    }
}
