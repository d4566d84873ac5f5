//! Network namespaces as values: make, open, enter, delete.
//!
//! Which namespace a thread is in is a property of the thread, so nothing here ever moves the
//! caller's: work in a namespace is done by a fresh thread that enters it, does the work and ends.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::panic;
use std::path::{Path, PathBuf};
use std::thread;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::{NSFS_MAGIC, fstatfs};
use serde::{Deserialize, Serialize};
use tokio::task::LocalSet;

use super::error::NetnsError;
use crate::base::Fault;

/// Where named namespaces are bound, as `ip netns` does, so that it sees ours and we see its.
pub const FOLDER: &str = "/run/netns";

/// The calling thread's own namespace.
const OWN: &str = "/proc/thread-self/ns/net";

/// The longest file name.
const NAME_LIMIT: usize = 255;

/// Tells namespaces apart: equal exactly for the same namespace, however it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Identity {
    /// Device of the namespace file.
    pub device: u64,
    /// Its inode.
    pub inode: u64,
}

/// An open network namespace. It lives at least as long as this value.
#[derive(Debug)]
pub struct Namespace {
    file: File,
    path: PathBuf,
    identity: Identity,
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Namespace {
    /// Makes the namespace `name` (`ip netns add`), or opens it when it is there already.
    ///
    /// A new one has nothing but a loopback link that is down.
    ///
    /// # Errors
    /// `ENM-N001` no privilege, `ENM-N002` no namespaces in this kernel, `ENM-N005` bad name,
    /// `ENM-N006` the system refused.
    pub fn create(name: &str) -> Result<Namespace, Fault> {
        let path = path_of(name)?;
        if let Ok(existing) = Namespace::open(&path) {
            return Ok(existing);
        }
        prepare_folder()?;
        // A leftover file on which nothing is bound (a reboot, a killed `create`) is used as it is.
        make_file(&path)?;
        let bound = on_new_thread(|| bind_new_namespace(&path))?;
        if bound.is_err() {
            let _ = fs::remove_file(&path);
        }
        bound?;
        Namespace::open(&path)
    }

    /// Gives this very namespace the name `name`, which nobody has.
    ///
    /// # Errors
    /// As [`Namespace::create`].
    pub(super) fn name_again(&self, name: &str) -> Result<Namespace, Fault> {
        let path = path_of(name)?;
        prepare_folder()?;
        make_file(&path)?;
        let own = || bind(Path::new(OWN), &path);
        if let Err(error) = self.run(own)? {
            let _ = fs::remove_file(&path);
            return Err(error);
        }
        Namespace::open(&path)
    }

    /// Opens the namespace `name` of `/run/netns`.
    ///
    /// # Errors
    /// `ENM-N003` there is none, `ENM-N004` the file is something else, `ENM-N005` bad name.
    pub fn by_name(name: &str) -> Result<Namespace, Fault> {
        Namespace::open(&path_of(name)?)
    }

    /// Opens the namespace that the process `pid` is in.
    ///
    /// # Errors
    /// As [`Namespace::open`].
    pub fn by_pid(pid: u32) -> Result<Namespace, Fault> {
        Namespace::open(Path::new(&format!("/proc/{pid}/ns/net")))
    }

    /// Opens the namespace that the calling thread is in.
    ///
    /// # Errors
    /// As [`Namespace::open`].
    pub fn own() -> Result<Namespace, Fault> {
        Namespace::open(Path::new(OWN))
    }

    /// Opens a namespace file.
    ///
    /// # Errors
    /// `ENM-N001` no privilege, `ENM-N003` there is none, `ENM-N004` the file is something else.
    pub fn open(path: &Path) -> Result<Namespace, Fault> {
        Ok(Namespace::try_open(path)?)
    }

    /// The namespace `name` of `/run/netns`; `None` where there is none. A file on which nothing is bound, as a reboot
    /// or `umount` leaves it, is none.
    pub(super) fn find(name: &str) -> Result<Option<Namespace>, Fault> {
        match Namespace::try_open(&path_of(name)?) {
            Ok(there) => Ok(Some(there)),
            Err(NetnsError::NoSuchNamespace { .. } | NetnsError::NotANamespace { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn try_open(path: &Path) -> Result<Namespace, NetnsError> {
        let name = || path.display().to_string();
        let file = File::open(path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => NetnsError::NoSuchNamespace { name: name() },
            _ => NetnsError::system(format!("open {}", name()), e),
        })?;
        let kind = fstatfs(&file).map_err(|e| NetnsError::system(format!("look at {}", name()), e))?;
        if kind.filesystem_type() != NSFS_MAGIC {
            return Err(NetnsError::NotANamespace { name: name() });
        }
        let meta = file.metadata().map_err(|e| NetnsError::system(format!("look at {}", name()), e))?;
        let identity = Identity { device: meta.dev(), inode: meta.ino() };
        Ok(Namespace { file, path: path.to_owned(), identity })
    }

    /// Takes the name `name` away (`ip netns delete`); the namespace itself goes when the last
    /// process in it has ended. None there is fine. Returns whether there was one.
    ///
    /// # Errors
    /// `ENM-N001` no privilege, `ENM-N005` bad name, `ENM-N006` the system refused.
    pub fn delete(name: &str) -> Result<bool, Fault> {
        let path = path_of(name)?;
        loop {
            match umount2(&path, MntFlags::MNT_DETACH) {
                // Bound more than once: every layer has to go.
                Ok(()) => {}
                // Nothing is bound there, or nothing is there at all.
                Err(Errno::EINVAL | Errno::ENOENT) => break,
                Err(e) => return Err(NetnsError::system(format!("unbind {}", path.display()), e).into()),
            }
        }
        crate::base::files::remove(&path)
    }

    /// Where the file of the namespace `name` is.
    pub fn path_of_name(name: &str) -> PathBuf {
        Path::new(FOLDER).join(name)
    }

    /// The names that exist, sorted.
    ///
    /// # Errors
    /// `ENM-N006` the folder cannot be read.
    pub fn names() -> Result<Vec<String>, Fault> {
        let entries = match fs::read_dir(FOLDER) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(NetnsError::system(format!("read {FOLDER}"), e).into()),
        };
        let mut names: Vec<String> =
            entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
        names.sort();
        Ok(names)
    }

    /// Which namespace this is.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// The file through which it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The processes in the namespace, by process id. One whose other threads are elsewhere counts by
    /// its main thread.
    ///
    /// # Errors
    /// `ENM-N006` there is no /proc.
    pub fn processes(&self) -> Result<Vec<u32>, Fault> {
        let entries = fs::read_dir("/proc").map_err(|e| NetnsError::system("read /proc", e))?;
        let mut found: Vec<u32> = entries
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter(|pid| {
                // One that has ended meanwhile has no namespace any more.
                fs::metadata(format!("/proc/{pid}/ns/net"))
                    .is_ok_and(|meta| Identity { device: meta.dev(), inode: meta.ino() } == self.identity)
            })
            .collect();
        found.sort_unstable();
        Ok(found)
    }

    /// Moves the calling thread in, for good. For threads made for the purpose; never for one that
    /// does anything else.
    ///
    /// # Errors
    /// `ENM-N001` no privilege, `ENM-N006` the system refused.
    pub fn enter(&self) -> Result<(), Fault> {
        setns(&self.file, CloneFlags::CLONE_NEWNET)
            .map_err(|e| NetnsError::system(format!("enter {self}"), e).into())
    }

    /// Does `work` in the namespace, on a thread of its own, and waits for it. A panic of `work`
    /// goes on in the caller.
    ///
    /// # Errors
    /// As [`Namespace::enter`]; `work` has not been done then.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Fault> {
        on_new_thread(|| {
            self.enter()?;
            Ok(work())
        })?
    }

    /// Like [`Namespace::run`] with asynchronous work, on a runtime of its own.
    ///
    /// # Errors
    /// As [`Namespace::run`].
    pub fn run_async<T, W>(&self, work: impl FnOnce() -> W + Send) -> Result<T, Fault>
    where
        T: Send,
        W: Future<Output = T>,
    {
        self.run(|| block_on(work()))?
    }

    /// Starts `work` in the namespace on a thread of its own that goes on by itself. The thread's
    /// result is an error when it could not enter; `work` has not been started then.
    ///
    /// # Errors
    /// `ENM-N006` no thread.
    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<thread::JoinHandle<Result<T, Fault>>, Fault> {
        let file =
            self.file.try_clone().map_err(|e| NetnsError::system(format!("open {self} once more"), e))?;
        let namespace = Namespace { file, path: self.path.clone(), identity: self.identity };
        thread::Builder::new()
            .name("netns".to_owned())
            .spawn(move || {
                namespace.enter()?;
                Ok(work())
            })
            .map_err(|e| NetnsError::system("start a thread", e).into())
    }
}

/// Runs a future to its end on a runtime of its own, in the namespace of the calling thread.
///
/// # Errors
/// `ENM-N006` the runtime cannot be made.
pub fn block_on<T>(work: impl Future<Output = T>) -> Result<T, Fault> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| NetnsError::system("start a runtime", e))?;
    Ok(LocalSet::new().block_on(&runtime, work))
}

