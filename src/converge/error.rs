//! What converging and the daemon can run into, beyond the faults of the rooms below.

use std::path::PathBuf;
use std::time::Duration;

use crate::base::{Class, Explain};
use crate::config::value::ServiceId;

/// An error of the rooms `converge` and `daemon`.
#[derive(Debug, thiserror::Error)]
pub enum ConvergeError {
    /// A newer enmesh wrote the state.
    #[error("{} has version {version}, which this enmesh does not know", path.display())]
    NewerState {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// The state cannot be understood.
    #[error("the state could not be read and was kept as {}", aside.display())]
    UnreadableState {
        /// Where it is now.
        aside: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// Another enmesh is at work on this tree.
    #[error("another enmesh process holds {}", lock.display())]
    Locked {
        /// The lock file.
        lock: PathBuf,
    },
    /// A sidecar did not become live.
    #[error("the sidecar of `{id}` was not live within {limit:?} ({state})")]
    NotLive {
        /// The service.
        id: ServiceId,
        /// The time it had.
        limit: Duration,
        /// What it said last.
        state: String,
    },
    /// A host did not come into the mesh.
    #[error("this host was not in the mesh within {limit:?} ({state})")]
    NotInMesh {
        /// The time it had.
        limit: Duration,
        /// What it lacks.
        state: String,
    },
    /// The daemon that should answer is not there.
    #[error("no daemon answers at {}", socket.display())]
    NoDaemon {
        /// The control socket.
        socket: PathBuf,
    },
    /// The daemon's answer makes no sense.
    #[error("the daemon at {} answered with something else than expected: {detail}", socket.display())]
    BadAnswer {
        /// The control socket.
        socket: PathBuf,
        /// What it was.
        detail: String,
    },
    /// A service that nobody knows.
    #[error("no service `{id}` is configured on this host")]
    NoService {
        /// The service.
        id: String,
    },
    /// A report that nobody takes.
    #[error("nobody is told how the checks of `{id}` are")]
    NoReports {
        /// The service.
        id: String,
    },
    /// Consul was not asked yet.
    #[error("Consul at {server} was not asked yet")]
    NotAsked {
        /// The address.
        server: String,
    },
    /// Somebody only looks, and there is no login to look with.
    #[error("this host is not logged in at the auth method {method:?}, and who only looks does not log in")]
    NotLoggedIn {
        /// The auth method.
        method: String,
    },
    /// The catalog still has services that were taken out at the agent.
    #[error("Consul's servers still have {}, so the login that the agent takes them out with was not ended", services.join(", "))]
    StillThere {
        /// Their ids.
        services: Vec<String>,
    },
    /// The files cannot be watched.
    #[error("cannot watch {} for changes", path.display())]
    Watch {
        /// The folder.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The control socket cannot be made.
    #[error("cannot listen on {}", socket.display())]
    Listen {
        /// The socket.
        socket: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// Somebody else redirects traffic on this host.
    #[error("{owner} redirects traffic on this host as well ({place})")]
    ForeignRedirector {
        /// Whose it is.
        owner: &'static str,
        /// Where it is.
        place: String,
        /// The command that removes it.
        removal: String,
    },
    /// A program runs as the sidecars' user.
    #[error(
        "process {pid} ({name}) runs as the sidecars' user (uid {uid}) and is no sidecar: it would bypass the mesh unseen"
    )]
    Stranger {
        /// The process.
        pid: u32,
        /// Its name.
        name: String,
        /// The user.
        uid: u32,
    },
    /// Capabilities are missing.
    #[error("this process may not change the host: it lacks {missing}")]
    Capabilities {
        /// Their names.
        missing: String,
    },
    /// A flow that cannot be explained because it is not one.
    #[error("{what}")]
    NoFlow {
        /// What is wrong with it.
        what: String,
        /// What to say instead.
        instead: &'static str,
    },
    /// The kernel does something else than the plan says.
    #[error("the kernel does otherwise than the plan says: {kernel}; the plan: {plan}")]
    Differs {
        /// What was seen.
        kernel: String,
        /// What should have been seen.
        plan: String,
    },
    /// More sidecars than the kernel lets watch their files (a warning).
    #[error("{sidecars} sidecars need {needed} inotify instances, and the kernel gives their user {limit}")]
    Watches {
        /// Sidecars of the plan.
        sidecars: usize,
        /// What they need.
        needed: usize,
        /// `fs.inotify.max_user_instances`.
        limit: usize,
    },
}

impl Explain for ConvergeError {
    fn code(&self) -> &'static str {
        match self {
            ConvergeError::NewerState { .. } => "ENM-D001",
            ConvergeError::UnreadableState { .. } => "ENM-D002",
            ConvergeError::Locked { .. } => "ENM-D003",
            ConvergeError::NotLive { .. } => "ENM-D004",
            ConvergeError::NotInMesh { .. } => "ENM-X030",
            ConvergeError::NoDaemon { .. } => "ENM-D005",
            ConvergeError::BadAnswer { .. } => "ENM-D006",
            ConvergeError::NoService { .. } => "ENM-D007",
            ConvergeError::NotAsked { .. } => "ENM-D017",
            ConvergeError::NotLoggedIn { .. } => "ENM-D030",
            ConvergeError::StillThere { .. } => "ENM-D031",
            ConvergeError::Watch { .. } => "ENM-D009",
            ConvergeError::Listen { .. } => "ENM-D010",
            ConvergeError::ForeignRedirector { .. } => "ENM-D012",
            ConvergeError::Stranger { .. } => "ENM-D013",
            ConvergeError::Capabilities { .. } => "ENM-D014",
            ConvergeError::Watches { .. } => "ENM-D015",
            ConvergeError::NoFlow { .. } => "ENM-D016",
            ConvergeError::NoReports { .. } => "ENM-D035",
            ConvergeError::Differs { .. } => "ENM-D070",
        }
    }

    fn hint(&self) -> String {
        match self {
            ConvergeError::NewerState { .. } => {
                "install the enmesh version that wrote it, or move the file away to start with new port numbers".to_owned()
            }
            ConvergeError::UnreadableState { .. } => {
                "port numbers are given out anew; compare with the kept file if other hosts name this one's ports".to_owned()
            }
            ConvergeError::Locked { .. } => {
                "the daemon is running: use `enmesh apply` and `enmesh down`, which talk to it, or stop it first".to_owned()
            }
            ConvergeError::NotLive { id, .. } => format!(
                "its log says why: `journalctl -u 'envoy@{id}.service' -n 50`, or the daemon's own output where there is no systemd; its rules stay closed meanwhile"
            ),
            ConvergeError::NotInMesh { .. } => {
                "`enmesh doctor` says what is wrong and what to do; mesh destinations stay refused meanwhile".to_owned()
            }
            ConvergeError::NoDaemon { .. } => "start it: `systemctl start enmesh`, or `enmesh run` where there is no systemd".to_owned(),
            ConvergeError::BadAnswer { .. } => {
                "the daemon may be of another version: restart it (`systemctl restart enmesh`; sidecars and connections live on)".to_owned()
            }
            ConvergeError::NoService { .. } => "`enmesh status` lists the services of this host".to_owned(),
            ConvergeError::NoReports { .. } => {
                "reports go to Consul: set `registration` to `agent` or `catalog`, with a control plane other than `static`".to_owned()
            }
            ConvergeError::NotAsked { .. } => "wait for it to answer; `enmesh status` shows what is missing".to_owned(),
            ConvergeError::NotLoggedIn { .. } => {
                "start the daemon, or run `enmesh apply`: both log in, and leave the session for those who look".to_owned()
            }
            ConvergeError::StillThere { .. } => {
                "see that the agent reaches its servers, and run `enmesh down` again; the session ends by itself otherwise".to_owned()
            }
            ConvergeError::Watch { .. } => {
                "raise fs.inotify.max_user_watches or fs.inotify.max_user_instances if they are used up".to_owned()
            }
            ConvergeError::Listen { socket, .. } => {
                format!("check that the folder of {} exists and can be written", socket.display())
            }
            ConvergeError::ForeignRedirector { removal, .. } => {
                format!("two redirectors take each other's traffic; `enmesh migrate` takes over from it; or remove it by hand: {removal}")
            }
            ConvergeError::Capabilities { .. } => {
                "run it as root, or give the container these capabilities; `enmesh check`, `render` and `status` need none".to_owned()
            }
            ConvergeError::NoFlow { instead, .. } => (*instead).to_owned(),
            ConvergeError::Differs { .. } => {
                "`enmesh plan` shows whether the rules in force are those of the plan, and `enmesh apply` makes them so; \
                 where they are, rules of others have a say: see `others`"
                    .to_owned()
            }
            ConvergeError::Watches { needed, .. } => format!(
                "Envoy aborts when it gets none; raise the limit: `sysctl fs.inotify.max_user_instances={}`",
                needed.next_power_of_two().max(1024)
            ),
            ConvergeError::Stranger { pid, .. } => format!(
                "run it under a user of its own (`ps -o args= -p {pid}` shows what it is), or give the sidecars another with [envoy] user"
            ),
        }
    }

    fn class(&self) -> Class {
        match self {
            ConvergeError::NewerState { .. }
            | ConvergeError::NoService { .. }
            | ConvergeError::NoReports { .. } => Class::Config,
            ConvergeError::Locked { .. }
            | ConvergeError::NotAsked { .. }
            | ConvergeError::NotLoggedIn { .. }
            | ConvergeError::NoDaemon { .. } => Class::Unavailable,
            ConvergeError::Capabilities { .. } => Class::Privilege,
            ConvergeError::NoFlow { .. } => Class::Usage,
            _ => Class::Failed,
        }
    }
}
