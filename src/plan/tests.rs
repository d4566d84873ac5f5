//! What the planner promises, as properties and cases.

use std::collections::BTreeSet;
use std::net::IpAddr;

use proptest::prelude::*;

use super::facts::{HostAddress, User};
use super::*;
use crate::base::Place;
use crate::config::value::{Port, Scope, ServiceName};
use crate::config::{Capture, Config, DnsMode, Inbound, RegistrationMode, ServiceConfig};

/// A minimal service, as the two-line file says it.
fn service(name: &str, port: Option<u16>, scope: &str) -> ServiceConfig {
    let name: ServiceName = name.parse().unwrap();
    let mut service: ServiceConfig = serde_json::from_value(serde_json::json!({ "name": name })).unwrap();
    service.port = port.and_then(Port::new);
    service.capture.scope = scope.parse::<Scope>().unwrap();
    service.source = format!("/etc/enmesh/services/{name}.toml").into();
    service
}

fn facts() -> HostFacts {
    let user = |uid| User { uid, gid: uid };
    HostFacts {
        hostname: "vm".to_owned(),
        users: [("envoy", 5995), ("consul", 102), ("app", 1000), ("other", 1001)]
            .map(|(name, uid)| (name.to_owned(), user(uid)))
            .into(),
        port_names: [("postgresql".to_owned(), 5432)].into(),
        addresses: vec![HostAddress { interface: "eth0".to_owned(), address: "10.9.0.2".parse().unwrap() }],
        ipv6: true,
        mesh: MeshView { trust_domain: "1.consul".to_owned(), ..MeshView::default() },
        ..HostFacts::default()
    }
}

fn config(services: Vec<ServiceConfig>) -> Config {
    Config { services, ..Config::default() }
}

fn codes(faults: &[Fault]) -> Vec<&str> {
    faults.iter().map(|fault| fault.code).collect()
}

/// What is redirected of DNS, for services with these scopes and modes; the host has a resolver.
fn dns_of(services: &[(&str, &str, DnsMode)]) -> (Option<DnsCapture>, DnsPlan) {
    let services = services.iter().map(|(name, scope, dns)| {
        let mut service = service(name, None, scope);
        service.capture.dns = *dns;
        service
    });
    let mut facts = facts();
    facts.users.insert("systemd-resolve".to_owned(), User { uid: 990, gid: 990 });
    facts.systemd = true;
    let plan = plan(&config(services.collect()), &facts);
    assert_eq!(plan.errors, []);
    (plan.redirect.dns, plan.dns)
}

#[test]
fn dns_is_redirected_for_those_whose_service_wants_it() {
    use DnsMode::{Off, Redirect, Resolved};
    let to = "127.0.0.1:8653".parse().unwrap();
    let uids = |uids: &[u32]| uids.iter().copied().collect::<BTreeSet<u32>>();
    let (capture, dns) = dns_of(&[("api", "user:app", Redirect), ("web", "user:other", Resolved)]);
    assert_eq!(
        capture,
        Some(DnsCapture { to, uids: uids(&[1000]), except: uids(&[]), server: DnsServer::Ours })
    );
    assert!(dns.redirect && dns.resolved && dns.listen == Some(to));
    // Everybody is not the users of other services, nor the host's own resolver.
    let (capture, dns) =
        dns_of(&[("all", "host", Redirect), ("api", "user:app", Off), ("web", "user:other", Redirect)]);
    assert_eq!(
        capture,
        Some(DnsCapture { to, uids: uids(&[]), except: uids(&[990, 1000]), server: DnsServer::Ours })
    );
    assert!(dns.redirect && !dns.resolved);
    let (capture, dns) = dns_of(&[("all", "host", Resolved), ("api", "user:app", Off)]);
    assert_eq!(capture, None);
    assert!(!dns.redirect && dns.resolved);
    let (capture, dns) = dns_of(&[("all", "host", Off)]);
    assert_eq!(capture, None);
    assert!(dns.listen.is_none() && !dns.resolved && dns.records.is_empty() && dns.consul.is_none());
}

