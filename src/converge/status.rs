//! What `enmesh status` and the metrics show.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::address::AddressStatus;
use super::engine::Engine;
use super::health::{self, CheckView};
use super::membership::{ConsulStatus, Registered};
use super::sidecar::Phase;
use crate::base::Fault;
use crate::config::{CheckStatus, Profile};
use crate::envoy::Stream;
use crate::health::States;
use crate::plan::{Generation, NamespacePlan};
use crate::redirect::DriftEvent;
use crate::supervise::privilege::Privilege;

/// The state of one host. The shape is stable: fields are only ever added.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Status {
    /// enmesh's version.
    pub version: &'static str,
    /// Whether every enabled service's sidecar is live and nothing is wrong with the host.
    pub ready: bool,
    /// The generation in force.
    pub generation: Option<Generation>,
    /// The driver that programs the redirection.
    pub driver: &'static str,
    /// Who runs the sidecars.
    pub units: &'static str,
    /// Who drives Envoy.
    pub control_plane: &'static str,
    /// What kind of host this is, as it was configured or found.
    pub profile: Profile,
    /// What a container kept of the capabilities that it was started with, and what for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub privileges: Vec<Privilege>,
    /// What is lost because nothing can be redirected here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_redirected: Option<&'static str>,
    /// Whether the daemon is on its way out.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub leaving: bool,
    /// Consul, where it has a part in this.
    pub consul: Option<ConsulStatus>,
    /// At which address others reach this host, and who says so.
    pub address: AddressStatus,
    /// The mesh's trust domain.
    pub trust_domain: String,
    /// The services, by id.
    pub services: BTreeMap<String, ServiceStatus>,
    /// The checks that enmesh runs, as they are whenever they are looked at.
    #[serde(skip)]
    checks: Option<States>,
    /// What is wrong now.
    pub faults: Vec<Fault>,
    /// What a person should know.
    pub warnings: Vec<Fault>,
    /// How often the host converged since the daemon started.
    pub converged_count: u64,
    /// When it did last, in seconds since 1970.
    pub converged_at: u64,
    /// Which files it read then, see [`crate::config::stamp`]; `None` where they could not be looked at.
    pub configuration: Option<String>,
    /// How often rules that somebody changed were set again since the daemon started.
    pub rules_repaired: u64,
    /// The last time.
    pub last_repair: Option<Repair>,
    /// The change that waits for `enmesh confirm`.
    pub pending: Option<PendingStatus>,
}

/// A change that is taken back unless somebody confirms it.
#[derive(Debug, Clone, Serialize)]
pub struct PendingStatus {
    /// When, in seconds since 1970.
    pub deadline: u64,
}

/// Rules that somebody changed and that were set again.
#[derive(Debug, Clone, Serialize)]
pub struct Repair {
    /// When, in seconds since 1970.
    pub at: u64,
    /// What was done to them, a line each.
    pub what: Vec<String>,
    /// Who did it, where the kernel says so.
    pub by: Option<String>,
    /// Whether it came so often that the repair held back.
    pub contested: bool,
}

/// The state of one service.
#[derive(Debug, Clone, Serialize)]
pub struct ServiceStatus {
    /// Its name in the mesh.
    pub name: String,
    /// Where its sidecar is in its life.
    pub phase: Phase,
    /// Its sidecar's process.
    pub pid: Option<u32>,
    /// How often the sidecar was started again by itself.
    pub restarts: u32,
    /// The outbound listener's port.
    pub outbound_port: Option<u16>,
    /// The public listener's port.
    pub inbound_port: Option<u16>,
    /// The identity in its certificate.
    pub identity: String,
    /// How its registration in Consul is; `None` where there is none to be.
    pub registration: Option<Registered>,
    /// Its checks, by their ids, where enmesh runs them. They say how the app is, and have no part in
    /// whether this host is ready.
    pub checks: BTreeMap<String, CheckView>,
    /// The network namespace that it has for itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<NamespaceStatus>,
    /// Its virtual IPs.
    pub virtual_ips: Vec<std::net::IpAddr>,
    /// Its sidecar's stream to Consul, where that drives it.
    pub stream: Option<Stream>,
    /// When its certificate ends, in seconds since 1970.
    pub certificate_expires: Option<u64>,
    /// Its last error.
    pub fault: Option<Fault>,
}

/// A reason to send nobody to this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unready {
    /// The service that it is about; the host, where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// The reason.
    pub reason: String,
}

