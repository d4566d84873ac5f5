//! The client: calls with a token, a deadline and a cause for every failure; reads are tried again.

use std::fmt::Write as _;
use std::rc::Rc;
use std::time::Duration;

use hyper::Method;
use hyper::http::HeaderName;
use rand::Rng;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::Instant;

use super::answer::judge;
use super::transport::{Ask, Reply, Transport};
use crate::consul::{ConsulError, Settings, Token, TokenSource};

/// The pause before a read is tried again; it doubles each time, and half of it is chance, so that
/// hosts that lost the same server do not come back at the same moment.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// How often a read is tried at most.
const ATTEMPTS: u32 = 4;
/// The pause before a call is made again because the login is too new for the server that was asked.
const SPREAD_PAUSE: Duration = Duration::from_millis(250);

/// A path with its parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    path: String,
    parameters: Vec<(&'static str, String)>,
}

impl Query {
    /// `path`, from `/v1` on. What varies in it is [`segment`]s.
    pub fn new(path: impl Into<String>) -> Self {
        Query { path: path.into(), parameters: Vec::new() }
    }

    /// The same with one more parameter.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.parameters.push((name, value.into()));
        self
    }

    /// The same with one more parameter, if there is a value.
    #[must_use]
    pub fn with_some(self, name: &'static str, value: Option<&str>) -> Self {
        match value {
            Some(value) => self.with(name, value),
            None => self,
        }
    }

    fn target(&self) -> String {
        let mut text = self.path.clone();
        for (position, (name, value)) in self.parameters.iter().enumerate() {
            let sign = if position == 0 { '?' } else { '&' };
            let _ = write!(text, "{sign}{name}={}", segment(value));
        }
        text
    }
}

/// `text` as one segment of a path or one value of a query (RFC 3986, 2.1 and 2.3).
pub fn segment(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

/// A good answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// The body; null where there is none.
    pub body: Value,
    /// The index to wait on, where the call has one.
    pub index: Option<u64>,
    /// The hash of the content to wait on, where the call has one.
    pub hash: Option<String>,
}

/// One call.
struct Call<'c> {
    method: Method,
    query: &'c Query,
    body: Option<&'c Value>,
    limit: Duration,
    /// Whether Consul is meant to hold it until there is a change.
    held: bool,
}

/// Talks to one agent or server. Clones share everything.
#[derive(Debug, Clone)]
pub struct Client {
    settings: Rc<Settings>,
    transport: Rc<Transport>,
}

impl Client {
    /// Reads the files for TLS; connects to nothing.
    ///
    /// # Errors
    /// `ENM-K010` a file for TLS cannot be used.
    pub fn new(settings: Settings) -> Result<Self, ConsulError> {
        let transport = Transport::new(&settings)?;
        Ok(Client { settings: Rc::new(settings), transport: Rc::new(transport) })
    }

    /// The same with another token; connections are shared.
    #[must_use]
    pub fn with_token(&self, token: TokenSource) -> Self {
        let settings = Settings { token, ..Settings::clone(&self.settings) };
        Client { settings: Rc::new(settings), transport: Rc::clone(&self.transport) }
    }

