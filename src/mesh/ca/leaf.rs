//! Leaves over time: when to renew one, and where one waits for the next start of the daemon.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};

use super::{Authority, CLOCK_SKEW, Unfit, pem, trust, verify};
use crate::base::Fault;
use crate::base::files::{self, Access};
use crate::config::value::ServiceId;
use crate::plan::{Credentials, SpiffeId};

/// When to renew: after 60 to 90 % of its life, as Consul's agents do; `jitter` from 0 to 1 says
/// where in between, so that hosts that started together do not renew together.
pub fn renew_at(credentials: &Credentials, jitter: f64) -> SystemTime {
    let life = credentials.not_after.duration_since(credentials.not_before).unwrap_or(Duration::ZERO);
    let jitter = if jitter.is_nan() { 0.0 } else { jitter.clamp(0.0, 1.0) };
    let part = life.mul_f64(0.6 + 0.3 * jitter);
    credentials.not_before.checked_add(part).unwrap_or(credentials.not_after)
}

/// A jitter from 0 to 1 that is drawn with the certificate: random among certificates, and always
/// the same for one, so that a restart does not change when it is renewed.
pub fn jitter(credentials: &Credentials) -> f64 {
    let digest = Sha256::digest(&credentials.certificate_pem);
    let drawn = digest.iter().take(4).fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte));
    f64::from(drawn) / f64::from(u32::MAX)
}

/// Whether it is time to renew. A certificate from the future counts: somebody set the clock back.
pub fn needs_renewal(credentials: &Credentials, now: SystemTime) -> bool {
    now < credentials.not_before || now >= renew_at(credentials, jitter(credentials))
}

/// The leaves that this host signed for its own services, by service id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeafStore {
    folder: PathBuf,
}

impl LeafStore {
    /// Where leaves are kept, below the root.
    pub const FOLDER: &str = "/var/lib/enmesh/leaf";

    /// The leaves in `folder`.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        LeafStore { folder: folder.into() }
    }

    /// The leaf that is kept for `service`, or a new one, and whether it is new.
    ///
    /// The kept one serves as long as it is for `identity`, chains to the root that signs now, does not
    /// outlive what `ttl` allows, and is not due; anything else about it that is odd makes it unfit,
    /// too, and it is replaced.
    ///
    /// # Errors
    /// As [`Authority::issue`]; `ENM-X001` to `ENM-X003` it cannot be written.
    pub fn current_or_issue(
        &self,
        authority: &Authority,
        service: &ServiceId,
        identity: &SpiffeId,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<(Credentials, bool), Fault> {
        if let Some(mut kept) = self.kept(authority, service)
            && verify(&kept, identity, now).is_ok()
            && !needs_renewal(&kept, now)
            && kept.not_after.duration_since(now).unwrap_or_default() <= ttl.saturating_add(CLOCK_SKEW)
        {
            kept.roots_pem = authority.trust().pem().to_owned();
            return Ok((kept, false));
        }
        let fresh = authority.issue(identity, ttl, now)?;
        files::folder(&self.folder, Access::mode(0o700))?;
        // The certificate is the commit: a new key beside an old certificate does not verify.
        files::write(&self.path(service, "key"), fresh.key_pem.as_bytes(), Access::mode(0o600))?;
        files::write(&self.path(service, "pem"), fresh.certificate_pem.as_bytes(), Access::mode(0o600))?;
        Ok((fresh, true))
    }

    /// Keeps what somebody else issued for `service`, with its roots, if it is not kept already.
    ///
    /// # Errors
    /// `ENM-X001` to `ENM-X003` it cannot be written.
    pub fn keep(&self, service: &ServiceId, credentials: &Credentials) -> Result<(), Fault> {
        if self.kept_whole(service).as_ref() == Some(credentials) {
            return Ok(());
        }
        let Credentials { certificate_pem, key_pem, roots_pem, .. } = credentials;
        files::folder(&self.folder, Access::mode(0o700))?;
        // In this order, because a certificate whose key or root is another's does not verify.
        for (ending, text) in [("roots", roots_pem), ("key", key_pem), ("pem", certificate_pem)] {
            files::write(&self.path(service, ending), text.as_bytes(), Access::mode(0o600))?;
        }
        Ok(())
    }

    /// What [`LeafStore::keep`] kept; nothing if it cannot be read. Nothing else is checked.
    pub fn kept_whole(&self, service: &ServiceId) -> Option<Credentials> {
        let part = |ending| Some(trust::read(&self.path(service, ending)).ok()??.text);
        assemble(part("pem")?, part("key")?, part("roots")?).ok()
    }

    /// Forgets the leaf of a service that is gone.
    ///
    /// # Errors
    /// `ENM-X002`, `ENM-X003`: it cannot be removed.
    pub fn remove(&self, service: &ServiceId) -> Result<(), Fault> {
        files::remove(&self.path(service, "pem"))?;
        files::remove(&self.path(service, "key"))?;
        files::remove(&self.path(service, "roots"))?;
        Ok(())
    }

    /// What is kept, with only the root that signs now, or nothing if it cannot be read.
    fn kept(&self, authority: &Authority, service: &ServiceId) -> Option<Credentials> {
        let certificate = trust::read(&self.path(service, "pem")).ok()??.text;
        let key = trust::read(&self.path(service, "key")).ok()??.text;
        assemble(certificate, key, authority.trust().signer_pem()).ok()
    }

    fn path(&self, service: &ServiceId, ending: &str) -> PathBuf {
        Path::new(&self.folder).join(format!("{service}.{ending}"))
    }
}

/// Credentials from their parts; the times are those of the leaf. Nothing else is checked.
pub(in crate::mesh) fn assemble(
    certificate_pem: String,
    key_pem: String,
    roots_pem: String,
) -> Result<Credentials, Unfit> {
    let chain = pem::certificates(&certificate_pem).map_err(Unfit::Unreadable)?;
    let leaf = chain.first().map(Vec::as_slice).unwrap_or_default();
    let (not_before, not_after) = super::verify::validity(&super::verify::parse(leaf)?);
    Ok(Credentials { certificate_pem, key_pem, roots_pem, not_before, not_after })
}
