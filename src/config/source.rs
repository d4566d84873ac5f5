//! Files in. Whatever stands where a file should be, reading it neither blocks nor fills memory.

use std::fs::{self, File, FileType, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;

use super::error::{ConfigError, Problem};
use super::node::Document;
use crate::base::Place;

/// The largest configuration file, in bytes: a thousand times what people write.
pub(super) const SIZE_MAX: u64 = 1024 * 1024;

/// Reads one file; `None` where there is none.
pub(super) fn read(path: &Path) -> Result<Option<Document>, ConfigError> {
    let file = match open(path) {
        Ok(Some(file)) => file,
        Ok(None) => return Ok(None),
        Err(problem) => return Err(whole(problem, path)),
    };
    let mut bytes = Vec::new();
    file.take(SIZE_MAX + 1).read_to_end(&mut bytes).map_err(|e| whole(Problem::unreadable(&e), path))?;
    if bytes.len() as u64 > SIZE_MAX {
        return Err(whole(Problem::TooLarge, path));
    }
    text(bytes, path).map(|text| Some(Document { path: path.to_owned(), text }))
}

fn whole(problem: Problem, path: &Path) -> ConfigError {
    ConfigError { problem, place: Place::whole(path) }
}

fn open(path: &Path) -> Result<Option<File>, Problem> {
    // Looked at before it is opened, since opening some devices does something; and again after,
    // since it may have been changed in between. O_NONBLOCK: a FIFO would wait for its writer.
    let kind = match fs::metadata(path) {
        Ok(meta) => meta.file_type(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            // A link that leads nowhere is not the same as no file.
            return if path.is_symlink() { Err(Problem::unreadable(&e)) } else { Ok(None) };
        }
        Err(e) => return Err(Problem::unreadable(&e)),
    };
    regular(kind)?;
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits())
        .open(path)
        .map_err(|e| Problem::unreadable(&e))?;
    regular(file.metadata().map_err(|e| Problem::unreadable(&e))?.file_type())?;
    Ok(Some(file))
}

fn regular(kind: FileType) -> Result<(), Problem> {
    let kind = match kind {
        kind if kind.is_file() => return Ok(()),
        kind if kind.is_dir() => "a folder",
        kind if kind.is_fifo() => "a FIFO",
        kind if kind.is_socket() => "a socket",
        _ => "a device",
    };
    Err(Problem::NotAFile { kind })
}

fn text(bytes: Vec<u8>, path: &Path) -> Result<String, ConfigError> {
    let encoding = |what, before: &[u8]| {
        let place = Place {
            file: path.to_owned(),
            line: before.iter().filter(|b| **b == b'\n').count() + 1,
            column: String::from_utf8_lossy(before.rsplit(|b| *b == b'\n').next().unwrap_or_default())
                .chars()
                .count()
                + 1,
        };
        ConfigError { problem: Problem::Encoding { what }, place }
    };
    let text = String::from_utf8(bytes).map_err(|e| {
        let valid = e.utf8_error().valid_up_to();
        encoding("is not UTF-8 text", e.as_bytes().get(..valid).unwrap_or_default())
    })?;
    if text.starts_with('\u{feff}') {
        return Err(encoding("begins with a byte order mark", b""));
    }
    match text.split_once('\0') {
        Some((before, _)) => Err(encoding("holds a NUL byte", before.as_bytes())),
        None => Ok(text),
    }
}

/// What a folder holds, sorted by name: files of ours, and files that look as if they should be.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub files: Vec<PathBuf>,
    pub ignored: Vec<PathBuf>,
}

/// Lists the files of `folder` whose ending is in `endings`. No folder is an empty one.
pub(super) fn list(folder: &Path, endings: &[&str]) -> Result<Listing, ConfigError> {
    let mut listing = Listing::default();
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound && !folder.is_symlink() => return Ok(listing),
        Err(e) => return Err(whole(Problem::unreadable(&e), folder)),
    };
    for entry in entries {
        let path = entry.map_err(|e| whole(Problem::unreadable(&e), folder))?.path();
        let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        let Some(ending) = path.extension().and_then(|e| e.to_str()).filter(|_| !hidden) else { continue };
        if endings.contains(&ending) {
            listing.files.push(path);
        } else if matches!(ending, "toml" | "json" | "yaml" | "yml" | "hcl" | "conf") {
            listing.ignored.push(path);
        }
    }
    listing.files.sort();
    listing.ignored.sort();
    Ok(listing)
}