    /// How it was made.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Reads, and tries again within the time limit when the failure may pass.
    ///
    /// # Errors
    /// See [`ConsulError`].
    pub async fn get(&self, query: &Query) -> Result<Answer, ConsulError> {
        let end = Instant::now() + self.settings.limit;
        let mut pause = FIRST_PAUSE;
        let mut attempt = 1;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let error = match self.call(Call { limit: left, ..self.of(Method::GET, query) }).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let wait = pause.mul_f64(rand::rng().random_range(0.5..1.0));
            if attempt == ATTEMPTS || !error.is_transient() || Instant::now() + wait >= end {
                return Err(error);
            }
            tokio::time::sleep(wait).await;
            pause *= 2;
            attempt += 1;
        }
    }

    /// Reads once, with a time limit of its own: for calls that wait for a change.
    ///
    /// # Errors
    /// See [`ConsulError`].
    pub async fn get_within(&self, query: &Query, limit: Duration) -> Result<Answer, ConsulError> {
        self.call(Call { held: true, limit, ..self.of(Method::GET, query) }).await
    }

    /// Reads once, straight into `T`: for answers that are large. With the index to wait on.
    ///
    /// # Errors
    /// See [`ConsulError`].
    pub async fn get_as<T: DeserializeOwned>(&self, query: &Query) -> Result<(T, Option<u64>), ConsulError> {
        self.read_as(self.of(Method::GET, query)).await
    }

    /// As [`Client::get_as`], with a time limit of its own: for calls that wait for a change.
    ///
    /// # Errors
    /// See [`ConsulError`].
    pub async fn get_as_within<T: DeserializeOwned>(
        &self,
        query: &Query,
        limit: Duration,
    ) -> Result<(T, Option<u64>), ConsulError> {
        self.read_as(Call { held: true, limit, ..self.of(Method::GET, query) }).await
    }

    async fn read_as<T: DeserializeOwned>(&self, call: Call<'_>) -> Result<(T, Option<u64>), ConsulError> {
        self.ask(call, &|what, server, reply| Ok((judge(what, server, reply)?, index_of(reply)))).await
    }

    /// Writes once: whether a write whose answer was lost has been done is for the caller to look.
    ///
    /// # Errors
    /// See [`ConsulError`].
    pub async fn put(&self, query: &Query, body: Option<&Value>) -> Result<Answer, ConsulError> {
        self.call(Call { body, ..self.of(Method::PUT, query) }).await
    }

    /// As [`Client::put`], for calls that Consul takes as POST.
    ///
    /// # Errors
    /// See [`ConsulError`].
    pub async fn post(&self, query: &Query, body: Option<&Value>) -> Result<Answer, ConsulError> {
        self.call(Call { body, ..self.of(Method::POST, query) }).await
    }

    /// As [`Client::put`], to remove something.
    ///
    /// # Errors
    /// See [`ConsulError`].
    pub async fn delete(&self, query: &Query) -> Result<Answer, ConsulError> {
        self.call(self.of(Method::DELETE, query)).await
    }

    async fn call(&self, call: Call<'_>) -> Result<Answer, ConsulError> {
        let read = |what: &str, server: &str, reply: &Reply| {
            let hash = header(reply, "x-consul-contenthash").map(str::to_owned);
            Ok(Answer { body: judge(what, server, reply)?, index: index_of(reply), hash })
        };
        self.ask(call, &read).await
    }

    fn of<'c>(&self, method: Method, query: &'c Query) -> Call<'c> {
        Call { method, query, body: None, limit: self.settings.limit, held: false }
    }

    /// Makes the call, again where Consul does not know the token and so has done nothing: while the
    /// login is so new that the server that was asked may be behind, and when it was renewed, and the
    /// old one ended, while Consul held the call.
    async fn ask<T>(
        &self,
        call: Call<'_>,
        read: &dyn Fn(&str, &str, &Reply) -> Result<T, ConsulError>,
    ) -> Result<T, ConsulError> {
        loop {
            let token = self.settings.token.read()?;
            let result = self.ask_once(&call, token.clone(), read).await;
            let unknown = matches!(result, Err(ConsulError::UnknownToken { .. }));
            if unknown && self.settings.token.is_fresh() {
                tokio::time::sleep(SPREAD_PAUSE).await;
            } else if !unknown || self.settings.token.read()? == token {
                if unknown {
                    self.settings.token.doubt(token.as_ref());
                }
                return result;
            }
        }
    }

    async fn ask_once<T>(
        &self,
        call: &Call<'_>,
        token: Option<Token>,
        read: &dyn Fn(&str, &str, &Reply) -> Result<T, ConsulError>,
    ) -> Result<T, ConsulError> {
        let server = self.transport.endpoint().to_string();
        let what = format!("{} {} at {server}", call.method, call.query.path);
        let ask = Ask {
            method: call.method.clone(),
            target: self.scoped(call.query).target(),
            body: call.body.map(|body| body.to_string().into()).unwrap_or_default(),
            token,
            limit: call.limit,
            what: what.clone(),
            held: call.held,
        };
        let reply = self.transport.send(ask).await?;
        read(&what, &server, &reply)
    }

    /// With partition and namespace, and with the datacenter where it is not the agent's own business;
    /// a login is: its token has to be known where it is used.
    fn scoped(&self, query: &Query) -> Query {
        let settings = &self.settings;
        let mut query = query.clone();
        let missing = |query: &Query, name| query.parameters.iter().all(|(there, _)| *there != name);
        if let Some(datacenter) = &settings.datacenter
            && !["/v1/agent/", "/v1/acl/"].iter().any(|own| query.path.starts_with(own))
            && missing(&query, "dc")
        {
            query = query.with("dc", datacenter.as_str());
        }
        if let Some(partition) = &settings.partition
            && missing(&query, "partition")
        {
            query = query.with("partition", partition.as_str());
        }
        if let Some(namespace) = &settings.namespace
            && missing(&query, "ns")
        {
            query = query.with("ns", namespace.as_str());
        }
        query
    }
}

fn index_of(reply: &Reply) -> Option<u64> {
    header(reply, "x-consul-index").and_then(|text| text.parse().ok())
}

fn header<'r>(reply: &'r Reply, name: &'static str) -> Option<&'r str> {
    reply.headers.get(HeaderName::from_static(name)).and_then(|value| value.to_str().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_escaped() {
        let query = Query::new(format!("/v1/x/{}", segment("a/b")))
            .with("filter", "ID == \"a b\"")
            .with_some("ns", None)
            .with_some("wait", Some("1s"));
        assert_eq!(query.target(), "/v1/x/a%2Fb?filter=ID%20%3D%3D%20%22a%20b%22&wait=1s");
    }
}
