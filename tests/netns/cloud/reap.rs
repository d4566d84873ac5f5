//! What is left behind goes, and nothing else does.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use enmesh::consul::Query;
use futures_util::future;
use serde_json::json;

use crate::acl_bed::acl;
use crate::bed::{Agent, scene};
use crate::fake_azure::{Canned, FakeGroup, SCOPE, group_id};
use crate::land::{GRACE, Land, fails, passes};

const SAY: &dyn Fn(&str) = &|_| ();

#[test]
fn a_group_that_was_killed_goes_after_its_grace_and_only_it() {
    scene(acl(), async |agent: &mut Agent| {
        let land = Land::new(agent).await;
        let alive = land.group("a", "api").await;
        let killed = land.group("b", "api").await;
        let other = json!({ "Node": "theirs", "Address": "10.2.0.1", "NodeMeta": { "synthetic-node": "true" },
            "Service": { "ID": "x", "Service": "api" } });
        land.operator.put(&Query::new("/v1/catalog/register"), Some(&other)).await.unwrap();
        let mut reaper = land.reaper(land.settings());
        let first = reaper.pass(SAY).await.unwrap();
        assert_eq!((first.owners, first.alive, first.waiting.len()), (2, 2, 0), "{first}");

        land.kill("b");
        let started = Instant::now();
        let report = reaper.pass(SAY).await.unwrap();
        assert_eq!(report.waiting[0].owner, killed.owner, "{report}");
        let report = passes(&mut reaper, |report| !report.removed.is_empty()).await;
        assert!(started.elapsed() >= GRACE, "{:?}", started.elapsed());
        assert_eq!(report.removed[0].owner, killed.owner);
        assert_eq!((report.services, report.nodes, report.tokens), (2, 1, 1), "{report}");
        let (nodes, services, tokens) = land.held().await;
        assert_eq!(nodes, ["a-enmesh"]);
        assert_eq!((services, tokens), (vec!["api-a".to_owned(), "api-a-sidecar-proxy".to_owned()], 1));
        let theirs = agent.ask(&land.operator, "/v1/catalog/node-services/theirs").await;
        assert_eq!(theirs["Services"][0]["ID"], "x");
        // Nothing is left of it in what is remembered, and the one that lives goes on.
        let report = reaper.pass(SAY).await.unwrap();
        assert_eq!((report.owners, report.alive), (1, 1), "{report}");
        alive.leave().await;
        assert_eq!(land.held().await, (Vec::new(), Vec::new(), 0));
    });
}

/// Asks without end who is healthy, as sidecars of callers do. Who fails is heard.
async fn callers(land: &Land<'_>, asked: &AtomicUsize) {
    let ask = async |number: usize| {
        loop {
            let path = format!("/v1/health/connect/s{number}");
            land.operator.get(&Query::new(&path).with("passing", "1")).await.unwrap();
            asked.fetch_add(1, Ordering::Relaxed);
        }
    };
    future::join_all((0..7).map(ask)).await;
}

