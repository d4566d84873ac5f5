//! Everything that can be wrong with a host, looked at in the order in which one thing follows from the other.
//!
//! Nothing is touched. Most of it other rooms know already and say with codes of their own; here it is asked for and sorted.

use std::collections::BTreeSet;
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::engine::{Engine, Intent, Purpose, look};
use super::state::STATE_FILE;
use super::{preflight, ssh};
use crate::base::{Class, Explain, Fault, Root};
use crate::config::value::ServiceId;
use crate::envoy;
use crate::netns::Namespace;
use crate::plan::Plan;
use crate::redirect::{self, Desired};

/// How long somebody has to answer who says that names are resolved here.
const ANSWER: Duration = Duration::from_secs(1);

/// By how much a clock may differ from files that were written by it.
const SLACK: Duration = Duration::from_secs(60);

/// What systemd-timesyncd does once the clock is right, and where.
const TIMESYNC: &str = "/run/systemd/timesync";

/// A thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Examined {
    /// What.
    pub area: Area,
    /// What was found that is as it should be.
    pub note: String,
    /// What is wrong.
    pub faults: Vec<Fault>,
    /// What may become wrong.
    pub warnings: Vec<Fault>,
}

/// What is looked at, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Area {
    /// Files.
    Configuration,
    /// Users that files name, and who runs as the sidecars' one.
    Users,
    /// The daemon, the service manager, and sidecars as its units.
    Units,
    /// The program, and what it took up.
    Envoy,
    /// The control plane, whichever it is.
    Consul,
    /// The kernel's capabilities and rules.
    Rules,
    /// DNS.
    Names,
    /// The clock.
    Time,
    /// SSH sessions, which are never cut.
    Ssh,
}

impl Area {
    /// All of them.
    pub const ALL: [Area; 9] = [
        Area::Configuration,
        Area::Users,
        Area::Units,
        Area::Envoy,
        Area::Consul,
        Area::Rules,
        Area::Names,
        Area::Time,
        Area::Ssh,
    ];

    /// For a person.
    pub fn word(self) -> &'static str {
        match self {
            Area::Configuration => "configuration",
            Area::Users => "users",
            Area::Units => "units",
            Area::Envoy => "Envoy",
            Area::Consul => "control plane",
            Area::Rules => "rules",
            Area::Names => "names",
            Area::Time => "time",
            Area::Ssh => "SSH",
        }
    }

    /// Where a fault belongs that another room has found.
    fn of(code: &str) -> Area {
        let code = code.trim_start_matches("ENM-");
        match code {
            "P001" | "P002" | "P005" | "P006" | "D013" => Area::Users,
            "P003" | "D003" | "D004" | "D005" | "D006" | "D014" => Area::Units,
            "P030" | "P031" => Area::Ssh,
            "D012" | "D051" | "D071" => Area::Rules,
            "M038" | "M040" | "M041" | "M042" | "M043" | "D072" => Area::Names,
            "D015" => Area::Envoy,
            "D017" | "D030" | "D031" => Area::Consul,
            "D073" | "D074" => Area::Time,
            _ => match code.as_bytes().first() {
                Some(b'S' | b'V') => Area::Units,
                Some(b'E') => Area::Envoy,
                Some(b'K' | b'M' | b'H') => Area::Consul,
                Some(b'R' | b'N') => Area::Rules,
                _ => Area::Configuration,
            },
        }
    }
}

/// What the daemon says of itself.
#[derive(Debug, Clone, Default)]
pub struct Heard {
    /// Services whose sidecar is live.
    pub live: BTreeSet<ServiceId>,
    /// What is wrong.
    pub faults: Vec<Fault>,
    /// What is worth knowing.
    pub warnings: Vec<Fault>,
}

/// An error that only looking finds.
#[derive(Debug, thiserror::Error)]
pub enum DoctorError {
    /// Rules are not there, or are others.
    #[error("the rules in the kernel are not those of the plan: {}", what.join("; "))]
    Rules {
        /// How they differ.
        what: Vec<String>,
    },
    /// Queries go where nobody answers.
    #[error("nobody answers for the names of the mesh at {to}")]
    Mute {
        /// Where.
        to: SocketAddr,
    },
    /// The clock was set back, or starts anew with each boot.
    #[error("the clock is behind: {} was written {behind:?} from now", file.display())]
    Behind {
        /// The file.
        file: PathBuf,
        /// By how much.
        behind: Duration,
    },
    /// Nobody has set the clock yet (a warning).
    #[error("the clock is not synchronised yet")]
    NotSynchronised,
}