impl ServiceStatus {
    /// Why nobody should be sent to it: its sidecar, its registration, and its checks, in this order.
    fn unready(&self) -> Option<String> {
        if self.phase != Phase::Live {
            let fault = self.fault.as_ref().map(ToString::to_string);
            return Some(fault.unwrap_or_else(|| "its sidecar is not live".to_owned()));
        }
        if self.registration.as_ref().is_some_and(|registration| !registration.done) {
            return Some("Consul does not have it as it should be".to_owned());
        }
        let critical = |check: &&CheckView| check.status == CheckStatus::Critical;
        let check = self.checks.values().find(critical)?;
        Some(format!("check `{}` is critical: {}", check.name, check.output))
    }
}

/// A network namespace of one service.
#[derive(Debug, Clone, Serialize)]
pub struct NamespaceStatus {
    /// Its name below `/run/netns`.
    pub name: String,
    /// The address in it.
    pub address: std::net::Ipv4Addr,
    /// The host's link to it.
    pub link: String,
}

impl From<&NamespacePlan> for NamespaceStatus {
    fn from(own: &NamespacePlan) -> Self {
        NamespaceStatus { name: own.name.clone(), address: own.inside(), link: own.link() }
    }
}

impl Status {
    /// Takes over what the engine knows.
    pub fn update(&mut self, engine: &Engine) {
        self.version = env!("CARGO_PKG_VERSION");
        [self.driver, self.units, self.control_plane] = engine.adapters();
        self.profile = engine.profile();
        self.not_redirected = engine.not_redirected();
        self.consul = engine.consul();
        self.address = engine.address();
        self.configuration = engine.configuration().map(str::to_owned);
        self.pending = engine
            .pending()
            .map(|until| PendingStatus { deadline: now() + until.left().as_millis().div_ceil(1000) as u64 });
        let plan = engine.plan_in_force();
        self.generation = plan.map(|plan| plan.generation.clone());
        self.trust_domain = plan.map(|plan| plan.mesh.trust_domain.clone()).unwrap_or_default();
        self.services = plan
            .into_iter()
            .flat_map(|plan| plan.services.values().map(move |service| (plan, service)))
            .map(|(plan, service)| {
                let sidecar = engine.sidecars().get(&service.id).cloned().unwrap_or_default();
                let entry = plan.mesh.services.get(&service.name);
                let status = ServiceStatus {
                    name: service.name.to_string(),
                    phase: sidecar.phase,
                    pid: sidecar.pid,
                    restarts: sidecar.restarts,
                    outbound_port: service.sidecar.outbound_port,
                    inbound_port: service.sidecar.inbound_port,
                    identity: service.identity.to_string(),
                    virtual_ips: entry.map(|e| e.virtual_ips.iter().copied().collect()).unwrap_or_default(),
                    registration: engine.registered(&service.id).cloned(),
                    checks: BTreeMap::new(),
                    namespace: plan.namespace_of(&service.id).map(NamespaceStatus::from),
                    stream: sidecar.stream,
                    certificate_expires: sidecar.certificate_expires,
                    fault: sidecar.fault,
                };
                (service.id.to_string(), status)
            })
            .collect();
        self.checks = engine.check_states();
        self.look_at_checks();
        self.judge();
    }

    /// Takes over how the checks are at this moment.
    pub fn look_at_checks(&mut self) {
        let mut views = self.checks.as_ref().map(health::views).unwrap_or_default();
        for (id, service) in &mut self.services {
            service.checks = id.parse().ok().and_then(|id| views.remove(&id)).unwrap_or_default();
        }
    }

    /// Records that the host converged, and with what faults.
    pub fn converged(&mut self, faults: Vec<Fault>, warnings: Vec<Fault>) {
        self.converged_count += 1;
        self.converged_at = now();
        self.faults = faults;
        self.warnings = warnings;
        self.judge();
    }

    /// Forgets what was said of sidecars that did not come up and are live by now.
    pub fn forget_recovered(&mut self) {
        let live = |id: &str| self.services.get(id).is_some_and(|service| service.phase == Phase::Live);
        // A unit that would not start (S, V) or was not live in time (D004). Others stay until the
        // host converges without them.
        let of_start = |fault: &Fault| {
            fault.code == "ENM-D004" || fault.code.starts_with("ENM-S") || fault.code.starts_with("ENM-V")
        };
        let recovered = |fault: &Fault| of_start(fault) && fault.service.as_deref().is_some_and(live);
        let faults = self.faults.iter().filter(|fault| !recovered(fault)).cloned().collect();
        self.faults = faults;
        self.judge();
    }

    /// Records that rules were set again.
    pub fn repaired(&mut self, event: DriftEvent, contested: bool) {
        self.rules_repaired += 1;
        self.last_repair = Some(Repair { at: now(), what: event.what, by: event.by, contested });
    }

