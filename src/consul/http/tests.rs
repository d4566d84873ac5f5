//! Every way in which the other side can fail, against a small server that fails in that way.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

use super::fake::{Asked, FakeConsul, GOOD, answer_one, settings};
use crate::base::{Explain, Fault};
use crate::consul::{BasicAuth, Client, ConsulError, Query, SessionToken, Settings, Token, TokenSource};

async fn fault_of(settings: Settings) -> Fault {
    let client = match Client::new(settings) {
        Ok(client) => client,
        Err(error) => return error.into(),
    };
    client.get(&Query::new("/v1/x")).await.unwrap_err().into()
}

async fn local<T>(work: impl Future<Output = T>) -> T {
    tokio::task::LocalSet::new().run_until(work).await
}

#[tokio::test(flavor = "current_thread")]
async fn broken_answers_have_their_codes() {
    local(async {
        let redirect = "HTTP/1.1 301 Moved\r\nLocation: https://other/\r\nContent-Length: 0\r\n\r\n";
        let truncated = "HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n[1, 2";
        let endless = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", 1_u64 << 40);
        let unbounded = format!("HTTP/1.1 200 OK\r\n\r\n{}", " ".repeat(33 << 20));
        let page = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>";
        let https = "HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n";
        for (answer, code) in [
            (redirect, "ENM-K032"),
            (truncated, "ENM-K006"),
            ("\x15\x03\x01garbage", "ENM-K006"),
            ("", "ENM-K006"),
            (endless.as_str(), "ENM-K007"),
            (unbounded.as_str(), "ENM-K007"),
            (page, "ENM-K033"),
            (https, "ENM-K017"),
        ] {
            let (address, _) = FakeConsul::says(answer).listen(None).await;
            let fault = fault_of(settings(&format!("http://{address}"))).await;
            assert_eq!(fault.code, code, "{:.60}: {fault}", answer);
            assert!(!fault.hint.is_empty());
        }
    })
    .await;
}

