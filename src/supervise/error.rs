//! What can go wrong with a child process.

use std::io;
use std::path::PathBuf;

use crate::base::{Class, Explain};

/// An error of this room; codes `ENM-V…`.
#[derive(Debug, thiserror::Error)]
pub enum SuperviseError {
    /// The program could not be started.
    #[error("cannot start {} as user {uid}", program.display())]
    Start {
        /// Its path.
        program: PathBuf,
        /// The user it shall run as.
        uid: u32,
        /// The system's answer.
        source: io::Error,
    },
    /// It started and ended right away; it is tried again with growing pauses.
    #[error("the sidecar of `{instance}` started and ended at once")]
    Ended {
        /// The service id.
        instance: String,
    },
    /// A running process cannot be watched.
    #[error("cannot watch process {pid}")]
    Watch {
        /// Its number.
        pid: u32,
        /// The system's answer.
        source: io::Error,
    },
    /// Privileges that are not needed could not be given up (a warning).
    #[error("privileges that are not needed could not be given up: {why}")]
    Privileges {
        /// What the kernel said.
        why: String,
    },
    /// Not even SIGKILL ended it.
    #[error("the sidecar of `{instance}` does not end")]
    Stuck {
        /// The service id, or the process.
        instance: String,
    },
}

impl Explain for SuperviseError {
    fn code(&self) -> &'static str {
        match self {
            SuperviseError::Start { .. } => "ENM-V001",
            SuperviseError::Ended { .. } => "ENM-V002",
            SuperviseError::Watch { .. } => "ENM-V003",
            SuperviseError::Stuck { .. } => "ENM-V004",
            SuperviseError::Privileges { .. } => "ENM-V005",
        }
    }

    fn hint(&self) -> String {
        match self {
            SuperviseError::Start { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                "run as root, which may start a process as another user, and check that the program is executable"
                    .to_owned()
            }
            SuperviseError::Start { .. } => {
                "install Envoy, or say where it is with `path` in the section [envoy]".to_owned()
            }
            SuperviseError::Ended { .. } => "Envoy's own words stand in this log, just above".to_owned(),
            SuperviseError::Privileges { .. } => {
                "start the container with no more than it needs: `docs/containers.md` has the list".to_owned()
            }
            SuperviseError::Watch { .. } => "this needs Linux 5.3 (pidfd_open)".to_owned(),
            SuperviseError::Stuck { .. } => {
                "a process in state D (`ps -o pid,stat,wchan`) waits for a device; it ends when that answers".to_owned()
            }
        }
    }

    fn class(&self) -> Class {
        match self {
            SuperviseError::Start { source, .. } => match source.kind() {
                io::ErrorKind::PermissionDenied => Class::Privilege,
                _ => Class::Unavailable,
            },
            SuperviseError::Watch { .. } => Class::Unavailable,
            SuperviseError::Ended { .. }
            | SuperviseError::Stuck { .. }
            | SuperviseError::Privileges { .. } => Class::Failed,
        }
    }
}
