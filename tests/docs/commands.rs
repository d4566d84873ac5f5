//! Commands of pages: a page that leads somebody into the mesh has each of them run by a test. Who adds a page with
//! commands adds its test, or says here why there is none.

use std::collections::BTreeSet;

use crate::source::{files, root, sources};

/// Pages that tell more of what is in the mesh already, and where what they tell is tried, if not word for word.
const REFERENCES: [(&str, &str); 4] = [
    ("docs/acl.md", "tests/host/lab/acl.rs"),
    ("docs/containers.md", "tests/group/main.rs"),
    ("docs/dns.md", "tests/netns/dns.rs"),
    ("docs/reap.md", "tests/netns/cloud/commands.rs"),
];
/// What runs pages. It fails where a block of a page that it reads is neither run nor left out by name.
const READERS: &str = "tests/host/deploy";

fn has_commands(page: &str) -> bool {
    let mut fences = page.lines().map(str::trim_start).filter_map(|line| line.strip_prefix("```"));
    fences.any(|language| ["sh", "console"].contains(&language.trim()))
}

#[test]
fn every_page_with_commands_is_read_by_a_test() {
    let readers: String = sources(READERS).into_iter().map(|source| source.text).collect();
    let with_commands: BTreeSet<String> =
        files("", ".md").into_iter().filter(|page| has_commands(&page.text)).map(|page| page.path).collect();
    assert!(with_commands.len() > 10, "{with_commands:?}");
    let elsewhere: BTreeSet<String> = REFERENCES.map(|(page, _)| page.to_owned()).into();
    for (page, test) in REFERENCES {
        assert!(root().join(test).is_file(), "{page}: there is no {test}");
    }
    let stale: Vec<&String> = elsewhere.difference(&with_commands).collect();
    assert!(stale.is_empty(), "no pages with commands: {stale:?}");
    let read = |page: &&String| readers.contains(&format!("\"{page}\""));
    let unread: Vec<&String> = with_commands.difference(&elsewhere).filter(|page| !read(page)).collect();
    assert!(unread.is_empty(), "no test in {READERS} reads {unread:?}");
}
