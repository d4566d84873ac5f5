//! A login at an auth method, from the first to the last token.
//!
//! A new login is made long before the old one ends, and the old token stays valid until whoever uses
//! it says that it is done with it: an Envoy whose stream has the old token in its head keeps its
//! configuration. Whatever ends, is logged out, since tokens that lie about in Consul are found by
//! others.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use rand::Rng;
use serde_json::json;
use tokio::time::Instant;

use super::bearer::BearerFile;
use super::refusal::cause;
use super::session::{Session, Store};
use crate::base::Root;
use crate::base::bearer::Bearer;
use crate::config::LoginConfig;
use crate::consul::lease::OWNER;
use crate::consul::{Client, ConsulError, Query, SessionToken, TokenSource};

/// Where sessions are kept over a restart of the daemon.
const SESSIONS: &str = "/run/enmesh/consul-token.json";
/// The pause after a login that failed; it doubles up to the last one, and half of it is chance.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// How often the clock on the wall is looked at while waiting: it runs on while a VM is paused.
const LOOK: Duration = Duration::from_secs(30);

/// Keeps this host logged in. One at a time calls what changes something.
#[derive(Debug)]
pub struct Login {
    /// Without a token.
    anonymous: Client,
    client: Client,
    token: SessionToken,
    config: LoginConfig,
    bearer: Rc<dyn Bearer>,
    /// What goes into the token's description: the configured, and whose it is.
    meta: BTreeMap<String, String>,
    store: Store,
    state: RefCell<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Whether the file has been looked at.
    loaded: bool,
    /// What a former process has left; Consul may not know it any more.
    left: Option<Session>,
    current: Option<Session>,
    /// Valid still, and to be logged out.
    old: Vec<Session>,
    /// Logins in a row that failed.
    failures: u32,
    /// When the next one is due, by both clocks.
    due: Option<(Instant, SystemTime)>,
}

impl Login {
    /// For the Consul that `client` reaches; talks to nobody. When the client's settings are those of
    /// a host file with `login`, it has the token of this login from then on.
    pub fn new(client: &Client, config: LoginConfig, root: &Root) -> Self {
        let token = match &client.settings().token {
            TokenSource::Login(token) => token.clone(),
            _ => SessionToken::default(),
        };
        let settings = client.settings();
        let scope = [&settings.partition, &settings.namespace]
            .map(|name| name.as_ref().map_or("", |name| name.as_str()).to_owned());
        let purpose = json!([settings.endpoint.to_string(), scope, config.method, config.meta]).to_string();
        Login {
            anonymous: client.with_token(TokenSource::Anonymous),
            client: client.with_token(TokenSource::Login(token.clone())),
            token,
            bearer: Rc::new(BearerFile::new(root, config.bearer_token_file.as_deref())),
            meta: config.meta.clone(),
            config,
            store: Store::new(root.join(SESSIONS), purpose),
            state: RefCell::default(),
        }
    }

    /// The same, with the bearer token from elsewhere than a file.
    #[must_use]
    pub fn with_bearer(self, bearer: Rc<dyn Bearer>) -> Self {
        Login { bearer, ..self }
    }

    /// The same, for what `owner` has: his tokens are found by this when he is gone.
    #[must_use]
    pub fn of_owner(mut self, owner: &str) -> Self {
        self.meta.insert(OWNER.to_owned(), owner.to_owned());
        self
    }

    /// The same, keeping its sessions in another file than the daemon of this host.
    #[must_use]
    pub fn kept_at(self, file: PathBuf) -> Self {
        let store = Store::new(file, self.store.purpose().to_owned());
        Login { store, ..self }
    }

    /// A client that calls with the token in force, also after it was renewed.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The session in force.
    pub fn session(&self) -> Option<Session> {
        self.state.borrow().current.clone()
    }

    /// Whether the session in force can be used: it has not ended, and Consul has not said that it
    /// does not know its token.
    pub fn stands(&self) -> bool {
        let state = self.state.borrow();
        let lives = state.current.as_ref().is_some_and(|session| session.lives(SystemTime::now()));
        lives && !self.token.is_doubted()
    }

    /// The accessors of the sessions of before, which are to be logged out by [`Login::retire_old`].
    pub fn old_accessors(&self) -> Vec<String> {
        self.state.borrow().old.iter().map(|session| session.accessor.clone()).collect()
    }

