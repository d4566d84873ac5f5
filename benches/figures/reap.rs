//! A reaper's pass over a thousand container groups: nothing to do, and half of them gone. With a real
//! Consul and a fake of the platform that answers at once.

use std::error::Error;
use std::time::{Duration, Instant};

use enmesh::base::{Fault, Root};
use enmesh::config::{ConsulConfig, PlatformConfig};
use enmesh::consul::{Client, Query, Settings};
use enmesh::netns;
use enmesh::platform::Management;
use enmesh::reap::{Reaper, Report, Settings as ReapSettings};
use futures_util::stream::{self, StreamExt};
use serde_json::{Value, json};

use crate::Answer;
use crate::agent::Agent;
use crate::fake_azure::{FakeAzure, FakeGroup, SCOPE, group_id};
use crate::stats::Sample;
use crate::table::{Table, time};

const GROUPS: usize = 1000;
/// How many services they have the instances of.
const NAMES: usize = 50;
/// Passes with nothing to do.
const PASSES: usize = 20;
/// How many are killed at once.
const KILLED: usize = 500;

/// The figure.
pub fn measure() -> Answer {
    let _agent = Agent::start()?;
    let azure = FakeAzure::listen("127.0.0.1:0");
    netns::block_on(passes(&azure)).map_err(said)?
}

async fn passes(azure: &FakeAzure) -> Answer {
    let client = Client::new(Settings::new(&ConsulConfig::default(), &Root::default(), &|_| None)?)?;
    fill(&client, azure).await?;
    let platform = PlatformConfig {
        management_url: azure.url.clone(),
        metadata_url: azure.url.clone(),
        ..PlatformConfig::default()
    };
    let settings = ReapSettings {
        scopes: vec![SCOPE.to_owned()],
        leases: false,
        grace: Duration::ZERO,
        max_share: 50,
        auth_methods: Vec::new(),
        dry_run: false,
    };
    let management = Management::new(&platform, &|_| None);
    let mut reaper = Reaper::new(client, Some(management), settings, "bench".to_owned()).map_err(said)?;
    let first = reaper.pass(&|_| ()).await.map_err(said)?;
    let mut idle = Sample { name: "idle".to_owned(), times: Vec::new() };
    let mut last = first;
    for _ in 0..PASSES {
        let started = Instant::now();
        last = reaper.pass(&|_| ()).await.map_err(said)?;
        idle.times.push(started.elapsed());
    }
    azure.with(|state| (0..KILLED).for_each(|number| drop(state.groups.remove(&group_id(&name(number))))));
    let started = Instant::now();
    let busy = reaper.pass(&|_| ()).await.map_err(said)?;
    let removing = started.elapsed();
    reaper.rest().await;
    if (last.alive, busy.nodes) != (GROUPS, KILLED) {
        return Err(format!("not what was to be measured:\n{last}{busy}").into());
    }

    let title = format!("A reaper's pass over {GROUPS} groups of {NAMES} services");
    let mut table = Table::new(&title, &["", ""]);
    let mut row = |name: &str, value: String| table.row([name.to_owned(), value]);
    let questions = |report: &Report| format!("{} + {}", report.asked_consul, report.asked_platform);
    row("all of them there: median", time(idle.median()));
    row("the same: slowest", time(idle.quantile(1.0)));
    row("questions to Consul and to the platform", questions(&last));
    row(&format!("{KILLED} of them gone, and taken out"), time(removing));
    row("questions to Consul and to the platform", questions(&busy));
    table.note(format!("{PASSES} passes; the platform's pages have 100 groups"));
    Ok(table)
}

fn name(number: usize) -> String {
    format!("g{number}")
}

/// Registers everything as hosts do: node, service, sidecar, and a check each.
async fn fill(client: &Client, azure: &FakeAzure) -> Result<(), Box<dyn Error>> {
    let writes = (0..GROUPS).flat_map(|number| {
        let id = group_id(&name(number));
        azure.with(|state| drop(state.groups.insert(id.clone(), FakeGroup::running())));
        let service = format!("s{}", number % NAMES);
        let sidecar = format!("{service}-sidecar-proxy");
        let owner = id.to_lowercase();
        let meta = json!({
            "enmesh-owner": owner, "enmesh-renewed": "2026-01-01T00:00:00Z", "enmesh-lease": "600",
        });
        let proxy = json!({
            "Kind": "connect-proxy", "ID": sidecar, "Service": sidecar, "Port": 15050,
            "Proxy": { "DestinationServiceName": service, "DestinationServiceID": service },
        });
        let own = json!({ "ID": service, "Service": service, "Port": 8080, "Meta": meta });
        [write(number, &owner, own), write(number, &owner, proxy)]
    });
    let query = Query::new("/v1/catalog/register");
    let mut writes = stream::iter(writes.map(|body| {
        let query = query.clone();
        async move { client.put(&query, Some(&body)).await }
    }))
    .buffered(8);
    while let Some(written) = writes.next().await {
        written?;
    }
    Ok(())
}

fn write(number: usize, owner: &str, service: Value) -> Value {
    let id = service.get("ID").and_then(Value::as_str).unwrap_or_default().to_owned();
    let check = format!("enmesh:{id}");
    json!({
        "Node": format!("{}-enmesh", name(number)), "Address": "10.9.0.1",
        "NodeMeta": { "synthetic-node": "true", "enmesh-node": "true", "enmesh-owner": owner },
        "Check": { "CheckID": check, "Name": "enmesh", "ServiceID": id, "Status": "passing" },
        "Service": service,
    })
}

fn said(fault: Fault) -> String {
    fault.to_string()
}
