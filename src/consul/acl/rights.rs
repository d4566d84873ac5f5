//! Rights: which are needed, and which of them a token lacks.

use std::fmt;

use serde::Serialize;
use serde_json::{Value, json};

use crate::consul::{Client, ConsulError, Query};

/// What may be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// Looking.
    Read,
    /// Changing, which includes looking.
    Write,
}

impl Access {
    fn text(self) -> &'static str {
        match self {
            Access::Read => "read",
            Access::Write => "write",
        }
    }
}

/// A right in Consul's ACLs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Right {
    /// The kind of thing: `service`, `node`.
    pub resource: &'static str,
    /// Its name; empty for all of the kind.
    pub name: String,
    /// What may be done.
    pub access: Access,
}

impl fmt::Display for Right {
    /// As a rule of a policy, ready to be pasted.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.name.is_empty() { "_prefix" } else { "" };
        write!(f, "{}{kind} {:?} {{ policy = {:?} }}", self.resource, self.name, self.access.text())
    }
}

/// What enmesh needs to put `services` (their names) into the mesh, sorted; the rights of a service
/// identity each. With `registers`, it brings them into Consul as well.
pub fn needed_rights<'s>(services: impl IntoIterator<Item = &'s str>, registers: bool) -> Vec<Right> {
    let right = |resource, name: &str, access| Right { resource, name: name.to_owned(), access };
    let mut rights = vec![right("node", "", Access::Read), right("service", "", Access::Read)];
    for service in services {
        // Its leaf certificate, and its own entry.
        rights.push(right("service", service, Access::Write));
        if registers {
            rights.push(right("service", &format!("{service}-sidecar-proxy"), Access::Write));
        }
    }
    rights.sort();
    rights.dedup();
    rights
}

/// Those of `rights` that the token of `client` lacks. One call, which every token may make and
/// which only looks; none are missing where ACLs are off.
///
/// # Errors
/// `ENM-K024` this Consul cannot be asked, and those of any call.
pub async fn missing_rights(client: &Client, rights: &[Right]) -> Result<Vec<Right>, ConsulError> {
    // What Consul's own web pages ask, from 1.8 on.
    let call = Query::new("/v1/internal/acl/authorize");
    let asked: Vec<Value> = rights
        .iter()
        .map(|right| {
            json!({ "Resource": right.resource, "Segment": right.name, "Access": right.access.text() })
        })
        .collect();
    let answer = match client.post(&call, Some(&Value::from(asked))).await {
        Ok(answer) => answer.body,
        Err(ConsulError::AclsDisabled) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let verdicts = answer.as_array().filter(|verdicts| verdicts.len() == rights.len());
    let verdicts = verdicts.ok_or_else(|| ConsulError::Answer {
        what: "POST /v1/internal/acl/authorize".to_owned(),
        why: "it does not have one verdict for each question".to_owned(),
    })?;
    let denied = |verdict: &Value| verdict.get("Allow").and_then(Value::as_bool) != Some(true);
    let missing = rights.iter().zip(verdicts).filter(|(_, verdict)| denied(verdict));
    Ok(missing.map(|(right, _)| right.clone()).collect())
}

/// Whether the token of `client` has `rights`.
///
/// # Errors
/// `ENM-K073` some are missing; otherwise as [`missing_rights`].
pub async fn check_rights(client: &Client, rights: &[Right]) -> Result<(), ConsulError> {
    let missing = missing_rights(client, rights).await?;
    if missing.is_empty() { Ok(()) } else { Err(ConsulError::Rights { missing }) }
}

/// Which right a refused call takes; `what` is the call as errors have it, such as `GET
/// /v1/agent/self at http://127.0.0.1:8500`. Consul itself says no more than "Permission denied" up
/// to 1.11.
pub(in crate::consul) fn needed_for(what: &str) -> String {
    let mut words = what.split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let last = path.rsplit('/').next().unwrap_or_default();
    let under = |folder: &str| path.starts_with(folder);
    if under("/v1/agent/connect/ca/leaf/") {
        format!("give the token `service:write` on {last:?}")
    } else if under("/v1/discovery-chain/") {
        format!("give the token `service:read` on {last:?}; a service identity has it on all services")
    } else if under("/v1/connect/intentions") && method == "GET" {
        "give the token `service:read` on the service, which includes its intentions".to_owned()
    } else if under("/v1/connect/intentions") {
        "give the token `intentions = \"write\"` on the destination".to_owned()
    } else if under("/v1/health/") || under("/v1/catalog/service") || under("/v1/catalog/node") {
        "give the token `service:read` and `node:read`; a service identity has both".to_owned()
    } else if under("/v1/agent/self") || under("/v1/agent/metrics") {
        "give the token `agent:read` on the agent's node".to_owned()
    } else if under("/v1/agent/reload") {
        "give the token `agent:write` on the agent's node".to_owned()
    } else if under("/v1/config") {
        "give the token `service:write` on the entry's name, `intentions = \"write\"` for intentions, or \
         `operator = \"write\"` for entries of the whole mesh"
            .to_owned()
    } else if under("/v1/acl/") {
        "give the token `acl:read`, or `acl:write` to change anything".to_owned()
    } else {
        "give the token a service identity of the service, or `service:write` on it and its sidecar"
            .to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_are_those_of_a_service_identity_and_read_as_rules() {
        let rights = |services: &[&str], registers| -> Vec<String> {
            needed_rights(services.iter().copied(), registers).iter().map(Right::to_string).collect()
        };
        assert_eq!(
            rights(&["web", "api", "web"], true),
            [
                "node_prefix \"\" { policy = \"read\" }",
                "service_prefix \"\" { policy = \"read\" }",
                "service \"api\" { policy = \"write\" }",
                "service \"api-sidecar-proxy\" { policy = \"write\" }",
                "service \"web\" { policy = \"write\" }",
                "service \"web-sidecar-proxy\" { policy = \"write\" }",
            ]
        );
        assert_eq!(rights(&["api"], false).len(), 3);
    }

    #[test]
    fn a_refused_call_names_the_right_that_it_takes() {
        for (what, right) in [
            ("GET /v1/agent/connect/ca/leaf/api at http://c", "`service:write` on \"api\""),
            ("GET /v1/discovery-chain/db at http://c", "`service:read` on \"db\""),
            ("GET /v1/connect/intentions/match at http://c", "`service:read`"),
            ("POST /v1/connect/intentions at http://c", "`intentions = \"write\"`"),
            ("GET /v1/agent/self at http://c", "`agent:read`"),
            ("PUT /v1/agent/reload at http://c", "`agent:write`"),
            ("PUT /v1/config at http://c", "`operator = \"write\"`"),
            ("PUT /v1/agent/service/register at http://c", "its sidecar"),
            ("", "its sidecar"),
        ] {
            assert!(needed_for(what).contains(right), "{what}: {}", needed_for(what));
        }
    }
}
