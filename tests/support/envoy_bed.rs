//! A network namespace with loopback for each test, a real Envoy in it, apps, and a local CA.

#![allow(dead_code, reason = "each test target uses a part")]

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};

use enmesh::base::units::UnitSpec;
use enmesh::base::{Root, exec};
use enmesh::envoy::{Admin, Layout, unit_spec};
use enmesh::plan::{Credentials, ServicePlan, SpiffeId};
use nix::sched::{CloneFlags, unshare};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::time::timeout;

/// How long anything in a test may take.
pub const LIMIT: Duration = Duration::from_secs(10);

/// The Envoy to test with.
pub fn envoy() -> PathBuf {
    let path = std::env::var_os("ENMESH_ENVOY")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/envoy"), PathBuf::from);
    assert!(path.is_file(), "these tests need Envoy at {} (or ENMESH_ENVOY=path)", path.display());
    path
}

fn run(program: &str, arguments: &[&str], stdin: &str) {
    let program = exec::find(program).unwrap();
    let output = exec::run(&program, arguments, stdin.as_bytes(), LIMIT).unwrap();
    assert!(output.status.success(), "{} {arguments:?}: {}", program.display(), output.stderr);
}

/// Runs `test` on a thread of its own in a network namespace of its own, with loopback up.
pub fn in_namespace<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let body = move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root (CAP_SYS_ADMIN) for a namespace");
        run("ip", &["link", "set", "lo", "up"], "");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, test());
    };
    let joined = std::thread::Builder::new().spawn(body).unwrap().join();
    if let Err(panic) = joined {
        std::panic::resume_unwind(panic);
    }
}

/// Runs `ip` in the test's namespace.
pub fn ip_command(arguments: &str) {
    run("ip", &arguments.split(' ').collect::<Vec<_>>(), "");
}

/// Loads rules into the test's namespace.
pub fn nft(rules: &str) {
    run("nft", &["-f", "-"], rules);
}

/// A tree for `--root` that Envoy's user can enter.
pub fn tree() -> (tempfile::TempDir, Root) {
    let dir = tempfile::Builder::new().prefix("e").tempdir_in("/tmp").unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    let root = Root::new(dir.path());
    (dir, root)
}

/// A sidecar that runs; ends with the value.
pub struct Sidecar {
    child: Child,
    pub admin: Admin,
    pub log: PathBuf,
    pub took: Duration,
}

impl Sidecar {
    /// Starts Envoy as the planner would have it run, and waits until it is live.
    pub async fn start(service: &ServicePlan, root: &Root) -> Sidecar {
        let started = std::time::Instant::now();
        let mut sidecar = Sidecar::spawn(service, root);
        if let Err(fault) = sidecar.admin.wait_live(LIMIT).await {
            panic!("{fault}\n{}", sidecar.log());
        }
        sidecar.took = started.elapsed();
        sidecar
    }

    /// Starts Envoy and waits for nothing.
    pub fn spawn(service: &ServicePlan, root: &Root) -> Sidecar {
        let UnitSpec { program, arguments, uid, gid, .. } = unit_spec(service, root).unwrap();
        let layout = Layout::new(service, root);
        let log = root.join(format!("/{}.log", service.id));
        let file = File::options().create(true).append(true).open(&log).unwrap();
        #[expect(clippy::disallowed_methods, reason = "a long-running child of the test's own")]
        let child = Command::new(program)
            .args(arguments)
            .env_clear()
            .uid(uid)
            .gid(gid)
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap();
        Sidecar { child, admin: Admin::new(layout.admin_socket()), log, took: Duration::ZERO }
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// How many inotify instances the process has.
    pub fn inotify_instances(&self) -> usize {
        let handles = fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap();
        let targets = handles.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
        targets.filter(|target| target.to_string_lossy().contains("inotify")).count()
    }

    /// What Envoy answers to a GET, as text.
    pub async fn get(&self, path: &str) -> String {
        let mut stream = UnixStream::connect(self.admin.socket()).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: envoy\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }

    pub async fn counter(&self, name: &str) -> u64 {
        let stats = self.admin.stats(&format!("^{}$", name.replace('.', "\\."))).await.unwrap();
        stats.get(name).copied().unwrap_or_else(|| panic!("Envoy has no metric {name}"))
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An app that says its name and then repeats what it is told.
pub async fn app(address: &str, greeting: &'static str) {
    let listener = TcpListener::bind(address).await.unwrap();
    tokio::task::spawn_local(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::task::spawn_local(async move {
                let _ = stream.write_all(format!("{greeting}\n").as_bytes()).await;
                let (mut reader, mut writer) = stream.split();
                let _ = tokio::io::copy(&mut reader, &mut writer).await;
            });
        }
    });
}

/// A connection to an app.
pub struct Call(TcpStream);

impl Call {
    /// Connects and reads the greeting: what makes the connection, end to end.
    pub async fn open(address: &str) -> io::Result<(Call, String)> {
        let connect = async {
            let mut call = Call(TcpStream::connect(address).await?);
            let greeting = call.line().await?;
            Ok((call, greeting))
        };
        timeout(LIMIT, connect).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }

    async fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        loop {
            match self.0.read_u8().await? {
                b'\n' => return Ok(line),
                byte => line.push(byte.into()),
            }
        }
    }

    /// Whether the connection still carries data both ways.
    pub async fn echoes(&mut self) -> io::Result<()> {
        let echo = async {
            self.0.write_all(b"still there?\n").await?;
            self.line().await
        };
        let line = timeout(LIMIT, echo).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        assert_eq!(line, "still there?");
        Ok(())
    }
}

/// Who answers at `address`, also to what is said; `None` when nobody does.
pub async fn call(address: &str) -> Option<String> {
    let (mut call, greeting) = Call::open(address).await.ok()?;
    call.echoes().await.ok()?;
    Some(greeting)
}

/// A CA like Consul's (facts of its certificates: EC P-256, URI SAN).
pub struct Ca(CertifiedIssuer<'static, KeyPair>);

impl Ca {
    pub fn new(trust_domain: &str) -> Ca {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, "Test CA");
        params.subject_alt_names = vec![SanType::URI(format!("spiffe://{trust_domain}").try_into().unwrap())];
        Ca(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub fn issue(&self, identity: &SpiffeId) -> Credentials {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into().unwrap())];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let (now, life) = (SystemTime::now(), Duration::from_secs(3600));
        params.not_before = (now - life).into();
        params.not_after = (now + life).into();
        let key = KeyPair::generate().unwrap();
        Credentials {
            certificate_pem: params.signed_by(&key, &self.0).unwrap().pem(),
            key_pem: key.serialize_pem(),
            roots_pem: self.0.as_ref().pem(),
            not_before: now - life,
            not_after: now + life,
        }
    }
}
