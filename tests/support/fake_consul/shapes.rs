//! What Consul tells a transparent sidecar: the listeners, clusters and endpoints of its golden files.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use enmesh::plan::Credentials;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, DiscoveryType, EdsClusterConfig, LbPolicy,
};
use envoy_types::pb::envoy::config::cluster::v3::{Cluster, OutlierDetection};
use envoy_types::pb::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use envoy_types::pb::envoy::config::core::v3::data_source::Specifier;
use envoy_types::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use envoy_types::pb::envoy::config::core::v3::{
    Address, AggregatedConfigSource, ApiVersion, CidrRange, ConfigSource, DataSource, SocketAddress,
    TrafficDirection, TransportSocket, address, transport_socket,
};
use envoy_types::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use envoy_types::pb::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints,
};
use envoy_types::pb::envoy::config::listener::v3::{
    Filter, FilterChain, FilterChainMatch, Listener, ListenerFilter, filter, listener_filter,
};
use envoy_types::pb::envoy::config::rbac::v3::principal::{Authenticated, Identifier};
use envoy_types::pb::envoy::config::rbac::v3::{Permission, Policy, Principal, Rbac as Rules, permission};
use envoy_types::pb::envoy::extensions::filters::listener::original_dst::v3::OriginalDst;
use envoy_types::pb::envoy::extensions::filters::network::rbac::v3::Rbac;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::ClusterSpecifier;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::common_tls_context::ValidationContextType;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::subject_alt_name_matcher::SanType;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, CommonTlsContext, DownstreamTlsContext, SubjectAltNameMatcher,
    TlsCertificate, UpstreamTlsContext,
};
use envoy_types::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use envoy_types::pb::envoy::r#type::matcher::v3::{RegexMatcher, StringMatcher};
use envoy_types::pb::google::protobuf::{Any, BoolValue, Duration, UInt32Value};
use envoy_types::util::pack_any;

/// A registered sidecar.
#[derive(Debug, Clone)]
pub struct FakeProxy {
    /// The port of the outbound listener, when it is transparent.
    pub outbound: Option<u16>,
    /// The public listener's port, and the app's.
    pub inbound: Option<(u16, u16)>,
    /// Its certificate.
    pub credentials: Credentials,
    /// Who may call it: an expression over SPIFFE ids.
    pub callers: Vec<String>,
    /// Whom it can call.
    pub upstreams: Vec<FakeUpstream>,
}

/// A service that a sidecar can call.
#[derive(Debug, Clone)]
pub struct FakeUpstream {
    /// The name of the cluster, and what is asked for in TLS.
    pub sni: String,
    /// Its identity.
    pub spiffe: String,
    /// Addresses that stand for it.
    pub virtual_ips: Vec<IpAddr>,
    /// Where its sidecars are.
    pub instances: Vec<SocketAddr>,
    /// A port on loopback that leads to it.
    pub local_port: Option<u16>,
}

impl FakeProxy {
    /// Everything of one kind, by name.
    pub fn resources(&self, kind: &str) -> BTreeMap<String, Any> {
        match kind.rsplit('.').next().unwrap() {
            "Cluster" => self.clusters().into_iter().map(|it| (it.name.clone(), pack_any(it))).collect(),
            "ClusterLoadAssignment" => {
                self.upstreams.iter().map(|it| (it.sni.clone(), pack_any(it.endpoints()))).collect()
            }
            "Listener" => self.listeners().into_iter().map(|it| (it.name.clone(), pack_any(it))).collect(),
            _ => BTreeMap::new(),
        }
    }

