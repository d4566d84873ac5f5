//! The token that this host calls Consul with: the login that is kept from one converging to the next,
//! what is known of the token, and when the sessions of before may go.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::engine::{Engine, Purpose};
use super::error::ConvergeError;
use super::sidecar::SidecarStatus;
use crate::base::{Class, Fault, Root};
use crate::config::value::ServiceId;
use crate::config::{HostConfig, LoginConfig, PlatformConfig};
use crate::consul::{Client, Departure, Login, TokenSource, whoami};
use crate::plan::{Plan, Xds};
use crate::platform::ManagedIdentity;

/// Where the token comes from, and how it is. Without the token.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct TokenStatus {
    /// `login`, `file`, `credential`, `environment`, or `none`.
    pub source: &'static str,
    /// The auth method of the login.
    pub method: Option<String>,
    /// The id that the token is managed by in Consul, where it is known.
    pub accessor: Option<String>,
    /// When it ends, in seconds since 1970; never unless set.
    pub expires: Option<u64>,
    /// When the next login is due, in seconds since 1970.
    pub renew_at: Option<u64>,
    /// The accessors of sessions of before that still stand, because a sidecar's stream may use them.
    pub old_sessions: Vec<String>,
    /// Why the last login failed.
    pub fault: Option<Fault>,
}

/// Keeps the token usable.
#[derive(Debug)]
pub(super) struct Session {
    purpose: Purpose,
    source: &'static str,
    login: Option<Kept>,
    /// What Consul said of a token that is not of a login.
    owner: Option<(String, Option<u64>)>,
}

/// A login and how it went.
#[derive(Debug)]
struct Kept {
    login: Login,
    config: LoginConfig,
    /// The bearer token's file, where it comes from one.
    bearer: Option<PathBuf>,
    /// Why the last try failed, and what the bearer token's file was then.
    failed: Option<(Fault, Stamp)>,
    /// Why sessions of before could not be logged out.
    unretired: Option<Fault>,
    streams: Option<Streams>,
}

/// What tells one writing of a file from the next.
type Stamp = Option<(u64, i64, i64)>;

/// A stream of a sidecar: its process, and how many streams that has opened.
type Opened = (Option<u32>, u64);

/// Streams that were open when the session `accessor` began, and are not known to be of it.
#[derive(Debug)]
struct Streams {
    accessor: String,
    before: BTreeMap<ServiceId, Opened>,
}

impl Session {
    /// The token of `client`, which `host` describes, for what `owner` has. Talks to nobody.
    pub fn new(
        purpose: Purpose,
        client: &Client,
        host: &HostConfig,
        owner: Option<&str>,
        root: &Root,
    ) -> Self {
        let config = &host.consul;
        let login = config.login.as_ref().map(|login| Kept {
            login: begin(client, login, &host.platform, owner, root),
            config: login.clone(),
            bearer: login.bearer_token_file.as_ref().map(|file| root.join(file)),
            failed: None,
            unretired: None,
            streams: None,
        });
        let source = match &client.settings().token {
            TokenSource::Login(_) => "login",
            TokenSource::File(_) if config.token_file.is_none() => "credential",
            TokenSource::File(_) => "file",
            TokenSource::Given(_) | TokenSource::BadVariable(_) => "environment",
            TokenSource::Anonymous => "none",
        };
        Session { purpose, source, login, owner: None }
    }

    /// Sees to it that there is a token: takes up the session of a former process, logs in, or again
    /// when that is due. Who only looks does not log in. As long as the session of before stands, a
    /// renewal that fails is no error.
    ///
    /// # Errors
    /// `ENM-D030` nobody is logged in and this one only looks; those of a login otherwise.
    pub async fn keep(&mut self) -> Result<(), Fault> {
        let Some(kept) = &mut self.login else { return Ok(()) };
        if self.purpose == Purpose::Look {
            return match kept.login.take_up().await? {
                Some(_) => Ok(()),
                None => Err(ConvergeError::NotLoggedIn { method: kept.config.method.clone() }.into()),
            };
        }
        kept.keep().await;
        match &kept.failed {
            Some((fault, _)) if !kept.login.stands() => Err(fault.clone()),
            _ => Ok(()),
        }
    }

