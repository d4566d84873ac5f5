//! A real Consul in a network namespace of its own, which goes with the test.
#![allow(dead_code, reason = "each test target uses a part")]
#![allow(clippy::print_stdout, reason = "the log of an agent belongs to the report of a failed test")]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use enmesh::base::Root;
use enmesh::config::ConsulConfig;
use enmesh::consul::{Client, Entry, Gate, Query, Settings, Version};
use enmesh::netns::{self, Namespace};
use serde_json::{Value, json};

/// How long an agent has to elect itself.
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs `work` in a namespace with an agent that has `settings` beside those of a development agent.
pub fn scene(settings: Value, work: impl AsyncFnOnce(&mut Agent) + Send) {
    /// Goes also when the work panics.
    struct Cleaner(String);
    impl Drop for Cleaner {
        fn drop(&mut self) {
            let _ = Namespace::delete(&self.0);
        }
    }
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = format!("enmesh-consul-{}-{number}", std::process::id());
    let namespace = Namespace::create(&name).expect("these tests need root and network namespaces");
    let _cleaner = Cleaner(name);
    let done = namespace.run_async(async || {
        netns::lo_up().await.unwrap();
        let mut agent = Agent::new(settings);
        agent.start().await;
        work(&mut agent).await;
    });
    done.unwrap();
}

/// One agent, which is its own server. It ends with this.
pub struct Agent {
    pub folder: tempfile::TempDir,
    settings: Value,
    child: Option<Child>,
}

fn program() -> PathBuf {
    let path = std::env::var_os("ENMESH_CONSUL").map(PathBuf::from);
    let path = path.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/consul"));
    assert!(path.is_file(), "there is no {}; scripts/fetch-consul puts it there", path.display());
    path
}

impl Agent {
    /// An agent that does not run yet.
    pub fn new(settings: Value) -> Self {
        Agent { folder: tempfile::tempdir().unwrap(), settings, child: None }
    }

    /// Starts the agent without any data of before, and waits until it leads.
    #[expect(clippy::disallowed_methods, reason = "the agent outlives the call, and is killed by its number")]
    pub async fn start(&mut self) {
        let mut settings = json!({ "disable_update_check": true, "node_name": "vm" });
        for (key, value) in self.settings.as_object().into_iter().flatten() {
            settings[key] = value.clone();
        }
        let file = self.folder.path().join("agent.json");
        fs::write(&file, settings.to_string()).unwrap();
        let definitions = self.folder.path().join("etc/consul.d");
        fs::create_dir_all(&definitions).unwrap();
        let log = File::create(self.folder.path().join("log")).unwrap();
        // Where others than this namespace's own call it, it answers at every address.
        let client = self.settings.get("client_addr").and_then(Value::as_str).unwrap_or("127.0.0.1");
        let child = Command::new(program())
            .args(["agent", "-dev", "-bind=127.0.0.1"])
            .arg(format!("-client={client}"))
            .arg(format!("-config-file={}", file.display()))
            .arg(format!("-config-dir={}", definitions.display()))
            .env_clear()
            .stdin(Stdio::null())
            .stderr(log.try_clone().unwrap())
            .stdout(log)
            .spawn();
        self.child = Some(child.unwrap());
        let started = Instant::now();
        let client = self.client();
        // A leader answers before it has put itself into the catalog, and before its CA is there.
        let mut leads = false;
        while !leads {
            assert!(started.elapsed() < PATIENCE, "no leader: {}", self.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
            let call = Query::new("/v1/status/leader");
            leads = client.get(&call).await.is_ok_and(|it| it.body.as_str().is_some_and(|it| !it.is_empty()));
            if self.settings.get("acl").is_none() {
                let roots = client.get(&Query::new("/v1/agent/connect/ca/roots")).await;
                leads &= roots.is_ok_and(|it| it.body["Roots"].is_array());
                let servers = client.get(&Query::new("/v1/catalog/service/consul")).await;
                leads &= servers.is_ok_and(|it| it.body != json!([]));
            }
        }
    }

    /// Kills the agent; a development agent keeps nothing on disk.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Without a token.
    pub fn client(&self) -> Client {
        client_of(&ConsulConfig::default())
    }

    /// With a token, from a file.
    pub fn client_with(&self, token: &str) -> Client {
        let file = self.folder.path().join(format!("token-{token}"));
        fs::write(&file, format!("{token}\n")).unwrap();
        client_of(&ConsulConfig { token_file: Some(file), ..ConsulConfig::default() })
    }

    /// What Consul says about `path`.
    pub async fn ask(&self, client: &Client, path: &str) -> Value {
        client.get(&Query::new(path)).await.unwrap().body
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{}", self.log());
        }
        self.kill();
    }
}

pub fn client_of(config: &ConsulConfig) -> Client {
    Client::new(Settings::new(config, &Root::default(), &|_| None).unwrap()).unwrap()
}

/// What 1.8.7 takes.
pub fn gate() -> Gate {
    Gate::new(Some(Version { major: 1, minor: 8, patch: 7 }), false)
}

/// A transparent service with a check and an upstream.
pub fn api() -> Value {
    json!({
        "id": "api-1", "name": "api", "port": 8080, "address": "127.0.0.1", "tags": ["v1"], "meta": { "team": "core" },
        "weights": { "passing": 3, "warning": 1 },
        "checks": [{ "id": "own", "name": "app", "ttl": "1h" }, { "tcp": "127.0.0.1:8080", "interval": "10s" }],
        "connect": { "sidecar_service": { "port": 21005, "proxy": {
            "mode": "transparent", "config": { "protocol": "http", "local_connect_timeout_ms": 500.0 },
            "upstreams": [{ "destination_name": "db", "local_bind_port": 5432 }],
        } } },
    })
}

pub fn entry(service: Value) -> Entry {
    let id = service["id"].as_str().unwrap().parse().unwrap();
    Entry::new(id, service)
}
