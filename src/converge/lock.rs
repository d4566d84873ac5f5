//! One enmesh at a time on one tree: flock(2), which the kernel takes back from the dead.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};

use super::error::ConvergeError;
use crate::base::files::{self, Access};
use crate::base::{Fault, Root};

/// The lock file.
const LOCK_FILE: &str = "/run/enmesh/lock";
/// A killed enmesh may have been starting a program: until that has become another one, it holds the lock too.
const GRACE: Duration = Duration::from_millis(500);
/// How often it is looked at meanwhile.
const LOOK: Duration = Duration::from_millis(10);
/// The folders that only we write.
const OURS: [&str; 2] = ["/run/enmesh", "/var/lib/enmesh"];

/// Held as long as it lives; the file goes with it.
pub struct Lock {
    path: PathBuf,
    _file: Flock<File>,
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Still locked here: whoever opened it meanwhile finds that it is not the file any more.
        let _ = files::remove(&self.path);
    }
}

impl Lock {
    /// Takes the lock of the tree.
    ///
    /// # Errors
    /// `ENM-D003`: another enmesh has it; or the file cannot be made.
    pub fn take(root: &Root) -> Result<Lock, Fault> {
        let path = root.join(LOCK_FILE);
        if let Some(folder) = path.parent().filter(|folder| !folder.is_dir()) {
            files::folder(folder, Access::mode(0o755))?;
        }
        let started = Instant::now();
        loop {
            if let Some(file) = try_lock(&path)? {
                tidy(root);
                return Ok(Lock { path, _file: file });
            }
            if started.elapsed() > GRACE {
                return Err(ConvergeError::Locked { lock: path }.into());
            }
            thread::sleep(LOOK);
        }
    }
}

/// The lock, if nobody else has it.
fn try_lock(path: &Path) -> Result<Option<Flock<File>>, Fault> {
    if !path.exists() {
        files::write(path, b"", Access::mode(0o600))?;
    }
    let Ok(file) = OpenOptions::new().read(true).write(true).open(path) else { return Ok(None) };
    // The file may have been replaced by a racing first run: lock what is there, then look again.
    let locked = Flock::lock(file, FlockArg::LockExclusiveNonblock).ok();
    Ok(locked.filter(|file| same_file(file, path)))
}

/// Whoever has the lock clears up after those who had it before and were killed while they wrote.
fn tidy(root: &Root) {
    for folder in OURS {
        if let Err(fault) = files::sweep_temporary(&root.join(folder)) {
            tracing::warn!(code = fault.code, "{fault}");
        }
    }
}

fn same_file(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (file.metadata(), fs::metadata(path)) {
        (Ok(held), Ok(there)) => (held.dev(), held.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path());
        let first = Lock::take(&root).unwrap();
        assert_eq!(Lock::take(&root).err().unwrap().code, "ENM-D003");
        drop(first);
        assert!(!root.join(LOCK_FILE).exists(), "nothing is left behind");
        Lock::take(&root).unwrap();
    }
}
