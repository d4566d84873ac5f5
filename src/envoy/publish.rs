//! Publication: files are written so that at no moment something in force refers to something that
//! is gone, Envoy is asked whether it took them up, and what it refuses is taken back.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use super::admin::{Admin, Readiness};
use super::bootstrap::bootstrap;
use super::error::EnvoyError;
use super::layout::{CDS, LAST_GOOD, LDS, Layout, SECRETS, SOCKET_PATH_MAX, secret_file};
use super::reason;
use super::resources::{FileSet, resources, resources_of};
use super::secrets::{LEAF, ROOT, Secrets, TOKEN};
use super::verify::{Snapshot, Verdict, wait};
use crate::base::files::{self, Access};
use crate::base::{Fault, Root};
use crate::plan::{MeshView, ServicePlan, Xds};

/// How long Envoy has to take up what was written. It takes milliseconds; hundreds of new clusters
/// keep its one main thread busy for seconds.
const TAKE_LIMIT: Duration = Duration::from_secs(10);
/// The largest file that is read back, in bytes.
const FILE_LIMIT: u64 = 64 * 1024 * 1024;

/// What a publication did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// The files that changed, below the sidecar's folder, sorted.
    pub changed: Vec<String>,
    /// Whether Envoy was seen to run exactly this. It cannot be seen while Envoy does not run.
    pub verified: bool,
}

/// Writes the files of sidecars below one root.
#[derive(Debug, Clone)]
pub struct Publisher {
    root: Root,
}

impl Publisher {
    /// Publishes below `root`.
    pub fn new(root: Root) -> Self {
        Publisher { root }
    }

    /// Which files [`Publisher::publish`] would change, sorted. Touches nothing.
    ///
    /// # Errors
    /// As [`Publisher::publish`], but for what only a write or Envoy can say.
    pub fn diff<'a>(
        &self,
        service: &ServicePlan,
        mesh: &MeshView,
        secrets: impl Into<Secrets<'a>>,
    ) -> Result<Vec<String>, Fault> {
        let layout = self.checked_layout(service)?;
        let set = self.rendered(service, mesh, secrets.into())?;
        let differs = |path: &str, bytes: &[u8]| on_disk(&layout, path).is_none_or(|old| old != bytes);
        let mut changed: Vec<String> = set
            .files()
            .iter()
            .filter(|(path, bytes)| differs(path, bytes))
            .map(|(path, _)| path.clone())
            .collect();
        if differs(BOOTSTRAP, &bootstrap_bytes(service, &self.root)?) {
            changed.push(BOOTSTRAP.to_owned());
        }
        changed.sort();
        Ok(changed)
    }

    /// Writes what the sidecar of `service` shall do, and sees to it that a running Envoy does it.
    ///
    /// With [`Secrets::Kept`], those that were written before stay. While Envoy is not live the files
    /// are written all the same; call again once it is, to have them verified. Of a sidecar that
    /// Consul drives, only the token can be: what Consul tells it is between the two.
    ///
    /// # Errors
    /// `ENM-E010` to `ENM-E013`, `ENM-E040` to `ENM-E045`: nothing was written. `ENM-E030`: Envoy refused; the last good
    /// files are back in force if there were any. `ENM-E031`: Envoy did not look in time.
    /// `ENM-X00*`: a file could not be written; what Envoy runs is unharmed.
    pub async fn publish<'a>(
        &self,
        service: &ServicePlan,
        mesh: &MeshView,
        secrets: impl Into<Secrets<'a>>,
    ) -> Result<Published, Fault> {
        let layout = self.checked_layout(service)?;
        if service.sidecar.xds == Xds::Files && mesh.trust_domain.is_empty() {
            return Err(EnvoyError::NoTrustDomain.into());
        }
        let mut set = self.rendered(service, mesh, secrets.into())?;
        keep_secrets(service, &layout, &mut set)?;
        self.publish_files(service, &set).await
    }

    fn rendered(
        &self,
        service: &ServicePlan,
        mesh: &MeshView,
        secrets: Secrets<'_>,
    ) -> Result<FileSet, Fault> {
        Ok(match service.sidecar.xds {
            Xds::Files => FileSet::new(&resources(service, mesh, &self.root)?, secrets),
            Xds::Ads(_) => FileSet::of_secrets(secrets),
        })
    }

    /// As [`Publisher::publish`], for files that are rendered already.
    ///
    /// # Errors
    /// As [`Publisher::publish`].
    pub async fn publish_files(&self, service: &ServicePlan, set: &FileSet) -> Result<Published, Fault> {
        let layout = self.checked_layout(service)?;
        let mut writer = Writer { layout: &layout, gid: service.sidecar.gid, written: BTreeSet::new() };
        writer.make_folders()?;
        let bootstrap = bootstrap_bytes(service, &self.root)?;
        writer.write(BOOTSTRAP, &bootstrap)?;
        for path in of_other_source(&service.sidecar.xds) {
            files::remove(&layout.path(path))?;
        }
        let admin = Admin::new(layout.admin_socket());
        if admin.ready().await != Readiness::Live {
            for path in in_order(set) {
                writer.write(path, set.get(path).unwrap_or_default())?;
            }
            return Ok(writer.done(false));
        }
        let before = Snapshot::take(&admin).await?;
        let mut session = Session { writer, admin, before, deadline: Instant::now() + TAKE_LIMIT };
        match session.replace(set).await? {
            Verdict::Taken => {
                session.writer.keep_as_last_good(set)?;
                Ok(session.writer.done(true))
            }
            Verdict::Late(files) => {
                Err(EnvoyError::NotTaken { what: files.join(", "), limit: TAKE_LIMIT }.into())
            }
            Verdict::Rejected(files) => {
                let reason = reason::of_refusal(&session.admin, service, &self.root, set, &files).await;
                let rolled_back = session.roll_back(set, &files).await?;
                Err(EnvoyError::Rejected { what: files.join(", "), reason, rolled_back }.into())
            }
        }
    }

    /// Removes everything of a sidecar. Envoy should have ended before.
    ///
    /// # Errors
    /// `ENM-X002`, `ENM-X003`: the folder could not be removed.
    pub fn remove(&self, service: &ServicePlan) -> Result<bool, Fault> {
        files::remove_folder(Layout::new(service, &self.root).folder())
    }

    fn checked_layout(&self, service: &ServicePlan) -> Result<Layout, Fault> {
        let layout = Layout::new(service, &self.root);
        let path = layout.admin_socket();
        if path.as_os_str().len() > SOCKET_PATH_MAX {
            return Err(EnvoyError::SocketPath { path }.into());
        }
        Ok(layout)
    }
}

