//! Notices changes of the configuration through inotify(7): no polling, no wake-ups while idle.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::StreamExt;
use inotify::{Event, EventMask, EventStream, Inotify, WatchMask};

use crate::base::Fault;
use crate::converge::ConvergeError;

/// Editors and package managers write in bursts, and some remove a file before they write it anew; a
/// change counts when nothing followed for this long.
const QUIET: Duration = Duration::from_millis(15);

/// The same once each file that was touched is there, and written to its end.
const QUIET_WHEN_DONE: Duration = Duration::from_millis(2);

/// However long a burst lasts, it counts after this time.
const PATIENCE: Duration = Duration::from_millis(500);

/// Watches files and folders, also those that do not exist yet.
pub struct Watcher {
    events: EventStream<Vec<u8>>,
    wanted: BTreeSet<PathBuf>,
    /// Something changed and nobody was told yet: waiting for quiet may be interrupted.
    dirty: bool,
    /// Files that are gone, or not written to their end, since somebody was told last.
    unfinished: BTreeSet<OsString>,
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
        let watcher = Watcher { events, wanted: paths, dirty: false, unfinished: BTreeSet::new() };
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
        if !self.dirty {
            self.hear().await;
        }
        self.dirty = true;
        let settled = async {
            loop {
                let quiet = if self.unfinished.is_empty() { QUIET_WHEN_DONE } else { QUIET };
                if tokio::time::timeout(quiet, self.hear()).await.is_err() {
                    break;
                }
            }
        };
        let _ = tokio::time::timeout(PATIENCE, settled).await;
        self.dirty = false;
        self.unfinished.clear();
        // What was made just now can only be watched from now on, so it is looked at once more.
        self.arm()
    }

    /// Waits for the next event.
    async fn hear(&mut self) {
        let Some(event) = self.events.next().await else { return std::future::pending().await };
        // What was lost, or is about a folder itself, is followed by nobody knows what.
        let Ok(Event { mask, name: Some(name), .. }) = event else {
            self.unfinished.insert(OsString::new());
            return;
        };
        let done = mask.intersects(EventMask::CLOSE_WRITE | EventMask::MOVED_TO);
        let gone = mask.intersects(EventMask::MOVED_FROM | EventMask::DELETE);
        if done || (gone && is_aside(&name)) {
            self.unfinished.remove(&name);
        } else if !mask.contains(EventMask::ATTRIB) {
            self.unfinished.insert(name);
        }
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

/// Whether a file of that name is what others write before they rename it, and is not missed.
fn is_aside(name: &OsStr) -> bool {
    let extension = Path::new(name).extension();
    name.as_encoded_bytes().starts_with(b".") || extension.is_none_or(|e| e != "toml" && e != "json")
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

    /// Which files are waited for after `deed` was done in a folder that holds `api.toml`.
    async fn unfinished_after(deed: impl FnOnce(&Path)) -> Vec<OsString> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("api.toml"), "x").unwrap();
        let mut watcher = Watcher::new(BTreeSet::from([dir.path().to_owned()])).unwrap();
        deed(dir.path());
        while tokio::time::timeout(Duration::from_millis(50), watcher.hear()).await.is_ok() {}
        watcher.unfinished.into_iter().collect()
    }

    #[tokio::test(flavor = "current_thread")]
    async fn only_what_is_gone_or_half_written_is_waited_for() {
        let written = |dir: &Path| std::fs::write(dir.join("web.toml"), "x").unwrap();
        assert!(unfinished_after(written).await.is_empty());
        let renamed = |dir: &Path| {
            std::fs::write(dir.join("api.toml.dpkg-new"), "y").unwrap();
            std::fs::rename(dir.join("api.toml.dpkg-new"), dir.join("api.toml")).unwrap();
        };
        assert!(unfinished_after(renamed).await.is_empty());
        let removed = |dir: &Path| std::fs::remove_file(dir.join("api.toml")).unwrap();
        assert_eq!(unfinished_after(removed).await, ["api.toml"]);
        let backed_up = |dir: &Path| std::fs::rename(dir.join("api.toml"), dir.join("api.toml~")).unwrap();
        assert_eq!(unfinished_after(backed_up).await, ["api.toml"]);
        let again = |dir: &Path| {
            std::fs::remove_file(dir.join("api.toml")).unwrap();
            std::fs::write(dir.join("api.toml"), "y").unwrap();
        };
        assert!(unfinished_after(again).await.is_empty());
        let mut half = None;
        let open = |dir: &Path| half = Some(std::fs::File::create(dir.join("web.toml")).unwrap());
        assert_eq!(unfinished_after(open).await, ["web.toml"]);
    }
}
