//! The tree below which everything is read and written.
//!
//! `--root DIR` works as in systemd's own tools: every absolute path of the contract is taken below
//! DIR. Only paths that cross to another process as text (in a bootstrap, say) stay as the process
//! will see them, which for a rooted run is the path with DIR in front as well.

use std::path::{Path, PathBuf};

/// The root of the file tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root(PathBuf);

impl Default for Root {
    fn default() -> Self {
        Root(PathBuf::from("/"))
    }
}

impl Root {
    /// A tree below `dir`.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Root(dir.into())
    }

    /// Whether this is the host's own tree.
    pub fn is_host(&self) -> bool {
        self.0 == Path::new("/")
    }

    /// Where `path`, absolute in the contract, is found.
    pub fn join(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.0.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_move_below_the_root() {
        assert_eq!(Root::new("/tmp/x").join("/etc/enmesh"), Path::new("/tmp/x/etc/enmesh"));
        assert_eq!(Root::default().join("/etc/enmesh"), Path::new("/etc/enmesh"));
        assert_eq!(Root::new("rel").join("etc"), Path::new("rel/etc"));
    }
}
