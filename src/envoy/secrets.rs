//! Certificates for Envoy (SDS).

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::layout::{Layout, secret_file};
use super::typed::{any, file_source};
use crate::plan::Credentials;

/// The name of the secret with the leaf certificate and its key.
pub const LEAF: &str = "connect-leaf";
/// The name of the secret with the roots.
pub const ROOT: &str = "connect-root";

/// The two secrets, by name. Keep them where only root and Envoy can read.
pub fn secrets(credentials: &Credentials) -> BTreeMap<&'static str, Value> {
    let leaf = json!({
        "name": LEAF,
        "tls_certificate": {
            "certificate_chain": {"inline_string": credentials.certificate_pem},
            "private_key": {"inline_string": credentials.key_pem},
        },
    });
    let root = json!({
        "name": ROOT,
        "validation_context": {"trusted_ca": {"inline_string": credentials.roots_pem}},
    });
    [(LEAF, leaf), (ROOT, root)]
        .into_iter()
        .map(|(name, secret)| (name, any("envoy.extensions.transport_sockets.tls.v3.Secret", secret)))
        .collect()
}

/// TLS for the public listener: lets in who carries a certificate of the mesh with an identity that
/// one of the regular expressions `callers` matches; nobody when there are none. Names the protocols
/// `alpn`, if any.
///
/// Consul leaves the identity to the RBAC filter alone. That one decides when the first bytes of
/// the caller arrive, and by then an app that speaks first has already been heard.
pub fn downstream_tls(layout: &Layout, callers: &[String], alpn: &[&str]) -> Value {
    // No URI is empty, so this one matches nothing; an empty list would match everything.
    let nobody = ["^$".to_owned()];
    let callers = if callers.is_empty() { &nobody } else { callers };
    let identities: Vec<Value> = callers
        .iter()
        .map(|regex| json!({"san_type": "URI", "matcher": {"safe_regex": {"regex": regex}}}))
        .collect();
    let mut common = common(layout, &identities);
    if let (false, Some(fields)) = (alpn.is_empty(), common.as_object_mut()) {
        fields.insert("alpn_protocols".to_owned(), json!(alpn));
    }
    tls_socket(
        "DownstreamTlsContext",
        json!({"require_client_certificate": true, "common_tls_context": common}),
    )
}

/// TLS towards a service: its SNI, and a certificate that carries exactly its identity.
pub fn upstream_tls(layout: &Layout, sni: &str, identity: &str) -> Value {
    let identity = json!({"san_type": "URI", "matcher": {"exact": identity}});
    tls_socket("UpstreamTlsContext", json!({"sni": sni, "common_tls_context": common(layout, &[identity])}))
}

/// Our certificate, and whose we accept.
fn common(layout: &Layout, identities: &[Value]) -> Value {
    json!({
        "tls_params": tls_params(),
        "tls_certificate_sds_secret_configs": [secret_source(layout, LEAF)],
        "combined_validation_context": {
            "default_validation_context": {"match_typed_subject_alt_names": identities},
            "validation_context_sds_secret_config": secret_source(layout, ROOT),
        },
    })
}

/// Envoy's own limit for clients is TLS 1.2, which costs every connection a round trip more.
fn tls_params() -> Value {
    json!({"tls_minimum_protocol_version": "TLSv1_2", "tls_maximum_protocol_version": "TLSv1_3"})
}

fn tls_socket(message: &str, context: Value) -> Value {
    super::typed::extension(
        "envoy.transport_sockets.tls",
        &format!("envoy.extensions.transport_sockets.tls.v3.{message}"),
        context,
    )
}

fn secret_source(layout: &Layout, name: &str) -> Value {
    json!({"name": name, "sds_config": file_source(layout, &secret_file(name))})
}
