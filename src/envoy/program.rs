//! Envoy's program, and how a sidecar is run.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};

use super::bootstrap::bootstrap;
use super::error::EnvoyError;
use super::layout::Layout;
use super::options::ProxyOptions;
use crate::base::units::UnitSpec;
use crate::base::{Fault, Root, exec};
use crate::plan::ServicePlan;

/// How long `--version` may take: milliseconds, but the program is 100 MB to be read on a cold start.
const VERSION_LIMIT: Duration = Duration::from_secs(10);

/// How many inotify instances a sidecar holds: listeners, clusters, and two secrets, one each.
/// `fs.inotify.max_user_instances` (128 on most hosts) bounds them for the sidecars' one user
/// together, and an Envoy that gets none aborts.
pub const INOTIFY_INSTANCES: usize = 4;

/// Finds Envoy and knows the versions of those it has seen.
#[derive(Debug, Default)]
pub struct Programs {
    versions: RefCell<BTreeMap<(PathBuf, SystemTime), String>>,
}

impl Programs {
    /// Where Envoy is: a bare name is looked up in the system's fixed folders, a path is taken as
    /// it is.
    ///
    /// # Errors
    /// `ENM-E001` there is none, `ENM-E002` it is not a program.
    pub fn find(&self, path: &Path) -> Result<PathBuf, Fault> {
        let missing = || Fault::from(EnvoyError::Missing { path: path.to_owned() });
        let found = exec::find(&path.to_string_lossy()).map_err(|_| missing())?;
        let meta = found.metadata().map_err(|_| missing())?;
        if meta.permissions().mode() & 0o111 == 0 {
            return Err(EnvoyError::NotExecutable { path: found }.into());
        }
        Ok(found)
    }

    /// The version of `program`, such as `1.40.0`. Asked once for each change of the file.
    ///
    /// # Errors
    /// `ENM-E001` it is not there, `ENM-E003` it does not tell, `ENM-X011` and `ENM-X012` it does
    /// not run.
    pub fn version(&self, program: &Path) -> Result<String, Fault> {
        let changed = program
            .metadata()
            .and_then(|meta| meta.modified())
            .map_err(|_| EnvoyError::Missing { path: program.to_owned() })?;
        let key = (program.to_owned(), changed);
        if let Some(version) = self.versions.borrow().get(&key) {
            return Ok(version.clone());
        }
        let output = exec::run(program, &["--version"], b"", VERSION_LIMIT)?;
        let answer = String::from_utf8_lossy(&output.stdout).into_owned();
        let version = version_in(&answer).ok_or_else(|| EnvoyError::Version {
            path: program.to_owned(),
            answer: format!(
                "{:?}",
                answer.trim().chars().chain(output.stderr.chars()).take(200).collect::<String>()
            ),
        })?;
        self.versions.borrow_mut().insert(key, version.clone());
        Ok(version)
    }
}

/// Reads `envoy  version: <commit>/<version>/<state>/<build>/<library>`.
fn version_in(answer: &str) -> Option<String> {
    let version = answer.split_once("version:")?.1.trim().split('/').nth(1)?;
    version.starts_with(|c: char| c.is_ascii_digit()).then(|| version.to_owned())
}

/// How the sidecar of `service` is run, below `root`.
///
/// # Errors
/// `ENM-E010`: a value in `proxy.config` does not fit. And as [`bootstrap()`].
pub fn unit_spec(service: &ServicePlan, root: &Root) -> Result<UnitSpec, Fault> {
    let options = ProxyOptions::read(&service.sidecar.config)?;
    let layout = Layout::new(service, root);
    // At least a second: Envoy takes 0 for "at once", and open connections would be cut by every
    // change of a listener.
    let drain = service.sidecar.drain.0.as_secs().max(1);
    let arguments: Vec<String> = [
        "-c",
        &layout.bootstrap().to_string_lossy(),
        // Hot restart needs shared memory of a fixed name, which several sidecars would fight for.
        "--disable-hot-restart",
        "--concurrency",
        &options.concurrency.to_string(),
        "--drain-time-s",
        &drain.to_string(),
        "--drain-strategy",
        "immediate",
        "--log-level",
        "warning",
        // Whoever collects the lines stamps them with the time.
        "--log-format",
        "%l %n: %v",
        // The log of inbound connections is read while it happens, not ten seconds later.
        "--file-flush-interval-msec",
        "1000",
    ]
    .map(str::to_owned)
    .into();
    let mut hash = Sha256::new();
    hash.update(service.sidecar.program.to_string_lossy().as_bytes());
    hash.update(bootstrap(service, root)?.to_string());
    hash.update(arguments.join("\0"));
    let revision: String = hash.finalize().iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    Ok(UnitSpec {
        instance: service.id.to_string(),
        program: service.sidecar.program.clone(),
        arguments,
        uid: service.sidecar.uid,
        gid: service.sidecar.gid,
        revision,
        network: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_name_is_looked_up_in_the_system_only() {
        let fault = Programs::default().find(Path::new("no-such-envoy")).unwrap_err();
        assert_eq!(fault.code, "ENM-E001");
        assert!(fault.hint.contains("/usr/local/bin"));
    }

    #[test]
    fn a_file_that_is_no_program_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("envoy");
        std::fs::write(&path, "").unwrap();
        assert_eq!(Programs::default().find(&path).unwrap_err().code, "ENM-E002");
    }

    #[test]
    fn the_version_is_asked_once_and_again_when_the_file_changes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("envoy");
        let say = |version: &str| {
            let script = format!(
                "#!/bin/sh\necho x >> {}/asked\necho 'envoy  version: c0ffee/{version}/Clean/RELEASE/BoringSSL'\n",
                dir.path().display()
            );
            // Renamed into place: a program that is open for writing cannot be run.
            let new = dir.path().join("new");
            std::fs::write(&new, script).unwrap();
            std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o755)).unwrap();
            std::fs::rename(new, &path).unwrap();
        };
        let asked = || std::fs::read_to_string(dir.path().join("asked")).unwrap().lines().count();
        let programs = Programs::default();
        say("1.40.0");
        assert_eq!(programs.version(&path).unwrap(), "1.40.0");
        assert_eq!(programs.version(&path).unwrap(), "1.40.0");
        assert_eq!(asked(), 1);
        std::thread::sleep(Duration::from_millis(10));
        say("1.41.0");
        assert_eq!(programs.version(&path).unwrap(), "1.41.0");
        assert_eq!(asked(), 2);
    }

    #[test]
    fn a_program_that_is_not_envoy_is_told() {
        let fault = Programs::default().version(Path::new("/bin/echo")).unwrap_err();
        assert_eq!(fault.code, "ENM-E003");
    }
}
