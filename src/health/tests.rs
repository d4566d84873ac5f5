//! Checks against real sockets and programs.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use hyper::body::Bytes;
use hyper::{HeaderMap, Response};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::{LocalSet, spawn_local};

use super::state::{Finding, Row, Thresholds};
use super::*;
use crate::config::Check;
use crate::config::value::{ServiceId, Span};

const LONG: Duration = Duration::from_secs(20);
const SOON: Span = Span(Duration::from_millis(20));

async fn local<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONG, LocalSet::new().run_until(work)).await.unwrap()
}

fn api() -> ServiceId {
    "api".parse().unwrap()
}

fn of(checks: Vec<Check>) -> BTreeMap<ServiceId, Vec<Check>> {
    BTreeMap::from([(api(), checks)])
}

fn soon(check: Check) -> Check {
    Check { interval: Some(SOON), ..check }
}

/// Waits until the check `id` is as `good` wants it.
async fn until(checker: &Checker, id: &str, good: impl Fn(&CheckState) -> bool) -> CheckState {
    loop {
        let states = checker.states();
        if let Some(state) = states.get(&(api(), id.to_owned())).filter(|state| good(state)) {
            return state.clone();
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// One run of `check`.
async fn once(check: Check) -> (CheckStatus, String) {
    let finding = probe::Probe::new(check, None).run().await;
    (finding.status, finding.output)
}

/// Answers each request with the next of `answers`, the last for ever; keeps what it was asked.
async fn web(answers: Vec<String>) -> (String, Rc<RefCell<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let asked = Rc::new(RefCell::new(Vec::new()));
    let seen = Rc::clone(&asked);
    spawn_local(async move {
        for turn in 0.. {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") && stream.read_buf(&mut request).await.unwrap_or(0) > 0 {}
            seen.borrow_mut().push(String::from_utf8_lossy(&request).into_owned());
            let answer = answers.get(turn).or(answers.last()).cloned().unwrap_or_default();
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    (address, asked)
}

fn answer(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

#[tokio::test(flavor = "current_thread")]
async fn http_is_judged_by_its_status() {
    local(async {
        for (status, expected) in [
            ("200 OK", CheckStatus::Passing),
            ("204 No Content", CheckStatus::Passing),
            ("429 Too Many Requests", CheckStatus::Warning),
            ("404 Not Found", CheckStatus::Critical),
            ("503 Service Unavailable", CheckStatus::Critical),
        ] {
            let (address, _) = web(vec![answer(status, "fine\u{1b}[31m\nor not")]).await;
            let (got, output) =
                once(Check { http: Some(format!("http://{address}/health")), ..Check::default() }).await;
            assert_eq!(got, expected, "{status}: {output}");
            assert!(output.contains(status) && !output.contains(char::is_control), "{output:?}");
        }
        let endless = format!("HTTP/1.1 200 OK\r\n\r\n{}", "x".repeat(1_000_000));
        let (address, _) = web(vec![endless]).await;
        let (got, output) =
            once(Check { http: Some(format!("http://{address}/")), ..Check::default() }).await;
        assert_eq!(got, CheckStatus::Passing);
        assert!(output.chars().count() <= 1001);
    })
    .await;
}

#[tokio::test(flavor = "current_thread")]
async fn http_asks_as_it_is_told() {
    local(async {
        let (address, asked) = web(vec![answer("200 OK", "")]).await;
        let header = BTreeMap::from([("x-probe".to_owned(), vec!["1".to_owned(), "2".to_owned()])]);
        let check = Check {
            http: Some(format!("http://{address}/h?q=1")),
            method: Some("HEAD".to_owned()),
            header,
            ..Check::default()
        };
        assert_eq!(once(check).await.0, CheckStatus::Passing);
        let request = asked.borrow().first().cloned().unwrap().to_lowercase();
        assert!(request.starts_with("head /h?q=1 http/1.1\r\n"), "{request}");
        assert!(request.contains("x-probe: 1\r\nx-probe: 2\r\n"), "{request}");
        assert!(request.contains(&format!("host: {address}\r\n")), "{request}");

        let (good, _) = web(vec![answer("200 OK", "")]).await;
        let elsewhere =
            format!("HTTP/1.1 302 Found\r\nlocation: http://{good}/\r\ncontent-length: 0\r\n\r\n");
        let (address, _) = web(vec![elsewhere]).await;
        let check = Check { http: Some(format!("http://{address}/")), ..Check::default() };
        assert_eq!(once(check.clone()).await.0, CheckStatus::Passing);
        let stays = once(Check { disable_redirects: true, ..check }).await;
        assert!(stays.0 == CheckStatus::Critical && stays.1.contains("302"), "{stays:?}");
        let (address, asked) =
            web(vec!["HTTP/1.1 302 Found\r\nlocation: /again\r\ncontent-length: 0\r\n\r\n".to_owned()]).await;
        let circle = once(Check { http: Some(format!("http://{address}/")), ..Check::default() }).await;
        assert!(circle.0 == CheckStatus::Critical && circle.1.contains("10 redirections"), "{circle:?}");
        assert_eq!(asked.borrow().len(), 11);
    })
    .await;
}

#[tokio::test(flavor = "current_thread")]
async fn who_does_not_answer_is_critical() {
    local(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let tcp = |address: &str| Check { tcp: Some(address.to_owned()), ..Check::default() };
        assert_eq!(once(tcp(&address)).await.0, CheckStatus::Passing);
        let timeout = Some(Span(Duration::from_millis(50)));
        // It accepts and says nothing.
        let http = Check { http: Some(format!("http://{address}/")), timeout, ..Check::default() };
        let (status, output) = once(http).await;
        assert!(status == CheckStatus::Critical && output.contains("within 50ms"), "{output}");
        let grpc = Check { grpc: Some(address.clone()), timeout, ..Check::default() };
        assert_eq!(once(grpc).await.0, CheckStatus::Critical);
        // A port that is held, and at which nobody listens: one that was given back is somebody else's the next moment.
        let held = tokio::net::TcpSocket::new_v4().unwrap();
        held.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let (status, output) = once(tcp(&held.local_addr().unwrap().to_string())).await;
        assert!(status == CheckStatus::Critical && output.contains("refused"), "{output}");
    })
    .await;
}

/// A gRPC server that has the health protocol and nothing else; it answers with `status`.
async fn fake_grpc(status: u8) -> (String, Rc<RefCell<Vec<Bytes>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let asked = Rc::new(RefCell::new(Vec::new()));
    let seen = Rc::clone(&asked);
    spawn_local(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let seen = Rc::clone(&seen);
            spawn_local(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    let seen = Rc::clone(&seen);
                    spawn_local(async move {
                        assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                        let body = request.into_body().data().await.unwrap().unwrap();
                        let known = !body.ends_with(b"nobody");
                        seen.borrow_mut().push(body);
                        let head = Response::builder().header("content-type", "application/grpc");
                        let mut stream = respond.send_response(head.body(()).unwrap(), false).unwrap();
                        if known {
                            stream.send_data(Bytes::from(vec![0, 0, 0, 0, 2, 8, status]), false).unwrap();
                        }
                        let mut trailers = HeaderMap::new();
                        trailers.insert("grpc-status", if known { "0" } else { "5" }.parse().unwrap());
                        stream.send_trailers(trailers).unwrap();
                    });
                }
            });
        }
    });
    (address, asked)
}

#[tokio::test(flavor = "current_thread")]
async fn grpc_is_asked_in_its_own_protocol() {
    local(async {
        let (address, asked) = fake_grpc(1).await;
        let grpc = |target: String| Check { grpc: Some(target), ..Check::default() };
        assert_eq!(once(grpc(address.clone())).await.0, CheckStatus::Passing);
        assert_eq!(once(grpc(format!("{address}/pay"))).await.0, CheckStatus::Passing);
        assert_eq!(&asked.borrow()[1][..], b"\0\0\0\0\x05\x0a\x03pay");
        let (status, output) = once(grpc(format!("{address}/nobody"))).await;
        assert!(status == CheckStatus::Critical && output.contains("unknown"), "{output}");
        let (address, _) = fake_grpc(2).await;
        let (status, output) = once(grpc(address)).await;
        assert!(status == CheckStatus::Critical && output.contains("NOT_SERVING"), "{output}");
        // A web server is none.
        let (address, _) = web(vec![answer("200 OK", "")]).await;
        let timeout = Some(Span(Duration::from_millis(200)));
        assert_eq!(once(Check { timeout, ..grpc(address) }).await.0, CheckStatus::Critical);
    })
    .await;
}

#[tokio::test(flavor = "current_thread")]
async fn over_tls_the_certificate_counts_unless_told_otherwise() {
    local(async {
        let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(own.signing_key.serialize_der()));
        let provider = std::sync::Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
        let config = tokio_rustls::rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![own.cert.der().clone()], key)
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        spawn_local(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                if let Ok(mut stream) = acceptor.accept(stream).await {
                    let mut request = Vec::new();
                    let _ = stream.read_buf(&mut request).await;
                    let _ = stream.write_all(answer("200 OK", "").as_bytes()).await;
                    let _ = stream.shutdown().await;
                }
            }
        });
        let check = Check { http: Some(format!("https://{address}/")), ..Check::default() };
        let (status, output) = once(check.clone()).await;
        assert!(status == CheckStatus::Critical && output.contains("TLS"), "{output}");
        let (status, output) = once(Check { tls_skip_verify: true, ..check }).await;
        assert_eq!(status, CheckStatus::Passing, "{output}");
        let tcp = Check { tcp: Some(address), tcp_use_tls: true, ..Check::default() };
        assert_eq!(once(tcp).await.0, CheckStatus::Critical);
    })
    .await;
}