    /// Why nobody should be sent here; nothing when somebody may.
    ///
    /// More than `ready`, which says how enmesh is: an app whose checks are critical is not to be used, whoever asks.
    /// A fault that leaves all services working, such as a file that is in error, is no reason.
    pub fn unready(&self) -> Vec<Unready> {
        let of_host = |reason: &str| vec![Unready { service: None, reason: reason.to_owned() }];
        if self.leaving {
            return of_host("the daemon is ending");
        }
        if self.converged_count == 0 {
            return of_host("the daemon has just started");
        }
        if self.services.is_empty() {
            let fault = self.faults.first().map(ToString::to_string);
            return of_host(&fault.unwrap_or_else(|| "there is no service".to_owned()));
        }
        let of_service = |(id, service): (&String, &ServiceStatus)| {
            let reason = service.unready()?;
            Some(Unready { service: Some(id.clone()), reason })
        };
        self.services.iter().filter_map(of_service).collect()
    }

    fn judge(&mut self) {
        let live = self.services.values().all(|service| service.phase == Phase::Live);
        self.ready = self.converged_count > 0 && live && self.faults.is_empty();
    }

    /// One line for `systemctl status`.
    pub fn line(&self) -> String {
        let dead: Vec<&str> = self
            .services
            .iter()
            .filter(|(_, service)| service.phase != Phase::Live)
            .map(|(id, _)| id.as_str())
            .collect();
        let live = self.services.len() - dead.len();
        let mut line = format!("{live} of {} sidecars live", self.services.len());
        if !dead.is_empty() {
            let _ = write!(line, "; not live: {}", dead.join(", "));
        }
        if let Some(fault) = self.faults.first() {
            let _ = write!(line, "; {} ({})", fault.code, fault.message);
        }
        line
    }

    /// The Prometheus text format, version 0.0.4.
    pub fn metrics(&self) -> String {
        let mut text = String::new();
        let mut metric = |name: &str, kind: &str, help: &str, samples: &[(String, u64)]| {
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
            for (labels, value) in samples {
                let _ = writeln!(text, "{name}{labels} {value}");
            }
        };
        let per_service = |value: &dyn Fn(&ServiceStatus) -> u64| -> Vec<(String, u64)> {
            self.services.iter().map(|(id, s)| (format!("{{service=\"{id}\"}}"), value(s))).collect()
        };
        let one = |value: u64| vec![(String::new(), value)];
        metric("enmesh_ready", "gauge", "1 when every sidecar is live.", &one(u64::from(self.ready)));
        metric(
            "enmesh_generation",
            "gauge",
            "Generation in force.",
            &one(self.generation.as_ref().map_or(0, |g| g.number)),
        );
        metric("enmesh_converged_total", "counter", "Times the host converged.", &one(self.converged_count));
        metric(
            "enmesh_rules_repaired_total",
            "counter",
            "Times rules that somebody else changed were set again.",
            &one(self.rules_repaired),
        );
        if let Some(consul) = &self.consul {
            let reached = u64::from(consul.fault.is_none() && consul.since > 0);
            metric("enmesh_consul_reached", "gauge", "1 while Consul answers.", &one(reached));
            metric(
                "enmesh_service_registered",
                "gauge",
                "1 when Consul has the service as it should be.",
                &per_service(&|s| u64::from(s.registration.as_ref().is_some_and(|it| it.done))),
            );
        }
        metric("enmesh_faults", "gauge", "Faults in force.", &one(self.faults.len() as u64));
        metric(
            "enmesh_sidecar_live",
            "gauge",
            "1 when the sidecar is live.",
            &per_service(&|s| u64::from(s.phase == Phase::Live)),
        );
        metric(
            "enmesh_sidecar_restarts_total",
            "counter",
            "Times the sidecar was started again.",
            &per_service(&|s| u64::from(s.restarts)),
        );
        let checks: Vec<(String, u64)> = self
            .services
            .iter()
            .flat_map(|(id, service)| service.checks.iter().map(move |(check, view)| (id, check, view)))
            .map(|(id, check, view)| (format!("{{service=\"{id}\",check=\"{check}\"}}"), view.status as u64))
            .collect();
        if !checks.is_empty() {
            metric(
                "enmesh_check_status",
                "gauge",
                "How a check that enmesh runs is: 0 passing, 1 warning, 2 critical.",
                &checks,
            );
        }
        metric(
            "enmesh_certificate_expires_seconds",
            "gauge",
            "When the certificate ends, in seconds since 1970.",
            &per_service(&|s| s.certificate_expires.unwrap_or(0)),
        );
        text
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
