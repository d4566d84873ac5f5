//! The rules of typical policies, as text and as JSON, against files in `tests/golden/nft` and `tests/golden/iptables`.
//! `ENMESH_BLESS=1 cargo test --test redirect_rules` writes the files anew; read the difference.

#[cfg(test)]
#[expect(dead_code, reason = "shared with the kernel's tests, which use all of it")]
#[path = "netns/redirect/worlds.rs"]
mod worlds;

#[cfg(test)]
mod golden {
    use std::path::PathBuf;

    use enmesh::config::{Ipv6Policy, OnProxyFailure};
    use enmesh::plan::InboundPorts;
    use enmesh::redirect::{Desired, render_iptables, render_json, render_text};

    use crate::worlds::{
        bare, down, inbound, ipv6, legacy, live, on_failure, two_users, whole_host, with_dns,
    };

    fn cases() -> Vec<(&'static str, Desired)> {
        let one_user = || {
            let mut policy = two_users();
            let web = "web".parse().unwrap();
            policy.outbound.remove(&web);
            policy.inbound.remove(&web);
            policy
        };
        let inbound_only = || {
            let mut policy = bare();
            policy.inbound.insert("api".parse().unwrap(), inbound(InboundPorts::One(8080), 21000));
            policy
        };
        vec![
            ("one-user", live(one_user())),
            ("one-user-down", down(one_user())),
            ("one-user-sealed-down", down(on_failure(one_user(), OnProxyFailure::Sealed))),
            ("one-user-open-down", down(on_failure(one_user(), OnProxyFailure::Open))),
            ("several-users", live(two_users())),
            ("whole-host", live(whole_host())),
            ("whole-host-down", down(whole_host())),
            ("whole-host-sealed", live(on_failure(whole_host(), OnProxyFailure::Sealed))),
            ("legacy", live(legacy())),
            ("legacy-down", down(legacy())),
            ("ipv6-refused", live(ipv6(legacy(), Ipv6Policy::Refuse))),
            ("ipv6-allowed", live(ipv6(legacy(), Ipv6Policy::Allow))),
            ("dns", live(with_dns(&[]))),
            ("dns-of-users", live(with_dns(&[1000, 1001]))),
            ("inbound-only", live(inbound_only())),
            ("empty", live(bare())),
        ]
    }

    #[test]
    fn rules_are_as_they_were() {
        compare("nft", |Desired { policy, live }| {
            vec![("nft", render_text(policy, live)), ("json", render_json(policy, live))]
        });
    }

    #[test]
    fn rules_for_iptables_are_as_they_were() {
        compare("iptables", |Desired { policy, live }| {
            let [v4, v6] = render_iptables(policy, live);
            vec![("v4", v4), ("v6", v6)]
        });
    }

    /// Every case as `render` has it, by ending, against the files of `folder`.
    fn compare(folder: &str, render: impl Fn(&Desired) -> Vec<(&'static str, String)>) {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(folder);
        let bless = std::env::var_os("ENMESH_BLESS").is_some();
        let mut wrong = Vec::new();
        for (name, desired) in cases() {
            for (ending, got) in render(&desired) {
                let path = folder.join(format!("{name}.{ending}"));
                if bless {
                    std::fs::create_dir_all(&folder).unwrap();
                    std::fs::write(&path, &got).unwrap();
                } else if std::fs::read_to_string(&path).ok().as_ref() != Some(&got) {
                    wrong.push(format!("{}:\n{got}", path.display()));
                }
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}