    /// Whether the token is one of a login.
    pub fn is_login(&self) -> bool {
        self.login.is_some()
    }

    /// The accessor of the token in force, where it is known.
    pub fn accessor(&self) -> Option<String> {
        match &self.login {
            Some(kept) => kept.login.session().map(|session| session.accessor),
            None => self.owner.as_ref().map(|(accessor, _)| accessor.clone()),
        }
    }

    /// Waits until [`Session::keep`] has something to do.
    pub async fn due(&self) {
        match &self.login {
            Some(kept) if self.purpose == Purpose::Converge => kept.login.due().await,
            _ => std::future::pending().await,
        }
    }

    /// Why there is no session that can be used, once that was found out.
    pub fn fault(&self) -> Option<Fault> {
        let kept = self.login.as_ref().filter(|kept| !kept.login.stands())?;
        kept.failed.as_ref().map(|(fault, _)| fault.clone())
    }

    /// Whether Consul answers and does not log this host in: asking again changes nothing before that
    /// is due.
    pub fn is_refused(&self) -> bool {
        self.fault().is_some_and(|fault| fault.class != Class::Unavailable)
    }

    /// What a person should know: a renewal that failed while the session before it stands, and
    /// sessions that could not be logged out.
    pub fn warnings(&self) -> Vec<Fault> {
        let Some(kept) = &self.login else { return Vec::new() };
        let failed = kept.failed.iter().filter(|_| kept.login.stands()).map(|(fault, _)| fault);
        failed.chain(&kept.unretired).cloned().collect()
    }

    /// The file whose change may make a login succeed.
    pub fn watch_path(&self) -> Option<PathBuf> {
        self.login.as_ref().and_then(|kept| kept.bearer.clone())
    }

    /// Asks Consul whose token it is, where it is not of a login.
    pub async fn meet(&mut self, client: &Client) {
        self.owner = None;
        if self.login.is_none()
            && let Ok(Some(_)) = client.settings().token.read()
            && let Ok(owner) = whoami(client).await
        {
            let expires = owner.expires.and_then(|text| OffsetDateTime::parse(&text, &Rfc3339).ok());
            let expires = expires.and_then(|moment| u64::try_from(moment.unix_timestamp()).ok());
            self.owner = Some((owner.accessor, expires));
        }
    }

    /// How it is.
    pub fn status(&self) -> TokenStatus {
        let mut status = TokenStatus { source: self.source, ..TokenStatus::default() };
        if let Some((accessor, expires)) = &self.owner {
            (status.accessor, status.expires) = (Some(accessor.clone()), *expires);
        }
        let Some(kept) = &self.login else { return status };
        status.method = Some(kept.config.method.clone());
        status.old_sessions = kept.login.old_accessors();
        status.fault = kept.failed.as_ref().map(|(fault, _)| fault.clone());
        if let Some(session) = kept.login.session() {
            status.accessor = Some(session.accessor);
            status.expires = session.expires.map(seconds);
            status.renew_at = session.renew_at.map(seconds);
        }
        status
    }

    /// Logs the sessions of before out once no stream can be of them: `streams` are those that are open
    /// now. `told` says that every sidecar has been given the token in force by now; before that,
    /// nothing is known of a stream that opens.
    pub async fn retire(&mut self, streams: &BTreeMap<ServiceId, Opened>, told: bool) {
        let Some(kept) = &mut self.login else { return };
        if kept.login.old_accessors().is_empty() {
            kept.unretired = None;
            return;
        }
        if kept.have_moved(streams, told) {
            kept.unretired = kept.login.retire_old().await.err().map(Fault::from);
        }
    }