    fn clusters(&self) -> Vec<Cluster> {
        let mut clusters: Vec<Cluster> = self.upstreams.iter().map(|it| it.cluster(self)).collect();
        if self.outbound.is_some() {
            clusters.push(Cluster {
                name: "original-destination".to_owned(),
                cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::OriginalDst.into())),
                lb_policy: LbPolicy::ClusterProvided.into(),
                connect_timeout: Some(seconds(5)),
                ..Cluster::default()
            });
        }
        if let Some((_, app)) = self.inbound {
            let at = SocketAddr::from((Ipv4Addr::LOCALHOST, app));
            clusters.push(Cluster {
                name: "local_app".to_owned(),
                cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Static.into())),
                connect_timeout: Some(seconds(5)),
                load_assignment: Some(assignment("local_app", &[at])),
                ..Cluster::default()
            });
        }
        clusters
    }

    fn listeners(&self) -> Vec<Listener> {
        let mut listeners = Vec::new();
        if let Some(port) = self.outbound {
            listeners.push(self.outbound(port));
        }
        if let Some((port, _)) = self.inbound {
            listeners.push(self.public(port));
        }
        for upstream in &self.upstreams {
            if let Some(port) = upstream.local_port {
                let chain = FilterChain { filters: vec![upstream.proxy()], ..FilterChain::default() };
                let service = upstream.sni.split('.').next().unwrap();
                listeners.push(listener(
                    service,
                    Ipv4Addr::LOCALHOST,
                    port,
                    TrafficDirection::Outbound,
                    chain,
                ));
            }
        }
        listeners
    }

    fn outbound(&self, port: u16) -> Listener {
        let chain = |upstream: &FakeUpstream| FilterChain {
            filter_chain_match: Some(FilterChainMatch {
                prefix_ranges: upstream.virtual_ips.iter().map(host_range).collect(),
                ..FilterChainMatch::default()
            }),
            filters: vec![upstream.proxy()],
            ..FilterChain::default()
        };
        let with_address = self.upstreams.iter().filter(|upstream| !upstream.virtual_ips.is_empty());
        let default = FilterChain {
            filters: vec![tcp_proxy("upstream.original-destination", "original-destination")],
            ..FilterChain::default()
        };
        let first = FilterChain::default();
        let mut outbound =
            listener("outbound_listener", Ipv4Addr::LOCALHOST, port, TrafficDirection::Outbound, first);
        outbound.filter_chains = with_address.map(chain).collect();
        outbound.default_filter_chain = Some(default);
        outbound.listener_filters = vec![ListenerFilter {
            name: "envoy.filters.listener.original_dst".to_owned(),
            config_type: Some(listener_filter::ConfigType::TypedConfig(pack_any(OriginalDst {}))),
            ..ListenerFilter::default()
        }];
        outbound
    }

    fn public(&self, port: u16) -> Listener {
        let tls = DownstreamTlsContext {
            common_tls_context: Some(self.tls(Vec::new())),
            require_client_certificate: Some(BoolValue { value: true }),
            ..DownstreamTlsContext::default()
        };
        let principal = |regex: &String| Principal {
            identifier: Some(Identifier::Authenticated(Authenticated {
                principal_name: Some(StringMatcher {
                    match_pattern: Some(MatchPattern::SafeRegex(RegexMatcher {
                        regex: regex.clone(),
                        ..RegexMatcher::default()
                    })),
                    ..StringMatcher::default()
                }),
            })),
        };
        let policy = Policy {
            permissions: vec![Permission { rule: Some(permission::Rule::Any(true)) }],
            principals: self.callers.iter().map(principal).collect(),
            ..Policy::default()
        };
        let policies = [("consul-intentions-layer4".to_owned(), policy)];
        let rules = Rules {
            policies: if self.callers.is_empty() { [].into() } else { policies.into() },
            ..Rules::default()
        };
        let rbac = Rbac { rules: Some(rules), stat_prefix: "connect_authz".to_owned(), ..Rbac::default() };
        let chain = FilterChain {
            transport_socket: Some(socket(pack_any(tls))),
            filters: vec![
                filter("envoy.filters.network.rbac", pack_any(rbac)),
                tcp_proxy("public_listener", "local_app"),
            ],
            ..FilterChain::default()
        };
        listener("public_listener", Ipv4Addr::UNSPECIFIED, port, TrafficDirection::Inbound, chain)
    }

    fn tls(&self, match_typed_subject_alt_names: Vec<SubjectAltNameMatcher>) -> CommonTlsContext {
        CommonTlsContext {
            tls_certificates: vec![TlsCertificate {
                certificate_chain: Some(inline(&self.credentials.certificate_pem)),
                private_key: Some(inline(&self.credentials.key_pem)),
                ..TlsCertificate::default()
            }],
            validation_context_type: Some(ValidationContextType::ValidationContext(
                CertificateValidationContext {
                    trusted_ca: Some(inline(&self.credentials.roots_pem)),
                    match_typed_subject_alt_names,
                    ..CertificateValidationContext::default()
                },
            )),
            ..CommonTlsContext::default()
        }
    }
}

