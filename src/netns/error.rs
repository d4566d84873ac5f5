//! What working with namespaces, links and routes can run into.

use std::io;

use rtnetlink::Error as NetlinkError;

use crate::base::{Class, Explain};

/// An error of this room.
#[derive(Debug, thiserror::Error)]
pub(super) enum NetnsError {
    #[error("not permitted to {what}")]
    Privilege { what: String },
    #[error("this kernel has no network namespaces")]
    Unsupported,
    #[error("there is no network namespace {name}")]
    NoSuchNamespace { name: String },
    #[error("{name} is not a network namespace")]
    NotANamespace { name: String },
    #[error("`{name}` is not a name for a network namespace")]
    BadName { name: String },
    #[error("cannot {what}")]
    System { what: String, source: io::Error },
    #[error("cannot speak rtnetlink")]
    Connect { source: io::Error },
    #[error("the kernel refused to {what}: {source}")]
    Refused { what: String, source: io::Error },
    #[error("the kernel did not answer in time when asked to {what}")]
    Silent { what: String },
    #[error("there is no link `{name}`")]
    NoSuchLink { name: String },
    #[error("a link `{name}` is there already and is not the one that was to be made")]
    LinkInTheWay { name: String },
    #[error("the loopback link is down")]
    LoopbackDown,
    #[error("a network namespace `{name}` is there already, and enmesh did not make it")]
    NotOurs { name: String },
    #[error("the network namespace `{name}` is another one than enmesh made: somebody replaced it")]
    Replaced { name: String },
    #[error(
        "cannot read or write how this host passes packets on (net.ipv4.ip_forward, route_localnet): {source}"
    )]
    Setting { source: io::Error },
}

impl NetnsError {
    /// The error for a system call that failed while trying to `what`.
    pub(super) fn system(what: impl Into<String>, source: impl Into<io::Error>) -> Self {
        let (what, source) = (what.into(), source.into());
        match source.kind() {
            // A unit's sandbox is told by either.
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                NetnsError::Privilege { what }
            }
            _ => NetnsError::System { what, source },
        }
    }

    /// The error for the setting of forwarding.
    pub(super) fn setting(source: io::Error) -> Self {
        NetnsError::Setting { source }
    }

    /// The error for a netlink request that failed while trying to `what`.
    pub(super) fn netlink(what: impl Into<String>, error: &NetlinkError) -> Self {
        let what = what.into();
        let source = match errno(error) {
            Some(errno) => io::Error::from_raw_os_error(errno),
            None => io::Error::other(error.to_string()),
        };
        match source.kind() {
            io::ErrorKind::PermissionDenied => NetnsError::Privilege { what },
            _ => NetnsError::Refused { what, source },
        }
    }
}

/// The error number in the kernel's answer, positive; `None` when it did not come to an answer.
pub(super) fn errno(error: &NetlinkError) -> Option<i32> {
    match error {
        NetlinkError::NetlinkError(message) => Some(message.raw_code().saturating_abs()),
        _ => None,
    }
}

impl Explain for NetnsError {
    fn code(&self) -> &'static str {
        match self {
            NetnsError::Privilege { .. } => "ENM-N001",
            NetnsError::Unsupported => "ENM-N002",
            NetnsError::NoSuchNamespace { .. } => "ENM-N003",
            NetnsError::NotANamespace { .. } => "ENM-N004",
            NetnsError::BadName { .. } => "ENM-N005",
            NetnsError::System { .. } => "ENM-N006",
            NetnsError::Connect { .. } => "ENM-N010",
            NetnsError::Refused { .. } => "ENM-N011",
            NetnsError::Silent { .. } => "ENM-N012",
            NetnsError::NoSuchLink { .. } => "ENM-N013",
            NetnsError::LinkInTheWay { .. } => "ENM-N014",
            NetnsError::LoopbackDown => "ENM-N015",
            NetnsError::NotOurs { .. } => "ENM-N030",
            NetnsError::Replaced { .. } => "ENM-N031",
            NetnsError::Setting { .. } => "ENM-N032",
        }
    }

    fn hint(&self) -> String {
        match self {
            NetnsError::Privilege { .. } => {
                "run as root, or with CAP_SYS_ADMIN for namespaces and CAP_NET_ADMIN for links and routes; docs/namespaces.md \
                 has what the unit of the daemon needs for namespaces"
                    .to_owned()
            }
            NetnsError::Unsupported => "use a kernel with CONFIG_NET_NS; every distribution's has it".to_owned(),
            NetnsError::NoSuchNamespace { .. } => "`ip netns list` shows the names that exist".to_owned(),
            NetnsError::NotANamespace { name } => {
                format!("give the path of a namespace file, such as /proc/PID/ns/net; look at {name}")
            }
            NetnsError::BadName { .. } => {
                "use letters, digits, `-`, `_` and `.`, at most 255, not starting with a dot".to_owned()
            }
            NetnsError::System { .. } => {
                "check that /run and /proc are mounted and that this is not a restricted container".to_owned()
            }
            NetnsError::Connect { .. } => {
                "check that the sandbox or unit lets AF_NETLINK sockets through (RestrictAddressFamilies=)".to_owned()
            }
            NetnsError::Refused { .. } => {
                "`ip link`, `ip address` and `ip route` show what is there; what was in force is unchanged".to_owned()
            }
            NetnsError::Silent { .. } => "the machine may be overloaded; the next attempt starts from the same state".to_owned(),
            NetnsError::NoSuchLink { .. } => "`ip link` shows the links of this namespace".to_owned(),
            NetnsError::LinkInTheWay { name } => {
                format!("remove it (`ip link delete {name}`) if nothing needs it")
            }
            NetnsError::LoopbackDown => {
                "bring it up (`ip link set lo up`); virtual IPs are routed to it, and applications need it too"
                    .to_owned()
            }
            NetnsError::NotOurs { name } => format!(
                "choose another name in `scope = \"netns:NAME\"`, or `ip netns delete {name}` if nothing needs it"
            ),
            NetnsError::Replaced { name } => format!(
                "nothing is set in it; `ip netns delete {name}`, and the daemon brings back the one that it made"
            ),
            NetnsError::Setting { .. } => {
                "set it by hand (`sysctl -w net.ipv4.ip_forward=1`), or let the unit do it (ProtectKernelTunables=no)"
                    .to_owned()
            }
        }
    }

    fn class(&self) -> Class {
        match self {
            NetnsError::Privilege { .. } => Class::Privilege,
            NetnsError::Unsupported | NetnsError::Connect { .. } => Class::Unavailable,
            NetnsError::NoSuchNamespace { .. }
            | NetnsError::NotANamespace { .. }
            | NetnsError::BadName { .. }
            | NetnsError::System { .. }
            | NetnsError::Refused { .. }
            | NetnsError::Silent { .. }
            | NetnsError::NoSuchLink { .. }
            | NetnsError::LinkInTheWay { .. }
            | NetnsError::LoopbackDown
            | NetnsError::NotOurs { .. }
            | NetnsError::Replaced { .. }
            | NetnsError::Setting { .. } => Class::Failed,
        }
    }
}
