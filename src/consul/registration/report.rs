//! Reports of an app about its own `ttl` checks, passed on to the agent that has them.

use serde_json::{Value, json};

use super::definition::http_form;
use crate::base::Fault;
use crate::config::CheckStatus;
use crate::consul::{Client, Entry, Gate, Query, segment};

/// A check as the service file has it, and as the agent does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentCheck {
    /// Its id in the file; `check-N` where none is given.
    pub id: String,
    /// Whether the app reports it.
    pub ttl: bool,
    /// Its id at the agent; `None` where the agent's release does not know its kind.
    pub at_agent: Option<String>,
}

/// The checks of services at the local agent.
#[derive(Debug)]
pub struct AgentChecks {
    client: Client,
    gate: Gate,
}

impl AgentChecks {
    /// For the agent that `client` reaches and that takes what `gate` lets through.
    pub fn new(client: Client, gate: Gate) -> Self {
        AgentChecks { client, gate }
    }

    /// The checks of `entry`, in the order of its file.
    pub fn of(&self, entry: &Entry) -> Vec<AgentCheck> {
        let given = all(&entry.service);
        let taken: Vec<bool> = given.iter().map(|check| self.takes(check)).collect();
        let total = taken.iter().filter(|taken| **taken).count();
        let mut place = 0;
        given
            .iter()
            .zip(taken)
            .enumerate()
            .map(|(position, (check, taken))| {
                place += usize::from(taken);
                let http = http_form(&json!({ "Checks": [check] }));
                let field = |name: &str| http.pointer(&format!("/Checks/0/{name}")).and_then(Value::as_str);
                let own = field("CheckID").map(str::to_owned);
                // What an agent calls a check without an id of its own.
                let derived = || match total {
                    1 => format!("service:{}", entry.key.id),
                    _ => format!("service:{}:{place}", entry.key.id),
                };
                AgentCheck {
                    id: own.clone().unwrap_or_else(|| format!("check-{}", position + 1)),
                    ttl: field("TTL").is_some_and(|ttl| !ttl.is_empty()),
                    at_agent: taken.then(|| own.unwrap_or_else(derived)),
                }
            })
            .collect()
    }

    /// Whether the agent's release has this kind of check.
    fn takes(&self, check: &Value) -> bool {
        let (pruned, _) = self.gate.prune(&json!({ "checks": [check] }));
        !all(&pruned).is_empty()
    }

    /// Tells the agent how the check `id` of `entry` is.
    ///
    /// # Errors
    /// See [`crate::consul::ConsulError`]; the agent refuses what it does not have as a `ttl` check.
    pub async fn report(
        &self,
        entry: &Entry,
        id: &str,
        status: CheckStatus,
        output: &str,
    ) -> Result<(), Fault> {
        let query = Query::new(format!("/v1/agent/check/update/{}", segment(id)))
            .with_some("ns", entry.key.namespace.as_deref())
            .with_some("partition", entry.key.partition.as_deref());
        let body = json!({ "Status": status, "Output": output });
        self.client.put(&query, Some(&body)).await.map(drop).map_err(Fault::from)
    }
}

/// The checks of a definition, in the order in which an agent counts them.
fn all(service: &Value) -> Vec<&Value> {
    let single = service.get("check").filter(|check| check.is_object());
    let list = service.get("checks").and_then(Value::as_array);
    single.into_iter().chain(list.into_iter().flatten()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checks(version: &str, service: Value) -> Vec<(String, bool, Option<String>)> {
        let settings = crate::config::ConsulConfig::default();
        let settings = crate::consul::Settings::new(&settings, &crate::base::Root::default(), &|_| None);
        let client = Client::new(settings.unwrap()).unwrap();
        let checks = AgentChecks::new(client, Gate::new(version.parse().ok(), false));
        let entry = Entry::new("api".parse().unwrap(), service);
        checks.of(&entry).into_iter().map(|check| (check.id, check.ttl, check.at_agent)).collect()
    }

    #[test]
    fn a_check_is_found_where_the_agent_has_it() {
        let one = json!({ "name": "api", "checks": [{ "ttl": "1s" }] });
        let some = |id: &str| Some(id.to_owned());
        assert_eq!(checks("1.8.7", one), [("check-1".to_owned(), true, some("service:api"))]);
        // What the release does not know is not counted by the agent.
        let mixed = json!({ "name": "api", "check": { "tcp": "x:1" }, "checks": [
            { "udp": "x:1" }, { "id": "own", "ttl": "1s" }, { "ttl": "1s" },
        ] });
        assert_eq!(
            checks("1.8.7", mixed.clone()),
            [
                ("check-1".to_owned(), false, some("service:api:1")),
                ("check-2".to_owned(), false, None),
                ("own".to_owned(), true, some("own")),
                ("check-4".to_owned(), true, some("service:api:3")),
            ]
        );
        assert_eq!(checks("1.16.0", mixed)[3].2, some("service:api:4"));
    }
}
