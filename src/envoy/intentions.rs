//! Who may call a service, and what: Consul's intentions in Envoy's words.
//!
//! They are said twice. The handshake takes the identities of those who may do anything at all,
//! and the RBAC filter says it again with Consul's names, so that calls are counted where people look
//! for them, and for HTTP tells requests apart.

use serde_json::{Value, json};

use super::names::{ANYONE, anyone_but, literal};
use super::typed::extension;
use crate::config::value::ServiceName;
use crate::plan::{Access, Callers, HeaderMatch, HeaderRule, MeshView, PathMatch, Protocol, RequestRule};

/// The intentions of one destination.
pub struct Intentions {
    /// Who may do anything at all, as regular expressions over SPIFFE ids.
    identities: Vec<String>,
    /// Principals that may do everything.
    layer4: Vec<Value>,
    /// Principals that may do something, with the permissions of which one must hold.
    layer7: Vec<(Value, Vec<Value>)>,
}

/// What a caller may do of what can be told apart in the protocol.
#[derive(Clone, Copy, PartialEq, Eq)]
enum May<'a> {
    Nothing,
    Everything,
    Some(&'a [RequestRule]),
}

impl<'a> May<'a> {
    fn of(access: &'a Access, protocol: Protocol) -> Self {
        match access {
            Access::Allow => May::Everything,
            Access::Requests(rules) if protocol.is_http() && rules.iter().any(|rule| rule.allow) => {
                May::Some(rules)
            }
            Access::Deny | Access::Requests(_) => May::Nothing,
        }
    }
}

