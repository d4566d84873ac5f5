//! The project's own source, as the tests of its rules read it.

use std::fs;
use std::path::{Path, PathBuf};

/// The repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// One file.
pub struct Source {
    /// Relative to the repository, such as `src/plan/mod.rs`.
    pub path: String,
    /// All of it.
    pub text: String,
}

impl Source {
    /// What the program consists of: the lines with their numbers, without line comments, and
    /// nothing of the unit tests (which end a file, or have one for themselves).
    pub fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let is_test = self.path.ends_with("tests.rs") || self.path.contains("/tests/");
        let end = if is_test { 0 } else { self.text.find("#[cfg(test)]\nmod").unwrap_or(self.text.len()) };
        self.text[..end]
            .lines()
            .enumerate()
            .map(|(index, line)| (index + 1, line))
            .filter(|(_, line)| !line.trim_start().starts_with("//"))
    }
}

/// Every Rust file below `folder`, sorted by path.
pub fn sources(folder: &str) -> Vec<Source> {
    files(folder, ".rs")
}

/// Every file below `folder` whose name ends like this, sorted by path; nothing of what is built or hidden.
pub fn files(folder: &str, ending: &str) -> Vec<Source> {
    let mut files = Vec::new();
    collect(&root().join(folder), ending, &mut files);
    files.sort();
    files
        .into_iter()
        .map(|file| Source {
            path: file.strip_prefix(root()).unwrap().to_str().unwrap().to_owned(),
            text: fs::read_to_string(&file).unwrap(),
        })
        .collect()
}

fn collect(folder: &Path, ending: &str, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            collect(&path, ending, files);
        } else if name.ends_with(ending) {
            files.push(path);
        }
    }
}
