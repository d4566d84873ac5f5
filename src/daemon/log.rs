//! Where log lines go: to journald with fields under systemd, else to standard error as lines, or as
//! JSON lines where nobody but a collector reads them.

use std::io::IsTerminal;

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::base::{Class, Fault};
use crate::converge::ConvergeError;

/// How log lines look, and where they go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// The journal where there is one, lines on a terminal, JSON where neither reads them.
    #[default]
    Auto,
    /// JSON lines on standard output.
    Json,
    /// Lines on standard error.
    Text,
}

/// The variable that says it, where no flag does.
const VARIABLE: &str = "ENMESH_LOG";

impl LogFormat {
    /// What the environment says; `auto` where it says nothing.
    ///
    /// # Errors
    /// `ENM-D113` it is none of them.
    pub fn of_environment() -> Result<LogFormat, Fault> {
        let text = std::env::var(VARIABLE).unwrap_or_default();
        match text.trim() {
            "" => Ok(LogFormat::Auto),
            text => clap::ValueEnum::from_str(text, false)
                .map_err(|_| ConvergeError::LogFormat { variable: VARIABLE, text: text.to_owned() }.into()),
        }
    }
}

/// Sets up logging for the life of the process. `machine` says that standard output is for one JSON document; then
/// JSON lines go to standard error. `RUST_LOG` narrows or widens it (`debug`, or
/// `warn,enmesh::systemd=debug`); the default is `info`.
pub fn start(format: LogFormat, machine: bool) {
    let wanted = std::env::var("RUST_LOG").ok().and_then(|text| text.parse::<Targets>().ok());
    let filter = wanted.unwrap_or_else(|| Targets::new().with_default(LevelFilter::INFO));
    let registry = tracing_subscriber::registry().with(filter);
    // systemd sets JOURNAL_STREAM when standard error is the journal (systemd.exec(5)).
    let journald = std::env::var_os("JOURNAL_STREAM").filter(|_| format == LogFormat::Auto);
    let journald = journald.and_then(|_| tracing_journald::layer().ok());
    let json = match format {
        LogFormat::Auto => machine || !std::io::stderr().is_terminal(),
        LogFormat::Json => true,
        LogFormat::Text => machine,
    };
    let set = if let Some(journald) = journald {
        registry.with(journald.with_field_prefix(Some("ENMESH".to_owned()))).try_init()
    } else if json {
        let lines = tracing_subscriber::fmt::layer().json().flatten_event(true).with_current_span(false);
        match machine {
            true => registry.with(lines.with_writer(std::io::stderr)).try_init(),
            false => registry.with(lines.with_writer(std::io::stdout)).try_init(),
        }
    } else {
        let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        let lines = tracing_subscriber::fmt::layer()
            .with_target(false)
            .with_ansi(colour)
            .with_writer(std::io::stderr);
        registry.with(lines).try_init()
    };
    // A second call, as in tests, keeps the first one's logger.
    drop(set);
}

/// Logs a fault with its fields: `ENMESH_CODE=`, `ENMESH_SERVICE=`, `ENMESH_HINT=`.
pub fn fault(fault: &Fault) {
    let service = fault.service.as_deref().unwrap_or("-");
    let (code, hint) = (fault.code, fault.hint.as_str());
    if fault.class == Class::Config {
        tracing::warn!(code, service, hint, "{fault}");
    } else {
        tracing::error!(code, service, hint, "{fault}");
    }
}