#[test]
fn two_hundred_groups_come_and_go_and_nothing_of_them_stays() {
    scene(acl(), async |agent: &mut Agent| {
        let land = Land::new(agent).await;
        let settings = enmesh::reap::Settings { max_share: 100, ..land.settings() };
        let (mut one, mut other) = (land.reaper(settings.clone()), land.reaper(settings));
        let (mut living, mut gone) = (Vec::new(), 0);
        let asked = AtomicUsize::new(0);
        let life = async {
            for round in 0..20 {
                let arrive = |number: usize| {
                    let (land, name) = (&land, format!("g{number}"));
                    async move { (land.group(&name, &format!("s{}", number % 7)).await, name) }
                };
                let arriving = future::join_all((round * 10..round * 10 + 10).map(arrive));
                let passing = async { (one.pass(SAY).await.unwrap(), other.pass(SAY).await.unwrap()) };
                let (arrived, (report, idle)) = tokio::join!(arriving, passing);
                gone += report.removed.len();
                assert!(report.faults.is_empty(), "{:?}", report.faults);
                assert!(idle.leader.is_some(), "two lead");
                living.extend(arrived);
                // Of those that end, every other one says so.
                let ending = living.drain(..living.len() - 5).enumerate().map(|(at, (group, name))| {
                    land.kill(&name);
                    async move {
                        if at % 2 == 0 {
                            group.leave().await
                        }
                    }
                });
                future::join_all(ending).await;
            }
        };
        tokio::select! { () = life => {}, () = callers(&land, &asked) => {} }
        println!("{} questions meanwhile", asked.load(Ordering::Relaxed));
        assert!(asked.load(Ordering::Relaxed) > 200, "there was no load");
        let report = passes(&mut one, |report| {
            gone += report.removed.len();
            report.waiting.is_empty() && report.removed.is_empty()
        })
        .await;
        assert_eq!((report.owners, report.alive), (5, 5), "{report}");
        assert!(gone >= 90, "{gone}");
        let (nodes, services, tokens) = land.held().await;
        assert_eq!((nodes.len(), services.len(), tokens), (5, 10, 5), "{nodes:?}");
        let checks = agent.ask(&land.operator, "/v1/health/state/any").await;
        let ours = checks
            .as_array()
            .unwrap()
            .iter()
            .filter(|it| it["CheckID"].as_str().unwrap().starts_with("enmesh:"));
        assert_eq!(ours.count(), 10);
        // The lead goes to the other one.
        one.rest().await;
        tokio::time::sleep(Duration::from_millis(1500)).await;
        assert!(other.pass(SAY).await.unwrap().leader.is_none());
    });
}

#[test]
fn who_may_come_back_is_spared_and_who_has_ended_goes() {
    scene(acl(), async |agent: &mut Agent| {
        let land = Land::new(agent).await;
        let lease = Duration::from_secs(1);
        for (name, state, provisioning, policy) in [
            ("pending", "Pending", "Pending", "Never"),
            ("repairing", "Stopped", "Repairing", "Never"),
            ("unhealthy", "Unhealthy", "Unhealthy", "Always"),
            ("restarts", "Failed", "Succeeded", "OnFailure"),
            ("stopped", "Stopped", "Succeeded", "Always"),
        ] {
            let group = FakeGroup { state, provisioning, policy, address: None };
            land.azure.with(|fake| drop(fake.groups.insert(group_id(name), group)));
            // None of them renews its lease.
            land.host(name, "api", &group_id(name).to_lowercase(), lease).await;
        }
        let mut reaper = land.reaper(land.settings());
        let report = passes(&mut reaper, |report| !report.removed.is_empty()).await;
        assert_eq!(report.removed.len(), 1, "{report}");
        assert!(report.removed[0].owner.ends_with("/stopped"));
        let report = passes(&mut reaper, |report| report.spared.len() == 4).await;
        assert!(report.removed.is_empty());
        assert_eq!(
            land.held().await.0,
            ["pending-enmesh", "repairing-enmesh", "restarts-enmesh", "unhealthy-enmesh"]
        );
    });
}

#[test]
fn by_leases_alone_who_is_silent_goes_and_who_renews_stays() {
    scene(acl(), async |agent: &mut Agent| {
        let land = Land::new(agent).await;
        let lease = Duration::from_secs(1);
        let keeps = land.host("keeps", "api", "keeps-enmesh", lease).await;
        land.host("silent", "api", "silent-enmesh", lease).await;
        let settings = enmesh::reap::Settings { scopes: Vec::new(), leases: true, ..land.settings() };
        let mut reaper = land.reaper(settings);
        let work = passes(&mut reaper, |report| !report.removed.is_empty());
        let renewing = async {
            loop {
                keeps.lease.due().await;
                keeps.say().await;
            }
        };
        let started = Instant::now();
        let report = tokio::select! { report = work => report, () = renewing => unreachable!() };
        assert!(started.elapsed() >= lease * 3 + GRACE, "{:?}", started.elapsed());
        assert_eq!(report.removed[0].owner, "silent-enmesh");
        assert_eq!(land.held().await.0, ["keeps-enmesh"]);
        assert_eq!(report.asked_platform, 0);
    });
}

