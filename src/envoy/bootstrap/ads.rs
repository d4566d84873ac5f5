//! Consul's xDS as the sidecar's source: the cluster that leads to it, and what it is asked for.

use serde_json::{Map, Value, json};

use crate::envoy::error::EnvoyError;
use crate::envoy::layout::{Layout, secret_file};
use crate::envoy::secrets::TOKEN;
use crate::envoy::typed::{address, any, extension, file_source};
use crate::plan::{Ads, AdsServer};

/// The cluster's name, as Consul's own bootstrap has it.
pub const LOCAL_AGENT: &str = "local_agent";

const OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
const FILTERS: &str = "envoy.extensions.filters.http";

/// A ping on an idle stream. gRPC servers hang up on who pings more often than every five minutes,
/// unless they were told otherwise, and Consul's were not before 1.14.
const PING: (&str, &str) = ("330s", "20s");

/// Listeners and clusters from Consul. Without a time limit: a sidecar that never heard from it has
/// no business to be ready.
pub fn dynamic_resources() -> Value {
    let ads = json!({"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"});
    json!({
        "lds_config": ads,
        "cds_config": ads,
        "ads_config": {
            // The only form that Consul speaks.
            "api_type": "DELTA_GRPC",
            "transport_api_version": "V3",
            "grpc_services": [{"envoy_grpc": {"cluster_name": LOCAL_AGENT}}],
        },
    })
}

/// The way to Consul's xDS.
///
/// # Errors
/// `ENM-E045`: TLS without a CA. Envoy would end itself over it.
pub fn cluster(ads: &Ads, layout: &Layout) -> Result<Value, EnvoyError> {
    if ads.ca_pem.as_ref().is_some_and(|pem| pem.trim().is_empty()) {
        return Err(EnvoyError::EmptyCa);
    }
    let endpoint = match &ads.server {
        AdsServer::Tcp(at) => address(at.ip(), at.port()),
        AdsServer::Unix(path) => json!({"pipe": {"path": path}}),
    };
    let mut cluster = Map::new();
    let mut put = |key: &str, value: Value| drop(cluster.insert(key.to_owned(), value));
    put("name", json!(LOCAL_AGENT));
    put("type", json!("STATIC"));
    put("connect_timeout", json!("1s"));
    put("typed_extension_protocol_options", json!({OPTIONS: any(OPTIONS, http(ads, layout))}));
    put(
        "load_assignment",
        json!({
            "cluster_name": LOCAL_AGENT,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": endpoint}}]}],
        }),
    );
    if let AdsServer::Tcp(at) = &ads.server
        && !at.ip().is_loopback()
    {
        put("upstream_connection_options", keepalive());
    }
    if let Some(ca) = &ads.ca_pem {
        put("transport_socket", tls(ca));
    }
    Ok(Value::Object(cluster))
}

/// A server whose host vanished is noticed within a minute, at no cost to those that count pings.
fn keepalive() -> Value {
    json!({"tcp_keepalive": {"keepalive_time": 30, "keepalive_interval": 10, "keepalive_probes": 3}})
}

/// HTTP/2; the token is added to each call from a file that is read anew when it is replaced. In the
/// bootstrap itself it would need a restart to change, and would show in dumps of it.
fn http(ads: &Ads, layout: &Layout) -> Value {
    let mut filters = Vec::new();
    if ads.token {
        let credential = any(
            "envoy.extensions.http.injected_credentials.generic.v3.Generic",
            json!({
                "credential": {"name": TOKEN, "sds_config": file_source(layout, &secret_file(TOKEN))},
                "header": "x-consul-token",
            }),
        );
        filters.push(extension(
            "envoy.filters.http.credential_injector",
            &format!("{FILTERS}.credential_injector.v3.CredentialInjector"),
            // Without it, Consul would take the sidecar for anonymous and say something else.
            json!({"overwrite": true, "allow_request_without_credential": false, "credential": {
                "name": "envoy.http.injected_credentials.generic", "typed_config": credential,
            }}),
        ));
        filters.push(extension(
            "envoy.filters.http.upstream_codec",
            &format!("{FILTERS}.upstream_codec.v3.UpstreamCodec"),
            json!({}),
        ));
    }
    let ping = json!({"interval": PING.0, "timeout": PING.1});
    let mut options =
        json!({"explicit_http_config": {"http2_protocol_options": {"connection_keepalive": ping}}});
    if let (Some(fields), false) = (options.as_object_mut(), filters.is_empty()) {
        fields.insert("http_filters".to_owned(), filters.into());
    }
    options
}

/// Whoever has a certificate of this CA is believed, as in Consul's own bootstrap: servers' and
/// agents' certificates carry no name that is the same everywhere.
fn tls(ca: &str) -> Value {
    extension(
        "envoy.transport_sockets.tls",
        "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        json!({"common_tls_context": {
            // Envoy's own limit for clients is 1.2, and an agent may ask for 1.3.
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_2", "tls_maximum_protocol_version": "TLSv1_3"},
            "validation_context": {"trusted_ca": {"inline_string": ca}},
        }}),
    )
}