impl Explain for DoctorError {
    fn code(&self) -> &'static str {
        match self {
            DoctorError::Rules { .. } => "ENM-D071",
            DoctorError::Mute { .. } => "ENM-D072",
            DoctorError::Behind { .. } => "ENM-D073",
            DoctorError::NotSynchronised => "ENM-D074",
        }
    }

    fn hint(&self) -> String {
        match self {
            DoctorError::Rules { .. } => "`enmesh apply` sets them; `enmesh plan` shows everything that it would change",
            DoctorError::Mute { .. } => {
                "the daemon answers there: `systemctl restart enmesh`, and see whether somebody else has the port \
                 (`ss -lunp`); names are asked for elsewhere meanwhile"
            }
            DoctorError::Behind { .. } => {
                "certificates are not valid yet by a clock that is behind: set it (`timedatectl`), and keep it by NTP"
            }
            DoctorError::NotSynchronised => "`timedatectl timesync-status` says with whom; certificates need a right clock",
        }
        .to_owned()
    }

    fn class(&self) -> Class {
        Class::Failed
    }
}

/// Looks at everything. `daemon` is what a running one said, or why it could not be asked, which is wrong only where there is
/// something for it to do.
pub async fn examine(root: &Root, daemon: Result<Heard, Fault>) -> Vec<Examined> {
    let mut found = Found::default();
    let (heard, unheard) = match daemon {
        Ok(heard) => (Some(heard), None),
        Err(fault) => (None, Some(fault)),
    };
    if let Some(heard) = &heard {
        found.faults.extend(heard.faults.clone());
        found.warnings.extend(heard.warnings.clone());
    }
    let engine = Engine::open(root.clone(), Purpose::Look).await;
    let (mut engine, opened) = match engine {
        Ok((engine, faults)) => (Some(engine), faults),
        Err(fault) => (None, vec![fault]),
    };
    found.faults.extend(opened);
    let intent = match &mut engine {
        Some(engine) => engine.intend().await,
        None => look(root).await,
    };
    let mut needs_rules = true;
    match intent {
        Ok(intent) => {
            // Where a container may set none, the plan has said what that means.
            let may = engine.as_ref().is_none_or(|engine| engine.adapters.redirects);
            needs_rules = may || !intent.plan.redirect.is_empty();
            found.faults.extend(unheard.filter(|_| !intent.plan.services.is_empty()));
            found.of_intent(root, &intent, engine.as_ref(), heard.as_ref());
        }
        Err(fault) => found.faults.push(fault),
    }
    if needs_rules {
        found.of_kernel();
    }
    found.of_time(root);
    found.sorted()
}

#[derive(Default)]
struct Found {
    faults: Vec<Fault>,
    warnings: Vec<Fault>,
    notes: Vec<(Area, String)>,
}

impl Found {
    fn note(&mut self, area: Area, note: impl Into<String>) {
        self.notes.push((area, note.into()));
    }

    fn of_intent(&mut self, root: &Root, intent: &Intent, engine: Option<&Engine>, heard: Option<&Heard>) {
        let Intent { config, plan, .. } = intent;
        self.faults.extend(intent.faults());
        self.warnings.extend(intent.warnings());
        let (files, services) = (config.sources.len(), plan.services.len());
        self.note(Area::Configuration, format!("{files} file(s), {services} service(s)"));
        let there = plan.namespaces.values().filter_map(|own| Namespace::by_name(&own.name).ok());
        let inodes: Vec<u64> = there.map(|namespace| namespace.identity().inode).collect();
        match preflight::check(plan, false, &inodes) {
            Ok(reasons) => self.faults.extend(reasons),
            Err(fault) => self.faults.push(fault),
        }
        let users: BTreeSet<u32> = plan.services.values().map(|service| service.sidecar.uid).collect();
        if let Some(uid) = users.first() {
            self.note(Area::Users, format!("sidecars run as uid {uid}, and nobody else does"));
        }
        if let Some([_, units, control_plane]) = engine.map(Engine::adapters) {
            self.note(Area::Units, format!("sidecars run by {units}"));
            self.note(Area::Consul, control_plane);
        }
        self.of_envoy(&config.host.envoy.path);
        if let Some(heard) = heard {
            self.note(Area::Units, format!("{} of {services} live", heard.live.len()));
            if let Some(engine) = engine {
                self.of_rules(plan, engine, &heard.live);
            }
            self.of_names(plan);
        }
        let sessions = ssh::sessions(root).len();
        self.note(Area::Ssh, format!("{sessions} session(s), on no port that is captured"));
    }

    fn of_envoy(&mut self, path: &Path) {
        let programs = envoy::Programs::default();
        match programs.find(path).and_then(|program| Ok((programs.version(&program)?, program))) {
            Ok((version, program)) => self.note(Area::Envoy, format!("{version} at {}", program.display())),
            Err(fault) => self.faults.push(fault),
        }
    }

    fn of_rules(&mut self, plan: &Plan, engine: &Engine, live: &BTreeSet<ServiceId>) {
        let desired = Desired { policy: plan.redirect.clone(), live: live.clone() };
        match engine.adapters.firewall.observe(&desired) {
            Ok(seen) if seen.differences.is_empty() => {
                let driver = engine.adapters.firewall.name();
                self.note(Area::Rules, format!("{driver}, as the plan says"));
            }
            Ok(seen) => {
                let what = seen.differences.into_iter().take(3).collect();
                self.faults.push(DoctorError::Rules { what }.into());
            }
            Err(fault) => self.faults.push(fault),
        }
    }