#[test]
fn consul_is_asked_where_there_is_or_may_be_one() {
    use crate::config::ControlPlane::{Auto, Catalog, Consul, Static};
    let asked = |control_plane, dns: Option<&str>| {
        let mut config = config(vec![service("api", None, "host")]);
        config.host.control_plane = control_plane;
        config.host.consul.dns = dns.map(|text| text.parse().unwrap());
        let found = plan(&config, &facts()).dns.consul;
        found.map(|consul| (consul.address.to_string(), consul.expected))
    };
    let usual = || "127.0.0.1:8600".to_owned();
    assert_eq!(asked(Static, None), None);
    assert_eq!(asked(Auto, None), Some((usual(), false)));
    assert_eq!(asked(Consul, None), Some((usual(), true)));
    assert_eq!(asked(Catalog, None), Some((usual(), true)));
    assert_eq!(asked(Static, Some("10.0.0.1:53")), Some(("10.0.0.1:53".to_owned(), true)));
}

#[test]
fn the_two_line_service_is_captured_whole() {
    let plan = plan(&config(vec![service("api", Some(8080), "host")]), &facts());
    assert_eq!(plan.errors, []);
    let id = "api".parse().unwrap();
    assert_eq!(plan.services[&id].sidecar.outbound_port, Some(15001));
    assert_eq!(plan.services[&id].sidecar.inbound_port, Some(21000));
    assert_eq!(plan.services[&id].identity.to_string(), "spiffe://1.consul/ns/default/dc/dc1/svc/api");
    assert_eq!(plan.redirect.outbound[&id].who, Who::Everyone);
    assert_eq!(plan.redirect.inbound[&id].ports, InboundPorts::One(8080));
    assert_eq!(plan.redirect.proxy_uids, BTreeSet::from([102, 5995]));
    let ip = plan.mesh.services[&"api".parse().unwrap()].virtual_ips.first().copied().unwrap();
    assert_eq!(plan.dns.records["api.virtual.consul"], [ip]);
    assert!(plan.redirect.virtual_nets.iter().any(|net| net.contains(&ip)));
}

#[test]
fn a_fixed_port_is_the_sidecars_everywhere_and_nobody_elses() {
    let mut fixed = service("api", Some(8080), "user:app");
    fixed.proxy.config.insert("bind_port".to_owned(), "21000".into());
    let plan = plan(&config(vec![fixed, service("other", Some(8081), "user:other")]), &facts());
    assert_eq!(plan.errors, []);
    let port = |id: &str| plan.services[&id.parse().unwrap()].sidecar.inbound_port;
    assert_eq!((port("api"), port("other")), (Some(21000), Some(21001)));
    let api = "api".parse().unwrap();
    assert_eq!(plan.redirect.inbound[&api].to, 21000);
    let sidecar = &plan.services[&api].registration["service"]["connect"]["sidecar_service"];
    assert_eq!(sidecar["port"], 21000);
}

#[test]
fn each_kind_of_bad_service_is_refused_alone() {
    let mut broken = vec![
        service("no-user", None, "user:nobody-here"),
        service("no-unit", None, "unit:gone.service"),
        service("sidecar", None, "user:envoy"),
        service("overlap", None, "user:1000"),
        service("same-port", Some(8080), "user:other"),
        service("port-name", None, "user:77"),
    ];
    broken[5].capture.bypass.outbound_ports = vec!["no-such-port".parse().unwrap()];
    let mut services = vec![service("api", Some(8080), "user:app")];
    services.extend(broken);
    let plan = plan(&config(services), &facts());
    let said: Vec<_> = plan.errors.iter().map(|f| (f.service.as_deref().unwrap(), f.code)).collect();
    assert_eq!(
        said,
        [
            ("no-unit", "ENM-P003"),
            ("no-user", "ENM-P002"),
            ("overlap", "ENM-P005"),
            ("port-name", "ENM-P004"),
            ("same-port", "ENM-P005"),
            ("sidecar", "ENM-P006"),
        ]
    );
    assert_eq!(plan.services.len(), 1, "the good one is planned");
    assert_eq!(plan.redirect.outbound.len(), 1, "and nothing of the bad ones is captured");
}

