//! Whether a certificate may be used: by whom it is signed, for whom, from when to when.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::PublicKeyData;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::time::ASN1Time;

use super::pem;
use crate::plan::{Credentials, SpiffeId};

/// Why a certificate cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// It cannot be read.
    #[error("{0}")]
    Unreadable(String),
    /// It is another's.
    #[error("it is for {found}, not for {wanted}")]
    Identity {
        /// Whose it is.
        found: String,
        /// Whose it should be.
        wanted: String,
    },
    /// It is not valid yet.
    #[error("it is not valid before {0}")]
    Early(String),
    /// It is not valid any more.
    #[error("it ended at {0}")]
    Expired(String),
    /// No root signed it.
    #[error("none of the roots signed it")]
    Untrusted,
    /// It is not meant for both ends of a connection.
    #[error("it is not meant for mutual TLS: {0}")]
    Usage(&'static str),
    /// The key is another certificate's.
    #[error("the private key is not this certificate's")]
    Key,
}

/// Checks that `credentials` prove `identity` at the time `now`: the leaf names it and nothing else, it
/// is valid, it chains to one of the roots, it is meant for mutual TLS, and its key is there.
///
/// # Errors
/// The first of these that does not hold.
pub fn verify(credentials: &Credentials, identity: &SpiffeId, now: SystemTime) -> Result<(), Unfit> {
    let chain = pem::certificates(&credentials.certificate_pem).map_err(Unfit::Unreadable)?;
    let roots = pem::certificates(&credentials.roots_pem).map_err(Unfit::Unreadable)?;
    let (chain, roots) = (parse_all(&chain)?, parse_all(&roots)?);
    let Some((leaf, intermediates)) = chain.split_first() else { return Err(Unfit::Untrusted) };
    let found = uris(leaf).join(", ");
    let wanted = identity.to_string();
    if found != wanted {
        return Err(Unfit::Identity {
            found: if found.is_empty() { "nobody".to_owned() } else { found },
            wanted,
        });
    }
    valid_at(leaf, now)?;
    usable_for_mutual_tls(leaf)?;
    if !chains(leaf, intermediates, &roots, now) {
        return Err(Unfit::Untrusted);
    }
    let key = pem::private_key(&credentials.key_pem).map_err(Unfit::Unreadable)?;
    if leaf.public_key().subject_public_key.data.as_ref() != key.der_bytes() {
        return Err(Unfit::Key);
    }
    Ok(())
}

fn parse_all(ders: &[Vec<u8>]) -> Result<Vec<X509Certificate<'_>>, Unfit> {
    ders.iter().map(|der| parse(der)).collect()
}

/// One certificate.
pub(super) fn parse(der: &[u8]) -> Result<X509Certificate<'_>, Unfit> {
    let (_, certificate) =
        x509_parser::parse_x509_certificate(der).map_err(|e| Unfit::Unreadable(e.to_string()))?;
    Ok(certificate)
}

/// The URIs among the alternative names.
pub(super) fn uris<'a>(certificate: &'a X509Certificate<'_>) -> Vec<&'a str> {
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return Vec::new() };
    names
        .value
        .general_names
        .iter()
        .filter_map(|name| if let GeneralName::URI(uri) = name { Some(*uri) } else { None })
        .collect()
}

/// From when to when it is valid. Times before 1970 are 1970.
pub(super) fn validity(certificate: &X509Certificate<'_>) -> (SystemTime, SystemTime) {
    let time = |time: ASN1Time| {
        let seconds = u64::try_from(time.timestamp()).unwrap_or(0);
        UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).unwrap_or(UNIX_EPOCH)
    };
    let validity = certificate.validity();
    (time(validity.not_before), time(validity.not_after))
}

/// Whether it is valid at `now`.
pub(super) fn valid_at(certificate: &X509Certificate<'_>, now: SystemTime) -> Result<(), Unfit> {
    let (not_before, not_after) = validity(certificate);
    if now < not_before {
        return Err(Unfit::Early(super::time_text(not_before)));
    }
    if now > not_after {
        return Err(Unfit::Expired(super::time_text(not_after)));
    }
    Ok(())
}

/// Whether it may sign certificates.
pub(super) fn is_authority(certificate: &X509Certificate<'_>) -> bool {
    // Without the key usage extension every use is allowed (RFC 5280, 4.2.1.3).
    let signs = match certificate.key_usage() {
        Ok(usage) => usage.is_none_or(|usage| usage.value.key_cert_sign()),
        Err(_) => false,
    };
    certificate.is_ca() && signs
}

fn usable_for_mutual_tls(leaf: &X509Certificate<'_>) -> Result<(), Unfit> {
    if leaf.is_ca() {
        return Err(Unfit::Usage("it is a CA's"));
    }
    match leaf.key_usage() {
        Ok(None) => {}
        Ok(Some(usage)) if usage.value.digital_signature() => {}
        _ => return Err(Unfit::Usage("it may not sign a handshake")),
    }
    match leaf.extended_key_usage() {
        Ok(None) => Ok(()),
        Ok(Some(usage)) if usage.value.any || (usage.value.client_auth && usage.value.server_auth) => Ok(()),
        _ => Err(Unfit::Usage("a sidecar is both client and server")),
    }
}

/// Climbs from the leaf by name and signature until a root has signed. Each step uses up one
/// intermediate, so it ends.
fn chains(
    leaf: &X509Certificate<'_>,
    intermediates: &[X509Certificate<'_>],
    roots: &[X509Certificate<'_>],
    now: SystemTime,
) -> bool {
    let signed_by = |child: &X509Certificate<'_>, parent: &X509Certificate<'_>| {
        child.issuer().as_raw() == parent.subject().as_raw()
            && is_authority(parent)
            && valid_at(parent, now).is_ok()
            // The algorithm is named twice, and only one of the two is signed (RFC 5280, 4.1.1.2).
            && child.signature_algorithm == child.tbs_certificate.signature
            && child.verify_signature(Some(parent.public_key())).is_ok()
    };
    let mut unused: Vec<&X509Certificate<'_>> = intermediates.iter().collect();
    let mut current = leaf;
    loop {
        if roots.iter().any(|root| signed_by(current, root)) {
            return true;
        }
        let Some(index) = unused.iter().position(|candidate| signed_by(current, candidate)) else {
            return false;
        };
        current = unused.swap_remove(index);
    }
}
