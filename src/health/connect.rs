//! Connections to what is checked.

use std::cell::RefCell;
use std::fs;
use std::sync::Arc;
use std::time::SystemTime;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use tokio_rustls::rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use crate::base::{ca, files};

/// Largest file of CAs that is read, in bytes; a system's bundle has about 220 kB.
const BUNDLE_LIMIT: u64 = 4 << 20;

/// HOST:PORT; an IPv6 address stands in brackets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    /// Without brackets.
    pub host: String,
    pub port: u16,
}

impl Target {
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not HOST:PORT");
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let port = port.parse().map_err(|_| wrong())?;
        Ok(Target { host: host.trim_start_matches('[').trim_end_matches(']').to_owned(), port })
    }

    /// Tries every address of the name in turn.
    pub async fn dial(&self) -> Result<TcpStream, String> {
        let addresses = tokio::net::lookup_host((self.host.as_str(), self.port)).await;
        let addresses = addresses.map_err(|error| format!("{:?} has no address: {error}", self.host))?;
        let mut last = Err(format!("{:?} has no address", self.host));
        for address in addresses {
            last = TcpStream::connect(address).await.map_err(|error| error.to_string());
            if last.is_ok() {
                break;
            }
        }
        last
    }
}

/// How a check trusts.
pub(super) struct Tls {
    /// Any certificate will do.
    pub skip_verify: bool,
    /// The name that it must be for, where it is not the host's.
    pub name: Option<String>,
    /// What was made of the system's CAs, and of which state of their file.
    ready: RefCell<Option<(Option<SystemTime>, Arc<ClientConfig>)>>,
}

impl Tls {
    pub fn new(skip_verify: bool, name: Option<String>) -> Self {
        Tls { skip_verify, name, ready: RefCell::default() }
    }

    /// Makes a TLS connection of `stream`, which leads to `host`, and offers `protocols`, which are the
    /// same each time.
    pub async fn wrap(
        &self,
        stream: TcpStream,
        host: &str,
        protocols: &[&str],
    ) -> Result<TlsStream<TcpStream>, String> {
        let name = self.name.as_deref().unwrap_or(host);
        let name =
            ServerName::try_from(name.to_owned()).map_err(|_| format!("{name:?} is no name for TLS"))?;
        let connector = TlsConnector::from(self.ready(protocols)?);
        connector.connect(name, stream).await.map_err(|error| format!("TLS: {error}"))
    }

    /// The file of CAs is read again when it has changed.
    fn ready(&self, protocols: &[&str]) -> Result<Arc<ClientConfig>, String> {
        let stamp = fs::metadata(ca::system_bundle()).and_then(|meta| meta.modified()).ok();
        if let Some((then, config)) = &*self.ready.borrow()
            && *then == stamp
        {
            return Ok(Arc::clone(config));
        }
        let mut config = self.config()?;
        config.alpn_protocols = protocols.iter().map(|it| it.as_bytes().to_vec()).collect();
        let config = Arc::new(config);
        self.ready.replace(Some((stamp, Arc::clone(&config))));
        Ok(config)
    }

    fn config(&self) -> Result<ClientConfig, String> {
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?;
        if self.skip_verify {
            let verifier = Arc::new(Anybody(provider));
            return Ok(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth());
        }
        Ok(builder.with_root_certificates(system_roots()?).with_no_client_auth())
    }
}

fn system_roots() -> Result<RootCertStore, String> {
    let path = ca::system_bundle();
    let bytes = files::read(&path, BUNDLE_LIMIT).map_err(|fault| fault.message)?;
    let bytes = bytes.ok_or_else(|| format!("the system's CAs are not in {}", path.display()))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&bytes).flatten() {
        // The bundle may hold what this library does not read; the others still count.
        let _ = roots.add(certificate);
    }
    Ok(roots)
}

/// Takes any certificate whose key the other side has.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
