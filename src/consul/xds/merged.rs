//! A sidecar's registration as Consul gives it back, with the cluster's defaults mixed in.

use serde_json::{Value, json};

use crate::config::value::ServiceId;
use crate::consul::{Client, ConsulError, Query, segment};

/// The registration of the sidecar of `id`; `None` when it is not registered. With `node`, from the
/// catalog's entry of that node; otherwise from the agent.
///
/// Ports that the agent opened for checks are among `Proxy.Expose.Paths`, marked as Consul itself
/// marks them.
///
/// # Errors
/// See [`ConsulError`].
pub async fn merged(
    client: &Client,
    id: &ServiceId,
    node: Option<&str>,
) -> Result<Option<Value>, ConsulError> {
    let own = |check: &Value, _: &Value| text(check, "/ServiceID") == Some(id.as_str());
    registered(client, &format!("{id}-sidecar-proxy"), node, &own).await
}

/// The same for a sidecar of any id, whoever registered it. Checks are told by the service's name, as
/// Consul's own tools do it.
///
/// # Errors
/// See [`ConsulError`].
pub async fn merged_proxy(
    client: &Client,
    proxy: &str,
    node: Option<&str>,
) -> Result<Option<Value>, ConsulError> {
    let own = |check: &Value, service: &Value| {
        let name = text(check, "/ServiceName");
        name.is_some() && name == text(service, "/Proxy/DestinationServiceName")
    };
    registered(client, proxy, node, &own).await
}

/// Whether a check belongs to the service of a sidecar.
type IsOwn<'a> = &'a dyn Fn(&Value, &Value) -> bool;

async fn registered(
    client: &Client,
    sidecar: &str,
    node: Option<&str>,
    own: IsOwn<'_>,
) -> Result<Option<Value>, ConsulError> {
    let Some(node) = node else { return of_agent(client, sidecar, own).await };
    let query = Query::new(format!("/v1/catalog/node-services/{}", segment(node)))
        .with("filter", format!("ID == {sidecar:?}"))
        .with("merge-central-config", "");
    let body = client.get(&query).await?.body;
    let services = body.get("Services").and_then(Value::as_array).into_iter().flatten();
    // A release that does not know the filter gives all.
    let mut own = services.filter(|service| service.get("ID").and_then(Value::as_str) == Some(sidecar));
    Ok(own.next().cloned())
}

async fn of_agent(client: &Client, sidecar: &str, own: IsOwn<'_>) -> Result<Option<Value>, ConsulError> {
    let query = Query::new(format!("/v1/agent/service/{}", segment(sidecar)));
    let mut service = match client.get(&query).await {
        Ok(answer) => answer.body,
        Err(ConsulError::Missing { .. }) => return Ok(None),
        Err(error) => return Err(error),
    };
    if service.pointer("/Proxy/Expose/Checks").and_then(Value::as_bool) == Some(true) {
        let checks = client.get(&Query::new("/v1/agent/checks")).await?.body;
        add_exposed(&mut service, &checks, own);
    }
    Ok(Some(service))
}

fn text<'a>(value: &'a Value, path: &str) -> Option<&'a str> {
    value.pointer(path).and_then(Value::as_str)
}

fn add_exposed(service: &mut Value, checks: &Value, own: IsOwn<'_>) {
    let of_service = |check: &&Value| own(check, service);
    let ports = checks.as_object().into_iter().flat_map(|checks| checks.values()).filter(of_service);
    let paths: Vec<Value> = ports
        .filter_map(|check| check.get("ExposedPort").and_then(Value::as_u64).filter(|port| *port != 0))
        .map(|port| json!({"ListenerPort": port, "ParsedFromCheck": true}))
        .collect();
    let Some(expose) = service.pointer_mut("/Proxy/Expose").and_then(Value::as_object_mut) else { return };
    match expose.get_mut("Paths").and_then(Value::as_array_mut) {
        Some(there) => there.extend(paths),
        None => drop(expose.insert("Paths".to_owned(), paths.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_of_checks_are_among_the_paths() {
        let checks = json!({
            "a": {"ServiceID": "api", "ExposedPort": 21500}, "b": {"ServiceID": "web", "ExposedPort": 21501},
            "c": {"ServiceID": "api", "ExposedPort": 0}, "d": {"ServiceID": "api"},
        });
        for paths in [Value::Null, json!([])] {
            let mut service = json!({"Proxy": {"Expose": {"Checks": true, "Paths": paths}}});
            add_exposed(&mut service, &checks, &|check, _| text(check, "/ServiceID") == Some("api"));
            let path = json!({"ListenerPort": 21500, "ParsedFromCheck": true});
            assert_eq!(service.pointer("/Proxy/Expose/Paths"), Some(&json!([path])));
        }
    }
}
