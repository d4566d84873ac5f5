//! ACLs against a real Consul 1.8.7 that denies by default, one in a namespace of each test's own. Needs
//! root. The policies are those of `docs/acl.md`.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "in a test a failure is a panic"
)]

#[path = "../support/acl_bed.rs"]
mod acl_bed;
#[path = "../support/consul_bed.rs"]
mod bed;

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use acl_bed::{Issuer, acl, block, blocks, bootstrap, claims, identity, with_policy};
use bed::{Agent, api, client_of, entry, gate, scene};
use enmesh::base::{Explain, Root};
use enmesh::config::ConsulConfig;
use enmesh::consul::{
    AgentRegistry, CatalogRegistry, Client, ConsulError, Login, Node, Query, Registry, ServerFacts, Settings,
    Source, Watch, check_rights, missing_rights, needed_rights, whoami,
};
use serde_json::{Value, json};

const MATCH: &str = "/v1/connect/intentions/match";

fn intentions() -> Query {
    Query::new(MATCH).with("by", "destination").with("name", "api")
}

/// Everything that a service in the mesh takes, with the token of `client`.
async fn everything(client: &Client) {
    let registry = AgentRegistry::new(client.clone(), gate());
    let wanted = entry(api());
    registry.register(&wanted).await.unwrap();
    assert_eq!(registry.observe(&wanted).await.unwrap(), Vec::<String>::new());
    let leaf = client.get(&Query::new("/v1/agent/connect/ca/leaf/api")).await.unwrap();
    assert!(leaf.body["PrivateKeyPEM"].is_string());
    assert!(client.get(&Query::new("/v1/agent/connect/ca/roots")).await.unwrap().body["Roots"].is_array());
    client.get(&intentions()).await.unwrap();
    client.get(&Query::new("/v1/discovery-chain/db")).await.unwrap();
    let mut seen = json!([]);
    for _ in 0..100 {
        seen = client.get(&Query::new("/v1/health/connect/api")).await.unwrap().body;
        if seen[0]["Service"]["ID"] == "api-1-sidecar-proxy" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(seen[0]["Service"]["ID"], "api-1-sidecar-proxy", "{seen}");
    assert_eq!(seen[0]["Node"]["Node"], "vm");
    check_rights(client, &needed_rights(["api"], true)).await.unwrap();
    assert!(registry.deregister(&wanted.key).await.unwrap());
}

#[test]
fn the_policy_of_the_page_is_enough_and_so_is_a_service_identity() {
    scene(acl(), async |agent: &mut Agent| {
        let operator = bootstrap(agent).await;
        let rules = block("hcl", "api-sidecar-proxy");
        let listed: Vec<String> = needed_rights(["api"], true).iter().map(ToString::to_string).collect();
        for rule in &listed {
            assert!(rules.contains(rule.as_str()), "the page lacks {rule}");
        }
        assert_eq!(rules.lines().count(), listed.len(), "no more than is needed");
        everything(&with_policy(agent, &operator, "page", &rules).await).await;
        let own = identity(agent, &operator, "api").await;
        everything(&own).await;
        let known = whoami(&own).await.unwrap();
        assert_eq!((known.service_identities.as_slice(), known.expires), (&["api".to_owned()] as &[_], None));

        // Each rule counts: without it, exactly that is missing.
        for (position, rule) in rules.lines().enumerate() {
            let without: Vec<&str> = rules.lines().filter(|line| *line != rule).collect();
            let name = format!("without-{position}");
            let client = with_policy(agent, &operator, &name, &without.join("\n")).await;
            let missing = missing_rights(&client, &needed_rights(["api"], true)).await.unwrap();
            let missing: Vec<String> = missing.iter().map(ToString::to_string).collect();
            assert_eq!(missing, [rule], "without {rule}");
        }
    });
}

#[test]
fn another_s_token_is_told_which_right_it_lacks() {
    scene(acl(), async |agent: &mut Agent| {
        let operator = bootstrap(agent).await;
        let other = identity(agent, &operator, "web").await;
        let nobody = agent.client();
        let refused = async |client: &Client, query: Query, right: &str| {
            let error = client.get(&query).await.unwrap_err();
            assert_eq!((error.code(), error.class().exit_code()), ("ENM-K021", 77), "{error}");
            assert!(error.hint().contains(right), "{error}: {}", error.hint());
        };
        let registry = AgentRegistry::new(other.clone(), gate());
        let fault = registry.register(&entry(api())).await.unwrap_err();
        assert!(fault.code == "ENM-K021" && fault.hint.contains("`service:write`"), "{fault} {}", fault.hint);
        refused(&other, Query::new("/v1/agent/connect/ca/leaf/api"), "`service:write` on \"api\"").await;
        refused(&other, Query::new("/v1/agent/self"), "`agent:read`").await;
        refused(&nobody, Query::new("/v1/discovery-chain/db"), "`service:read` on \"db\"").await;
        refused(&nobody, intentions(), "`service:read`").await;
        // What is not refused but empty is found out by asking for the rights.
        assert_eq!(agent.ask(&nobody, "/v1/health/connect/api").await, json!([]));
        let needed = needed_rights(["api"], true);
        let error = check_rights(&nobody, &needed).await.unwrap_err();
        assert_eq!((error.code(), error.class().exit_code()), ("ENM-K073", 77));
        assert!(error.to_string().contains("node_prefix \"\" { policy = \"read\" }"), "{error}");
        assert_eq!(missing_rights(&nobody, &needed).await.unwrap(), needed);
        assert_eq!(missing_rights(&operator, &needed).await.unwrap(), []);
        assert_eq!(whoami(&nobody).await.unwrap_err().code(), "ENM-K022");
    });
}

#[test]
fn what_settings_need_besides() {
    scene(acl(), async |agent: &mut Agent| {
        let operator = bootstrap(agent).await;
        let service = block("hcl", "api-sidecar-proxy");
        let policy = async |name: &str, words: &str| {
            with_policy(agent, &operator, name, &format!("{service}\n{}", block("hcl", words))).await
        };
        let plain = identity(agent, &operator, "api").await;

        let reads = policy("agent-read", "agent \"vm\" { policy = \"read\" }").await;
        assert_eq!(ServerFacts::ask(&reads).await.unwrap().0.source, Source::Agent);
        assert_eq!(ServerFacts::ask(&plain).await.unwrap().0.source, Source::Catalog);

        let reload = Query::new("/v1/agent/reload");
        let writes = policy("agent-write", "agent \"vm\" { policy = \"write\" }").await;
        writes.put(&reload, None).await.unwrap();
        for client in [&plain, &reads] {
            assert_eq!(client.put(&reload, None).await.unwrap_err().code(), "ENM-K021");
        }

        let node = Node { name: "vm-enmesh".to_owned(), address: "10.0.0.9".parse().unwrap() };
        let rules = block("hcl", "node \"vm\"").replace("\"vm\"", "\"vm-enmesh\"");
        let keeper = with_policy(agent, &operator, "node", &format!("{service}\n{rules}")).await;
        let catalog = |client: &Client| CatalogRegistry::new(client.clone(), gate(), node.clone());
        assert_eq!(catalog(&plain).register(&entry(api())).await.unwrap_err().code, "ENM-K041");
        catalog(&keeper).register(&entry(api())).await.unwrap();
        assert!(catalog(&plain).register(&entry(api())).await.unwrap().differences.is_empty());

        let rules = block("hcl", "operator");
        let entries = with_policy(agent, &operator, "entries", &rules).await;
        let config = Query::new("/v1/config");
        for body in [
            json!({ "Kind": "service-defaults", "Name": "api", "Protocol": "http" }),
            json!({ "Kind": "proxy-defaults", "Name": "global", "Config": { "protocol": "http" } }),
        ] {
            entries.put(&config, Some(&body)).await.unwrap();
        }
        let error = plain.put(&config, Some(&json!({ "Kind": "proxy-defaults", "Name": "global" }))).await;
        assert_eq!(error.unwrap_err().code(), "ENM-K021");
        // Consul 1.8 has intentions by a call of their own.
        let call = Query::new("/v1/connect/intentions");
        let intention = json!({ "SourceName": "web", "DestinationName": "api", "Action": "allow" });
        let error = plain.post(&call, Some(&intention)).await.unwrap_err();
        assert!(error.code() == "ENM-K021" && error.hint().contains("intentions"), "{error}");
        let id = entries.post(&call, Some(&intention)).await.unwrap().body["ID"].clone();
        let id = id.as_str().unwrap();
        entries.delete(&Query::new(format!("/v1/connect/intentions/{id}"))).await.unwrap();
        assert_eq!(plain.get(&intentions()).await.unwrap().body["api"], Value::Null);
        assert_eq!(blocks("hcl").len(), 5, "a block that no test runs");
    });
}

/// The auth method and the binding rule of the page.
async fn make_method(operator: &Client, issuer: &Issuer, life: Option<&str>) {
    let mut method: Value = serde_json::from_str(&block("json", "JWTValidationPubKeys")).unwrap();
    method["Config"]["JWTValidationPubKeys"] = json!([issuer.public_key()]);
    method["Config"]["JWTSupportedAlgs"] = json!([issuer.algorithm()]);
    method["MaxTokenTTL"] = json!(life.unwrap_or("0s"));
    operator.put(&Query::new("/v1/acl/auth-method"), Some(&method)).await.unwrap();
    let rule: Value = serde_json::from_str(&block("json", "Selector")).unwrap();
    operator.put(&Query::new("/v1/acl/binding-rule"), Some(&rule)).await.unwrap();
}

/// A host with the host file of the page.
struct Host {
    root: Root,
    jwt: PathBuf,
    config: ConsulConfig,
}

impl Host {
    fn new(agent: &Agent, name: &str) -> Self {
        let root = Root::new(agent.folder.path().join(name));
        let jwt = root.join("/run/identity/jwt");
        fs::create_dir_all(jwt.parent().unwrap()).unwrap();
        let file = root.join("/etc/enmesh/enmesh.toml");
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, block("toml", "consul.login")).unwrap();
        let config = enmesh::config::load(&root, &|_| None);
        assert!(config.host_ok, "{:?}", config.errors);
        Host { root, jwt, config: config.host.consul }
    }

    fn login(&self) -> Login {
        let settings = Settings::new(&self.config, &self.root, &|_| None).unwrap();
        let client = Client::new(settings).unwrap();
        Login::new(&client, self.config.login.clone().unwrap(), &self.root)
    }

    fn kept(&self) -> Option<Value> {
        let text = fs::read(self.root.join("/run/enmesh/consul-token.json")).ok()?;
        Some(serde_json::from_slice(&text).unwrap())
    }
}

