//! What a refused login means.

use crate::consul::ConsulError;

/// Words of Consul's about a bearer token that it does not accept: parsing, signature, issuer,
/// audience, times.
const OF_THE_TOKEN: [&str; 9] = [
    "error parsing token",
    "error validating",
    "error verifying",
    "claims",
    "signature",
    "audience",
    "issuer",
    "expired",
    "oidc:",
];

/// The cause of `error`, which a login with `method` ended in.
pub(super) fn cause(error: ConsulError, method: &str) -> ConsulError {
    let method = method.to_owned();
    match error {
        // A login is made without a token, so what is not found is the method.
        ConsulError::UnknownToken { .. } => ConsulError::NoAuthMethod { method },
        // The status differs between releases; the words say what it is.
        ConsulError::Denied { why, .. }
        | ConsulError::Failed { why, .. }
        | ConsulError::BadRequest { why, .. }
            if OF_THE_TOKEN.iter().any(|words| why.contains(words)) =>
        {
            ConsulError::BearerRefused { method, why }
        }
        ConsulError::Denied { .. } => ConsulError::NoBindingRule { method },
        other => other,
    }
}