/// Users of units: one that is there while its unit runs only is nobody's until then, and two units of one
/// user are refused, with both names.
#[test]
fn units_are_their_users() {
    let services =
        || vec![service("one", None, "unit:one.service"), service("two", None, "unit:two.service")];
    let of = |one, two| {
        let mut facts = facts();
        facts.unit_users = [("one.service".to_owned(), one), ("two.service".to_owned(), two)].into();
        plan(&config(services()), &facts)
    };
    let who = |plan: &Plan, id: &str| plan.redirect.outbound[&id.parse().unwrap()].who;
    let down = of(None, None);
    assert_eq!((who(&down, "one"), who(&down, "two")), (Who::Nobody, Who::Nobody));
    assert_eq!((down.errors.len(), down.services.len()), (0, 2), "nobody twice is no overlap");
    let up = of(Some(61_000), None);
    assert_eq!((who(&up, "one"), who(&up, "two")), (Who::Uid(61_000), Who::Nobody));
    assert_ne!(up.generation, down.generation);
    let same = of(Some(61_000), Some(61_000));
    assert_eq!(codes(&same.errors), ["ENM-P060"]);
    let fault = &same.errors[0];
    assert!(fault.message.contains("`one`") && fault.message.contains("`two`"), "{fault}");
    assert!(fault.hint.contains("netns:"), "{}", fault.hint);
    // With somebody who is named, it is as with any other two.
    let mut services = services();
    services.push(service("zeta", None, "user:app"));
    let mut facts = facts();
    facts.unit_users = [("one.service".to_owned(), Some(1000)), ("two.service".to_owned(), None)].into();
    assert_eq!(codes(&plan(&config(services), &facts).errors), ["ENM-P005"]);
}

/// Where nobody is captured, nobody's DNS is redirected; an empty list of users would mean everybody.
#[test]
fn a_unit_that_is_down_redirects_nobodys_names() {
    let mut service = service("one", None, "unit:one.service");
    service.capture.dns = DnsMode::Redirect;
    let mut facts = facts();
    facts.unit_users = [("one.service".to_owned(), None)].into();
    assert_eq!(plan(&config(vec![service]), &facts).redirect.dns, None);
}

#[test]
fn a_service_whose_file_went_bad_stays_as_it_was() {
    let good = service("api", Some(8080), "user:app");
    let mut facts = facts();
    facts.last_good.insert(good.id(), good.clone());
    let before = plan(&config(vec![good.clone()]), &facts);

    let mut fault = Fault::from(PlanError::VirtualIpsUsedUp { pool: "240.0.0.0/4".parse().unwrap() });
    fault.place = Some(Place::whole(&good.source));
    let torn = Config { errors: vec![fault], ..Config::default() };
    facts.previous = Some(before.generation.clone());
    let kept = plan(&torn, &facts);
    assert_eq!(kept.generation, before.generation, "nothing changed");
    assert_eq!(codes(&kept.warnings), ["ENM-P011"]);

    let mut unknown_user = good;
    unknown_user.capture.scope = "user:gone".parse().unwrap();
    let kept = plan(&config(vec![unknown_user]), &facts);
    assert_eq!(codes(&kept.errors), ["ENM-P002"]);
    assert_eq!(kept.redirect, before.redirect);

    assert!(plan(&Config::default(), &facts).services.is_empty(), "a file that is gone is gone");
}

#[test]
fn a_newcomer_does_not_take_what_another_has() {
    let settled = service("web", None, "user:app");
    let mut facts = facts();
    facts.last_good.insert(settled.id(), settled.clone());
    let plan = plan(&config(vec![service("api", None, "user:app"), settled]), &facts);
    assert_eq!(plan.services.keys().map(|id| id.as_str()).collect::<Vec<_>>(), ["web"]);
    assert_eq!(plan.errors[0].service.as_deref(), Some("api"));
}

