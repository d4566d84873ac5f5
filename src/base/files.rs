//! File writes that a crash cannot tear: temporary file, fsync, rename in the same directory.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use super::{Class, Explain, Fault};

/// Owner and mode of a file or folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// Permission bits.
    pub mode: u32,
    /// Numeric owner; `None` leaves the caller's own.
    pub uid: Option<u32>,
    /// Numeric group; `None` leaves the caller's own.
    pub gid: Option<u32>,
}

impl Access {
    /// `mode`, owned by whoever writes.
    pub fn mode(mode: u32) -> Self {
        Access { mode, uid: None, gid: None }
    }

    /// `mode`, the writer's own user, the group `gid`.
    pub fn group(mode: u32, gid: u32) -> Self {
        Access { mode, uid: None, gid: Some(gid) }
    }
}

/// What a write can run into.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The medium has no room.
    #[error("no space left to write {}", path.display())]
    Full {
        /// The file.
        path: PathBuf,
    },
    /// The caller may not.
    #[error("not permitted to {verb} {}", path.display())]
    Denied {
        /// What was tried.
        verb: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// Anything else the system says.
    #[error("cannot {verb} {}", path.display())]
    Other {
        /// What was tried.
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

impl FileError {
    fn new(verb: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => FileError::Full { path },
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                FileError::Denied { verb, path }
            }
            _ => FileError::Other { verb, path, source },
        }
    }
}

impl Explain for FileError {
    fn code(&self) -> &'static str {
        match self {
            FileError::Full { .. } => "ENM-X001",
            FileError::Denied { .. } => "ENM-X002",
            FileError::Other { .. } => "ENM-X003",
        }
    }

    fn hint(&self) -> String {
        match self {
            FileError::Full { path } => format!(
                "free space on the file system of {} (`df -h {0}`); what was in force stays in force",
                path.parent().unwrap_or(path).display()
            ),
            FileError::Denied { .. } => {
                "run as root, or with --root DIR on a tree that you may write".to_owned()
            }
            FileError::Other { path, .. } => {
                format!(
                    "check that {} is a folder that can be written",
                    path.parent().unwrap_or(path).display()
                )
            }
        }
    }

    fn class(&self) -> Class {
        match self {
            FileError::Denied { .. } => Class::Privilege,
            FileError::Full { .. } | FileError::Other { .. } => Class::Failed,
        }
    }
}

/// Writes `contents` to `path` so that a reader sees the old bytes or the new ones, never a part.
///
/// Returns whether anything changed: equal bytes with equal mode and owner are left alone, so that
/// watchers of the file do not wake up.
///
/// # Errors
/// `ENM-X001` no space, `ENM-X002` not permitted, `ENM-X003` anything else; the old file is intact.
pub fn write(path: &Path, contents: &[u8], access: Access) -> Result<bool, Fault> {
    put(path, contents, access, File::sync_all)
}

/// [`write`] for what is made anew after a crash of the machine, such as all in /run: nobody waits for a
/// disk.
///
/// # Errors
/// As [`write`].
pub fn write_volatile(path: &Path, contents: &[u8], access: Access) -> Result<bool, Fault> {
    put(path, contents, access, |_| Ok(()))
}

fn put(
    path: &Path,
    contents: &[u8],
    access: Access,
    sync: impl Fn(&File) -> io::Result<()>,
) -> Result<bool, Fault> {
    if is_current(path, contents, access) {
        return Ok(false);
    }
    let temporary = temporary_beside(path);
    let result = write_temporary(&temporary, contents, access)
        .and_then(|file| sync(&file))
        .and_then(|()| fs::rename(&temporary, path))
        .map_err(|e| FileError::new("write", path, e));
    if result.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    result?;
    if let Some(folder) = path.parent().and_then(|parent| File::open(parent).ok()) {
        let _ = sync(&folder);
    }
    Ok(true)
}

fn is_current(path: &Path, contents: &[u8], access: Access) -> bool {
    let Ok(meta) = fs::symlink_metadata(path) else { return false };
    meta.is_file()
        && meta.len() == contents.len() as u64
        && meta.mode() & 0o7777 == access.mode
        && access.uid.is_none_or(|uid| uid == meta.uid())
        && access.gid.is_none_or(|gid| gid == meta.gid())
        && fs::read(path).is_ok_and(|old| old == contents)
}

/// A name that no configuration reader takes for its own: hidden, with an ending nobody reads.
fn temporary_beside(path: &Path) -> PathBuf {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    path.with_file_name(format!(".{name}.{}.tmp", std::process::id()))
}