impl Intentions {
    /// What `mesh` says of the callers of `service`, which speaks `protocol`. Nobody may call a service
    /// that the mesh does not know.
    pub fn of(service: &ServiceName, mesh: &MeshView, protocol: Protocol) -> Self {
        let nobody = Callers::default();
        let callers = mesh.services.get(service).map_or(&nobody, |known| &known.callers);
        let identity = |regex: &str| {
            // As in Consul, whatever the caller's datacenter is.
            format!("^spiffe://{}/ns/default/dc/[^/]+/svc/{regex}$", literal(&mesh.trust_domain))
        };
        let named: Vec<(&ServiceName, May<'_>)> =
            callers.named.iter().map(|(name, access)| (name, May::of(access, protocol))).collect();
        let others = May::of(&callers.others, protocol);
        let exceptions: Vec<Value> = named
            .iter()
            .filter(|(_, may)| *may != others)
            .map(|(name, _)| principal(&identity(&literal(name.as_str()))))
            .collect();

        let mut found = Intentions { identities: Vec::new(), layer4: Vec::new(), layer7: Vec::new() };
        if others != May::Nothing {
            let denied = named.iter().filter(|(_, may)| *may == May::Nothing);
            let regex = anyone_but(denied.map(|(name, _)| name.as_str()));
            found.identities.push(identity(&regex));
            found.allow(but(principal(&identity(ANYONE)), exceptions), others);
        }
        for (name, may) in named {
            // Who may do what everybody may is one of them.
            if may == others || may == May::Nothing {
                continue;
            }
            let regex = identity(&literal(name.as_str()));
            found.allow(principal(&regex), may);
            if others == May::Nothing {
                found.identities.push(regex);
            }
        }
        found
    }

    fn allow(&mut self, principal: Value, may: May<'_>) {
        match may {
            May::Nothing => {}
            May::Everything => self.layer4.push(principal),
            May::Some(rules) => self.layer7.push((principal, permissions(rules))),
        }
    }

    /// Who may do anything at all, as regular expressions over SPIFFE ids.
    pub fn identities(&self) -> &[String] {
        &self.identities
    }

    /// The filter for connections.
    pub fn network_filter(&self) -> Value {
        extension(
            "envoy.filters.network.rbac",
            "envoy.extensions.filters.network.rbac.v3.RBAC",
            json!({"stat_prefix": "connect_authz", "rules": self.rules()}),
        )
    }

    /// The filter for requests.
    pub fn http_filter(&self) -> Value {
        extension(
            "envoy.filters.http.rbac",
            "envoy.extensions.filters.http.rbac.v3.RBAC",
            json!({"rules": self.rules()}),
        )
    }

    /// Rules without a policy let nobody in.
    fn rules(&self) -> Value {
        let mut rules = json!({"action": "ALLOW"});
        let layer4 = (!self.layer4.is_empty()).then(|| {
            let policy = json!({"permissions": [{"any": true}], "principals": self.layer4});
            ("consul-intentions-layer4".to_owned(), policy)
        });
        let layer7 = self.layer7.iter().enumerate().map(|(index, (principal, permissions))| {
            let policy = json!({"permissions": permissions, "principals": [principal]});
            (format!("consul-intentions-layer7-{index}"), policy)
        });
        let policies: serde_json::Map<String, Value> = layer4.into_iter().chain(layer7).collect();
        if !policies.is_empty()
            && let Some(fields) = rules.as_object_mut()
        {
            fields.insert("policies".to_owned(), policies.into());
        }
        rules
    }
}

fn principal(regex: &str) -> Value {
    json!({"authenticated": {"principal_name": {"safe_regex": {"regex": regex}}}})
}

/// `principal`, unless it is one of `exceptions`.
fn but(principal: Value, exceptions: Vec<Value>) -> Value {
    if exceptions.is_empty() {
        return principal;
    }
    let not = exceptions.into_iter().map(|exception| json!({"not_id": exception}));
    let ids: Vec<Value> = std::iter::once(principal).chain(not).collect();
    json!({"and_ids": {"ids": ids}})
}

/// The permissions of which one holds for exactly those requests that the first rule that fits allows:
/// each rule that allows, where none before it denies.
fn permissions(rules: &[RequestRule]) -> Vec<Value> {
    let mut denied = Vec::new();
    let mut permissions = Vec::new();
    for rule in rules {
        let fits = fits(rule);
        if rule.allow {
            permissions.push(all(std::iter::once(fits).chain(denied.iter().cloned()).collect()));
        } else {
            denied.push(json!({"not_rule": fits}));
        }
    }
    permissions
}

/// Whether a request is of the kind that `rule` is for.
fn fits(rule: &RequestRule) -> Value {
    let path = rule.path.iter().map(|path| {
        let path = match path {
            PathMatch::Exact(text) => json!({"exact": text}),
            PathMatch::Prefix(text) => json!({"prefix": text}),
            PathMatch::Regex(regex) => json!({"safe_regex": {"regex": regex}}),
        };
        json!({"url_path": {"path": path}})
    });
    let methods: Vec<Value> =
        rule.methods.iter().map(|method| header(":method", &json!({"exact": method}))).collect();
    let methods = (!methods.is_empty()).then(|| one_of(methods));
    all(path.chain(methods).chain(rule.headers.iter().map(header_rule)).collect())
}

fn header_rule(rule: &HeaderRule) -> Value {
    let name = &rule.name;
    let fits = match &rule.value {
        HeaderMatch::Present => json!({"header": {"name": name, "present_match": true}}),
        HeaderMatch::Exact(text) => header(name, &json!({"exact": text})),
        HeaderMatch::Prefix(text) => header(name, &json!({"prefix": text})),
        HeaderMatch::Suffix(text) => header(name, &json!({"suffix": text})),
        HeaderMatch::Contains(text) => header(name, &json!({"contains": text})),
        HeaderMatch::Regex(regex) => header(name, &json!({"safe_regex": {"regex": regex}})),
    };
    // Not Envoy's `invert_match`: that one fits no request without the header, and who is denied for
    // not having the right value would get through by sending none.
    if rule.invert { json!({"not_rule": fits}) } else { fits }
}

fn header(name: &str, value: &Value) -> Value {
    json!({"header": {"name": name, "string_match": value}})
}

/// All of `permissions`; anything when there are none.
fn all(mut permissions: Vec<Value>) -> Value {
    match (permissions.pop(), permissions.is_empty()) {
        (None, _) => json!({"any": true}),
        (Some(only), true) => only,
        (Some(last), false) => {
            permissions.push(last);
            json!({"and_rules": {"rules": permissions}})
        }
    }
}

/// One of `permissions`, which are some.
fn one_of(permissions: Vec<Value>) -> Value {
    match permissions.as_slice() {
        [only] => only.clone(),
        _ => json!({"or_rules": {"rules": permissions}}),
    }
}
