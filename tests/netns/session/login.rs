//! A token by a login, from a refused one to the last.

use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::acl_bed::{Issuer, acl, block};
use crate::host_bed::{API, API_FILE, Bed, LIMIT, SOON, WEB, WEB_FILE, until};
use crate::load::{Load, app};
use crate::{Scene, codes};

const LOGIN: &str =
    "login = { method = \"vm\", bearer_token_file = \"/run/identity/jwt\", meta = { host = \"vm-1\" } }\n";
const JWT: &str = "/run/identity/jwt";
const SESSIONS: &str = "/run/enmesh/consul-token.json";
/// Consul's shortest life of a token is a minute, and half of it is left when it is renewed.
const RENEWAL: Duration = Duration::from_secs(50);

/// The auth method of the page, with tokens that live for `life`.
fn make_method(scene: &Scene, issuer: &Issuer, life: &str) {
    let mut method: Value = serde_json::from_str(&block("json", "JWTValidationPubKeys")).unwrap();
    method["Config"]["JWTValidationPubKeys"] = json!([issuer.public_key()]);
    method["MaxTokenTTL"] = json!(life);
    scene.put("/v1/acl/auth-method", &method);
}

/// The binding rule of the page, for `service`.
fn bind(scene: &Scene, service: &str) {
    let mut rule: Value = serde_json::from_str(&block("json", "Selector")).unwrap();
    rule["BindName"] = json!(service);
    scene.put("/v1/acl/binding-rule", &rule);
}

/// The accessors of the tokens of logins that Consul has.
fn tokens(scene: &Scene) -> Vec<String> {
    let tokens = scene.get_where("/v1/acl/tokens", ("authmethod", "vm"));
    let tokens = tokens.as_array().cloned().unwrap_or_default();
    tokens.iter().map(|token| token["AccessorID"].as_str().unwrap().to_owned()).collect()
}

fn accessor(status: &Value) -> Option<&str> {
    status["consul"]["token"]["accessor"].as_str()
}

/// Waits for a session that is not `before`, and until Consul has no other.
fn await_another(scene: &Scene, before: &str, limit: Duration) -> String {
    let another = scene.bed.await_status("another session", limit, |status| {
        accessor(status).filter(|it| *it != before && status["ready"] == true).map(str::to_owned)
    });
    let only = || {
        let there = tokens(scene);
        if there == [another.clone()] { Ok(()) } else { Err(format!("{there:?}")) }
    };
    until("no other token", SOON, only).unwrap();
    another
}

fn secret(bed: &Bed) -> String {
    let kept: Value = serde_json::from_slice(&fs::read(bed.path(SESSIONS)).unwrap()).unwrap();
    kept["sessions"].as_array().unwrap().last().unwrap()["secret"].as_str().unwrap().to_owned()
}

/// That the token and the JWT are nowhere but in files that are theirs.
fn assert_kept_secret(bed: &Bed, secrets: &[&str]) {
    let has = |bytes: &[u8]| {
        secrets.iter().any(|secret| bytes.windows(secret.len()).any(|at| at == secret.as_bytes()))
    };
    for (path, (mode, contents)) in bed.files() {
        let open = mode & 0o007 != 0 && !path.ends_with("run/identity/jwt");
        assert!(!(open && has(&contents)), "{} ({mode:o})", path.display());
    }
    assert!(!has(bed.log().as_bytes()), "the log");
    for arguments in [&["status", "--json"] as &[_], &["status"], &["plan", "--json"]] {
        let said = bed.run(arguments);
        assert!(!has(said.out.as_bytes()) && !has(said.err.as_bytes()), "{arguments:?}");
    }
    for pid in bed.namespace.processes().unwrap() {
        for file in ["cmdline", "environ"] {
            let line = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            assert!(!has(&line), "{file} of {pid}");
        }
    }
}

