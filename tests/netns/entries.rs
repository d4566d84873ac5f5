//! Config entries and intentions of a folder, kept in a real Consul 1.8.7. Needs root.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "in a test a failure is a panic"
)]

#[path = "../support/consul_bed.rs"]
mod bed;

use std::fs;
use std::path::Path;

use bed::{Agent, scene};
use enmesh::base::Fault;
use enmesh::consul::entries::{ConfigEntry, EntriesOutcome, apply, load, plan};
use enmesh::consul::{Client, Query, Version};
use serde_json::{Value, json};

const OLD: Option<Version> = Some(Version { major: 1, minor: 8, patch: 7 });

/// A folder with `entries` in one file.
fn folder(agent: &Agent, name: &str, entries: &Value) -> Vec<ConfigEntry> {
    let folder = agent.folder.path().join(name);
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("all.json"), entries.to_string()).unwrap();
    read(&folder)
}

fn read(folder: &Path) -> Vec<ConfigEntry> {
    let (entries, faults) = load(folder);
    assert_eq!(faults, []);
    entries
}

fn codes(outcome: &EntriesOutcome) -> Vec<&'static str> {
    outcome.faults.iter().map(|fault: &Fault| fault.code).collect()
}

fn written(outcome: &EntriesOutcome) -> Vec<&str> {
    outcome.differences.iter().map(|it| it.entry.as_str()).collect()
}

async fn has(client: &Client, path: &str) -> bool {
    client.get(&Query::new(format!("/v1/config/{path}"))).await.is_ok()
}

/// Everything that the rest builds on comes last, and in both spellings.
fn routes() -> Value {
    json!([
        { "Kind": "ingress-gateway", "Name": "edge", "Listeners": [
            { "Port": 8080, "Protocol": "http", "Services": [{ "Name": "web", "Hosts": ["web.example"] }] },
        ] },
        { "kind": "service-router", "name": "web", "routes": [
            { "match": { "http": { "path_prefix": "/admin" } }, "destination": { "service": "admin", "request_timeout": "90s" } },
        ] },
        { "Kind": "service-splitter", "Name": "web", "Splits": [
            { "Weight": 90, "ServiceSubset": "v1" }, { "Weight": 10.0, "ServiceSubset": "v2" },
        ] },
        { "kind": "service-resolver", "name": "web", "connect_timeout": "90s", "default_subset": "v1",
          "subsets": { "v1": { "filter": "Service.Meta.version == 1" }, "v2": { "Filter": "Service.Meta.version == 2" } } },
        { "Kind": "service-defaults", "Name": "web", "Protocol": "http", "Meta": { "owner": "core" } },
        { "Kind": "service-defaults", "Name": "db", "Protocol": "tcp" },
        { "Kind": "terminating-gateway", "Name": "out", "Services": [{ "Name": "db" }] },
        { "Kind": "proxy-defaults", "Config": { "protocol": "http", "local_connect_timeout_ms": 500 } },
    ])
}

