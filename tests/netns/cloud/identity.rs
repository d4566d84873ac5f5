//! A managed identity's token, from the platform to a session in Consul and to its end.

use std::fs;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use enmesh::base::Root;
use enmesh::base::bearer::Bearer;
use enmesh::config::{IdentityConfig, PlatformConfig};
use enmesh::consul::{Client, Query, whoami};
use enmesh::platform::ManagedIdentity;
use enmesh::reap::Session;
use serde_json::{Value, json};

use crate::acl_bed::{Issuer, acl, blocks_of, bootstrap};
use crate::bed::{Agent, scene};
use crate::fake_azure::{Canned, FakeAzure, PROOF};

const TENANT: &str = "22222222-0000-0000-0000-000000000000";
const OBJECT: &str = "11111111-0000-0000-0000-000000000000";
const RESOURCE: &str = "api://consul";

/// The claims of a managed identity's token, in the form of that version.
pub fn claims(version: u8) -> Value {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let mut claims = json!({
        "iat": now, "nbf": now, "exp": now + 86_400, "aio": "x", "oid": OBJECT, "sub": OBJECT, "tid": TENANT, "rh": "x",
        "uti": "x", "idtyp": "app",
    });
    let (issuer, audience, client) = match version {
        1 => (format!("https://sts.windows.net/{TENANT}/"), RESOURCE, "appid"),
        _ => (
            format!("https://login.microsoftonline.com/{TENANT}/v2.0"),
            "33333333-0000-0000-0000-000000000000",
            "azp",
        ),
    };
    claims["iss"] = json!(issuer);
    claims["aud"] = json!(audience);
    claims[client] = json!("44444444-0000-0000-0000-000000000000");
    claims["ver"] = json!(format!("{version}.0"));
    if version == 1 {
        let id = "/subscriptions/1111-2222/resourcegroups/mesh/providers/Microsoft.ManagedIdentity/x";
        claims["xms_mirid"] = json!(id);
    }
    claims
}

/// The page's blocks in Consul, with the keys at the fake's address.
pub async fn set_up(operator: &Client, azure: &FakeAzure, issuer: &Issuer) {
    let mut blocks = blocks_of("identity.md", "json").into_iter().map(|block| {
        let block = block.replace(
            "https://login.microsoftonline.com/TENANT/discovery",
            &format!("{}/TENANT/discovery", azure.url),
        );
        serde_json::from_str::<Value>(&block.replace("TENANT", TENANT)).unwrap()
    });
    azure.with(|state| state.keys = Some(issuer.key_set()));
    let put = async |path: &str, body: Value| operator.put(&Query::new(path), Some(&body)).await.unwrap();
    for _ in 0..2 {
        let mut method = blocks.next().unwrap();
        assert_eq!(method["Config"]["JWTSupportedAlgs"], json!(["RS256"]));
        // Keys for RSA cannot be made here.
        method["Config"]["JWTSupportedAlgs"] = json!(["ES256"]);
        put("/v1/acl/auth-method", method).await;
    }
    let rules = blocks_of("identity.md", "hcl").remove(0);
    put("/v1/acl/policy", json!({ "Name": "container-group", "Rules": rules })).await;
    put("/v1/acl/role", json!({ "Name": "container-group", "Policies": [{ "Name": "container-group" }] }))
        .await;
    for mut rule in blocks {
        put("/v1/acl/binding-rule", rule.clone()).await;
        rule["AuthMethod"] = json!("azure-v2");
        put("/v1/acl/binding-rule", rule).await;
    }
}

/// A reaper's or daemon's host, with the page's host file.
fn host(agent: &Agent, azure: &FakeAzure, method: &str) -> (Root, enmesh::config::HostConfig) {
    let root = Root::new(agent.folder.path().join(method));
    let file = root.join("/etc/enmesh/enmesh.toml");
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    let text = blocks_of("identity.md", "toml").remove(0).replace("\"azure\"", &format!("{method:?}"));
    fs::write(file, format!("{text}\n[platform]\nmetadata_url = {:?}\n", azure.url)).unwrap();
    let config = enmesh::config::load(&root, &|_| None);
    assert!(config.host_ok, "{:?}", config.errors);
    (root, config.host)
}

#[test]
fn tokens_of_both_versions_log_in_by_the_page_and_others_do_not() {
    scene(acl(), async |agent: &mut Agent| {
        let operator = bootstrap(agent).await;
        let azure = FakeAzure::listen("127.0.0.1:0");
        let issuer = Issuer::new();
        set_up(&operator, &azure, &issuer).await;
        let bring = |token: String| azure.with(|state| drop(state.tokens.insert(RESOURCE.to_owned(), token)));
        for (version, method) in [(1, "azure"), (2, "azure-v2")] {
            let (root, config) = host(agent, &azure, method);
            let refused = async |token: String, code: &str| {
                bring(token.clone());
                let session = Session::new(&root, &config, &|_| None).unwrap();
                let fault = session.keep().await.unwrap_err();
                assert_eq!(fault.code, code, "{fault}");
                assert!(!format!("{fault:?}").contains(&token[token.len() - 20..]), "{fault:?}");
            };
            // The other version's, another tenant's, another audience's, somebody else's, one that has ended.
            refused(issuer.sign(&claims(3 - version)), "ENM-K067").await;
            let with = |claim: &str, value: Value| {
                let mut claims = claims(version);
                claims[claim] = value;
                issuer.sign(&claims)
            };
            refused(with("iss", json!("https://sts.windows.net/other/")), "ENM-K067").await;
            refused(with("aud", json!("https://management.azure.com/")), "ENM-K067").await;
            refused(Issuer::new().sign(&claims(version)), "ENM-K067").await;
            refused(with("exp", json!(1_000_000_000)), "ENM-K067").await;

            bring(issuer.sign(&claims(version)));
            let session = Session::new(&root, &config, &|_| None).unwrap();
            session.keep().await.unwrap();
            let known = whoami(&session.client()).await.unwrap();
            assert_eq!(known.service_identities, ["api"], "version {version}");
            assert_eq!(known.roles, ["container-group"]);
            assert!(known.expires.is_some());
            // One that nobody bound to a service has the role's rights and no more.
            session.end().await;
            bring(with("oid", json!("55555555-0000-0000-0000-000000000000")));
            let session = Session::new(&root, &config, &|_| None).unwrap();
            session.keep().await.unwrap();
            assert!(whoami(&session.client()).await.unwrap().service_identities.is_empty());
            session.end().await;
            let left = Query::new("/v1/acl/tokens").with("authmethod", method);
            assert_eq!(operator.get(&left).await.unwrap().body, json!([]), "logged out");
        }
        // Nothing is left of any session.
        let strays = fs::read_dir(agent.folder.path()).unwrap().flatten().map(|entry| entry.path());
        for path in strays.filter(|path| path.is_dir()) {
            let token = path.join("run/enmesh/reap-token.json");
            assert!(!token.exists(), "{}", token.display());
        }
    });
}

