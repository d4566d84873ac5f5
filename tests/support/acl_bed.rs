//! ACLs for a bed with a real Consul: tokens, the blocks of `docs/acl.md`, and JWTs that are signed here.
#![allow(dead_code, reason = "each test target uses a part")]

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use enmesh::consul::{Client, Query};
use rcgen::{KeyPair, PKCS_RSA_SHA256, SigningKey};
use serde_json::{Value, json};

use super::bed::Agent;

/// Settings of an agent that denies everything by default.
pub fn acl() -> Value {
    json!({ "acl": { "enabled": true, "default_policy": "deny" } })
}

/// The token that may do everything.
pub async fn bootstrap(agent: &Agent) -> Client {
    let started = Instant::now();
    loop {
        match agent.client().put(&Query::new("/v1/acl/bootstrap"), None).await {
            Ok(answer) => return agent.client_with(answer.body["SecretID"].as_str().unwrap()),
            // The ACL system comes up a moment after the leader.
            Err(error) if started.elapsed() > Duration::from_secs(15) => panic!("{error}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// A token of the service's identity.
pub async fn identity(agent: &Agent, operator: &Client, service: &str) -> Client {
    let body = json!({ "ServiceIdentities": [{ "ServiceName": service }] });
    let answer = operator.put(&Query::new("/v1/acl/token"), Some(&body)).await.unwrap();
    agent.client_with(answer.body["SecretID"].as_str().unwrap())
}

/// A token with one policy, `rules`.
pub async fn with_policy(agent: &Agent, operator: &Client, name: &str, rules: &str) -> Client {
    let policy = json!({ "Name": name, "Rules": rules });
    operator.put(&Query::new("/v1/acl/policy"), Some(&policy)).await.unwrap();
    let body = json!({ "Policies": [{ "Name": name }] });
    let answer = operator.put(&Query::new("/v1/acl/token"), Some(&body)).await.unwrap();
    agent.client_with(answer.body["SecretID"].as_str().unwrap())
}

/// The blocks of `docs/acl.md` in `language`, in their order.
pub fn blocks(language: &str) -> Vec<String> {
    blocks_of("acl.md", language)
}

/// The blocks of a page of `docs` in `language`, in their order.
pub fn blocks_of(page: &str, language: &str) -> Vec<String> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(page);
    let page = fs::read_to_string(page).unwrap();
    let opening = format!("```{language}\n");
    let blocks = page.split(&opening).skip(1).map(|rest| rest.split("```").next().unwrap().to_owned());
    blocks.collect()
}

/// The block that has `words` in it.
pub fn block(language: &str, words: &str) -> String {
    let mut fitting: Vec<String> =
        blocks(language).into_iter().filter(|block| block.contains(words)).collect();
    assert_eq!(fitting.len(), 1, "blocks in docs/acl.md with {words:?}: {fitting:?}");
    fitting.remove(0)
}

/// Who signs JWTs.
pub struct Issuer(KeyPair);

impl Issuer {
    pub fn new() -> Self {
        Issuer(KeyPair::generate().unwrap())
    }

    /// One whose key is RSA's, as those of the large clouds are. It signs nothing outside of these tests.
    pub fn rsa() -> Self {
        Issuer(KeyPair::from_pem(include_str!("jwt-rsa.pem")).unwrap())
    }

    fn is_rsa(&self) -> bool {
        *self.0.algorithm() == PKCS_RSA_SHA256
    }

    /// The name of how it signs (RFC 7518, 3.1).
    pub fn algorithm(&self) -> &'static str {
        if self.is_rsa() { "RS256" } else { "ES256" }
    }

    pub fn public_key(&self) -> String {
        self.0.public_key_pem()
    }

    /// The public key as a key set (RFC 7517; RFC 7518, 6.2): the two coordinates of a point, without the
    /// byte that says that there are two.
    pub fn key_set(&self) -> Value {
        let point = self.0.public_key_raw();
        let part = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
        json!({ "keys": [{
            "kty": "EC", "crv": "P-256", "use": "sig", "kid": "1", "x": part(&point[1..33]), "y": part(&point[33..65]),
        }] })
    }

    /// A JWT (RFC 7519) with `claims`, signed with ES256 or RS256 (RFC 7518, 3.3 and 3.4).
    pub fn sign(&self, claims: &Value) -> String {
        let part = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
        let text = format!("{}.{}", part(&json!({ "alg": self.algorithm(), "typ": "JWT" })), part(claims));
        let signature = self.0.sign(text.as_bytes()).unwrap();
        let signature = if self.is_rsa() { signature } else { plain(&signature) };
        format!("{text}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))
    }

    /// A JWT as the page's auth method wants it, for `subject`.
    pub fn jwt(&self, subject: &str) -> String {
        self.sign(&claims(subject))
    }
}

/// What the page's auth method wants.
pub fn claims(subject: &str) -> Value {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    json!({
        "iss": "https://issuer.example", "aud": "consul", "sub": subject,
        "iat": now, "nbf": now, "exp": now + 600,
    })
}

/// An ECDSA signature as JWTs have it, two numbers of 32 bytes, from one in DER: a sequence of the two.
fn plain(der: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    let mut rest = &der[2..];
    for _ in 0..2 {
        let length = usize::from(rest[1]);
        let number = &rest[2..2 + length];
        let number = number.strip_prefix(&[0]).unwrap_or(number);
        plain.extend(std::iter::repeat_n(0, 32 - number.len()));
        plain.extend(number);
        rest = &rest[2 + length..];
    }
    plain
}
