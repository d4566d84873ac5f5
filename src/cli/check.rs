//! `enmesh check`

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::Global;
use super::output::Answer;
use crate::base::{Fault, Root};
use crate::config::{self, Config};
use crate::converge::check_entries;

/// Validate configuration, offline
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  enmesh check                              the configuration of this host\n  enmesh check api.toml                     one file, of any kind\n  enmesh check --root /mnt/image            the configuration of an image"
)]
pub struct Check {
    /// A file, a folder of service files, or a tree with etc/enmesh in it; this host by default
    path: Option<PathBuf>,
}

/// The configuration as the daemon would read it here, with what it would say of the environment.
fn with_environment(root: &Root) -> Config {
    let mut config = config::load(root, &|name| std::env::var(name).ok());
    let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    config.warnings.extend(config::unknown_variables(names));
    config
}

impl Check {
    pub fn run(self, global: &Global) -> Result<Answer, Fault> {
        let config = match &self.path {
            Some(path) => config::load_path(path),
            None => with_environment(&global.root()),
        };
        let root = match &self.path {
            // Of a file or a folder by itself it is not known what its paths are below.
            Some(path) => path.join("etc/enmesh").is_dir().then(|| Root::new(path)),
            None => Some(global.root()),
        };
        let (entries, of_entries) = root.map(|root| check_entries(&root, &config.host)).unwrap_or_default();
        let errors: Vec<Fault> = config.errors.into_iter().chain(of_entries).collect();
        let services: Vec<String> = config.services.iter().map(|service| service.id().to_string()).collect();
        let json = json!({
            "ok": errors.is_empty(),
            "files": config.sources,
            "services": services,
            "config_entries": entries,
            "errors": errors,
            "warnings": config.warnings,
        });
        let (files, count) = (config.sources.len(), services.len());
        let text = format!("{files} file(s), {count} service(s), {} error(s)\n", errors.len());
        Ok(Answer::new(text, &json).with_faults(errors, config.warnings))
    }
}
