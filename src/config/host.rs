//! The host file, `/etc/enmesh/enmesh.toml`, and its drop-ins.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use ipnet::Ipv4Net;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::address::AddressConfig;
use super::platform::{IdentityConfig, PlatformConfig, ReapConfig};
use super::value::{PortRange, ServiceName, Span, UserSpec};

/// The host's settings. Most hosts need no file at all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HostConfig {
    /// Who drives Envoy.
    pub control_plane: ControlPlane,
    /// How services get into Consul.
    pub registration: RegistrationMode,
    /// What programs the redirection.
    pub driver: Driver,
    /// What kind of host this is.
    pub profile: Profile,
    /// Where virtual IPs come from when Consul gives none.
    #[schemars(with = "String")]
    pub virtual_ips: Ipv4Net,
    /// How to reach Consul.
    pub consul: ConsulConfig,
    /// The sidecars.
    pub envoy: EnvoyConfig,
    /// Where sidecar ports come from.
    pub ports: PortsConfig,
    /// The control plane `static`.
    #[serde(rename = "static")]
    pub static_mesh: StaticConfig,
    /// The resolver for `*.virtual.consul`.
    pub dns: DnsConfig,
    /// Network namespaces of services (`scope = "netns:NAME"`).
    pub namespaces: NamespacesConfig,
    /// At which address others reach this host.
    pub address: AddressConfig,
    /// The platform that runs this host, where it is a container group.
    pub platform: PlatformConfig,
    /// What `enmesh reap` does.
    pub reap: ReapConfig,
    /// What the end of the daemon means.
    pub stop: StopConfig,
    /// The endpoint that says whether this host is ready.
    pub readiness: ReadinessConfig,
    /// Where the addresses of explicit upstreams are written, for an app to source; `/run/enmesh/upstreams.env` unless
    /// set, where nothing can be redirected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstreams_file: Option<PathBuf>,
}

impl Default for HostConfig {
    #[expect(clippy::expect_used, reason = "the literal is a network")]
    fn default() -> Self {
        HostConfig {
            control_plane: ControlPlane::default(),
            registration: RegistrationMode::default(),
            driver: Driver::default(),
            profile: Profile::default(),
            virtual_ips: "240.0.0.0/4".parse().expect("a network"),
            consul: ConsulConfig::default(),
            envoy: EnvoyConfig::default(),
            ports: PortsConfig::default(),
            static_mesh: StaticConfig::default(),
            dns: DnsConfig::default(),
            namespaces: NamespacesConfig::default(),
            address: AddressConfig::default(),
            platform: PlatformConfig::default(),
            reap: ReapConfig::default(),
            stop: StopConfig::default(),
            readiness: ReadinessConfig::default(),
            upstreams_file: None,
        }
    }
}

impl HostConfig {
    /// Whether the end of the daemon is for good, where systemd runs this host or not.
    pub fn leaves(&self, systemd: bool) -> bool {
        match self.stop.registration {
            AtStop::Auto => !systemd,
            AtStop::Leave => true,
            AtStop::Keep => false,
        }
    }

    /// Defaults that follow from what kind of host this is. Somebody who wants the general ones all the same cannot
    /// say so: they would not work there.
    pub fn settle(&mut self, systemd: bool) {
        let general = (EnvoyConfig::default(), PortsConfig::default());
        if self.leaves(systemd) && self.envoy.drain == general.0.drain {
            // A container has ten seconds between the two signals unless somebody asks for more, and Consul is told
            // at the end of them.
            self.envoy.drain = Span::seconds(5);
        }
        if self.profile == Profile::Aci {
            let own = PortsConfig::aci();
            if self.ports.outbound == general.1.outbound {
                self.ports.outbound = own.outbound;
            }
            if self.ports.inbound == general.1.inbound {
                self.ports.inbound = own.inbound;
            }
            self.readiness.listen.get_or_insert(SocketAddr::from(([0, 0, 0, 0], 15000)));
        }
    }
}

/// Who drives Envoy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ControlPlane {
    /// A peers file means `static`; otherwise Consul is asked.
    #[default]
    Auto,
    /// Consul's own xDS.
    Consul,
    /// Files made from Consul's HTTP API.
    Catalog,
    /// Files made from the peers file and a local CA.
    Static,
}

/// How services get into Consul.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RegistrationMode {
    /// The local agent's HTTP API.
    #[default]
    Agent,
    /// The catalog, agentless.
    Catalog,
    /// `/etc/consul.d/service-registration.json` and a reload of the agent.
    File,
    /// Not at all.
    None,
}

/// What programs the redirection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// nftables where the host has it, else iptables.
    #[default]
    Auto,
    /// nftables.
    Nftables,
    /// iptables.
    Iptables,
}

/// What kind of host this is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// Found by looking: a running systemd means `host`.
    #[default]
    Auto,
    /// A machine with systemd.
    Host,
    /// A container or namespace without systemd.
    Container,
    /// Azure Container Instances.
    Aci,
}