#[tokio::test(flavor = "current_thread")]
async fn programs_are_judged_by_how_they_end() {
    local(async {
        let script = |text: &str| {
            let command = ["/bin/sh", "-c", text].map(str::to_owned).to_vec();
            Check { exec: Some(command), timeout: Some(Span(Duration::from_secs(10))), ..Check::default() }
        };
        for (text, status, says) in [
            ("echo fine", CheckStatus::Passing, "fine"),
            ("echo so so >&2; exit 1", CheckStatus::Warning, "so so"),
            ("echo bad; exit 2", CheckStatus::Critical, "exit status 2: bad"),
            ("kill -9 $$", CheckStatus::Critical, "signal 9"),
        ] {
            let (got, output) = once(script(text)).await;
            assert!(got == status && output.contains(says), "{text}: {got} {output}");
        }
        let missing = Check { exec: Some(vec!["/no/such/program".to_owned()]), ..Check::default() };
        assert_eq!(once(missing).await.0, CheckStatus::Critical);
        let slow = Check { timeout: Some(Span(Duration::from_millis(50))), ..script("sleep 30") };
        let (status, output) = once(slow).await;
        assert!(status == CheckStatus::Critical && output.contains("did not end"), "{output}");
    })
    .await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_change_is_told_and_what_stays_is_not() {
    local(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let check = soon(Check { tcp: Some(address.to_string()), ..Check::default() });
        let (checker, faults) = Checker::start(&of(vec![check]), None);
        assert_eq!(faults, []);
        let first = until(&checker, "check-1", |_| true).await;
        assert_eq!((first.status, first.output.as_str()), (CheckStatus::Critical, "it was not run yet"));
        until(&checker, "check-1", |state| state.status == CheckStatus::Passing).await;
        // What was told so far is taken; then it is quiet, though it is run again and again.
        checker.changed().await;
        let quiet = tokio::time::timeout(Duration::from_millis(200), checker.changed()).await;
        assert!(quiet.is_err(), "nothing changed");
        drop(listener);
        checker.changed().await;
        let (_, state) = checker.states().pop_first().unwrap();
        assert!(state.status == CheckStatus::Critical && state.output.contains("refused"), "{state:?}");
        let _again = TcpListener::bind(address).await.unwrap();
        checker.changed().await;
        assert_eq!(checker.states().pop_first().unwrap().1.status, CheckStatus::Passing);
    })
    .await;
}