#[test]
fn no_sidecar_user_means_no_service_and_one_error() {
    let mut facts = facts();
    facts.users.remove("envoy");
    let plan = plan(&config(vec![service("api", Some(8080), "host")]), &facts);
    assert_eq!(codes(&plan.errors), ["ENM-P001"]);
    assert!(plan.redirect.is_empty());
}

#[test]
fn one_services_bypass_does_not_free_another_services_user() {
    let mut host = service("host", None, "host");
    host.capture.bypass.uids = vec!["app".parse().unwrap(), "other".parse().unwrap()];
    let plan = plan(&config(vec![host, service("api", None, "user:app")]), &facts());
    assert_eq!(plan.redirect.bypass_uids, BTreeSet::from([102, 1001, 5995]));
}

#[test]
fn direct_mode_captures_nothing() {
    let mut direct = service("api", Some(8080), "host");
    direct.capture.mode = crate::config::Mode::Direct;
    let plan = plan(&config(vec![direct]), &facts());
    assert!(plan.redirect.is_empty());
    assert_eq!(plan.virtual_net, None);
    assert_eq!(plan.services[&"api".parse().unwrap()].sidecar.inbound_port, Some(21000));
}

/// Services with uids, ports and bypasses of all sorts.
fn any_services() -> impl Strategy<Value = Vec<ServiceConfig>> {
    let one = (
        0u32..30,
        proptest::option::of(1u16..2000),
        any::<bool>(),
        proptest::collection::vec(1u16..2000, 0..4),
    );
    proptest::collection::btree_map(0u8..20, one, 0..10).prop_map(|map| {
        let build = |(number, (uid, port, all, bypass)): (u8, (u32, Option<u16>, bool, Vec<u16>))| {
            let mut service = service(&format!("s{number}"), port, &format!("user:{}", 2000 + uid));
            service.capture =
                Capture { inbound: if all { Inbound::All } else { Inbound::Service }, ..service.capture };
            service
                .capture
                .bypass
                .inbound_ports
                .extend(bypass.iter().map(|p| p.to_string().parse().unwrap()));
            service.capture.bypass.outbound_ports =
                bypass.iter().map(|p| p.to_string().parse().unwrap()).collect();
            service
        };
        map.into_iter().map(build).collect()
    })
}

proptest! {
    #[test]
    fn the_same_inputs_give_the_same_bytes(services in any_services()) {
        let (mut reversed, facts) = (services.clone(), facts());
        reversed.reverse();
        let bytes = |services| serde_json::to_vec(&plan(&config(services), &facts)).unwrap();
        prop_assert_eq!(bytes(services), bytes(reversed));
    }

    #[test]
    fn a_second_plan_changes_nothing(services in any_services()) {
        let mut facts = facts();
        let first = plan(&config(services.clone()), &facts);
        facts.allocations = first.allocations.clone();
        facts.previous = Some(first.generation.clone());
        let second = plan(&config(services), &facts);
        prop_assert_eq!(first.generation, second.generation);
        prop_assert_eq!(first.allocations, second.allocations);
    }

    #[test]
    fn sidecars_and_bypassed_ports_are_never_captured(services in any_services()) {
        let plan = plan(&config(services), &facts());
        for (id, capture) in &plan.redirect.outbound {
            prop_assert_ne!(capture.who, Who::Uid(plan.services[id].sidecar.uid));
        }
        for uid in &plan.redirect.proxy_uids {
            prop_assert!(plan.redirect.bypass_uids.contains(uid));
        }
        for capture in plan.redirect.inbound.values() {
            if let InboundPorts::One(port) = capture.ports {
                prop_assert!(!capture.bypass_ports.iter().any(|range| range.contains(port)));
            }
        }
    }

    #[test]
    fn removing_a_service_moves_nobody(services in any_services(), gone in 0usize..10) {
        let mut facts = facts();
        let first = plan(&config(services.clone()), &facts);
        facts.allocations = first.allocations.clone();
        let mut fewer = services;
        if gone < fewer.len() { fewer.remove(gone); }
        let second = plan(&config(fewer), &facts);
        for (id, service) in &second.services {
            if let Some(before) = first.services.get(id) {
                prop_assert_eq!(&service.sidecar, &before.sidecar);
            }
        }
        for (name, entry) in &second.mesh.services {
            let before: Option<&BTreeSet<IpAddr>> = first.mesh.services.get(name).map(|s| &s.virtual_ips);
            prop_assert!(before.is_none_or(|ips| *ips == entry.virtual_ips));
        }
    }
}

