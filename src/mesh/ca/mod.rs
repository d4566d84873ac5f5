//! A CA of our own, for a mesh without servers, with the profile of Consul's built-in one, so that
//! hosts of both kinds take each other's certificates.
//!
//! The folder holds `root.pem` and `root.key`. The key is written first and the certificate last:
//! a folder with a certificate is complete, one with only a key was cut short and is finished with
//! that same key, so that a crash, or somebody who is just copying the two files there, loses nothing.

mod error;
mod leaf;
mod pem;
#[cfg(test)]
mod tests;
mod trust;
mod verify;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::fcntl::{Flock, FlockArg};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use time::OffsetDateTime;

pub use error::CaError;
pub(super) use leaf::assemble;
pub use leaf::{LeafStore, jitter, needs_renewal, renew_at};
pub use trust::Trust;
pub use verify::{Unfit, verify};

use super::TrustDomain;
use super::input::Input;
use crate::base::Fault;
use crate::base::files::{self, Access};
use crate::plan::{Credentials, SpiffeId};

/// The roots' file in the CA's folder.
pub const ROOT_CERTIFICATE: &str = "root.pem";

/// The signing key's file in the CA's folder.
pub const ROOT_KEY: &str = "root.key";

/// How long a root is valid: ten years, as Consul's (87600 h).
const ROOT_LIFE: Duration = Duration::from_secs(3650 * 24 * 3600);

/// The shortest life of a leaf. Below that a sidecar would be busy with nothing but its renewal.
const LEAF_LIFE_MIN: Duration = Duration::from_secs(10);

/// Certificates start to be valid this much before they are made, for hosts whose clocks are behind.
const CLOCK_SKEW: Duration = Duration::from_secs(60);

/// What is in a CA's folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FolderState {
    /// Nothing; the folder may not even be there.
    Empty,
    /// A key and no certificate: a CA that was cut short while it was made.
    Unfinished,
    /// A certificate, and with it a CA, or the roots of one that is elsewhere.
    Made,
    /// Other files, and no CA.
    Other,
}

/// Looks into a CA's folder.
///
/// # Errors
/// `ENM-M023` it cannot be looked into.
pub fn folder_state(folder: &Path) -> Result<FolderState, CaError> {
    let unreadable = |source| CaError::Unreadable { path: folder.to_owned(), source };
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(FolderState::Empty),
        Err(e) => return Err(unreadable(e)),
    };
    let mut state = FolderState::Empty;
    for entry in entries {
        let name = entry.map_err(unreadable)?.file_name();
        if name == ROOT_CERTIFICATE {
            return Ok(FolderState::Made);
        } else if name == ROOT_KEY {
            state = FolderState::Unfinished;
        // Hidden files are temporary ones of a write that was cut short.
        } else if state == FolderState::Empty && !name.to_string_lossy().starts_with('.') {
            state = FolderState::Other;
        }
    }
    Ok(state)
}

/// A CA whose key is on this host.
#[derive(Debug)]
pub struct Authority {
    trust: Trust,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Makes a CA in `folder`, for `trust_domain` or for a random `<uuid>.consul`. With `replace`,
    /// the one that is there is removed first, key and all.
    ///
    /// # Errors
    /// `ENM-M021` there is one already, `ENM-M025` the key of an unfinished one cannot be used,
    /// `ENM-X001` to `ENM-X003` the files cannot be written.
    pub fn create(
        folder: &Path,
        trust_domain: Option<&TrustDomain>,
        replace: bool,
        now: SystemTime,
    ) -> Result<Authority, Fault> {
        if !folder.is_dir() {
            // Everybody may read the roots; the key has a mode of its own.
            files::folder(folder, Access::mode(0o755))?;
        }
        let _lock = lock(folder)?;
        let (certificate_path, key_path) = (folder.join(ROOT_CERTIFICATE), folder.join(ROOT_KEY));
        if replace {
            // In this order each state in between is one that is recognised; and a key that had to
            // be replaced is never used again.
            files::remove(&certificate_path)?;
            files::remove(&key_path)?;
        } else if folder_state(folder)? == FolderState::Made {
            return Err(CaError::Exists { folder: folder.to_owned() }.into());
        }
        let key = match read_key(&key_path)? {
            Some(key) => key,
            None => {
                let key = KeyPair::generate().map_err(CaError::from)?;
                files::write(&key_path, key.serialize_pem().as_bytes(), Access::mode(0o600))?;
                key
            }
        };
        let trust_domain = trust_domain.map_or_else(random_trust_domain, |domain| domain.as_str().to_owned());
        let params = root_params(&trust_domain, now)?;
        let certificate = params.self_signed(&key).map_err(CaError::from)?;
        files::write(&certificate_path, certificate.pem().as_bytes(), Access::mode(0o644))?;
        Authority::open(folder)
    }

