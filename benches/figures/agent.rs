//! A real Consul in the benchmark's own namespace: a server with an agent's API on loopback.

use std::error::Error;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::program;

/// How long it has to elect itself.
const PATIENCE: Duration = Duration::from_secs(30);

/// The agent; it ends with the value.
pub struct Agent {
    child: Child,
    folder: TempDir,
}

/// Its program: `ENMESH_CONSUL`, else where `make tools` puts it.
pub fn consul() -> PathBuf {
    std::env::var_os("ENMESH_CONSUL")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/consul"), PathBuf::from)
}

impl Agent {
    /// Starts one and waits until it leads and its CA is there.
    pub fn start() -> Result<Agent, Box<dyn Error>> {
        let folder = tempfile::tempdir()?;
        let log = File::create(folder.path().join("log"))?;
        #[expect(clippy::disallowed_methods, reason = "it runs beside what is measured")]
        let child = Command::new(consul())
            .args(["agent", "-dev", "-bind=127.0.0.1", "-client=127.0.0.1", "-log-level=warn"])
            .args(["-node=bench", "-hcl=disable_update_check = true"])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .map_err(|error| format!("{}: {error}; make tools", consul().display()))?;
        let agent = Agent { child, folder };
        let started = Instant::now();
        while program::at(&consul(), &["connect", "ca", "get-config"]).is_err() {
            if started.elapsed() > PATIENCE {
                let log = std::fs::read_to_string(agent.folder.path().join("log"))?;
                return Err(format!("Consul does not get ready:\n{log}").into());
            }
            thread::sleep(Duration::from_millis(100));
        }
        Ok(agent)
    }

    /// A folder for files of the comparison.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
