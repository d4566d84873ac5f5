//! Regular expressions: over the service at the end of a SPIFFE id, and over addresses.
//!
//! Envoy matches with RE2, whole, and RE2 cannot look ahead: "anybody but these" has to be spelled
//! out as everything that leaves the tree of those names somewhere.

use std::collections::BTreeMap;

use ipnet::Ipv4Net;

/// Any service.
pub const ANYONE: &str = "[^/]+";

/// `text`, of a service's name or a domain, as an expression that matches nothing else.
pub fn literal(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut regex, c| {
        escape(c, &mut regex);
        regex
    })
}

/// An expression that matches any service whose name is not one of `names`. Its length grows with
/// that of all names together, as does the program that RE2 makes of it.
pub fn anyone_but<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let mut tree = Tree::default();
    for name in names {
        tree.insert(name);
    }
    // A service without a name is nobody.
    tree.is_name = true;
    if tree.children.is_empty() { ANYONE.to_owned() } else { tree.others() }
}

/// An expression that matches the texts of the addresses in `net`.
pub fn address_in(net: Ipv4Net) -> String {
    let mut left = net.prefix_len();
    let octets = net.network().octets().map(|octet| {
        let fixed = left.min(8);
        left -= fixed;
        // Those bits of the octet that are not fixed may all be set.
        let last = octet | u8::MAX.checked_shr(fixed.into()).unwrap_or(0);
        match fixed {
            0 => "[0-9]+".to_owned(),
            8 => octet.to_string(),
            _ => {
                let octets: Vec<String> = (octet..=last).map(|octet| octet.to_string()).collect();
                format!("(?:{})", octets.join("|"))
            }
        }
    });
    octets.join("\\.")
}

/// Names by their characters.
#[derive(Default)]
struct Tree {
    is_name: bool,
    children: BTreeMap<char, Tree>,
}

impl Tree {
    fn insert(&mut self, name: &str) {
        let end = name.chars().fold(self, |node, c| node.children.entry(c).or_default());
        end.is_name = true;
    }

    /// What may follow here so that the whole is none of the names.
    fn others(&self) -> String {
        if self.children.is_empty() {
            // A name ends here, and only longer ones are others.
            return ANYONE.to_owned();
        }
        let mut left = "[^/".to_owned();
        let mut within = String::new();
        for (c, child) in &self.children {
            if *c == '-' {
                left.push('\\');
            }
            escape(*c, &mut left);
            within.push('|');
            escape(*c, &mut within);
            within.push_str(&child.others());
        }
        let or_nothing = if self.is_name { "" } else { "?" };
        format!("(?:{left}][^/]*{within}){or_nothing}")
    }
}

fn escape(c: char, regex: &mut String) {
    // Outside of brackets a `-` is only itself.
    if !c.is_ascii_alphanumeric() && c != '_' && c != '-' {
        regex.push('\\');
    }
    regex.push(c);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::Ipv4Addr;

    use proptest::prelude::*;
    use regex_syntax::hir::{Class, Hir, HirKind};

    use super::*;

    /// Where a match of `hir` that begins at `start` can end, in characters. Simple and slow, so that
    /// it needs no proof of its own.
    fn ends(hir: &Hir, text: &[char], start: usize) -> BTreeSet<usize> {
        match hir.kind() {
            HirKind::Empty => [start].into(),
            HirKind::Literal(literal) => {
                let wanted: Vec<char> = std::str::from_utf8(&literal.0).unwrap().chars().collect();
                text[start..].starts_with(&wanted).then_some(start + wanted.len()).into_iter().collect()
            }
            HirKind::Class(Class::Unicode(class)) => {
                let fits = |c: &char| class.ranges().iter().any(|r| r.start() <= *c && *c <= r.end());
                text.get(start).filter(|c| fits(c)).map(|_| start + 1).into_iter().collect()
            }
            HirKind::Capture(capture) => ends(&capture.sub, text, start),
            HirKind::Concat(parts) => parts.iter().fold([start].into(), |starts, part| {
                starts.iter().flat_map(|start| ends(part, text, *start)).collect()
            }),
            HirKind::Alternation(parts) => parts.iter().flat_map(|part| ends(part, text, start)).collect(),
            HirKind::Repetition(repetition) => {
                let (mut found, mut from) = (BTreeSet::new(), BTreeSet::from([start]));
                for times in 0..=text.len() as u32 {
                    if times >= repetition.min && repetition.max.is_none_or(|max| times <= max) {
                        found.extend(from.iter().copied());
                    }
                    from = from.iter().flat_map(|start| ends(&repetition.sub, text, *start)).collect();
                }
                found
            }
            other => panic!("{other:?} is not expected"),
        }
    }

    fn matches(regex: &str, text: &str) -> bool {
        let text: Vec<char> = text.chars().collect();
        ends(&regex_syntax::parse(regex).unwrap(), &text, 0).contains(&text.len())
    }

    #[test]
    fn denied_names_are_told_from_those_around_them() {
        let but = anyone_but(["web", "web-admin", "db"]);
        for other in ["we", "webb", "web-", "web-admi", "web-admin2", "d", "db1", "a", "WEB", "w"] {
            assert!(matches(&but, other), "{other} {but}");
        }
        for denied in ["web", "web-admin", "db", "", "a/b", "web/", "/"] {
            assert!(!matches(&but, denied), "{denied:?} {but}");
        }
        assert_eq!(anyone_but([]), ANYONE);
        assert_eq!(anyone_but(["a"]), "(?:[^/a][^/]*|a[^/]+)");
    }

    proptest! {
        // Few characters, so that names are prefixes of each other and texts hit them.
        #[test]
        fn anyone_but_is_the_complement(
            names in prop::collection::btree_set("[ab_-]{1,4}", 0..12),
            texts in prop::collection::vec("[abc/_-]{0,5}", 1..40),
        ) {
            let but = anyone_but(names.iter().map(String::as_str));
            for text in texts.iter().chain(&names) {
                let other = !text.is_empty() && !text.contains('/') && !names.contains(text);
                prop_assert_eq!(matches(&but, text), other, "{} {}", text, but);
            }
        }

        #[test]
        fn addresses_are_in_their_net(net: u32, length in 0_u8..=32, other: u32, near in 0_u32..=0xffff) {
            let net = Ipv4Net::new(net.into(), length).unwrap();
            let regex = address_in(net);
            let near = u32::from(net.network()).wrapping_add(near).wrapping_sub(0x100);
            for ip in [other, near, net.network().into(), net.broadcast().into()].map(Ipv4Addr::from) {
                prop_assert_eq!(matches(&regex, &ip.to_string()), net.contains(&ip), "{} {}", ip, regex);
            }
        }

        #[test]
        fn a_literal_matches_itself_only(text in "[ab._-]{0,4}", other in "[ab._-]{0,4}") {
            prop_assert!(matches(&literal(&text), &text));
            prop_assert_eq!(matches(&literal(&text), &other), text == other);
        }
    }
}