#[test]
fn the_endpoint_s_errors_are_told_apart_and_it_gets_its_rest() {
    scene(json!({}), async |_: &mut Agent| {
        let azure = FakeAzure::listen("127.0.0.1:0");
        let token = "header.claims.signature-nobody-may-see";
        azure.with(|state| {
            state.tokens.insert(RESOURCE.to_owned(), token.to_owned());
            state.tokens.insert(format!("{RESOURCE} user-1"), "of.user.one".to_owned());
        });
        let platform = PlatformConfig { metadata_url: azure.url.clone(), ..PlatformConfig::default() };
        let config = |client: Option<&str>| IdentityConfig {
            resource: RESOURCE.to_owned(),
            client_id: client.map(str::to_owned),
        };
        let endpoint = format!("{}/msi/token", azure.url);
        let by = |client: Option<&str>, proof: &str| {
            let env = |name: &str| match name {
                "IDENTITY_ENDPOINT" if !proof.is_empty() => Some(endpoint.clone()),
                "IDENTITY_HEADER" if !proof.is_empty() => Some(proof.to_owned()),
                _ => None,
            };
            ManagedIdentity::new(&platform, &config(client), &env)
        };
        for proof in ["", PROOF] {
            assert_eq!(by(None, proof).fetch().await.unwrap().expose(), token);
            assert_eq!(by(Some("user-1"), proof).fetch().await.unwrap().expose(), "of.user.one");
            let fault = by(Some("user-2"), proof).fetch().await.unwrap_err();
            assert!(fault.code == "ENM-A010" && fault.message.contains("Identity not found"), "{fault}");
        }
        let fault = by(None, "another-host-s").fetch().await.unwrap_err();
        assert!(fault.code == "ENM-A010" && !format!("{fault:?}").contains("another-host-s"), "{fault:?}");

        let says = |status, headers, body: &str| Canned::Says(status, headers, body.to_owned());
        for (answer, code, exit) in [
            (says(404, "", ""), "ENM-A011", 69),
            (says(410, "", ""), "ENM-A011", 69),
            (says(429, "retry-after: 7\r\n", ""), "ENM-A011", 69),
            (says(500, "", "{\"error\":\"server_error\"}"), "ENM-A011", 69),
            (says(503, "", "<html>"), "ENM-A011", 69),
            (
                says(
                    400,
                    "",
                    "{\"error\":\"invalid_resource\",\"error_description\":\"no such application\"}",
                ),
                "ENM-A010",
                65,
            ),
            (says(200, "", "<html>"), "ENM-A005", 1),
            (says(200, "", "{\"access_token\":\"two words-nobody-may-see\"}"), "ENM-A005", 1),
            (Canned::Truncated, "ENM-A004", 69),
        ] {
            let identity = by(None, "");
            azure.with(|state| state.next = vec![answer]);
            let asked = azure.count("/metadata/");
            let started = Instant::now();
            let first = identity.fetch().await.unwrap_err();
            assert_eq!((first.code, first.class.exit_code()), (code, exit), "{first}");
            assert!(!format!("{first:?}").contains("nobody-may-see"), "{first:?}");
            // Whoever asks again at once hears the same, and the endpoint nothing.
            assert_eq!(identity.fetch().await.unwrap_err(), first);
            assert_eq!(azure.count("/metadata/"), asked + 1, "{code}");
            if first.message.contains("7s") || first.message.contains("10s") {
                continue;
            }
            tokio::time::sleep(Duration::from_millis(1300).saturating_sub(started.elapsed())).await;
            assert_eq!(identity.fetch().await.unwrap().expose(), token, "{code}");
        }
        // Nobody there, and somebody who takes his time.
        let nobody = PlatformConfig { metadata_url: "http://127.0.0.1:9".to_owned(), ..platform.clone() };
        let identity = ManagedIdentity::new(&nobody, &config(None), &|_| None);
        assert_eq!(identity.fetch().await.unwrap_err().code, "ENM-A002");
        azure.with(|state| state.next = vec![Canned::Slow(Duration::from_secs(12))]);
        let started = Instant::now();
        assert_eq!(by(None, "").fetch().await.unwrap_err().code, "ENM-A003");
        assert!(started.elapsed() < Duration::from_secs(11));
    });
}
