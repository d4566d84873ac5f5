//! What doing the work of scripts and taking over from them can run into.

use std::path::PathBuf;

use crate::base::{Class, Explain};
use crate::plan::Generation;

/// An error of this room.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// The rules in force come from a plan.
    #[error(
        "the rules in force here are those of this host's configuration (generation {generation}, {driver})"
    )]
    Planned {
        /// Which.
        generation: Generation,
        /// The driver that set them.
        driver: &'static str,
    },
    /// The daemon works on this host.
    #[error("the daemon runs, and what it has in force must not change under its feet")]
    DaemonRuns,
    /// There are no rules that could take the place of theirs.
    #[error("no service of this host's configuration captures anything, so nothing could take their place")]
    NothingInstead,
    /// Ours are not fit to take over.
    #[error("not every sidecar is live, so theirs are left in force")]
    NotReady,
    /// They came back.
    #[error("rules of another redirector are still there, or there again: {}", tables.join(", "))]
    BackAgain {
        /// The tables.
        tables: Vec<String>,
    },
    /// A script's unit cannot be moved out of the way.
    #[error("cannot move {} aside", path.display())]
    Stuck {
        /// The unit's file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
}

impl Explain for HandoverError {
    fn code(&self) -> &'static str {
        match self {
            HandoverError::Planned { .. } => "ENM-D040",
            HandoverError::DaemonRuns => "ENM-D041",
            HandoverError::NothingInstead => "ENM-D042",
            HandoverError::NotReady => "ENM-D043",
            HandoverError::BackAgain { .. } => "ENM-D044",
            HandoverError::Stuck { .. } => "ENM-D045",
        }
    }

    fn hint(&self) -> String {
        match self {
            HandoverError::Planned { .. } => {
                "change the services' files and `enmesh apply`; `enmesh down` takes everything out, and leaves \
                 the host to scripts"
            }
            HandoverError::DaemonRuns => {
                "`systemctl stop enmesh` (sidecars, rules and connections live on), `enmesh migrate --yes`, \
                 `systemctl start enmesh`"
            }
            HandoverError::NothingInstead => {
                "write a service file (`enmesh check` says whether it is right); or keep the script, with \
                 `enmesh redirect-traffic --take-over` and the same flags in the place of `consul connect redirect-traffic`"
            }
            HandoverError::NotReady => {
                "mend what is said above and repeat `enmesh migrate --yes`; ours stand behind theirs meanwhile, \
                 and `enmesh down` takes them out again"
            }
            HandoverError::BackAgain { .. } => {
                "a script or unit sets them again; `enmesh migrate` lists those that it knows; stop it and repeat"
            }
            HandoverError::Stuck { .. } => "move it by hand, then `systemctl daemon-reload`",
        }
        .to_owned()
    }

    fn class(&self) -> Class {
        match self {
            HandoverError::NothingInstead => Class::Config,
            HandoverError::DaemonRuns => Class::Unavailable,
            _ => Class::Failed,
        }
    }
}
