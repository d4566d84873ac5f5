use std::fs;
use std::time::Duration;

use super::*;
use crate::mesh::commands;

struct Host {
    dir: tempfile::TempDir,
    mesh: StaticMesh,
}

fn host_with(config: StaticConfig) -> Host {
    let dir = tempfile::tempdir().unwrap();
    let mesh = StaticMesh::new(Root::new(dir.path()), config);
    Host { dir, mesh }
}

fn host() -> Host {
    host_with(StaticConfig::default())
}

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn wait<T>(future: LocalFuture<'_, T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

fn api() -> ServiceId {
    "api".parse().unwrap()
}

impl Host {
    fn peers(&self, text: &str) {
        let path = self.mesh.root.join("/etc/enmesh/peers.toml");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn identity(&self) -> SpiffeId {
        wait(self.mesh.view()).unwrap().spiffe_id(&"api".parse().unwrap())
    }

    fn credentials(&self, at: SystemTime) -> Result<Credentials, Fault> {
        wait(self.mesh.credentials(&api(), &self.identity(), at))
    }
}

#[test]
fn looking_touches_nothing() {
    let host = host();
    let view = wait(host.mesh.view()).unwrap();
    assert_eq!(view.trust_domain, UNMADE_TRUST_DOMAIN);
    assert_eq!(host.credentials(now()).unwrap_err().code, "ENM-M020");
    assert_eq!(fs::read_dir(host.dir.path()).unwrap().count(), 0);
}

#[test]
fn a_host_without_a_ca_makes_its_own_once() {
    let host = host();
    wait(host.mesh.prepare(now())).unwrap();
    let domain = wait(host.mesh.view()).unwrap().trust_domain;
    assert!(domain.ends_with(".consul") && domain != UNMADE_TRUST_DOMAIN);
    wait(host.mesh.prepare(now())).unwrap();
    assert_eq!(wait(host.mesh.view()).unwrap().trust_domain, domain);

    let first = host.credentials(now()).unwrap();
    assert_eq!(ca::verify(&first, &host.identity(), now()), Ok(()));
    assert_eq!(host.credentials(now() + Duration::from_secs(3600)).unwrap(), first);
    assert_ne!(host.credentials(now() + Duration::from_secs(72 * 3600)).unwrap(), first);
    wait(host.mesh.forget(&api())).unwrap();
    assert_eq!(fs::read_dir(host.mesh.root.join(LeafStore::FOLDER)).unwrap().count(), 0);
}

#[test]
fn the_peers_file_names_the_trust_domain_of_a_new_ca_and_must_agree_with_an_old_one() {
    let host = host();
    host.peers("trust_domain = \"lab.consul\"\n");
    wait(host.mesh.prepare(now())).unwrap();
    assert_eq!(wait(host.mesh.view()).unwrap().trust_domain, "lab.consul");
    host.credentials(now()).unwrap();
    host.peers("trust_domain = \"other.consul\"\n");
    assert_eq!(wait(host.mesh.view()).unwrap_err().code, "ENM-M033");
}

#[test]
fn a_folder_of_somebodys_choice_is_never_filled() {
    let chosen = StaticConfig { ca: "/mnt/ca".into(), ..StaticConfig::default() };
    let host = host_with(chosen);
    assert_eq!(wait(host.mesh.prepare(now())).unwrap_err().code, "ENM-M020");
    assert!(!host.mesh.ca_folder().exists());
}

#[test]
fn a_ca_that_was_cut_short_is_finished() {
    let host = host();
    wait(host.mesh.prepare(now())).unwrap();
    fs::remove_file(host.mesh.ca_folder().join(ROOT_CERTIFICATE)).unwrap();
    wait(host.mesh.prepare(now())).unwrap();
    host.credentials(now()).unwrap();
}

#[test]
fn other_files_in_the_folder_are_not_mixed_with_a_new_ca() {
    let host = host();
    fs::create_dir_all(host.mesh.ca_folder()).unwrap();
    fs::write(host.mesh.ca_folder().join("api.pem"), "somebody is copying").unwrap();
    assert_eq!(wait(host.mesh.prepare(now())).unwrap_err().code, "ENM-M020");
}

#[test]
fn a_broken_peers_file_stops_before_anything_is_made() {
    let host = host();
    host.peers("trust_domain = 7\n");
    assert_eq!(wait(host.mesh.prepare(now())).unwrap_err().code, "ENM-M005");
    assert!(!host.mesh.ca_folder().exists());
}

/// One host holds the CA's key and issues; the other gets a folder with what it needs and no more.
#[test]
fn a_host_without_the_key_uses_what_was_issued_for_it() {
    let ca_host = host();
    let other = host();
    wait(ca_host.mesh.prepare(now())).unwrap();
    let issue = |at| {
        let request = commands::IssueRequest {
            service: "api".parse().unwrap(),
            ttl: None,
            out: other.mesh.ca_folder(),
        };
        commands::ca_issue(&ca_host.mesh.root, &StaticConfig::default(), &request, at).unwrap()
    };
    let report = issue(now());
    assert!(!other.mesh.ca_folder().join(ROOT_KEY).exists());
    wait(other.mesh.prepare(now())).unwrap();
    let first = other.credentials(now()).unwrap();
    assert_eq!(report.identity, other.identity().to_string());
    assert_eq!(ca::verify(&first, &other.identity(), now()), Ok(()));

    let later = now() + Duration::from_secs(80 * 3600);
    assert_eq!(other.credentials(later).unwrap_err().code, "ENM-M030", "it ended, and nobody renewed it");
    issue(later);
    assert_ne!(other.credentials(later).unwrap(), first, "the replacement is noticed");

    fs::copy(other.mesh.ca_folder().join("api.pem"), other.mesh.ca_folder().join("web.pem")).unwrap();
    fs::copy(other.mesh.ca_folder().join("api.key"), other.mesh.ca_folder().join("web.key")).unwrap();
    let web = wait(other.mesh.view()).unwrap().spiffe_id(&"web".parse().unwrap());
    let fault = wait(other.mesh.credentials(&"web".parse().unwrap(), &web, later)).unwrap_err();
    assert_eq!((fault.code, fault.service.as_deref()), ("ENM-M030", Some("web")), "api cannot speak as web");
    let db = wait(other.mesh.view()).unwrap().spiffe_id(&"db".parse().unwrap());
    let fault = wait(other.mesh.credentials(&"db".parse().unwrap(), &db, later)).unwrap_err();
    assert_eq!(fault.code, "ENM-M029");
    assert!(fault.hint.contains("enmesh ca issue db"), "{}", fault.hint);
}

#[test]
fn what_is_watched_lies_below_the_root() {
    let host = host();
    let root = host.dir.path();
    let source: &dyn MeshSource = &host.mesh;
    assert_eq!(source.name(), "static");
    assert_eq!(source.watch_paths(), [root.join("etc/enmesh/peers.toml"), root.join("var/lib/enmesh/ca")]);
}
