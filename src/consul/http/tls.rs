//! HTTPS: which server is trusted, who we are, and what it means when that fails.

use std::cell::RefCell;
use std::error::Error;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::ResolvesClientCert;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{
    AlertDescription, CertificateError, ClientConfig, Error as TlsError, RootCertStore, SignatureScheme,
};

use crate::base::files;
use crate::consul::{ConsulError, Settings};

/// Where distributions keep the CAs that the system trusts: Debian, Fedora, Alpine, SUSE. Consul's
/// own tools trust the same ones, an administrator's additions among them.
const SYSTEM_BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
    "/etc/ssl/ca-bundle.pem",
];
/// Largest PEM file that is read, in bytes; a system's bundle has about 220 kB.
const FILE_LIMIT: u64 = 4 << 20;

/// TLS as configured. Certificates are renewed in place, so files that changed are read again.
#[derive(Debug)]
pub(super) struct Tls {
    ca_file: PathBuf,
    client: Option<(PathBuf, PathBuf)>,
    ready: RefCell<Option<(Vec<Option<SystemTime>>, Ready)>>,
}

/// What a connection is made with.
#[derive(Clone)]
pub(super) struct Ready {
    pub connector: TlsConnector,
    /// Whether a server has asked for a client certificate that is not configured.
    asked: Arc<AtomicBool>,
    given: bool,
}

impl std::fmt::Debug for Ready {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ready")
    }
}

impl Tls {
    /// # Errors
    /// `ENM-K010` a file cannot be used.
    pub fn new(settings: &Settings) -> Result<Self, ConsulError> {
        let ca_file = settings
            .ca_file
            .clone()
            .or_else(|| SYSTEM_BUNDLES.iter().map(PathBuf::from).find(|path| path.is_file()));
        let ca_file = ca_file.unwrap_or_else(|| PathBuf::from(SYSTEM_BUNDLES[0]));
        let tls = Tls { ca_file, client: settings.client.clone(), ready: RefCell::default() };
        tls.ready()?;
        Ok(tls)
    }

    /// # Errors
    /// As [`Tls::new`].
    pub fn ready(&self) -> Result<Ready, ConsulError> {
        let stamps = self.stamps();
        if let Some((then, ready)) = &*self.ready.borrow()
            && *then == stamps
        {
            return Ok(ready.clone());
        }
        let ready = self.build()?;
        self.ready.replace(Some((stamps, ready.clone())));
        Ok(ready)
    }

    fn stamps(&self) -> Vec<Option<SystemTime>> {
        let client = self.client.iter().flat_map(|(certificate, key)| [certificate, key]);
        [&self.ca_file]
            .into_iter()
            .chain(client)
            .map(|path| fs::metadata(path).and_then(|meta| meta.modified()).ok())
            .collect()
    }

    fn build(&self) -> Result<Ready, ConsulError> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&self.ca_file)? {
            // A system's bundle may hold what this library does not read; the others still count.
            let _ = roots.add(certificate);
        }
        if roots.is_empty() {
            return Err(wrong(&self.ca_file, "no certificate in it can be a CA's".to_owned()));
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| wrong(&self.ca_file, error.to_string()))?
            .with_root_certificates(roots);
        let asked = Arc::new(AtomicBool::new(false));
        let config = match &self.client {
            None => builder.with_client_cert_resolver(Arc::new(Nobody(Arc::clone(&asked)))),
            Some((certificate, key)) => {
                let bytes = contents(key)?;
                let secret = PrivateKeyDer::from_pem_slice(&bytes)
                    .map_err(|_| wrong(key, "there is no private key in it".to_owned()))?;
                builder
                    .with_client_auth_cert(certificates(certificate)?, secret)
                    .map_err(|error| wrong(certificate, error.to_string()))?
            }
        };
        Ok(Ready { connector: TlsConnector::from(Arc::new(config)), asked, given: self.client.is_some() })
    }
}

fn wrong(path: &Path, why: String) -> ConsulError {
    ConsulError::TlsFile { path: path.to_owned(), why }
}

fn contents(path: &Path) -> Result<Vec<u8>, ConsulError> {
    let bytes = files::read(path, FILE_LIMIT).map_err(|fault| wrong(path, fault.message))?;
    bytes.ok_or_else(|| wrong(path, "there is no such file".to_owned()))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ConsulError> {
    let bytes = contents(path)?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match all {
        Ok(all) if !all.is_empty() => Ok(all),
        _ => Err(wrong(path, "there is no certificate in it".to_owned())),
    }
}

/// Has no client certificate, and remembers that one was asked for: in TLS 1.3 the server's refusal
/// comes after the handshake, and may be lost with the connection.
#[derive(Debug)]
struct Nobody(Arc<AtomicBool>);

impl ResolvesClientCert for Nobody {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.store(true, Ordering::Relaxed);
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

impl Ready {
    /// What it means that a connection to `server` failed with `error`; `None` when TLS has nothing
    /// to do with it. `midway` is a failure after the handshake.
    pub fn cause(&self, server: &str, error: &(dyn Error + 'static), midway: bool) -> Option<ConsulError> {
        let server = server.to_owned();
        let (given, asked) = (self.given, self.asked.load(Ordering::Relaxed));
        let Some(cause) = tls_error(error) else {
            let lost = midway && asked;
            return lost.then_some(ConsulError::ClientCertificate { server, given });
        };
        let why = cause.to_string();
        Some(match cause {
            TlsError::InvalidCertificate(certificate) => match certificate {
                CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                    ConsulError::UnknownCa { server }
                }
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                    ConsulError::WrongName { server, why }
                }
                CertificateError::Expired
                | CertificateError::ExpiredContext { .. }
                | CertificateError::NotValidYet
                | CertificateError::NotValidYetContext { .. } => ConsulError::CertificateTime { server, why },
                _ => ConsulError::Tls { server, why },
            },
            TlsError::AlertReceived(alert) => match alert {
                AlertDescription::CertificateRequired
                | AlertDescription::BadCertificate
                | AlertDescription::UnsupportedCertificate
                | AlertDescription::CertificateRevoked
                | AlertDescription::CertificateExpired
                | AlertDescription::CertificateUnknown
                | AlertDescription::UnknownCA
                | AlertDescription::AccessDenied => ConsulError::ClientCertificate { server, given },
                // A certificate of a CA that only has the right name.
                AlertDescription::DecryptError if given => ConsulError::ClientCertificate { server, given },
                AlertDescription::HandshakeFailure if asked => {
                    ConsulError::ClientCertificate { server, given }
                }
                _ => ConsulError::Tls { server, why },
            },
            TlsError::InvalidMessage(_) => ConsulError::NotTls { server },
            _ => ConsulError::Tls { server, why },
        })
    }
}

/// The error of TLS somewhere below `error`. An I/O error hides what it was made from, so it is
/// opened by hand.
fn tls_error<'e>(error: &'e (dyn Error + 'static)) -> Option<&'e TlsError> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<TlsError>() {
            return Some(found);
        }
        next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}