/// Facts of a host whose sidecars Consul drives.
fn driven() -> HostFacts {
    let server = AdsServer::Tcp("127.0.0.1:8502".parse().unwrap());
    HostFacts { xds: Xds::Ads(Ads { server, ca_pem: None, token: true, node_name: None }), ..facts() }
}

fn with_config(mut service: ServiceConfig, config: serde_json::Value) -> ServiceConfig {
    service.proxy.config = config.as_object().unwrap().clone();
    service
}

#[test]
fn consul_is_told_where_each_outbound_listener_is() {
    let services =
        || config(vec![service("api", Some(1), "user:app"), service("web", Some(2), "user:other")]);
    let told = plan(&services(), &driven());
    let path = "/service/connect/sidecar_service/proxy/transparent_proxy/outbound_listener_port";
    let ports: Vec<_> = told.services.values().map(|service| service.registration.pointer(path)).collect();
    assert_eq!(ports, [Some(&15001.into()), Some(&15002.into())]);
    // Files are written by whoever knows the port anyway.
    let files = plan(&services(), &facts());
    assert!(files.services.values().all(|service| service.registration.pointer(path).is_none()));
}

#[test]
fn a_port_that_consul_binds_is_the_port_that_is_redirected_to() {
    let api = with_config(service("api", Some(8080), "host"), serde_json::json!({ "bind_port": 20000 }));
    let planned = plan(&config(vec![api.clone()]), &facts());
    let id = "api".parse().unwrap();
    assert_eq!(planned.services[&id].sidecar.inbound_port, Some(20000));
    assert_eq!(planned.redirect.inbound[&id].to, 20000);
    let registered = planned.services[&id].registration.pointer("/service/connect/sidecar_service/port");
    assert_eq!(registered, Some(&20000.into()));

    let mut web =
        with_config(service("web", Some(8081), "user:app"), serde_json::json!({ "bind_port": 20000 }));
    let both = plan(&config(vec![api, web.clone()]), &facts());
    assert_eq!(codes(&both.errors), ["ENM-P020"]);
    web.proxy.config.clear();
    // No other sidecar is given a port that somebody claims by name.
    let claims = with_config(service("zed", Some(8082), "host"), serde_json::json!({ "bind_port": 21000 }));
    let both = plan(&config(vec![web, claims]), &facts());
    assert_eq!(both.services[&"web".parse().unwrap()].sidecar.inbound_port, Some(21001));
}

/// Row 43 of docs/traffic.md.
#[test]
fn ports_of_the_sidecars_own_stay_reachable() {
    let mut api = with_config(
        service("api", Some(8080), "host"),
        serde_json::json!({ "envoy_prometheus_bind_addr": "0.0.0.0:9102" }),
    );
    api.capture.inbound = Inbound::All;
    let exposed = serde_json::json!({ "Proxy": { "Expose": { "Paths": [{ "ListenerPort": 21500 }] } } });
    let merged = [("api".parse().unwrap(), exposed)].into();
    let planned = plan(&config(vec![api]), &HostFacts { merged, ..facts() });
    let bypassed = &planned.redirect.inbound[&"api".parse().unwrap()].bypass_ports;
    for port in [22, 9102, 21500] {
        assert!(bypassed.iter().any(|range| range.contains(port)), "{port} in {bypassed:?}");
    }
}