    /// Logs out.
    ///
    /// # Errors
    /// `ENM-K070`: a session stands still.
    pub async fn end(&mut self) -> Result<(), Fault> {
        match &mut self.login {
            Some(kept) => Ok(kept.login.logout().await?),
            None => Ok(()),
        }
    }
}

impl Kept {
    /// Logs in where that is due. A try that was refused is repeated when it is due, or at once with
    /// another bearer token; one that reached nobody whenever it is asked for.
    async fn keep(&mut self) {
        let stamp = self.bearer.as_ref().and_then(stamp);
        let again = match &self.failed {
            None => self.login.session().is_none(),
            Some((fault, then)) => {
                *then != stamp || (fault.class == Class::Unavailable && !self.login.stands())
            }
        };
        if !again && !self.login.is_due() {
            return;
        }
        let before = self.login.session().map(|session| session.accessor);
        let begun = match before {
            None => self.login.login().await,
            Some(_) => self.login.renew().await,
        };
        match begun {
            Ok(session) => {
                let accessor = &session.accessor;
                match before {
                    None => tracing::info!(accessor, "the login at {:?} is in force", self.config.method),
                    Some(before) => {
                        tracing::info!(accessor, before, "logged in again at {:?}", self.config.method);
                    }
                }
                self.failed = None;
            }
            Err(error) => self.failed = Some((error.into(), stamp)),
        }
    }

    /// Whether no stream can be of a session before the one in force.
    fn have_moved(&mut self, streams: &BTreeMap<ServiceId, Opened>, told: bool) -> bool {
        let Some(session) = self.login.session() else { return false };
        self.streams = Streams::follow(self.streams.take(), &session.accessor, streams, told);
        self.streams.as_ref().is_some_and(|left| left.before.is_empty())
    }
}

impl Streams {
    /// Those of `known`, or of `now` where another session has begun, that have not ended since. Envoy
    /// sends the token when it opens a stream; one that is open goes on with the token that it was
    /// opened with until Consul ends it, which it does within five minutes of that token's end. Nothing
    /// is known before all sidecars were told the token.
    fn follow(
        known: Option<Self>,
        accessor: &str,
        now: &BTreeMap<ServiceId, Opened>,
        told: bool,
    ) -> Option<Self> {
        let known = known.filter(|known| known.accessor == accessor);
        let begun = || told.then(|| Streams { accessor: accessor.to_owned(), before: now.clone() });
        let mut known = known.or_else(begun)?;
        known.before.retain(|id, opened| now.get(id) == Some(opened));
        Some(known)
    }
}

impl Engine {
    /// Logs in again where that is due.
    pub async fn keep_login(&mut self) {
        if let Some(membership) = &mut self.adapters.drive.membership {
            // What went wrong is said by the converging that follows.
            let _ = membership.session.keep().await;
        }
    }

    /// After sidecars were told the token in force: logs out what is not used any more.
    pub(super) async fn retire_sessions(&mut self, plan: &Plan) {
        let mut driven = plan.services.values().filter(|service| service.sidecar.xds != Xds::Files);
        let told =
            driven.all(|service| self.sidecars.get(&service.id).is_some_and(|status| status.fault.is_none()));
        // An agent goes on with the token of before until a service was sent with the new one.
        if self.registered_otherwise().is_empty() {
            self.retire_where(told).await;
        }
    }

    /// The services that were registered last with another token than the one in force.
    pub(super) fn registered_otherwise(&self) -> BTreeSet<ServiceId> {
        let membership = self.adapters.drive.membership.as_ref();
        // The other ways to the catalog keep no token.
        let at_agent = membership.filter(|membership| membership.is_at_agent());
        let Some(accessor) = at_agent.and_then(|membership| membership.session.accessor()) else {
            return BTreeSet::new();
        };
        let others = self.state.registered.iter().map(|key| &key.id);
        others.filter(|id| self.state.registered_with.get(*id) != Some(&accessor)).cloned().collect()
    }

