//! Which files there are and when each was changed: by that a command tells whether the daemon has read what is there now.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::watched_paths;
use crate::base::Root;

/// A mark of the files that [`load`](super::load) reads below `root`: names, sizes, times of the last change. Not of what
/// is in them, since whoever asks need not be allowed to read them. Links are not followed: as with inotify(7), what
/// they lead to is another file.
///
/// # Errors
/// A folder cannot be listed.
pub fn stamp(root: &Root) -> io::Result<String> {
    let mut digest = Sha256::new();
    for path in watched_paths(root) {
        let Some(metadata) = look(&path)? else { continue };
        add(&mut digest, &path, &metadata);
        if !metadata.is_dir() {
            continue;
        }
        let mut inside: Vec<PathBuf> =
            fs::read_dir(&path)?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
        inside.sort();
        for path in inside {
            if let Some(metadata) = look(&path)? {
                add(&mut digest, &path, &metadata);
            }
        }
    }
    Ok(digest.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect())
}

/// `None` where there is nothing, or nothing any more.
fn look(path: &Path) -> io::Result<Option<Metadata>> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => Ok(Some(metadata)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn add(digest: &mut Sha256, path: &Path, metadata: &Metadata) {
    let name = path.as_os_str().as_encoded_bytes();
    digest.update((name.len() as u64).to_be_bytes());
    digest.update(name);
    digest.update(metadata.len().to_be_bytes());
    // The inode's own time: a file that is moved here keeps the time of its contents.
    digest.update(metadata.ctime().to_be_bytes());
    digest.update(metadata.ctime_nsec().to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_deed_that_counts_changes_it_and_looking_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path());
        let services = dir.path().join("etc/enmesh/services");
        let file = services.join("api.toml");
        let nothing = stamp(&root).unwrap();
        fs::create_dir_all(&services).unwrap();
        fs::write(&file, "name = \"api\"").unwrap();
        let mut last = stamp(&root).unwrap();
        assert_ne!(last, nothing);
        let aside = services.join(".api");
        let deeds: [&dyn Fn(); 4] = [
            &|| fs::write(&file, "name = \"web\"").unwrap(),
            // Of the same size and, moved as package managers do, the same time.
            &|| {
                fs::write(&aside, "name = \"abc\"").unwrap();
                let written = fs::metadata(&file).unwrap().modified().unwrap();
                fs::File::options().write(true).open(&aside).unwrap().set_modified(written).unwrap();
                fs::rename(&aside, &file).unwrap();
            },
            &|| fs::write(dir.path().join("etc/enmesh/enmesh.toml"), "").unwrap(),
            &|| fs::remove_file(&file).unwrap(),
        ];
        for deed in deeds {
            // Two deeds in one tick of the kernel's clock have one time.
            std::thread::sleep(std::time::Duration::from_millis(20));
            deed();
            let now = stamp(&root).unwrap();
            assert_ne!(now, last);
            assert_eq!(stamp(&root).unwrap(), now);
            last = now;
        }
    }
}
