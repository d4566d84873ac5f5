//! The bearer token of a login, from a file.

use std::path::{Path, PathBuf};

use crate::base::bearer::{Bearer, Secret};
use crate::base::{Fault, LocalFuture, Root, files};
use crate::consul::ConsulError;

/// Largest bearer token, in bytes. Those of cloud identities have 1 to 4 kB, with many groups 16.
const LIMIT: u64 = 64 << 10;

/// A file that is read anew for each login.
#[derive(Debug)]
pub(super) struct BearerFile(PathBuf);

impl BearerFile {
    /// The file `path` of the tree `root`; without one, a file that is never there.
    pub fn new(root: &Root, path: Option<&Path>) -> Self {
        BearerFile(root.join(path.unwrap_or(Path::new("/dev/null"))))
    }

    fn read(&self) -> Result<Secret, ConsulError> {
        let wrong = |why: &str| ConsulError::BearerFile { path: self.0.clone(), why: why.to_owned() };
        let bytes = files::read(&self.0, LIMIT).map_err(|fault| wrong(&fault.message))?;
        let bytes = bytes.ok_or_else(|| wrong("there is no such file"))?;
        let text = str::from_utf8(&bytes).map_err(|_| wrong("it is not text"))?.trim();
        if text.is_empty() {
            return Err(wrong("it is empty"));
        }
        if text.contains(|c: char| !c.is_ascii_graphic()) {
            return Err(wrong("it has more than one word, or characters that no token has"));
        }
        Ok(Secret::new(text))
    }
}

impl Bearer for BearerFile {
    fn fetch(&self) -> LocalFuture<'_, Result<Secret, Fault>> {
        Box::pin(std::future::ready(self.read().map_err(Fault::from)))
    }
}