#[test]
fn a_host_logs_in_renews_resumes_and_logs_out() {
    let mut scene = Scene::new(acl(), LOGIN);
    let (issuer, stranger) = (Issuer::new(), Issuer::new());
    make_method(&scene, &issuer, "1m");
    bind(&scene, "web");
    let intention = json!({ "SourceName": "web", "DestinationName": "api", "Action": "allow" });
    scene.post("/v1/connect/intentions", &intention);
    scene.bed.write(API_FILE, API);
    scene.bed.write(WEB_FILE, format!("{WEB}\n[[upstream]]\nname = \"api\"\nlocal_port = 9002\n"));
    scene.bed.write(JWT, stranger.jwt("vm-1"));
    app(&scene.bed.namespace, "127.0.0.1:8080", "api");

    refused_until_the_jwt_is_good(&mut scene, &issuer);
    let first = lacking_until_it_is_bound(&mut scene);
    let load = Load::start(&scene.bed.namespace, "127.0.0.1:9002", "api");
    let jwt = fs::read_to_string(scene.bed.path(JWT)).unwrap();
    assert_kept_secret(&scene.bed, &[&secret(&scene.bed), &jwt]);

    // Killed, and started again.
    scene.bed.kill_daemon();
    assert_looks_with_what_is_there(&scene);
    scene.bed.start();
    let status = scene.bed.await_ready();
    assert_eq!((accessor(&status), tokens(&scene)), (Some(first.as_str()), vec![first.clone()]));
    let before = load.so_far();

    // Renewed while there is time left, and the one before is really gone.
    let ends = Duration::from_secs(status["consul"]["token"]["expires"].as_u64().unwrap());
    let old = secret(&scene.bed);
    let second = await_another(&scene, &first, RENEWAL);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    assert!(now < ends, "the session had ended before the next one began");
    assert_ne!(secret(&scene.bed), old);
    let after = load.so_far();
    eprintln!("calls over the renewal: {} of {} failed", after.1 - before.1, after.0 - before.0);
    assert!(after.0 > before.0 && after.1 == before.1, "{before:?} {after:?}");
    assert_eq!(scene.bed.status()["consul"]["token"]["old_sessions"], json!([]));

    down(&mut scene, &second);
    drop(load);
}

/// A JWT of somebody else, with everything closed meanwhile, and then the right one.
fn refused_until_the_jwt_is_good(scene: &mut Scene, issuer: &Issuer) {
    scene.bed.start();
    scene.bed.await_fault("ENM-K067");
    let status = scene.bed.status();
    let token = &status["consul"]["token"];
    assert_eq!((&token["source"], &token["method"]), (&json!("login"), &json!("vm")));
    assert_eq!((&token["fault"]["code"], &token["accessor"]), (&json!("ENM-K067"), &Value::Null));
    assert!(codes(&status["faults"]).iter().all(|code| *code == "ENM-K067"), "{}", status["faults"]);
    assert!(scene.bed.run(&["status"]).out.contains("token login vm"));
    assert!(scene.bed.rules().contains("reject"), "closed: {}", scene.bed.rules());
    for arguments in [&["plan", "--json"], &["render", "bootstrap"]] {
        let said = scene.bed.run(arguments);
        if arguments[0] == "plan" {
            assert!(codes(&said.json()["faults"]).contains(&"ENM-D030"), "{said:?}");
        }
    }
    assert_eq!(tokens(scene), Vec::<String>::new(), "who looks does not log in");
    scene.bed.write(JWT, issuer.jwt("vm-1"));
}

