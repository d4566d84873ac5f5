//! The daemon in a container group: who it is, at which address, and what becomes of it when it is killed.

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use enmesh::config::ConsulConfig;
use enmesh::consul::{Client, Query, TokenSource};
use enmesh::netns;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::acl_bed::{Issuer, acl, blocks_of, bootstrap};
use crate::bed::{Agent, client_of};
use crate::fake_azure::{FakeAzure, FakeGroup, SCOPE, group_id};
use crate::host_bed::{API, API_FILE, Bed, HOST_FILE, LIMIT, PEERS_FILE, until};
use crate::identity::{claims, set_up};

struct Group {
    bed: Bed,
    _agent: Agent,
    azure: FakeAzure,
    operator: PathBuf,
    issuer: Issuer,
}

impl Group {
    /// A group with the service `api`, whose host file has `more` in it. Nothing of it runs yet.
    fn new(more: &str) -> Group {
        let bed = Bed::bare();
        bed.remove(PEERS_FILE);
        let issuer = Issuer::new();
        let start = async || {
            for address in ["10.44.0.1", "10.44.0.2"] {
                netns::add_address("lo", format!("{address}/32").parse().unwrap()).await.unwrap();
            }
            let mut agent = Agent::new(acl());
            agent.start().await;
            let operator = bootstrap(&agent).await;
            let azure = FakeAzure::listen("127.0.0.1:0");
            set_up(&operator, &azure, &issuer).await;
            let TokenSource::File(token) = operator.settings().token.clone() else { panic!("no token") };
            (agent, azure, token)
        };
        let (agent, azure, operator) = bed.namespace.run_async(start).unwrap();
        let url = &azure.url;
        let login = blocks_of("identity.md", "toml").remove(0);
        let platform = format!(
            "{login}\n[platform]\ngroup = {:?}\nmetadata_url = {url:?}\nmanagement_url = {url:?}\n{more}",
            group_id("Api")
        );
        let host = bed.host_file(&platform).replace("\"static\"", "\"catalog\"");
        bed.write(HOST_FILE, format!("registration = \"catalog\"\n{host}"));
        bed.write(API_FILE, API);
        azure.with(|state| {
            state.tokens.insert("api://consul".to_owned(), issuer.sign(&claims(1)));
            let group = FakeGroup { address: Some(("10.44.0.1".to_owned(), true)), ..FakeGroup::running() };
            state.groups.insert(group_id("Api"), group);
        });
        Group { bed, _agent: agent, azure, operator, issuer }
    }

    fn consul<T: Send>(&self, work: impl AsyncFnOnce(&Client) -> T + Send) -> T {
        let config = ConsulConfig { token_file: Some(self.operator.clone()), ..ConsulConfig::default() };
        self.bed.namespace.run_async(async || work(&client_of(&config)).await).unwrap()
    }

    fn get(&self, path: &str) -> Value {
        self.consul(async |client: &Client| {
            client.get(&Query::new(path)).await.map_or(Value::Null, |it| it.body)
        })
    }

    fn logins(&self) -> usize {
        let query = Query::new("/v1/acl/tokens").with("authmethod", "azure");
        let found = self.consul(async |client: &Client| client.get(&query).await.unwrap().body);
        found.as_array().unwrap().len()
    }

    /// Waits until the catalog has both at `address`.
    fn await_at(&self, address: &str) {
        let look = || {
            let seen = self.get("/v1/catalog/node-services/bed-enmesh");
            let at = |service: &Value| service["Address"] == address;
            let services = seen["Services"].as_array().cloned().unwrap_or_default();
            let right = services.len() == 2 && services.iter().all(at) && seen["Node"]["Address"] == address;
            if right { Ok(()) } else { Err(format!("{seen:#}")) }
        };
        until("the address", LIMIT, look).unwrap_or_else(|e| panic!("{e}\n{}", self.bed.log()));
    }

    fn move_to(&self, address: Option<(&str, bool)>) {
        let address = address.map(|(ip, public)| (ip.to_owned(), public));
        self.azure.with(|state| state.groups.get_mut(&group_id("Api")).unwrap().address = address);
    }
}

#[test]
fn it_logs_in_says_whose_its_service_is_and_leaves_nothing_when_it_is_told_to_go() {
    let mut group = Group::new("");
    group.bed.start();
    let status = group.bed.await_ready();
    assert_eq!(
        (&status["consul"]["token"]["source"], &status["consul"]["token"]["method"]),
        (&json!("login"), &json!("azure"))
    );
    group.await_at("10.44.0.1");
    let owner = json!(group_id("api").to_lowercase());
    let seen = group.get("/v1/catalog/node-services/bed-enmesh");
    assert_eq!(seen["Node"]["Meta"]["enmesh-owner"], owner);
    for service in seen["Services"].as_array().unwrap() {
        let lease = service["Meta"].get("enmesh-owner");
        assert_eq!(lease, (service["Kind"] != "connect-proxy").then_some(&owner), "{service:#}");
    }
    let tokens = Query::new("/v1/acl/tokens").with("authmethod", "azure");
    let tokens = group.consul(async |client: &Client| client.get(&tokens).await.unwrap().body);
    let description = tokens[0]["Description"].as_str().unwrap();
    assert!(description.contains(owner.as_str().unwrap()), "{description}");
    // The bearer token is nowhere: not in the log, not on the command line, not in a file.
    let bearer = group.azure.with(|state| state.tokens["api://consul"].clone());
    let pid = group.bed.daemon.as_ref().unwrap().id();
    let command = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
    let secret = &bearer[bearer.len() - 30..];
    for text in [group.bed.log(), command, group.bed.status().to_string()] {
        assert!(!text.contains(secret));
    }
    assert!(!files_with(group.bed.root.path(), secret));
    let said = group.bed.run(&["down"]);
    assert_eq!(said.code, Some(0), "{said:?}\n{}", group.bed.log());
    assert_eq!(
        (group.get("/v1/catalog/node-services/bed-enmesh")["Node"].clone(), group.logins()),
        (Value::Null, 0)
    );
}