#[tokio::test(flavor = "current_thread")]
async fn where_nobody_is() {
    // These are tried again, which says nothing here.
    let soon = |address: &str| Settings { limit: Duration::from_millis(300), ..settings(address) };
    local(async {
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap().local_addr().unwrap();
        assert_eq!(fault_of(soon(&format!("http://{free}"))).await.code, "ENM-K002");
        assert_eq!(fault_of(soon("unix:///no/such/socket")).await.code, "ENM-K002");
        // A label of more than 63 bytes is in no DNS (RFC 1035, 2.3.4), so nobody is asked for it.
        let name = "x".repeat(70);
        assert_eq!(fault_of(soon(&format!("http://{name}.invalid:8500"))).await.code, "ENM-K004");
        // Not a unicast address: the kernel itself says no.
        assert_eq!(fault_of(soon("http://255.255.255.255:8500")).await.code, "ENM-K003");
    })
    .await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_slow_server_costs_the_limit_and_no_more() {
    local(async {
        for answer in ["", "HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n[1,"] {
            let fake = FakeConsul { answers: vec![answer.into()], hangs: true };
            let (address, _) = fake.listen(None).await;
            let started = Instant::now();
            let limit = Duration::from_millis(200);
            let fault = fault_of(Settings { limit, ..settings(&format!("http://{address}")) }).await;
            assert_eq!(fault.code, "ENM-K005");
            assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
        }
    })
    .await;
}

#[tokio::test(flavor = "current_thread")]
async fn reads_are_tried_again_and_writes_are_not() {
    local(async {
        let none = "HTTP/1.1 500 Internal\r\nContent-Length: 17\r\n\r\nNo cluster leader";
        let answers = || vec![none.into(), Vec::new(), GOOD.into()];
        let (address, asked) = FakeConsul { answers: answers(), hangs: false }.listen(None).await;
        let client = Client::new(settings(&format!("http://{address}"))).unwrap();
        let answer = client.get(&Query::new("/v1/x")).await.unwrap();
        assert_eq!((answer.body, answer.index, asked.borrow().len()), (42.into(), Some(7), 3));
        let (address, asked) = FakeConsul { answers: answers(), hangs: false }.listen(None).await;
        let client = Client::new(settings(&format!("http://{address}"))).unwrap();
        let error = client.put(&Query::new("/v1/x"), None).await.unwrap_err();
        assert_eq!((error.code(), asked.borrow().len()), ("ENM-K027", 1));
        // What will not change is not asked again.
        let denied = "HTTP/1.1 403 No\r\nContent-Length: 17\r\n\r\nPermission denied";
        let (address, asked) = FakeConsul::says(denied).listen(None).await;
        assert_eq!(fault_of(settings(&format!("http://{address}"))).await.code, "ENM-K021");
        assert_eq!(asked.borrow().len(), 1);
    })
    .await;
}

#[tokio::test(flavor = "current_thread")]
async fn the_token_is_a_header_and_the_scope_a_parameter() {
    local(async {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        std::fs::write(&file, "the-secret\n").unwrap();
        let (address, asked) = FakeConsul::says(GOOD).listen(None).await;
        let client = Client::new(Settings {
            token: TokenSource::File(file),
            datacenter: "dc2".parse().ok(),
            partition: "p".parse().ok(),
            namespace: "n".parse().ok(),
            auth: BasicAuth::new("name:word"),
            ..settings(&format!("http://{address}/pre"))
        })
        .unwrap();
        client.get(&Query::new("/v1/catalog/nodes").with("near", "a b")).await.unwrap();
        client.get(&Query::new("/v1/agent/checks")).await.unwrap();
        client.delete(&Query::new("/v1/x").with("ns", "own")).await.unwrap();
        client.post(&Query::new("/v1/x"), Some(&42.into())).await.unwrap();
        let asked = asked.borrow();
        for (position, start) in [
            "GET /pre/v1/catalog/nodes?near=a%20b&dc=dc2&partition=p&ns=n HTTP/1.1\r\n",
            "GET /pre/v1/agent/checks?partition=p&ns=n HTTP/1.1\r\n",
            "DELETE /pre/v1/x?ns=own&dc=dc2&partition=p HTTP/1.1\r\n",
            "POST /pre/v1/x?dc=dc2&partition=p&ns=n HTTP/1.1\r\n",
        ]
        .into_iter()
        .enumerate()
        {
            assert!(asked[position].starts_with(start), "{}", asked[position]);
        }
        assert!(asked[0].contains("authorization: Basic bmFtZTp3b3Jk\r\n"));
        assert!(!format!("{client:?}").contains("bmFtZTp3b3Jk"));
        assert!(asked[0].contains("x-consul-token: the-secret\r\n"));
        assert!(!format!("{client:?}").contains("the-secret"));
    })
    .await;
}

#[tokio::test(flavor = "current_thread")]
async fn over_a_unix_socket() {
    local(async {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("http.sock");
        let listener = UnixListener::bind(&path).unwrap();
        tokio::task::spawn_local(async move {
            let (stream, _) = listener.accept().await.unwrap();
            answer_one(stream, GOOD.into(), false, Asked::default()).await;
        });
        let client = Client::new(settings(&format!("unix://{}", path.display()))).unwrap();
        assert_eq!(client.get(&Query::new("/v1/x")).await.unwrap().body, 42);
    })
    .await;
}

/// A CA of the test, and files that it issued.
struct Authority {
    folder: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca.pem"), &pem).unwrap();
        Authority { folder, issuer: Issuer::new(params, key), pem }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn issue(&self, address: Option<IpAddr>, expired: bool) -> (rcgen::Certificate, KeyPair) {
        let mut params = CertificateParams::default();
        params.subject_alt_names = address.map(SanType::IpAddress).into_iter().collect();
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        if expired {
            params.not_after = rcgen::date_time_ymd(2020, 1, 1);
        }
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }

    /// A server with a certificate for `address`; with `clients`, it wants one of that CA.
    fn server(&self, address: IpAddr, expired: bool, clients: Option<&Authority>) -> TlsAcceptor {
        let (certificate, key) = self.issue(Some(address), expired);
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(clients) => {
                let mut roots = RootCertStore::empty();
                let pem: &[u8] = clients.pem.as_bytes();
                let certificate = rustls_pki_types::pem::PemObject::from_pem_slice(pem).unwrap();
                roots.add(certificate).unwrap();
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                builder.with_client_cert_verifier(verifier.build().unwrap())
            }
        };
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = builder.with_single_cert(vec![certificate.der().clone()], key).unwrap();
        TlsAcceptor::from(Arc::new(config))
    }

    /// A client's certificate and key, as files.
    fn client(&self, name: &str) -> (PathBuf, PathBuf) {
        let (certificate, key) = self.issue(None, false);
        let files = (self.file(&format!("{name}.pem")), self.file(&format!("{name}.key")));
        std::fs::write(&files.0, certificate.pem()).unwrap();
        std::fs::write(&files.1, key.serialize_pem()).unwrap();
        files
    }
}

fn https(address: SocketAddr, ca: &Path) -> Settings {
    Settings { ca_file: Some(ca.to_owned()), ..settings(&format!("https://{address}")) }
}

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

