//! Whom this host trusts: the roots in the CA's folder.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::error::CaError;
use super::{pem, verify};
use crate::mesh::input::{self, Input};

/// The largest file that is read from the CA's folder, in bytes.
const SIZE_LIMIT: u64 = 1024 * 1024;

/// The roots in `root.pem`. The first is the one that signs; all are trusted, so that a root can be
/// replaced without a moment in which half of the mesh does not trust the other half: first the new
/// one is added behind the old on every host, then the order is changed, then the old one removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trust {
    pub(super) path: PathBuf,
    pub(super) pem: String,
    pub(super) signer: Vec<u8>,
    pub(super) trust_domain: Option<String>,
    pub(super) validity: (SystemTime, SystemTime),
}

impl Trust {
    /// Reads `root.pem` in `folder`; `None` where there is none.
    ///
    /// # Errors
    /// `ENM-M023` it cannot be read, `ENM-M024` it holds something else.
    pub fn open(folder: &Path) -> Result<Option<Trust>, CaError> {
        let path = folder.join(super::ROOT_CERTIFICATE);
        let Some(Input { text: pem, .. }) = read(&path)? else { return Ok(None) };
        let wrong = |why: String| CaError::Certificate { path: path.clone(), why };
        let roots = pem::certificates(&pem).map_err(wrong)?;
        let mut signer = None;
        for der in roots {
            let root = verify::parse(&der).map_err(|unfit| wrong(unfit.to_string()))?;
            if !verify::is_authority(&root) {
                return Err(wrong(format!("`{}` may not sign certificates", root.subject())));
            }
            if signer.is_none() {
                let domain = verify::uris(&root).iter().find_map(|uri| trust_domain_of(uri));
                let validity = verify::validity(&root);
                signer = Some((der, domain, validity));
            }
        }
        let Some((signer, trust_domain, validity)) = signer else {
            return Err(wrong("no certificate in it".to_owned()));
        };
        Ok(Some(Trust { path, pem, signer, trust_domain, validity }))
    }

    /// The roots, PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// The trust domain that the signing root names.
    pub fn trust_domain(&self) -> Option<&str> {
        self.trust_domain.as_deref()
    }

    /// From when to when the signing root is valid.
    pub fn validity(&self) -> (SystemTime, SystemTime) {
        self.validity
    }

    /// The signing root alone, PEM.
    pub(super) fn signer_pem(&self) -> String {
        pem::encode_certificate(&self.signer)
    }

    /// Whether the signing root is valid at `now`.
    pub(super) fn check(&self, now: SystemTime) -> Result<(), CaError> {
        let wrong = |why: String| CaError::NotValid { path: self.path.clone(), why };
        let root = verify::parse(&self.signer).map_err(|unfit| wrong(unfit.to_string()))?;
        verify::valid_at(&root, now).map_err(|unfit| wrong(unfit.to_string()))
    }
}

/// A text file of the CA's folder; `None` where there is none.
pub(super) fn read(path: &Path) -> Result<Option<Input>, CaError> {
    input::read(path, SIZE_LIMIT).map_err(|source| CaError::Unreadable { path: path.to_owned(), source })
}

/// `spiffe://<trust domain>` without a path is the name of the trust domain itself.
fn trust_domain_of(uri: &str) -> Option<String> {
    let domain = uri.strip_prefix("spiffe://")?;
    let domain = domain.strip_suffix('/').unwrap_or(domain);
    domain.parse::<crate::mesh::TrustDomain>().ok().map(|domain| domain.as_str().to_owned())
}
