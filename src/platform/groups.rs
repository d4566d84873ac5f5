//! Container groups, as the management API tells of them.
//!
//! A list has every group with what was deployed, and not how it is now: that comes with one group
//! asked for by itself (seen on all versions of the API; the list's `instanceView` is empty).

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use hyper::Uri;
use serde_json::Value;
use tokio::time::Instant;

use super::error::PlatformError;
use super::http::{Http, Reply, origin};
use super::identity::ManagedIdentity;
use crate::base::Fault;
use crate::base::bearer::Secret;
use crate::config::{IdentityConfig, PlatformConfig};

/// The version of the API whose shapes are read here.
const VERSION: &str = "2023-05-01";
/// How long one question may take.
const LIMIT: Duration = Duration::from_secs(30);
/// Largest page, in bytes: a group has some kilobytes.
const BODY_LIMIT: usize = 32 << 20;
/// How many pages a list may have.
const PAGES: usize = 1000;
/// How often a question is asked that failed and may succeed.
const ATTEMPTS: u32 = 4;
/// The pause after the first failure; it doubles.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause that is waited for here; who is told to wait for longer comes back another time.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// A token is not used any more so long before it ends.
const MARGIN: Duration = Duration::from_secs(300);

/// How a group is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Life {
    /// It runs, will run, or is being repaired: in the platform's words.
    There(String),
    /// It has ended and does not come back by itself: in the platform's words.
    Ended(String),
}

/// A container group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Its resource id, in lower case, since the platform tells them in any.
    pub id: String,
    /// How it is, as far as whoever told of it knows.
    pub life: Life,
    /// The address that others reach it at, and whether that is a public one.
    pub address: Option<(IpAddr, bool)>,
}

/// The management API.
#[derive(Debug)]
pub struct Management {
    url: String,
    identity: ManagedIdentity,
    http: Http,
    token: RefCell<Option<(Secret, Instant)>>,
    asked: Cell<u64>,
}

impl Management {
    /// The API that `platform` names; `env` answers for the environment. Asks nobody yet.
    pub fn new(platform: &PlatformConfig, env: &dyn Fn(&str) -> Option<String>) -> Self {
        let url = platform.management_url.trim_end_matches('/').to_owned();
        let resource = format!("{url}/");
        let identity = IdentityConfig { resource, client_id: platform.client_id.clone() };
        Management {
            url,
            identity: ManagedIdentity::new(platform, &identity, env),
            http: Http { limit: LIMIT, body_limit: BODY_LIMIT, ca_file: platform.ca_file.clone() },
            token: RefCell::default(),
            asked: Cell::new(0),
        }
    }

    /// How many questions were sent so far.
    pub fn asked(&self) -> u64 {
        self.asked.get()
    }

    /// All groups of a subscription or resource group.
    ///
    /// # Errors
    /// See [`PlatformError`]. A list that is not whole is none.
    pub async fn list(&self, scope: &str) -> Result<Vec<Group>, Fault> {
        let providers = "providers/Microsoft.ContainerInstance/containerGroups";
        let mut next = Some(format!("{}{scope}/{providers}?api-version={VERSION}", self.url));
        let (mut groups, mut seen) = (Vec::new(), BTreeSet::new());
        while let Some(url) = next {
            let leads = |why| PlatformError::Page { scope: scope.to_owned(), link: url.clone(), why };
            if !self.is_own(&url) {
                return Err(leads("it is of another server").into());
            }
            if !seen.insert(url.clone()) || seen.len() > PAGES {
                return Err(leads("it was there already, or there is no end").into());
            }
            let what = format!("the list of container groups in {scope}");
            let page = match self.ask(&url, &what).await? {
                Some(page) => page,
                None => return Err(missing(what).into()),
            };
            let listed = page.get("value").and_then(Value::as_array);
            let listed = listed.ok_or_else(|| unusable(&what, "it has no list `value`"))?;
            for group in listed {
                groups.push(group_of(group).ok_or_else(|| unusable(&what, "a group in it has no `id`"))?);
            }
            next = page
                .get("nextLink")
                .and_then(Value::as_str)
                .filter(|link| !link.is_empty())
                .map(str::to_owned);
        }
        Ok(groups)
    }

    /// One group, with how it is now; `None` where there is none.
    ///
    /// # Errors
    /// See [`PlatformError`].
    pub async fn look(&self, id: &str) -> Result<Option<Group>, Fault> {
        let what = format!("the container group {id}");
        let found = self.ask(&format!("{}{id}?api-version={VERSION}", self.url), &what).await?;
        let group = found.map(|found| group_of(&found).ok_or_else(|| unusable(&what, "it has no `id`")));
        Ok(group.transpose()?)
    }

    /// Whether `url` is of this API: the token is shown to nobody else.
    fn is_own(&self, url: &str) -> bool {
        let of =
            |text: &str| text.parse::<Uri>().ok().as_ref().and_then(origin).map(|it| it.to_ascii_lowercase());
        of(url).is_some() && of(url) == of(&self.url)
    }

