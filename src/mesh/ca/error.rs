//! What can be wrong with the CA and with certificates.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::verify::Unfit;
use crate::base::{Class, Explain, Place};

/// What certificates can run into.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// There is no CA.
    #[error("there is no CA in {}", folder.display())]
    None {
        /// Where it should be.
        folder: PathBuf,
    },
    /// There is a CA already.
    #[error("there is a CA in {} already", folder.display())]
    Exists {
        /// Where.
        folder: PathBuf,
    },
    /// The making of a CA was cut short: there is a key and no certificate.
    #[error("the CA in {} is unfinished: it has a key and no certificate", folder.display())]
    Unfinished {
        /// Where.
        folder: PathBuf,
    },
    /// A file of the CA cannot be read.
    #[error("cannot read {}", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The root certificate is not one.
    #[error("{} is not a CA's certificate: {why}", path.display())]
    Certificate {
        /// Its file.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// A private key cannot be used.
    #[error("the private key in {} cannot be used: {why}", path.display())]
    Key {
        /// Its file.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// The CA's key is another certificate's.
    #[error("{} is not the key of the first certificate in root.pem", path.display())]
    Mismatch {
        /// The key's file.
        path: PathBuf,
    },
    /// The CA's key can be read by everybody.
    #[error("the CA's key {} is open to every user of this host (mode {mode:04o})", path.display())]
    Exposed {
        /// Its file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The root certificate is not valid now.
    #[error("the root certificate {} is not valid now: {why}", path.display())]
    NotValid {
        /// Its file.
        path: PathBuf,
        /// Until or from when.
        why: String,
    },
    /// The CA's key is elsewhere, and there is no certificate for the service.
    #[error("there is no certificate for `{service}`: {} is missing", path.display())]
    LeafMissing {
        /// The service.
        service: String,
        /// What is missing.
        path: PathBuf,
    },
    /// A certificate that somebody put there does not fit.
    #[error("the certificate {} cannot be used", path.display())]
    LeafUnfit {
        /// Its file.
        path: PathBuf,
        /// Why not.
        source: Unfit,
    },
    /// A leaf would be valid for too short a time.
    #[error("{given:?} is too short a life for a certificate: {least:?} is the least")]
    TooShort {
        /// What was asked for.
        given: Duration,
        /// The least.
        least: Duration,
    },
    /// An identity of another trust domain.
    #[error("the CA signs for the trust domain {ours}, not for {identity}")]
    Foreign {
        /// What was asked for.
        identity: String,
        /// The CA's trust domain.
        ours: String,
    },
    /// Peers file and CA name different trust domains.
    #[error("the peers file names the trust domain {peers}, the CA's root {ca}")]
    TrustDomains {
        /// That of the peers file.
        peers: String,
        /// That of the root.
        ca: String,
    },
    /// Nobody names the trust domain.
    #[error("the trust domain is not known: {} names none", path.display())]
    NoTrustDomain {
        /// The root certificate.
        path: PathBuf,
    },
    /// A service whose files would be the CA's own.
    #[error("no certificate file can be made for a service `root`: its files would be the CA's own")]
    Reserved,
    /// A folder that is to get certificates holds another CA.
    #[error("{} holds the key of another CA", folder.display())]
    OtherCa {
        /// The folder.
        folder: PathBuf,
    },
    /// The cryptography refused.
    #[error("cannot make the certificate")]
    Signing {
        /// Its answer.
        #[from]
        source: rcgen::Error,
    },
}

impl Explain for CaError {
    fn code(&self) -> &'static str {
        match self {
            CaError::None { .. } => "ENM-M020",
            CaError::Exists { .. } => "ENM-M021",
            CaError::Unfinished { .. } => "ENM-M022",
            CaError::Unreadable { .. } => "ENM-M023",
            CaError::Certificate { .. } => "ENM-M024",
            CaError::Key { .. } => "ENM-M025",
            CaError::Mismatch { .. } => "ENM-M026",
            CaError::Exposed { .. } => "ENM-M027",
            CaError::NotValid { .. } => "ENM-M028",
            CaError::LeafMissing { .. } => "ENM-M029",
            CaError::LeafUnfit { .. } => "ENM-M030",
            CaError::TooShort { .. } => "ENM-M031",
            CaError::Foreign { .. } => "ENM-M032",
            CaError::TrustDomains { .. } => "ENM-M033",
            CaError::NoTrustDomain { .. } => "ENM-M034",
            CaError::Reserved => "ENM-M035",
            CaError::OtherCa { .. } => "ENM-M036",
            CaError::Signing { .. } => "ENM-M037",
        }
    }

    fn hint(&self) -> String {
        match self {
            CaError::None { folder } => format!(
                "make one with `enmesh ca init`, or copy root.pem and root.key of another host of the mesh to {}",
                folder.display()
            ),
            CaError::Exists { .. } => {
                "`enmesh ca init --force` replaces it; every host of the mesh needs the new one then".to_owned()
            }
            CaError::Unfinished { .. } => {
                "`enmesh ca init` makes a certificate for the key that is there; or copy root.pem there".to_owned()
            }
            CaError::Unreadable { .. } => {
                "it must be a regular file of at most 1 MiB; the CA is read as root".to_owned()
            }
            CaError::Certificate { .. } => {
                "root.pem holds CA certificates in PEM; the first is the one that signs, all are trusted".to_owned()
            }
            CaError::Key { path, .. } => format!(
                "convert it to PKCS#8 with EC P-256: `openssl pkcs8 -topk8 -nocrypt -in {0} -out {0}.new`",
                path.display()
            ),
            CaError::Mismatch { .. } => {
                "copy root.pem and root.key from the same CA; where root.pem holds several, put the signing one first".to_owned()
            }
            CaError::Exposed { path, .. } => format!(
                "`chmod 600 {}`; whoever could read it can speak as any service, so consider a new CA",
                path.display()
            ),
            CaError::NotValid { .. } => {
                "check the host's clock; an expired root is replaced with `enmesh ca init --force` and copied to every host".to_owned()
            }
            CaError::LeafMissing { service, path } => format!(
                "on the host with the CA's key run `enmesh ca issue {service} --out DIR` and copy the files to {}",
                path.parent().unwrap_or(path).display()
            ),
            CaError::LeafUnfit { .. } => {
                "issue a new one with `enmesh ca issue` on the host with the CA's key, and check both clocks".to_owned()
            }
            CaError::TooShort { .. } => "give a longer `--ttl` or `[static] leaf_ttl`, such as 72h".to_owned(),
            CaError::Foreign { .. } => {
                "this host's mesh and its CA belong to different trust domains; see `trust_domain` in the peers file".to_owned()
            }
            CaError::TrustDomains { .. } => {
                "remove `trust_domain` from the peers file, or copy the mesh's own CA to this host".to_owned()
            }
            CaError::NoTrustDomain { .. } => {
                "write `trust_domain = \"...\"` into the peers file, as the other hosts of the mesh have it".to_owned()
            }
            CaError::Reserved => {
                "run the service `root` on a host that has the CA's key, or give it another name".to_owned()
            }
            CaError::OtherCa { .. } => "give `--out` a folder of its own".to_owned(),
            CaError::Signing { .. } => {
                "the CA's key should be EC P-256 in PKCS#8, as `enmesh ca init` makes it".to_owned()
            }
        }
    }

    fn class(&self) -> Class {
        match self {
            CaError::None { .. } | CaError::Unfinished { .. } | CaError::LeafMissing { .. } => {
                Class::Unavailable
            }
            CaError::Certificate { .. }
            | CaError::Key { .. }
            | CaError::Mismatch { .. }
            | CaError::Exposed { .. }
            | CaError::LeafUnfit { .. }
            | CaError::TooShort { .. }
            | CaError::TrustDomains { .. }
            | CaError::NoTrustDomain { .. } => Class::Config,
            CaError::Unreadable { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Class::Privilege
            }
            CaError::Exists { .. }
            | CaError::Unreadable { .. }
            | CaError::NotValid { .. }
            | CaError::Foreign { .. }
            | CaError::Reserved
            | CaError::OtherCa { .. }
            | CaError::Signing { .. } => Class::Failed,
        }
    }

    fn place(&self) -> Option<Place> {
        None
    }
}