/// Removes what writers that were killed have left below `folder`: temporary files, perhaps with a secret
/// in them. Only those of processes that run no more, and of this one, which must not be writing.
///
/// # Errors
/// As [`write`].
pub fn sweep_temporary(folder: &Path) -> Result<(), Fault> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(FileError::new("read", folder, e).into()),
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => sweep_temporary(&entry.path())?,
            _ if name.to_str().and_then(writer_of).is_some_and(is_gone) => drop(remove(&entry.path())?),
            _ => {}
        }
    }
    Ok(())
}

/// The process that wrote a temporary file, from its name.
fn writer_of(name: &str) -> Option<u32> {
    name.strip_prefix('.')?.strip_suffix(".tmp")?.rsplit_once('.')?.1.parse().ok()
}

fn is_gone(pid: u32) -> bool {
    pid == std::process::id() || !Path::new("/proc").join(pid.to_string()).exists()
}

fn write_temporary(path: &Path, contents: &[u8], access: Access) -> io::Result<File> {
    let _ = fs::remove_file(path);
    // Created closed, opened up last: at no moment can somebody read a secret who may not.
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(contents)?;
    if access.uid.is_some() || access.gid.is_some() {
        chown(path, access.uid, access.gid)?;
    }
    file.set_permissions(Permissions::from_mode(access.mode))?;
    Ok(file)
}

/// Makes a folder (its parents with mode 0755) and sets its mode and owner.
///
/// # Errors
/// As [`write`].
pub fn folder(path: &Path, access: Access) -> Result<(), Fault> {
    let make = || -> io::Result<()> {
        fs::create_dir_all(path)?;
        if access.uid.is_some() || access.gid.is_some() {
            chown(path, access.uid, access.gid)?;
        }
        fs::set_permissions(path, Permissions::from_mode(access.mode))
    };
    Ok(make().map_err(|e| FileError::new("make", path, e))?)
}

/// Removes a file; one that is not there is fine. Returns whether there was one.
///
/// # Errors
/// As [`write`].
pub fn remove(path: &Path) -> Result<bool, Fault> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(FileError::new("remove", path, e).into()),
    }
}

/// Removes a folder and all in it; one that is not there is fine.
///
/// # Errors
/// As [`write`].
pub fn remove_folder(path: &Path) -> Result<bool, Fault> {
    match fs::remove_dir_all(path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(FileError::new("remove", path, e).into()),
    }
}

/// Reads a file of at most `limit` bytes; `None` where there is none.
///
/// # Errors
/// As [`write`]; a larger file is `ENM-X003`.
pub fn read(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, Fault> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(FileError::new("read", path, e).into()),
    };
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(|e| FileError::new("read", path, e))?;
    if bytes.len() as u64 > limit {
        let source = io::Error::other(format!("larger than {limit} bytes"));
        return Err(FileError::new("read", path, source).into());
    }
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_bytes_are_not_written_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        assert!(write(&path, b"one", Access::mode(0o640)).unwrap());
        let inode = fs::metadata(&path).unwrap().ino();
        assert!(!write(&path, b"one", Access::mode(0o640)).unwrap());
        assert_eq!(fs::metadata(&path).unwrap().ino(), inode);
        assert!(write(&path, b"one", Access::mode(0o600)).unwrap(), "a mode that differs is set right");
        assert!(write(&path, b"two", Access::mode(0o600)).unwrap());
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_names_the_fault() {
        let dir = tempfile::tempdir().unwrap();
        let fault = write(&dir.path().join("no/such/folder"), b"x", Access::mode(0o600)).unwrap_err();
        assert_eq!(fault.code, "ENM-X003");
        assert!(fault.hint.contains("no/such"));
    }

    #[test]
    fn what_killed_writers_left_is_swept_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let below = dir.path().join("a/b");
        fs::create_dir_all(&below).unwrap();
        // No process has a number this large (proc(5), pid_max).
        let left = [".key.4194305.tmp".to_owned(), format!(".state.json.{}.tmp", std::process::id())];
        let others = ["key", "x.1.tmp", ".profile.tmp", ".a.b.tmp", ".key.1.tmp"];
        for name in left.iter().map(String::as_str).chain(others) {
            fs::write(below.join(name), "x").unwrap();
        }
        sweep_temporary(dir.path()).unwrap();
        assert!(left.iter().all(|name| !below.join(name).exists()));
        assert!(others.iter().all(|name| below.join(name).exists()));
        sweep_temporary(&dir.path().join("none")).unwrap();
    }

    #[test]
    fn reading_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("big");
        fs::write(&path, vec![b'x'; 100]).unwrap();
        assert_eq!(read(&path, 100).unwrap().unwrap().len(), 100);
        assert_eq!(read(&path, 99).unwrap_err().code, "ENM-X003");
        assert_eq!(read(&dir.path().join("none"), 1).unwrap(), None);
    }
}
