//! `enmesh reap` as it is typed, and as it goes on in a container.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::acl_bed::{acl, blocks_of, with_policy};
use crate::bed::{Agent, scene};
use crate::fake_azure::{FakeGroup, SCOPE, group_id};
use crate::land::Land;
use enmesh::consul::TokenSource;

/// The command, below a tree of its own, with a token and a platform.
#[expect(clippy::disallowed_methods, reason = "a person types this")]
fn reap(land: &Land<'_>, arguments: &[&str]) -> Command {
    let root = land.agent.folder.path().join("reaper");
    let file = root.join("etc/enmesh/enmesh.toml");
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    let url = &land.azure.url;
    let text = format!("[platform]\nmanagement_url = {url:?}\nmetadata_url = {url:?}\n");
    std::fs::write(&file, text).unwrap();
    let TokenSource::File(token) = &land.reaper_client.settings().token else { panic!("no token") };
    std::fs::copy(token, root.join("token")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_enmesh"));
    command.arg("reap").args(arguments).arg("--root").arg(&root).env_clear();
    command.env("CONSUL_HTTP_TOKEN_FILE", "/token").stdin(Stdio::null());
    command
}

/// Runs it to its end; exit status, answer, and what it said besides.
fn run(land: &Land<'_>, arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = reap(land, arguments).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn by_hand_it_says_what_it_does_and_why_not() {
    scene(acl(), async |agent: &mut Agent| {
        let land = Land::new(agent).await;
        for name in ["a", "b", "c"] {
            land.group(name, "api").await;
        }
        let (code, _, err) = run(&land, &[]);
        assert!(code == Some(64) && err.contains("ENM-A040"), "{code:?} {err}");
        let (code, _, err) = run(&land, &["--scope", "mesh"]);
        assert!(code == Some(64) && err.contains("ENM-A047"), "{code:?} {err}");
        land.kill("b");
        let flags = ["--scope", SCOPE, "--grace", "0s", "--auth-method", crate::land::METHOD];
        let (code, out, err) = run(&land, &[&flags[..], &["--dry-run"]].concat());
        assert_eq!(code, Some(0), "{err}");
        assert!(
            out.contains("would go")
                && out.contains("containergroups/b")
                && !out.contains("containergroups/a"),
            "{out}"
        );
        assert!(err.contains("asking the platform"), "progress goes to people: {err}");
        assert_eq!(land.held().await.0.len(), 3);
        let (code, out, _) = run(&land, &[&flags[..], &["--json"]].concat());
        let report: Value = serde_json::from_str(&out).unwrap();
        assert_eq!(
            (code, &report["owners"], &report["nodes"], &report["tokens"]),
            (Some(0), &json!(3), &json!(1), &json!(1))
        );
        assert_eq!(land.held().await.0, ["a-enmesh", "c-enmesh"]);
        // A platform that does not know the scope's groups any more: all are gone, and none goes.
        land.azure.with(|state| state.groups.clear());
        tokio::time::sleep(Duration::from_millis(1100)).await;
        let (code, _, err) = run(&land, &flags);
        assert!(code == Some(1) && err.contains("ENM-A041"), "{code:?} {err}");
        // Without the right to logins they stay, and that is said.
        let rules = blocks_of("reap.md", "hcl").remove(0).replace("acl = \"write\"", "");
        let mut less = land;
        less.reaper_client = with_policy(agent, &less.operator, "less", &rules).await;
        less.azure.with(|state| drop(state.groups.insert(group_id("a"), FakeGroup::running())));
        tokio::time::sleep(Duration::from_millis(1100)).await;
        let (code, _, err) = run(&less, &flags);
        assert!(code == Some(0) && err.contains("ENM-A042"), "{code:?} {err}");
        assert_eq!((less.held().await.0, less.held().await.2), (vec!["a-enmesh".to_owned()], 2));
        // Without any right nothing is said to be gone.
        less.reaper_client =
            with_policy(agent, &less.operator, "none", "key_prefix \"x\" { policy = \"read\" }").await;
        let (code, _, err) = run(&less, &flags);
        assert!(code == Some(77) && err.contains("ENM-K021"), "{code:?} {err}");
    });
}

/// Ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn as_a_container_it_goes_on_and_gives_up_the_lead_when_it_ends() {
    scene(acl(), async |agent: &mut Agent| {
        let land = Land::new(agent).await;
        land.group("a", "api").await;
        land.group("b", "api").await;
        let flags = ["--scope", SCOPE, "--grace", "1s", "--interval", "1s", "--json"];
        let start =
            || Running(reap(&land, &flags).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap());
        let mut one = start();
        tokio::time::sleep(Duration::from_secs(2)).await;
        let mut two = start();
        land.kill("b");
        let started = Instant::now();
        while land.held().await.0.len() > 1 {
            assert!(started.elapsed() < Duration::from_secs(20));
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let end = |running: &mut Running| {
            kill(Pid::from_raw(running.0.id().cast_signed()), Signal::SIGTERM).unwrap();
            let status = running.0.wait().unwrap();
            let mut text = String::new();
            running.0.stdout.take().unwrap().read_to_string(&mut text).unwrap();
            let passes: Vec<Value> =
                serde_json::Deserializer::from_str(&text).into_iter().collect::<Result<_, _>>().unwrap();
            (status.code(), passes)
        };
        let (code, passes) = end(&mut one);
        assert_eq!(code, Some(0));
        assert!(passes.iter().any(|pass| pass["removed"][0]["services"][0] == "api-b"), "{passes:?}");
        // The other one only said who leads; now it does.
        tokio::time::sleep(Duration::from_secs(4)).await;
        let (_, passes) = end(&mut two);
        assert!(passes[0]["leader"].as_str().unwrap().contains("process"), "{passes:?}");
        let led = passes.iter().filter(|pass| pass["owners"] == 1 && pass["leader"].is_null()).count();
        assert!(led >= 1, "{passes:?}");
    });
}

/// Killed, it says nothing to anybody: its lead ends with its session, and what it left undone is done.
#[test]
fn when_the_one_that_leads_is_killed_the_other_one_takes_over() {
    scene(acl(), async |agent: &mut Agent| {
        let land = Land::new(agent).await;
        for name in ["a", "b", "c"] {
            land.group(name, "api").await;
        }
        let method = crate::land::METHOD;
        let flags =
            ["--scope", SCOPE, "--grace", "1s", "--interval", "1s", "--auth-method", method, "--json"];
        let start =
            || Running(reap(&land, &flags).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap());
        let mut one = start();
        tokio::time::sleep(Duration::from_secs(2)).await;
        let mut two = start();
        tokio::time::sleep(Duration::from_secs(2)).await;
        one.0.kill().unwrap();
        one.0.wait().unwrap();
        land.kill("b");
        let started = Instant::now();
        while land.held().await.0.len() > 2 {
            assert!(started.elapsed() < Duration::from_secs(90));
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        eprintln!("figure: a killed reaper's work is done after {} s", started.elapsed().as_secs());
        tokio::time::sleep(Duration::from_secs(2)).await;
        let (nodes, services, tokens) = land.held().await;
        assert_eq!(
            (nodes, services.len(), tokens),
            (vec!["a-enmesh".to_owned(), "c-enmesh".to_owned()], 4, 2)
        );
        kill(Pid::from_raw(two.0.id().cast_signed()), Signal::SIGTERM).unwrap();
        assert!(two.0.wait().unwrap().success());
        let mut text = String::new();
        two.0.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        let passes: Vec<Value> =
            serde_json::Deserializer::from_str(&text).into_iter().collect::<Result<_, _>>().unwrap();
        assert!(passes[0]["leader"].is_string(), "the first one led: {passes:?}");
        let removed: Vec<&Value> =
            passes.iter().flat_map(|pass| pass["removed"].as_array().into_iter().flatten()).collect();
        assert!(removed.len() == 1 && removed[0]["services"][0] == "api-b", "{removed:?}");
    });
}