#[test]
fn one_address_for_metrics_is_not_for_two() {
    let merged =
        serde_json::json!({ "Proxy": { "Config": { "envoy_prometheus_bind_addr": "0.0.0.0:9102" } } });
    let merged = ["api", "web"].map(|id| (id.parse().unwrap(), merged.clone())).into();
    let services = vec![service("api", Some(1), "user:app"), service("web", Some(2), "user:other")];
    let planned = plan(&config(services), &HostFacts { merged, ..facts() });
    assert_eq!(codes(&planned.warnings), ["ENM-P021"]);
    let has = |id: &str| {
        planned.services[&id.parse().unwrap()].sidecar.config.contains_key("envoy_prometheus_bind_addr")
    };
    assert!(has("api") && !has("web"));
}

#[test]
fn a_key_without_an_effect_is_told_and_left_out() {
    let key = "envoy_telemetry_collector_bind_socket_dir";
    let api = with_config(service("api", None, "host"), serde_json::json!({ key: "/run/x" }));
    let planned = plan(&config(vec![api]), &facts());
    assert_eq!((codes(&planned.errors), codes(&planned.warnings)), (vec![], vec!["ENM-P022"]));
    assert!(planned.services[&"api".parse().unwrap()].sidecar.config.is_empty());
}

#[test]
fn a_registration_of_somebody_elses_says_which_ports() {
    let mut configuration = config(vec![service("api", Some(8080), "host")]);
    let merged = serde_json::json!({ "Port": 20005, "Proxy": { "TransparentProxy": { "OutboundListenerPort": 16001 } } });
    let facts = HostFacts { merged: [("api".parse().unwrap(), merged)].into(), ..driven() };
    let ports = |configuration: &Config| {
        let sidecar = &plan(configuration, &facts).services[&"api".parse().unwrap()].sidecar;
        (sidecar.outbound_port, sidecar.inbound_port)
    };
    assert_eq!(ports(&configuration), (Some(15001), Some(21000)), "ours says what we told it");
    configuration.host.registration = RegistrationMode::None;
    assert_eq!(ports(&configuration), (Some(16001), Some(20005)));
}

fn in_namespace(name: &str, port: u16) -> ServiceConfig {
    service(name, Some(port), &format!("netns:{name}"))
}

#[test]
fn services_in_namespaces_of_their_own_share_nothing() {
    // The same port and, since nobody asks for it, the same user.
    let planned = plan(&config(vec![in_namespace("api", 8080), in_namespace("web", 8080)]), &facts());
    assert_eq!(planned.errors, []);
    assert!(planned.redirect.is_empty(), "in the host's namespace nothing is captured");
    let [api, web] = ["api", "web"].map(|name| &planned.namespaces[name]);
    assert_eq!((api.net.to_string(), web.net.to_string()), ("198.18.0.0/30".into(), "198.18.0.4/30".into()));
    assert_eq!(
        (api.outside().to_string(), api.inside().to_string()),
        ("198.18.0.1".into(), "198.18.0.2".into())
    );
    assert!(api.link() != web.link() && api.link().len() < 16);
    for own in [api, web] {
        let [capture] = own.redirect.outbound.values().collect::<Vec<_>>()[..] else { panic!("{own:?}") };
        assert_eq!(capture.who, Who::Everyone);
        assert_eq!(own.redirect.inbound[&own.service].ports, InboundPorts::One(8080));
        assert_eq!(own.redirect.generation, planned.generation);
        assert!(own.redirect.proxy_uids.contains(&5995));
        assert_eq!(own.redirect.virtual_route, planned.mesh.virtual_net);
    }
    // At the host's address a caller finds the sidecars, and nobody at the port of the apps.
    for (name, port) in [("api", 21000), ("web", 21001)] {
        let name: ServiceName = name.parse().unwrap();
        let instance = planned.mesh.services[&name].instances.first().unwrap();
        assert_eq!((instance.port, instance.service_port), (port, None));
    }
    assert_eq!(planned.dns.inside.len(), 2);
}

