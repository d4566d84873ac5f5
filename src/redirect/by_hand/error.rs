//! What redirecting by flags can run into before any rule is set.

use crate::base::{Class, Explain};

/// An error in flags, or in what they lead to.
#[derive(Debug, thiserror::Error)]
pub enum HandError {
    /// A flag is missing.
    #[error("{what} is required")]
    Missing {
        /// Which.
        what: &'static str,
    },
    /// Two flags contradict each other.
    #[error("{one} and {other} do not go together")]
    Both {
        /// The first.
        one: &'static str,
        /// The second.
        other: &'static str,
    },
    /// A value does not fit its flag.
    #[error("-{flag}: {why}")]
    Value {
        /// The flag, without dashes.
        flag: &'static str,
        /// What is wrong with the value.
        why: String,
    },
    /// A user that this host does not have.
    #[error("-{flag}: this host has no user `{user}`")]
    NoUser {
        /// The flag, without dashes.
        flag: &'static str,
        /// Its name.
        user: String,
    },
    /// A port name that this host does not know.
    #[error("-{flag}: /etc/services has no TCP port `{name}`")]
    NoPortName {
        /// The flag, without dashes.
        flag: &'static str,
        /// The name.
        name: String,
    },
    /// Consul knows no such proxy.
    #[error("Consul at {server} has no service with the id `{id}`")]
    NotRegistered {
        /// Where it was looked for.
        server: String,
        /// Its id.
        id: String,
    },
    /// The service is no proxy, or has no port.
    #[error("the service `{id}` is registered {without}")]
    NoProxy {
        /// Its id.
        id: String,
        /// What it lacks.
        without: &'static str,
    },
    /// A token on the command line (a warning).
    #[error("a token stands on the command line, where everybody on this host can read it")]
    TokenSeen,
}

impl Explain for HandError {
    fn code(&self) -> &'static str {
        match self {
            HandError::Missing { .. } => "ENM-R030",
            HandError::Both { .. } => "ENM-R031",
            HandError::Value { .. } => "ENM-R032",
            HandError::NoUser { .. } => "ENM-R033",
            HandError::NoPortName { .. } => "ENM-R034",
            HandError::NotRegistered { .. } => "ENM-R035",
            HandError::NoProxy { .. } => "ENM-R036",
            HandError::TokenSeen => "ENM-R037",
        }
    }

    fn hint(&self) -> String {
        match self {
            HandError::Missing { .. } => {
                "`enmesh redirect-traffic -proxy-uid USER -proxy-id ID`, or -proxy-inbound-port PORT instead of \
                 -proxy-id; `--help` shows all flags"
                    .to_owned()
            }
            HandError::Both { .. } => {
                "with -proxy-id both ports are read from the proxy's registration: `bind_port` of its config, and \
                 `outbound_listener_port` of its transparent_proxy; -node-name says where to look it up"
                    .to_owned()
            }
            HandError::Value { flag, .. } => match *flag {
                "exclude-inbound-port" | "exclude-outbound-port" => {
                    "a number, a range such as 8080:9000 or a name of /etc/services; give the flag once for each"
                }
                "exclude-outbound-cidr" => {
                    "an address or ADDRESS/PREFIX, IPv4 or IPv6; give the flag once for each"
                }
                "proxy-uid" | "exclude-uid" => "the name of a user or its number; give the flag once for each",
                "netns" => "a name below /run/netns, or the path of a namespace file",
                _ => "`enmesh redirect-traffic --help` shows what it takes",
            }
            .to_owned(),
            HandError::NoUser { user, .. } => {
                format!("`getent passwd {user}` shows whether there is one; a number is taken as it is")
            }
            HandError::NoPortName { .. } => "give the port as a number".to_owned(),
            HandError::NotRegistered { id, .. } => {
                let service = id.strip_suffix("-sidecar-proxy").unwrap_or(id);
                format!(
                    "register `{service}` with a sidecar first; an agent knows its own services only (-node-name \
                     looks into the catalog), and a token without `service:read` sees none"
                )
            }
            HandError::NoProxy { .. } => {
                "-proxy-id is the id of the sidecar, such as `web-sidecar-proxy`, not of the service".to_owned()
            }
            HandError::TokenSeen => {
                "put it into a file that only root can read: -token-file, or CONSUL_HTTP_TOKEN_FILE".to_owned()
            }
        }
    }

    fn class(&self) -> Class {
        match self {
            HandError::NotRegistered { .. } | HandError::NoProxy { .. } => Class::Unavailable,
            _ => Class::Usage,
        }
    }
}