const BOOTSTRAP: &str = "bootstrap.json";

fn bootstrap_bytes(service: &ServicePlan, root: &Root) -> Result<Vec<u8>, Fault> {
    Ok(format!("{:#}\n", bootstrap(service, root)?).into_bytes())
}

/// Files that only a sidecar with another source reads. Keys and tokens do not outlive their use.
fn of_other_source(xds: &Xds) -> Vec<String> {
    match xds {
        Xds::Files => vec![secret_file(TOKEN)],
        Xds::Ads(_) => vec![LDS.to_owned(), CDS.to_owned(), secret_file(LEAF), secret_file(ROOT)],
    }
}

fn on_disk(layout: &Layout, path: &str) -> Option<Vec<u8>> {
    files::read(&layout.path(path), FILE_LIMIT).ok().flatten()
}

/// Takes those secrets that the sidecar needs and `set` has not from the disk.
fn keep_secrets(service: &ServicePlan, layout: &Layout, set: &mut FileSet) -> Result<(), EnvoyError> {
    let needed: &[&str] = match &service.sidecar.xds {
        Xds::Files => &[LEAF, ROOT],
        Xds::Ads(ads) if ads.token => &[TOKEN],
        Xds::Ads(_) => &[],
    };
    for name in needed {
        let path = secret_file(name);
        if set.get(&path).is_none() {
            let missing = if *name == TOKEN { EnvoyError::NoToken } else { EnvoyError::NoCredentials };
            let bytes = on_disk(layout, &path).ok_or(missing)?;
            set.insert_bytes(&path, bytes);
        }
    }
    Ok(())
}

/// The paths of `set` so that each comes after what it refers to: certificates, clusters,
/// listeners.
fn in_order(set: &FileSet) -> Vec<&str> {
    let rank = |path: &str| match path {
        LDS => 2,
        CDS => 1,
        _ => 0,
    };
    let mut paths: Vec<&str> = set.files().keys().map(String::as_str).collect();
    paths.sort_by_key(|path| (rank(path), *path));
    paths
}

/// The names of the JSON files in a folder, sorted; none where there is no folder.
fn names_in(folder: &Path) -> BTreeSet<String> {
    fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.ends_with(".json") && !name.starts_with('.'))
        .collect()
}

/// Writes below one sidecar's folder and remembers what changed.
struct Writer<'a> {
    layout: &'a Layout,
    gid: u32,
    written: BTreeSet<String>,
}