/// Gives the calling thread (and what it starts) a mount namespace of its own and puts `source` in
/// the place of `target` there, for each pair. Nobody else sees it. For threads made for the purpose.
///
/// # Errors
/// `ENM-N001` no privilege, `ENM-N006` the system refused.
pub fn mount_privately(pairs: &[(&Path, &Path)]) -> Result<(), Fault> {
    unshare(CloneFlags::CLONE_NEWNS).map_err(|e| NetnsError::system("leave the mount namespace", e))?;
    let nothing = None::<&str>;
    // A slave still sees what the host mounts later, and the host sees nothing of ours.
    mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_SLAVE, nothing)
        .map_err(|e| NetnsError::system("make mounts private", e))?;
    for (source, target) in pairs {
        mount(Some(*source), *target, nothing, MsFlags::MS_BIND, nothing).map_err(|e| {
            NetnsError::system(format!("put {} at {}", source.display(), target.display()), e)
        })?;
    }
    Ok(())
}

fn path_of(name: &str) -> Result<PathBuf, Fault> {
    let good = !name.is_empty()
        && name.len() <= NAME_LIMIT
        && !name.starts_with('.')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    if !good {
        return Err(NetnsError::BadName { name: name.to_owned() }.into());
    }
    Ok(Path::new(FOLDER).join(name))
}