/// Whether a file below `folder` has `text` in it.
fn files_with(folder: &std::path::Path, text: &str) -> bool {
    fs::read_dir(folder).unwrap().flatten().any(|entry| {
        let path = entry.path();
        let kind = entry.file_type().unwrap();
        (kind.is_dir() && files_with(&path, text))
            || (kind.is_file() && String::from_utf8_lossy(&fs::read(&path).unwrap()).contains(text))
    })
}

#[test]
fn killed_without_warning_it_is_taken_out_once_the_platform_has_it_no_more() {
    let mut group = Group::new("");
    group.bed.start();
    group.bed.await_ready();
    group.await_at("10.44.0.1");
    group.bed.kill_daemon();
    // A reaper that is nobody's container: by hand, on the same host, with the operator's token.
    let token = fs::read(&group.operator).unwrap();
    let url = &group.azure.url;
    group.bed.write("/token", token);
    let host = format!(
        "[platform]\nmetadata_url = {url:?}\nmanagement_url = {url:?}\n[consul]\ntoken_file = \"/token\"\n"
    );
    group.bed.write(HOST_FILE, host);
    let flags = ["reap", "--scope", SCOPE, "--grace", "0s", "--auth-method", "azure", "--json"];
    let report = group.bed.run(&flags).json();
    assert_eq!((&report["alive"], &report["nodes"]), (&json!(1), &json!(0)), "{report:#}");
    group.azure.with(|state| state.groups.clear());
    until("the end of the other's lead", LIMIT, || {
        let report = group.bed.run(&flags).json();
        if report["nodes"] == 1 { Ok(()) } else { Err(format!("{report:#}")) }
    })
    .unwrap();
    assert_eq!(
        (group.get("/v1/catalog/node-services/bed-enmesh")["Node"].clone(), group.logins()),
        (Value::Null, 0)
    );
}

#[test]
fn without_an_identity_it_waits_and_goes_on_once_it_has_one() {
    let mut group = Group::new("");
    let bearer = group.azure.with(|state| state.tokens.remove("api://consul").unwrap());
    group.bed.start();
    group.bed.await_fault("ENM-A010");
    assert_eq!(group.logins(), 0);
    group.azure.with(|state| drop(state.tokens.insert("api://consul".to_owned(), bearer)));
    group.bed.await_ready();
    assert_eq!(group.logins(), 1);
    // Another login, with another bearer token, after the session was taken away.
    group
        .azure
        .with(|state| drop(state.tokens.insert("api://consul".to_owned(), group.issuer.sign(&claims(1)))));
    let accessor = group.bed.status()["consul"]["token"]["accessor"].as_str().unwrap().to_owned();
    group.consul(async |client: &Client| {
        client.delete(&Query::new(format!("/v1/acl/token/{accessor}"))).await.unwrap();
    });
    group.bed.write(API_FILE, API.replace("8080", "8090"));
    group.bed.await_status("another login", Duration::from_secs(30), |status| {
        let now = status["consul"]["token"]["accessor"].as_str()?;
        (now != accessor && status["ready"] == true).then_some(())
    });
}

