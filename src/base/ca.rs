//! Where the system keeps the CAs that it trusts.

use std::path::{Path, PathBuf};

/// The files in which distributions keep them: Debian, Fedora, Alpine, SUSE. Other programs trust the
/// same ones, an administrator's additions among them.
const SYSTEM_BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
    "/etc/ssl/ca-bundle.pem",
];

/// The first of them that is there; the most usual one where none is, so that an error can name it.
pub fn system_bundle() -> PathBuf {
    let there = SYSTEM_BUNDLES.iter().map(Path::new).find(|path| path.is_file());
    there.unwrap_or_else(|| Path::new(SYSTEM_BUNDLES[0])).to_owned()
}