/// Runs `work` on a fresh thread and waits; a panic goes on here.
fn on_new_thread<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, Fault> {
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, work)
            .map_err(|e| NetnsError::system("start a thread", e))?;
        match thread.join() {
            Ok(value) => Ok(value),
            Err(panic) => panic::resume_unwind(panic),
        }
    })
}

/// The folder is a shared mount of its own, as `ip netns` makes it: a namespace that is bound or
/// unbound in one mount namespace is so in all of them, and `delete` never finds it busy.
fn prepare_folder() -> Result<(), Fault> {
    let what = || format!("prepare {FOLDER}");
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(FOLDER)
        .map_err(|e| NetnsError::system(what(), e))?;
    let nothing = None::<&str>;
    let share = || mount(Some(""), FOLDER, Some("none"), MsFlags::MS_SHARED | MsFlags::MS_REC, nothing);
    match share() {
        Ok(()) => Ok(()),
        // Not a mount point yet.
        Err(Errno::EINVAL) => {
            mount(Some(FOLDER), FOLDER, Some("none"), MsFlags::MS_BIND | MsFlags::MS_REC, nothing)
                .and_then(|()| share())
                .map_err(|e| NetnsError::system(what(), e).into())
        }
        Err(e) => Err(NetnsError::system(what(), e).into()),
    }
}

/// Makes a namespace (the calling thread ends up in it) and binds it to `path`.
fn bind_new_namespace(path: &Path) -> Result<(), Fault> {
    unshare(CloneFlags::CLONE_NEWNET).map_err(|e| match e {
        Errno::EINVAL | Errno::ENOSYS => NetnsError::Unsupported,
        _ => NetnsError::system("make a network namespace", e),
    })?;
    bind(Path::new(OWN), path)
}

fn bind(namespace: &Path, path: &Path) -> Result<(), Fault> {
    mount(Some(namespace), path, Some("none"), MsFlags::MS_BIND, None::<&str>)
        .map_err(|e| NetnsError::system(format!("bind {}", path.display()), e).into())
}

/// The file on which a namespace is bound.
fn make_file(path: &Path) -> Result<(), Fault> {
    let opened = OpenOptions::new().write(true).create(true).truncate(false).mode(0o444).open(path);
    opened.map(drop).map_err(|e| NetnsError::system(format!("make {}", path.display()), e).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_leave_the_folder() {
        for bad in ["", ".", "..", "../x", "a/b", "a b", "a\n", ".hidden", &"x".repeat(256)] {
            assert_eq!(path_of(bad).unwrap_err().code, "ENM-N005", "{bad:?}");
        }
        assert_eq!(path_of("enmesh-demo.web_1").unwrap(), Path::new("/run/netns/enmesh-demo.web_1"));
    }

    #[test]
    fn identity_does_not_depend_on_the_way_in() {
        let own = Namespace::own().unwrap();
        let same = Namespace::by_pid(std::process::id()).unwrap();
        assert_eq!(own.identity(), same.identity());
        assert_ne!(own.path(), same.path());
    }

    #[test]
    fn what_is_no_namespace_is_said_so() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(Namespace::open(file.path()).unwrap_err().code, "ENM-N004");
        assert_eq!(Namespace::open(Path::new("/no/such")).unwrap_err().code, "ENM-N003");
        assert_eq!(Namespace::by_name("no-such-namespace").unwrap_err().code, "ENM-N003");
    }
}