    fn of_names(&mut self, plan: &Plan) {
        let Some(dns) = &plan.redirect.dns else { return };
        match answers(dns.to) {
            true => self.note(Area::Names, format!("answered at {}", dns.to)),
            false => self.faults.push(DoctorError::Mute { to: dns.to }.into()),
        }
    }

    fn of_kernel(&mut self) {
        let can = redirect::capabilities();
        self.faults.extend(can.faults());
        self.warnings.extend(can.warnings());
        self.note(Area::Rules, format!("Linux {}", can.kernel));
    }

    fn of_time(&mut self, root: &Root) {
        let file = root.join(STATE_FILE);
        let written = std::fs::metadata(&file).and_then(|meta| meta.modified());
        let ahead = |at: SystemTime| at.duration_since(SystemTime::now()).ok();
        if let Some(behind) = written.ok().and_then(ahead).filter(|behind| *behind > SLACK) {
            let behind = Duration::from_secs(behind.as_secs());
            self.faults.push(DoctorError::Behind { file, behind }.into());
        }
        let timesync = root.join(TIMESYNC);
        if timesync.is_dir() && !timesync.join("synchronized").exists() {
            self.warnings.push(DoctorError::NotSynchronised.into());
        }
    }

    /// Each in its place, and once: the daemon says much of what is found here as well.
    fn sorted(self) -> Vec<Examined> {
        let once = |faults: &[Fault], area: Area| {
            let mut kept: Vec<Fault> = Vec::new();
            for fault in faults.iter().filter(|fault| Area::of(fault.code) == area) {
                let same = |other: &Fault| (other.code, &other.message) == (fault.code, &fault.message);
                if !kept.iter().any(same) {
                    kept.push(fault.clone());
                }
            }
            kept
        };
        let examined = |area: Area| {
            let (faults, warnings) = (once(&self.faults, area), once(&self.warnings, area));
            let notes: Vec<&str> =
                self.notes.iter().filter(|(of, _)| *of == area).map(|(_, note)| note.as_str()).collect();
            // What is wrong would contradict what is right.
            let note = if faults.is_empty() { notes.join("; ") } else { String::new() };
            Examined { area, note, faults, warnings }
        };
        Area::ALL.into_iter().map(examined).collect()
    }
}

/// Whether somebody at `to` answers a query about a name of the mesh, whatever it says.
fn answers(to: SocketAddr) -> bool {
    const ID: [u8; 2] = [0x45, 0x4d];
    // Recursion wanted; one question: address records of enmesh.virtual.consul.
    let mut query = ID.to_vec();
    query.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    query.extend(b"\x06enmesh\x07virtual\x06consul\0\0\x01\0\x01");
    let ask = || -> std::io::Result<bool> {
        let unspecified = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(unspecified)?;
        socket.set_read_timeout(Some(ANSWER))?;
        socket.connect(to)?;
        socket.send(&query)?;
        let mut answer = [0; 512];
        let length = socket.recv(&mut answer)?;
        Ok(length > ID.len() && answer.starts_with(&ID))
    };
    ask().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_any_kind_is_one_and_silence_is_none() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = server.local_addr().unwrap();
        let answered = std::thread::scope(|scope| {
            let asked = scope.spawn(move || answers(to));
            let mut query = [0; 512];
            let (length, from) = server.recv_from(&mut query).unwrap();
            // As it came, which is enough to be told from silence.
            server.send_to(&query[..length], from).unwrap();
            asked.join().unwrap()
        });
        assert!(answered);
        assert!(!answers(to), "nobody reads what comes now");
        drop(server);
        assert!(!answers(to), "nobody listens");
    }

    #[test]
    fn every_finding_has_its_place_and_is_said_once() {
        let fault = |code, message: &str| Fault {
            code,
            message: message.to_owned(),
            hint: String::new(),
            class: Class::Failed,
            place: None,
            service: None,
        };
        let mut found = Found::default();
        found.note(Area::Rules, "fine");
        found.note(Area::Time, "fine");
        for _ in 0..2 {
            found.faults.extend([fault("ENM-D012", "a"), fault("ENM-K003", "b"), fault("ENM-C005", "c")]);
        }
        found.faults.push(fault("ENM-D012", "another"));
        let sorted = found.sorted();
        let counts: Vec<(Area, usize)> =
            sorted.iter().map(|one| (one.area, one.faults.len())).filter(|(_, count)| *count > 0).collect();
        assert_eq!(counts, [(Area::Configuration, 1), (Area::Consul, 1), (Area::Rules, 2)]);
        let note = |area| sorted.iter().find(|one| one.area == area).map(|one| one.note.as_str());
        assert_eq!((note(Area::Rules), note(Area::Time)), (Some(""), Some("fine")));
    }
}
