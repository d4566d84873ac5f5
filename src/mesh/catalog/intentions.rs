//! Who may call whom: Consul's intentions, turned into what a service's sidecar enforces and into
//! what a service of this host can reach.

use std::collections::BTreeSet;

use super::answers::{HeaderPermission, HttpPermission, Intention, Permission};
use crate::config::value::ServiceName;
use crate::plan::{Access, Callers, HeaderMatch, HeaderRule, PathMatch, RequestRule};

/// How Consul writes "every service".
const ANY: &str = "*";

/// What one service matches, in the order in which Consul decides.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Rules(Vec<Intention>);

impl Rules {
    /// Those of `intentions` that are about services of this cluster; the highest precedence first.
    pub fn new(mut intentions: Vec<Intention>) -> Self {
        let ours = |namespace: &str| namespace.is_empty() || namespace == "default" || namespace == ANY;
        intentions.retain(|it| {
            let consul = it.source_type.is_empty() || it.source_type == "consul";
            consul && it.source_peer.is_empty() && ours(&it.source_ns) && ours(&it.destination_ns)
        });
        intentions.sort_by(|a, b| {
            let names = |it: &Intention| (it.source_name.clone(), it.destination_name.clone());
            b.precedence.cmp(&a.precedence).then_with(|| names(a).cmp(&names(b)))
        });
        Rules(intentions)
    }

    /// Who may call the service that these rules were matched for as a destination.
    pub fn callers(&self, default_allow: bool) -> Callers {
        let decide = |caller: &str| {
            let rule = self.0.iter().find(|it| it.source_name == caller || it.source_name == ANY);
            rule.map_or_else(|| access(default_allow), |rule| access_of(rule, default_allow))
        };
        let others = decide(ANY);
        let named = self.0.iter().filter_map(|it| it.source_name.parse::<ServiceName>().ok());
        let named = named.map(|name| (name.clone(), decide(name.as_str())));
        // Whoever may do the same as everybody needs no rule.
        Callers { named: named.filter(|(_, access)| *access != others).collect(), others }
    }

    /// Whether the service that these rules were matched for as a source may call `destination`, be
    /// it only with some requests.
    pub fn may_call(&self, destination: &str, default_allow: bool) -> bool {
        let rule = self.0.iter().find(|it| it.destination_name == destination || it.destination_name == ANY);
        rule.map_or(default_allow, |rule| rule.action == "allow" || !rule.permissions.is_empty())
    }

    /// Whether there may be destinations that no rule names.
    pub fn may_call_unnamed(&self, default_allow: bool) -> bool {
        self.may_call(ANY, default_allow)
    }

    /// The destinations that a rule names.
    pub fn destinations(&self) -> BTreeSet<ServiceName> {
        self.0.iter().filter_map(|it| it.destination_name.parse().ok()).collect()
    }
}

fn access(allow: bool) -> Access {
    if allow { Access::Allow } else { Access::Deny }
}

fn access_of(rule: &Intention, default_allow: bool) -> Access {
    if rule.permissions.is_empty() {
        return access(rule.action == "allow");
    }
    let mut rules: Vec<RequestRule> = rule.permissions.iter().map(request_rule).collect();
    // A request that no permission fits is treated as if there were no intention at all.
    if default_allow {
        rules.push(RequestRule { allow: true, ..RequestRule::default() });
    }
    Access::Requests(rules)
}

fn request_rule(permission: &Permission) -> RequestRule {
    let HttpPermission { path_exact, path_prefix, path_regex, methods, header } = &permission.http;
    let path = if !path_exact.is_empty() {
        Some(PathMatch::Exact(path_exact.clone()))
    } else if !path_prefix.is_empty() {
        Some(PathMatch::Prefix(path_prefix.clone()))
    } else if !path_regex.is_empty() {
        Some(PathMatch::Regex(path_regex.clone()))
    } else {
        None
    };
    RequestRule {
        allow: permission.action == "allow",
        path,
        methods: methods.iter().cloned().collect(),
        headers: header.iter().map(header_rule).collect(),
    }
}

fn header_rule(header: &HeaderPermission) -> HeaderRule {
    let forms: [(&str, fn(String) -> HeaderMatch, &str, &str); 5] = [
        (&header.exact, HeaderMatch::Exact, "", ""),
        (&header.prefix, HeaderMatch::Prefix, "", ".*"),
        (&header.suffix, HeaderMatch::Suffix, ".*", ""),
        (&header.contains, HeaderMatch::Contains, ".*", ".*"),
        (&header.regex, HeaderMatch::Regex, "", ""),
    ];
    let given = forms.into_iter().find(|(text, ..)| !text.is_empty());
    let value = match given {
        None => HeaderMatch::Present,
        Some((text, _, before, after)) if header.ignore_case && header.regex.is_empty() => {
            HeaderMatch::Regex(format!("(?i){before}{}{after}", literal(text)))
        }
        Some((text, make, ..)) => make(text.to_owned()),
    };
    HeaderRule { name: header.name.to_ascii_lowercase(), value, invert: header.invert }
}

