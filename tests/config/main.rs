//! The configuration as people write it, right and wrong, through the room's own door.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a helper that fails is a test that fails")]

mod examples;
mod host;
mod hostile;
mod legacy;
mod native;
mod properties;

use std::fs;
use std::path::PathBuf;

use enmesh::base::{Fault, Root};
use enmesh::config::{Config, load};

/// A file tree that goes away with the test.
struct Tree(tempfile::TempDir);

impl Tree {
    fn new() -> Self {
        Tree(tempfile::tempdir().unwrap())
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn write(&self, path: &str, contents: impl AsRef<[u8]>) -> &Self {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, contents).unwrap();
        self
    }

    fn service(&self, file: &str, contents: impl AsRef<[u8]>) -> &Self {
        self.write(&format!("etc/enmesh/services/{file}"), contents)
    }

    fn load(&self) -> Config {
        load(&Root::new(self.0.path()), &|_| None)
    }
}

/// What is said of one service file with these contents.
fn service_errors(file: &str, contents: impl AsRef<[u8]>) -> Vec<Fault> {
    let tree = Tree::new();
    let config = tree.service(file, contents).load();
    assert!(config.services.is_empty() || config.errors.is_empty(), "a service with an error is left out");
    config.errors
}

/// Code, line and column of the only error.
fn only(errors: &[Fault]) -> (&str, usize, usize) {
    assert_eq!(errors.len(), 1, "{errors:#?}");
    let place = errors[0].place.as_ref().unwrap();
    assert!(!errors[0].hint.is_empty(), "every error has a hint");
    (errors[0].code, place.line, place.column)
}