impl FakeUpstream {
    fn cluster(&self, of: &FakeProxy) -> Cluster {
        let exact = StringMatcher {
            match_pattern: Some(MatchPattern::Exact(self.spiffe.clone())),
            ..StringMatcher::default()
        };
        let identity = SubjectAltNameMatcher {
            san_type: SanType::Uri.into(),
            matcher: Some(exact),
            ..SubjectAltNameMatcher::default()
        };
        let tls = UpstreamTlsContext {
            common_tls_context: Some(of.tls(vec![identity])),
            sni: self.sni.clone(),
            ..UpstreamTlsContext::default()
        };
        Cluster {
            name: self.sni.clone(),
            alt_stat_name: self.sni.clone(),
            cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into())),
            eds_cluster_config: Some(EdsClusterConfig {
                eds_config: Some(ConfigSource {
                    resource_api_version: ApiVersion::V3.into(),
                    config_source_specifier: Some(ConfigSourceSpecifier::Ads(AggregatedConfigSource {})),
                    ..ConfigSource::default()
                }),
                ..EdsClusterConfig::default()
            }),
            connect_timeout: Some(seconds(5)),
            outlier_detection: Some(OutlierDetection::default()),
            transport_socket: Some(socket(pack_any(tls))),
            ..Cluster::default()
        }
    }

    fn endpoints(&self) -> ClusterLoadAssignment {
        assignment(&self.sni, &self.instances)
    }

    fn proxy(&self) -> Filter {
        tcp_proxy(&format!("upstream.{}", self.sni), &self.sni)
    }
}

fn listener(
    kind: &str,
    ip: Ipv4Addr,
    port: u16,
    direction: TrafficDirection,
    chain: FilterChain,
) -> Listener {
    Listener {
        name: format!("{kind}:{ip}:{port}"),
        address: Some(at(SocketAddr::from((ip, port)))),
        filter_chains: vec![chain],
        traffic_direction: direction.into(),
        ..Listener::default()
    }
}

fn assignment(cluster: &str, instances: &[SocketAddr]) -> ClusterLoadAssignment {
    let endpoint = |instance: &SocketAddr| LbEndpoint {
        host_identifier: Some(HostIdentifier::Endpoint(Endpoint {
            address: Some(at(*instance)),
            ..Endpoint::default()
        })),
        ..LbEndpoint::default()
    };
    let locality = LocalityLbEndpoints {
        lb_endpoints: instances.iter().map(endpoint).collect(),
        ..LocalityLbEndpoints::default()
    };
    ClusterLoadAssignment {
        cluster_name: cluster.to_owned(),
        endpoints: vec![locality],
        ..ClusterLoadAssignment::default()
    }
}

fn tcp_proxy(stat_prefix: &str, cluster: &str) -> Filter {
    let proxy = TcpProxy {
        stat_prefix: stat_prefix.to_owned(),
        cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.to_owned())),
        ..TcpProxy::default()
    };
    filter("envoy.filters.network.tcp_proxy", pack_any(proxy))
}

fn filter(name: &str, config: Any) -> Filter {
    Filter { name: name.to_owned(), config_type: Some(filter::ConfigType::TypedConfig(config)) }
}

fn socket(config: Any) -> TransportSocket {
    TransportSocket {
        name: "tls".to_owned(),
        config_type: Some(transport_socket::ConfigType::TypedConfig(config)),
    }
}

fn inline(pem: &str) -> DataSource {
    DataSource { specifier: Some(Specifier::InlineString(pem.to_owned())), ..DataSource::default() }
}

fn at(to: SocketAddr) -> Address {
    Address {
        address: Some(address::Address::SocketAddress(SocketAddress {
            address: to.ip().to_string(),
            port_specifier: Some(PortSpecifier::PortValue(to.port().into())),
            ..SocketAddress::default()
        })),
    }
}

fn host_range(ip: &IpAddr) -> CidrRange {
    let value = if ip.is_ipv4() { 32 } else { 128 };
    CidrRange { address_prefix: ip.to_string(), prefix_len: Some(UInt32Value { value }) }
}

fn seconds(seconds: i64) -> Duration {
    Duration { seconds, nanos: 0 }
}
