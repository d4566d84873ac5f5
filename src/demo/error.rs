//! What the demo can run into before it has anything to prove. A claim that does not hold is not an
//! error but a line of the report.

use std::io;
use std::path::PathBuf;

use crate::base::{Class, Explain};

/// An error of this room.
#[derive(Debug, thiserror::Error)]
pub(super) enum DemoError {
    #[error("the demo makes network namespaces, and this user may not")]
    Privilege,
    #[error("the demo needs nftables, and there is no `nft`")]
    NoNft,
    #[error("the demo needs Envoy, and there is none")]
    NoEnvoy,
    #[error("cannot {what}")]
    System { what: String, source: io::Error },
    #[error("{what} did not come about within {seconds} s{}", because(last))]
    NotInTime { what: String, seconds: u64, last: String },
    #[error("interrupted")]
    Interrupted,
    #[error("another demo is running")]
    Busy,
    #[error("the answer of {who} makes no sense: {what}")]
    Nonsense { who: String, what: String },
    #[error("{program} ended with {status}{}", because(last))]
    Ended { program: String, status: String, last: String },
    #[error("{} is no place to put a file over", path.display())]
    NoTarget { path: PathBuf },
}

fn because(last: &str) -> String {
    if last.is_empty() { String::new() } else { format!("; the last that was heard: {last}") }
}

impl DemoError {
    /// The code of [`DemoError::Interrupted`].
    pub(super) const INTERRUPTED: &'static str = "ENM-T006";

    /// The error for a system call that failed while trying to `what`.
    pub(super) fn system(what: impl Into<String>, source: impl Into<io::Error>) -> Self {
        DemoError::System { what: what.into(), source: source.into() }
    }
}

impl Explain for DemoError {
    fn code(&self) -> &'static str {
        match self {
            DemoError::Privilege => "ENM-T001",
            DemoError::NoNft => "ENM-T002",
            DemoError::NoEnvoy => "ENM-T003",
            DemoError::System { .. } => "ENM-T004",
            DemoError::NotInTime { .. } => "ENM-T005",
            DemoError::Interrupted => DemoError::INTERRUPTED,
            DemoError::Busy => "ENM-T007",
            DemoError::Nonsense { .. } => "ENM-T008",
            DemoError::Ended { .. } => "ENM-T009",
            DemoError::NoTarget { .. } => "ENM-T010",
        }
    }

    fn hint(&self) -> String {
        match self {
            DemoError::Privilege => {
                "run it as root (`sudo enmesh demo`); it touches nothing outside namespaces of its own".to_owned()
            }
            DemoError::NoNft => "install the package `nftables`".to_owned(),
            DemoError::NoEnvoy => {
                "install Envoy into /usr/local/bin, or say where it is: ENMESH_ENVOY=/path/to/envoy; in the source tree \
                 `make demo` fetches it"
                    .to_owned()
            }
            DemoError::System { .. } => {
                "check that /proc and /run are mounted and that this is not a restricted container".to_owned()
            }
            DemoError::NotInTime { .. } => {
                "the machine may be overloaded; run it again, or with --keep and read the logs below /run/enmesh-demo"
                    .to_owned()
            }
            DemoError::Interrupted => "nothing was left behind".to_owned(),
            DemoError::Busy => "wait for it to end".to_owned(),
            DemoError::Nonsense { .. } | DemoError::Ended { .. } => {
                "run it with --keep and read the logs below /run/enmesh-demo".to_owned()
            }
            DemoError::NoTarget { path } => {
                format!("make {} a file or a link to one that exists", path.display())
            }
        }
    }

    fn class(&self) -> Class {
        match self {
            DemoError::Privilege => Class::Privilege,
            DemoError::NoNft | DemoError::NoEnvoy => Class::Unavailable,
            DemoError::System { .. }
            | DemoError::NotInTime { .. }
            | DemoError::Interrupted
            | DemoError::Busy
            | DemoError::Nonsense { .. }
            | DemoError::Ended { .. }
            | DemoError::NoTarget { .. } => Class::Failed,
        }
    }
}
