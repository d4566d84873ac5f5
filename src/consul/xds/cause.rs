//! Why a sidecar has no stream to Consul. Envoy keeps the reason to its log, so Consul is asked what
//! it would have said, with the same token.

use super::XdsError;
use super::find::shown;
use super::merged::merged;
use super::probe::{Speaks, probe};
use crate::base::Fault;
use crate::config::value::ServiceId;
use crate::consul::{Client, ConsulError, Feature, Gate, Query, ServerFacts};
use crate::plan::Ads;

/// The cause, as far as it can be found. `client` has the token that the sidecar has.
///
/// In this order: nobody there, TLS on one side only, a release without the xDS that current Envoys
/// speak, a token that is not known, a sidecar that is not registered, a right that lacks.
pub async fn stream_cause(client: &Client, id: &ServiceId, ads: &Ads) -> Fault {
    match look(client, id, ads).await {
        Err(fault) => fault,
        Ok(()) => XdsError::NoCause { server: shown(&ads.server) }.into(),
    }
    .of_service(id)
}

async fn look(client: &Client, id: &ServiceId, ads: &Ads) -> Result<(), Fault> {
    let server = shown(&ads.server);
    match (probe(&ads.server).await, ads.ca_pem.is_some()) {
        (Err(source), _) => return Err(XdsError::Unreachable { server, source }.into()),
        (Ok(Speaks::Tls), false) => return Err(XdsError::WantsTls { server }.into()),
        (Ok(Speaks::Plaintext), true) => return Err(XdsError::NotTls { server }.into()),
        (Ok(_), _) => {}
    }
    let (facts, _) = ServerFacts::ask(client).await?;
    if let Some(version) = facts.version
        && Gate::of(&facts).has(Feature::TransparentProxy) == Some(false)
    {
        return Err(XdsError::TooOld { version: version.to_string() }.into());
    }
    if ads.token {
        match client.get(&Query::new("/v1/acl/token/self")).await {
            Err(error @ ConsulError::UnknownToken { .. }) => return Err(error.into()),
            // ACLs may be off, or the token may not look at itself: neither ends a stream.
            Ok(_) | Err(_) => {}
        }
    }
    match merged(client, id, ads.node_name.as_deref()).await? {
        Some(_) => Ok(()),
        None => Err(XdsError::NotRegistered { id: id.to_string() }.into()),
    }
}
