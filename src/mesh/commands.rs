//! What `enmesh ca` does.

use std::path::PathBuf;
use std::time::SystemTime;

use serde::Serialize;

use super::ca::{self, Authority, CaError, ROOT_CERTIFICATE, ROOT_KEY, Trust};
use super::{StaticMesh, TrustDomain};
use crate::base::files::{self, Access};
use crate::base::{Fault, Root};
use crate::config::StaticConfig;
use crate::config::value::{ServiceName, Span};

/// `enmesh ca init`.
#[derive(Debug, Clone, Default)]
pub struct InitRequest {
    /// The trust domain; that of the peers file, or else a random `<uuid>.consul`, unless given.
    pub trust_domain: Option<TrustDomain>,
    /// Replace a CA that is there.
    pub force: bool,
}

/// What `enmesh ca init` did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct InitReport {
    /// The trust domain.
    pub trust_domain: String,
    /// The root certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// When the root ends, RFC 3339, UTC.
    pub not_after: String,
}

/// `enmesh ca issue SERVICE`.
#[derive(Debug, Clone)]
pub struct IssueRequest {
    /// For whom.
    pub service: ServiceName,
    /// How long it is valid; `[static] leaf_ttl` unless given.
    pub ttl: Option<Span>,
    /// The folder to write to, as it is (not below the root). With its `root.pem` it is a complete CA
    /// folder for the host that runs the service.
    pub out: PathBuf,
}

/// What `enmesh ca issue` did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct IssueReport {
    /// The trust domain.
    pub trust_domain: String,
    /// The SPIFFE id in the certificate.
    pub identity: String,
    /// The certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The roots.
    pub roots: PathBuf,
    /// When the certificate ends, RFC 3339, UTC.
    pub not_after: String,
}

/// Makes the CA of `config`.
///
/// # Errors
/// As [`Authority::create`], and those of the peers file.
pub fn ca_init(
    root: &Root,
    config: &StaticConfig,
    request: &InitRequest,
    now: SystemTime,
) -> Result<InitReport, Fault> {
    let folder = root.join(&config.ca);
    let trust_domain = match &request.trust_domain {
        Some(given) => Some(given.clone()),
        None => super::peers::load(root, &config.peers)?.trust_domain,
    };
    let authority = Authority::create(&folder, trust_domain.as_ref(), request.force, now)?;
    let (_, not_after) = authority.trust().validity();
    Ok(InitReport {
        trust_domain: authority.trust().trust_domain().unwrap_or_default().to_owned(),
        certificate: folder.join(ROOT_CERTIFICATE),
        key: folder.join(ROOT_KEY),
        not_after: rfc3339(not_after),
    })
}

/// Issues a certificate for a service that runs on a host without the CA's key.
///
/// # Errors
/// As [`Authority::open`] and [`Authority::issue`]; `ENM-M035` a service called `root`, `ENM-M036`
/// another CA's folder; `ENM-X001` to `ENM-X003` the files cannot be
/// written.
pub fn ca_issue(
    root: &Root,
    config: &StaticConfig,
    request: &IssueRequest,
    now: SystemTime,
) -> Result<IssueReport, Fault> {
    let mesh = StaticMesh::new(root.clone(), config.clone());
    let authority = Authority::open(&mesh.ca_folder())?;
    let identity = mesh.view_now()?.spiffe_id(&request.service);
    let ttl = request.ttl.unwrap_or(config.leaf_ttl);
    let issued = authority.issue(&identity, ttl.0, now)?;
    let out = &request.out;
    let (certificate, key) = ca::issued_paths(out, request.service.as_str())?;
    // The roots go there, too; beside another CA's key they would spoil that CA.
    let present = Trust::open(out)?;
    if out.join(ROOT_KEY).exists() && present.is_none_or(|present| present.pem() != issued.roots_pem) {
        return Err(CaError::OtherCa { folder: out.clone() }.into());
    }
    let report = IssueReport {
        trust_domain: identity.trust_domain.clone(),
        identity: identity.to_string(),
        certificate,
        key,
        roots: out.join(ROOT_CERTIFICATE),
        not_after: rfc3339(issued.not_after),
    };
    if !out.is_dir() {
        files::folder(out, Access::mode(0o755))?;
    }
    files::write(&report.roots, issued.roots_pem.as_bytes(), Access::mode(0o644))?;
    files::write(&report.key, issued.key_pem.as_bytes(), Access::mode(0o600))?;
    files::write(&report.certificate, issued.certificate_pem.as_bytes(), Access::mode(0o644))?;
    Ok(report)
}

fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn reports_say_what_was_written_and_until_when_it_holds() {
        let dir = tempfile::tempdir().unwrap();
        let (root, config) = (Root::new(dir.path()), StaticConfig::default());
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let issue = IssueRequest {
            service: "api".parse().unwrap(),
            ttl: Some(Span::seconds(3600)),
            out: dir.path().join("out"),
        };
        assert_eq!(ca_issue(&root, &config, &issue, now).unwrap_err().code, "ENM-M020");

        let init = InitRequest { trust_domain: Some("lab.consul".parse().unwrap()), force: false };
        let made = ca_init(&root, &config, &init, now).unwrap();
        assert_eq!(made.trust_domain, "lab.consul");
        assert_eq!(made.not_after, "2037-01-12T08:00:00Z");
        assert!(made.certificate.is_file() && made.key.is_file());
        assert_eq!(ca_init(&root, &config, &init, now).unwrap_err().code, "ENM-M021");
        let forced = InitRequest { force: true, ..init };
        ca_init(&root, &config, &forced, now).unwrap();

        let issued = ca_issue(&root, &config, &issue, now).unwrap();
        assert_eq!(issued.identity, "spiffe://lab.consul/ns/default/dc/dc1/svc/api");
        assert_eq!(issued.not_after, "2027-01-15T09:00:00Z");
        assert!(issued.certificate.is_file() && issued.key.is_file() && issued.roots.is_file());
        let own = IssueRequest { out: root.join(&config.ca), ..issue };
        ca_issue(&root, &config, &own, now).unwrap();
        let json = serde_json::to_value(&issued).unwrap();
        assert_eq!(json["trust_domain"], "lab.consul");
    }
    #[test]
    fn issuing_spoils_no_ca() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (root, config) = (Root::new(dir.path()), StaticConfig::default());
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        ca_init(&root, &config, &InitRequest::default(), now).unwrap();
        Authority::create(other.path(), None, false, now).unwrap();
        let issue = IssueRequest { service: "api".parse().unwrap(), ttl: None, out: other.path().to_owned() };
        assert_eq!(ca_issue(&root, &config, &issue, now).unwrap_err().code, "ENM-M036");
        Authority::open(other.path()).unwrap();
        let issue = IssueRequest { service: "root".parse().unwrap(), ttl: None, out: dir.path().join("out") };
        assert_eq!(ca_issue(&root, &config, &issue, now).unwrap_err().code, "ENM-M035");
        assert!(!issue.out.exists());
    }
}
