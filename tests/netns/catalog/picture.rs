//! What the picture shows, and how soon.

use std::time::{Duration, SystemTime};

use enmesh::mesh::MeshSource;
use enmesh::plan::{Access, Callers, Protocol};
use serde_json::{Value, json};

use crate::bed::*;
use crate::consul::{Agent, scene};

#[test]
fn every_kind_of_change_arrives() {
    scene(json!({}), async |agent: &mut Agent| {
        register("api", 1, 21000, "passing").await;
        register("api", 2, 21000, "critical").await;
        register("other", 1, 21001, "passing").await;
        consul("PUT", "/v1/agent/service/register", json!({ "Name": "plain", "Port": 9 })).await;
        let (mesh, _tree) = mesh_of(agent, &[local("web", &["db"], true)]);
        let view = mesh.view().await.unwrap();
        let roots = agent.ask(&agent.client(), "/v1/agent/connect/ca/roots").await;
        assert_eq!(json!(view.trust_domain), roots["TrustDomain"]);
        assert_eq!(view.datacenter, "dc1");
        // Without ACLs everybody may call everybody; what has no sidecar is not in the mesh.
        assert_eq!(reach(&view, "web"), ["api", "db", "other"]);
        assert_eq!(
            view.services.keys().map(ToString::to_string).collect::<Vec<_>>(),
            ["api", "db", "other", "web"]
        );
        assert_eq!(instances(&view, "api"), ["10.9.0.1:21000*3"]);
        assert_eq!(view.services[&name("api")].instances.len(), 2, "the one that is not well is known");
        let first = view.services[&name("api")].instances.first().unwrap().clone();
        assert_eq!(first.service_port, Some(8080));
        assert_eq!(view.services[&name("web")].callers, Callers::anybody());
        assert_eq!((mesh.link().unwrap().fault, mesh.warnings()), (None, vec![]));

        health("api", 2, "passing").await;
        let passing = until(&mesh, "health", |view| instances(view, "api").len() == 2).await;
        health("api", 2, "warning").await;
        until(&mesh, "warning", |view| instances(view, "api").contains(&"10.9.0.2:21000*2".to_owned())).await;
        health("api", 1, "critical").await;
        let critical = until(&mesh, "health", |view| instances(view, "api").len() == 1).await;
        register("api", 3, 21000, "passing").await;
        let registered = until(&mesh, "instance", |view| instances(view, "api").len() == 2).await;
        deregister("api", 3).await;
        let gone = until(&mesh, "deregistered", |view| instances(view, "api").len() == 1).await;
        register("db", 4, 21000, "passing").await;
        let new = until(&mesh, "new service", |view| instances(view, "db").len() == 1).await;
        register("late", 4, 21004, "passing").await;
        until(&mesh, "another service", |view| reach(view, "web").contains(&"late".to_owned())).await;
        deregister("late", 4).await;
        until(&mesh, "service gone", |view| !view.services.contains_key(&name("late"))).await;
        println!("health {passing:?} {critical:?}, registered {registered:?}, gone {gone:?}, new {new:?}");

        callers_and_reach(&mesh).await;
        config_entries(&mesh).await;

        // Who has no service needs nobody, and says nothing.
        mesh.follow(&[]);
        assert!(mesh.view().await.unwrap().services.is_empty());
        tokio::time::sleep(Duration::from_millis(100)).await;
        agent.kill();
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(mesh.link().unwrap().fault, None);
        assert!(mesh.view().await.unwrap().services.is_empty());
    });
}