    /// The session in force, or the one that a former process has left when Consul knows it still. For
    /// who only looks: nobody is logged in, and no file is written.
    ///
    /// # Errors
    /// `ENM-K072` the file cannot be read, and those of any call.
    pub async fn take_up(&self) -> Result<Option<Session>, ConsulError> {
        match self.session() {
            Some(session) => Ok(Some(session)),
            None => self.resume().await,
        }
    }

    /// Sessions that are to be logged out by [`Login::retire_old`].
    pub fn old_sessions(&self) -> usize {
        self.state.borrow().old.len()
    }

    /// The session in force; the one that a former process has left, when Consul knows it still; a
    /// new one. After a failure [`Login::due`] says when to try again.
    ///
    /// # Errors
    /// `ENM-K065` the bearer token cannot be read; `ENM-K066` no binding rule gives it rights;
    /// `ENM-K067` Consul does not accept it; `ENM-K068` there is no such auth method; `ENM-K071`
    /// there are no ACLs; `ENM-K072` the session cannot be kept; and those of any call.
    pub async fn login(&self) -> Result<Session, ConsulError> {
        if let Some(session) = self.session() {
            return Ok(session);
        }
        let resumed = self.resume().await;
        match resumed {
            Ok(Some(session)) => Ok(session),
            Ok(None) => self.renew().await,
            Err(error) => {
                self.failed();
                Err(error)
            }
        }
    }

    /// A new session, whatever there is: when one is [`Login::due`], or when Consul does not know the
    /// token any more (`ENM-K022`). The session before is valid until [`Login::retire_old`]; when this
    /// fails, it stays in force.
    ///
    /// # Errors
    /// As [`Login::login`].
    pub async fn renew(&self) -> Result<Session, ConsulError> {
        let begun = match self.load() {
            Ok(()) => self.begin().await,
            Err(error) => Err(error),
        };
        match begun {
            Ok(session) => {
                self.token.begin(session.token());
                let mut state = self.state.borrow_mut();
                let before = [state.left.take(), state.current.replace(session.clone())];
                state.old.extend(before.into_iter().flatten());
                state.failures = 0;
                state.due = session.renew_at.map(at);
                Ok(session)
            }
            Err(error) => {
                self.failed();
                Err(error)
            }
        }
    }

    /// Waits until [`Login::renew`] is to be called: before the session ends, when Consul does not know
    /// its token, or after a failure. Never, when the session has no end. It may be dropped midway.
    pub async fn due(&self) {
        loop {
            let doubted = self.token.doubted();
            match self.left() {
                Some(left) if left.is_zero() => return,
                Some(left) => drop(tokio::time::timeout(left.min(LOOK), doubted).await),
                None => doubted.await,
            }
        }
    }

    /// Whether [`Login::due`] has come.
    pub fn is_due(&self) -> bool {
        self.left().is_some_and(|left| left.is_zero())
    }

    /// How long until [`Login::due`]. After a failure, only the pause after it counts.
    fn left(&self) -> Option<Duration> {
        let state = self.state.borrow();
        let planned = state.due.map(|(instant, wall)| {
            let left = wall.duration_since(SystemTime::now()).unwrap_or_default();
            left.min(instant.saturating_duration_since(Instant::now()))
        });
        let doubted = self.token.doubted_for().filter(|_| state.failures == 0);
        planned.into_iter().chain(doubted).min()
    }

    /// Logs out the sessions of before: once nobody uses their tokens, Envoy's streams among them.
    ///
    /// # Errors
    /// `ENM-K070` one was not logged out; it is tried again by the next call.
    pub async fn retire_old(&self) -> Result<(), ConsulError> {
        self.load()?;
        let old = self.state.borrow().old.clone();
        let mut result = Ok(());
        for session in old {
            match self.end(&session).await {
                Ok(()) => self.state.borrow_mut().old.retain(|it| *it != session),
                Err(error) => result = Err(error),
            }
        }
        self.save(None)?;
        result
    }

    /// Logs out everything that this host has logged in, a former process too, and removes the file.
    ///
    /// # Errors
    /// `ENM-K070` a session was not logged out; it stays in the file and can be tried again.
    pub async fn logout(&self) -> Result<(), ConsulError> {
        self.load()?;
        {
            let mut state = self.state.borrow_mut();
            let last = [state.left.take(), state.current.take()];
            state.old.extend(last.into_iter().flatten());
            state.due = None;
        }
        self.token.end();
        self.retire_old().await
    }

