//! The image that groups are made of: what `aci/image/build` makes, which is what users are told to push.
#![allow(dead_code, reason = "the bench uses a part")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use super::docker::envoy;

/// What came of a run of the script.
#[derive(Clone)]
pub struct Built {
    pub archive: PathBuf,
    /// The command that it printed, without `docker`; the last word is the image's name.
    import: Vec<String>,
}

impl Built {
    /// Docker's arguments that import it as `name`: those that were printed.
    pub fn import_as(&self, name: &str) -> Vec<String> {
        let mut words = self.import.clone();
        *words.last_mut().unwrap() = name.to_owned();
        words
    }
}

/// The image with the binary `enmesh`, made once in a run of the tests.
pub fn built(enmesh: &Path) -> Built {
    static MADE: Mutex<BTreeMap<PathBuf, Built>> = Mutex::new(BTreeMap::new());
    let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    made.entry(enmesh.to_owned()).or_insert_with(|| build(enmesh)).clone()
}

fn build(enmesh: &Path) -> Built {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = repository.join("target/test");
    fs::create_dir_all(&folder).unwrap();
    let archive = folder.join("aci-image.tar");
    let mut command = Command::new(repository.join("aci/image/build"));
    command.arg(&archive).env("ENMESH", enmesh).env("ENVOY", envoy());
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let line = said.lines().find_map(|line| line.trim().strip_prefix("docker import "));
    let import = words(&format!("import {}", line.unwrap_or_else(|| panic!("no command: {said}"))));
    assert!(import.iter().any(|word| Path::new(word) == archive), "{import:?}");
    let programs: u64 = [enmesh, &envoy()].iter().map(|path| fs::metadata(path).unwrap().len()).sum();
    let whole = fs::metadata(&archive).unwrap().len();
    let megabytes = |bytes: u64| bytes / 1_000_000;
    eprintln!(
        "figure: the image for container groups: {} MB, {} MB of it enmesh and Envoy",
        megabytes(whole),
        megabytes(programs)
    );
    Built { archive, import }
}

/// Words as a shell takes them: apart at spaces, but not between single quotes.
fn words(line: &str) -> Vec<String> {
    let parts = line.split('\'').enumerate();
    let marked: String = parts
        .map(|(index, part)| if index % 2 == 1 { part.replace(' ', "\0") } else { part.to_owned() })
        .collect();
    marked.split_whitespace().map(|word| word.replace('\0', " ")).collect()
}