#[test]
fn a_folder_is_written_in_order_once() {
    scene(json!({}), async |agent: &mut Agent| {
        let client = agent.client();
        let entries = folder(agent, "a", &routes());
        let planned = plan(&client, OLD, &entries).await.unwrap();
        assert_eq!(planned.faults, []);
        assert!(!has(&client, "service-defaults/web").await, "a plan writes nothing");
        let outcome = apply(&client, OLD, &entries).await.unwrap();
        assert_eq!(outcome, planned);
        assert_eq!(
            written(&outcome),
            [
                "proxy-defaults/global",
                "service-defaults/db",
                "service-defaults/web",
                "service-resolver/web",
                "service-splitter/web",
                "service-router/web",
                "ingress-gateway/edge",
                "terminating-gateway/out",
            ]
        );
        assert_eq!(outcome.differences[0].lines, ["+ proxy-defaults/global"]);

        // A second time nothing differs, and nothing is written.
        let index =
            async |path: &str| agent.ask(&client, &format!("/v1/config/{path}")).await["ModifyIndex"].clone();
        let before = (index("service-router/web").await, index("service-resolver/web").await);
        assert_eq!(apply(&client, OLD, &entries).await.unwrap(), EntriesOutcome::default());
        assert_eq!((index("service-router/web").await, index("service-resolver/web").await), before);

        // Changed by somebody else; one field taken out of the folder; and an entry gone from it stays.
        let body = json!({ "Kind": "service-defaults", "Name": "db", "Protocol": "http2" });
        client.put(&Query::new("/v1/config"), Some(&body)).await.unwrap();
        let mut changed = routes();
        changed.as_array_mut().unwrap().retain(|entry| entry["Kind"] != "terminating-gateway");
        changed[3].as_object_mut().unwrap().remove("connect_timeout");
        let entries = folder(agent, "a", &changed);
        let outcome = apply(&client, OLD, &entries).await.unwrap();
        assert_eq!(written(&outcome), ["service-defaults/db", "service-resolver/web"]);
        assert!(outcome.differences[0].lines.contains(&"~ Protocol".to_owned()), "{outcome:?}");
        assert!(has(&client, "terminating-gateway/out").await);
        let resolver = agent.ask(&client, "/v1/config/service-resolver/web").await;
        assert!(resolver.get("ConnectTimeout").is_none_or(|it| it == "0s"), "{resolver}");
        assert_eq!(apply(&client, OLD, &entries).await.unwrap(), EntriesOutcome::default());
    });
}

#[test]
fn who_writes_meanwhile_is_seen() {
    scene(json!({}), async |agent: &mut Agent| {
        let client = agent.client();
        let entries: Vec<_> = (0..8)
            .map(|host| {
                let body = json!({ "Kind": "service-defaults", "Name": "api", "Protocol": "http",
                    "Meta": { "host": if host % 2 == 0 { "same" } else { "other" } } });
                folder(agent, &format!("host-{host}"), &body)
            })
            .collect();
        // All at once, each from a look at nothing: nobody overwrites unseen, and all end well.
        let outcomes = futures_util::future::join_all(entries.iter().map(|it| apply(&client, OLD, it))).await;
        for outcome in &outcomes {
            assert_eq!(outcome.as_ref().unwrap().faults, []);
        }
        let entry = agent.ask(&client, "/v1/config/service-defaults/api").await;
        assert_eq!(entry["Protocol"], "http");
        // Who comes to an entry that is his already leaves it alone.
        let same = if entry["Meta"]["host"] == "same" { &entries[0] } else { &entries[1] };
        assert_eq!(apply(&client, OLD, same).await.unwrap(), EntriesOutcome::default());
    });
}

#[test]
fn protocols_that_do_not_fit_are_said_before_anything_is_written() {
    scene(json!({}), async |agent: &mut Agent| {
        let client = agent.client();
        let body = json!({ "Kind": "service-defaults", "Name": "known", "Protocol": "grpc" });
        client.put(&Query::new("/v1/config"), Some(&body)).await.unwrap();
        let entries = folder(
            agent,
            "a",
            &json!([
                { "Kind": "service-router", "Name": "plain", "Routes": [] },
                { "Kind": "service-defaults", "Name": "web", "Protocol": "http" },
                { "Kind": "service-splitter", "Name": "web", "Splits": [
                    { "Weight": 50, "Service": "web" }, { "Weight": 50, "Service": "known" },
                ] },
                { "Kind": "service-router", "Name": "known", "Routes": [] },
                { "Kind": "ingress-gateway", "Name": "edge", "Listeners": [
                    { "Port": 8080, "Protocol": "http", "Services": [{ "Name": "plain", "Hosts": ["x.example"] }] },
                ] },
                { "Kind": "service-intentions", "Name": "plain", "Sources": [
                    { "Name": "web", "Permissions": [{ "Action": "allow", "HTTP": { "PathPrefix": "/" } }] },
                ] },
            ]),
        );
        let outcome = apply(&client, OLD, &entries).await.unwrap();
        assert_eq!(codes(&outcome), ["ENM-K104"; 4], "{:?}", outcome.faults);
        assert_eq!(written(&outcome), ["service-defaults/web", "service-router/known"]);
        for path in ["service-router/plain", "service-splitter/web", "ingress-gateway/edge"] {
            assert!(!has(&client, path).await, "{path}");
        }
        let message = &outcome.faults[0].message;
        assert!(
            message.contains("\"web\" speaks http") && message.contains("\"known\" speaks grpc"),
            "{message}"
        );
    });
}

