//! Whose token it is.

use serde::Serialize;
use serde_json::Value;

use crate::consul::{Client, ConsulError, Query};

/// What Consul knows of the token, without the secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Whoami {
    /// The id that it is managed by.
    pub accessor: String,
    /// What whoever made it says of it; for a login, the login's `meta`.
    pub description: String,
    /// The auth method of the login that made it.
    pub auth_method: Option<String>,
    /// When it ends, in RFC 3339 and by Consul's clock.
    pub expires: Option<String>,
    /// Names of its policies, sorted.
    pub policies: Vec<String>,
    /// Names of its roles, sorted.
    pub roles: Vec<String>,
    /// Names of the services that it has the identity of, sorted.
    pub service_identities: Vec<String>,
    /// Names of the nodes that it has the identity of, sorted.
    pub node_identities: Vec<String>,
}

/// Asks Consul whose token `client` sends.
///
/// # Errors
/// `ENM-K022` Consul does not know it, or none is sent; `ENM-K071` there are no ACLs; and those of
/// any call.
pub async fn whoami(client: &Client) -> Result<Whoami, ConsulError> {
    let answer = client.get(&Query::new("/v1/acl/token/self")).await?;
    Whoami::of(&answer.body)
}

impl Whoami {
    fn of(token: &Value) -> Result<Self, ConsulError> {
        let text = |key: &str| {
            token.get(key).and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned)
        };
        let names = |list: &str, key: &str| {
            let list = token.get(list).and_then(Value::as_array).into_iter().flatten();
            let mut names: Vec<String> =
                list.filter_map(|item| item.get(key)?.as_str().map(str::to_owned)).collect();
            names.sort();
            names
        };
        Ok(Whoami {
            accessor: text("AccessorID").ok_or_else(|| ConsulError::Answer {
                what: "GET /v1/acl/token/self".to_owned(),
                why: "it has no `AccessorID`".to_owned(),
            })?,
            description: text("Description").unwrap_or_default(),
            auth_method: text("AuthMethod"),
            expires: text("ExpirationTime"),
            policies: names("Policies", "Name"),
            roles: names("Roles", "Name"),
            service_identities: names("ServiceIdentities", "ServiceName"),
            node_identities: names("NodeIdentities", "NodeName"),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_are_taken_and_the_secret_is_not() {
        let whoami = Whoami::of(&json!({
            "AccessorID": "a", "SecretID": "the-secret", "Description": "made", "AuthMethod": "",
            "Policies": [{ "ID": "2", "Name": "two" }, { "ID": "1", "Name": "one" }],
            "ServiceIdentities": [{ "ServiceName": "api" }], "Local": true,
        }))
        .unwrap();
        assert_eq!(whoami.policies, ["one", "two"]);
        assert_eq!(
            (whoami.service_identities.as_slice(), whoami.auth_method.as_ref()),
            (&["api".into()] as &[String], None)
        );
        assert!(!serde_json::to_string(&whoami).unwrap().contains("the-secret"));
        assert!(Whoami::of(&json!([])).is_err());
    }
}