#[test]
fn what_the_host_is_at_is_the_mesh_from_within_a_namespace() {
    let mut facts = facts();
    let instance =
        Instance { address: "10.9.0.2".parse().unwrap(), port: 21005, service_port: Some(9000), weight: 1 };
    let db = MeshService { instances: [instance].into(), ..MeshService::default() };
    facts.mesh.services.insert("db".parse().unwrap(), db);
    let services = vec![in_namespace("api", 8080), service("web", None, "host")];
    let planned = plan(&config(services), &facts);
    let dialled = ("10.9.0.2".parse().unwrap(), 9000);
    assert!(planned.namespaces["api"].redirect.mesh_instances.contains(&dialled));
    assert!(!planned.redirect.mesh_instances.contains(&dialled), "on the host it is an address of its own");
}

#[test]
fn a_namespace_keeps_its_network_and_one_that_is_gone_gives_it_back_last() {
    let first = plan(&config(vec![in_namespace("api", 80), in_namespace("web", 81)]), &facts());
    let later = HostFacts { allocations: first.allocations, ..facts() };
    let second = plan(&config(vec![in_namespace("web", 81), in_namespace("a-new-one", 82)]), &later);
    assert_eq!(second.namespaces["web"].net, first.namespaces["web"].net);
    assert_eq!(second.namespaces["a-new-one"].net.to_string(), "198.18.0.8/30");
    // A pool of two.
    let mut small = config(vec![in_namespace("web", 81), in_namespace("b", 83)]);
    small.host.namespaces.pool = "198.18.0.0/29".parse().unwrap();
    let third = plan(&small, &later);
    assert_eq!(codes(&third.errors), [""; 0]);
    assert_eq!(third.namespaces["b"].net.to_string(), "198.18.0.0/30", "that of `api`, which is gone");
    small.services.push(in_namespace("c", 84));
    assert_eq!(codes(&plan(&small, &later).errors), ["ENM-P051"]);
}

#[test]
fn a_pool_that_the_host_is_in_is_refused() {
    let mut facts = facts();
    let address = HostAddress { interface: "eth1".to_owned(), address: "198.18.7.7".parse().unwrap() };
    facts.addresses.push(address);
    let planned = plan(&config(vec![in_namespace("api", 8080), service("web", None, "host")]), &facts);
    assert_eq!(codes(&planned.errors), ["ENM-P050"]);
    assert_eq!(planned.services.len(), 1, "the others are planned");
}

#[test]
fn checks_are_run_from_the_host() {
    let mut api = in_namespace("api", 8080);
    let check = serde_json::json!({ "tcp": "127.0.0.1:8080", "interval": "10s" });
    api.checks = vec![serde_json::from_value(check).unwrap()];
    let planned = plan(&config(vec![api]), &facts());
    let own = &planned.namespaces["api"];
    let registered = &planned.services[&own.service].registration["service"]["checks"][0]["tcp"];
    assert_eq!(registered, "198.18.0.2:8080");
    assert_eq!((own.redirect.host_end, own.app), (Some(own.outside()), Some(8080)));
    assert_eq!(own.checkers, BTreeSet::from([0, 102]), "root, and Consul's user");
}

#[test]
fn from_within_the_agent_is_at_the_hosts_end() {
    let services = vec![in_namespace("api", 8080), service("web", None, "user:other")];
    let planned = plan(&config(services), &driven());
    let own = &planned.namespaces["api"];
    let server = |id: &str| match &planned.services[&id.parse::<ServiceId>().unwrap()].sidecar.xds {
        Xds::Ads(ads) => ads.server.clone(),
        Xds::Files => panic!("{id} is driven by files"),
    };
    let AdsServer::Tcp(outside) = server("web") else { panic!("a socket") };
    assert!(outside.ip().is_loopback());
    assert_eq!(server("api"), AdsServer::Tcp((own.outside(), outside.port()).into()));
    assert_eq!(own.agent.map(SocketAddr::V4), Some(outside));
}

#[test]
fn without_namespaces_a_plan_says_nothing_of_them() {
    let planned = plan(&config(vec![service("api", Some(8080), "host")]), &facts());
    let json = serde_json::to_value(&planned).unwrap();
    assert!(json.get("namespaces").is_none() && json["dns"].get("inside").is_none());
    assert!(json["allocations"].get("namespaces").is_none());
}