/// `text` as an expression that matches nothing else.
fn literal(text: &str) -> String {
    let mut expression = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_ascii_punctuation() {
            expression.push('\\');
        }
        expression.push(character);
    }
    expression
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rule(source: &str, destination: &str, action: &str) -> Intention {
        // Consul's numbers (its table of precedence).
        let precedence = match (source, destination) {
            (ANY, ANY) => 5,
            (_, ANY) => 6,
            (ANY, _) => 8,
            _ => 9,
        };
        Intention {
            source_name: source.to_owned(),
            destination_name: destination.to_owned(),
            action: action.to_owned(),
            precedence,
            ..Intention::default()
        }
    }

    fn name(text: &str) -> ServiceName {
        text.parse().unwrap()
    }

    #[test]
    fn the_destinations_own_rules_come_before_everybodys() {
        let rules = Rules::new(vec![
            rule("ops", "*", "deny"),
            rule("*", "*", "deny"),
            rule("web", "api", "deny"),
            rule("*", "api", "allow"),
        ]);
        let callers = rules.callers(false);
        // `* -> api` decides before `ops -> *`.
        assert_eq!(callers, Callers { named: [(name("web"), Access::Deny)].into(), others: Access::Allow });
        let only = Rules::new(vec![rule("web", "api", "allow")]);
        assert_eq!(only.callers(false), Callers::only([name("web")]));
        assert_eq!(only.callers(true), Callers::anybody());
        assert_eq!(Rules::default().callers(true), Callers::anybody());
        assert_eq!(Rules::default().callers(false), Callers::default());
    }

    #[test]
    fn a_source_reaches_what_the_first_rule_that_fits_allows() {
        let rules = Rules::new(vec![
            rule("web", "*", "allow"),
            rule("web", "db", "deny"),
            rule("*", "secret", "deny"),
            rule("web", "api", "allow"),
        ]);
        for (destination, reached) in [("api", true), ("db", false), ("secret", false), ("other", true)] {
            assert_eq!(rules.may_call(destination, false), reached, "{destination}");
        }
        assert!(rules.may_call_unnamed(false));
        assert_eq!(rules.destinations(), [name("api"), name("db"), name("secret")].into());
        let deny = Rules::new(vec![rule("*", "*", "deny"), rule("web", "api", "allow")]);
        assert!(deny.may_call("api", true) && !deny.may_call("db", true) && !deny.may_call_unnamed(true));
        assert!(Rules::default().may_call_unnamed(true) && !Rules::default().may_call_unnamed(false));
    }

    #[test]
    fn other_clusters_and_namespaces_are_somebody_elses() {
        let peer = Intention { source_peer: "east".to_owned(), ..rule("web", "api", "allow") };
        let space = Intention { source_ns: "team".to_owned(), ..rule("web", "api", "allow") };
        let wild = Intention { source_ns: "*".to_owned(), ..rule("*", "api", "allow") };
        assert_eq!(Rules::new(vec![peer, space]).callers(false), Callers::default());
        assert_eq!(Rules::new(vec![wild]).callers(false), Callers::anybody());
    }

    /// The shape of releases from 1.9 on.
    #[test]
    fn permissions_become_rules_for_requests() {
        let intention: Intention = serde_json::from_value(json!({
            "ID": "", "SourceNS": "default", "SourceName": "web", "DestinationNS": "default",
            "DestinationName": "api", "SourceType": "consul", "Precedence": 9, "Meta": null,
            "Permissions": [
                { "Action": "deny", "HTTP": { "PathPrefix": "/admin" } },
                { "Action": "allow", "HTTP": { "PathExact": "/v1", "Methods": ["PUT", "GET"], "Header": [
                    { "Name": "X-Team", "Exact": "core" }, { "Name": "x-old", "Present": true, "Invert": true },
                    { "Name": "x-p", "Prefix": "a" }, { "Name": "x-s", "Suffix": "b" },
                    { "Name": "x-c", "Contains": "c.d", "IgnoreCase": true }, { "Name": "x-r", "Regex": "e+" },
                ] } },
                { "Action": "allow", "HTTP": { "PathRegex": "/v[12]/.*" } },
            ],
        }))
        .unwrap();
        let rules = Rules::new(vec![intention]);
        assert!(rules.may_call("api", false));
        let Callers { named, others } = rules.callers(false);
        assert_eq!(others, Access::Deny);
        let Some(Access::Requests(requests)) = named.get(&name("web")) else { panic!("{named:?}") };
        let [admin, v1, regex] = requests.as_slice() else { panic!("{requests:?}") };
        assert_eq!((admin.allow, &admin.path), (false, &Some(PathMatch::Prefix("/admin".to_owned()))));
        assert_eq!(regex.path, Some(PathMatch::Regex("/v[12]/.*".to_owned())));
        assert_eq!(v1.path, Some(PathMatch::Exact("/v1".to_owned())));
        assert_eq!(v1.methods, ["GET".to_owned(), "PUT".to_owned()].into());
        let header = |name: &str, value, invert| HeaderRule { name: name.to_owned(), value, invert };
        let of = |text: &str, make: fn(String) -> HeaderMatch| make(text.to_owned());
        assert_eq!(
            v1.headers,
            [
                header("x-team", of("core", HeaderMatch::Exact), false),
                header("x-old", HeaderMatch::Present, true),
                header("x-p", of("a", HeaderMatch::Prefix), false),
                header("x-s", of("b", HeaderMatch::Suffix), false),
                header("x-c", of(r"(?i).*c\.d.*", HeaderMatch::Regex), false),
                header("x-r", of("e+", HeaderMatch::Regex), false),
            ]
        );
        // What none of them fits follows the default.
        let Callers { named, .. } = rules.callers(true);
        let Some(Access::Requests(requests)) = named.get(&name("web")) else { panic!("{named:?}") };
        assert_eq!(requests.last(), Some(&RequestRule { allow: true, ..RequestRule::default() }));
    }
}