async fn callers_and_reach(mesh: &enmesh::mesh::CatalogMesh) {
    let callers = |view: &enmesh::plan::MeshView| view.services[&name("web")].callers.clone();
    let deny = intend("*", "*", "deny").await;
    let denied = until(mesh, "deny", |view| callers(view) == Callers::default()).await;
    until(mesh, "deny reach", |view| reach(view, "web") == ["db"]).await;
    let named = intend("api", "web", "allow").await;
    let allowed = until(mesh, "allow", |view| callers(view) == Callers::only([name("api")])).await;
    let out = intend("web", "other", "allow").await;
    until(mesh, "reach", |view| reach(view, "web") == ["db", "other"]).await;
    let anybody = intend("*", "web", "allow").await;
    until(mesh, "wildcard", |view| callers(view) == Callers::anybody()).await;
    let one = intend("evil", "web", "deny").await;
    let but = Callers { named: [(name("evil"), Access::Deny)].into(), others: Access::Allow };
    until(mesh, "all but one", |view| callers(view) == but).await;
    let wide = intend("web", "*", "allow").await;
    until(mesh, "reach all", |view| reach(view, "web") == ["api", "db", "other", "web"]).await;
    for id in [wide, one, anybody, out, named] {
        forget_intention(&id).await;
    }
    until(mesh, "as before", |view| callers(view) == Callers::default()).await;
    forget_intention(&deny).await;
    let none = until(mesh, "none", |view| callers(view) == Callers::anybody()).await;
    println!("intentions: denied {denied:?}, allowed {allowed:?}, deleted {none:?}");
}

async fn config_entries(mesh: &enmesh::mesh::CatalogMesh) {
    let protocol =
        |view: &enmesh::plan::MeshView, of: &str| view.services.get(&name(of)).map(|it| it.protocol);
    let defaults = json!({ "Kind": "service-defaults", "Name": "api", "Protocol": "http" });
    consul("PUT", "/v1/config", defaults).await;
    let arrived = until(mesh, "protocol", |view| protocol(view, "api") == Some(Protocol::Http)).await;
    println!("protocol {arrived:?}");
    let proxies = json!({ "Kind": "proxy-defaults", "Name": "global", "Config": { "protocol": "grpc" } });
    consul("PUT", "/v1/config", proxies).await;
    until(mesh, "everybody's protocol", |view| {
        (protocol(view, "api"), protocol(view, "db")) == (Some(Protocol::Http), Some(Protocol::Grpc))
    })
    .await;
    let resolver = json!({ "Kind": "service-resolver", "Name": "api", "ConnectTimeout": "3s" });
    consul("PUT", "/v1/config", resolver).await;
    let router = json!({ "Kind": "service-router", "Name": "api", "Routes": [] });
    consul("PUT", "/v1/config", router).await;
    let splitter = json!({ "Kind": "service-splitter", "Name": "other", "Splits": [{ "Weight": 100 }] });
    consul("PUT", "/v1/config", json!({ "Kind": "service-defaults", "Name": "other", "Protocol": "grpc" }))
        .await;
    consul("PUT", "/v1/config", splitter).await;
    until(mesh, "warnings", |_| mesh.warnings().len() == 2).await;
    let said: Vec<_> = mesh.warnings().into_iter().map(|it| (it.code, it.message)).collect();
    assert!(said.iter().all(|(code, _)| *code == "ENM-M051"), "{said:?}");
    assert!(said[0].1.contains("service-router of api") && said[1].1.contains("service-splitter of other"));
    for entry in ["service-router/api", "service-splitter/other", "service-defaults/api"] {
        consul("DELETE", &format!("/v1/config/{entry}"), Value::Null).await;
    }
    until(mesh, "deleted", |view| {
        protocol(view, "api") == Some(Protocol::Grpc) && mesh.warnings().is_empty()
    })
    .await;
}