impl Writer<'_> {
    fn make_folders(&self) -> Result<(), Fault> {
        let closed = Access::group(0o750, self.gid);
        let good = self.layout.path(LAST_GOOD);
        for folder in [self.layout.path(""), self.layout.path(SECRETS), good.join(SECRETS), good] {
            files::folder(&folder, closed)?;
        }
        files::folder(&self.layout.admin_folder(), Access::group(0o770, self.gid))
    }

    fn write(&mut self, path: &str, bytes: &[u8]) -> Result<bool, Fault> {
        let changed = files::write_volatile(&self.layout.path(path), bytes, Access::group(0o640, self.gid))?;
        if changed {
            self.written.insert(path.to_owned());
        }
        Ok(changed)
    }

    /// Renames the same bytes into place once more, so that Envoy looks at them again. Equal files
    /// are left alone otherwise; one that nobody can write is not equal.
    fn write_again(&mut self, path: &str, bytes: &[u8]) -> Result<(), Fault> {
        files::write_volatile(&self.layout.path(path), bytes, Access::group(0o440, self.gid))?;
        self.write(path, bytes).map(drop)
    }

    fn keep_as_last_good(&self, set: &FileSet) -> Result<(), Fault> {
        let folder = self.layout.path(LAST_GOOD);
        for (path, bytes) in set.files() {
            files::write_volatile(&folder.join(path), bytes, Access::group(0o640, self.gid))?;
        }
        Ok(())
    }

    fn last_good(&self) -> FileSet {
        let folder = self.layout.path(LAST_GOOD);
        let mut set = FileSet::default();
        for below in ["", SECRETS] {
            for name in names_in(&folder.join(below)) {
                let path = if below.is_empty() { name } else { format!("{below}/{name}") };
                if let Some(bytes) = on_disk(self.layout, &format!("{LAST_GOOD}/{path}")) {
                    set.insert_bytes(&path, bytes);
                }
            }
        }
        set
    }

    fn done(self, verified: bool) -> Published {
        Published { changed: self.written.into_iter().collect(), verified }
    }
}

/// One publication to an Envoy that runs.
struct Session<'a> {
    writer: Writer<'a>,
    admin: Admin,
    before: Snapshot,
    deadline: Instant,
}

impl Session<'_> {
    /// Make before break: what is new is there before anything refers to it, and what is old goes
    /// when nothing refers to it any more.
    async fn replace(&mut self, set: &FileSet) -> Result<Verdict, Fault> {
        let stale = self.before.stale(set);
        for path in in_order(set) {
            if path == LDS || path == CDS {
                continue;
            }
            self.write(path, set, &stale)?;
        }
        let both = on_disk(self.writer.layout, CDS).and_then(|old| with_clusters_of(set, &old));
        for (path, from) in [(CDS, both.as_ref().unwrap_or(set)), (LDS, set), (CDS, set)] {
            if from.get(path).is_some() && self.write(path, from, &stale)? {
                match self.wait(from, |candidate| candidate == path).await? {
                    Verdict::Taken => {}
                    other => return Ok(other),
                }
            }
        }
        self.wait(set, |_| true).await
    }

    /// Writes a file that differs from what is on disk or from what Envoy runs.
    fn write(&mut self, path: &str, set: &FileSet, stale: &BTreeSet<String>) -> Result<bool, Fault> {
        let bytes = set.get(path).unwrap_or_default();
        let changed = self.writer.write(path, bytes)?;
        if !changed && stale.contains(path) && !self.writer.written.contains(path) {
            self.writer.write_again(path, bytes)?;
            return Ok(true);
        }
        Ok(changed)
    }

    async fn wait(&self, set: &FileSet, paths: impl Fn(&str) -> bool) -> Result<Verdict, Fault> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        wait(&self.admin, &self.before, set, paths, &self.writer.written, left).await
    }

    /// Puts the last good listeners back. Clusters and certificates that Envoy did not refuse stay
    /// new: endpoints and keys are the truth of the day, whatever is wrong with the rest.
    /// Returns whether there was something to go back to.
    async fn roll_back(&mut self, refused: &FileSet, rejected: &[String]) -> Result<bool, Fault> {
        let good = self.writer.last_good();
        if good.get(LDS).is_none() || good == *refused {
            return Ok(false);
        }
        let is_rejected = |path: &str| rejected.iter().any(|r| r == path);
        let mut back = FileSet::default();
        for path in in_order(&good) {
            let both = || with_clusters_of(refused, good.get(CDS)?)?.get(CDS).map(<[u8]>::to_vec);
            let new = match path {
                _ if is_rejected(path) => None,
                LDS => None,
                CDS => both().or_else(|| refused.get(CDS).map(<[u8]>::to_vec)),
                _ => refused.get(path).map(<[u8]>::to_vec),
            };
            let old = || good.get(path).unwrap_or_default().to_vec();
            back.insert_bytes(path, new.unwrap_or_else(old));
        }
        self.before = Snapshot::take(&self.admin).await?;
        self.deadline = Instant::now() + TAKE_LIMIT;
        self.writer.written.clear();
        for path in in_order(&back) {
            self.writer.write(path, back.get(path).unwrap_or_default())?;
        }
        self.wait(&back, |_| true).await?;
        Ok(true)
    }
}

/// `set` with those clusters of the document `old` besides that it has not itself; `None` when
/// there are none.
fn with_clusters_of(set: &FileSet, old: &[u8]) -> Option<FileSet> {
    let mut clusters = resources_of(set.get(CDS)?);
    let name = |cluster: &Value| cluster.get("name").and_then(Value::as_str).map(str::to_owned);
    let wanted: BTreeSet<Option<String>> = clusters.iter().map(name).collect();
    let only_old: Vec<Value> =
        resources_of(old).into_iter().filter(|cluster| !wanted.contains(&name(cluster))).collect();
    if only_old.is_empty() {
        return None;
    }
    clusters.extend(only_old);
    let mut both = set.clone();
    both.insert(CDS, &clusters);
    Some(both)
}
