//! A large catalog: how long until it is known, what it costs, and that nothing is missed.

use std::time::{Duration, Instant};

use enmesh::mesh::MeshSource;
use serde_json::json;

use crate::bed::*;
use crate::consul::{Agent, scene};

const SERVICES: usize = 500;
const INSTANCES: u8 = 5;

async fn fill() {
    for number in 1..=INSTANCES {
        for service in 0..SERVICES {
            let (service, port) = (format!("s{service}"), 21000 + u16::try_from(service).unwrap());
            register(&service, number, port, "passing").await;
        }
    }
}

/// Memory of this process in kB, and the time that this thread has worked: the mesh is in it.
fn cost() -> (u64, Duration) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let memory = line.trim().trim_end_matches(" kB").trim().parse().unwrap();
    let schedule = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    let nanoseconds = schedule.split(' ').next().unwrap().parse().unwrap();
    (memory, Duration::from_nanos(nanoseconds))
}

/// TCP connections to Consul that are there now.
fn connections() -> usize {
    let table = std::fs::read_to_string("/proc/thread-self/net/tcp").unwrap();
    // Port 8500, established.
    table
        .lines()
        .filter(|line| line.split_whitespace().nth(2).is_some_and(|it| it.ends_with(":2134")))
        .filter(|line| line.split_whitespace().nth(3) == Some("01"))
        .count()
}

#[test]
fn five_hundred_services_are_followed_with_few_connections() {
    scene(json!({ "log_level": "warn" }), async |agent: &mut Agent| {
        fill().await;
        let (memory, worked) = cost();
        let begun = Instant::now();
        let (mesh, _tree) = mesh_of(agent, &[local("web", &["s7"], true)]);
        until(&mesh, "everything", |view| view.services.len() == SERVICES + 1).await;
        let view = mesh.view().await.unwrap();
        assert!(
            view.services
                .iter()
                .all(|(it, of)| *it == name("web") || of.instances.len() == usize::from(INSTANCES))
        );
        drop(view);
        let after = cost();
        println!(
            "{SERVICES} services of {INSTANCES}: known after {:?}, {:?} of CPU, {} kB more memory, {} connections",
            begun.elapsed(),
            after.1 - worked,
            after.0.saturating_sub(memory),
            connections()
        );
        assert!(connections() < 100, "Consul gives an address 200");

        // Idle.
        tokio::time::sleep(Duration::from_millis(2500)).await;
        let (_, worked) = cost();
        tokio::time::sleep(Duration::from_secs(3)).await;
        let idle = cost().1 - worked;
        println!("idle for 3 s: {idle:?} of CPU");
        assert!(idle < Duration::from_millis(100));

        flaps(&mesh).await;
        one_by_one(&mesh).await;
    });
}

/// Ten instances a second go out and come back.
async fn flaps(mesh: &enmesh::mesh::CatalogMesh) {
    let (_, worked) = cost();
    let begun = Instant::now();
    let mut slowest = Duration::ZERO;
    for round in 0..20_usize {
        let service = format!("s{}", round * 17 % SERVICES);
        for (status, left) in [("critical", INSTANCES - 1), ("passing", INSTANCES)] {
            health(&service, 2, status).await;
            let took = until(mesh, "flap", |view| instances(view, &service).len() == usize::from(left)).await;
            slowest = slowest.max(took);
            tokio::time::sleep(Duration::from_millis(50).saturating_sub(took)).await;
        }
    }
    let took = begun.elapsed();
    println!(
        "20 flaps in {took:?}: the slowest change was there after {slowest:?}, {:?} of CPU",
        cost().1 - worked
    );
    assert!(slowest < Duration::from_secs(5));
}

/// What no check tells of.
async fn one_by_one(mesh: &enmesh::mesh::CatalogMesh) {
    register("s300", 9, 21000, "passing").await;
    let new = until(mesh, "registered", |view| instances(view, "s300").len() == 6).await;
    deregister("s300", 9).await;
    let gone = until(mesh, "deregistered", |view| instances(view, "s300").len() == 5).await;
    register("s400", 9, 21000, "critical").await;
    health("s400", 9, "passing").await;
    let usual = until(mesh, "critical first", |view| instances(view, "s400").len() == 6).await;
    consul("PUT", "/v1/catalog/deregister", json!({ "Node": "n5" })).await;
    let node =
        until(mesh, "node", |view| instances(view, "s499").len() == 4 && instances(view, "s0").len() == 4)
            .await;
    register("s7", 9, 21000, "passing").await;
    let explicit = until(mesh, "explicit", |view| instances(view, "s7").len() == 5).await;
    println!(
        "registered {new:?}, with a critical check first {usual:?}, deregistered {gone:?}, a node {node:?}, explicit upstream {explicit:?}"
    );
}
