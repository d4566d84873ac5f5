//! Reading files that other people put there: bounded, and never waiting for a writer.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use nix::fcntl::OFlag;

/// A regular file that was read.
pub(super) struct Input {
    /// Its contents.
    pub text: String,
    /// Its permission bits.
    pub mode: u32,
}

/// Reads a regular file of at most `limit` bytes of UTF-8; `None` where there is none.
///
/// Opening a FIFO to read blocks until somebody writes to it, and a device may never end; the file
/// is opened without blocking and looked at before it is read, so neither can hold up the daemon.
pub(super) fn read(path: &Path, limit: u64) -> io::Result<Option<Input>> {
    let opened = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path);
    let file = match opened {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("larger than {limit} bytes")));
    }
    let text = String::from_utf8(bytes)
        .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, format!("not UTF-8: {}", e.utf8_error())))?;
    Ok(Some(Input { text, mode: meta.permissions().mode() & 0o7777 }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fifo_a_folder_and_a_large_file_are_refused_without_waiting() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(read(&fifo, 10).is_err());
        assert!(read(dir.path(), 10).is_err());
        let file = dir.path().join("file");
        std::fs::write(&file, b"12345").unwrap();
        assert_eq!(read(&file, 5).unwrap().unwrap().text, "12345");
        assert_eq!(read(&file, 4).err().unwrap().kind(), io::ErrorKind::FileTooLarge);
        assert!(read(&dir.path().join("none"), 4).unwrap().is_none());
    }
}