/// How to reach Consul. The `CONSUL_*` environment variables fill what is not set.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ConsulConfig {
    /// `http://`, `https://` or `unix://`; `http://127.0.0.1:8500` unless set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// File with the ACL token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// PEM file with the CA of the API.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// Folder with CAs of the API, in PEM files of any name, in place of `ca_file`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_path: Option<PathBuf>,
    /// PEM file with the client certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cert_file: Option<PathBuf>,
    /// PEM file with its key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// Datacenter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub datacenter: Option<ServiceName>,
    /// Admin partition.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partition: Option<ServiceName>,
    /// Namespace, in Consul Enterprise: of the login, and of services that name none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<ServiceName>,
    /// The name that the API's certificate is for, where it is not that of the address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_server_name: Option<String>,
    /// Where Consul's xDS is (`http://`, `https://` or `unix://`); the agent is asked unless set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grpc_address: Option<String>,
    /// PEM file with the CA of xDS; that of the API unless set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grpc_ca_file: Option<PathBuf>,
    /// Consul's DNS; 127.0.0.1:8600 unless set.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub dns: Option<SocketAddr>,
    /// The catalog's node for services that are registered without an agent; the host's name with
    /// `-enmesh` unless set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Gets the ACL token by a login, rather than from a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub login: Option<LoginConfig>,
    /// Folder with config entries and intentions (`*.json`) that are kept in Consul.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config_entries: Option<PathBuf>,
    /// The user the agent runs as; its traffic is never captured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<UserSpec>,
}

/// A login at one of Consul's auth methods.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LoginConfig {
    /// The auth method, of type `jwt`.
    pub method: String,
    /// File with the bearer token; it is read anew for each login.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bearer_token_file: Option<PathBuf>,
    /// The managed identity whose token is the bearer token, in place of a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<IdentityConfig>,
    /// Goes into the token's description, where who cleans up finds it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub meta: BTreeMap<String, String>,
}

/// The sidecars.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EnvoyConfig {
    /// Envoy's program: a name, looked up in fixed system folders, or an absolute path.
    pub path: PathBuf,
    /// The user that sidecars run as; no application may.
    pub user: UserSpec,
    /// Time that connections get to end when a sidecar stops.
    pub drain: Span,
}

impl Default for EnvoyConfig {
    fn default() -> Self {
        EnvoyConfig {
            path: PathBuf::from("envoy"),
            user: UserSpec::Name("envoy".to_owned()),
            drain: Span::seconds(15),
        }
    }
}

/// Where sidecar ports come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PortsConfig {
    /// Outbound listeners, on loopback.
    pub outbound: PortRange,
    /// Public listeners, that other sidecars dial. Consul's own range by default.
    pub inbound: PortRange,
}

impl Default for PortsConfig {
    #[expect(clippy::expect_used, reason = "the literals are ranges")]
    fn default() -> Self {
        PortsConfig {
            outbound: "15001-15099".parse().expect("a range"),
            inbound: "21000-21255".parse().expect("a range"),
        }
    }
}

impl PortsConfig {
    /// In a container group of Azure, which reserves 20000 to 30000 for itself.
    #[expect(clippy::expect_used, reason = "the literals are ranges")]
    fn aci() -> Self {
        PortsConfig {
            outbound: "15001-15049".parse().expect("a range"),
            inbound: "15050-15099".parse().expect("a range"),
        }
    }
}

/// What the end of the daemon means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct StopConfig {
    /// Whether this host leaves Consul.
    pub registration: AtStop,
    /// Where it leaves: for so long at least its sidecars take connections after Consul was told that it leaves.
    pub grace: Span,
}

impl Default for StopConfig {
    fn default() -> Self {
        // Callers hear of it within a tenth of a second; some of them look every second.
        StopConfig { registration: AtStop::default(), grace: Span::seconds(2) }
    }
}

/// What becomes of registrations and of the login when the daemon is told to end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum AtStop {
    /// A container's end is for good, that of systemd's unit is not.
    #[default]
    Auto,
    /// Services are deregistered and the login ends.
    Leave,
    /// Both are there for the next start.
    Keep,
}

/// The endpoint that says whether this host is ready.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ReadinessConfig {
    /// Where it listens, `ADDRESS:PORT`; nowhere unless set, and at 0.0.0.0:15000 with the profile `aci`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub listen: Option<SocketAddr>,
}

/// The control plane `static`: a peers file and a local CA.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct StaticConfig {
    /// Who is out there.
    pub peers: PathBuf,
    /// Folder of the local CA: `root.pem` and, where leaves are signed on this host, `root.key`.
    /// Without the key, each service's leaf is read from `<service>.pem` and `<service>.key`.
    pub ca: PathBuf,
    /// How long a leaf certificate that this host signs is valid.
    pub leaf_ttl: Span,
}

impl Default for StaticConfig {
    fn default() -> Self {
        StaticConfig {
            peers: PathBuf::from("/etc/enmesh/peers.toml"),
            ca: PathBuf::from("/var/lib/enmesh/ca"),
            leaf_ttl: Span::seconds(72 * 3600),
        }
    }
}

/// The resolver for `*.virtual.consul`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DnsConfig {
    /// Where it listens, UDP and TCP; an address of 127.0.0.0/8.
    #[schemars(with = "String")]
    pub listen: SocketAddr,
}

impl Default for DnsConfig {
    fn default() -> Self {
        // 8653 beside Consul's 8600, so that both can run on one host.
        DnsConfig { listen: SocketAddr::from(([127, 0, 0, 1], 8653)) }
    }
}

/// Network namespaces of services.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NamespacesConfig {
    /// Where their addresses come from, four for each. Nobody beyond this host sees them; they must only
    /// be those of nobody that services speak to.
    #[schemars(with = "String")]
    pub pool: Ipv4Net,
}

impl Default for NamespacesConfig {
    #[expect(clippy::expect_used, reason = "the literal is a network")]
    fn default() -> Self {
        // Of the range for measurements (RFC 2544), which is in use neither on the Internet nor, unlike the
        // private ranges, by Docker, Podman, libvirt, Kubernetes or the networks of clouds.
        NamespacesConfig { pool: "198.18.0.0/16".parse().expect("a network") }
    }
}