/// A session with the rights of one of the two services; with all of them once it was taken away.
fn lacking_until_it_is_bound(scene: &mut Scene) -> String {
    let fault = scene.bed.await_fault("ENM-K021");
    assert_eq!(fault["service"], "api");
    let status = scene.bed.await_status("what is missing", LIMIT, |status| {
        codes(&status["warnings"]).contains(&"ENM-K073").then(|| status.clone())
    });
    let warnings = status["warnings"].as_array().unwrap();
    let missing = warnings.iter().find(|warning| warning["code"] == "ENM-K073").unwrap();
    let rule = "service \"api\" { policy = \"write\" }";
    assert!(missing["message"].as_str().unwrap().contains(rule), "{missing}");
    assert_eq!(status["services"]["web"]["registration"]["done"], true);
    let narrow = accessor(&status).unwrap().to_owned();

    bind(scene, "api");
    // Taken away by an operator: another login as soon as Consul says so.
    scene.delete(&format!("/v1/acl/token/{narrow}"));
    scene.bed.signal(Signal::SIGHUP);
    let wide = await_another(scene, &narrow, Duration::from_secs(30));
    assert!(!codes(&scene.bed.status()["warnings"]).contains(&"ENM-K073"));
    wide
}

/// While no daemon runs, the session that it has left is looked with and stays.
fn assert_looks_with_what_is_there(scene: &Scene) {
    let before = fs::read(scene.bed.path(SESSIONS)).unwrap();
    let said = scene.bed.run(&["plan", "--json"]).json();
    assert!(!codes(&said["faults"]).contains(&"ENM-D030"), "{said:#}");
    assert!(
        !said["changes"].as_array().unwrap().iter().any(|it| it["subject"] == "registration"),
        "{said:#}"
    );
    assert_eq!(fs::read(scene.bed.path(SESSIONS)).unwrap(), before);
    assert_eq!(tokens(scene).len(), 1);
}

/// One service keeps the login; without any it ends.
fn down(scene: &mut Scene, last: &str) {
    let said = scene.bed.run(&["down", "web"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert_eq!(tokens(scene), [last.to_owned()]);
    let said = scene.bed.run(&["down"]);
    assert_eq!(said.code, Some(0), "{said:?}\n{}", scene.bed.log());
    assert_eq!(tokens(scene), Vec::<String>::new());
    assert!(!scene.bed.path(SESSIONS).exists());
    assert_eq!(scene.get("/v1/health/connect/api"), json!([]), "the agent had the time to tell the servers");
    scene.bed.end(LIMIT);
}

#[test]
fn one_that_applies_leaves_the_session_and_another_configuration_ends_it() {
    let mut scene = Scene::new(acl(), LOGIN);
    let issuer = Issuer::new();
    make_method(&scene, &issuer, "1h");
    bind(&scene, "api");
    scene.bed.write(API_FILE, API);
    scene.bed.write(JWT, issuer.jwt("vm-1"));
    for _ in 0..2 {
        let said = scene.bed.run(&["apply", "--json"]);
        assert_eq!(said.code, Some(0), "{said:?}");
        let only = tokens(&scene);
        assert_eq!(accessor(&said.json()["status"]), only.first().map(String::as_str));
        assert_eq!(only.len(), 1, "one session for both");
    }
    let session = tokens(&scene);
    scene.bed.start();
    assert_eq!(accessor(&scene.bed.await_ready()), session.first().map(String::as_str));

    // A token from a file instead: nobody goes on with the session.
    let token = scene.put("/v1/acl/token", &json!({ "ServiceIdentities": [{ "ServiceName": "api" }] }));
    scene.bed.write("/etc/enmesh/token", token["SecretID"].as_str().unwrap());
    let host = fs::read_to_string(scene.bed.path(crate::HOST_FILE)).unwrap();
    scene.bed.write(crate::HOST_FILE, host.replace(LOGIN, "token_file = \"/etc/enmesh/token\"\n"));
    let known = scene.bed.await_status("the token of the file", LIMIT, |status| {
        let token = &status["consul"]["token"];
        (token["source"] == "file" && status["ready"] == true).then(|| token.clone())
    });
    assert_eq!((&known["accessor"], &known["expires"]), (&token["AccessorID"], &Value::Null));
    assert_eq!(tokens(&scene), Vec::<String>::new());
}
