//! One login: its token, how long it lives, and the file that keeps it over a restart.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::base::files::{self, Access};
use crate::consul::{ConsulError, Token};

/// A new login is made this long before the old one ends, at the latest.
const MARGIN: Duration = Duration::from_secs(30);
/// Largest session file, in bytes: some hundred sessions.
const FILE_LIMIT: u64 = 64 << 10;

/// A login that stands.
#[derive(Clone, PartialEq, Eq)]
pub struct Session {
    /// The id that the token is managed by, which is no secret.
    pub accessor: String,
    /// When it ends, by this host's clock; never unless set.
    pub expires: Option<SystemTime>,
    /// When the next login is due, by this host's clock; never unless set.
    pub renew_at: Option<SystemTime>,
    secret: Token,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Session({})", self.accessor)
    }
}

impl Session {
    /// From the answer to a login that was asked for at `asked`. Only the distance between Consul's
    /// two times counts, since its clock is not this host's. `chance` is from 0 to 1.
    pub(super) fn of(answer: &Value, asked: SystemTime, chance: f64) -> Result<Self, ConsulError> {
        let missing = |key: &str| ConsulError::Answer {
            what: "POST /v1/acl/login".to_owned(),
            why: format!("it has no `{key}` that can be used"),
        };
        let text = |key: &str| answer.get(key).and_then(Value::as_str);
        let moment = |key: &str| {
            let moment = text(key).map(|text| OffsetDateTime::parse(text, &Rfc3339)).transpose();
            moment.map_err(|_| missing(key))
        };
        let secret = text("SecretID").and_then(|text| Token::new(text).ok().flatten());
        let life = match moment("ExpirationTime")? {
            None => None,
            Some(end) => {
                let start = moment("CreateTime")?.ok_or_else(|| missing("CreateTime"))?;
                Some((end - start).try_into().map_err(|_| missing("ExpirationTime"))?)
            }
        };
        Ok(Session {
            accessor: text("AccessorID").ok_or_else(|| missing("AccessorID"))?.to_owned(),
            expires: life.map(|life| asked + life),
            renew_at: life.map(|life| asked + renewal(life, chance)),
            secret: secret.ok_or_else(|| missing("SecretID"))?,
        })
    }

    pub(super) fn token(&self) -> Token {
        self.secret.clone()
    }

    /// Whether it has not ended by `now`.
    pub(super) fn lives(&self, now: SystemTime) -> bool {
        self.expires.is_none_or(|end| now < end)
    }
}

/// How long after a login the next one is due: after about two thirds of its `life`, and at different
/// times on hosts that were started together.
fn renewal(life: Duration, chance: f64) -> Duration {
    let latest = life.saturating_sub(MARGIN).max(life / 2);
    life.mul_f64(0.6 + 0.1 * chance).min(latest)
}

/// The sessions of this host, in a file that is root's alone. It lies on a file system in memory and
/// so goes with the boot, as Envoy's streams do.
#[derive(Debug)]
pub(super) struct Store {
    path: PathBuf,
    /// What the logins are for; those of another address or method are not taken up.
    purpose: String,
}

#[derive(Serialize, Deserialize)]
struct Document {
    purpose: String,
    /// The last one is in force.
    sessions: Vec<Stored>,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    accessor: String,
    secret: String,
    /// Seconds since 1970.
    expires: Option<u64>,
    renew_at: Option<u64>,
}

/// What a file holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Kept {
    /// The one to go on with.
    pub current: Option<Session>,
    /// Those to be logged out.
    pub old: Vec<Session>,
}

impl Store {
    pub fn new(path: PathBuf, purpose: String) -> Self {
        Store { path, purpose }
    }

    /// What the logins are for.
    pub fn purpose(&self) -> &str {
        &self.purpose
    }

    /// What was kept and has not ended. A file that cannot be understood counts as none: the tokens
    /// in it end by themselves.
    ///
    /// # Errors
    /// `ENM-K072` it cannot be read.
    pub fn load(&self, now: SystemTime) -> Result<Kept, ConsulError> {
        let bytes = files::read(&self.path, FILE_LIMIT).map_err(|fault| self.wrong(fault.message))?;
        let document = bytes.and_then(|bytes| serde_json::from_slice::<Document>(&bytes).ok());
        let Some(document) = document else { return Ok(Kept::default()) };
        let ours = document.purpose == self.purpose;
        let sessions = document.sessions.into_iter().filter_map(Stored::session);
        let mut old: Vec<Session> = sessions.filter(|session| session.lives(now)).collect();
        let current = if ours { old.pop() } else { None };
        Ok(Kept { current, old })
    }

