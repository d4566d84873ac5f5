//! `docs/traffic.md` against the tests: every case of the acceptance list has its row, every test that a row names is
//! there, and speaks of that row.

use std::fs;

use crate::source::{root, sources};

/// How many cases the list has.
const CASES: usize = 86;

/// The cells of each row: number, traffic, and one for each driver.
fn rows() -> Vec<Vec<String>> {
    let page = fs::read_to_string(root().join("docs/traffic.md")).unwrap();
    let cells = |line: &str| -> Option<Vec<String>> {
        let cells: Vec<String> =
            line.strip_prefix("| ")?.strip_suffix(" |")?.split(" | ").map(str::to_owned).collect();
        cells[0].parse::<usize>().is_ok().then_some(cells)
    };
    page.lines().filter_map(cells).collect()
}

/// The tests that a cell names: file and function.
fn named(cell: &str) -> Vec<(&str, &str)> {
    cell.split('`').skip(1).step_by(2).filter_map(|name| name.split_once("::")).collect()
}

/// The text of a test with what is written above it, out of the file that ends so.
fn text_of(file: &str, test: &str) -> Option<String> {
    let ending = format!("/{file}.rs");
    let files = sources("tests").into_iter().chain(sources("src"));
    for source in files.filter(|source| source.path.ends_with(&ending)) {
        let lines: Vec<&str> = source.text.lines().collect();
        let start = lines.iter().position(|line| {
            line.trim_start().strip_prefix("fn ").is_some_and(|rest| rest.starts_with(&format!("{test}(")))
        });
        if let Some(start) = start {
            let above = lines[..start].iter().rposition(|line| line.is_empty()).unwrap_or(0);
            let length = lines[start..].iter().position(|line| *line == "}").unwrap_or(lines.len() - start);
            return Some(lines[above..start + length].join("\n"));
        }
    }
    None
}

/// Whether a text speaks of the case: in a row's label (`"12b`), or after the word row.
fn speaks_of(text: &str, number: usize) -> bool {
    let digits = |text: &str| -> Option<usize> {
        text.split(|letter: char| !letter.is_ascii_digit()).next()?.parse().ok()
    };
    let label = text.match_indices('"').any(|(at, _)| digits(&text[at + 1..]) == Some(number));
    let after =
        |line| ["Row", "row "].iter().find_map(|word| str::split_once(line, word)).map(|(_, rest)| rest);
    let mut words = text
        .lines()
        .filter_map(after)
        .flat_map(|rest: &str| rest.split(|letter: char| !letter.is_ascii_digit()));
    label || words.any(|word| word.parse() == Ok(number))
}

#[test]
fn every_case_has_its_row() {
    let numbers: Vec<usize> = rows().iter().map(|row| row[0].parse().unwrap()).collect();
    assert_eq!(numbers, (1..=CASES).collect::<Vec<_>>());
    for row in rows() {
        assert_eq!(row.len(), 4, "{row:?}");
        for cell in &row[2..] {
            let reasons = ["does not apply: ", "does not hold: "];
            let reason = reasons.iter().any(|reason| cell.starts_with(reason));
            assert!(reason || cell == "planned" || !named(cell).is_empty(), "{row:?}");
        }
    }
}

#[test]
fn every_test_that_is_named_is_there_and_means_the_row() {
    let mut wrong = Vec::new();
    for row in rows() {
        for (file, test) in row[2..].iter().flat_map(|cell| named(cell)) {
            match text_of(file, test) {
                None => wrong.push(format!("row {}: no {test} in a file {file}", row[0])),
                Some(text) if !speaks_of(&text, row[0].parse().unwrap()) => {
                    wrong.push(format!("row {}: {file}::{test} does not speak of it", row[0]));
                }
                Some(_) => {}
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