#[test]
fn what_this_consul_does_not_have_is_said_and_stops_nothing() {
    scene(json!({}), async |agent: &mut Agent| {
        let client = agent.client();
        let entries = folder(
            agent,
            "a",
            &json!([
                { "Kind": "mesh", "TransparentProxy": { "MeshDestinationsOnly": true } },
                { "Kind": "service-defaults", "Name": "new", "TransparentProxy": { "DialedDirectly": true } },
                { "Kind": "service-splitter", "Name": "nothing", "Splits": [{ "Weight": 50 }] },
                { "Kind": "proxy-defaults", "Config": { "protocol": "http" } },
                { "Kind": "service-defaults", "Name": "web", "Protocol": "http" },
            ]),
        );
        let outcome = apply(&client, OLD, &entries).await.unwrap();
        let mut faults = codes(&outcome);
        faults.sort_unstable();
        assert_eq!(faults, ["ENM-K105", "ENM-K108", "ENM-K108"], "{:?}", outcome.faults);
        assert!(outcome.faults.iter().all(|fault| fault.place.is_some()));
        assert_eq!(written(&outcome), ["proxy-defaults/global", "service-defaults/web"]);
        agent.kill();
        assert_eq!(apply(&client, OLD, &entries).await.unwrap_err().code, "ENM-K002");
    });
}

#[test]
fn intentions_come_change_and_go_through_the_older_calls() {
    scene(json!({}), async |agent: &mut Agent| {
        let client = agent.client();
        let theirs = json!({ "SourceName": "theirs", "DestinationName": "api", "SourceType": "consul", "Action": "deny" });
        client.post(&Query::new("/v1/connect/intentions"), Some(&theirs)).await.unwrap();
        let actions = async || -> Vec<(String, String)> {
            let all = agent.ask(&client, "/v1/connect/intentions").await;
            let text = |it: &Value, key: &str| it[key].as_str().unwrap().to_owned();
            let mut all: Vec<_> = all
                .as_array()
                .unwrap()
                .iter()
                .map(|it| (text(it, "SourceName"), text(it, "Action")))
                .collect();
            all.sort();
            all
        };
        let pairs = |list: &[(&str, &str)]| -> Vec<(String, String)> {
            list.iter().map(|(name, action)| ((*name).to_owned(), (*action).to_owned())).collect()
        };
        let entry = |sources: Value| {
            json!([
                { "Kind": "service-defaults", "Name": "api", "Protocol": "http" },
                { "Kind": "service-intentions", "Name": "api", "Sources": sources },
            ])
        };
        let first = folder(
            agent,
            "a",
            &entry(json!([
                { "Name": "web", "Action": "allow", "Description": "the shop" }, { "Name": "*", "Action": "deny" },
                { "Name": "fine", "Permissions": [{ "Action": "allow", "HTTP": { "PathExact": "/x" } }] },
            ])),
        );
        // Also when nobody says which version it is.
        for version in [OLD, None] {
            let planned = plan(&client, version, &first).await.unwrap();
            assert_eq!(planned.differences[1].lines, ["+ source web", "+ source *"]);
        }
        let outcome = apply(&client, None, &first).await.unwrap();
        assert_eq!(codes(&outcome), ["ENM-K106"]);
        assert!(outcome.faults[0].message.contains("fine"));
        assert_eq!(actions().await, pairs(&[("*", "deny"), ("theirs", "deny"), ("web", "allow")]));
        assert_eq!(written(&apply(&client, OLD, &first).await.unwrap()), Vec::<&str>::new());

        let second = folder(agent, "a", &entry(json!([{ "Name": "web", "Action": "deny" }])));
        let outcome = apply(&client, OLD, &second).await.unwrap();
        assert_eq!(
            outcome.differences[0].lines,
            ["~ source web: Action", "~ source web: Description", "- source *"]
        );
        assert_eq!(actions().await, pairs(&[("theirs", "deny"), ("web", "deny")]));
        assert_eq!(apply(&client, OLD, &second).await.unwrap(), EntriesOutcome::default());
    });
}
