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
use crate::consul::{ConsulError, Settings};

/// The pause before a read is tried again; it doubles each time, and half of it is chance, so that
/// hosts that lost the same server do not come back at the same moment.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// How often a read is tried at most.
const ATTEMPTS: u32 = 4;

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

/// Talks to one agent or server. Clones share everything.
#[derive(Debug, Clone)]
pub struct Client(Rc<Inner>);

#[derive(Debug)]
struct Inner {
    settings: Settings,
    transport: Transport,
}

impl Client {
    /// Reads the files for TLS; connects to nothing.
    ///
    /// # Errors
    /// `ENM-K010` a file for TLS cannot be used.
    pub fn new(settings: Settings) -> Result<Self, ConsulError> {
        let transport = Transport::new(&settings)?;
        Ok(Client(Rc::new(Inner { settings, transport })))
    }

    /// How it was made.
    pub fn settings(&self) -> &Settings {
        &self.0.settings
    }

    /// Reads, and tries again within the time limit when the failure may pass.
    ///
    /// # Errors
    /// See [`ConsulError`].
    pub async fn get(&self, query: &Query) -> Result<Answer, ConsulError> {
        let end = Instant::now() + self.0.settings.limit;
        let mut pause = FIRST_PAUSE;
        let mut attempt = 1;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let error = match self.call(Method::GET, query, None, left).await {
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
        self.call(Method::GET, query, None, limit).await
    }

    /// As [`Client::get_within`], read straight into `T`: for answers that are large.
    ///
    /// # Errors
    /// See [`ConsulError`].
    pub async fn get_as<T: DeserializeOwned>(
        &self,
        query: &Query,
        limit: Duration,
    ) -> Result<(T, Option<u64>), ConsulError> {
        let (what, server, reply) = self.exchange(Method::GET, query, None, limit).await?;
        Ok((judge(&what, &server, &reply)?, index_of(&reply)))
    }

    /// Writes once: whether a write whose answer was lost has been done is for the caller to look.
    ///
    /// # Errors
    /// See [`ConsulError`].
    pub async fn put(&self, query: &Query, body: Option<&Value>) -> Result<Answer, ConsulError> {
        self.call(Method::PUT, query, body, self.0.settings.limit).await
    }

    async fn call(
        &self,
        method: Method,
        query: &Query,
        body: Option<&Value>,
        limit: Duration,
    ) -> Result<Answer, ConsulError> {
        let (what, server, reply) = self.exchange(method, query, body, limit).await?;
        let hash = header(&reply, "x-consul-contenthash").map(str::to_owned);
        Ok(Answer { body: judge(&what, &server, &reply)?, index: index_of(&reply), hash })
    }

    /// What the call is called, whom it asks, and what was answered, whatever that means.
    async fn exchange(
        &self,
        method: Method,
        query: &Query,
        body: Option<&Value>,
        limit: Duration,
    ) -> Result<(String, String, Reply), ConsulError> {
        let Inner { settings, transport } = &*self.0;
        let server = transport.endpoint().to_string();
        let what = format!("{method} {} at {server}", query.path);
        let ask = Ask {
            method,
            target: self.scoped(query).target(),
            body: body.map(|body| body.to_string().into_bytes()).unwrap_or_default(),
            token: settings.token.read()?,
            limit,
            what: what.clone(),
        };
        let reply = transport.send(ask).await?;
        Ok((what, server, reply))
    }

    /// With the partition, and with the datacenter where it is not the agent's own business.
    fn scoped(&self, query: &Query) -> Query {
        let settings = &self.0.settings;
        let mut query = query.clone();
        let missing = |query: &Query, name| query.parameters.iter().all(|(there, _)| *there != name);
        if let Some(datacenter) = &settings.datacenter
            && !query.path.starts_with("/v1/agent/")
            && missing(&query, "dc")
        {
            query = query.with("dc", datacenter.as_str());
        }
        if let Some(partition) = &settings.partition
            && missing(&query, "partition")
        {
            query = query.with("partition", partition.as_str());
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
