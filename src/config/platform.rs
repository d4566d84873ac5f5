//! What runs this host, where it is a container group of a cloud: who it is there, whom to ask about
//! groups, and when services that nobody keeps any more are taken out of Consul.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::value::Span;

/// Longest time between two renewals of a lease; after three of it a service counts as left behind.
const LEASE_MAX: u64 = 24 * 3600;
/// Shortest one: each renewal is a write that all servers keep.
const LEASE_MIN: u64 = 10;

/// The keys that lead to a value, and what is wrong with it.
type Wrong = (&'static [&'static str], String);

/// The platform that runs this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PlatformConfig {
    /// Resource id of the container group that this is: `/subscriptions/…/containerGroups/NAME`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Client id of the identity that the management API is asked with; the group's only one unless set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_id: Option<String>,
    /// The management API, which differs between clouds. Tokens for it are asked for by this address.
    pub management_url: String,
    /// The metadata endpoint.
    pub metadata_url: String,
    /// PEM file with the CA of the management API; the system's own bundle unless set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// How often a service that is registered without an agent says that it is there still.
    pub lease: Span,
}

impl Default for PlatformConfig {
    fn default() -> Self {
        PlatformConfig {
            group: None,
            client_id: None,
            management_url: "https://management.azure.com".to_owned(),
            metadata_url: "http://169.254.169.254".to_owned(),
            ca_file: None,
            lease: Span::seconds(600),
        }
    }
}

/// The managed identity whose token a login shows to Consul.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct IdentityConfig {
    /// Whom the token is for: the application that stands for Consul, as `api://NAME` or its client id.
    pub resource: String,
    /// Client id of the identity, where there are several or none is the system's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_id: Option<String>,
}

/// What `enmesh reap` does; its flags win.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ReapConfig {
    /// Subscriptions or resource groups whose container groups are asked for: `/subscriptions/…`.
    pub scopes: Vec<String>,
    /// Judge by their leases those whose platform is not asked.
    pub leases: bool,
    /// How long something has to be gone before it is taken out.
    pub grace: Span,
    /// The share of all hosts, in percent, that one pass takes out at most; one host always may go.
    pub max_share: u8,
    /// Auth methods whose logins are ended with their host; that of `consul.login` unless set.
    pub auth_methods: Vec<String>,
}

impl Default for ReapConfig {
    fn default() -> Self {
        ReapConfig {
            scopes: Vec::new(),
            leases: false,
            grace: Span::seconds(300),
            max_share: 50,
            auth_methods: Vec::new(),
        }
    }
}

/// Everything that is wrong with `platform` beyond its single values.
pub(super) fn platform(platform: &PlatformConfig) -> Vec<Wrong> {
    let mut wrong: Vec<Wrong> = Vec::new();
    if let Some(group) = platform.group.as_ref().filter(|group| !is_group(group)) {
        let why = format!(
            "{group:?} is not a container group's resource id: /subscriptions/ID/resourceGroups/NAME/providers/\
             Microsoft.ContainerInstance/containerGroups/NAME"
        );
        wrong.push((&["platform", "group"], why));
    }
    for (path, url) in [
        (&["platform", "management_url"] as &[_], &platform.management_url),
        (&["platform", "metadata_url"], &platform.metadata_url),
    ] {
        if !super::rules::is_http_url(url) {
            wrong.push((path, format!("{url:?} is neither http://HOST nor https://HOST")));
        }
    }
    if platform.ca_file.as_ref().is_some_and(|file| !Path::is_absolute(file)) {
        wrong.push((&["platform", "ca_file"], "it is not an absolute path".to_owned()));
    }
    if !(LEASE_MIN..=LEASE_MAX).contains(&platform.lease.0.as_secs()) {
        let why = format!("a lease is renewed every {LEASE_MIN} s to 24 h, not every {}", platform.lease);
        wrong.push((&["platform", "lease"], why));
    }
    wrong
}

/// Everything that is wrong with `reap` beyond its single values.
pub(super) fn reap(reap: &ReapConfig) -> Vec<Wrong> {
    let mut wrong: Vec<Wrong> = Vec::new();
    if let Some(scope) = reap.scopes.iter().find(|scope| !is_scope(scope)) {
        let why = format!(
            "{scope:?} is neither a subscription (/subscriptions/ID) nor a resource group \
             (/subscriptions/ID/resourceGroups/NAME)"
        );
        wrong.push((&["reap", "scopes"], why));
    }
    if reap.max_share > 100 {
        let why = format!("{} is more than all: it is a share in percent", reap.max_share);
        wrong.push((&["reap", "max_share"], why));
    }
    wrong
}

/// The segments of a resource id: pairs of a type and a name, in any case.
fn segments(id: &str) -> Option<Vec<&str>> {
    let fine = |segment: &&str| {
        !segment.is_empty() && segment.chars().all(|c| c.is_alphanumeric() || "-_.()".contains(c))
    };
    let segments: Vec<&str> = id.strip_prefix('/')?.split('/').collect();
    segments.iter().all(fine).then_some(segments)
}

fn is(text: &str, wanted: &str) -> bool {
    text.eq_ignore_ascii_case(wanted)
}

/// Whether `text` is a subscription or a resource group.
pub fn is_scope(text: &str) -> bool {
    match segments(text).as_deref() {
        Some([subscriptions, _]) => is(subscriptions, "subscriptions"),
        Some([subscriptions, _, groups, _]) => {
            is(subscriptions, "subscriptions") && is(groups, "resourceGroups")
        }
        _ => false,
    }
}

/// Whether `text` is a container group.
pub fn is_group(text: &str) -> bool {
    match segments(text).as_deref() {
        Some([subscriptions, _, groups, _, providers, provider, kind, _]) => {
            is(subscriptions, "subscriptions")
                && is(groups, "resourceGroups")
                && is(providers, "providers")
                && is(provider, "Microsoft.ContainerInstance")
                && is(kind, "containerGroups")
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resource_ids_are_told_from_other_text() {
        let group = "/subscriptions/11-22/resourceGroups/my_rg/providers/Microsoft.ContainerInstance/containerGroups/api";
        assert!(is_group(group) && is_group(&group.to_lowercase()) && !is_scope(group));
        for scope in ["/subscriptions/11-22", "/subscriptions/11-22/resourcegroups/my.rg(1)"] {
            assert!(is_scope(scope) && !is_group(scope), "{scope}");
        }
        for text in
            ["", "/", "/subscriptions", "/subscriptions/", "subscriptions/1", "/subscriptions/1?x=y", "/a/b"]
        {
            assert!(!is_scope(text) && !is_group(text), "{text:?}");
        }
    }

    #[test]
    fn defaults_are_right_and_slips_are_found() {
        assert_eq!(platform(&PlatformConfig::default()), []);
        assert_eq!(reap(&ReapConfig::default()), []);
        let bad = PlatformConfig {
            group: Some("api".to_owned()),
            management_url: "management".to_owned(),
            ca_file: Some("ca.pem".into()),
            lease: Span::seconds(1),
            ..PlatformConfig::default()
        };
        assert_eq!(platform(&bad).len(), 4);
        let bad = ReapConfig { scopes: vec!["/x".to_owned()], max_share: 101, ..ReapConfig::default() };
        assert_eq!(reap(&bad).len(), 2);
    }
}
