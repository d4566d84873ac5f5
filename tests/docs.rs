//! `docs/errors.md` against the code: every code is documented, nothing else is, and no code means
//! two things. `docs/traffic.md` against the tests, in `traffic`; names of variables against the program, in `variables`;
//! commands of pages, in `commands`.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that panics has failed")]

#[path = "docs/commands.rs"]
mod commands;
mod source;
#[path = "docs/traffic.rs"]
mod traffic;
#[path = "docs/variables.rs"]
mod variables;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use source::{root, sources};

/// Letters of codes and the room each belongs to, as the page's headings say.
const LETTERS: &str = "CPREMKAHSVNDTX";

/// `ENM-` and one letter and three digits, wherever they stand in `text`.
fn codes_in(text: &str) -> BTreeSet<String> {
    text.match_indices("ENM-")
        .filter_map(|(start, _)| text.get(start..start + 8))
        .filter(|code| {
            let tail = code.as_bytes();
            LETTERS.as_bytes().contains(&tail[4]) && tail[5..].iter().all(u8::is_ascii_digit)
        })
        .map(str::to_owned)
        .collect()
}

/// Every code that the program gives out, with the files that do. A code that is only compared with,
/// or repeated in a log line's field, is defined elsewhere.
fn codes_of_the_program() -> BTreeMap<String, BTreeSet<String>> {
    let mut codes: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for source in sources("src") {
        for (_, line) in source.code() {
            for code in codes_in(line) {
                let literal = format!("\"{code}\"");
                let repeated = ["== ", "!= ", "ENMESH_CODE = ", "code = "];
                let repeated = repeated.iter().any(|sign| line.contains(&format!("{sign}{literal}")));
                if line.contains(&literal) && !repeated {
                    codes.entry(code).or_default().insert(source.path.clone());
                }
            }
        }
    }
    codes
}

/// Every row of the table: code -> the rest of the row.
fn documented() -> Vec<(String, String)> {
    fs::read_to_string(root().join("docs/errors.md"))
        .unwrap()
        .lines()
        .filter_map(|line| {
            let (code, rest) = line.strip_prefix("| `")?.split_once("` |")?;
            Some((code.to_owned(), rest.to_owned()))
        })
        .collect()
}

#[test]
fn every_code_is_documented_and_nothing_else_is() {
    let used: BTreeSet<String> = codes_of_the_program().into_keys().collect();
    let documented: BTreeSet<String> = documented().into_iter().map(|(code, _)| code).collect();
    let missing: Vec<_> = used.difference(&documented).collect();
    let gone: Vec<_> = documented.difference(&used).collect();
    assert!(missing.is_empty(), "not in docs/errors.md: {missing:?}");
    assert!(gone.is_empty(), "in docs/errors.md, but the program never says it: {gone:?}");
}

#[test]
fn a_code_has_one_meaning() {
    let shared: Vec<_> = codes_of_the_program().into_iter().filter(|(_, files)| files.len() > 1).collect();
    assert!(shared.is_empty(), "codes that more than one file gives out: {shared:#?}");
}

#[test]
fn the_page_says_each_code_once_and_says_something() {
    let mut seen = BTreeSet::new();
    for (code, rest) in documented() {
        assert!(seen.insert(code.clone()), "{code} has two rows");
        let cells: Vec<_> = rest.trim().trim_end_matches('|').split(" | ").map(str::trim).collect();
        assert_eq!(cells.len(), 3, "{code}: exit status, what happened, what to do");
        assert!(cells.iter().all(|cell| !cell.is_empty()), "{code}: an empty cell");
        // A dash is a warning's.
        let known = |status| ["1", "64", "65", "69", "77", "–"].contains(&status);
        assert!(cells[0].split(" or ").all(known), "{code}: exit status {}", cells[0]);
    }
}

#[test]
fn codes_are_read_where_they_stand() {
    let text = "x => \"ENM-X010\", // ENM-X01 ENM-Z001 and ENM-C123.";
    assert_eq!(codes_in(text).into_iter().collect::<Vec<_>>(), ["ENM-C123", "ENM-X010"]);
}
