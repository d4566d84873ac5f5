//! Notices changes of the configuration through inotify(7): no polling, no wake-ups while idle.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::StreamExt;
use inotify::{EventStream, Inotify, WatchMask};

use crate::base::Fault;
use crate::converge::ConvergeError;

/// Editors and package managers write in bursts, and some remove a file before they write it anew; a
/// change counts when nothing followed for this long.
const QUIET: Duration = Duration::from_millis(15);

/// However long a burst lasts, it counts after this time.
const PATIENCE: Duration = Duration::from_millis(500);

/// Watches files and folders, also those that do not exist yet.
pub struct Watcher {
    events: EventStream<Vec<u8>>,
    wanted: BTreeSet<PathBuf>,
    /// Something changed and nobody was told yet: waiting for quiet may be interrupted.
    dirty: bool,
}

impl Watcher {
    /// Starts watching `paths`.
    ///
    /// # Errors
    /// `ENM-D009`: the kernel's watches are used up.
    pub fn new(paths: BTreeSet<PathBuf>) -> Result<Watcher, Fault> {
        let failed = |source| ConvergeError::Watch { path: PathBuf::from("/"), source };
        let inotify = Inotify::init().map_err(failed)?;
        let events = inotify.into_event_stream(vec![0; 4096]).map_err(failed)?;
        let watcher = Watcher { events, wanted: paths, dirty: false };
        watcher.arm()?;
        Ok(watcher)
    }

    /// Watches other paths from now on.
    ///
    /// # Errors
    /// As [`Watcher::new`].
    pub fn retarget(&mut self, paths: BTreeSet<PathBuf>) -> Result<(), Fault> {
        self.wanted = paths;
        self.arm()
    }

    /// Waits until something changed and the dust has settled. Safe to interrupt: nothing is lost.
    ///
    /// # Errors
    /// As [`Watcher::new`]: what came into being meanwhile cannot be watched.
    pub async fn changed(&mut self) -> Result<(), Fault> {
        if !self.dirty && self.events.next().await.is_none() {
            std::future::pending::<()>().await;
        }
        self.dirty = true;
        let settled = async { while tokio::time::timeout(QUIET, self.events.next()).await.is_ok() {} };
        let _ = tokio::time::timeout(PATIENCE, settled).await;
        self.dirty = false;
        // What was made just now can only be watched from now on, so it is looked at once more.
        self.arm()
    }

    /// Watches each path, or the nearest folder above it that exists. Adding a watch twice is one.
    fn arm(&self) -> Result<(), Fault> {
        let mask = WatchMask::CLOSE_WRITE
            | WatchMask::CREATE
            | WatchMask::DELETE
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE
            | WatchMask::MOVE_SELF
            | WatchMask::ATTRIB;
        for path in &self.wanted {
            let folder = nearest_folder(path);
            match self.events.watches().add(folder, mask) {
                Ok(_) => {}
                // It went away between the look and the call: its parent's watch will tell.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(source) => {
                    return Err(ConvergeError::Watch { path: folder.to_owned(), source }.into());
                }
            }
        }
        Ok(())
    }
}

/// Folders are watched rather than files, because an atomic write replaces the file.
fn nearest_folder(path: &Path) -> &Path {
    path.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn sees_changes_in_folders_that_come_later() {
        let dir = tempfile::tempdir().unwrap();
        let services = dir.path().join("etc/enmesh/services");
        let mut watcher = Watcher::new(BTreeSet::from([services.clone()])).unwrap();
        let soon = Duration::from_secs(5);
        assert!(tokio::time::timeout(Duration::from_millis(50), watcher.changed()).await.is_err());
        std::fs::create_dir_all(&services).unwrap();
        tokio::time::timeout(soon, watcher.changed()).await.unwrap().unwrap();
        std::fs::write(services.join("api.toml"), "x").unwrap();
        tokio::time::timeout(soon, watcher.changed()).await.unwrap().unwrap();
        std::fs::remove_file(services.join("api.toml")).unwrap();
        tokio::time::timeout(soon, watcher.changed()).await.unwrap().unwrap();
        assert!(tokio::time::timeout(Duration::from_millis(50), watcher.changed()).await.is_err());
    }
}