    /// Keeps `sessions`, the last one of which is in force; no file for none.
    ///
    /// # Errors
    /// `ENM-K072` it cannot be written.
    pub fn save<'s>(&self, sessions: impl IntoIterator<Item = &'s Session>) -> Result<(), ConsulError> {
        let sessions: Vec<Stored> = sessions.into_iter().map(Stored::of).collect();
        let done = if sessions.is_empty() {
            files::remove(&self.path)
        } else {
            let document = Document { purpose: self.purpose.clone(), sessions };
            let text = serde_json::to_vec(&document).map_err(|error| self.wrong(error.to_string()))?;
            let folder = self.path.parent().unwrap_or(Path::new("/"));
            // Somebody else's business is how it is set; without it there is nowhere to write.
            let made = if folder.is_dir() { Ok(()) } else { files::folder(folder, Access::mode(0o755)) };
            made.and_then(|()| files::write(&self.path, &text, Access::mode(0o600)))
        };
        done.map(|_| ()).map_err(|fault| self.wrong(fault.message))
    }

    fn wrong(&self, why: String) -> ConsulError {
        ConsulError::SessionFile { path: self.path.clone(), why }
    }
}

impl Stored {
    fn of(session: &Session) -> Self {
        let seconds = |moment: SystemTime| moment.duration_since(UNIX_EPOCH).map_or(0, |it| it.as_secs());
        Stored {
            accessor: session.accessor.clone(),
            secret: session.secret.secret().to_owned(),
            expires: session.expires.map(seconds),
            renew_at: session.renew_at.map(seconds),
        }
    }

    fn session(self) -> Option<Session> {
        let moment = |seconds: Option<u64>| match seconds {
            None => Some(None),
            Some(seconds) => UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).map(Some),
        };
        Some(Session {
            accessor: self.accessor,
            secret: Token::new(&self.secret).ok()??,
            expires: moment(self.expires)?,
            renew_at: moment(self.renew_at)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn session(name: &str, expires: Option<u64>) -> Session {
        let moment = expires.map(|seconds| UNIX_EPOCH + Duration::from_secs(seconds));
        let secret = Token::new(&format!("secret-of-{name}")).unwrap().unwrap();
        Session { accessor: name.to_owned(), expires: moment, renew_at: moment, secret }
    }

    #[test]
    fn a_login_is_renewed_in_time_whatever_its_life() {
        for (life, earliest, latest) in [(86_400, 51_840, 60_480), (60, 30, 30), (100, 60, 70), (40, 20, 20)]
        {
            for chance in [0.0, 0.3, 1.0] {
                let after = renewal(Duration::from_secs(life), chance).as_secs_f64().round() as u64;
                assert!((earliest..=latest).contains(&after), "{life} s: after {after} s");
            }
        }
    }

    #[test]
    fn only_the_distance_between_consul_s_times_counts() {
        let asked = UNIX_EPOCH + Duration::from_secs(1000);
        let mut answer = json!({
            "AccessorID": "a", "SecretID": "s", "CreateTime": "2031-01-01T00:00:00.5Z",
            "ExpirationTime": "2031-01-01T01:00:00.5Z",
        });
        let session = Session::of(&answer, asked, 0.0).unwrap();
        assert_eq!(session.expires, Some(asked + Duration::from_secs(3600)));
        assert_eq!(session.renew_at, Some(asked + Duration::from_secs(2160)));
        answer["ExpirationTime"] = json!("2030-01-01T01:00:00Z");
        assert!(Session::of(&answer, asked, 0.0).is_err(), "it ends before it begins");
        answer["ExpirationTime"] = Value::Null;
        let session = Session::of(&answer, asked, 0.0).unwrap();
        assert_eq!((session.expires, session.renew_at), (None, None));
        assert!(!format!("{session:?}").contains("\"s\""));
        for key in ["AccessorID", "SecretID"] {
            let mut answer = answer.clone();
            answer[key] = Value::Null;
            assert!(Session::of(&answer, asked, 0.0).is_err());
        }
    }

    #[test]
    fn sessions_are_kept_in_a_file_that_is_nobody_else_s() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/enmesh/token.json");
        let store = Store::new(path.clone(), "one".to_owned());
        let now = UNIX_EPOCH + Duration::from_secs(1000);
        assert_eq!(store.load(now).unwrap(), Kept::default());
        let sessions = [session("a", Some(900)), session("b", Some(1100)), session("c", None)];
        store.save(&sessions).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).unwrap().permissions());
        assert_eq!(mode & 0o7777, 0o600);
        let [_, b, c] = sessions;
        assert_eq!(store.load(now).unwrap(), Kept { current: Some(c.clone()), old: vec![b.clone()] });
        // Those of another login are not gone on with, and not forgotten.
        let other = Store::new(path.clone(), "two".to_owned());
        assert_eq!(other.load(now).unwrap(), Kept { current: None, old: vec![b, c] });
        for bad in ["", "{", "[]", r#"{"purpose":"one","sessions":[{"accessor":"a","secret":"a b"}]}"#] {
            std::fs::write(&path, bad).unwrap();
            assert_eq!(store.load(now).unwrap(), Kept::default(), "{bad}");
        }
        store.save([]).unwrap();
        assert!(!path.exists());
    }
}