#[test]
fn nothing_goes_when_the_platform_does_not_answer_or_answers_half() {
    scene(acl(), async |agent: &mut Agent| {
        let land = Land::new(agent).await;
        for name in ["a", "b", "c"] {
            land.group(name, "api").await;
        }
        let held = land.held().await;
        land.kill("a");
        let settings = enmesh::reap::Settings { grace: Duration::ZERO, ..land.settings() };
        let says = |status, headers, body: &str| Canned::Says(status, headers, body.to_owned());
        let error = "{\"error\":{\"code\":\"X\",\"message\":\"not now\"}}";
        let list = "{\"value\":[";
        for (answers, code) in [
            (vec![says(403, "", error)], "ENM-A020"),
            (vec![says(401, "", error), says(401, "", error)], "ENM-A020"),
            (vec![says(429, "retry-after: 3600\r\n", error)], "ENM-A021"),
            (vec![says(503, "retry-after: 0\r\n", error); 4], "ENM-A022"),
            (vec![says(200, "", list)], "ENM-A005"),
            (vec![says(200, "", "{\"value\":{}}")], "ENM-A005"),
            (vec![says(200, "", "{\"value\":[{\"name\":\"no id\"}]}")], "ENM-A005"),
            (vec![says(404, "", error)], "ENM-A005"),
            (vec![says(302, "location: http://elsewhere.example/\r\n", "")], "ENM-A005"),
        ] {
            let mut reaper = land.reaper(settings.clone());
            // The first question is for a token.
            let fault = {
                let token =
                    says(200, "", "{\"access_token\":\"management.token.secret\",\"expires_in\":\"3599\"}");
                let again = answers.len() == 2 && code == "ENM-A020";
                let mut next = vec![token.clone()];
                for (position, answer) in answers.into_iter().enumerate() {
                    if again && position == 1 {
                        next.push(token.clone());
                    }
                    next.push(answer);
                }
                land.azure.with(|state| state.next = next);
                fails(&mut reaper).await
            };
            assert_eq!(fault.code, code, "{fault}");
            assert!(!format!("{fault:?}").contains("management.token"), "{fault:?}");
            land.azure.with(|state| state.next.clear());
            reaper.rest().await;
            tokio::time::sleep(Duration::from_millis(1100)).await;
        }
        // A page that leads to somebody else, and one that leads in circles.
        let own = format!(
            "{}{SCOPE}/providers/Microsoft.ContainerInstance/containerGroups?api-version=2023-05-01",
            land.azure.url
        );
        for link in ["http://127.0.0.1:1/evil", own.as_str()] {
            land.azure.with(|state| state.leads_to = Some(link.to_owned()));
            let mut reaper = land.reaper(settings.clone());
            assert_eq!(fails(&mut reaper).await.code, "ENM-A023", "{link}");
            reaper.rest().await;
            tokio::time::sleep(Duration::from_millis(1100)).await;
        }
        assert_eq!(land.held().await, held);
        // Throttled, and then told: it waits as long as it is asked to.
        let mut reaper = land.reaper(settings);
        land.azure.with(|state| {
            state.leads_to = None;
            let token =
                says(200, "", "{\"access_token\":\"management.token.secret\",\"expires_in\":\"3599\"}");
            state.next = vec![token, says(429, "retry-after: 2\r\n", error), Canned::Truncated];
        });
        let started = Instant::now();
        let report = reaper.pass(SAY).await.unwrap();
        assert!(started.elapsed() >= Duration::from_secs(3), "{:?}", started.elapsed());
        assert_eq!(report.removed.len(), 1, "{report}");
    });
}