#[tokio::test(flavor = "current_thread")]
async fn an_update_leaves_alone_what_is_the_same() {
    local(async {
        let (address, asked) = web(vec![answer("200 OK", "")]).await;
        let kept =
            Check { id: "kept".parse().ok(), http: Some(format!("http://{address}/")), ..Check::default() };
        // An hour: that it passes after the update is what was found before.
        let kept = Check { interval: Some(Span::seconds(3600)), ..kept };
        let other = soon(Check { id: "other".parse().ok(), tcp: Some(address.clone()), ..Check::default() });
        let (mut checker, _) = Checker::start(&of(vec![kept.clone(), other]), None);
        let before = until(&checker, "kept", |state| state.status == CheckStatus::Passing).await;
        checker.update(&of(vec![kept.clone()]));
        assert_eq!(checker.states(), BTreeMap::from([((api(), "kept".to_owned()), before)]));
        assert_eq!(asked.borrow().iter().filter(|request| request.starts_with("GET")).count(), 1);
        // Changed, so it begins anew.
        checker.update(&of(vec![Check { notes: Some("new".to_owned()), ..kept }]));
        assert_eq!(checker.states().pop_first().unwrap().1.status, CheckStatus::Critical);
        until(&checker, "kept", |state| state.status == CheckStatus::Passing).await;
        let count = || asked.borrow().len();
        let (checker2, _) = Checker::start(
            &of(vec![soon(Check { http: Some(format!("http://{address}/")), ..Check::default() })]),
            None,
        );
        until(&checker2, "check-1", |state| state.status == CheckStatus::Passing).await;
        drop(checker2);
        tokio::time::sleep(Duration::from_millis(100)).await;
        let then = count();
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(count(), then, "who is dropped asks no more");
    })
    .await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_check_never_runs_twice_at_a_time() {
    local(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (now, most, runs) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        let counts = (Rc::clone(&now), Rc::clone(&most), Rc::clone(&runs));
        spawn_local(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let (now, most, runs) = counts.clone();
                spawn_local(async move {
                    now.set(now.get() + 1);
                    most.set(most.get().max(now.get()));
                    runs.set(runs.get() + 1);
                    // Longer than the interval.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    now.set(now.get() - 1);
                    let _ = stream.write_all(answer("200 OK", "").as_bytes()).await;
                });
            }
        });
        let check = soon(Check { http: Some(format!("http://{address}/")), ..Check::default() });
        let (_checker, _) = Checker::start(&of(vec![check]), None);
        while runs.get() < 4 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(most.get(), 1);
    })
    .await;
}