#[tokio::test(flavor = "current_thread")]
async fn tls_and_each_way_it_fails() {
    local(async {
        let (authority, stranger) = (Authority::new(), Authority::new());
        let elsewhere = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
        for (acceptor, code) in [
            (stranger.server(HERE, false, None), "ENM-K011"),
            (authority.server(elsewhere, false, None), "ENM-K012"),
            (authority.server(HERE, true, None), "ENM-K014"),
            (authority.server(HERE, false, Some(&authority)), "ENM-K013"),
        ] {
            let (address, _) = FakeConsul::says(GOOD).listen(Some(acceptor)).await;
            let fault = fault_of(https(address, &authority.file("ca.pem"))).await;
            assert_eq!(fault.code, code, "{fault}");
        }
        let (address, _) = FakeConsul::says("HTTP/1.1 400 Bad Request\r\n\r\n").listen(None).await;
        // What greets at once, as many a server of another protocol does.
        let greeting = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let plain = greeting.local_addr().unwrap();
        tokio::task::spawn_local(async move {
            let (mut stream, _) = greeting.accept().await.unwrap();
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
            let mut sink = [0; 1024];
            while stream.read(&mut sink).await.is_ok_and(|count| count > 0) {}
        });
        assert_eq!(fault_of(https(plain, &authority.file("ca.pem"))).await.code, "ENM-K015");

        let (good, _) = FakeConsul::says(GOOD).listen(Some(authority.server(HERE, false, None))).await;
        let client = Client::new(https(good, &authority.file("ca.pem"))).unwrap();
        assert_eq!(client.get(&Query::new("/v1/x")).await.unwrap().body, 42);

        // Files that cannot be used are named before anything is connected.
        std::fs::write(authority.file("empty.pem"), "").unwrap();
        for ca in ["none.pem", "empty.pem"] {
            let fault = fault_of(https(address, &authority.file(ca))).await;
            assert!(fault.code == "ENM-K010" && fault.message.contains(ca), "{fault}");
        }
    })
    .await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_client_certificate_opens_the_door_and_is_renewed_in_place() {
    local(async {
        let (authority, stranger) = (Authority::new(), Authority::new());
        let (address, _) =
            FakeConsul::says(GOOD).listen(Some(authority.server(HERE, false, Some(&authority)))).await;
        let files = authority.client("client");
        let mut settings = https(address, &authority.file("ca.pem"));
        settings.client = Some(files.clone());
        let client = Client::new(settings).unwrap();
        assert_eq!(client.get(&Query::new("/v1/x")).await.unwrap().body, 42);

        // Somebody else's, put into the same files.
        let foreign = stranger.client("client");
        tokio::time::sleep(Duration::from_millis(20)).await;
        std::fs::copy(&foreign.0, &files.0).unwrap();
        std::fs::copy(&foreign.1, &files.1).unwrap();
        let error = client.get(&Query::new("/v1/x")).await.unwrap_err();
        assert!(matches!(error, ConsulError::ClientCertificate { given: true, .. }), "{error}");
        // A key that is another certificate's.
        let other = authority.client("other");
        std::fs::copy(&other.0, &files.0).unwrap();
        let error = client.get(&Query::new("/v1/x")).await.unwrap_err();
        assert_eq!(error.code(), "ENM-K010", "{error}");
        std::fs::copy(&other.1, &files.1).unwrap();
        assert_eq!(client.get(&Query::new("/v1/x")).await.unwrap().body, 42);
    })
    .await;
}

/// Answers `turns` requests on each connection and then closes it, as a server does that restarts.
async fn fake_that_closes_after(turns: usize, tls: Option<TlsAcceptor>) -> (SocketAddr, Asked) {
    async fn answer(mut stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin, turns: usize) {
        let mut buffer = [0; 4096];
        for _ in 0..turns {
            match stream.read(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(_) => stream.write_all(GOOD.as_bytes()).await.unwrap(),
            }
        }
    }
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let connections = Asked::default();
    let told = connections.clone();
    tokio::task::spawn_local(async move {
        loop {
            let (stream, from) = listener.accept().await.unwrap();
            told.borrow_mut().push(from.to_string());
            match &tls {
                None => drop(tokio::task::spawn_local(answer(stream, turns))),
                Some(tls) => {
                    let accepted = tls.accept(stream);
                    tokio::task::spawn_local(async move { answer(accepted.await.unwrap(), turns).await });
                }
            }
        }
    });
    (address, connections)
}

#[tokio::test(flavor = "current_thread")]
async fn connections_are_used_again_and_those_that_were_closed_are_not() {
    local(async {
        let query = Query::new("/v1/x");
        for authority in [None, Some(Authority::new())] {
            let tls = authority.as_ref().map(|authority| authority.server(HERE, false, None));
            let (address, connections) = fake_that_closes_after(3, tls).await;
            let client = Client::new(match &authority {
                None => settings(&format!("http://{address}")),
                Some(authority) => https(address, &authority.file("ca.pem")),
            })
            .unwrap();
            // Writes are never sent twice, so that a closed connection has to be noticed before.
            for _ in 0..9 {
                client.put(&query, None).await.unwrap();
            }
            assert_eq!(connections.borrow().len(), 3);
            // Those with another token share them, and calls that Consul holds do not.
            client.with_token(TokenSource::Anonymous).get(&query).await.unwrap();
            client.get_within(&query, Duration::from_secs(5)).await.unwrap();
            assert_eq!(connections.borrow().len(), 5);
            client.get(&query).await.unwrap();
            assert_eq!(connections.borrow().len(), 5);
            // More at a time than may rest afterwards.
            let many = (0..24).map(|_| client.put(&query, None));
            assert!(futures_util::future::join_all(many).await.iter().all(Result::is_ok));
            assert_eq!(format!("{client:?}").matches("Pool(8)").count(), 1, "{client:?}");
        }
    })
    .await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_new_login_may_be_unknown_for_a_moment() {
    local(async {
        let unknown = "HTTP/1.1 403 No\r\nContent-Length: 13\r\n\r\nACL not found";
        let answers = || vec![unknown.into(), unknown.into(), GOOD.into()];
        let session = SessionToken::default();
        let token = |text| Token::new(text).unwrap().unwrap();
        session.begin(token("new"));
        let login = |address| Settings {
            token: TokenSource::Login(session.clone()),
            ..settings(&format!("http://{address}"))
        };
        let (address, asked) = FakeConsul { answers: answers(), hangs: false }.listen(None).await;
        let client = Client::new(login(address)).unwrap();
        assert_eq!(client.put(&Query::new("/v1/x"), None).await.unwrap().body, 42);
        assert_eq!(asked.borrow().len(), 3);
        // One that was known before is gone for good.
        session.resume(token("old"));
        let (address, asked) = FakeConsul { answers: answers(), hangs: false }.listen(None).await;
        let client = Client::new(login(address)).unwrap();
        let error = client.put(&Query::new("/v1/x"), None).await.unwrap_err();
        assert_eq!((error.code(), asked.borrow().len()), ("ENM-K022", 1));
        // Unless it was replaced while Consul held the call.
        let answers = vec![unknown.into(), GOOD.into()];
        let (address, asked) = FakeConsul { answers, hangs: false }.listen(None).await;
        let client = Client::new(login(address)).unwrap();
        let query = Query::new("/v1/x");
        let replaced = async { session.resume(token("renewed")) };
        let (answer, ()) = tokio::join!(client.get_within(&query, Duration::from_secs(5)), replaced);
        assert_eq!(answer.unwrap().body, 42);
        assert!(asked.borrow()[0].contains("old") && asked.borrow()[1].contains("renewed"));
        session.end();
        assert_eq!(fault_of(login(address)).await.code, "ENM-K069");
        assert_eq!(asked.borrow().len(), 2, "nothing is asked in nobody's name");
    })
    .await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_folder_of_cas_and_another_name_than_the_address() {
    local(async {
        let (authority, stranger) = (Authority::new(), Authority::new());
        let folder = tempfile::tempdir().unwrap();
        let elsewhere = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
        let acceptor = authority.server(elsewhere, false, None);
        let (address, _) = FakeConsul::says(GOOD).listen(Some(acceptor)).await;
        let settings = Settings {
            ca_path: Some(folder.path().to_owned()),
            tls_server_name: Some(elsewhere.to_string()),
            ..settings(&format!("https://{address}"))
        };
        let fault = fault_of(settings.clone()).await;
        assert!(fault.code == "ENM-K010", "an empty folder: {fault}");
        std::fs::copy(stranger.file("ca.pem"), folder.path().join("one.crt")).unwrap();
        let client = Client::new(settings).unwrap();
        let ask = async || client.get(&Query::new("/v1/x")).await.map_err(|error| error.code());
        assert_eq!(ask().await.unwrap_err(), "ENM-K011");
        // One that is added is taken up.
        std::fs::copy(authority.file("ca.pem"), folder.path().join("two")).unwrap();
        assert_eq!(ask().await.unwrap().body, 42);
    })
    .await;
}
