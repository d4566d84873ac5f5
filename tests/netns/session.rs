//! The daemon with a login and with a folder of config entries: the real binary, a real Envoy and a real
//! Consul 1.8.7, each test in a namespace of its own. Needs root.
//! `cargo test --features netns-tests --test netns_session`
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "in a test a failure is a panic"
)]

#[path = "../support/acl_bed.rs"]
mod acl_bed;
#[path = "../support/consul_bed.rs"]
mod bed;
#[path = "session/entries.rs"]
mod entries;
#[path = "../support/host_bed.rs"]
mod host_bed;
#[path = "session/load.rs"]
mod load;
#[path = "session/login.rs"]
mod login;
#[path = "session/sealed.rs"]
mod sealed;

use std::path::PathBuf;

use bed::{Agent, client_of};
use enmesh::config::ConsulConfig;
use enmesh::consul::{Client, Query, TokenSource};
use host_bed::{Bed, HOST_FILE};
use serde_json::Value;

/// A host and the Consul on it.
struct Scene {
    bed: Bed,
    _agent: Agent,
    /// The file with the token that may do everything, where there are ACLs.
    operator: Option<PathBuf>,
}

impl Scene {
    /// With an agent that has `settings`, and `consul` in the host file's section of that name.
    fn new(settings: Value, consul: &str) -> Scene {
        let bed = Bed::bare();
        let host = bed.host_file(&format!("\n[consul]\n{consul}"));
        bed.write(HOST_FILE, host.replace("\"static\"", "\"catalog\""));
        let acls = settings.get("acl").is_some();
        let start = async || {
            let mut agent = Agent::new(settings);
            agent.start().await;
            let operator = match acls {
                true => match &acl_bed::bootstrap(&agent).await.settings().token {
                    TokenSource::File(path) => Some(path.clone()),
                    _ => None,
                },
                false => None,
            };
            (agent, operator)
        };
        let (agent, operator) = bed.namespace.run_async(start).unwrap();
        Scene { bed, _agent: agent, operator }
    }

    /// Does something in Consul, as whoever may do everything.
    fn consul<T: Send>(&self, work: impl AsyncFnOnce(&Client) -> T + Send) -> T {
        let config = ConsulConfig { token_file: self.operator.clone(), ..ConsulConfig::default() };
        self.bed.namespace.run_async(async || work(&client_of(&config)).await).unwrap()
    }

    fn put(&self, path: &str, body: &Value) -> Value {
        self.consul(async |client: &Client| client.put(&Query::new(path), Some(body)).await.unwrap().body)
    }

    fn post(&self, path: &str, body: &Value) -> Value {
        self.consul(async |client: &Client| client.post(&Query::new(path), Some(body)).await.unwrap().body)
    }

    /// What Consul has at `path`; null where it has nothing.
    fn get(&self, path: &str) -> Value {
        self.consul(async |client: &Client| {
            client.get(&Query::new(path)).await.map_or(Value::Null, |answer| answer.body)
        })
    }

    /// What Consul has at `path` with a parameter.
    fn get_where(&self, path: &str, (name, value): (&'static str, &str)) -> Value {
        self.consul(async |client: &Client| {
            client.get(&Query::new(path).with(name, value)).await.unwrap().body
        })
    }

    fn delete(&self, path: &str) {
        self.consul(async |client: &Client| client.delete(&Query::new(path)).await.unwrap());
    }
}

/// The codes of the faults in `list`.
fn codes(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|fault| fault["code"].as_str().unwrap()).collect()
}
