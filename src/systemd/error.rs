//! What can go wrong between enmesh and systemd.

use std::time::Duration;

use crate::base::{Class, Explain};

/// An error of this room; codes `ENM-S…`.
#[derive(Debug, thiserror::Error)]
pub enum SystemdError {
    /// Nobody answers on the system bus.
    #[error("cannot reach systemd on the system bus")]
    NoBus {
        /// What the connection said.
        source: zbus::Error,
    },
    /// systemd answers, and says no.
    #[error("systemd does not permit {call}")]
    Denied {
        /// The call that was refused.
        call: &'static str,
        /// Its answer.
        source: zbus::Error,
    },
    /// The unit file is not there.
    #[error("the unit {unit} is not installed")]
    NotInstalled {
        /// The unit.
        unit: String,
    },
    /// A job ended, but not well.
    #[error("the {verb} job of {unit} ended as `{result}`{}", after(detail))]
    Job {
        /// `start`, `stop`, …
        verb: &'static str,
        /// The unit.
        unit: String,
        /// systemd's word for it.
        result: String,
        /// How its process ended, where that is known.
        detail: String,
    },
    /// A job did not end in time.
    #[error("the {verb} job of {unit} did not end within {limit:?}")]
    Slow {
        /// `start`, `stop`, …
        verb: &'static str,
        /// The unit.
        unit: String,
        /// The time it had.
        limit: Duration,
    },
    /// A condition of the unit file does not hold.
    #[error("systemd skipped the start of {unit}: a condition of the unit does not hold")]
    Skipped {
        /// The unit.
        unit: String,
    },
    /// The process started and ended right away.
    #[error("{unit} started and ended at once{}", after(detail))]
    Ended {
        /// The unit.
        unit: String,
        /// How its process ended, where that is known.
        detail: String,
    },
    /// A unit's user is not captured, so the unit must not start.
    #[error("the connections of {unit} would not be captured: {detail}")]
    Unheld {
        /// The unit.
        unit: String,
        /// Why.
        detail: String,
    },
    /// Nobody runs who could see to that.
    #[error("the connections of {unit} would not be captured: no enmesh daemon runs")]
    NobodyHolds {
        /// The unit.
        unit: String,
    },
    /// Any other answer.
    #[error("systemd refused {call}")]
    Call {
        /// The call.
        call: &'static str,
        /// Its answer.
        source: zbus::Error,
    },
}

fn after(detail: &str) -> String {
    if detail.is_empty() { String::new() } else { format!(" ({detail})") }
}

impl SystemdError {
    /// Sorts the failure of `call` by what can be done about it. `unit` is the one it is about.
    pub(super) fn of_call(call: &'static str, unit: &str, source: zbus::Error) -> Self {
        use zbus::fdo::Error as Fdo;
        match &source {
            zbus::Error::FDO(known) => match **known {
                Fdo::AccessDenied(_) | Fdo::AuthFailed(_) | Fdo::InteractiveAuthorizationRequired(_) => {
                    SystemdError::Denied { call, source }
                }
                Fdo::FileNotFound(_) if !unit.is_empty() => {
                    SystemdError::NotInstalled { unit: unit.to_owned() }
                }
                Fdo::ServiceUnknown(_) | Fdo::NameHasNoOwner(_) | Fdo::Disconnected(_) | Fdo::NoServer(_) => {
                    SystemdError::NoBus { source }
                }
                _ => SystemdError::Call { call, source },
            },
            zbus::Error::MethodError(name, ..) if name.as_str() == NO_SUCH_UNIT && !unit.is_empty() => {
                SystemdError::NotInstalled { unit: unit.to_owned() }
            }
            zbus::Error::InputOutput(_) | zbus::Error::Connection(..) | zbus::Error::Handshake(_) => {
                SystemdError::NoBus { source }
            }
            _ => SystemdError::Call { call, source },
        }
    }
}

/// systemd's name for a unit that is not loaded and has no file.
pub(super) const NO_SUCH_UNIT: &str = "org.freedesktop.systemd1.NoSuchUnit";

fn journal(unit: &str) -> String {
    format!("see `journalctl -u '{unit}'`")
}

impl Explain for SystemdError {
    fn code(&self) -> &'static str {
        match self {
            SystemdError::NoBus { .. } => "ENM-S001",
            SystemdError::Denied { .. } => "ENM-S002",
            SystemdError::NotInstalled { .. } => "ENM-S003",
            SystemdError::Job { .. } => "ENM-S004",
            SystemdError::Slow { .. } => "ENM-S005",
            SystemdError::Skipped { .. } => "ENM-S006",
            SystemdError::Ended { .. } => "ENM-S007",
            SystemdError::Call { .. } => "ENM-S008",
            SystemdError::Unheld { .. } => "ENM-S020",
            SystemdError::NobodyHolds { .. } => "ENM-S021",
        }
    }

    fn hint(&self) -> String {
        match self {
            SystemdError::NoBus { .. } => {
                "check `systemctl status dbus`; where there is no systemd, set profile = \"container\""
                    .to_owned()
            }
            SystemdError::Denied { .. } => "run as root".to_owned(),
            SystemdError::NotInstalled { unit } => match super::escape::instance(unit) {
                Some(_) => "install the unit file envoy@.service (the package brings it), then run \
                            `systemctl daemon-reload`"
                    .to_owned(),
                None => format!("install the package that brings {unit}"),
            },
            SystemdError::Job { unit, .. } | SystemdError::Ended { unit, .. } => journal(unit),
            SystemdError::Slow { unit, .. } => {
                format!("`systemctl list-jobs` says what it waits for; {}", journal(unit))
            }
            SystemdError::Skipped { unit } => {
                format!(
                    "`systemctl status '{unit}'` names the condition; the sidecar's bootstrap must be there"
                )
            }
            SystemdError::Unheld { .. } => {
                "`enmesh status` says what is wrong with the service; correct it and start the unit again, or take \
                 the service out of the mesh with `enmesh down`"
                    .to_owned()
            }
            SystemdError::NobodyHolds { .. } => {
                "`systemctl start enmesh`, then start the unit again; `enmesh down` takes the host out of the mesh"
                    .to_owned()
            }
            SystemdError::Call { call, .. } => {
                format!("systemd's own words stand above; `journalctl -b _PID=1` has more about {call}")
            }
        }
    }

    fn class(&self) -> Class {
        match self {
            SystemdError::NoBus { .. }
            | SystemdError::NotInstalled { .. }
            | SystemdError::NobodyHolds { .. } => Class::Unavailable,
            SystemdError::Denied { .. } => Class::Privilege,
            _ => Class::Failed,
        }
    }
}