    /// The CA in `folder`.
    ///
    /// # Errors
    /// `ENM-M020` and `ENM-M022` to `ENM-M027`: it is not there, unfinished, or its files cannot be
    /// used.
    pub fn open(folder: &Path) -> Result<Authority, Fault> {
        let key_path = folder.join(ROOT_KEY);
        let key = read_key(&key_path)?;
        let (trust, key) = match (Trust::open(folder)?, key) {
            (Some(trust), Some(key)) => (trust, key),
            (None, Some(_)) => return Err(CaError::Unfinished { folder: folder.to_owned() }.into()),
            (_, None) => return Err(CaError::None { folder: folder.to_owned() }.into()),
        };
        let root = verify::parse(&trust.signer)
            .map_err(|unfit| CaError::Certificate { path: trust.path.clone(), why: unfit.to_string() })?;
        if root.public_key().subject_public_key.data.as_ref() != key.der_bytes() {
            return Err(CaError::Mismatch { path: key_path }.into());
        }
        let issuer = Issuer::from_ca_cert_der(&trust.signer.as_slice().into(), key).map_err(CaError::from)?;
        Ok(Authority { trust, issuer })
    }

    /// The roots that go with what this CA signs.
    pub fn trust(&self) -> &Trust {
        &self.trust
    }

    /// A new key and a certificate for `identity`, valid from a minute ago until `ttl` from `now`, or
    /// until the root ends if that is sooner.
    ///
    /// # Errors
    /// `ENM-M028` the root is not valid now, `ENM-M031` `ttl` is below ten seconds, `ENM-M032` an
    /// identity of another trust domain, `ENM-M037` the cryptography refused.
    pub fn issue(&self, identity: &SpiffeId, ttl: Duration, now: SystemTime) -> Result<Credentials, Fault> {
        if let Some(ours) = self.trust.trust_domain()
            && ours != identity.trust_domain
        {
            return Err(CaError::Foreign { identity: identity.to_string(), ours: ours.to_owned() }.into());
        }
        if ttl < LEAF_LIFE_MIN {
            return Err(CaError::TooShort { given: ttl, least: LEAF_LIFE_MIN }.into());
        }
        self.trust.check(now)?;
        let (_, root_end) = self.trust.validity();
        let end = now.checked_add(ttl).map_or(root_end, |end| end.min(root_end));
        let params = leaf_params(identity, now, end)?;
        let key = KeyPair::generate().map_err(CaError::from)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(CaError::from)?;
        Ok(Credentials {
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
            roots_pem: self.trust.pem.clone(),
            not_before: params.not_before.into(),
            not_after: params.not_after.into(),
        })
    }
}

/// Two that make a CA in the same folder at once would mix their files.
fn lock(folder: &Path) -> Result<Flock<File>, CaError> {
    let unreadable = |source| CaError::Unreadable { path: folder.to_owned(), source };
    let file = File::open(folder).map_err(unreadable)?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| unreadable(errno.into()))
}

fn read_key(path: &Path) -> Result<Option<KeyPair>, CaError> {
    let Some(Input { text, mode }) = trust::read(path)? else { return Ok(None) };
    if mode & 0o007 != 0 {
        return Err(CaError::Exposed { path: path.to_owned(), mode });
    }
    pem::private_key(&text).map(Some).map_err(|why| CaError::Key { path: path.to_owned(), why })
}