async fn tokens_of_logins(operator: &Client) -> Vec<String> {
    let tokens = operator.get(&Query::new("/v1/acl/tokens").with("authmethod", "vm")).await.unwrap().body;
    let tokens = tokens.as_array().unwrap();
    tokens.iter().map(|token| token["AccessorID"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_login_is_kept_renewed_taken_up_and_ended() {
    scene(acl(), async |agent: &mut Agent| {
        let operator = bootstrap(agent).await;
        let issuer = Issuer::new();
        make_method(&operator, &issuer, Some("1m")).await;
        let host = Host::new(agent, "host");
        fs::write(&host.jwt, format!("{}\n", issuer.jwt("vm-1"))).unwrap();
        let login = host.login();
        let error = login.client().get(&Query::new("/v1/agent/self")).await.unwrap_err();
        assert_eq!(error.code(), "ENM-K069");

        let first = login.login().await.unwrap();
        assert_eq!(login.login().await.unwrap(), first, "no more than once");
        let life = first.expires.unwrap().duration_since(first.renew_at.unwrap()).unwrap();
        assert!(life >= Duration::from_secs(30), "{life:?}");
        everything(login.client()).await;
        let known = whoami(login.client()).await.unwrap();
        assert_eq!(known.accessor, first.accessor);
        assert!(known.description.contains("vm-1") && known.expires.is_some(), "{known:?}");
        let file = host.root.join("/run/enmesh/consul-token.json");
        let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(file).unwrap().permissions());
        assert_eq!(mode & 0o7777, 0o600);

        // A client that was made before the renewal calls with the new token after it; the old one
        // is valid until it is retired.
        let client = login.client().clone();
        let old_token = host.kept().unwrap()["sessions"][0]["secret"].as_str().unwrap().to_owned();
        let second = login.renew().await.unwrap();
        assert_eq!(whoami(&client).await.unwrap().accessor, second.accessor);
        let stale = agent.client_with(&old_token);
        assert_eq!(whoami(&stale).await.unwrap().accessor, first.accessor);
        assert_eq!((login.old_sessions(), tokens_of_logins(&operator).await.len()), (1, 2));

        // A restart of the daemon, before anything was retired.
        let again = host.login();
        assert_eq!(again.login().await.unwrap().accessor, second.accessor);
        assert_eq!(again.old_sessions(), 1);
        again.retire_old().await.unwrap();
        assert_eq!(tokens_of_logins(&operator).await, std::slice::from_ref(&second.accessor));
        assert_eq!(whoami(&stale).await.unwrap_err().code(), "ENM-K022");

        // One that an operator took away: another login.
        operator.delete(&Query::new(format!("/v1/acl/token/{}", second.accessor))).await.unwrap();
        let third = host.login();
        let third_session = third.login().await.unwrap();
        assert_ne!(third_session.accessor, second.accessor);
        // `down`, by a process that knows the file only.
        host.login().logout().await.unwrap();
        assert_eq!((tokens_of_logins(&operator).await, host.kept()), (Vec::<String>::new(), None));
        // It can be said twice, and by who still thinks to be logged in.
        third.logout().await.unwrap();
        assert_eq!(third.client().get(&Query::new("/v1/x")).await.unwrap_err().code(), "ENM-K069");
    });
}

#[test]
fn a_login_by_a_token_that_rsa_signed() {
    scene(acl(), async |agent: &mut Agent| {
        let operator = bootstrap(agent).await;
        let issuer = Issuer::rsa();
        make_method(&operator, &issuer, None).await;
        let host = Host::new(agent, "host");
        let login = host.login();
        fs::write(&host.jwt, Issuer::new().jwt("vm-1")).unwrap();
        assert_eq!(login.login().await.unwrap_err().code(), "ENM-K067", "another key, and another algorithm");
        fs::write(&host.jwt, issuer.jwt("vm-1")).unwrap();
        login.login().await.unwrap();
        assert!(login.client().get(&Query::new("/v1/acl/token/self")).await.is_ok());
        login.logout().await.unwrap();
    });
}

#[test]
fn a_login_that_fails_says_why_and_leaves_the_old_token() {
    scene(acl(), async |agent: &mut Agent| {
        let operator = bootstrap(agent).await;
        let (issuer, stranger) = (Issuer::new(), Issuer::new());
        make_method(&operator, &issuer, None).await;
        let host = Host::new(agent, "host");
        let login = host.login();
        let refused = async |jwt: &str, code: &str| {
            fs::write(&host.jwt, jwt).unwrap();
            let error = login.renew().await.unwrap_err();
            assert_eq!(error.code(), code, "{error}");
            // Nothing of the token is in what is shown, whatever is wrong with it.
            let shown = format!("{error} {error:?} {}", error.hint());
            assert!(jwt.len() < 20 || !shown.contains(&jwt[jwt.len() - 20..]), "{shown}");
        };
        assert_eq!(login.login().await.unwrap_err().code(), "ENM-K065", "no file");
        refused("", "ENM-K065").await;
        refused("two words", "ENM-K065").await;
        refused(&"x".repeat(70_000), "ENM-K065").await;

        fs::write(&host.jwt, issuer.jwt("vm-1")).unwrap();
        let session = login.login().await.unwrap();
        assert_eq!((session.expires, session.renew_at), (None, None));
        refused("no-jwt", "ENM-K067").await;
        refused(&issuer.jwt("vm-2"), "ENM-K066").await;
        refused(&stranger.jwt("vm-1"), "ENM-K067").await;
        for (claim, value) in [
            ("aud", json!("others")),
            ("iss", json!("https://other.example")),
            ("exp", json!(1_000_000_000)),
            ("nbf", json!(4_000_000_000_u64)),
        ] {
            let mut claims = claims("vm-1");
            claims[claim] = value;
            if claim == "exp" {
                claims["iat"] = json!(999_999_000);
                claims["nbf"] = json!(999_999_000);
            }
            refused(&issuer.sign(&claims), "ENM-K067").await;
        }
        assert_eq!(whoami(login.client()).await.unwrap().accessor, session.accessor);
        assert_eq!(tokens_of_logins(&operator).await, std::slice::from_ref(&session.accessor));
        // The attempts that failed do not hinder one that is good; the session has no end.
        fs::write(&host.jwt, issuer.jwt("vm-1")).unwrap();
        login.renew().await.unwrap();
        assert!(tokio::time::timeout(Duration::from_millis(200), login.due()).await.is_err());
        login.retire_old().await.unwrap();

        let mut other = Host::new(agent, "other");
        other.config.login.as_mut().unwrap().method = "none".to_owned();
        fs::write(&other.jwt, issuer.jwt("vm-1")).unwrap();
        assert_eq!(other.login().login().await.unwrap_err().code(), "ENM-K068");

        // Consul away: what is valid stays in the file, and logging out says what is left.
        let kept = host.kept();
        assert!(kept.is_some());
        agent.kill();
        assert_eq!(login.renew().await.unwrap_err().code(), "ENM-K002");
        assert_eq!(host.login().login().await.unwrap_err().code(), "ENM-K002");
        assert!(matches!(host.login().logout().await, Err(ConsulError::Logout { .. })));
        assert_eq!(host.kept(), kept);
    });
}

#[test]
fn who_waits_for_a_change_does_not_notice_another_login() {
    scene(acl(), async |agent: &mut Agent| {
        let operator = bootstrap(agent).await;
        let issuer = Issuer::new();
        make_method(&operator, &issuer, Some("1m")).await;
        let host = Host::new(agent, "host");
        fs::write(&host.jwt, issuer.jwt("vm-1")).unwrap();
        let login = host.login();
        let first = login.login().await.unwrap();
        let registry = AgentRegistry::new(login.client().clone(), gate());
        let mut watch = Watch::by_index(Query::new("/v1/health/service/api"), Duration::from_secs(120));
        watch.next(login.client()).await.unwrap();
        let change = async {
            // Due before the minute is over, with time to spare.
            tokio::time::timeout(Duration::from_secs(40), login.due()).await.unwrap();
            assert!(first.expires.unwrap() > SystemTime::now() + Duration::from_secs(20));
            login.renew().await.unwrap();
            login.retire_old().await.unwrap();
            registry.register(&entry(api())).await.unwrap();
        };
        let seen = async {
            tokio::time::timeout(Duration::from_secs(90), watch.next(login.client())).await.unwrap()
        };
        let ((), seen) = tokio::join!(change, seen);
        assert_eq!(seen.unwrap()[0]["Service"]["ID"], "api-1");
        login.logout().await.unwrap();
    });
}

#[test]
fn without_acls_nothing_is_missing_and_nobody_can_log_in() {
    scene(json!({}), async |agent: &mut Agent| {
        let client = agent.client();
        assert_eq!(missing_rights(&client, &needed_rights(["api"], true)).await.unwrap(), []);
        assert_eq!(whoami(&client).await.unwrap_err().code(), "ENM-K071");
        let host = Host::new(agent, "host");
        fs::write(&host.jwt, Issuer::new().jwt("vm-1")).unwrap();
        assert_eq!(host.login().login().await.unwrap_err().code(), "ENM-K071");
        assert!(client_of(&ConsulConfig::default()).get(&Query::new("/v1/agent/self")).await.is_ok());
    });
}