#[test]
fn the_picture_outlives_consul_and_follows_it_when_it_is_back() {
    scene(json!({}), async |agent: &mut Agent| {
        register("api", 1, 21000, "passing").await;
        let web = local("web", &[], true);
        let (mesh, tree) = mesh_of(agent, std::slice::from_ref(&web));
        let before = mesh.view().await.unwrap();
        let identity = before.spiffe_id(&web.name);
        let leaf = mesh.credentials(&web.id, &identity, SystemTime::now()).await.unwrap();
        let again = mesh.credentials(&web.id, &identity, SystemTime::now()).await.unwrap();
        assert!(leaf == again, "credentials stay the same");

        let held = mesh.link().unwrap();
        tokio::time::sleep(Duration::from_millis(1100)).await;
        agent.kill();
        let link = loop {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let link = mesh.link().unwrap();
            if link.fault.is_some() {
                break link;
            }
        };
        assert!(link.since > held.since, "{link:?}");
        assert_eq!(mesh.view().await.unwrap(), before);
        // A program that starts now has the leaf, too.
        let fresh = enmesh::mesh::CatalogMesh::start(agent.client(), &enmesh::base::Root::new(tree.path()));
        fresh.follow(std::slice::from_ref(&web));
        assert!(fresh.credentials(&web.id, &identity, SystemTime::now()).await.unwrap() == leaf);

        // Back, with nothing of what it knew, and with another CA.
        agent.start().await;
        register("shop", 2, 21000, "passing").await;
        let back = until(&mesh, "back", |view| {
            reach(view, "web") == ["shop"] && view.trust_domain != before.trust_domain
        })
        .await;
        println!("back after {back:?}");
        let view = fresh.view().await.unwrap();
        for mesh in [&mesh, &fresh] {
            let identity = view.spiffe_id(&web.name);
            let new = mesh.credentials(&web.id, &identity, SystemTime::now()).await.unwrap();
            assert!(new != leaf);
        }
        until(&mesh, "link", |_| mesh.link().unwrap().fault.is_none()).await;
    });
}

#[test]
fn a_missing_right_is_named_and_default_deny_is_found_out() {
    let acl = json!({ "acl": { "enabled": true, "default_policy": "deny", "tokens": { "master": "root" } } });
    scene(acl, async |agent: &mut Agent| {
        let root = agent.client_with("root");
        let token = json!({ "SecretID": "11111111-1111-1111-1111-111111111111",
            "ServiceIdentities": [{ "ServiceName": "web" }] });
        let started = std::time::Instant::now();
        loop {
            let made = root.put(&enmesh::consul::Query::new("/v1/acl/token"), Some(&token)).await;
            if made.is_ok() {
                break;
            }
            assert!(started.elapsed() < PATIENCE, "{made:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let client = agent.client_with("11111111-1111-1111-1111-111111111111");
        let tree = tempfile::tempdir().unwrap();
        let mesh = enmesh::mesh::CatalogMesh::start(client, &enmesh::base::Root::new(tree.path()));
        let web = local("web", &["api"], true);
        mesh.follow(std::slice::from_ref(&web));
        // With what a service identity may, everything is known, and nobody may call.
        let view = mesh.view().await.unwrap();
        assert_eq!(view.datacenter, "dc1");
        assert_eq!(view.services[&name("web")].callers, Callers::default());
        assert_eq!(reach(&view, "web"), ["api"]);
        let identity = view.spiffe_id(&web.name);
        // Right after its start Consul has no CA yet, and says so.
        let begun = std::time::Instant::now();
        while let Err(fault) = mesh.credentials(&web.id, &identity, SystemTime::now()).await {
            assert!(fault.code == "ENM-K031" && begun.elapsed() < PATIENCE, "{fault}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }

        let other = local("other", &[], false);
        mesh.follow(&[web, other.clone()]);
        let fault =
            mesh.credentials(&other.id, &view.spiffe_id(&other.name), SystemTime::now()).await.unwrap_err();
        assert_eq!((fault.code, fault.service.as_deref()), ("ENM-M048", Some("other")), "{fault}");
        assert!(fault.message.contains("`service:write` on `other`"), "{fault}");
        assert_eq!(mesh.link().unwrap().fault.map(|it| it.code), Some("ENM-M048"));
        assert_eq!(mesh.view().await.unwrap().services[&name("web")].callers, Callers::default());
    });
}