#[test]
fn a_share_that_is_too_large_does_not_go_and_a_dry_run_touches_nothing() {
    scene(acl(), async |agent: &mut Agent| {
        let land = Land::new(agent).await;
        land.azure.with(|state| state.page = 2);
        for name in ["a", "b", "c", "d", "e"] {
            land.group(name, "api").await;
        }
        let settings = enmesh::reap::Settings { grace: Duration::ZERO, ..land.settings() };
        let mut reaper = land.reaper(settings.clone());
        assert_eq!(reaper.pass(SAY).await.unwrap().alive, 5);
        assert_eq!(land.azure.count("skip=4"), 1, "all pages are read");
        for name in ["a", "b", "c"] {
            land.kill(name);
        }
        let held = land.held().await;
        let fault = fails(&mut reaper).await;
        assert_eq!(fault.code, "ENM-A041");
        assert!(fault.message.contains("3 of 5"), "{fault}");
        // A dry run needs no lead, and writes nothing: not even what it has seen.
        let index = async || {
            let answer =
                land.operator.get(&Query::new("/v1/kv/enmesh/reap/").with("recurse", "true")).await.unwrap();
            answer.index
        };
        let before = index().await;
        let dry = enmesh::reap::Settings { dry_run: true, max_share: 60, ..settings.clone() };
        let report = land.reaper(dry).pass(SAY).await.unwrap();
        assert_eq!((report.removed.len(), report.services, report.tokens), (3, 3, 3), "{report}");
        assert_eq!((index().await, land.held().await), (before, held));
        reaper.rest().await;
        tokio::time::sleep(Duration::from_millis(1100)).await;
        let mut reaper = land.reaper(enmesh::reap::Settings { max_share: 60, ..settings });
        let report = reaper.pass(SAY).await.unwrap();
        assert_eq!(report.removed.len(), 3, "{report}");
        assert_eq!(land.held().await.0, ["d-enmesh", "e-enmesh"]);
    });
}

#[test]
fn who_is_heard_at_the_last_moment_keeps_everything() {
    scene(acl(), async |agent: &mut Agent| {
        let land = Land::new(agent).await;
        land.group("a", "api").await;
        let late = land.host("b", "api", &group_id("b").to_lowercase(), Duration::from_millis(1)).await;
        let settings = enmesh::reap::Settings { grace: Duration::ZERO, ..land.settings() };
        let mut reaper = land.reaper(settings);
        // The platform does not know it; while the reaper asks once more, it renews its lease.
        let list = |ids: &[&str]| {
            let groups: Vec<_> =
                ids.iter().map(|id| json!({ "id": group_id(id), "properties": {} })).collect();
            Canned::Says(200, "", json!({ "value": groups }).to_string())
        };
        let token = "{\"access_token\":\"management.token.secret\",\"expires_in\":\"3599\"}".to_owned();
        land.azure.with(|state| {
            state.next =
                vec![Canned::Says(200, "", token), list(&["a"]), Canned::Slow(Duration::from_secs(3))];
        });
        let pass = reaper.pass(SAY);
        let renewal = async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            late.lease.due().await;
            late.say().await;
        };
        let (report, ()) = tokio::join!(pass, renewal);
        let report = report.unwrap();
        assert_eq!((report.removed.len(), report.services, report.tokens), (0, 0, 0), "{report}");
        assert_eq!(report.warnings[0].code, "ENM-A044");
        assert_eq!(land.held().await.0, ["a-enmesh", "b-enmesh"]);
    });
}

#[test]
fn a_reaper_that_lost_the_lead_removes_nothing() {
    scene(acl(), async |agent: &mut Agent| {
        let land = Land::new(agent).await;
        land.group("a", "api").await;
        land.group("b", "api").await;
        let settings = enmesh::reap::Settings { grace: Duration::ZERO, ..land.settings() };
        let mut reaper = land.reaper(settings);
        reaper.pass(SAY).await.unwrap();
        land.kill("b");
        land.azure.with(|state| state.next = vec![Canned::Slow(Duration::from_secs(2))]);
        let pass = reaper.pass(SAY);
        let loss = async {
            tokio::time::sleep(Duration::from_millis(800)).await;
            let held = agent.ask(&land.operator, "/v1/kv/enmesh/reap/lock").await;
            let session = held[0]["Session"].as_str().unwrap().to_owned();
            let path = format!("/v1/session/destroy/{session}");
            land.operator.put(&Query::new(path), None).await.unwrap();
        };
        let (report, ()) = tokio::join!(pass, loss);
        assert_eq!(report.unwrap_err().code, "ENM-A046");
        assert_eq!(land.held().await.0, ["a-enmesh", "b-enmesh"]);
        // It takes the lead again and does its work.
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let report = passes(&mut reaper, |report| !report.removed.is_empty()).await;
        assert_eq!(report.nodes, 1, "{report}");
    });
}
