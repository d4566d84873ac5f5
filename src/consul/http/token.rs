//! What a call proves who it is with: an ACL token, wherever it comes from, and a name for a proxy.

use std::cell::RefCell;
use std::fmt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::base::files;
use crate::consul::ConsulError;
use crate::plan::XdsToken;

/// Longest token, in bytes. A secret id has 36, a JWT that somebody puts there by mistake far more.
const TOKEN_LIMIT: u64 = 1024;
/// How long a new token may take to reach all of Consul's servers. One that has not got it yet
/// answers that there is no such token.
const SPREAD: Duration = Duration::from_secs(5);
/// A login that Consul does not know is replaced this long after it was made, at the earliest, and each
/// one that follows it and is not known either after twice the time, up to the last.
const DOUBTS: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(600));

/// An ACL token. It is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// The token in `text`, without the white space around it; `None` when that is all there is.
    ///
    /// # Errors
    /// What is wrong with it, without repeating any of it.
    pub fn new(text: &str) -> Result<Option<Self>, &'static str> {
        let text = text.trim();
        if text.contains(|c: char| !c.is_ascii_graphic()) {
            return Err("it has more than one word, or characters that no token has");
        }
        Ok((!text.is_empty()).then(|| Token(text.to_owned())))
    }

    /// The secret itself, for the header of a request and for a file that only the agent may read.
    pub(in crate::consul) fn secret(&self) -> &str {
        &self.0
    }

    /// The same for a sidecar.
    pub fn for_xds(&self) -> XdsToken {
        XdsToken::new(self.0.clone())
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// The token of the login that is in force. Clones share it: who renews the login changes what every
/// client sends next.
#[derive(Debug, Clone, Default)]
pub struct SessionToken(Rc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    in_force: RefCell<Option<InForce>>,
    doubted: Notify,
}

#[derive(Debug, PartialEq, Eq)]
struct InForce {
    token: Token,
    /// When it was made, where that is known.
    since: Option<Instant>,
    /// Whether Consul has said that it does not know it.
    doubted: bool,
    /// How many before it, one after the other, ended like that.
    doubts: u32,
}

impl PartialEq for SessionToken {
    fn eq(&self, other: &Self) -> bool {
        *self.0.in_force.borrow() == *other.0.in_force.borrow()
    }
}

impl Eq for SessionToken {}

impl SessionToken {
    /// A token that was made this moment.
    pub(in crate::consul) fn begin(&self, token: Token) {
        let before =
            self.0.in_force.borrow().as_ref().map_or(0, |it| if it.doubted { it.doubts + 1 } else { 0 });
        let since = Some(Instant::now());
        self.0.in_force.replace(Some(InForce { token, since, doubted: false, doubts: before }));
    }

    /// A token that was made some time ago.
    pub(in crate::consul) fn resume(&self, token: Token) {
        self.0.in_force.replace(Some(InForce { token, since: None, doubted: false, doubts: 0 }));
    }

    /// No token.
    pub(in crate::consul) fn end(&self) {
        self.0.in_force.replace(None);
    }

    fn get(&self) -> Option<Token> {
        self.0.in_force.borrow().as_ref().map(|it| it.token.clone())
    }

    fn is_fresh(&self) -> bool {
        let in_force = self.0.in_force.borrow();
        in_force.as_ref().and_then(|it| it.since).is_some_and(|since| since.elapsed() < SPREAD)
    }

    /// Consul does not know `token`.
    fn doubt(&self, token: &Token) {
        let mut in_force = self.0.in_force.borrow_mut();
        if let Some(it) = in_force.as_mut().filter(|it| it.token == *token && !it.doubted) {
            it.doubted = true;
            self.0.doubted.notify_waiters();
        }
    }

    /// Whether Consul has said that it does not know the token in force.
    pub(in crate::consul) fn is_doubted(&self) -> bool {
        self.0.in_force.borrow().as_ref().is_some_and(|it| it.doubted)
    }

    /// How long until a token that Consul does not know is to be replaced; never for another one.
    pub(in crate::consul) fn doubted_for(&self) -> Option<Duration> {
        let in_force = self.0.in_force.borrow();
        let it = in_force.as_ref().filter(|it| it.doubted)?;
        let pause = DOUBTS.0.saturating_mul(1 << it.doubts.min(10)).min(DOUBTS.1);
        Some(it.since.map_or(Duration::ZERO, |since| pause.saturating_sub(since.elapsed())))
    }

    /// Waits until Consul says that it does not know the token. From the call on, not from the first
    /// look at it.
    pub(in crate::consul) fn doubted(&self) -> impl Future<Output = ()> {
        self.0.doubted.notified()
    }
}

/// Name and password for a proxy in front of Consul. They are never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct BasicAuth(String);

impl BasicAuth {
    /// `NAME[:PASSWORD]`, as Consul's own tools take it; `None` for nothing.
    pub(super) fn new(text: &str) -> Option<Self> {
        let text = text.trim();
        let pair = if text.contains(':') { text.to_owned() } else { format!("{text}:") };
        (!text.is_empty()).then(|| BasicAuth(format!("Basic {}", BASE64_STANDARD.encode(pair))))
    }

    /// The header `Authorization` (RFC 7617, 2).
    pub(super) fn header(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for BasicAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BasicAuth(…)")
    }
}

/// Where the token comes from. Files are read anew for each call, so that a token that is renewed in
/// place is taken up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenSource {
    /// There is none: Consul treats the caller as anonymous.
    Anonymous,
    /// A file, which has to be there.
    File(PathBuf),
    /// The environment, or whoever made the client.
    Given(Token),
    /// A variable that holds something else.
    BadVariable(&'static str),
    /// A login, which changes it while the program runs.
    Login(SessionToken),
}

impl TokenSource {
    /// The first of: the configured file, systemd's credential `consul-token`, `CONSUL_HTTP_TOKEN`.
    pub(super) fn find(file: Option<PathBuf>, env: &dyn Fn(&str) -> Option<String>) -> Self {
        if let Some(file) = file {
            return TokenSource::File(file);
        }
        let credential = env("CREDENTIALS_DIRECTORY").map(|folder| Path::new(&folder).join("consul-token"));
        if let Some(file) = credential.filter(|file| file.exists()) {
            return TokenSource::File(file);
        }
        match env("CONSUL_HTTP_TOKEN").as_deref().map(Token::new) {
            Some(Ok(Some(token))) => TokenSource::Given(token),
            Some(Err(why)) => TokenSource::BadVariable(why),
            Some(Ok(None)) | None => TokenSource::Anonymous,
        }
    }

    /// Whether Consul's servers may not all know the token yet.
    pub(super) fn is_fresh(&self) -> bool {
        matches!(self, TokenSource::Login(session) if session.is_fresh())
    }

    /// Consul does not know `token`: who keeps the login makes another one.
    pub(super) fn doubt(&self, token: Option<&Token>) {
        if let (TokenSource::Login(session), Some(token)) = (self, token) {
            session.doubt(token);
        }
    }

    /// The token, as it is now.
    ///
    /// # Errors
    /// `ENM-K020` the file cannot be read, or holds no token; `ENM-K069` there is no login yet.
    pub fn read(&self) -> Result<Option<Token>, ConsulError> {
        let path = match self {
            TokenSource::Anonymous => return Ok(None),
            TokenSource::Given(token) => return Ok(Some(token.clone())),
            TokenSource::Login(session) => return session.get().map(Some).ok_or(ConsulError::NoSession),
            TokenSource::BadVariable(why) => {
                let origin = "CONSUL_HTTP_TOKEN".to_owned();
                return Err(ConsulError::Token { origin, why: (*why).to_owned() });
            }
            TokenSource::File(path) => path,
        };
        let wrong = |why: String| ConsulError::Token { origin: path.display().to_string(), why };
        let bytes = files::read(path, TOKEN_LIMIT).map_err(|fault| wrong(fault.message))?;
        let bytes = bytes.ok_or_else(|| wrong("there is no such file".to_owned()))?;
        let text = str::from_utf8(&bytes).map_err(|_| wrong("it is not text".to_owned()))?;
        let token = Token::new(text).map_err(|why| wrong(why.to_owned()))?;
        token.map(Some).ok_or_else(|| wrong("it is empty".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_comes_from_the_first_place_that_has_one_and_is_never_shown() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("configured");
        let credential = folder.path().join("consul-token");
        let variables = |name: &str| match name {
            "CREDENTIALS_DIRECTORY" => Some(folder.path().display().to_string()),
            "CONSUL_HTTP_TOKEN" => Some("of-the-environment".to_owned()),
            _ => None,
        };
        let find = |file: Option<&Path>| TokenSource::find(file.map(Path::to_owned), &variables);
        let read = |source: TokenSource| source.read().unwrap().unwrap().secret().to_owned();
        assert_eq!(read(find(None)), "of-the-environment");
        assert!(!format!("{:?}", find(None)).contains("of-the-environment"));
        std::fs::write(&credential, "of-systemd\n").unwrap();
        assert_eq!(read(find(None)), "of-systemd");
        // A configured file that is not there is an error, not somebody else's token.
        assert!(matches!(find(Some(&file)).read(), Err(ConsulError::Token { .. })));
        std::fs::write(&file, " of-the-file\n").unwrap();
        assert_eq!(read(find(Some(&file))), "of-the-file");
        std::fs::write(&file, "renewed").unwrap();
        assert_eq!(read(find(Some(&file))), "renewed");
        for bad in ["", "\n", "two words", "a\nb", "tök"] {
            std::fs::write(&file, bad).unwrap();
            let error = find(Some(&file)).read().unwrap_err().to_string();
            assert!(!error.contains("words") || bad.is_empty() || !error.contains("two words"), "{error}");
        }
        assert_eq!(TokenSource::find(None, &|_| None).read().unwrap(), None);
    }

    #[test]
    fn who_shares_a_session_shares_its_token() {
        let session = SessionToken::default();
        let source = TokenSource::Login(session.clone());
        assert!(matches!(source.read(), Err(ConsulError::NoSession)) && !source.is_fresh());
        let token = |text: &str| Token::new(text).unwrap().unwrap();
        session.resume(token("old"));
        assert!(source.read().unwrap() == Some(token("old")) && !source.is_fresh());
        session.begin(token("new"));
        assert!(source.read().unwrap() == Some(token("new")) && source.is_fresh());
        assert!(!format!("{source:?}").contains("new"));
        session.end();
        assert!(source.read().is_err());
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_token_that_is_not_known_is_replaced_at_once_and_then_less_and_less_often() {
        let session = SessionToken::default();
        let token = |text: &str| Token::new(text).unwrap().unwrap();
        session.resume(token("first"));
        session.doubt(&token("another"));
        assert!(!session.is_doubted() && session.doubted_for().is_none(), "that is not in force");
        let heard = session.doubted();
        session.doubt(&token("first"));
        heard.await;
        assert_eq!(session.doubted_for(), Some(Duration::ZERO));
        for pause in [20, 40, 80, 160, 320, 600, 600] {
            session.begin(token("next"));
            assert!(!session.is_doubted());
            session.doubt(&token("next"));
            assert!(waits(&session, pause));
        }
        session.begin(token("known"));
        session.begin(token("later"));
        session.doubt(&token("later"));
        assert!(waits(&session, DOUBTS.0.as_secs()));
    }

    /// Whether the token, which was made this moment, is to be replaced after `seconds`.
    fn waits(session: &SessionToken, seconds: u64) -> bool {
        let (left, pause) = (session.doubted_for().unwrap(), Duration::from_secs(seconds));
        left <= pause && left > pause / 2
    }

    #[test]
    fn a_name_and_password_are_one_header_and_are_never_shown() {
        let auth = |text: &str| BasicAuth::new(text).map(|auth| auth.header().to_owned());
        assert_eq!(auth("Aladdin:open sesame").as_deref(), Some("Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="));
        assert_eq!(auth("name").as_deref(), Some("Basic bmFtZTo="));
        assert_eq!(auth(" "), None);
        assert_eq!(format!("{:?}", BasicAuth::new("a:b")), "Some(BasicAuth(…))");
    }
}