fn root_params(trust_domain: &str, now: SystemTime) -> Result<CertificateParams, CaError> {
    let mut params = CertificateParams::default();
    params.not_before = seconds(now.checked_sub(CLOCK_SKEW).unwrap_or(now))?;
    params.not_after = seconds(now.checked_add(ROOT_LIFE).unwrap_or(now))?;
    params.serial_number = Some(random_serial());
    // A number of its own, because chains are found by name while a root is being replaced.
    params.distinguished_name = common_name(&format!("Consul CA {}", rand::random::<u32>()));
    params.subject_alt_names = vec![SanType::URI(format!("spiffe://{trust_domain}").try_into()?)];
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn leaf_params(identity: &SpiffeId, now: SystemTime, end: SystemTime) -> Result<CertificateParams, CaError> {
    let mut params = CertificateParams::default();
    params.not_before = seconds(now.checked_sub(CLOCK_SKEW).unwrap_or(now))?;
    params.not_after = seconds(end)?;
    params.serial_number = Some(random_serial());
    params.distinguished_name = common_name(&identity.service);
    params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into()?)];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyEncipherment,
        KeyUsagePurpose::DataEncipherment,
        KeyUsagePurpose::KeyAgreement,
    ];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn common_name(name: &str) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name);
    subject
}

/// Certificates tell time in whole seconds.
fn seconds(time: SystemTime) -> Result<OffsetDateTime, CaError> {
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).map_err(|_| rcgen::Error::Time)?.as_secs();
    let seconds = i64::try_from(seconds).map_err(|_| rcgen::Error::Time)?;
    Ok(OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| rcgen::Error::Time)?)
}

/// 127 random bits: positive, and well above the 64 bits that make guessing useless (CA/Browser
/// Forum baseline requirements, 7.1).
fn random_serial() -> SerialNumber {
    let mut bytes: [u8; 16] = rand::random();
    if let Some(first) = bytes.first_mut() {
        *first = *first & 0x7f | 0x40;
    }
    SerialNumber::from_slice(&bytes)
}

/// `<uuid>.consul`, a version 4 UUID (RFC 9562, 5.4), as a Consul cluster's id.
fn random_trust_domain() -> String {
    let bits: u128 = rand::random();
    let bits = bits & !(0xf << 76) & !(0x3 << 62) | 0x4 << 76 | 0x2 << 62;
    let hex = format!("{bits:032x}");
    let part = |from: usize, to: usize| hex.get(from..to).unwrap_or_default();
    format!("{}-{}-{}-{}-{}.consul", part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32))
}

/// A time as a person reads it in an error, UTC.
fn time_text(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}

/// Where the certificate and the key of a service lie that somebody else issued.
///
/// # Errors
/// `ENM-M035`: the service is called `root`, as the CA's own files are.
pub fn issued_paths(folder: &Path, service: &str) -> Result<(PathBuf, PathBuf), CaError> {
    if service == "root" {
        return Err(CaError::Reserved);
    }
    Ok((folder.join(format!("{service}.pem")), folder.join(format!("{service}.key"))))
}

/// Reads what somebody else issued for `identity`: `<service>.pem` and `<service>.key` in `folder`.
///
/// # Errors
/// `ENM-M020` no roots there, `ENM-M029` no certificate or key for the service, `ENM-M030` it cannot
/// be used, `ENM-M035` the service is called `root`.
pub fn read_issued(folder: &Path, identity: &SpiffeId, now: SystemTime) -> Result<Credentials, Fault> {
    let trust = Trust::open(folder)?.ok_or_else(|| CaError::None { folder: folder.to_owned() })?;
    let (path, key_path) = issued_paths(folder, &identity.service)?;
    let part = |path: &Path| match trust::read(path)? {
        Some(input) => Ok(input.text),
        None => Err(CaError::LeafMissing { service: identity.service.clone(), path: path.to_owned() }),
    };
    let (certificate_pem, key_pem) = (part(&path)?, part(&key_path)?);
    let unfit = |source| CaError::LeafUnfit { path: path.clone(), source };
    let credentials = leaf::assemble(certificate_pem, key_pem, trust.pem).map_err(unfit)?;
    verify(&credentials, identity, now).map_err(unfit)?;
    Ok(credentials)
}
