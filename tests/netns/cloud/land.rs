//! Container groups without containers: each logs in, registers and keeps its lease as enmesh does.

use std::collections::BTreeMap;
use std::fs;
use std::rc::Rc;
use std::time::{Duration, Instant};

use enmesh::base::{Fault, Root};
use enmesh::config::{ConsulConfig, LoginConfig, PlatformConfig};
use enmesh::consul::{CatalogRegistry, Client, Lease, Login, Node, Query, Registry, Settings};
use enmesh::platform::Management;
use enmesh::reap::{Reaper, Report, Settings as ReapSettings};
use serde_json::{Value, json};

use crate::acl_bed::{Issuer, blocks_of, bootstrap, claims, with_policy};
use crate::bed::{Agent, entry, gate};
use crate::fake_azure::{FakeAzure, FakeGroup, SCOPE, group_id};

/// The auth method of the groups.
pub const METHOD: &str = "groups";
/// How long something has to be gone.
pub const GRACE: Duration = Duration::from_secs(2);
/// How long anything may take.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub struct Land<'a> {
    pub agent: &'a Agent,
    pub operator: Client,
    pub azure: FakeAzure,
    /// What reapers call Consul with.
    pub reaper_client: Client,
    issuer: Issuer,
}

/// A container group that runs.
pub struct Group {
    pub owner: String,
    pub login: Login,
    pub registry: CatalogRegistry,
    pub lease: Rc<Lease>,
    service: Value,
}

impl Land<'_> {
    pub async fn new(agent: &Agent) -> Land<'_> {
        let operator = bootstrap(agent).await;
        let put = async |path: &str, body: Value| operator.put(&Query::new(path), Some(&body)).await.unwrap();
        let issuer = Issuer::new();
        put(
            "/v1/acl/policy",
            json!({ "Name": "group", "Rules":
            "service_prefix \"\" { policy = \"write\" }\nnode_prefix \"\" { policy = \"write\" }" }),
        )
        .await;
        put("/v1/acl/role", json!({ "Name": "group", "Policies": [{ "Name": "group" }] })).await;
        put(
            "/v1/acl/auth-method",
            json!({ "Name": METHOD, "Type": "jwt", "Config": {
            "JWTValidationPubKeys": [issuer.public_key()], "JWTSupportedAlgs": ["ES256"],
            "BoundIssuer": "https://issuer.example", "BoundAudiences": ["consul"],
        } }),
        )
        .await;
        put("/v1/acl/binding-rule", json!({ "AuthMethod": METHOD, "BindType": "role", "BindName": "group" }))
            .await;
        let rules = blocks_of("reap.md", "hcl").remove(0);
        let reaper_client = with_policy(agent, &operator, "reaper", &rules).await;
        let azure = FakeAzure::listen("127.0.0.1:0");
        Land { agent, operator, azure, reaper_client, issuer }
    }

    /// A container group that the platform knows, and that is in Consul with `name` as its service.
    pub async fn group(&self, name: &str, service: &str) -> Group {
        self.azure.with(|state| drop(state.groups.insert(group_id(name), FakeGroup::running())));
        self.host(name, service, &group_id(name).to_lowercase(), Duration::from_secs(600)).await
    }

    /// Anything that has a lease.
    pub async fn host(&self, name: &str, service: &str, owner: &str, every: Duration) -> Group {
        let folder = self.agent.folder.path().join(name);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("jwt"), self.issuer.sign(&claims(name))).unwrap();
        let config = LoginConfig {
            method: METHOD.to_owned(),
            bearer_token_file: Some("/jwt".into()),
            identity: None,
            meta: BTreeMap::new(),
        };
        let consul = ConsulConfig { login: Some(config.clone()), ..ConsulConfig::default() };
        let root = Root::new(folder);
        let client = Client::new(Settings::new(&consul, &root, &|_| None).unwrap()).unwrap();
        let login = Login::new(&client, config, &root).of_owner(owner);
        login.login().await.unwrap();
        let lease = Rc::new(Lease::new(owner, every));
        let node = Node { name: format!("{name}-enmesh"), address: "10.1.0.1".parse().unwrap() };
        let registry =
            CatalogRegistry::new(login.client().clone(), gate(), node).with_lease(Rc::clone(&lease));
        let service = json!({
            "id": format!("{service}-{name}"), "name": service, "port": 8080, "address": "10.1.0.1",
            "connect": { "sidecar_service": { "port": 15000 } },
        });
        let group = Group { owner: owner.to_owned(), login, registry, lease, service };
        group.say().await;
        group
    }

    /// The group is gone, and nobody was told but the platform.
    pub fn kill(&self, name: &str) {
        self.azure.with(|state| state.groups.remove(&group_id(name)).unwrap());
    }

    pub fn settings(&self) -> ReapSettings {
        ReapSettings {
            scopes: vec![SCOPE.to_owned()],
            leases: false,
            grace: GRACE,
            max_share: 50,
            auth_methods: vec![METHOD.to_owned()],
            dry_run: false,
        }
    }

    pub fn platform(&self) -> PlatformConfig {
        let url = self.azure.url.clone();
        PlatformConfig { management_url: url.clone(), metadata_url: url, ..PlatformConfig::default() }
    }

    pub fn reaper(&self, settings: ReapSettings) -> Reaper {
        let asks = !settings.scopes.is_empty();
        let management = asks.then(|| Management::new(&self.platform(), &|_| None));
        Reaper::new(self.reaper_client.clone(), management, settings, "a test".to_owned()).unwrap()
    }

    /// Nodes, services and tokens of groups that Consul has, sorted.
    pub async fn held(&self) -> (Vec<String>, Vec<String>, usize) {
        let names = |value: &Value, key: &str| {
            let all = value.as_array().unwrap().iter().map(|it| it[key].as_str().unwrap().to_owned());
            let mut all: Vec<String> =
                all.filter(|name| name.ends_with("-enmesh") || key != "Node").collect();
            all.sort();
            all
        };
        let get = async |path: &str| self.operator.get(&Query::new(path)).await.unwrap().body;
        let nodes = names(&get("/v1/catalog/nodes").await, "Node");
        let mut services = Vec::new();
        for node in &nodes {
            services
                .extend(names(&get(&format!("/v1/catalog/node-services/{node}")).await["Services"], "ID"));
        }
        let tokens =
            self.operator.get(&Query::new("/v1/acl/tokens").with("authmethod", METHOD)).await.unwrap();
        (nodes, services, tokens.body.as_array().unwrap().len())
    }
}

impl Group {
    /// Says what it is, as with each converging.
    pub async fn say(&self) {
        self.registry.register(&entry(self.service.clone())).await.unwrap();
    }

    /// Leaves as it should.
    pub async fn leave(self) {
        self.registry.deregister(&entry(self.service.clone()).key).await.unwrap();
        self.registry.remove_empty_node().await.unwrap();
        self.login.logout().await.unwrap();
    }
}

/// Passes, until `done` says so of one.
pub async fn passes(reaper: &mut Reaper, mut done: impl FnMut(&Report) -> bool) -> Report {
    let started = Instant::now();
    loop {
        let report = reaper.pass(&|_| ()).await.unwrap();
        if done(&report) {
            return report;
        }
        assert!(started.elapsed() < PATIENCE, "{report}");
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

/// A pass that has to fail.
pub async fn fails(reaper: &mut Reaper) -> Fault {
    reaper.pass(&|_| ()).await.unwrap_err()
}