    /// Remembers which token the services of `plan` were registered with.
    pub(super) fn remember_registered(&mut self, plan: &Plan) {
        let Some(membership) = &self.adapters.drive.membership else { return };
        let Some(accessor) = membership.session.accessor() else { return };
        let done = |id: &ServiceId| membership.registered().get(id).is_some_and(|it| it.done);
        let with = &mut self.state.registered_with;
        with.extend(plan.services.keys().filter(|id| done(id)).map(|id| (id.clone(), accessor.clone())));
    }

    /// Logs out, once the servers know that the services are gone.
    pub(super) async fn end_session(&mut self, departure: Option<Departure>) -> Result<(), Fault> {
        let Some(membership) = &mut self.adapters.drive.membership else { return Ok(()) };
        if let Some(departure) = departure {
            let left = departure.wait().await?;
            if !left.is_empty() {
                return Err(ConvergeError::StillThere { services: left }.into());
            }
        }
        membership.session.end().await
    }

    /// After a look at the streams: logs out what is not used any more.
    pub async fn retire_unused_sessions(&mut self) {
        self.retire_where(false).await;
    }

    async fn retire_where(&mut self, told: bool) {
        let opened = |status: &SidecarStatus| {
            let stream = status.stream.filter(|stream| stream.connected)?;
            Some((status.pid, stream.opened))
        };
        let streams = self.sidecars.iter().filter_map(|(id, status)| Some((id.clone(), opened(status)?)));
        let streams = streams.collect();
        if let Some(membership) = &mut self.adapters.drive.membership {
            membership.session.retire(&streams, told).await;
        }
    }
}

/// The login that `config` describes, with the bearer token from where it says.
fn begin(
    client: &Client,
    config: &LoginConfig,
    platform: &PlatformConfig,
    owner: Option<&str>,
    root: &Root,
) -> Login {
    let mut login = Login::new(client, config.clone(), root);
    if let Some(identity) = &config.identity {
        let env = |name: &str| std::env::var(name).ok();
        login = login.with_bearer(Rc::new(ManagedIdentity::new(platform, identity, &env)));
    }
    match owner {
        Some(owner) => login.of_owner(owner),
        None => login,
    }
}

fn stamp(path: &PathBuf) -> Stamp {
    fs::metadata(path).ok().map(|meta| (meta.ino(), meta.mtime(), meta.mtime_nsec()))
}

fn seconds(moment: SystemTime) -> u64 {
    moment.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(streams: &[(&str, u32, u64)]) -> BTreeMap<ServiceId, Opened> {
        streams.iter().map(|(id, pid, opened)| (id.parse().unwrap(), (Some(*pid), *opened))).collect()
    }

    #[test]
    fn a_session_may_go_when_each_stream_that_was_open_has_ended() {
        let left = |streams: &Option<Streams>| streams.as_ref().map(|it| it.before.len());
        let both = open(&[("api", 1, 1), ("web", 2, 1)]);
        let streams = Streams::follow(None, "new", &both, false);
        assert_eq!(left(&streams), None, "the sidecars may not have the token yet");
        let streams = Streams::follow(streams, "new", &both, true);
        assert_eq!(left(&streams), Some(2));
        let streams = Streams::follow(streams, "new", &both, true);
        assert_eq!(left(&streams), Some(2), "nothing was opened anew");
        // One has opened another, the other's Envoy was started again.
        let streams = Streams::follow(streams, "new", &open(&[("api", 1, 2), ("web", 2, 1)]), false);
        assert_eq!(left(&streams), Some(1));
        let streams = Streams::follow(streams, "new", &open(&[("api", 1, 2), ("web", 3, 1)]), false);
        assert_eq!(left(&streams), Some(0));
        // And from the start with the next one.
        let streams = Streams::follow(streams, "newer", &open(&[("api", 1, 2)]), true);
        assert_eq!(left(&streams), Some(1));
        assert_eq!(left(&Streams::follow(streams, "newer", &open(&[]), false)), Some(0), "it is down");
        assert_eq!(left(&Streams::follow(None, "new", &open(&[]), true)), Some(0), "nobody has streams");
    }
}
