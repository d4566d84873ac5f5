//! `enmesh check`

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::Global;
use super::output::Answer;
use crate::base::Fault;
use crate::config;

/// Validate configuration, offline
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  enmesh check                              the configuration of this host\n  enmesh check api.toml                     one file, of any kind\n  enmesh check --root /mnt/image            the configuration of an image"
)]
pub struct Check {
    /// A file, a folder of service files, or a tree with etc/enmesh in it; this host by default
    path: Option<PathBuf>,
}

impl Check {
    pub fn run(self, global: &Global) -> Result<Answer, Fault> {
        let config = match &self.path {
            Some(path) => config::load_path(path),
            None => config::load(&global.root(), &|name| std::env::var(name).ok()),
        };
        let services: Vec<String> = config.services.iter().map(|service| service.id().to_string()).collect();
        let json = json!({
            "ok": config.errors.is_empty(),
            "files": config.sources,
            "services": services,
            "errors": config.errors,
            "warnings": config.warnings,
        });
        let (files, count) = (config.sources.len(), services.len());
        let text = format!("{files} file(s), {count} service(s), {} error(s)\n", config.errors.len());
        Ok(Answer::new(text, &json).with_faults(config.errors, config.warnings))
    }
}
