//! PEM in, DER and keys out.

use rcgen::KeyPair;
use x509_parser::pem::Pem;

/// More certificates than any chain or set of roots has; bounds the work on a hostile file.
const CERTIFICATES_MAX: usize = 32;

/// The certificates in a PEM text, in its order, as DER; what is between them is skipped.
pub(super) fn certificates(pem: &str) -> Result<Vec<Vec<u8>>, String> {
    let mut found = Vec::new();
    for block in Pem::iter_from_buffer(pem.as_bytes()) {
        let block = block.map_err(|e| e.to_string())?;
        if block.label != "CERTIFICATE" {
            continue;
        }
        let whole =
            matches!(x509_parser::parse_x509_certificate(&block.contents), Ok((rest, _)) if rest.is_empty());
        if !whole {
            return Err("a certificate in it is damaged".to_owned());
        }
        found.push(block.contents);
        if found.len() > CERTIFICATES_MAX {
            return Err(format!("more than {CERTIFICATES_MAX} certificates"));
        }
    }
    if found.is_empty() { Err("no certificate in it".to_owned()) } else { Ok(found) }
}

/// DER back to PEM.
pub(super) fn encode_certificate(der: &[u8]) -> String {
    use base64::Engine as _;
    let body = base64::engine::general_purpose::STANDARD.encode(der);
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    for (index, character) in body.chars().enumerate() {
        if index > 0 && index % 64 == 0 {
            text.push('\n');
        }
        text.push(character);
    }
    text.push_str("\n-----END CERTIFICATE-----\n");
    text
}

/// The private key in a PEM text: PKCS#8, or SEC 1 with EC P-256 or P-384 as Consul writes it.
pub(super) fn private_key(pem: &str) -> Result<KeyPair, String> {
    for block in Pem::iter_from_buffer(pem.as_bytes()) {
        let block = block.map_err(|e| e.to_string())?;
        let refused = || "not an EC P-256, EC P-384, RSA or Ed25519 key with its public half".to_owned();
        return match block.label.as_str() {
            "PRIVATE KEY" => KeyPair::try_from(block.contents).map_err(|_| refused()),
            "EC PRIVATE KEY" => CURVES
                .iter()
                .find_map(|curve| KeyPair::try_from(pkcs8_of_sec1(&block.contents, curve)?).ok())
                .ok_or_else(refused),
            // OpenSSL puts the curve in a block of its own in front of the key.
            "EC PARAMETERS" => continue,
            "ENCRYPTED PRIVATE KEY" => {
                Err("it is encrypted, and nobody is there to type a password".to_owned())
            }
            label => Err(format!("it is a {label:?}")),
        };
    }
    Err("no private key in it".to_owned())
}

/// P-256 and P-384 as encoded object identifiers (RFC 5480, 2.1.1.1).
const CURVES: [&[u8]; 2] = [
    &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07],
    &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22],
];

/// id-ecPublicKey (RFC 5480, 2.1.1).
const EC_PUBLIC_KEY: [u8; 9] = [0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];

/// Puts a SEC 1 key into the PKCS#8 envelope (RFC 5208, 5) that the signing library reads: version
/// 0, the algorithm with its curve, the key as an octet string.
fn pkcs8_of_sec1(sec1: &[u8], curve: &[u8]) -> Option<Vec<u8>> {
    let algorithm = der(0x30, &[&EC_PUBLIC_KEY, curve])?;
    let key = der(0x04, &[sec1])?;
    der(0x30, &[&[0x02, 0x01, 0x00], &algorithm, &key])
}

/// One DER element of at most 65535 bytes.
fn der(tag: u8, parts: &[&[u8]]) -> Option<Vec<u8>> {
    let length = u16::try_from(parts.iter().map(|part| part.len()).sum::<usize>()).ok()?;
    let [high, low] = length.to_be_bytes();
    let mut element = match length {
        0..=0x7f => vec![tag, low],
        0x80..=0xff => vec![tag, 0x81, low],
        _ => vec![tag, 0x82, high, low],
    };
    element.extend(parts.iter().copied().flatten());
    Some(element)
}
