//! The rules of the house, held mechanically: who may import whom, where child processes are
//! started, and how long a file may be.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that panics has failed")]

mod source;

use std::collections::BTreeMap;

use source::{Source, root, sources};

/// The rooms and the floor each is on. A room imports rooms of lower floors only; the adapters share
/// a floor and so never know each other.
const FLOORS: [(&str, u8); 17] = [
    ("base", 0),
    ("config", 1),
    ("plan", 2),
    ("consul", 3),
    ("envoy", 3),
    ("health", 3),
    ("netns", 3),
    ("platform", 3),
    ("redirect", 3),
    ("supervise", 3),
    ("systemd", 3),
    ("mesh", 4),
    ("reap", 4),
    ("converge", 5),
    ("daemon", 6),
    ("demo", 7),
    ("cli", 8),
];

/// Longest file, in lines.
const LONGEST: usize = 600;

/// Where programs may be started: the helper itself, and the rooms that keep long-running children.
const MAY_START_PROGRAMS: [&str; 3] = ["src/base/exec.rs", "src/supervise/", "src/demo/"];

/// What a shell would be called in an argument list.
const SHELLS: [&str; 8] = [
    "\"sh\"",
    "\"bash\"",
    "\"dash\"",
    "\"/bin/sh\"",
    "\"/bin/bash\"",
    "\"/usr/bin/sh\"",
    "\"/usr/bin/bash\"",
    "\"/usr/bin/env\"",
];

/// The room that `source` belongs to; `None` for `lib.rs` and `main.rs`.
fn room(source: &Source) -> Option<&str> {
    let inner = source.path.strip_prefix("src/")?;
    match inner.split_once('/') {
        Some((room, _)) => Some(room),
        None => inner.strip_suffix(".rs").filter(|name| !["lib", "main"].contains(name)),
    }
}

/// The rooms that a piece of code names: after `crate::`, and, where a `use` opens a group, after
/// each comma at the group's own depth.
fn rooms_named(code: &str) -> Vec<&str> {
    let mut rooms = Vec::new();
    for (start, _) in code.match_indices("crate::") {
        if code[..start].ends_with(|before: char| before.is_alphanumeric() || before == '_' || before == '$')
        {
            continue;
        }
        let rest = &code[start + "crate::".len()..];
        match rest.strip_prefix('{') {
            Some(group) => rooms.extend(heads(group)),
            None => rooms.push(word(rest)),
        }
    }
    rooms
}

/// The first word of each member of a `{…}` group whose opening brace is already read.
fn heads(group: &str) -> Vec<&str> {
    let mut depth = 0;
    let mut heads = vec![word(group.trim_start())];
    for (position, letter) in group.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => heads.push(word(group[position + 1..].trim_start())),
            _ => {}
        }
    }
    heads.retain(|head| !head.is_empty());
    heads
}

fn word(text: &str) -> &str {
    let end = text.find(|letter: char| !letter.is_alphanumeric() && letter != '_').unwrap_or(text.len());
    &text[..end]
}

fn report(broken: &[String], rule: &str) {
    assert!(broken.is_empty(), "{rule}\n  {}", broken.join("\n  "));
}

#[test]
fn every_room_is_on_a_floor() {
    let floors: BTreeMap<_, _> = FLOORS.into();
    let unknown: Vec<String> = sources("src")
        .iter()
        .filter(|source| room(source).is_some_and(|room| !floors.contains_key(room)))
        .map(|source| source.path.clone())
        .collect();
    report(&unknown, "a new room needs a floor in tests/house.rs and a line in ARCHITECTURE.md:");
}

#[test]
fn a_room_imports_only_rooms_below_it() {
    let floors: BTreeMap<_, _> = FLOORS.into();
    let mut broken = Vec::new();
    for source in sources("src") {
        let Some(room) = room(&source) else { continue };
        let code: String = source.code().flat_map(|(_, line)| [line, "\n"]).collect();
        for named in rooms_named(&code) {
            // Names that are no room (`crate::Something`) are the library's own top level.
            let Some(floor) = floors.get(named) else { continue };
            if named != room && *floor >= floors[room] {
                broken.push(format!("{}: `{room}` imports `{named}`", source.path));
            }
        }
    }
    report(&broken, "a room imports only rooms on lower floors:");
}

#[test]
fn no_file_is_long() {
    let long: Vec<String> = ["src", "tests", "benches"]
        .iter()
        .filter(|folder| root().join(folder).is_dir())
        .flat_map(|folder| sources(folder))
        .map(|source| (source.text.lines().count(), source.path))
        .filter(|(lines, _)| *lines > LONGEST)
        .map(|(lines, path)| format!("{path}: {lines} lines"))
        .collect();
    report(&long, &format!("no file has more than {LONGEST} lines:"));
}

#[test]
fn programs_are_started_in_one_place() {
    let mut broken = Vec::new();
    for source in sources("src") {
        if MAY_START_PROGRAMS.iter().any(|allowed| source.path.starts_with(allowed)) {
            continue;
        }
        for (number, line) in source.code() {
            if line.contains("process::Command") || line.contains("Command::new(\"") {
                broken.push(format!("{}:{number}: {}", source.path, line.trim()));
            }
        }
    }
    report(&broken, "programs are run through base::exec, or kept by supervise:");
}

#[test]
fn nothing_goes_through_a_shell() {
    let mut broken = Vec::new();
    for source in sources("src") {
        for (number, line) in source.code() {
            if SHELLS.iter().any(|shell| line.contains(shell)) {
                broken.push(format!("{}:{number}: {}", source.path, line.trim()));
            }
        }
    }
    report(&broken, "a program gets an argument array, never a shell's command line:");
}

/// The checks above are only as good as their reading of the code.
#[test]
fn imports_are_read_in_every_form() {
    assert_eq!(rooms_named("use crate::plan::Plan;"), ["plan"]);
    assert_eq!(
        rooms_named("use crate::{base::{Fault, Root}, plan, mesh::CA as C};"),
        ["base", "plan", "mesh"]
    );
    assert_eq!(rooms_named("use crate::{\n    base,\n    plan,\n};"), ["base", "plan"]);
    assert_eq!(rooms_named("fn f(r: &crate::redirect::Desired) -> crate::base::Fault"), ["redirect", "base"]);
    assert_eq!(rooms_named("use my_crate::plan; pub(crate) fn f()"), Vec::<&str>::new());
}