    /// The body of the answer; `None` for what is not there. Waits and asks again where that may help.
    async fn ask(&self, url: &str, what: &str) -> Result<Option<Value>, Fault> {
        let (mut attempt, mut pause) = (1, FIRST_PAUSE);
        loop {
            let token = self.token().await?;
            let header = ("authorization", Secret::new(format!("Bearer {}", token.expose())));
            self.asked.set(self.asked.get() + 1);
            let outcome = self.http.get(url, what, &[header]).await;
            let (error, wait) = match outcome {
                Ok(reply) => match judge(&reply, what) {
                    Ok(true) => return Ok(Some(reply.json(what)?)),
                    Ok(false) => return Ok(None),
                    Err(error) => {
                        // It may have been taken back; another one is asked for once.
                        if reply.status == 401 {
                            self.token.borrow_mut().take();
                        }
                        (error, reply.retry_after)
                    }
                },
                Err(error) => (error, None),
            };
            let transient = match &error {
                PlatformError::Forbidden { status, .. } => *status == 401 && attempt == 1,
                PlatformError::Throttled { .. }
                | PlatformError::Failed { .. }
                | PlatformError::Timeout { .. }
                | PlatformError::Broken { .. } => true,
                _ => false,
            };
            let wait = wait.unwrap_or(pause);
            if !transient || attempt == ATTEMPTS || wait > LONGEST_PAUSE {
                return Err(error.into());
            }
            tokio::time::sleep(wait).await;
            (attempt, pause) = (attempt + 1, pause * 2);
        }
    }

    async fn token(&self) -> Result<Secret, Fault> {
        if let Some((token, until)) = &*self.token.borrow()
            && Instant::now() < *until
        {
            return Ok(token.clone());
        }
        let granted = self.identity.grant().await?;
        let until = Instant::now() + granted.life.saturating_sub(MARGIN);
        *self.token.borrow_mut() = Some((granted.token.clone(), until));
        Ok(granted.token)
    }
}

/// Whether there is something; what is not there is no error.
fn judge(reply: &Reply, what: &str) -> Result<bool, PlatformError> {
    let (what, why, status) = (what.to_owned(), reply.sentence(), reply.status);
    match status {
        200 => Ok(true),
        404 => Ok(false),
        401 | 403 => Err(PlatformError::Forbidden { what, status, why }),
        429 => Err(PlatformError::Throttled { what, after: reply.retry_after.unwrap_or(FIRST_PAUSE) }),
        500.. | 408 => Err(PlatformError::Failed { what, status, why }),
        _ => Err(PlatformError::Answer { what, why: format!("its status is {status}: {why}") }),
    }
}

fn missing(what: String) -> PlatformError {
    PlatformError::Answer { what, why: "there is no such scope".to_owned() }
}

fn unusable(what: &str, why: &str) -> PlatformError {
    PlatformError::Answer { what: what.to_owned(), why: why.to_owned() }
}

fn group_of(value: &Value) -> Option<Group> {
    let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str);
    let address = text("/properties/ipAddress/ip").and_then(|ip| ip.parse().ok());
    let public = text("/properties/ipAddress/type").is_some_and(|kind| kind.eq_ignore_ascii_case("public"));
    Some(Group {
        id: text("/id")?.to_ascii_lowercase(),
        life: life(
            text("/properties/instanceView/state"),
            text("/properties/provisioningState"),
            text("/properties/restartPolicy"),
        ),
        address: address.map(|ip| (ip, public)),
    })
}

/// Only what has ended and is not started again counts as ended. Whoever is pending, unhealthy, being
/// repaired or in a state that is not known here, is there.
fn life(state: Option<&str>, provisioning: Option<&str>, policy: Option<&str>) -> Life {
    let state = state.filter(|state| !state.is_empty());
    // It comes before the state, which may be that of before.
    let settled =
        provisioning.is_none_or(|it| ["succeeded", "failed"].contains(&it.to_ascii_lowercase().as_str()));
    let is = |wanted: &str| state.is_some_and(|state| state.eq_ignore_ascii_case(wanted));
    let policy = policy.unwrap_or_default().to_ascii_lowercase();
    let ended = is("stopped")
        || (is("succeeded") && ["never", "onfailure"].contains(&policy.as_str()))
        || (is("failed") && policy == "never");
    let word = state.or(provisioning).unwrap_or("unknown").to_owned();
    if ended && settled { Life::Ended(word) } else { Life::There(word) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_does_not_come_back_has_ended() {
        let ended = |state, provisioning, policy| {
            matches!(life(Some(state), Some(provisioning), Some(policy)), Life::Ended(_))
        };
        assert!(ended("Stopped", "Succeeded", "Always"));
        assert!(ended("Succeeded", "Succeeded", "Never") && ended("Succeeded", "Succeeded", "OnFailure"));
        assert!(!ended("Succeeded", "Succeeded", "Always"));
        assert!(ended("Failed", "Succeeded", "Never") && !ended("Failed", "Succeeded", "OnFailure"));
        for state in ["Running", "Pending", "Unhealthy", "Repairing", "Whatever", ""] {
            assert!(!ended(state, "Succeeded", "Never"), "{state}");
        }
        for provisioning in ["Pending", "Creating", "Repairing", "Unhealthy", "Updating"] {
            assert!(!ended("Stopped", provisioning, "Never"), "{provisioning}");
        }
        // As in a list.
        assert_eq!(life(None, Some("Succeeded"), Some("Never")), Life::There("Succeeded".to_owned()));
        assert_eq!(life(None, None, None), Life::There("unknown".to_owned()));
    }

    #[test]
    fn the_token_is_shown_to_the_api_alone() {
        let api = Management::new(&PlatformConfig::default(), &|_| None);
        assert!(api.is_own("https://management.azure.com/subscriptions/1?$skiptoken=2"));
        assert!(api.is_own("https://MANAGEMENT.azure.com/x"));
        for other in [
            "http://management.azure.com/x",
            "https://management.azure.com:8443/x",
            "https://management.azure.com.evil.example/x",
            "https://management.azure.com@evil.example/x",
            "/x",
            "",
        ] {
            assert!(!api.is_own(other), "{other}");
        }
    }
}