#[tokio::test(flavor = "current_thread")]
async fn an_app_reports_by_itself_or_is_critical() {
    local(async {
        let ttl = Check {
            id: "self".parse().ok(),
            ttl: Some(Span(Duration::from_millis(300))),
            ..Check::default()
        };
        let tcp = Check { tcp: Some("127.0.0.1:1".to_owned()), ..Check::default() };
        let (checker, _) = Checker::start(&of(vec![ttl, tcp]), None);
        checker.report(&api(), "self", CheckStatus::Passing, "all is\nwell").unwrap();
        let state = until(&checker, "self", |state| state.status == CheckStatus::Passing).await;
        assert_eq!(state.output, "all is well");
        checker.report(&api(), "self", CheckStatus::Warning, "").unwrap();
        until(&checker, "self", |state| state.status == CheckStatus::Warning).await;
        let late = until(&checker, "self", |state| state.status == CheckStatus::Critical).await;
        assert_eq!(late.output, "nothing was reported for 300ms");
        checker.report(&api(), "self", CheckStatus::Passing, "").unwrap();
        until(&checker, "self", |state| state.status == CheckStatus::Passing).await;

        let code = |service: &str, check: &str| {
            checker.report(&service.parse().unwrap(), check, CheckStatus::Passing, "").unwrap_err().code
        };
        assert_eq!(code("api", "check-2"), "ENM-H002");
        assert_eq!(code("api", "nothing"), "ENM-H001");
        assert_eq!(code("nobody", "self"), "ENM-H001");
    })
    .await;
}

#[tokio::test(flavor = "current_thread")]
async fn what_only_an_agent_does_is_said() {
    local(async {
        let id = |id: &str| Check { id: id.parse().ok(), ..Check::default() };
        let checks = vec![
            Check { udp: Some("127.0.0.1:53".to_owned()), ..id("a") },
            Check { alias_service: Some(api()), ..id("b") },
            Check { exec: Some(vec!["/x".to_owned()]), docker_container_id: Some("c".to_owned()), ..id("c") },
            Check { ttl: Some(SOON), deregister_critical_service_after: Some(Span::seconds(60)), ..id("d") },
            Check { ttl: Some(SOON), ..id("d") },
        ];
        let (checker, faults) = Checker::start(&of(checks), None);
        let codes: Vec<_> = faults.iter().map(|fault| fault.code).collect();
        assert_eq!(codes, ["ENM-H010", "ENM-H010", "ENM-H010", "ENM-H011", "ENM-H012"]);
        assert!(faults.iter().all(|fault| fault.service.as_deref() == Some("api")));
        assert_eq!(checker.states().into_keys().collect::<Vec<_>>(), [(api(), "d".to_owned())]);
    })
    .await;
}

#[test]
fn a_state_changes_after_as_many_in_a_row_as_it_takes() {
    use CheckStatus::{Critical, Passing, Warning};
    let check = Check {
        success_before_passing: Some(2),
        failures_before_warning: Some(2),
        failures_before_critical: Some(3),
        ..Check::default()
    };
    let mut row = Row::default();
    let thresholds = Thresholds::of(&check);
    let mut take = |status| row.take(&Finding::new(status, ""), thresholds);
    let findings = [Passing, Passing, Critical, Passing, Critical, Critical, Critical, Passing, Warning];
    let changes = findings.map(&mut take);
    let expected =
        [None, Some(Passing), None, None, None, Some(Warning), Some(Critical), None, Some(Warning)];
    assert_eq!(changes, expected);
    let mut row = Row::default();
    let plain = Thresholds::of(&Check::default());
    assert_eq!(row.take(&Finding::critical("x"), plain), Some(Critical));
    assert_eq!(row.take(&Finding::new(Passing, ""), plain), Some(Passing));
}