    /// Takes up what a former process has left, if Consul knows it still.
    async fn resume(&self) -> Result<Option<Session>, ConsulError> {
        self.load()?;
        let left = self.state.borrow().left.clone();
        let Some(session) = left else { return Ok(None) };
        let client = self.client.with_token(TokenSource::Given(session.token()));
        match client.get(&Query::new("/v1/acl/token/self")).await {
            Ok(_) => {
                self.token.resume(session.token());
                let mut state = self.state.borrow_mut();
                state.left = None;
                state.current = Some(session.clone());
                state.failures = 0;
                state.due = session.renew_at.map(at);
                Ok(Some(session))
            }
            Err(ConsulError::UnknownToken { .. }) => {
                self.state.borrow_mut().left = None;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// What the file has, once.
    fn load(&self) -> Result<(), ConsulError> {
        if self.state.borrow().loaded {
            return Ok(());
        }
        let kept = self.store.load(SystemTime::now())?;
        let mut state = self.state.borrow_mut();
        state.loaded = true;
        state.left = kept.current;
        state.old = kept.old;
        Ok(())
    }

    async fn begin(&self) -> Result<Session, ConsulError> {
        let bearer =
            self.bearer.fetch().await.map_err(|fault| ConsulError::Bearer { fault: Box::new(fault) })?;
        let asked = SystemTime::now();
        let body = json!({
            "AuthMethod": self.config.method,
            "BearerToken": bearer.expose(),
            "Meta": self.meta,
        });
        let answer = self.anonymous.post(&Query::new("/v1/acl/login"), Some(&body)).await;
        let answer = answer.map_err(|error| cause(error, &self.config.method))?;
        let session = Session::of(&answer.body, asked, rand::rng().random_range(0.0..1.0))?;
        let usable = match self.save(Some(&session)) {
            Ok(()) => self.usable(&session).await,
            Err(error) => Err(error),
        };
        if let Err(error) = usable {
            // Nobody will ever use it. When it cannot be logged out either, it ends by itself.
            let _ = self.end(&session).await;
            let _ = self.save(None);
            return Err(error);
        }
        Ok(session)
    }

    /// Waits until the servers know the token: any of them may be asked next.
    async fn usable(&self, session: &Session) -> Result<(), ConsulError> {
        let token = SessionToken::default();
        token.begin(session.token());
        let client = self.client.with_token(TokenSource::Login(token));
        // `stale` lets any server answer, also one that is behind.
        client.get(&Query::new("/v1/acl/token/self").with("stale", "")).await.map(|_| ())
    }

    /// Logs one session out; one that is gone is fine.
    async fn end(&self, session: &Session) -> Result<(), ConsulError> {
        let client = self.client.with_token(TokenSource::Given(session.token()));
        match client.post(&Query::new("/v1/acl/logout"), None).await {
            // A token that is gone is unknown up to Consul 1.14, and not permitted (401) from 1.15.
            Ok(_) | Err(ConsulError::UnknownToken { .. } | ConsulError::Denied { .. }) => Ok(()),
            Err(error) => {
                Err(ConsulError::Logout { accessor: session.accessor.clone(), why: error.to_string() })
            }
        }
    }

    /// Keeps all sessions, with `new` as the one to go on with.
    fn save(&self, new: Option<&Session>) -> Result<(), ConsulError> {
        let state = self.state.borrow();
        let now = SystemTime::now();
        let all = state.old.iter().chain(&state.left).chain(&state.current).chain(new);
        self.store.save(all.filter(|session| session.lives(now)))
    }

    fn failed(&self) {
        let mut state = self.state.borrow_mut();
        let pause = PAUSES.0.saturating_mul(1 << state.failures.min(10)).min(PAUSES.1);
        let pause = pause.mul_f64(rand::rng().random_range(0.5..1.0));
        state.failures = state.failures.saturating_add(1);
        state.due = Some((Instant::now() + pause, SystemTime::now() + pause));
    }
}

/// A moment by both clocks.
fn at(wall: SystemTime) -> (Instant, SystemTime) {
    (Instant::now() + wall.duration_since(SystemTime::now()).unwrap_or_default(), wall)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Explain;
    use crate::consul::http::fake::{Asked, FakeConsul, settings};

    fn said(status: u16, body: &str) -> Vec<u8> {
        format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into()
    }

    const GIVEN: &str = r#"{ "AccessorID": "new", "SecretID": "secret" }"#;

    /// A login at a server that answers one call after the other.
    async fn login(answers: Vec<Vec<u8>>, folder: &tempfile::TempDir) -> (Login, Asked) {
        let (address, asked) = FakeConsul { answers, hangs: false }.listen(None).await;
        std::fs::write(folder.path().join("jwt"), "the.bearer.token").unwrap();
        let config = LoginConfig {
            method: "vm".to_owned(),
            bearer_token_file: Some(PathBuf::from("/jwt")),
            identity: None,
            meta: BTreeMap::new(),
        };
        let client = Client::new(settings(&format!("http://{address}"))).unwrap();
        (Login::new(&client, config, &Root::new(folder.path())), asked)
    }

    fn paths(asked: &Asked) -> Vec<String> {
        asked.borrow().iter().map(|head| head.split(' ').nth(1).unwrap().to_owned()).collect()
    }

    async fn local(work: impl Future<Output = ()>) {
        tokio::task::LocalSet::new().run_until(work).await;
    }

    /// A real Consul of one server is never behind.
    #[tokio::test(flavor = "current_thread")]
    async fn a_token_is_in_force_once_a_server_that_is_behind_knows_it() {
        local(async {
            let folder = tempfile::tempdir().unwrap();
            let unknown = said(403, "ACL not found");
            let answers = vec![said(200, GIVEN), unknown.clone(), unknown, said(200, "{}")];
            let (login, asked) = login(answers, &folder).await;
            let session = login.login().await.unwrap();
            assert_eq!((session.accessor.as_str(), session.expires), ("new", None));
            let own = "/v1/acl/token/self?stale=";
            assert_eq!(paths(&asked), ["/v1/acl/login", own, own, own]);
            assert!(!asked.borrow()[0].contains("x-consul-token"), "a login needs no token");
            assert!(asked.borrow()[3].contains("x-consul-token: secret"));
            assert!(!format!("{login:?}").contains("secret"));
        })
        .await;
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_token_that_cannot_be_used_is_logged_out_and_the_old_one_stays() {
        local(async {
            let folder = tempfile::tempdir().unwrap();
            let denied = said(403, "Permission denied");
            let first = GIVEN.replace("new", "old");
            let answers = vec![said(200, &first), said(200, "{}"), said(200, GIVEN), denied, said(200, "")];
            let (login, asked) = login(answers, &folder).await;
            login.login().await.unwrap();
            assert_eq!(login.renew().await.unwrap_err().code(), "ENM-K021");
            assert_eq!(paths(&asked).last().unwrap(), "/v1/acl/logout");
            assert_eq!(login.session().unwrap().accessor, "old");
            let kept = login.store.load(SystemTime::now()).unwrap();
            assert_eq!((kept.current, kept.old), (login.session(), Vec::new()));
        })
        .await;
    }

    #[tokio::test(flavor = "current_thread")]
    async fn failures_are_tried_again_ever_more_seldom() {
        local(async {
            let folder = tempfile::tempdir().unwrap();
            let (login, _) = login(vec![said(403, "Permission denied")], &folder).await;
            assert!(tokio::time::timeout(Duration::from_millis(20), login.due()).await.is_err());
            for longest in [1, 2, 4, 8, 16, 32, 60, 60, 60] {
                assert_eq!(login.login().await.unwrap_err().code(), "ENM-K066");
                let (instant, _) = login.state.borrow().due.unwrap();
                let pause = instant.saturating_duration_since(Instant::now()).as_secs_f64();
                assert!((f64::from(longest) / 2.0 - 0.5..=f64::from(longest)).contains(&pause), "{pause}");
            }
            // By either clock.
            let (now, wall) = (Instant::now(), SystemTime::now());
            let hour = Duration::from_secs(3600);
            for due in [(now + hour, wall), (now, wall + hour)] {
                login.state.borrow_mut().due = Some(due);
                tokio::time::timeout(Duration::from_secs(5), login.due()).await.unwrap();
            }
        })
        .await;
    }
}
