//! What a call proves who it is with: an ACL token, wherever it comes from, and a name for a proxy.

use std::cell::RefCell;
use std::fmt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use tokio::time::Instant;

use crate::base::files;
use crate::consul::ConsulError;
use crate::plan::XdsToken;

/// Longest token, in bytes. A secret id has 36, a JWT that somebody puts there by mistake far more.
const TOKEN_LIMIT: u64 = 1024;
/// How long a new token may take to reach all of Consul's servers. One that has not got it yet
/// answers that there is no such token.
const SPREAD: Duration = Duration::from_secs(5);

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
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SessionToken(Rc<RefCell<Option<InForce>>>);

#[derive(Debug, PartialEq, Eq)]
struct InForce {
    token: Token,
    /// When it was made, where that is known.
    since: Option<Instant>,
}

impl SessionToken {
    /// A token that was made this moment.
    pub(in crate::consul) fn begin(&self, token: Token) {
        self.0.replace(Some(InForce { token, since: Some(Instant::now()) }));
    }

    /// A token that was made some time ago.
    pub(in crate::consul) fn resume(&self, token: Token) {
        self.0.replace(Some(InForce { token, since: None }));
    }

    /// No token.
    pub(in crate::consul) fn end(&self) {
        self.0.replace(None);
    }

    fn get(&self) -> Option<Token> {
        self.0.borrow().as_ref().map(|it| it.token.clone())
    }

    fn is_fresh(&self) -> bool {
        self.0.borrow().as_ref().and_then(|it| it.since).is_some_and(|since| since.elapsed() < SPREAD)
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

    #[test]
    fn a_name_and_password_are_one_header_and_are_never_shown() {
        let auth = |text: &str| BasicAuth::new(text).map(|auth| auth.header().to_owned());
        assert_eq!(auth("Aladdin:open sesame").as_deref(), Some("Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="));
        assert_eq!(auth("name").as_deref(), Some("Basic bmFtZTo="));
        assert_eq!(auth(" "), None);
        assert_eq!(format!("{:?}", BasicAuth::new("a:b")), "Some(BasicAuth(…))");
    }
}