#[test]
fn a_changed_address_is_registered_and_one_that_is_not_told_stays() {
    let mut group = Group::new("\n[address]\nrecheck = \"1s\"\nname = \"localhost\"\n");
    group.bed.start();
    group.bed.await_ready();
    group.await_at("10.44.0.1");
    let status = group.bed.status()["address"].clone();
    assert_eq!((&status["address"], &status["source"]), (&json!("10.44.0.1"), &json!("management")));
    let of = |status: &Value, source: &str| {
        status["sources"].as_array().unwrap().iter().find(|it| it["source"] == source).cloned().unwrap()
    };
    assert!(of(&status, "management")["at"].as_u64().unwrap() > 1_000_000_000, "{status:#}");
    assert_eq!(of(&status, "route")["fault"]["code"], "ENM-D140", "there is no route but to itself");
    // That name leads here, as a number that only this host knows says.
    assert_eq!(of(&status, "dns")["address"], "127.0.0.1", "{status:#}");
    let text = group.bed.run(&["status"]).out;
    assert!(text.contains("address 10.44.0.1  by management") && text.contains("s ago"), "{text}");

    group.move_to(Some(("10.44.0.2", true)));
    group.await_at("10.44.0.2");
    // The platform is silent, then says nothing of an address: what it said last counts.
    group.azure.with(|state| drop(state.groups.remove(&group_id("Api"))));
    group.bed.await_status("the fault of the platform", LIMIT, |status| {
        (of(&status["address"], "management")["fault"]["code"] == "ENM-D142").then_some(())
    });
    group.await_at("10.44.0.2");
    // Also after a restart at which nobody tells.
    group.bed.signal(Signal::SIGTERM);
    group.bed.end(LIMIT);
    group.bed.write(
        HOST_FILE,
        fs::read_to_string(group.bed.path(HOST_FILE)).unwrap().replace("name = \"localhost\"", ""),
    );
    group.bed.start();
    let status = group.bed.await_ready();
    assert_eq!(
        (&status["address"]["address"], &status["address"]["source"]),
        (&json!("10.44.0.2"), &json!("remembered"))
    );
    // What is configured is asked of nobody.
    let host = fs::read_to_string(group.bed.path(HOST_FILE)).unwrap();
    group.bed.write(HOST_FILE, host.replace("recheck =", "ip = \"10.44.0.9\"\nrecheck ="));
    group.await_at("10.44.0.9");
    group.bed.await_status("what is configured", LIMIT, |status| {
        (status["address"]["source"] == "configured").then_some(())
    });
}

#[test]
fn the_kernel_says_from_where_it_would_speak_to_consul() {
    let (bed, other) = (Bed::bare(), Bed::bare());
    for (here, there) in [("va", "vb"), ("vc", "vd")] {
        netns::veth_pair((&bed.namespace, here), (&other.namespace, there)).unwrap();
    }
    let look = async || {
        for (link, address) in [("va", "10.45.0.1/24"), ("vc", "10.46.0.1/24")] {
            netns::add_address(link, address.parse().unwrap()).await.unwrap();
            netns::set_up(link).await.unwrap();
        }
        let towards = async |to: &str| netns::source_towards(to.parse().unwrap()).await.unwrap();
        let is = |address: &str| Some(address.parse::<IpAddr>().unwrap());
        assert_eq!(towards("10.45.0.9").await, is("10.45.0.1"));
        assert_eq!(towards("10.46.0.9").await, is("10.46.0.1"));
        assert_eq!(towards("192.0.2.1").await, None);
        assert_eq!(towards("2001:db8::1").await, None);
        netns::add_default_route("10.46.0.254".parse().unwrap()).await.unwrap();
        assert_eq!(towards("192.0.2.1").await, is("10.46.0.1"));
    };
    bed.namespace.run_async(look).unwrap();
}

#[test]
fn a_name_counts_only_where_it_leads_here() {
    let (mut bed, other) = (Bed::new(), Bed::bare());
    netns::veth_pair((&bed.namespace, "va"), (&other.namespace, "vb")).unwrap();
    let up = async |link: &str, address: &str| {
        netns::add_address(link, address.parse().unwrap()).await.unwrap();
        netns::set_up(link).await.unwrap();
    };
    bed.namespace.run_async(async || up("va", "10.47.0.1/24").await).unwrap();
    other.namespace.run_async(async || up("vb", "10.47.0.2/24").await).unwrap();
    // The host that has the name now, where the same program runs.
    let listener = other.namespace.run(|| std::net::TcpListener::bind("0.0.0.0:15100").unwrap()).unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = std::io::Write::write_all(&mut stream, &[7; 16]);
        }
    });
    let named = |name: &str| format!("\n[address]\nname = {name:?}\nsources = [\"dns\"]\nrecheck = \"1s\"\n");
    bed.write(HOST_FILE, bed.host_file(&named("10.47.0.2")));
    bed.start();
    bed.await_ready();
    let fault = |status: &Value| status["address"]["sources"][0]["fault"].clone();
    let said = fault(&bed.status());
    assert!(
        said["code"] == "ENM-D144" && said["message"].as_str().unwrap().contains("somebody else"),
        "{said:#}"
    );
    assert_eq!(bed.status()["address"]["address"], Value::Null);
    for (name, code) in [("10.47.0.3", "ENM-D144"), ("no.such.name.invalid", "ENM-D143")] {
        bed.write(HOST_FILE, bed.host_file(&named(name)));
        bed.await_status(code, LIMIT, |status| {
            let said = fault(status);
            (said["code"] == code && said["message"].as_str()?.contains(name)).then_some(())
        });
    }
    bed.write(HOST_FILE, bed.host_file(&named("10.47.0.1")));
    bed.await_status("its own name", LIMIT, |status| {
        (status["address"]["address"] == "10.47.0.1").then_some(())
    });
    // And somebody who has the port.
    let _taken = bed.namespace.run(|| std::net::TcpListener::bind("0.0.0.0:15100")).unwrap();
    bed.await_status("the port's fault", LIMIT, |status| (fault(status)["code"] == "ENM-D145").then_some(()));
    assert_eq!(bed.status()["address"]["address"], "10.47.0.1", "what was said last counts");
}
